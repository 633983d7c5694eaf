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

# Chosen among the gemstones runs up to width 1024, where a wider weight is as good within 3 %.
_WINDOW = 0.4  # of the steps before a point: the line through these gives the level there
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


class _Stretch(NamedTuple):
    """A curve seen up to a step: its smoothed level there, the features, and the drop by itself."""

    level: float
    features: np.ndarray
    alone: float | None


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
    combinations; each is weighted by its leave-one-run-out errors to the power -4, and so is the
    curve's own power law with an offset. Runs that reach the horizon are read there, at the same
    steps and the same batch; the others at the same share of their own steps. With fewer than three
    runs the drop is a multiple of that over the last doubling. None without a finished run at the
    same learning rates.
    """
    seen = clean(observed)
    if seen.step.size < FEWEST_POINTS:
        return None
    pairs = _pairs(seen, horizon, finished, lr)
    if not pairs:
        return None
    own = _stretch(observed, seen.end, horizon)
    stretches = [_stretch(pair.run, pair.step, pair.end) for pair in pairs]
    drop = np.array(
        [
            each.level - _loss_at(pair.run, pair.end)
            for each, pair in zip(stretches, pairs, strict=True)
        ]
    )
    features = np.stack([each.features for each in stretches])
    sized = seen.size is not None and all(pair.run.size is not None for pair in pairs)
    weight = np.ones(len(pairs))
    if sized:
        away = (features[:, _SIZE] - own.features[_SIZE]) / _WEIGHT_WIDTH
        weight = np.exp(-0.5 * away**2) + _LEAST_WEIGHT
    weight /= weight.sum()
    guesses, errors = [], []
    for columns, constant in _REGRESSIONS[: 1 if len(pairs) < 3 else None]:
        unknowns = len(columns) + constant
        if (_SIZE in columns and not sized) or (len(pairs) < unknowns + 2 and unknowns > 1):
            continue
        guess, left_out = _ridge(features, drop, weight, own.features, list(columns), constant)
        guesses.append(guess)
        errors.append(left_out)
    if len(pairs) < 3:
        return own.level - guesses[0]
    alone = [each.alone for each in stretches]
    if own.alone is not None and None not in alone:
        guesses.append(own.alone)
        errors.append(np.array(alone, dtype=np.float64) - drop)
    size = np.abs(np.array(errors))
    # A single run that no combination foresees says nothing about which is the best.
    size = np.minimum(size, 3 * np.median(size, axis=1, keepdims=True))
    trust = (size**2 @ weight + _TINY) ** -2.0
    return own.level - float(trust @ np.array(guesses) / trust.sum())


def rate_stays(seen: Curve, lr: np.ndarray | None) -> bool:
    """Whether the learning rate has been constant after warm-up and is planned to stay."""
    if seen.constant_rate() is False:
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
            pairs.append(_Pair(run, seen.end, min(horizon, run.end)))
        elif run.constant_rate() is not False if stays else _same_rates(seen, horizon, run, lr):
            pairs.append(_Pair(run, seen.end * run.end / horizon, run.end))
        if len(pairs) == _MOST_RUNS:
            break
    return [p for p in pairs if _seen(p.run, p.step).step.size >= FEWEST_POINTS]


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


@functools.lru_cache(maxsize=2**14)
def _seen(curve: Curve, step: float) -> Curve:
    return clean(curve.until(step))


@functools.lru_cache(maxsize=2**15)
def _stretch(curve: Curve, step: float, end: float) -> _Stretch:
    seen = _seen(curve, step)
    level, half, quarter = (_level(seen, step / part) for part in (1, 2, 4))
    size = 0.0 if curve.size is None else np.log(curve.size)
    own = power_offset_by_hindcast(seen.step, seen.loss, end)
    return _Stretch(
        level,
        np.array([half - level, quarter - half, level, size]),
        None if own is None else level - own,
    )


def _level(curve: Curve, at: float) -> float:
    """The loss at a step, by a line in ln s through the points before it, at least four."""
    last = max(int(np.searchsorted(curve.step, at * (1 + 1e-9), side="right")), 4)
    first = int(np.searchsorted(curve.step, (1 - _WINDOW) * at, side="right"))
    part = slice(max(0, min(first, last - 4)), last)
    x = np.log(curve.step[part] / at)
    away = x - x.mean()
    loss = curve.loss[part]
    return float(loss.mean() - x.mean() * (away @ loss) / (away @ away))


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
    (),
    lambda observed, horizon, finished, lr: (
        float(observed.loss[-1]) if observed.loss.size else None
    ),
)
POWER_LAW = Method(
    "power_law",
    (),
    lambda observed, horizon, finished, lr: _alone(power_law, observed, horizon),
)
POWER_OFFSET = Method(
    "power_offset",
    (),
    lambda observed, horizon, finished, lr: _alone(power_offset, observed, horizon),
)
ALONE = Method("power_offset_burn_in", (), predict_alone)
FINISHED_RUNS = Method("finished_runs", ("finished",), predict_from_finished)
BASELINES = (LAST_VALUE, POWER_LAW, POWER_OFFSET)
METHODS = (FINISHED_RUNS, ALONE)
