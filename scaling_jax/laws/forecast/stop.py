"""Which unfinished runs cannot change the fit's answer, however they end."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.columns import flat_table
from scaling_jax.laws.forecast.law_ends import (
    Ending,
    LawEnd,
    finished_points,
    judged_law,
    law_of_loss,
    losses_of,
    not_done,
    unfinished_ends,
)
from scaling_jax.laws.forecast.questions import is_finished
from scaling_jax.laws.forecast.refits import Refits
from scaling_jax.laws.forecast.unnamed import with_runs
from scaling_jax.laws.request import require_level
from scaling_jax.laws.result import plain
from scaling_jax.records.requests import requests_beside
from scaling_jax.records.store import Records

if TYPE_CHECKING:
    from scaling_jax.laws.forecast.run import Forecasts

SHARE = 0.1
RULE = (
    "a run may be stopped where the fit of {law} to the finished runs and to all that it would "
    "give, with its end at either end of its forecast, moves no exponent by more than {share:.0%} "
    "of its {level:.0%} interval and narrows no interval by more than {share:.0%}, alone and "
    "together with the others that may be stopped"
)
_STOPPED = "it was stopped or asked to already, and counts among those judged together"


class Verdict(NamedTuple):
    """`moves`: the largest move of each exponent over the length of its interval; None where the
    refit has no minimum. `reason` says why a run goes on, or that it may be stopped. `narrows`: the
    share that the run would take off the standard error of each exponent, by its places alone."""

    run_id: str
    may_stop: bool
    moves: dict[str, float] | None
    reason: str
    narrows: dict[str, float] | None = None


@dataclass(frozen=True)
class Stops:
    """`rule` in words, the `exponents` (value, low, high) of the fit to the finished runs, and the
    verdict on every unfinished run."""

    law: str
    rule: str
    exponents: dict[str, tuple[float, float, float]]
    runs: tuple[Verdict, ...]

    @property
    def may_stop(self) -> list[str]:
        """Run ids."""
        return [run.run_id for run in self.runs if run.may_stop]

    @property
    def stopped(self) -> list[str]:
        """Those of `may_stop` that were stopped or asked to already."""
        return [run.run_id for run in self.runs if run.reason == _STOPPED]

    def to_json(self) -> dict[str, Any]:
        return plain(
            {
                "law": self.law,
                "rule": self.rule,
                "exponents": {name: list(values) for name, values in self.exponents.items()},
                "runs": [run._asdict() for run in self.runs],
            }
        )


def stops_by(
    records: Records, forecasts: Forecasts, declared: Sequence[str], asked: str | None = None
) -> tuple[Stops | None, str | None]:
    """The verdicts by the law that is `asked` for, or the first of those `declared` that can judge
    runs, or in a sentence why there are none yet; neither where there is no such law, or no run
    under way has a forecast.

    Raises `RequestError` for a law asked for that can judge no run, or whose columns are missing.
    """
    law = judged_law(declared) if asked is None else law_of_loss(asked).slug
    if law is None or not _under_way(forecasts) & {run.run_id for run in forecasts.runs}:
        return None, None
    try:
        return stops_of(records, forecasts, law), None
    except (RequestError, WorkError) as error:
        if asked is not None and isinstance(error, RequestError):
            raise
        return None, f"Which runs may stop is not known yet, by {law}: {error}"


def stops_of(
    records: Records,
    forecasts: Forecasts,
    law: str,
    *,
    share: float = SHARE,
) -> Stops:
    """Judge every unfinished run that has a forecast, by forecasts of what the law is fitted to.

    Some laws are fitted to other losses than the forecasts are of: to those of the test split, at
    the lowest of validation. The same is then asked again of these, so that like stands beside
    like. The condition, the columns and the level are those of the forecasts. Runs of the status
    `stopped`, and those that are asked to stop in the folder that the records are from, count as
    stopped. Raises as `may_be_stopped`, `RequestError` for a request that is damaged, and
    `WorkError` where the losses of the law have no forecast.
    """
    form, asked, under_way = law_of_loss(law), forecasts.request, _under_way(forecasts)
    records = not_done(with_runs(records, asked.columns), under_way)
    stopped = {each.run_id for each in forecasts.curves if each.status == "stopped"}
    stopped |= requests_beside(records.source, under_way).keys()
    own = losses_of(records, form, asked.columns, asked.where)
    columns, endings = asked.columns, endings_of(forecasts)
    if own != flat_table(records, columns, ("run", "loss"), asked.where).sources["loss"]:
        columns = {**(columns or {}), "loss": own}
        middle = {each.run_id: float(np.sqrt(each.low * each.high)) for each in endings}
        again = endings_of(asked.again(columns))
        endings = [each._replace(chosen_on=middle.get(each.run_id)) for each in again]
    endings = [each for each in endings if each.run_id in under_way]
    return may_be_stopped(
        records, endings, law, columns, where=asked.where, share=share, level=asked.level,
        stopped=stopped,
    )  # fmt: skip


def may_be_stopped(
    records: Records,
    endings: Sequence[Ending],
    law: str = "l_ns",
    columns: Mapping[str, str] | None = None,
    *,
    where: str | None = None,
    share: float = SHARE,
    level: float = 0.9,
    stopped: Collection[str] = (),
) -> Stops:
    """Judge every unfinished run by what either end of its forecast would do to the exponents.

    The law is fitted to what the finished runs give (its own rule of selection), and again with one
    run added: the points that it has given, and those to come up to either end. What may be stopped
    is judged together too, all runs at their low ends and all at their high ones, as forecasts err
    alike. Nothing is stopped here. Runs that the law's selection would leave out when they are
    done, as checks of the learning rate, are not judged and go on. `stopped` are the ids of runs
    that were stopped or asked to already: they are first among those judged together, whatever they
    would move, so that what was stopped one by one does not add up.

    Raises `RequestError` for a law that has other inputs than N, S, D and C, `WorkError` where the
    finished runs do not carry the law, or have fewer than three values of an input: then every run
    may change the answer.
    """
    require_level(level)
    if not 0 < share < 1:
        raise RequestError(f"share is of an exponent's interval, between 0 and 1, not {share:g}")
    form = law_of_loss(law)
    records = not_done(records, [each.run_id for each in endings])
    finished = finished_points(records, form, columns, where)
    ends, reasons = unfinished_ends(records, form, columns, where, endings, finished.least)
    refits = Refits(form, finished, ends, level)
    judged = _verdicts(refits, ends, share, stopped)
    return Stops(
        law=law,
        rule=RULE.format(law=law, share=share, level=level),
        exponents={name: (refits.values[name], *refits.intervals[name]) for name in form.exponents},
        runs=tuple(
            judged.get(each.run_id) or _not_judged(each.run_id, reasons, stopped)
            for each in endings
        ),
    )


def endings_of(forecasts: Forecasts) -> list[Ending]:
    """The forecasts of a table's unfinished runs, each at its place at the horizon."""
    curves = {curve.run_id: curve for curve in forecasts.curves}
    endings = []
    for run in forecasts.runs:
        curve, step = curves[run.run_id], float(run.horizon_step)
        if curve.batch_tokens is not None:
            tokens = step * curve.batch_tokens
        elif curve.tokens is not None:
            tokens = step * float(curve.tokens[-1] / curve.step[-1])
        else:
            tokens = None
        endings.append(
            Ending(run.run_id, curve.size, step, tokens, run.interval.low, run.interval.high)
        )
    return endings


