"""What a law would have of unfinished runs, were they done, beside what the finished ones give."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.columns import flat_table
from scaling_jax.laws.forms import find_law
from scaling_jax.laws.gather import RULES, gather
from scaling_jax.laws.selection import Selection, select
from scaling_jax.laws.window import where_it_holds
from scaling_jax.records.store import Records

if TYPE_CHECKING:
    from scaling_jax.laws.law import Law

_INPUTS = ("N", "S", "D", "C")
_LEFT_OUT = "the law's selection leaves it out: it is not judged"


class Ending(NamedTuple):
    """What an unfinished run may come to: its place at the horizon, N parameters, S steps and D
    tokens (None: not known), and the ends of the forecast of its loss, nats a token.

    `chosen_on` is the forecast of the loss that the law chooses the step and the learning rate on,
    where it is another.
    """

    run_id: str
    N: float | None
    S: float | None
    D: float | None
    low: float
    high: float
    chosen_on: float | None = None


class LawEnd(NamedTuple):
    """The last point that a run would give: its inputs in the order of the law's, and the loss
    between `low` and `high`.

    Where the law is fitted to whole curves, `seen` (n, inputs) are the places of the points that
    the run has given already, and `losses` (n,) theirs.
    """

    run_id: str
    place: tuple[float, ...]
    low: float
    high: float
    seen: np.ndarray = np.empty((0, 0))
    losses: np.ndarray = np.empty(0)


class Finished(NamedTuple):
    """Inputs (n,) by name, losses (n,) and the run of each, of what the law is fitted to; what is
    below the `least` of an input is not."""

    inputs: dict[str, np.ndarray]
    loss: np.ndarray
    run: np.ndarray
    least: dict[str, float]


def judged_law(slugs: Sequence[str]) -> str | None:
    """The first of the laws that unfinished runs can be judged by; None where there is none."""
    for slug in slugs:
        try:
            return law_of_loss(slug).slug
        except RequestError:
            continue
    return None


def law_of_loss(slug: str) -> Law:
    """The law; raises `RequestError` where it is not known, or is none of the loss in N, S, D, C
    whose points are chosen by a rule."""
    form = find_law(slug)
    if not set(form.inputs) <= set(_INPUTS) or form.output != "loss" or not form.exponents:
        raise RequestError(f"{slug} is no law of the loss in {', '.join(_INPUTS)}")
    if slug != "l_ns" and _family(form) not in RULES:
        raise RequestError(f"{slug} has no rule of which rows enter it")
    return form


def losses_of(
    records: Records, form: Law, columns: Mapping[str, str] | None, where: str | None
) -> str:
    """The column that the losses of the law's points are read from.

    Raises as the selection of its points does.
    """
    return _selection(form)(records, columns, where=where).table.sources["loss"]


def finished_points(
    records: Records, form: Law, columns: Mapping[str, str] | None, where: str | None
) -> Finished:
    """What the law is fitted to; raises as the selection of its points does."""
    if form.slug == "l_ns":
        held = where_it_holds(select(records, columns, where=where), None)
        data, start = held.data, held.window.start
        inside = data.step >= start
        inputs = {"N": data.size[inside], "S": data.steps[inside]}
        run = np.unique(data.run[inside], return_inverse=True)[1]
        smallest = {} if held.wider is None else {"N": inputs["N"].min()}
        return Finished(inputs, data.loss[inside], run, {"S": start, **smallest})
    frame = gather(records, form, columns, where).points
    if frame.is_empty():
        raise WorkError(f"No finished run gives a point of {form.slug}")
    inputs = {name: frame[name].to_numpy() for name in form.inputs}
    run = np.unique(frame["run"], return_inverse=True)[1]
    return Finished(inputs, frame["loss"].to_numpy(), run, {})


def is_of_curves(form: Law) -> bool:
    """Whether a run gives the law the points of its curve, and not one."""
    return form.slug == "l_ns" or RULES[_family(form)].of_run == "every"


def not_done(records: Records, run_ids: Collection[str]) -> Records:
    """The records with these runs under way: a table without a status counts every run as done."""
    theirs = pl.col("run_id").is_in(list(run_ids)) & (pl.col("status") == "done")
    status = pl.when(theirs).then(pl.lit("running")).otherwise("status")
    return replace(records, runs=records.runs.with_columns(status=status))


def unfinished_ends(
    records: Records,
    form: Law,
    columns: Mapping[str, str] | None,
    where: str | None,
    endings: Sequence[Ending],
    least: Mapping[str, float],
) -> tuple[list[LawEnd], dict[str, str]]:
    """The points of the unfinished runs that would enter the fit, and why the others would not.

    None enters below the `least` of an input. Where the law stops a run at its lowest loss, the
    law's own inputs are those of that row, and an end above the lowest that was seen is that one.
    """
    lowest = form.slug != "l_ns" and RULES[_family(form)].of_run == "lowest"
    missing = f"its {' and '.join(form.inputs)} are not known"
    placed = [each for each in endings if lowest or _place(each, form) is not None]
    reasons = {each.run_id: missing for each in endings if each not in placed}
    if not placed:
        return [], reasons
    points = _selection(form)(_with_ends(records, columns, placed), columns, where=where).points
    points = points.filter(*(pl.col(name) >= value for name, value in least.items()))
    known = {row["run"]: row for row in points.iter_rows(named=True)}
    seen = _lowest_seen(records, columns, where) if lowest else {}
    ends = []
    for each in placed:
        if each.run_id not in known:
            reasons[each.run_id] = _LEFT_OUT
            continue
        row, most = known[each.run_id], seen.get(each.run_id, np.inf)
        place = [row[name] for name in form.inputs] if lowest else _place(each, form)
        assert place is not None
        end = LawEnd(each.run_id, tuple(place), min(each.low, most), min(each.high, most))
        ends.append(_with_curve(end, points, form) if is_of_curves(form) else end)
    return ends, reasons


def _with_curve(end: LawEnd, points: pl.DataFrame, form: Law) -> LawEnd:
    axis = form.inputs[-1]
    own = points.filter(pl.col("run") == end.run_id, pl.col(axis) < end.place[-1]).sort(axis)
    return end._replace(seen=own.select(form.inputs).to_numpy(), losses=own["loss"].to_numpy())


def _family(form: Law) -> str:
    return form.slug.removesuffix("_offset")


def _selection(form: Law) -> Callable[..., Selection]:
    if form.slug == "l_ns":
        return select
    return lambda records, columns, where: gather(records, form, columns, where)


def _place(ending: Ending, form: Law) -> list[float] | None:
    at = {"N": ending.N, "S": ending.S, "D": ending.D, "C": None}
    if ending.N is not None and ending.D is not None:
        at["C"] = 6.0 * ending.N * ending.D
    place = [at[name] for name in form.inputs]
    return None if None in place else place  # pyright: ignore[reportReturnType]


def _with_ends(
    records: Records, columns: Mapping[str, str] | None, placed: Sequence[Ending]
) -> Records:
    """The records with the runs done, each at the middle of its forecast."""
    sources = flat_table(records, columns, ("run", "loss")).sources
    values: dict[str, list[Any]] = {
        "N": [each.N for each in placed],
        "S": [each.S for each in placed],
        "D": [each.D for each in placed],
        "tokens": [each.D for each in placed],
        "val_loss": [each.chosen_on for each in placed],
        "loss": [float(np.sqrt(each.low * each.high)) for each in placed],
    }
    added = {sources[role]: of for role, of in values.items() if role in sources}
    added |= {"run_id": [each.run_id for each in placed]}
    if "step_start" in records.curves.columns:
        added["step_start"] = [None if each.S is None else each.S - 1 for each in placed]
    ends = pl.DataFrame(
        [
            pl.Series(name, added[name], dtype, strict=False)
            for name, dtype in records.curves.schema.items()
            if name in added
        ]
    )
    done = pl.col("run_id").is_in(added["run_id"])
    return replace(
        records,
        runs=records.runs.with_columns(
            status=pl.when(done).then(pl.lit("done")).otherwise("status")
        ),
        curves=pl.concat([records.curves, ends], how="diagonal"),
    )


def _lowest_seen(
    records: Records, columns: Mapping[str, str] | None, where: str | None
) -> dict[str, float]:
    """Of every run the loss at its lowest loss of validation, as far as it has come."""
    table = flat_table(records, columns, ("run", "loss"), where)
    by = "val_loss" if "val_loss" in table.sources else "loss"
    measured = pl.col("loss").is_finite() & pl.col(by).is_finite()
    lowest = table.points.filter(measured).sort(by, maintain_order=True)
    return dict(lowest.group_by("run").agg(pl.col("loss").first()).iter_rows())
