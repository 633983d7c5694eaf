"""The shapes that a schedule law may have, and the sizes of its terms solved for each of them."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from scaling_jax.laws.forecast.cleaning import FEWEST_POINTS, clean
from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.forecast.rates import Rates, drops, make_rates, progress
from scaling_jax.laws.forecast.schedule_laws import ScheduleLaw

ALPHA = np.geomspace(0.15, 1.2, 20)
Q = np.array([0.4, 0.5, 0.6, 0.7, 0.85, 1.0])
# Log means and spreads of the priors. Progress goes more slowly than the rate: of the nine
# schedules of the 25M model of multipowerlaw q is 0.54 with any response. alpha is about 1/2.
_USUAL_Q, _SPREAD_Q = np.log(0.6), 0.15
_USUAL_ALPHA, _SPREAD_ALPHA = np.log(0.5), 0.5
MOST_POINTS = 128  # of a curve: more are averaged
START = 1.5  # times the end of warm-up: where a curve begins to follow the law
INDEPENDENT = 12.0  # residuals of a curve: they go together over long stretches
RESIDUAL = 1e-3  # log residual that is usual for these laws
NEVER = 1e6  # a mean square above all others: of a shape with A or L0 below 0
_LEAST = 1e-30  # of A, where a power does not fit at all
_SINGULAR = 1e-9  # of a system whose two terms cannot be told apart


class Moments(NamedTuple):
    """Weighted inner products of 1 (), the power (s,) and the response (k,), and of each with y."""

    one_one: np.ndarray
    one_power: np.ndarray
    one_gain: np.ndarray
    power_power: np.ndarray
    power_gain: np.ndarray
    gain_gain: np.ndarray
    one_y: np.ndarray
    power_y: np.ndarray
    gain_y: np.ndarray
    y_y: np.ndarray


class Basis(NamedTuple):
    """One curve's points: y (n,), weights (n,), powers (s, n) of progress, responses (k, n)."""

    y: np.ndarray
    weight: np.ndarray
    power: np.ndarray
    gain: np.ndarray


class Sizes(NamedTuple):
    """L0, A, B and the mean square of the log residual for each shape, all (s, k)."""

    L0: np.ndarray
    A: np.ndarray
    B: np.ndarray
    square: np.ndarray


class Expected(NamedTuple):
    """What other models let one expect: logs of A and of B / A, (s, k), and how far they are off.

    None where no other model tells.
    """

    A: tuple[np.ndarray, float] | None
    ratio: tuple[np.ndarray, float] | None


NOTHING = Expected(None, None)


def shapes() -> np.ndarray:
    """(alpha, q) of every power of progress (s, 2), in the order of `Basis.power`."""
    return np.array([(alpha, q) for q in Q for alpha in ALPHA])


def prior(law: ScheduleLaw) -> np.ndarray:
    """The cost (s, k) of what is unusual."""
    alpha, q = np.log(shapes()).T
    shape = ((alpha - _USUAL_ALPHA) / _SPREAD_ALPHA) ** 2 + ((q - _USUAL_Q) / _SPREAD_Q) ** 2
    kernel = np.sum(((law.grid - law.usual) / law.spread) ** 2, axis=1)
    return (shape[:, None] + kernel[None, :]) / 2


def solve_sizes(
    moments: Moments, expected: Expected = NOTHING, residual: float = RESIDUAL
) -> Sizes:
    """L0, A and B of least squares for every shape; a B below 0 is 0.

    A and B are pulled towards what is expected, as by one more measurement of each beside the
    independent ones, of log `residual`.
    """
    m = moments
    op, og = m.one_power[:, None] / m.one_one, m.one_gain[None, :] / m.one_one
    # The constant is solved for in passing, which leaves two by two equations for each shape.
    a = m.power_power[:, None] - m.one_power[:, None] * op
    b = -(m.power_gain - m.one_power[:, None] * og)
    d = m.gain_gain[None, :] - m.one_gain[None, :] * og
    u = m.power_y[:, None] - op * m.one_y
    v = -(m.gain_y[None, :] - og * m.one_y)
    about = np.maximum(u / a, _LEAST)
    if expected.A is not None:
        about = np.exp(expected.A[0])
        pull = residual**2 / INDEPENDENT / (expected.A[1] * about) ** 2
        a, u = a + pull, u + pull * about
    if expected.ratio is not None:
        slope = np.exp(expected.ratio[0])
        pull = residual**2 / INDEPENDENT / (expected.ratio[1] * slope * about) ** 2
        a, b, d = a + pull * slope**2, b - pull * slope, d + pull
    det = a * d - b * b
    small = det <= _SINGULAR * a * d
    det = np.where(small, 1.0, det)
    A, B = (d * u - b * v) / det, (a * v - b * u) / det
    alone = small | (B < 0)
    A, B = np.where(alone, u / a, A), np.where(alone, 0.0, B)
    L0 = (m.one_y - A * m.one_power[:, None] + B * m.one_gain[None, :]) / m.one_one
    square = (
        m.y_y
        - 2 * (L0 * m.one_y + A * m.power_y[:, None] - B * m.gain_y[None, :])
        + L0 * (L0 * m.one_one + 2 * A * m.one_power[:, None] - 2 * B * m.one_gain[None, :])
        + A * (A * m.power_power[:, None] - 2 * B * m.power_gain)
        + B**2 * m.gain_gain[None, :]
    )
    bad = (A <= 0) | (L0 <= 0)
    return Sizes(L0, A, B, np.where(bad, NEVER, np.maximum(square / m.y_y, 0.0)))


