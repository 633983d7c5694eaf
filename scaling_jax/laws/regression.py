"""Least squares on a line, and what Student's t, F and the jackknife make of its residuals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats


class Line(NamedTuple):
    """Least squares of y on a line in x, before y is known.

    `gain` (2, n) turns y (n,) or (n, k) into the value at x = 0 and the slope; `inverse` (2, 2) is
    their covariance where y has a variance of one over its weight.
    """

    gain: np.ndarray
    inverse: np.ndarray


def line_over(x: np.ndarray, weight: np.ndarray | None = None) -> Line:
    """The line over x (n,), which must not all be the same; `weight` (n,) is 1 unless given."""
    weight = np.ones_like(x) if weight is None else weight
    total = weight.sum()
    centre = float(weight @ x / total)
    spread = float(weight @ (x - centre) ** 2)
    slope = weight * (x - centre) / spread
    covariance = -centre / spread
    return Line(
        gain=np.stack([weight / total - centre * slope, slope]),
        inverse=np.array([[1 / total - centre * covariance, covariance], [covariance, 1 / spread]]),
    )


def student(level: float, df: float | np.ndarray) -> np.ndarray:
    """Student's t that holds `level` between minus and plus itself, at `df` degrees of freedom."""
    return stats.t.ppf((1 + level) / 2, df)


def profile_limit(least: float, level: float, df: float) -> float:
    """Squares that a fit may leave with one parameter held for its value to lie in the interval.

    `least` are those of the best fit, `df` their degrees of freedom.
    """
    return least * (1 + float(student(level, df)) ** 2 / df)


def f_test(smaller: float, larger: float, df: tuple[float, float]) -> tuple[float, float]:
    """F, and the chance of one as large, that a model needs what a larger one has besides.

    `smaller` and `larger` are the squares that the two leave; `df` the parameters between them and
    the degrees of freedom that the larger one leaves.
    """
    F = max(smaller - larger, 0.0) / df[0] / (larger / df[1])
    return F, float(stats.f.sf(F, *df))


def jackknife(without: np.ndarray) -> np.ndarray:
    """Covariance (P, P) of estimates, from those (P, n) that leave out one of n units in turn."""
    n = without.shape[1]
    apart = without - without.mean(axis=1, keepdims=True)
    return (n - 1) / n * apart @ apart.T
