"""Lines, quantiles, F and the jackknife against the textbook, SciPy and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scaling_jax.laws.regression import f_test, jackknife, line_over, profile_limit, student

RNG = np.random.default_rng(0)
X, WEIGHT = RNG.normal(40.0, 2.0, 12), RNG.uniform(0.2, 3.0, 12)
Y = 3.0 - 0.7 * X + RNG.normal(0.0, 0.1, 12)


def test_a_line_is_that_of_the_normal_equations() -> None:
    design = np.stack([np.ones_like(X), X], axis=1)
    inverse = np.linalg.inv(design.T @ (WEIGHT[:, None] * design))
    line = line_over(X, WEIGHT)
    np.testing.assert_allclose(line.inverse, inverse, rtol=1e-8)
    np.testing.assert_allclose(line.gain @ Y, inverse @ design.T @ (WEIGHT * Y), rtol=1e-8)
    np.testing.assert_allclose(line.gain / WEIGHT @ line.gain.T, line.inverse, rtol=1e-8)
    slope, value = np.polyfit(X, Y, 1)
    np.testing.assert_allclose(line_over(X).gain @ Y, [value, slope], rtol=1e-8)
    two = line_over(X, WEIGHT).gain @ np.stack([Y, 2 * Y], axis=1)
    np.testing.assert_allclose(two[:, 1], 2 * two[:, 0])


def test_a_steep_line_far_from_zero_keeps_its_digits() -> None:
    x = 1e6 + np.arange(5.0)
    np.testing.assert_allclose(line_over(x).gain @ (2.0 + 3.0 * (x - 1e6)), [2.0 - 3e6, 3.0])


def test_student_is_the_normal_quantile_of_many_and_wider_of_few() -> None:
    assert student(0.9, 1e9) == pytest.approx(1.644854, rel=1e-6)
    assert student(0.9, 1) == pytest.approx(6.313752, rel=1e-6)
    assert student(0.9, np.array([5.0, 9.0])).tolist() == pytest.approx([2.015048, 1.833113])


def test_a_profile_of_a_line_gives_the_interval_of_student() -> None:
    value, slope = line_over(X).gain @ Y
    squares = float(np.sum((Y - value - slope * X) ** 2))
    half = student(0.9, 10) * np.sqrt(squares / 10 * line_over(X).inverse[1, 1])
    held = Y - (slope + half) * X
    left = float(np.sum((held - held.mean()) ** 2))
    assert profile_limit(squares, 0.9, 10) == pytest.approx(left, rel=1e-9)


def test_f_of_two_groups_is_the_analysis_of_variance() -> None:
    groups = [RNG.normal(mean, 1.0, 8) for mean in (0.0, 0.3, 1.2)]
    pooled = np.concatenate(groups)
    one = float(np.sum((pooled - pooled.mean()) ** 2))
    own = sum(float(np.sum((group - group.mean()) ** 2)) for group in groups)
    theirs = stats.f_oneway(*groups)
    assert f_test(one, own, (2, 21)) == pytest.approx((theirs.statistic, theirs.pvalue))
    assert f_test(1.0, 1.0 + 1e-12, (2, 21)) == (0.0, 1.0)  # rounding below zero is no F


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    without = np.array([[np.delete(Y, i).mean(), np.delete(X, i).mean()] for i in range(12)]).T
    np.testing.assert_allclose(jackknife(without), np.cov(Y, X) / 12)
