"""How far the estimates of |G|^2 and tr(Sigma) vary, and the interval of their ratio.

The two are made of squared norms by the two-point formulas of McCandlish et al. (2018), appendix
A.1; see `scaling_jax.noise.two_point`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import special

from scaling_jax.noise import two_point

# Fewer degrees of freedom than this say nothing about a variance.
_MIN_DF = 4
# A window's own variance stands under a ratio only when it rests on this many updates.
_MIN_RATIO_DF = 10
# Neighbours on each side that give the trend at a window.
_REACH = 4
# Windows that vote on how far updates are correlated.
_NEIGHBOURS = 24


class Interval(NamedTuple):
    """Bounds of a ratio; None where there is none."""

    low: float | None
    high: float | None
    undetermined: bool


class Series(NamedTuple):
    """Windows of one run in order of steps; estimates are the pairs (tr Sigma, |G|^2)."""

    log_step: np.ndarray  # [window], of the geometric middle of a window's updates
    updates: np.ndarray  # [window]
    estimate: np.ndarray  # [window, 2]
    covariance: np.ndarray  # [window, 2, 2], of one update's estimates, not Bessel-corrected


def make_series(
    log_step: np.ndarray, updates: np.ndarray, moments: np.ndarray, batches: np.ndarray
) -> Series:
    """Windows from their moments (5, window): small, big, small^2, big^2, small big.

    `batches` (2, window) are the tokens of the small and of the big batch.
    """
    small, big, small_sq, big_sq, cross = moments
    one, none = np.ones_like(small), np.zeros_like(small)
    # [of tr Sigma and |G|^2, by small and big, window]
    transform = np.stack(
        [np.stack(two_point(*unit, *batches)[::-1]) for unit in ((one, none), (none, one))], axis=1
    )
    mean = np.stack([small, big])
    second = np.stack([np.stack([small_sq, cross]), np.stack([cross, big_sq])])
    covariance = second - mean[:, None] * mean[None, :]
    return Series(
        log_step,
        updates,
        np.einsum("ijw,jw->wi", transform, mean),
        np.einsum("ijw,jkw,lkw->wil", transform, covariance, transform),
    )


def fieller(
    numerator: float,
    denominator: float,
    covariance: np.ndarray,
    level: float,
    df: float,
    signed: bool = False,
) -> Interval:
    """Interval of numerator/denominator from their 2 x 2 covariance.

    `covariance` is of (numerator, denominator), `df` the degrees of freedom behind it. Both are at
    least zero in truth, and so is the lower bound, unless `signed`. Where the denominator is not
    above zero at `level` the upper bound is open; the lower one keeps the same quantile, as a
    change of quantile at that border would cost coverage. Of `signed` ones, where the denominator
    cannot be told from zero both bounds are open. Source: Fieller (1954).
    """
    quantile = float(special.stdtrit(df, (1 + level) / 2))
    # Ratios r with (numerator - r denominator)^2 = quantile^2 var(numerator - r denominator).
    a = denominator**2 - quantile**2 * covariance[1, 1]
    b = numerator * denominator - quantile**2 * covariance[0, 1]
    c = numerator**2 - quantile**2 * covariance[0, 0]
    root = math.sqrt(max(b * b - a * c, 0.0))
    if a > 0 and (denominator > 0 or signed):
        low = (b - root) / a
        return Interval(low if signed else max(low, 0.0), (b + root) / a, False)
    if signed:
        return Interval(None, None, True)
    if numerator <= 0 or c <= 0:
        return Interval(0.0, None, True)
    # The lower bound is the root that is reached first going up from zero; c / (b + root) is
    # (b - root) / a without its cancellation.
    return Interval(c / (b + root) if b + root > 0 else None, None, True)


class Spread:
    """How far one update's estimates vary, from within windows and from between them.

    Within: the variance of an update about the mean of its window. Between: residuals of window
    means about the line (in log step) through four neighbours on each side. Where updates are
    correlated a window's mean varies more than its updates say, and by how much is the `excess`,
    one for tr Sigma and one for |G|^2. Its part within windows comes from the squared residuals,
    the part that reaches into the next window from the products of neighbouring ones; both are
    compared with what independent windows would give under the same lines. Both count only where
    the squares are a standard error above that.
    """

    def __init__(self, series: Series) -> None:
        self.updates, self.within = series.updates, series.covariance
        count = len(series.updates)
        self.compared = np.empty(0, dtype=int)
        if count < 3:
            return
        lines = _detrending(series)
        middle = np.arange(1, count - 1)
        three = middle[:, None] + np.arange(-1, 2)
        df = (self.updates - 1)[three].sum(axis=1)
        sums = self.updates[:, None] * np.diagonal(self.within, axis1=1, axis2=2)
        pooled = sums[three].sum(axis=1)
        usable = (df >= _MIN_RATIO_DF) & np.all(pooled > 0, axis=-1)
        self.compared = middle[usable]
        # A mean over df - 2 undoes the bias of one over an estimated variance.
        variance = np.ones((count, 2))
        variance[self.compared] = pooled[usable] / (df[usable, None] - 2)
        self.residual = lines @ series.estimate / np.sqrt(variance)
        self.expected = _expected(lines, self.updates)

    def of_one_update(self, where: slice) -> tuple[np.ndarray | None, float]:
        """Covariance of one update's (tr Sigma, |G|^2) in the windows `where`, and its df.

        None where there are too few updates beside others in their windows to know it.
        """
        df = float((self.updates[where] - 1).sum())
        if df < _MIN_DF:
            return None, 0.0
        pooled = np.einsum("w,wij->ij", self.updates[where], self.within[where]) / df
        scale = np.sqrt(self._excess((where.start + where.stop - 1) / 2))
        return scale[:, None] * pooled * scale[None, :], df

    def _excess(self, centre: float) -> np.ndarray:
        """Variance of means over that of independent updates, (2,), from the nearest windows."""
        order = np.argsort(np.abs(self.compared - centre), kind="stable")
        near = np.sort(self.compared[order[:_NEIGHBOURS]])
        if len(near) < _MIN_DF:
            return np.ones(2)
        own = self.expected.own[near]
        square = np.mean(self.residual[near] ** 2 / own[:, None], axis=0)
        first = near[:-1][np.diff(near) == 1]
        correlated = square > 1 + math.sqrt(2 / len(near))
        if len(first) < _MIN_DF or not correlated.any():
            return np.where(correlated, square, 1.0)
        size = self.expected.own[first]
        product = np.mean(self.residual[first] * self.residual[first + 1] / size[:, None], axis=0)
        # Squares and products are linear in the variance and in the covariance of neighbours.
        design = np.array(
            [
                [1.0, np.mean(self.expected.own_by_next[near] / own)],
                [
                    np.mean(self.expected.next[first] / size),
                    np.mean(self.expected.next_by_next[first] / size),
                ],
            ]
        )
        variance, shared = np.linalg.solve(design, np.stack([square, product]))
        return np.where(correlated, np.maximum(square, variance + 2 * shared), 1.0)


def _detrending(series: Series) -> np.ndarray:
    """The matrix (window, window) that takes a line through its neighbours off each window.

    The rows of the first and the last window, with neighbours on one side alone, are zero.
    """
    count = len(series.updates)
    middle = np.arange(1, count - 1)
    offset = np.array([*range(-_REACH, 0), *range(1, _REACH + 1)])
    other = middle[:, None] + offset
    inside = (other >= 0) & (other < count)
    other = np.clip(other, 0, count - 1)
    updates = np.where(inside, series.updates[other], 0.0)
    x = series.log_step[other] - series.log_step[middle][:, None]
    # Weights of the least-squares line through the neighbours, read off at the window itself.
    s0, s1, s2 = (np.sum(updates * x**power, axis=1)[:, None] for power in range(3))
    weight = updates * (s2 - s1 * x) / (s0 * s2 - s1**2)
    lines = np.zeros((count, count))
    np.add.at(lines, (middle[:, None], other), -weight)
    lines[middle, middle] = 1.0
    return lines


class _Expected(NamedTuple):
    """Mean squares and products of residuals, all by window.

    Of windows whose means have a variance of one over their updates: `own` a window's square,
    `next` its product with the next window. What a correlation of one between neighbouring means
    adds to these: `own_by_next`, `next_by_next`.
    """

    own: np.ndarray
    next: np.ndarray
    own_by_next: np.ndarray
    next_by_next: np.ndarray


def _expected(lines: np.ndarray, updates: np.ndarray) -> _Expected:
    alone, shared = 1 / updates, 1 / np.sqrt(updates[:-1] * updates[1:])
    this, following = lines[:-1], lines[1:]
    crossed = this[:, :-1] * following[:, 1:] + this[:, 1:] * following[:, :-1]
    return _Expected(
        own=(lines**2) @ alone,
        next=(this * following) @ alone,
        own_by_next=2 * (lines[:, :-1] * lines[:, 1:]) @ shared,
        next_by_next=crossed @ shared,
    )
