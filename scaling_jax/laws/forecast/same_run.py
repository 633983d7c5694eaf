"""The end of a run: what finished runs lost after the same stretch, and the curve alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from scaling_jax.laws.forecast.cleaning import FEWEST_POINTS, clean, not_back
from scaling_jax.laws.forecast.curve import END_SHARE, Curve
from scaling_jax.laws.forecast.method import Method
from scaling_jax.laws.forecast.power import power_law, power_offset, power_offset_by_hindcast

# Chosen among the gemstones runs up to width 1024, as they are, with noise and with few points, and
# small models of our own; a wider weight, and other windows, are as good within 3 %.
_WINDOWS = (0.25, 0.8)  # of ln s about a point: the line through these gives the level there
_FEWEST = 4  # points of such a line, where there are as many
_ALIKE = 0.7  # of ln of a ratio of drops: further apart they say less of each other
_WEIGHT_WIDTH = 1.0  # of ln N: finished runs count less the further their size is
_LEAST_WEIGHT = 0.02
_RIDGE = 0.03
_SAME_RATE = 0.01  # relative: two learning rates that are one
_SAME_SHARE = 0.05  # of the peak rate, between two schedules that are one
_TINY = 1e-12
_MOST_RUNS = 40  # finished runs that are asked, the nearest in size

_HALF, _QUARTER, _LEVEL, _SIZE = range(4)
# What the drop from the last seen loss to the end is regressed on. The first is a shared exponent:
# where curves are E + A s^-alpha with one alpha, the drop is the same multiple of that over the
# last doubling for all of them. The second is L(N, S): every size drops by as much.
_REGRESSIONS: tuple[tuple[tuple[int, ...], bool], ...] = (
    ((_HALF,), False),
    ((), True),
    ((_HALF,), True),
    ((_HALF, _QUARTER), False),
    ((_HALF, _QUARTER), True),
    ((_SIZE,), True),
    ((_HALF, _SIZE), True),
    ((_HALF, _QUARTER, _SIZE), True),
    ((_HALF, _QUARTER, _LEVEL, _SIZE), True),
)


class _Pair(NamedTuple):
    """A finished run, the step up to which it is compared, and the step that is its end."""

    run: Curve
    step: float
    end: float


def predict_from_finished(
    observed: Curve, horizon: float, finished: Sequence[Curve], lr: np.ndarray | None
) -> float | None:
    """The loss at the horizon, from what finished runs lost after the same stretch.

    The drop of every finished run, from its smoothed level where this run now is to its end, is
    regressed by ridge on its drops over the last two doublings, its level and ln N, in several
    combinations, of levels smoothed by little and by more; each is weighted by its leave-one-run-
    out errors to the power -4, and so is the curve's own power law with an offset. Runs that reach
    the horizon are read there, at the same steps and the same batch; the others at the same share
    of their own steps. With fewer than three runs the drop is theirs, times about the ratio of
    those over the last doubling. None without a finished run at the same learning rates, and with
    fewer than two points.
    """
    seen = clean(observed)
    if seen.step.size < FEWEST_POINTS:
        return None
    pairs = _pairs(seen, horizon, finished, lr)
    if not pairs:
        return None
    ends = np.array([_loss_at(run, end) for run, _, end in pairs])
    if len(pairs) < 3:
        return _from_few(observed, seen.end, pairs, ends)
    weight = _weights(seen, pairs)
    guesses, errors = _regressed(observed, seen.end, pairs, ends, weight)
    own = _by_itself(observed, seen.end, horizon)
    alone = [_by_itself(*pair) for pair in pairs]
    if own is not None and None not in alone:
        guesses.append(own)
        errors.append(ends - np.array(alone, dtype=np.float64))
    size = np.abs(np.array(errors))
    # A single run that no combination foresees says nothing about which is the best.
    size = np.minimum(size, 3 * np.median(size, axis=1, keepdims=True))
    trust = (size**2 @ weight + _TINY) ** -2.0
    return float(trust @ np.array(guesses) / trust.sum())


def _regressed(
    observed: Curve, step: float, pairs: Sequence[_Pair], ends: np.ndarray, weight: np.ndarray
) -> tuple[list[float], list[np.ndarray]]:
    """What every regression makes of the end, and its errors (n,) at every run without that run."""
    size = np.array([_size_of(run) for run, _, _ in pairs])
    sized = _sized(observed, pairs)
    guesses, errors = [], []
    for window in _WINDOWS:
        own = np.append(_stretch(observed, step, window), _size_of(observed))
        stretches = np.array([_stretch(run, at, window) for run, at, _ in pairs])
        features = np.column_stack([stretches, size])
        drop = stretches[:, _LEVEL] - ends
        for columns, constant in _REGRESSIONS:
            unknowns = len(columns) + constant
            if (_SIZE in columns and not sized) or (len(pairs) < unknowns + 2 and unknowns > 1):
                continue
            guess, left_out = _ridge(features, drop, weight, own, list(columns), constant)
            guesses.append(float(own[_LEVEL]) - guess)
            errors.append(left_out)
    return guesses, errors


def _weights(seen: Curve, pairs: Sequence[_Pair]) -> np.ndarray:
    """How much every finished run counts (n,): less, the further its size is."""
    weight = np.ones(len(pairs))
    if _sized(seen, pairs):
        away = np.array([_size_of(run) for run, _, _ in pairs]) - _size_of(seen)
        weight = np.exp(-0.5 * (away / _WEIGHT_WIDTH) ** 2) + _LEAST_WEIGHT
    return weight / weight.sum()


def _sized(seen: Curve, pairs: Sequence[_Pair]) -> bool:
    return seen.size is not None and all(run.size is not None for run, _, _ in pairs)


def rate_stays(seen: Curve, lr: np.ndarray | None) -> bool:
    """Whether the learning rate has been constant after warm-up and is planned to stay; not of a
    run that has not begun."""
    if seen.constant_rate() is False or not seen.step.size:
        return False
    ahead = None if lr is None else lr[lr[:, 0] > seen.end, 1]
    if ahead is None or not ahead.size:
        return True
    now = seen.lr[-1] if seen.lr is not None else ahead[0]
    return bool(np.all(np.abs(ahead - now) <= _SAME_RATE * now))


def _pairs(
    seen: Curve, horizon: float, finished: Sequence[Curve], lr: np.ndarray | None
) -> list[_Pair]:
    others = [run for run in finished if run.run_id != seen.run_id and run.step.size]
    others = [run for run in others if not not_back(clean(run))]
    if seen.size is not None and all(run.size is not None for run in others):
        others.sort(key=lambda run: abs(np.log((run.size or 1.0) / (seen.size or 1.0))))
    stays = rate_stays(seen, lr)
    pairs = []
    for run in others:
        reaches = run.end >= (1 - END_SHARE / 2) * horizon and _one_batch(run, seen)
        if stays and reaches and run.until(horizon).constant_rate() is not False:
            pair = _Pair(run, seen.end, min(horizon, run.end))
        elif run.constant_rate() is not False if stays else _same_rates(seen, horizon, run, lr):
            pair = _Pair(run, seen.end * run.end / horizon, run.end)
        else:
            continue
        if _seen(run, pair.step).step.size >= min(_FEWEST, seen.step.size):
            pairs.append(pair)
        if len(pairs) == _MOST_RUNS:
            break
    return pairs


def _one_batch(run: Curve, seen: Curve) -> bool:
    if run.batch_tokens is None or seen.batch_tokens is None:
        return True
    return abs(run.batch_tokens / seen.batch_tokens - 1) < 1e-6


def _same_rates(seen: Curve, horizon: float, run: Curve, lr: np.ndarray | None) -> bool:
    """Whether both have the same share of their peak rate at the same share of their steps."""
    if seen.lr is None or run.lr is None:
        return seen.schedule is not None and seen.schedule == run.schedule
    steps, rates = seen.step, seen.lr
    if lr is not None:
        ahead = lr[:, 0] > seen.end
        steps, rates = np.append(steps, lr[ahead, 0]), np.append(rates, lr[ahead, 1])
    at = steps / horizon * run.end
    inside = at >= run.step[0]
    theirs = np.interp(at[inside], run.step, run.lr) / run.lr.max()
    return bool(np.all(np.abs(rates[inside] / rates.max() - theirs) <= _SAME_SHARE))


def _from_few(observed: Curve, step: float, pairs: Sequence[_Pair], ends: np.ndarray) -> float:
    """The mean of what each run alone says: its drop, times the ratio of the drops so far."""
    window = _WINDOWS[0]
    half, _, level = _stretch(observed, step, window)
    drops = []
    for (run, at, _), end in zip(pairs, ends, strict=True):
        its_half, _, its_level = _stretch(run, at, window)
        times = 1.0
        if half > 0 and its_half > 0:
            # Drops that differ by much have little to do with each other.
            times = np.exp(_ALIKE * np.tanh(np.log(half / its_half) / _ALIKE))
        drops.append(times * (its_level - end))
    return level - float(np.mean(drops))


@functools.lru_cache(maxsize=2**14)
def _seen(curve: Curve, step: float) -> Curve:
    return clean(curve.until(step))


@functools.lru_cache(maxsize=2**16)
def _stretch(curve: Curve, step: float, window: float) -> tuple[float, float, float]:
    """What a curve lost over the last two doublings up to a step, and its level there."""
    seen = _seen(curve, step)
    level, half, quarter = (_level(seen, step / part, window) for part in (1, 2, 4))
    return half - level, quarter - half, level


@functools.lru_cache(maxsize=2**15)
def _by_itself(curve: Curve, step: float, end: float) -> float | None:
    seen = _seen(curve, step)
    return power_offset_by_hindcast(seen.step, seen.loss, end)


def _size_of(curve: Curve) -> float:
    return 0.0 if curve.size is None else float(np.log(curve.size))


def _level(curve: Curve, at: float, window: float) -> float:
    """The loss at a step, by a line in ln s through the points around it, at least four."""
    x = np.log(curve.step / at)
    away = np.abs(x)
    fewest = min(_FEWEST, away.size)
    near = away <= max(window, np.partition(away, fewest - 1)[fewest - 1])
    x, loss = x[near], curve.loss[near]
    along = x - x.mean()
    return float(loss.mean() - x.mean() * (along @ loss) / (along @ along))


@functools.lru_cache(maxsize=2**13)
def _loss_at(curve: Curve, end: float) -> float:
    """The measured loss of a run at `end` steps, as its end is measured."""
    seen = clean(curve)
    near = (seen.step >= (1 - END_SHARE) * end) & (seen.step <= end * (1 + 1e-9))
    if near.any():
        return float(seen.loss[near].mean())
    return float(np.interp(np.log(end), np.log(seen.step), seen.loss))


def _ridge(
    features: np.ndarray,
    drop: np.ndarray,
    weight: np.ndarray,
    own: np.ndarray,
    columns: list[int],
    constant: bool,
) -> tuple[float, np.ndarray]:
    """The drop at the features `own`, and the error (n,) at every run without that run."""
    x, at = features[:, columns], own[columns]
    if constant:
        mean = weight @ x
        x, at = x - mean, at - mean
    scale = np.sqrt(weight @ x**2) + _TINY
    x, at = x / scale, at / scale
    penalty = np.full(len(columns), _RIDGE if len(columns) + constant > 1 else 0.0)
    if constant:
        x, at = np.column_stack([np.ones(len(x)), x]), np.append(1.0, at)
        penalty = np.append(0.0, penalty)
    weighted = x.T * weight
    gain = np.linalg.solve(weighted @ x + np.diag(penalty + _TINY), weighted)
    coefficients = gain @ drop
    leverage = np.einsum("ij,ji->i", x, gain)
    return float(at @ coefficients), (x @ coefficients - drop) / np.maximum(1 - leverage, 1e-3)


def predict_alone(
    observed: Curve, horizon: float, finished: Sequence[Curve], lr: np.ndarray | None
) -> float | None:
    """The curve's own power law with an offset, burn-in by hindcast, at a constant rate alone."""
    if not rate_stays(clean(observed), lr):
        return None
    return _alone(power_offset_by_hindcast, observed, horizon)


def _alone(
    form: Callable[[np.ndarray, np.ndarray, float], float | None], observed: Curve, horizon: float
) -> float | None:
    seen = clean(observed)
    return form(seen.step, seen.loss, horizon) if seen.step.size >= FEWEST_POINTS else None


LAST_VALUE = Method(
    "last_value",
    lambda observed, horizon, finished, lr: (
        float(observed.loss[-1]) if observed.loss.size else None
    ),
)
POWER_LAW = Method(
    "power_law",
    lambda observed, horizon, finished, lr: _alone(power_law, observed, horizon),
)
POWER_OFFSET = Method(
    "power_offset",
    lambda observed, horizon, finished, lr: _alone(power_offset, observed, horizon),
)
ALONE = Method("power_offset_burn_in", predict_alone)
FINISHED_RUNS = Method("finished_runs", predict_from_finished)
BASELINES = (LAST_VALUE, POWER_LAW, POWER_OFFSET)
