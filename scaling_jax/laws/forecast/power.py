"""One curve alone: a power law of the steps, with and without an offset, extrapolated."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FEWEST = 8  # points that a window of the data-chosen burn-in has at least
BASELINE_START = 0.1  # of the observed steps: where the plain fit with an offset begins
_EXPONENTS = np.exp(np.linspace(np.log(0.05), np.log(2.5), 80))
# What exponents of learning curves are before any is seen: half, within a factor of e either way
# for two standard deviations. Few points fit any exponent between 0.1 and 2 about as well.
_PRIOR_MEAN, _PRIOR_SD = np.log(0.5), 0.5
_STARTS = (0.05, 0.1, 0.2, 0.3, 0.5)  # windows, as shares of what is observed
_CUTS = (0.4, 0.5, 0.6, 0.7, 0.8)  # shares of it after which the rest is forecast, to choose
_MOST_POINTS = 500
_FLOOR = 1e-14  # of mean squares, for curves without noise


class Offsets(NamedTuple):
    """Fits L = E + A (s / scale)^-alpha to W windows: all (W,); nan where there is none."""

    E: np.ndarray
    A: np.ndarray
    alpha: np.ndarray
    scale: float

    def at(self, step: float | np.ndarray) -> np.ndarray:
        """The loss of every fit at steps (k,) or one step: (W, k) or (W,)."""
        step = np.asarray(step, dtype=np.float64) / self.scale
        shape = (-1,) + (1,) * step.ndim
        alpha, A, E = (part.reshape(shape) for part in (self.alpha, self.A, self.E))
        return E + A * step**-alpha


def power_law(step: np.ndarray, loss: np.ndarray, horizon: float) -> float | None:
    """Least squares of ln L on a line in ln s over the last half of the steps (n,)."""
    late = step >= 0.5 * step[-1]
    if late.sum() < 3:
        return None
    slope, level = np.polyfit(np.log(step[late] / step[-1]), np.log(loss[late]), 1)
    return float(np.exp(level + slope * np.log(horizon / step[-1])))


def power_offset(step: np.ndarray, loss: np.ndarray, horizon: float) -> float | None:
    """L = E + A s^-alpha by least squares over all but the first tenth of the steps (n,)."""
    step, loss = _thinned(step, loss)
    first = int(np.searchsorted(step, BASELINE_START * step[-1]))
    if step.size - first < 4:
        return None
    fits = offsets(step, loss, np.array([first]), np.array([step.size]))
    return _number(fits.at(horizon)[0])


def power_offset_by_hindcast(step: np.ndarray, loss: np.ndarray, horizon: float) -> float | None:
    """The mean of fits from several burn-ins, weighted by how well each had forecast the curve.

    Every burn-in is a share of what is observed. Cut after 40 to 80 % of it, the fit forecasts the
    rest; its mean error there, over ln(end / cut), squared and averaged over the cuts, divides the
    weight. Exponents have a wide prior around one half. None with fewer than 4 points.
    """
    if step.size < 4:
        return None
    step, loss = _thinned(step, loss)
    end = step[-1]
    cuts = [cut for cut in _CUTS if np.sum(step <= cut * end) >= FEWEST and cut * end < step[-2]]
    last = np.array([*(np.searchsorted(step, cut * end, side="right") for cut in cuts), step.size])
    ends = step[last - 1]
    first = np.searchsorted(step, np.multiply.outer(np.array(_STARTS), ends))
    first = np.minimum(first, np.maximum(last - FEWEST, 0))
    shape = first.shape
    fits = offsets(step, loss, first.ravel(), np.broadcast_to(last, shape).ravel(), prior=True)
    forecasts = fits.at(horizon).reshape(shape)[:, -1]
    squares = np.ones(shape[0])
    if cuts:
        residual = (fits.at(step) - loss).reshape(*shape, step.size)
        beyond = np.arange(step.size) >= last[:-1, None]
        ahead = residual[:, :-1].transpose(1, 0, 2)
        error = np.einsum("cwn,cn->wc", ahead, beyond / beyond.sum(axis=1, keepdims=True))
        squares = np.mean((error / np.log(end / ends[:-1])) ** 2, axis=1) + _FLOOR
    weight = np.where(np.isfinite(forecasts) & np.isfinite(squares), 1 / squares, 0.0)
    if not weight.sum():
        return None
    return float(np.sum(weight * np.nan_to_num(forecasts)) / weight.sum())


def offsets(
    step: np.ndarray, loss: np.ndarray, first: np.ndarray, last: np.ndarray, prior: bool = False
) -> Offsets:
    """Least squares of E + A s^-alpha over the points first .. last - 1 of each window (W,).

    E and A are linear, and every exponent of a grid is tried, so that there are neither starts nor
    other minima; A > 0 and E >= 0. With `prior` the exponent has one.
    """
    lowest, scale = int(first.min()), float(step[-1])
    basis = np.exp(-np.log(step[lowest:] / scale)[:, None] * _EXPONENTS)
    centre = float(loss[lowest:].mean())
    y = loss[lowest:] - centre
    place = np.arange(lowest, step.size)
    inside = ((place >= first[:, None]) & (place < last[:, None])).astype(np.float64)
    count = inside.sum(axis=1, keepdims=True)
    mean = inside / count
    b, bb, by = mean @ basis, mean @ basis**2, mean @ (basis * y[:, None])
    ym, yy = mean @ y[:, None], mean @ y[:, None] ** 2
    spread = bb - b**2
    with np.errstate(divide="ignore", invalid="ignore"):
        A = (by - b * ym) / spread
        E = ym - A * b
        squares = np.maximum(yy - ym**2 - A**2 * spread, 0.0) + _FLOOR
    cost = count * np.log(squares)
    if prior:
        cost = cost + ((np.log(_EXPONENTS) - _PRIOR_MEAN) / _PRIOR_SD) ** 2
    allowed = (A > 0) & (E + centre >= 0) & (spread > 0)
    cost = np.where(allowed, cost, np.inf)
    best = np.argmin(cost, axis=1)[:, None]
    found = np.take_along_axis(allowed, best, axis=1)[:, 0]
    moved = _between(cost / count, best)
    E, A, alpha = (
        _parabola(np.broadcast_to(part, cost.shape), best, moved)
        for part in (E + centre, A, np.log(_EXPONENTS))
    )
    return Offsets(
        E=np.where(found, np.maximum(E, 0.0), np.nan),
        A=np.where(found, A, np.nan),
        alpha=np.exp(alpha),
        scale=scale,
    )


def _thinned(step: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbours where there are more points than a fit can use."""
    group = -(-step.size // _MOST_POINTS)
    if group == 1:
        return step, loss
    rest = step.size % group
    return tuple(part[rest:].reshape(-1, group).mean(axis=1) for part in (step, loss))  # pyright: ignore[reportReturnType]


def _around(values: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Values (W, K) at the best exponent (W, 1) of the grid and the two beside it: (3, W)."""
    places = np.clip(best + np.array([-1, 0, 1]), 0, values.shape[1] - 1)
    return np.take_along_axis(values, places, axis=1).T


def _between(cost: np.ndarray, best: np.ndarray) -> np.ndarray:
    """How far from the best exponent of the grid the least cost is, in steps of the grid (W,)."""
    below, least, above = _around(cost, best)
    with np.errstate(invalid="ignore", over="ignore"):
        # The mean squares are a parabola there, and their logarithm is none without noise.
        left, right = np.expm1(below - least), np.expm1(above - least)
        moved = 0.5 * (left - right) / (left + right)
    return np.where(np.isfinite(moved), np.clip(moved, -0.5, 0.5), 0.0)


def _parabola(values: np.ndarray, best: np.ndarray, moved: np.ndarray) -> np.ndarray:
    below, middle, above = _around(values, best)
    bent = 0.5 * (above - below) * moved + 0.5 * (above - 2 * middle + below) * moved**2
    return middle + np.where(moved == 0, 0.0, bent)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