def residuals(points: Basis, sizes: Sizes, place: tuple) -> np.ndarray:
    """Relative residuals (n,) of a curve at the shape in that place."""
    shape, kernel = place
    predicted = (
        sizes.L0[place]
        + sizes.A[place] * points.power[shape]
        - sizes.B[place] * points.gain[kernel]
    )
    return points.y / predicted - 1


@functools.lru_cache(maxsize=1024)
def basis(law: ScheduleLaw, curve: Curve, unit: float = 1.0) -> Basis | None:
    """The points of a curve after warm-up, averaged to few, with all powers and responses there.

    Steps are counted in `unit` of the curve's.

    None for a curve with fewer than 2 points or without learning rates.
    """
    seen = clean(curve)
    if curve.lr is None or seen.step.size < FEWEST_POINTS:
        return None
    rates = make_rates(curve.step, curve.lr, curve.warmup_steps).counted_in(unit)
    began = unit * _warm_up_end(rates)
    kept = seen.step >= min(START * began, np.sqrt(began * seen.end))
    if kept.sum() >= FEWEST_POINTS:
        seen = seen.where(kept)
    step, loss = seen.step, seen.loss
    weight = np.gradient(np.log(step))
    step, loss, weight = _averaged(step, loss, weight)
    changes = drops(rates, step / unit)
    along = [progress(rates, step / unit, q) for q in Q]
    power = np.concatenate([each[None, :] ** -ALPHA[:, None] for each in along])
    gain = np.stack([law.gained(constants, changes) for constants in law.grid])
    return Basis(loss, weight / weight.sum(), power, gain)


def _averaged(
    step: np.ndarray, loss: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Neighbours averaged, with their weights, until at most `MOST_POINTS` are left."""
    if step.size <= MOST_POINTS:
        return step, loss, weight
    along = np.log(step) - np.log(step[0])
    part = np.minimum((along / along[-1] * MOST_POINTS).astype(int), MOST_POINTS - 1)
    part = np.unique(part, return_inverse=True)[1]
    total = np.bincount(part, weight)
    return (
        np.bincount(part, weight * step) / total,
        np.bincount(part, weight * loss) / total,
        total,
    )


def _warm_up_end(rates: Rates) -> float:
    """The step at which the first rise of the rate ends."""
    stops = np.flatnonzero(np.diff(rates.lr) <= 0)
    return float(rates.step[stops[0]] if stops.size else rates.step[-1])


def moments_of(points: Basis, robust: np.ndarray) -> Moments:
    """Of relative residuals, so everything is divided by the loss."""
    weight = points.weight * robust / points.y**2
    power, gain, y = points.power, points.gain, points.y
    return Moments(
        one_one=np.asarray(weight.sum()),
        one_power=power @ weight,
        one_gain=gain @ weight,
        power_power=power**2 @ weight,
        power_gain=(power * weight) @ gain.T,
        gain_gain=gain**2 @ weight,
        one_y=np.asarray(weight @ y),
        power_y=power @ (weight * y),
        gain_y=gain @ (weight * y),
        y_y=np.asarray(weight @ y**2),
    )


def mean_moments(parts: Iterable[Moments]) -> Moments:
    """The mean of the moments of several curves, which count alike."""
    return Moments(*(np.mean(np.stack(each), axis=0) for each in zip(*parts, strict=True)))
