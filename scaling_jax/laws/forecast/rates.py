"""The learning rate as a function of the step: its integral, and where it fell and by how much."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from scaling_jax.errors import RequestError

PIECES = 64  # of the rate's changes, of equal size: the sum over them is then good to 1e-4 nats
_SAME = 1e-6  # relative: two learning rates that differ by less are one


class Rates(NamedTuple):
    """Learning rates `lr` (k,) at `step` (k,), linear in between; the first step is 0."""

    step: np.ndarray
    lr: np.ndarray

    def at(self, step: ArrayLike) -> np.ndarray:
        """The learning rate at those steps; after the last knot it stays as it is."""
        return np.interp(np.asarray(step, dtype=np.float64), self.step, self.lr)

    def counted_in(self, unit: float) -> Rates:
        """The same rates with steps counted in `unit` of these."""
        return Rates(self.step / unit, self.lr)

    @property
    def peak(self) -> float:
        """The largest learning rate."""
        return float(self.lr.max())


class Drops(NamedTuple):
    """What the rate had fallen by at each of n points, cut into m pieces; every field (n, m).

    `fall` of the rate within the piece (negative for a rise), `level` the rate after it, `area`
    the integral of the rate and `age` the steps from the piece's middle to the point.
    """

    fall: np.ndarray
    level: np.ndarray
    area: np.ndarray
    age: np.ndarray


def make_rates(step: ArrayLike, lr: ArrayLike, warmup_steps: float | None = None) -> Rates:
    """The rate through measured (step, lr), each (k,), ascending in step.

    Before the first row the rate rises linearly from 0 at step 0, over `warmup_steps` where they
    are known and shorter. Raises `RequestError` for unequal lengths, steps that do not ascend, and
    rates that are negative or not finite or all zero.
    """
    step, lr = np.asarray(step, dtype=np.float64), np.asarray(lr, dtype=np.float64)
    if step.ndim != 1 or step.shape != lr.shape or not step.size:
        raise RequestError(f"step has shape {step.shape}, lr {lr.shape}: a pair for each row")
    if step[0] < 0 or np.any(np.diff(step) <= 0):
        raise RequestError("The steps of a learning rate must ascend, from 0 or later")
    if not np.all(np.isfinite(lr) & (lr >= 0)) or not lr.any():
        raise RequestError("A learning rate is finite and not negative, and somewhere above 0")
    if step[0] == 0:
        return Rates(step, lr)
    before = [0.0]
    rise = [0.0]
    if warmup_steps is not None and warmup_steps < step[0]:
        if warmup_steps > 0:
            before.append(float(warmup_steps))
            rise.append(lr[0])
        else:
            rise[0] = lr[0]
    return Rates(np.concatenate([before, step]), np.concatenate([rise, lr]))


def progress(rates: Rates, steps: ArrayLike, power: float) -> np.ndarray:
    """The integral of lr^power over the steps, up to each of the steps (n,), ascending."""
    steps = np.asarray(steps, dtype=np.float64)
    knots = np.union1d(rates.step, steps)
    lr = rates.at(knots)
    total = np.concatenate([[0.0], np.cumsum(np.diff(knots) * _mean_power(lr, power))])
    return total[np.searchsorted(knots, steps)]


def _mean_power(lr: np.ndarray, power: float) -> np.ndarray:
    """The mean of lr^power over each stretch in which lr goes linearly from knot to knot."""
    low, high = lr[:-1], lr[1:]
    rise = high - low
    flat = np.abs(rise) <= _SAME * np.maximum(low, high)
    integral = (high ** (power + 1) - low ** (power + 1)) / (power + 1)
    return np.where(flat, ((low + high) / 2) ** power, integral / np.where(flat, 1.0, rise))


def drops(rates: Rates, steps: ArrayLike) -> Drops:
    """The falls of the rate before each of the steps (n,); the warm-up is the first, a rise.

    A point inside a piece has seen the part of it up to there, and of later pieces nothing.
    """
    steps = np.asarray(steps, dtype=np.float64)
    start, end = _pieces(rates)
    until = np.clip(steps[:, None], start, end)
    level = rates.at(until)
    area = _area(rates, np.concatenate([start, until.ravel(), steps]))
    at_start, at_until, now = np.split(area, [start.size, start.size + until.size])
    at_until = at_until.reshape(until.shape)
    before_piece = rates.at(start)
    before_piece[0] = 0.0  # the rate of the first step is itself a rise
    return Drops(
        fall=before_piece - level,
        level=level,
        area=np.maximum(now[:, None] - (at_start + at_until) / 2, 0.0),
        age=np.maximum(steps[:, None] - (start + until) / 2, 0.0),
    )


def _area(rates: Rates, steps: np.ndarray) -> np.ndarray:
    """The integral of the rate up to steps (n,), in any order."""
    order, place = np.unique(steps, return_inverse=True)
    return progress(rates, order, 1.0)[place]


def _pieces(rates: Rates) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends (m,) in steps of the pieces in which the rate changes, warm-up first."""
    step, lr = rates.step, rates.lr
    change = np.abs(np.diff(lr)) > _SAME * rates.peak
    # The first rise is over where the rate stops rising.
    stops = np.flatnonzero(np.diff(lr) <= _SAME * rates.peak)
    risen = int(stops[0]) if stops.size else lr.size - 1
    starts = [step[0]]
    ends = [step[risen] if risen else np.nextafter(step[0], np.inf)]
    moving = np.flatnonzero(change[risen:]) + risen
    if moving.size > PIECES:
        size = np.abs(np.diff(lr))[moving]
        part = np.minimum((np.cumsum(size) - size / 2) / size.sum() * PIECES, PIECES - 1)
        part = part.astype(int)
        gap = np.diff(moving) > 1  # a stretch at constant rate is no part of a piece
        new = np.concatenate([[True], (np.diff(part) > 0) | gap])
        first = moving[new]
        last = np.concatenate([moving[np.flatnonzero(new)[1:] - 1], moving[-1:]])
    else:
        first = last = moving
    return np.concatenate([starts, step[first]]), np.concatenate([ends, step[last + 1]])
