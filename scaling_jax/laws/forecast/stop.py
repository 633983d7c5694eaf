"""Which unfinished runs cannot change the fit's answer, however they end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws import uncertainty
from scaling_jax.laws.columns import flat_table
from scaling_jax.laws.fitting import Points, make_points, require_identified, solve
from scaling_jax.laws.forms import find_law
from scaling_jax.laws.gather import RULES, gather
from scaling_jax.laws.identified import require_independent
from scaling_jax.laws.request import require_level
from scaling_jax.laws.result import plain
from scaling_jax.laws.selection import Selection, select
from scaling_jax.laws.window import where_it_holds
from scaling_jax.records.store import Records

if TYPE_CHECKING:
    from scaling_jax.laws.forecast.run import Forecasts
    from scaling_jax.laws.law import Law

SHARE = 0.1
RULE = (
    "a run may be stopped where the fit of {law} to the finished runs and to its forecast, at "
    "either end of the interval, moves no exponent by more than {share:.0%} of its {level:.0%} "
    "interval, alone and together with the others that may be stopped"
)
_INPUTS = ("N", "S", "D", "C")


class Ending(NamedTuple):
    """What an unfinished run may come to: its place at the horizon, N parameters, S steps and D
    tokens (None: not known), and the ends of the forecast of its loss, nats a token."""

    run_id: str
    N: float | None
    S: float | None
    D: float | None
    low: float
    high: float


class Verdict(NamedTuple):
    """`moves`: the largest move of each exponent over the length of its interval; None where the
    refit has no minimum. `reason` says why a run goes on, or that it may be stopped."""

    run_id: str
    may_stop: bool
    moves: dict[str, float] | None
    reason: str


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

    def to_json(self) -> dict[str, Any]:
        return plain(
            {
                "law": self.law,
                "rule": self.rule,
                "exponents": {name: list(values) for name, values in self.exponents.items()},
                "runs": [run._asdict() for run in self.runs],
            }
        )


def may_be_stopped(
    records: Records,
    endings: Sequence[Ending],
    law: str = "l_ns",
    columns: Mapping[str, str] | None = None,
    *,
    where: str | None = None,
    share: float = SHARE,
    level: float = 0.9,
) -> Stops:
    """Judge every unfinished run by what either end of its forecast would do to the exponents.

    The law is fitted to what the finished runs give (its own rule of selection), and again with one
    run's end added, which has the weight of a finished run. What may be stopped is judged together
    too, all runs at their low ends and all at their high ones, as forecasts err alike. Nothing is
    stopped here. Runs that the law's selection would leave out when they are done, as checks of the
    learning rate, are not judged and go on.

    Raises `RequestError` for a law that has other inputs than N, S, D and C, `WorkError` where the
    finished runs do not carry the law: then every run may change the answer.
    """
    require_level(level)
    if not 0 < share < 1:
        raise RequestError(f"share is of an exponent's interval, between 0 and 1, not {share:g}")
    form = find_law(law)
    if not set(form.inputs) <= set(_INPUTS) or form.output != "loss" or not form.exponents:
        raise RequestError(f"{law} is no law of the loss in {', '.join(_INPUTS)}")
    inputs, loss, run = _finished(records, form, columns, where)
    placed = [ending for ending in endings if _place(ending, form) is not None]
    entering = _entering(records, form, columns, where, placed)
    known = [ending for ending in placed if ending.run_id in entering]
    points = _points(form, inputs, loss, known)
    count, unfinished = loss.size, len(known)
    base = np.concatenate([np.ones(count), np.zeros(2 * unfinished)])
    solution = solve(points, base[None])
    require_identified(points, solution)
    theta = solution.theta[0]
    label = np.concatenate([run, np.repeat(run.max() + 1, 2 * unfinished)])
    intervals = uncertainty.spread(points, theta, base, label, points.x[0], level=level).intervals
    values = dict(zip(form.params, np.exp(points.log_params(theta)).tolist(), strict=True))
    judge = _Judge(points, form, theta, base, values, intervals, count / np.unique(run).size)
    return Stops(
        law=law,
        rule=RULE.format(law=law, share=share, level=level),
        exponents={name: (values[name], *intervals[name]) for name in form.exponents},
        runs=tuple(_verdicts(judge, endings, placed, known, share)),
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


def _finished(
    records: Records, form: Law, columns: Mapping[str, str] | None, where: str | None
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Inputs (n,) by name, losses (n,) and the run of each, of what the law is fitted to."""
    if form.slug == "l_ns":
        held = where_it_holds(select(records, columns, where=where), None)
        data, inside = held.data, held.data.step >= held.window.start
        inputs = {"N": data.size[inside], "S": data.steps[inside]}
        return inputs, data.loss[inside], np.unique(data.run[inside], return_inverse=True)[1]
    if form.slug.removesuffix("_offset") not in RULES:
        raise RequestError(f"{form.slug} has no rule of which rows enter it")
    frame = gather(records, form, columns, where).points
    if frame.is_empty():
        raise WorkError(f"No finished run gives a point of {form.slug}")
    inputs = {name: frame[name].to_numpy() for name in form.inputs}
    return inputs, frame["loss"].to_numpy(), np.unique(frame["run"], return_inverse=True)[1]


