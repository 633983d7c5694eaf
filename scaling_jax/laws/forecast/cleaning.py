"""What is wrong with a curve: warm-up, spikes, restarts, and what refuses a forecast."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forecast.curve import Curve

FEWEST_POINTS = 2  # after warm-up, for any forecast
FEWEST_ALONE = 4  # where no finished run helps
STRETCH = 1.25  # of the first step after warm-up: what was seen goes as far, or tells no slope
_BEFORE = 5  # points whose median is the level before a rise
_HIGH = 8.0  # times the noise above that level: a rise
_LEAST_RISE = 0.02  # of ln L; below it a rise is no event, however still the curve
_AFTER = 1.5  # times the points of a rise are left out
_PEAK = 0.999  # of the largest rate: warm-up has ended
_SHARED = 3  # points that two curves have in common: branches of one run, and no coincidence
_NOT_BACK = "loss risen since step"


@functools.lru_cache(maxsize=4096)
def clean(curve: Curve) -> Curve:
    """The curve without warm-up, and without the points at which its loss had risen and come back.

    A rise is a loss above the median of the five before by eight times the noise of ln L and 2 %,
    where the learning rate, if known, was not raised. Half as many points again as it took to come
    back are left out with it. What is left out is flagged: as a spike where it lasts less than a
    twentieth of the steps before it, as a restart where it is longer. A rise that has not come back
    by the last point stays, and is flagged. Clean a curve after it is cut: whether a rise comes
    back is not known before.
    """
    curve = _after_warmup(curve)
    if curve.step.size < _BEFORE + 2:
        return curve
    kept = np.ones(curve.step.size, dtype=bool)
    flags = []
    log_loss = np.log(curve.loss)
    threshold = max(_HIGH * _noise(log_loss), _LEAST_RISE)
    # Until the first rise every point before is kept, and all are looked at together.
    before = np.lib.stride_tricks.sliding_window_view(log_loss[:-1], _BEFORE)
    high = np.flatnonzero(log_loss[_BEFORE:] > np.median(before, axis=1) + threshold)
    at = _BEFORE + int(high[0]) if high.size else kept.size
    while at < kept.size:
        before = np.flatnonzero(kept[:at])[-_BEFORE:]
        level = float(np.median(log_loss[before]))
        if log_loss[at] <= level + threshold or _rate_raised(curve, before[-1], at):
            at += 1
            continue
        back = np.flatnonzero(log_loss[at:] <= level + threshold / 4)
        if not back.size:
            flags.append(f"{_NOT_BACK} {curve.step[at]:g} and not come back")
            break
        # After coming back the loss still falls faster than it would have without the rise.
        end = min(at + int(_AFTER * back[0]), kept.size - 1)
        kept[at:end] = False
        lasted = curve.step[end] - curve.step[at]
        kind = "spike" if lasted <= 0.05 * curve.step[at] else "restart"
        points = "point" if end - at == 1 else "points"
        flags.append(f"{kind} of the loss at step {curve.step[at]:g}: {end - at} {points} left out")
        at = end
    if not flags:
        return curve
    return replace(curve.where(kept), flags=curve.flags + tuple(flags))


def require_forecastable(curve: Curve, horizon: float) -> None:
    """Whether a cleaned curve can be forecast to `horizon` steps.

    Raises `RequestError` for a horizon before the last point, `WorkError` for a curve that has not
    passed warm-up, has fewer than two points after it or none further on than the first, or whose
    loss has risen and not come back.
    """
    if not (np.isfinite(horizon) and horizon > 0):
        raise RequestError(f"A horizon is a positive number of steps, not {horizon:g}")
    if curve.step.size < FEWEST_POINTS:
        counted = f"{curve.step.size} point{'s' if curve.step.size != 1 else ''}"
        raise WorkError(
            f"Run {curve.name} has {counted} after warm-up, and a forecast needs {FEWEST_POINTS}"
        )
    if curve.end < STRETCH * curve.step[0]:
        raise WorkError(
            f"Run {curve.name} was seen from step {curve.step[0]:g} to {curve.end:g} after "
            f"warm-up, and a forecast needs the last to be {STRETCH:g} times the first"
        )
    if horizon < curve.end * (1 - 1e-9):
        raise RequestError(
            f"The horizon of {horizon:g} steps lies before the last point of run {curve.name}, at "
            f"step {curve.end:g}"
        )
    if flag := not_back(curve):
        raise WorkError(f"Run {curve.name} cannot be forecast: {flag}")


def not_back(curve: Curve) -> str | None:
    """The flag of a loss that has risen and not come back, or None."""
    return next((flag for flag in curve.flags if flag.startswith(_NOT_BACK)), None)


@functools.lru_cache(maxsize=2**17)
def branched(seen: Curve, other: Curve) -> bool:
    """Whether two runs were one, up to the end of `seen` or nearly; runs of one seed may be one in
    warm-up, and then part."""
    after = clean(seen)
    if after.step.size < _SHARED:
        return False
    at = int(np.searchsorted(other.step, after.step[0]))
    if at < other.step.size and other.step[at] == after.step[0] and other.loss[at] != after.loss[0]:
        return False  # mostly, one look tells
    _, mine, its = np.intersect1d(after.step, other.step, return_indices=True)
    same = int(np.sum(after.loss[mine] == other.loss[its]))
    return same >= _SHARED and 2 * same >= len(mine)


def _after_warmup(curve: Curve) -> Curve:
    if curve.lr is not None and not curve.lr.any():
        return curve.where(slice(0))  # no update has changed anything yet
    after = curve.step > (curve.warmup_steps or 0)
    if curve.warmup_steps is None and curve.lr is not None and curve.lr.size:
        # While the rate still rises with every row, its end has not been seen.
        rising = (
            curve.lr.size > 1 and curve.lr[-1] > curve.lr[-2] and np.all(np.diff(curve.lr) >= 0)
        )
        after &= np.zeros_like(after) if rising else _past(curve.lr >= _PEAK * curve.lr.max())
    return curve if after.all() else curve.where(slice(int(np.sum(~after)), None))


def _past(reached: np.ndarray) -> np.ndarray:
    return np.arange(reached.size) >= int(np.argmax(reached))


def _noise(log_loss: np.ndarray) -> float:
    """The noise of ln L from its second differences, which a smooth curve hardly has."""
    second = np.diff(log_loss, 2)
    return float(np.median(np.abs(second)) / (0.6745 * np.sqrt(6)))


def _rate_raised(curve: Curve, before: int, at: int) -> bool:
    return curve.lr is not None and bool(curve.lr[at] > curve.lr[before] * (1 + 1e-3))
