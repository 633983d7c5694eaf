"""Forecasts where the learning rate matters: the end of a decaying run, and another schedule."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from scaling_jax.errors import WorkError
from scaling_jax.laws.forecast.cleaning import FEWEST_POINTS, clean
from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.forecast.method import Method
from scaling_jax.laws.forecast.rates import Rates, make_rates
from scaling_jax.laws.forecast.same_run import rate_stays
from scaling_jax.laws.forecast.schedule import ScheduleFit, falls, fit_shape, rates_from
from scaling_jax.laws.forecast.schedule_laws import MULTI_POWER, ScheduleLaw

_SAME_SIZE = 1e-6  # relative
_SAME_RATE = 0.02  # of the peak
_SAME_LOSS = 0.01  # of ln L, between two runs of one model up to where their rates part
_SAME_LOSS_ALONE = 0.004  # the same, where nothing but the loss says that they are
_FAR_APART = 0.1  # of ln L at the first step in common: no two runs of one model are
_SEEN = 1 / 3  # of the planned fall of the rate: a curve alone must have seen as much of it
_MOST_MODELS = 40  # others that are asked, the nearest in size
_MOST_CLOSE = 64  # runs that are looked at where sizes are unknown, the closest in loss
_MOST_RUNS = 12  # of one model that are asked
_LATE = 0.8  # of the steps seen: what follows shows how far off the law is
_COMPARED = 2  # points two curves must have in common before one can say that they are of one model


def predict_end(
    law: ScheduleLaw,
    observed: Curve,
    horizon: float,
    finished: Sequence[Curve],
    lr: np.ndarray | None,
) -> float | None:
    """The loss at the horizon of a run whose rate falls, or did in other runs.

    Finished runs of the same model share everything with it, those of other models the shape of
    the law and, about, A and B / A. None without learning rates, and where no run has seen the
    rate fall far enough.
    """
    if observed.lr is None or clean(observed).step.size < FEWEST_POINTS:
        return None
    rates = planned_rates(observed, horizon, lr)
    if rates is None:
        return None
    helpers = [run for run in finished if run.run_id != observed.run_id and run.lr is not None]
    if observed.size is None:
        helpers = _closest(observed, helpers)
    same = [run for run in helpers if _same_model(observed, run)]
    models = _models([run for run in helpers if run not in same], observed.size)
    same = same[:_MOST_RUNS]
    known = any(falls(run) for run in (*same, *(run for model in models for run in model)))
    seen = clean(observed)
    stays = rate_stays(seen, lr)
    if not known and (stays or _fall(observed.lr) < _SEEN * _fall(rates.lr)):
        return None
    fit = fit_shape(law, (observed, *same), models)
    if fit is None:
        return None
    loss = _loss_at(fit, rates, horizon)
    return loss + _off(fit, rates, seen) if stays else loss


def _off(fit: ScheduleFit, rates: Rates, seen: Curve) -> float:
    """How far the law is off at the end of a curve; at the same rate it stays so."""
    few = seen.step[-min(_COMPARED, seen.step.size)]
    late = seen.where(seen.step >= min(_LATE * seen.end, few))
    return float(np.mean(late.loss - fit.along(rates, late.step)))


def predict_schedule(
    finished: Sequence[Curve],
    size: float | None,
    horizon: float,
    lr: np.ndarray,
    law: ScheduleLaw = MULTI_POWER,
) -> float:
    """The loss after `horizon` steps of a run that has not begun, under the rates `lr`, (k, 2).

    `finished` are runs of the model of that size, under other schedules, and of other models; with
    no size known, all are taken to be of one model. Raises `WorkError` where the data do not tell:
    no run of that model with a learning rate, losses that are not of one model, or no rate that
    fell in any run.
    """
    with_rates = [run for run in finished if run.lr is not None]
    if not with_rates:
        raise WorkError(
            "No finished run has a learning rate at each step: another schedule cannot be forecast "
            "without; name the column with lr=COLUMN"
        )
    same = [run for run in with_rates if _equal(run.size, size)]
    if not same:
        raise WorkError(
            "No finished run of that size: another schedule is forecast from runs of one model"
        )
    models = _models([run for run in with_rates if run not in same], size)
    if not any(falls(run) for run in with_rates):
        raise WorkError(
            "The learning rate of no finished run falls: what a fall gains is not in the data, and "
            "only runs at constant rate can be forecast"
        )
    fit = fit_shape(law, tuple(same), models)
    if fit is None:
        raise WorkError("The runs of that size have too few points for a schedule law")
    if size is None and fit.rms_log_residual > _SAME_LOSS:
        raise WorkError(
            f"The runs taken for one model differ by {fit.rms_log_residual:.1%} in loss under the "
            "best law: name the column of sizes with N=COLUMN"
        )
    return _loss_at(fit, rates_from(lr), horizon)


def planned_rates(observed: Curve, horizon: float, lr: np.ndarray | None) -> Rates | None:
    """The rates seen, then those planned up to the horizon; without a plan the last one stays.

    None where the plan ends before the horizon, and where every rate is 0.
    """
    if observed.lr is None:
        return None
    step, rate = observed.step, observed.lr
    if lr is not None:
        ahead = lr[lr[:, 0] > observed.end]
        step, rate = np.append(step, ahead[:, 0]), np.append(rate, ahead[:, 1])
        if step[-1] < horizon * (1 - _SAME_RATE):
            return None
    if not rate.any():
        return None
    return make_rates(step, rate, observed.warmup_steps)


def _loss_at(fit: ScheduleFit, rates: Rates, horizon: float) -> float:
    return float(fit.along(rates, np.array([horizon], dtype=np.float64))[0])


def _fall(lr: np.ndarray) -> float:
    """How far the rate falls after its peak, as a share of it."""
    after = lr[int(np.argmax(lr)) :]
    return float(1 - after.min() / after[0])


def _closest(observed: Curve, runs: Sequence[Curve]) -> list[Curve]:
    """The runs whose losses were about those of this one after as many steps, the closest first."""
    loss = np.log([np.interp(observed.end, run.step, run.loss) for run in runs])
    order = np.argsort(np.abs(loss - np.log(observed.loss[-1])), kind="stable")
    return [runs[i] for i in order[:_MOST_CLOSE]]


def _models(runs: Sequence[Curve], size: float | None) -> tuple[tuple[Curve, ...], ...]:
    """The runs by model, the nearest in size first."""
    if size is not None:
        runs = sorted(runs, key=lambda run: abs(np.log((run.size or size) / size)))
    models: dict[tuple[float | None, float | None], list[list[Curve]]] = {}
    count = 0
    for run in runs:
        alike = models.setdefault((run.size, run.batch_tokens), [])
        for model in alike:
            if _same_model(model[0], run):
                model.append(run)
                break
        else:
            count += 1
            if count > _MOST_MODELS:
                break
            alike.append([run])
    return tuple(tuple(model[:_MOST_RUNS]) for alike in models.values() for model in alike)


@functools.lru_cache(maxsize=2**17)
def _same_model(one: Curve, other: Curve) -> bool:
    """Of equal size and batch, and of equal loss up to where their learning rates part.

    Where sizes are unknown, there must be such a stretch.
    """
    if not _equal(one.size, other.size) or not _equal(one.batch_tokens, other.batch_tokens):
        return False
    apart = _apart(one, other)
    if apart is None:
        return one.size is not None
    return apart < (_SAME_LOSS if one.size is not None else _SAME_LOSS_ALONE)


def _apart(one: Curve, other: Curve) -> float | None:
    """The median difference of ln L up to where the rates part; None without such a stretch."""
    if one.lr is None or other.lr is None:
        return None
    seen = _seen(other)
    step, log_loss, lr = _seen(one)
    if min(step.size, seen[0].size) < _COMPARED:
        return None
    if step[0] <= seen[0][-1] and seen[0][0] <= step[-1]:  # mostly, one look tells
        first = max(step[0], seen[0][0])
        here = log_loss[np.searchsorted(step, first)] - seen[1][np.searchsorted(seen[0], first)]
        if abs(here) > _FAR_APART:
            return float(abs(here))
    inside = (step >= seen[0][0]) & (step <= seen[0][-1])
    if inside.sum() < _COMPARED:
        return None
    theirs = np.interp(step, seen[0], seen[2])
    parted = np.flatnonzero(inside & (np.abs(theirs - lr) > _SAME_RATE * lr.max()))
    if parted.size:
        inside &= np.arange(step.size) < parted[0]
    if inside.sum() < _COMPARED:
        return None
    difference = log_loss[inside] - np.interp(step[inside], seen[0], seen[1])
    return float(np.abs(np.median(difference)))


@functools.lru_cache(maxsize=4096)
def _seen(curve: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, ln L and rates of a curve after warm-up."""
    after = clean(curve)
    rate = np.zeros(0) if after.lr is None else after.lr
    return after.step, np.log(after.loss), rate


def _equal(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one / other - 1) <= _SAME_SIZE


MULTI_POWER_LAW = Method("multi_power", functools.partial(predict_end, MULTI_POWER))
