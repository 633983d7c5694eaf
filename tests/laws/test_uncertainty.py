"""Resampling whole runs: what is drawn, what interval comes of it, and whether it covers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling_jax.laws.fitting import make_points, solve
from scaling_jax.laws.forms import L_NS
from scaling_jax.laws.uncertainty import correlation, intervals, resample_weights, run_counts, tail

SIZES = np.array([1.0, 1.0, 2.0, 3.0, 3.0])


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_every_draw_has_as_many_runs_and_three_sizes(seed: int) -> None:
    counts = run_counts(np.random.default_rng(seed), SIZES, 50)
    assert (counts.sum(axis=1) == SIZES.size).all()
    for row in counts:
        assert np.unique(SIZES[row > 0]).size >= 3


def test_a_run_is_drawn_whole_and_the_start_is_drawn_with_it() -> None:
    run = np.repeat(np.arange(5), 10)
    steps = np.tile(np.geomspace(10, 1000, 10), 5)
    weights = resample_weights(np.random.default_rng(0), run, SIZES, steps, (50.0, 200.0), 400)
    firsts = []
    for row in weights:
        for each in range(5):
            of_run = row[run == each]
            kept = of_run[steps[run == each] >= 200.0]
            assert (kept == kept[0]).all() and (of_run[:3] == 0).all()
        firsts.append(steps[row > 0].min())
    assert len(set(np.round(firsts, 6))) > 1


def test_few_runs_cut_less_and_many_cut_the_plain_share() -> None:
    assert tail(0.9, 10_000) == pytest.approx(0.05, rel=0.01)
    assert tail(0.9, 7) == pytest.approx(0.0180, abs=0.0005)
    assert tail(0.9, 4) < tail(0.9, 7) < tail(0.5, 7)


def test_intervals_are_quantiles_and_correlation_is_numpys() -> None:
    draws = np.random.default_rng(0).normal(size=(1000, 3))
    draws[:, 1] += draws[:, 0]
    low, high = intervals({"a": draws[:, 0]}, 0.9, 10**6)["a"]
    assert (low, high) == pytest.approx(tuple(np.quantile(draws[:, 0], [0.05, 0.95])), rel=1e-3)
    np.testing.assert_allclose(correlation(draws), np.corrcoef(draws.T), rtol=1e-9, atol=1e-12)
    draws[:, 2] = 4.0
    assert correlation(draws)[2].tolist() == [0.0, 0.0, 1.0]


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    truth = {"N_c": 3e6, "S_c": 30.0, "alpha_N": 0.12, "alpha_S": 0.4}
    size_of_run = np.geomspace(3e3, 2e5, 8)
    run = np.repeat(np.arange(8), 12)
    inputs = {"N": size_of_run[run], "S": np.tile(np.geomspace(100, 1e4, 12), 8)}
    exact = L_NS.predict(truth, **inputs)
    rng = np.random.default_rng(3)
    hits, widths, estimates = [], [], []
    for _ in range(40):
        shared = 0.005 * rng.normal(size=8)[run]  # a seed lifts its whole run
        loss = exact * np.exp(shared + 0.003 * rng.normal(size=run.size))
        points = make_points(L_NS, inputs, loss)
        best = solve(points, np.ones((1, loss.size)), starts=L_NS.starts[:2]).theta
        weights = resample_weights(rng, run, size_of_run, inputs["S"], (100.0, 141.0), 120)
        draws = np.exp(points.log_params(solve(points, weights, starts=best).theta))
        ends = intervals(dict(zip(L_NS.params, draws.T, strict=True)), 0.9, 8)
        hits.append([ends[name][0] <= truth[name] <= ends[name][1] for name in L_NS.params])
        widths.append(ends["alpha_N"][1] - ends["alpha_N"][0])
        estimates.append(np.exp(points.log_params(best[0]))[2])
    covered = np.mean(hits, axis=0)
    assert (covered >= 0.75).all(), covered
    # Not by being wide: about 3.3 standard deviations of the estimate, 4.5 when expanded.
    assert 2.0 < np.median(widths) / np.std(estimates) < 7.0