def _under_way(forecasts: Forecasts) -> set[str]:
    """The runs that have not ended: one that says nothing of its end may go on to the horizon."""
    horizon = forecasts.request.horizon or 0.0
    return {
        curve.run_id
        for curve in forecasts.curves
        if not is_finished(curve) or (curve.horizon is None and curve.end < horizon)
    }


def _verdicts(
    refits: Refits, ends: Sequence[LawEnd], share: float, stopped: Collection[str]
) -> dict[str, Verdict]:
    """The verdict on every run that would enter the fit, by its id."""
    if not ends:
        return {}
    moved, narrowed = refits.moves([[k] for k in range(len(ends))])
    largest = np.maximum(moved, narrowed).max(axis=1)
    before = [k for k, each in enumerate(ends) if each.run_id in stopped]
    rest = [int(k) for k in np.argsort(largest, kind="stable") if largest[k] <= share]
    order = before + [k for k in rest if k not in before]
    together = set(before)
    if len(order) > len(before):
        groups = [order[: k + 1] for k in range(len(before), len(order))]
        past = np.flatnonzero(np.maximum(*refits.moves(groups)).max(axis=1) > share)
        together |= set(order[: len(before) + int(past[0])] if past.size else order)
    names = list(refits.form.exponents)
    verdicts = {}
    for k, each in enumerate(ends):
        finite = bool(np.isfinite(moved[k]).all())
        if k in before:
            reason = _STOPPED
        elif not finite:
            reason = "with one end of its forecast the fit has no minimum"
        elif k not in together and largest[k] <= share:
            reason = "it may not be stopped together with the others"
        elif moved[k].max() <= share < narrowed[k].max():
            name = names[narrowed[k].argmax()]
            reason = f"{name} rests on it: its interval would narrow by {_up(narrowed[k].max())}"
        else:
            most = "at most" if k in together else "up to"
            name = names[moved[k].argmax()]
            reason = f"{name} would move by {most} {_up(moved[k].max())} of its interval"
        moves, narrows = (dict(zip(names, of[k].tolist(), strict=True)) for of in (moved, narrowed))
        verdicts[each.run_id] = Verdict(
            each.run_id, k in together, moves if finite else None, reason, narrows
        )
    return verdicts


def _up(share: float) -> str:
    """In per cent, rounded up, so that what is above the limit does not read as the limit."""
    return f"{math.ceil(1000 * share) / 10:.1f}%"


def _not_judged(run_id: str, reasons: Mapping[str, str], stopped: Collection[str]) -> Verdict:
    gone = run_id in stopped
    return Verdict(run_id, gone, None, _STOPPED if gone else reasons[run_id])
