from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from scaling_jax.config import EngineConfig
from scaling_jax.data.sampler import windows
from scaling_jax.data.subsets import subset
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.noise import two_point
from scaling_jax.training.curvature_draws import CurvatureProgram, Draws
from scaling_jax.training.step import make_model, token_losses

FEW = Draws(draws=3, groups=2, sequences=6, hessian_sequences=3)
METRICS = ["euclidean", "hessian", "gauss_newton"]


@pytest.fixture(scope="module")
def small(tiny):
    """`small(windows, section={field: value})`: a run that draws from so many windows."""

    def make(windows: int = 6, **changes):
        data = {"unique_tokens": 8 + windows, "subset_seed": 2}
        return tiny(model={"d_model": 4, **changes.pop("model", {})}, data=data, **changes)

    return make


@pytest.fixture(scope="module")
def wide(small, corpus) -> CurvatureProgram:
    """Of a run that draws from many windows."""
    return CurvatureProgram(small(windows=1000), corpus, FEW)


def by_metric(rows):
    assert sorted(row["metric"] for row in rows) == sorted(METRICS)
    return {row["metric"]: row for row in rows}


def moments(row):
    return {name: value for name, value in row.items() if name.startswith("grad_sq")}


def test_moments_are_those_of_the_tokens_that_the_run_draws_from(
    small, corpus, some_parameters, quick_jit
):
    config = small()
    params = some_parameters(config.model)
    draws = Draws(draws=40, groups=16, sequences=64, hessian_sequences=32)
    found = by_metric(CurvatureProgram(config, corpus, draws).measure(params, 30))

    model = make_model(config, EngineConfig(attention="xla", layers="unrolled"))
    vector, unravel = ravel_pytree(params)
    tokens = np.asarray(subset(corpus.train, 2, 14).tokens, np.int32)
    window_nt = np.stack([tokens[i : i + 9] for i in range(6)])

    def loss(vector, window_nt):
        logits = model(unravel(vector), window_nt[:, :-1])
        return token_losses(logits, window_nt[:, 1:]).mean()

    @quick_jit
    def truth(vector):
        of_window = jax.vmap(jax.grad(loss), in_axes=(None, 0))
        gradient_n = of_window(vector, window_nt[:, None])
        mean = gradient_n.mean(0)
        whole = jax.grad(lambda vector: loss(vector, window_nt))
        return gradient_n, mean, jax.jvp(whole, (vector,), (mean,))[1]

    gradient_n, mean, product = map(np.asarray, truth(vector))
    trace = 8 * np.square(gradient_n - mean).sum(1).mean()  # a token, of 8 in a sequence
    for metric, form in {"euclidean": mean @ mean, "hessian": mean @ product}.items():
        row = found[metric]
        assert (row["noise_steps"], row["batch_small"], row["batch_big"]) == (40, 32, 512)
        norms = row["grad_sq_small"], row["grad_sq_big"]
        estimate = two_point(*norms, row["batch_small"], row["batch_big"])
        np.testing.assert_allclose(estimate.grad_sq, form, rtol=0.05)
        if metric == "euclidean":
            np.testing.assert_allclose(estimate.tr_sigma, trace, rtol=0.05)


def test_draws_follow_the_step_and_are_not_those_of_training(wide, small, some_parameters):
    config = small()
    params = some_parameters(config.model)
    first = wide.measure(params, 30)
    assert wide.measure(params, 30) == first
    assert moments(wide.measure(params, 40)[0]) != moments(first[0])
    trained = jax.vmap(lambda step: windows(config.data.seed, step, 6, 1008, 8))(jnp.arange(60))
    for step in (0, 30):
        drawn = [wide.starts(step, draw)[:6].tolist() for draw in range(3)]
        assert not {*map(tuple, drawn)} & {*map(tuple, trained.tolist())}


def test_equal_rows_have_no_noise_but_that_of_dropout(small, corpus, some_parameters):
    for dropout, noise in ((0.0, False), (0.4, True)):
        config = small(windows=1, model={"dropout": dropout})
        params = some_parameters(config.model)
        found = by_metric(CurvatureProgram(config, corpus, FEW).measure(params, 30))
        for metric in ("euclidean", "gauss_newton"):
            ratio = found[metric]["grad_sq_small"] / found[metric]["grad_sq_big"]
            assert ratio > 1.02 if noise else abs(ratio - 1) < 1e-4


def test_what_cannot_be_measured_is_refused(wide, small, corpus, some_parameters):
    config = small()
    for draws, words in (
        (Draws(draws=1), "draws is 2 at least, not 1"),
        (Draws(groups=1), "groups is 2 at least, not 1"),
        (Draws(hessian_sequences=0), "hessian_sequences is 1 at least"),
        (Draws(sequences=100), "the nearest that do are 96"),
        (Draws(sequences=0), "the nearest that do are 8"),
    ):
        with pytest.raises(RequestError, match=words):
            CurvatureProgram(config, corpus, draws)
    params = jax.tree.map(lambda x: x * jnp.nan, some_parameters(config.model))
    with pytest.raises(WorkError, match="not finite at step 30"):
        wide.measure(params, 30)
