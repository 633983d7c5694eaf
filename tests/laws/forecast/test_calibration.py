"""Intervals of forecasts: the quantile, its coverage, what goes with what, and widening."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling_jax.laws.forecast.calibration import (
    ALONE,
    CHANGING_RATE,
    CONSTANT_RATE,
    FEW,
    OTHER_SET,
    Calibration,
    conformal_quantile,
    difficulty,
    for_another_set,
    interval,
    scatter,
)
from scaling_jax.laws.forecast.curve import Curve


def test_the_quantile_is_the_rank_that_covers_finite_samples() -> None:
    scores = np.arange(1.0, 20.0)  # 19 of them: rank ceil(20 x .9) = 18
    assert conformal_quantile(scores, 0.9) == 18.0
    assert conformal_quantile(scores[:9], 0.9) == 9.0
    assert conformal_quantile(scores[:8], 0.9) is None  # the ninth of eight
    assert conformal_quantile([], 0.5) is None


@given(st.integers(1, 60), st.floats(0.05, 0.95), st.integers(0, 2**31))
def test_it_covers_a_new_score_at_least_as_often_as_the_level_says(n, level, seed) -> None:
    """Of n + 1 exchangeable scores, each judged by the others: brute force over all of them."""
    scores = np.random.default_rng(seed).permutation(n + 1).astype(float)
    quantiles = [conformal_quantile(np.delete(scores, i), level) for i in range(n + 1)]
    inside = [q is None or s <= q for s, q in zip(scores, quantiles, strict=True)]
    assert np.mean(inside) >= level - 1e-9
    if None not in quantiles:
        assert np.mean(inside) <= level + 1 / (n + 1) + 1e-9


def test_scores_are_one_a_curve_the_nearest_in_reach_and_not_the_curves_own() -> None:
    known = Calibration(
        ("a", "a", "b", "c"), np.array([2.0, 4.0, 4.4, 30.0]), np.array([0.1, 0.2, 0.3, 0.4])
    )
    assert sorted(known.scores(4.0)) == [0.2, 0.3]
    assert sorted(known.scores(2.1)) == [0.1]
    assert list(known.scores(4.0, without=("a",))) == [0.3]
    assert not len(known.scores(1000.0))


def test_few_curves_are_widened_and_said_to_be_uncalibrated() -> None:
    few = interval(3.0, 0.1, [0.5, 0.2, 0.4], 0.9, own=[0.7])
    assert not few.calibrated and few.n_curves == 3
    assert few.high - 3.0 == pytest.approx((1 + FEW / 3) * 0.5 * 0.1)
    assert 3.0 - few.low == pytest.approx(few.high - 3.0)
    own = interval(3.0, 0.1, [0.1, 0.1, 0.1], 0.9, own=[0.7])
    assert own.high - 3.0 == pytest.approx(0.07)
    for scores in ([], [0.1], [0.1, 0.1]):
        alone = interval(3.0, 0.1, scores, 0.9)
        assert alone.high - 3.0 == pytest.approx(ALONE * 0.1)
        assert not alone.calibrated
    many = interval(3.0, 0.1, [0.5] * 9, 0.9)
    assert many.calibrated and many.high - 3.0 == pytest.approx(0.05)


def test_scores_of_another_set_are_widened() -> None:
    known = Calibration(("a", "b"), np.array([2.0, 2.0]), np.array([0.1, 0.2]))
    assert np.allclose(for_another_set(known).scores(2.0), OTHER_SET * known.scores(2.0))


def test_difficulty_grows_with_disagreement_and_is_never_zero() -> None:
    step = np.arange(1.0, 101.0)
    curve = Curve("a", "a", step, 2 + step**-0.5)
    assert difficulty(CONSTANT_RATE, curve, 2.1, {}) > 0
    known = {"power_law": 2.0, "power_offset": 2.1, "last_value": 9.0}
    near = difficulty(CONSTANT_RATE, curve, 2.1, known)
    far = difficulty(CONSTANT_RATE, curve, 2.1, known | {"power_law": 1.8})
    assert near == pytest.approx(0.01, rel=1e-2) and far == pytest.approx(0.03, rel=1e-2)
    law = difficulty(CHANGING_RATE, curve, 2.0, {"power_offset": 2.1})
    assert law == pytest.approx(np.hypot(0.002, 0.003), rel=1e-2)
    apart = difficulty(CHANGING_RATE, curve, 2.0, {"power_offset": 2.1}, spread=0.1)
    assert apart == pytest.approx(np.hypot(law, 0.05), rel=1e-3)


def test_a_curve_too_short_for_a_power_law_is_as_hard_as_its_last_value_is_far() -> None:
    short = Curve("a", "a", np.array([10.0, 20.0]), np.array([4.0, 3.0]))
    assert difficulty(CHANGING_RATE, short, 2.0, {"last_value": 3.0}) == pytest.approx(
        np.hypot(0.002, 0.03)
    )


def test_scatter_is_that_of_the_points_and_not_of_the_trend() -> None:
    rng = np.random.default_rng(0)
    step = np.arange(1.0, 2001.0)
    smooth = 2 + 5 * step**-0.5
    noisy = Curve("a", "a", step, smooth + 0.01 * rng.standard_normal(step.size))
    assert scatter(noisy) == pytest.approx(0.01, rel=0.1)
    assert scatter(Curve("a", "a", step, smooth)) < 1e-4
    assert all(np.isfinite(scatter(Curve("a", "a", step[:n], smooth[:n]))) for n in range(1, 6))
