"""Intervals of few runs, and resampling whole runs: what is drawn, and what comes of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.fitting import Points, make_points, solve
from scaling_jax.laws.forms import L_NS
from scaling_jax.laws.sandwich import sandwich
from scaling_jax.laws.uncertainty import correlation, run_counts, spread, tail

SIZES = np.array([1.0, 1.0, 2.0, 3.0, 3.0])
TRUTH = {"N_c": 3e6, "S_c": 30.0, "alpha_N": 0.12, "alpha_S": 0.4}
RUN = np.repeat(np.arange(7), 12)
N = np.geomspace(3456, 172_032, 7)[RUN]
STEP = np.tile(np.geomspace(100, 12_000, 12), 7)


def fitted(runs: int = 7, noise: float = 0.003) -> tuple[Points, np.ndarray, np.ndarray]:
    """Points, the minimum, and the weights that keep the first `runs` runs."""
    rng = np.random.default_rng(4)
    loss = L_NS.predict(TRUTH, N=N, S=STEP)
    loss = loss * np.exp(noise * rng.normal(size=7)[RUN] + noise * rng.normal(size=RUN.size))
    points = make_points(L_NS, {"N": N, "S": STEP}, loss)
    weights = (runs > RUN).astype(float)
    return points, solve(points, weights[None]).theta[0], weights


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_every_draw_has_as_many_runs_and_three_sizes(seed: int) -> None:
    counts, redrawn = run_counts(np.random.default_rng(seed), SIZES, 50)
    assert (counts.sum(axis=1) == SIZES.size).all()
    for row in counts:
        assert np.unique(SIZES[row > 0]).size >= 3
    # Two sizes or one come up in 44 % of the draws, and each has to be made again.
    assert 10 <= redrawn <= 90


def test_draws_of_two_sizes_are_not_made_again_for_ever() -> None:
    counts, _ = run_counts(np.random.default_rng(0), np.array([1.0, 1.0, 2.0]), 50)
    assert ((counts[:, :2].sum(axis=1) > 0) & (counts[:, 2] > 0)).all()


def test_few_runs_cut_less_and_many_cut_the_plain_share() -> None:
    assert tail(0.9, 10_000) == pytest.approx(0.05, rel=0.01)
    assert tail(0.9, 7) == pytest.approx(0.0180, abs=0.0005)
    assert tail(0.9, 4) < tail(0.9, 7) < tail(0.5, 7)


def test_correlation_is_numpys_and_a_parameter_at_rest_has_none() -> None:
    draws = np.random.default_rng(0).normal(size=(1000, 3))
    draws[:, 1] += draws[:, 0]
    np.testing.assert_allclose(correlation(np.cov(draws.T)), np.corrcoef(draws.T), rtol=1e-9)
    draws[:, 2] = 4.0
    assert correlation(np.cov(draws.T))[2].tolist() == [0.0, 0.0, 1.0]


def test_interval_is_students_t_on_the_covariance_over_runs() -> None:
    points, theta, weights = fitted()
    robust = sandwich(points, theta, weights, RUN)
    found = spread(points, theta, weights, RUN, N, level=0.8, rng=np.random.default_rng(9))
    for axis, name in enumerate(L_NS.exponents):
        half = stats.t.ppf(0.9, robust.freedom(np.eye(4)[axis]))
        half *= np.sqrt(robust.covariance[axis, axis])
        expected = np.exp([theta[axis] - half, theta[axis] + half])
        assert found.intervals[name] == pytest.approx(expected, rel=1e-4)
    assert (found.n_clusters, found.n_sizes, found.flag) == (7, 7, None)
    assert (found.redrawn, found.failed) == (0, 0.0)


def test_draws_carry_the_interval_and_the_correlation() -> None:
    points, theta, weights = fitted()
    found = spread(points, theta, weights, RUN, N)
    low, high = np.exp(np.quantile(found.draws, [found.tail, 1 - found.tail], axis=0))
    assert list(found.intervals.values()) == [
        pytest.approx(pair) for pair in zip(low, high, strict=True)
    ]
    ranks = found.draws.argsort(axis=0).argsort(axis=0)
    np.testing.assert_allclose(np.corrcoef(ranks.T), found.correlation, atol=0.1)
    assert found.correlation[0, 2] < -0.8  # N_c and alpha_N: one term, known at the data
    # What the data know well stays known: the loss in their middle, and not far outside.
    errors = []
    for size, step in ((25_000.0, 1100.0), (1e7, 1e6)):
        params = dict(zip(L_NS.params, np.exp(found.draws[:200]).T, strict=True))
        one = [
            float(L_NS.predict({k: v[i] for k, v in params.items()}, N=size, S=step))
            for i in range(200)
        ]
        errors.append(np.std(np.log(one)))
    assert errors[0] < 0.005 < errors[1]


def test_few_runs_are_flagged_and_one_run_is_taken_by_points() -> None:
    points, theta, weights = fitted(4)
    assert "4 runs are too few" in str(spread(points, theta, weights, RUN, N).flag)
    # Twelve runs' worth of seeds are one where nobody said which points belong together.
    points, theta, _ = fitted()
    one = spread(points, theta, np.ones(RUN.size), np.zeros(RUN.size), N)
    assert one.flag is not None and one.flag.startswith("1 run:")
    assert "points taken for runs" in one.method and one.n_clusters == 1
    many = spread(points, theta, np.ones(RUN.size), RUN, N)
    width = {k: np.diff(np.log(s.intervals["alpha_N"]))[0] for k, s in
             (("points", one), ("runs", many))}  # fmt: skip
    assert width["points"] < width["runs"]


def test_a_run_that_alone_fixes_a_parameter_is_flagged() -> None:
    points, _, _ = fitted()
    # Only the last run has more than one step: alpha_S is its own.
    weights = ((RUN == 6) | (np.arange(RUN.size) % 12 == 5)).astype(float)
    theta = solve(points, weights[None]).theta[0]
    assert "one run alone" in str(spread(points, theta, weights, RUN, N).flag)


def test_the_freedom_of_a_choice_widens_the_interval() -> None:
    points, theta, _ = fitted(noise=1e-5)
    weights = (STEP >= 300).astype(float)
    beside = np.stack([STEP >= 150, STEP >= 600]).astype(float)
    bent = make_points(
        L_NS, {"N": N, "S": STEP}, np.exp(points.y + points.y_centre) * (1 + 3 / STEP)
    )
    theta = solve(bent, weights[None]).theta[0]
    ends = solve(bent, beside).theta[:, 1]
    for resamples in (0, 400):
        plain = spread(bent, theta, weights, RUN, N, resamples=resamples)
        free = spread(bent, theta, weights, RUN, N, resamples=resamples, beside=beside)
        one, other = (np.var(s.draws[:, 3]) for s in (plain, free))
        assert other - one == pytest.approx(np.sum((ends - theta[1]) ** 2) / 6, rel=0.3)


def test_resamples_are_of_whole_runs_and_say_so() -> None:
    points, theta, weights = fitted()
    found = spread(points, theta, weights, RUN, N, resamples=300, rng=np.random.default_rng(1))
    assert found.draws.shape == (300, 4) and found.failed == 0.0
    assert found.method == "300 resamples of 7 whole runs, expanded percentiles"
    assert found.tail == tail(0.9, 7)
    robust = sandwich(points, theta, weights, RUN).covariance
    ratio = np.std(found.draws[:, 2]) / np.sqrt(robust[0, 0])
    assert 0.6 < ratio < 1.4
    # Seven draws of three pairs of sizes and one: some hold fewer than three.
    pairs = np.array([1, 1, 1, 2, 2, 2, 3])[RUN].astype(float)
    again = spread(points, theta, weights, RUN, pairs, resamples=300)
    assert again.redrawn > 30 and again.n_sizes == 3


def test_refuses_a_level_that_is_no_share() -> None:
    points, theta, weights = fitted()
    for level in (0.0, 1.0, 90.0):
        with pytest.raises(RequestError, match="share between 0 and 1"):
            spread(points, theta, weights, RUN, N, level=level)
    with pytest.raises(WorkError, match="cannot fix"):
        spread(points, theta, weights * (np.arange(RUN.size) < 3), RUN, N)
