"""The noise scale at checkpoints, of simulated gradients in a curvature that is known."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.describe_points import describe_points
from scaling_jax.laws.noise_points import noise_points
from scaling_jax.records import Records
from scaling_jax.records.schema import AT_CHECKPOINT, NOISE_COLUMNS
from scaling_jax.records.tables import typed

SEQUENCES, GROUPS, N_CTX, DRAWS = 64, 8, 10, 16


def draws_of(rng, gradient, sigma, h, points):
    """Forms of the small and of the big gradients, [points, draws], of diagonal Sigma and H."""
    each = SEQUENCES // GROUPS
    noise = rng.normal(size=(points, DRAWS, GROUPS, len(h))) * np.sqrt(sigma / each)
    gradients = gradient + noise
    return (gradients**2 @ h).mean(-1), gradients.mean(2) ** 2 @ h


def rows_of(run_id, step, metric, small, big):
    """A row of the noise table from the forms of draws, [draws]."""
    return {
        "run_id": run_id,
        "attempt": 1,
        "step_start": step,
        "step": step,
        "source": AT_CHECKPOINT,
        "metric": metric,
        "part": "total",
        "grad_sq_small": small.mean(),
        "grad_sq_big": big.mean(),
        "grad_sq_small_sq": (small**2).mean(),
        "grad_sq_big_sq": (big**2).mean(),
        "grad_sq_small_big": (small * big).mean(),
        "noise_steps": len(small),
        "batch_small": SEQUENCES * N_CTX // GROUPS,
        "batch_big": SEQUENCES * N_CTX,
    }


def records(rows):
    names = sorted({row["run_id"] for row in rows})
    runs = {"run_id": names, "name": names, "params_non_embedding": 100, "n_ctx": N_CTX}
    of_one = {
        "step_start": [0, 0, 10, 20],
        "step": [0, 10, 20, 30],
        "tokens": [0, 320, 640, 960],
        "batch_tokens": 32,
        "train_loss": [None, 4.0, 3.0, 2.0],
    }
    curves = pl.concat(pl.DataFrame({"run_id": name} | of_one) for name in reversed(names))
    noise = typed(pl.DataFrame(rows, infer_schema_length=None), NOISE_COLUMNS, "made")
    return Records(pl.DataFrame(runs), curves, "made", sides={"noise": noise})


def scale(h, sigma, gradient):
    """tr(H Sigma) / G^T H G in tokens."""
    return N_CTX * h @ sigma / (gradient**2 @ h)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(4)
    sigma = np.exp(rng.normal(size=60))
    return rng.normal(size=60) * 0.2, sigma, np.geomspace(0.1, 3.0, 60)


def test_intervals_cover_the_ratio_of_a_hessian(problem):
    gradient, sigma, h = problem
    small, big = draws_of(np.random.default_rng(0), gradient, sigma, h, 400)
    rows = [
        rows_of("a", i, "hessian", *each) for i, each in enumerate(zip(small, big, strict=True))
    ]
    found = noise_points(records(rows), level=0.9)
    truth = scale(h, sigma, gradient)
    known = found.filter(~pl.col("undetermined"))
    inside = pl.col("b_simple_low").is_between(0, truth) & (pl.col("b_simple_high") > truth)
    assert len(known) == 400
    assert 0.86 <= known.select(inside.mean()).item() <= 0.94
    ratio = known.select(pl.col("tr_sigma").mean() / pl.col("grad_sq").mean()).item()
    assert ratio == pytest.approx(truth, rel=0.02)
    assert known["tr_sigma"].mean() == pytest.approx(N_CTX * h @ sigma, rel=0.02)


def test_a_hessian_may_be_negative_and_is_not_clamped(problem):
    gradient, sigma, h = problem
    downwards = np.where(np.arange(60) < 3, 0.1 * h, -h)
    rows = []
    for metric, weights in (("hessian", downwards), ("gauss_newton", h)):
        small, big = draws_of(np.random.default_rng(1), gradient, sigma, weights, 1)
        rows.append(rows_of("a", 20, metric, small[0], big[0]))
    hessian, gauss_newton = noise_points(records(rows)).rows(named=True)
    assert (hessian["metric"], gauss_newton["metric"]) == ("hessian", "gauss_newton")
    assert hessian["grad_sq"] < 0 and hessian["tr_sigma"] < 0
    assert hessian["b_simple_low"] < scale(downwards, sigma, gradient) < hessian["b_simple_high"]

    balanced = h * np.where(np.arange(60) % 2, 1, -1)
    small, big = draws_of(np.random.default_rng(0), 0.01 * gradient, sigma, balanced, 1)
    unknown = noise_points(records([rows_of("a", 20, "hessian", small[0], big[0])]))
    row = unknown.row(0, named=True)
    assert row["undetermined"]
    assert (row["b_simple"], row["b_simple_low"], row["b_simple_high"]) == (None, None, None)


def test_points_know_where_they_are_and_too_few_draws_give_no_interval(problem):
    gradient, sigma, h = problem
    small, big = draws_of(np.random.default_rng(0), gradient, sigma, h, 1)
    rows = [
        rows_of(run, step, metric, small[0], big[0])
        for run, step in (("b", 0), ("a", 24), ("a", 10))
        for metric in ("hessian", "euclidean")
    ]
    rows.append(rows_of("b", 30, "hessian", small[0, :4], big[0, :4]))
    found = noise_points(records(rows))
    assert found.select("name", "step", "tokens", "loss", "metric", "draws").rows() == [
        ("a", 10, 320, 4.0, "euclidean", DRAWS),
        ("a", 10, 320, 4.0, "hessian", DRAWS),
        ("a", 24, 768, 3.0, "euclidean", DRAWS),
        ("a", 24, 768, 3.0, "hessian", DRAWS),
        ("b", 0, 0, None, "euclidean", DRAWS),
        ("b", 0, 0, None, "hessian", DRAWS),
        ("b", 30, 960, 2.0, "hessian", 4),
    ]
    text = describe_points(found, 0.9)
    assert max(map(len, text.splitlines())) < 100
    assert [line.split()[:4] for line in text.splitlines()[3:5]] == [
        ["a", "24", "3.000", "identity"],
        ["a", "24", "3.000", "Hessian"],
    ]
    few = found.row(-1, named=True)
    assert few["undetermined"] and few["b_simple_low"] is None and few["grad_sq"] > 0


def test_refusals(problem):
    gradient, sigma, h = problem
    small, big = draws_of(np.random.default_rng(0), gradient, sigma, h, 1)
    rows = [rows_of("a", 10, "hessian", small[0], big[0])]
    with pytest.raises(RequestError, match="level"):
        noise_points(records(rows), level=1.5)
    of_windows = records([rows[0] | {"source": "groups"}])
    with pytest.raises(WorkError, match="scaling-jax curvature"):
        noise_points(of_windows)
