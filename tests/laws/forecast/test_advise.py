"""Advice on the next run: brute force, the sequence, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forecast.advise import advise, best_run, describe_advice
from scaling_jax.laws.forecast.posterior import Posterior, gains
from scaling_jax.laws.forms import find_law
from scaling_jax.records.store import Records

LAW = find_law("l_nd_chinchilla")
TRUTH = {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}
Read = Callable[..., Records]


def table(noise: float = 0.003, rows: int = 1, batch: bool = True) -> pl.DataFrame:
    size, tokens = (
        axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 3e8, 4), np.geomspace(1e9, 2e10, 4))
    )
    run = np.array([f"r{k}" for k in range(size.size)])
    size, run = np.repeat(size, rows), np.repeat(run, rows)
    tokens = (tokens[:, None] * np.linspace(1 / rows, 1, rows)).ravel()
    scatter = noise * np.random.default_rng(0).normal(size=size.size)
    loss = LAW.predict(TRUTH, N=size, D=tokens) * np.exp(scatter)
    columns = {"run_id": run, "N": size, "D": tokens, "loss": loss}
    return pl.DataFrame(
        columns | ({"batch_tokens": np.where(size > 1e8, 2e5, 1e5)} if batch else {})
    )


def known(covariance: np.ndarray, noise: float) -> Posterior:
    """Errors of one size, which is no question."""
    zero = np.zeros((1, len(covariance)))
    return Posterior(np.ones(1), zero, covariance[None], np.array([noise]), zero)


def test_the_advised_run_is_the_best_of_all_for_its_flops() -> None:
    root = np.random.default_rng(0).normal(size=(30, 9))
    found = known(root.T @ root / 30, 0.3)
    flops = np.random.default_rng(1).uniform(1, 4, size=4)
    blocks = np.arange(8).reshape(4, 2)
    worth = []
    for block, cost in zip(blocks, flops, strict=True):
        kept = [*block, 8]
        inner = found.covariance[0][np.ix_(kept, kept)] + np.diag([0.3, 0.3, 0.0])
        after = 1 / np.linalg.inv(inner)[2, 2]
        worth.append(np.log(found.covariance[0, 8, 8] / after) / cost)
    np.testing.assert_allclose(gains(found, 8, blocks) / flops, worth, rtol=1e-9)
    assert best_run(found, 8, blocks, flops) == int(np.argmax(worth))


def test_a_run_that_narrows_next_to_nothing_is_no_advice_however_cheap() -> None:
    covariance = np.diag([1.0, 1.0, 1.0])
    covariance[0, 2] = covariance[2, 0] = 0.9
    covariance[1, 2] = covariance[2, 1] = 0.05
    found = known(covariance, 0.1)
    blocks = np.array([[0], [1]])
    worth = gains(found, 2, blocks)
    assert worth[1] < 0.03 * worth[0]
    assert best_run(found, 2, blocks, np.array([1.0, 1e-6])) == 0


def test_the_target_is_held_and_every_run_narrows_it(read: Read) -> None:
    measured = table()
    found = advise(read(measured), 2e9, 1e11)
    truth = float(LAW.predict(TRUTH, N=2e9, D=1e11))
    low, high = found.interval
    assert low < truth < high and found.n_runs == 16
    assert len(found.runs) == 6 and found.runs[0].narrowing > 0
    assert np.all(np.diff([found.half_width, *(run.half_width for run in found.runs)]) < 0)
    for run in found.runs:
        assert run.flops == pytest.approx(6 * run.N * run.D)
        assert run.flops <= 0.25 * found.flops
        away = (measured["N"] / run.N).log() ** 2 + (measured["D"] / run.D).log() ** 2
        assert run.batch_tokens == measured["batch_tokens"][int(away.arg_min() or 0)]
        assert np.log2(2e9 / run.N) % 1 == pytest.approx(0, abs=1e-9)


def test_the_most_that_a_run_may_cost_is_kept(read: Read) -> None:
    dear = advise(read(table()), 2e9, 1e11)
    cheap = advise(read(table()), 2e9, 1e11, most_flops=1e18, count=3)
    assert max(run.flops for run in cheap.runs) <= 1e18
    assert len(cheap.runs) == 3
    assert dear.runs[-1].half_width < cheap.runs[-1].half_width
    with pytest.raises(RequestError, match="no run costs 1 FLOPs or less"):
        advise(read(table()), 2e9, 1e11, most_flops=1.0)


def test_rows_of_a_curve_are_one_run(read: Read) -> None:
    found = advise(read(table(rows=40)), 2e9, 1e11)
    assert found.n_runs == 16 and found.n_points == 64  # at the end and three halvings before
    assert found.half_width == pytest.approx(advise(read(table()), 2e9, 1e11).half_width, rel=0.7)


def test_json_and_text_say_the_same_and_nothing_that_is_no_number(read: Read) -> None:
    found = advise(read(table(batch=False)), 5e10, 1e12)
    doc = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert doc["runs"][0]["batch_tokens"] is None and "extrapolation" in doc["flags"]
    text = describe_advice(found)
    assert f"{doc['runs'][0]['N']:.4g}" in text and "extrapolation:" in text
    assert "nan" not in text


def test_what_cannot_be_asked(read: Read) -> None:
    records = read(table())
    with pytest.raises(RequestError, match="N = "):
        advise(records, -1.0, 1e11)
    with pytest.raises(RequestError, match="one run or more"):
        advise(records, 2e9, 1e11, count=0)
    with pytest.raises(RequestError, match="between 0 and 1"):
        advise(records, 2e9, 1e11, level=90)
    chinchilla = table().with_columns(D=20 * pl.col("N"))
    with pytest.raises(WorkError, match="told apart"):
        advise(read(chinchilla), 2e9, 1e11)