def _entering(
    records: Records,
    form: Law,
    columns: Mapping[str, str] | None,
    where: str | None,
    placed: Sequence[Ending],
) -> set[str]:
    """The runs that would enter the fit, were they done at their horizon."""
    if not placed:
        return set()
    sources = flat_table(records, columns, ("run", "loss")).sources
    middle = [float(np.sqrt(ending.low * ending.high)) for ending in placed]
    size = [ending.N for ending in placed]
    step, tokens = ([getattr(ending, name) for ending in placed] for name in ("S", "D"))
    before = [None if at is None else at - 1 for at in step]
    roles = {"N": size, "S": step, "D": tokens, "tokens": tokens, "loss": middle}
    added = {sources[role]: values for role, values in roles.items() if role in sources}
    added |= {"run_id": [ending.run_id for ending in placed]}
    added |= {"step_start": before} if "step_start" in records.curves.columns else {}
    ends = pl.DataFrame(
        [
            pl.Series(name, added[name], dtype, strict=False)
            for name, dtype in records.curves.schema.items()
            if name in added
        ]
    )
    done = pl.col("run_id").is_in(added["run_id"])
    finished = Records(
        records.runs.with_columns(status=pl.when(done).then(pl.lit("done")).otherwise("status")),
        pl.concat([records.curves, ends], how="diagonal"),
        records.source,
        records.made_ids,
    )
    chosen = select if form.slug == "l_ns" else _gather(form)
    return set(chosen(finished, columns, where=where).points["run"])


def _gather(form: Law) -> Callable[..., Selection]:
    return lambda records, columns, where: gather(records, form, columns, where)


def _place(ending: Ending, form: Law) -> list[float] | None:
    at = {"N": ending.N, "S": ending.S, "D": ending.D, "C": None}
    if ending.N is not None and ending.D is not None:
        at["C"] = 6.0 * ending.N * ending.D
    place = [at[name] for name in form.inputs]
    return None if None in place else place  # pyright: ignore[reportReturnType]


def _points(
    form: Law, inputs: Mapping[str, np.ndarray], loss: np.ndarray, known: Sequence[Ending]
) -> Points:
    """The finished points, then the low end of every unfinished run, then the high ends."""
    require_independent(make_points(form, inputs, loss), ())
    places = np.array([_place(ending, form) for ending in known]).reshape(-1, len(form.inputs))
    wide = {
        name: np.concatenate([inputs[name], places[:, k], places[:, k]])
        for k, name in enumerate(form.inputs)
    }
    ends = [ending.low for ending in known] + [ending.high for ending in known]
    return make_points(form, wide, np.concatenate([loss, ends]))


@dataclass(frozen=True)
class _Judge:
    points: Points
    form: Law
    theta: np.ndarray
    base: np.ndarray
    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    weight: float  # of one run's end: as many points as a finished run has

    def moves(self, groups: Sequence[Sequence[int]], unfinished: int) -> np.ndarray:
        """Moves (groups, exponents), the larger of all low ends and all high ends of a group."""
        weights = np.tile(self.base, (2 * len(groups), 1))
        first = self.base.size - 2 * unfinished
        for k, group in enumerate(groups):
            own = np.asarray(group, dtype=int)
            weights[2 * k, first + own] = self.weight
            weights[2 * k + 1, first + unfinished + own] = self.weight
        starts = np.concatenate([self.theta[None], self.points.law.starts[[0, -1]]])
        found = solve(self.points, weights, starts=starts)
        names = list(self.form.exponents)
        place = [self.form.params.index(name) for name in names]
        moved = np.exp(self.points.log_params(found.theta))[:, place]
        middle = np.array([self.values[name] for name in names])
        length = np.array([self.intervals[name][1] - self.intervals[name][0] for name in names])
        moved = np.abs(moved - middle) / length
        moved[~found.converged | found.at_bound] = np.inf
        return moved.reshape(len(groups), 2, -1).max(axis=1)


def _verdicts(
    judge: _Judge,
    endings: Sequence[Ending],
    placed: Sequence[Ending],
    known: Sequence[Ending],
    share: float,
) -> list[Verdict]:
    number = {ending.run_id: k for k, ending in enumerate(known)}
    alone = judge.moves([[k] for k in range(len(known))], len(known)) if known else np.zeros((0, 1))
    largest = alone.max(axis=1)
    order = [int(k) for k in np.argsort(largest, kind="stable") if largest[k] <= share]
    together = 0
    if order:
        moved = judge.moves([order[: k + 1] for k in range(len(order))], len(known)).max(axis=1)
        past = np.flatnonzero(moved > share)
        together = int(past[0]) if past.size else len(order)
    stopped = set(order[:together])
    verdicts = []
    for ending in endings:
        k = number.get(ending.run_id)
        if k is None:
            reason = "the law's selection leaves it out: it is not judged"
            if ending not in placed:
                reason = f"its {' and '.join(judge.form.inputs)} are not known"
            verdicts.append(Verdict(ending.run_id, False, None, reason))
            continue
        moves = dict(zip(judge.form.exponents, alone[k].tolist(), strict=True))
        name = max(moves, key=lambda each: moves[each])
        finite = bool(np.isfinite(largest[k]))
        if k in stopped:
            reason = f"{name} would move by at most {moves[name]:.1%} of its interval"
        elif not finite:
            reason = "with one end of its forecast the fit has no minimum"
        elif largest[k] > share:
            reason = f"{name} would move by up to {moves[name]:.1%} of its interval"
        else:
            reason = "it may not be stopped together with the others"
        verdicts.append(Verdict(ending.run_id, k in stopped, moves if finite else None, reason))
    return verdicts
