"""Which rows of a table enter a law, by stated rules; what is left out, and why, as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.columns import flat_table
from scaling_jax.laws.selection import (
    MOST_POINTS,
    Selection,
    begin,
    drop_incomplete,
    keep_best_rate,
    keep_one_family,
    require_measured,
    require_single,
    thin,
)

if TYPE_CHECKING:
    from scaling_jax.laws.law import Law
    from scaling_jax.records.store import Records

# What runs of one fit agree in, where the records say it: the law's inputs tell the rest apart.
FAMILY = ("data_fingerprint", "arch", "n_ctx", "n_vocab", "optimizer", "dropout")
# Runs that agree in these, and in the size and the data, differ in learning rate and seed.
_SHAPE = ("n_layer", "d_model", "steps", "batch_tokens")
# What an input counts at least; below it the column or its unit is another.
LEAST = {"N": 1.0, "D": 1.0, "U": 1.0, "C": 1.0, "B": 1e-300, "L": 1e-300}


class Rule(NamedTuple):
    """How the rows of runs become points, and the columns that are tried first.

    `stops`: a run ends for the law where its validation loss is lowest (early stopping), and the
    loss that counts is that of the test split, where it is known.
    """

    of_run: str  # "last", "lowest", "every" or "frontier"
    first: dict[str, str]
    text: str
    stops: bool = False


RULES = {
    "l_n": Rule("last", {}, "the last loss of every run"),
    "l_d": Rule("lowest", {"D": "unique_tokens"}, "the lowest loss of every run", True),
    "l_nd": Rule("lowest", {"D": "unique_tokens"}, "the lowest loss of every run", True),
    "l_c": Rule("frontier", {}, "losses that no smaller compute reaches"),
    "l_nd_chinchilla": Rule("every", {}, "every row"),
    "data_constrained": Rule("every", {}, "every row", True),
    "b_crit": Rule("every", {}, "every row"),
    "pareto": Rule("every", {}, "every row"),
}


def gather(
    records: Records, law: Law, columns: Mapping[str, str] | None = None, where: str | None = None
) -> Selection:
    """The points of a law, columns by role, and the list of what was left out.

    Rules whose column is missing are not applied: rows outside `where`, incomplete rows, one layer,
    another family, not done, learning rate not the best, warm-up, what the law's rule leaves.
    Where runs stop early, the step is chosen on the validation loss, and so is the learning rate;
    the loss is that of the test split, where every evaluation has one: a minimum that is read off
    the losses it was chosen on is too low (Kaplan et al. 2020, section 4.2). Raises `RequestError`
    for missing columns, values that cannot be right, and a run with two rows at one place,
    `WorkError` where no row is left.
    """
    rule = RULES[law.slug.removesuffix("_offset")]
    first = rule.first | (_test_loss(records) if rule.stops else {})
    table = flat_table(records, columns, ("run", *law.inputs, law.output), where=where, first=first)
    selection = begin(table, records, where)
    present = table.sources
    weight = {"weight": 0.0} if "weight" in present else {}
    drop_incomplete(selection, (*law.inputs, law.output, *weight))
    _without_initialisation(selection, law)
    least = {name: LEAST[name] for name in law.inputs}
    require_measured(selection, {**least, **weight}, law.output)
    if weight:
        selection.drop(pl.col("weight") == 0, "weight", "weight 0")
    if law.slug == "pareto" and "L" in present:
        _require_one_level(selection)
    if not records.made_ids:
        require_single(selection, dict.fromkeys((*law.inputs, "S", "tokens", "D")))
    if "n_layer" in present:
        selection.drop(pl.col("n_layer") == 1, "one layer", "one layer (Kaplan et al., D.7)")
    for name in FAMILY:
        keep_one_family(selection, name)
    selection.candidates = selection.points
    if "status" in present:
        selection.drop(pl.col("status") != "done", "not done", pl.format("status {}", "status"))
    by = _chosen_on(rule, present)
    if rule.stops:  # the rate whose lowest loss is best, wherever the runs end
        _apply(selection, rule, present, records.made_ids, by)
    if {"S", "lr"} <= set(present):
        own = {*law.inputs} if rule.of_run == "lowest" else {*law.inputs} & {"N", "U"}
        shape = [name for name in (*sorted(own), *_SHAPE) if name in present]
        keep_best_rate(selection, shape, equal_length=False, by=by)
    if not rule.stops:
        _apply(selection, rule, present, records.made_ids, by)
    selection.rule = _said(rule, selection, by)
    if selection.points.is_empty():
        raise WorkError(f"No row is left for {law.slug}. Left out: {selection.counts()}")
    return selection


def _require_one_level(selection: Selection) -> None:
    if (count := selection.points["L"].n_unique()) > 1:
        column = selection.table.sources["L"]
        raise RequestError(
            f"pareto is of one loss level, and {column} has {count}: --where keeps one of them, "
            "scaling-jax critical-batch fits each"
        )


def _without_initialisation(selection: Selection, law: Law) -> None:
    # A curve's first row, before any update, has seen neither tokens nor compute.
    for name in {"D", "C"} & set(law.inputs):
        selection.drop(pl.col(name) == 0, "initialisation", "step 0: before any update")


def _test_loss(records: Records) -> dict[str, str]:
    """The test split's losses to read instead, where every evaluation has one."""
    if "val_loss" not in records.curves.columns:
        return {}
    evaluated = records.curves.drop_nulls("val_loss")
    for name in ("loss_test", "test_loss"):
        if name in evaluated.columns and evaluated.height and not evaluated[name].null_count():
            return {"loss": name}
    return {}


def _chosen_on(rule: Rule, present: Mapping[str, str]) -> str:
    """The role whose losses choose the step: the validation loss, or the law's own."""
    another = present.get("val_loss", present.get("loss")) != present.get("loss")
    return "val_loss" if rule.stops and another else "loss"


def _apply(
    selection: Selection, rule: Rule, present: Mapping[str, str], made_ids: bool, by: str
) -> None:
    axis = next((name for name in ("S", "tokens", "D", "C") if name in present), None)
    if axis is None:
        return
    last = pl.col(axis).max().over("run")
    if "S" in present and "warmup_steps" in present:
        warmup = pl.col("warmup_steps").fill_null(0)
        selection.drop(pl.col("S") <= warmup, "warm-up", pl.format("step <= {}: warm-up", warmup))
    if rule.stops and not (made_ids and rule.of_run == "every"):
        _stop_early(selection, rule, axis, made_ids, by)
        last = pl.col(axis).max().over("run")
    if "schedule" in present and rule.of_run == "every":
        selection.drop(
            (pl.col("schedule") != "constant") & (pl.col(axis) < last),
            "before the end",
            pl.format("schedule {}: only the end of a run is a measurement", "schedule"),
        )
    if rule.of_run == "last":
        selection.drop(pl.col(axis) < last, "before the end", rule.text)
    elif rule.of_run == "frontier":
        before = pl.col("loss").cum_min().shift(1)
        selection.points = selection.points.sort("C", "loss")
        selection.drop(pl.col("loss") >= before, "not on the frontier", rule.text)
    elif selection.points.height > MOST_POINTS:
        thin(selection, axis)


def _stop_early(selection: Selection, rule: Rule, axis: str, made_ids: bool, by: str) -> None:
    """End every run where its loss `by` is lowest, the first place where there are two.

    `stopped` of a point says whether its run went on from there, null for a run of one row.
    """
    column = selection.table.sources[by]
    selection.drop(pl.col(by).is_null(), "not the lowest", f"no {column} to stop on")
    # Rows that are one run only because their size is equal may differ in their data.
    own = ["run", "D"] if made_ids and "D" in selection.points.columns else ["run"]
    lowest = pl.col(by) == pl.col(by).min().over(own)
    stop = pl.col(axis).filter(lowest).min().over(own)
    selection.points = selection.points.with_columns(
        stopped=pl.when(pl.len().over(own) > 1).then(stop < pl.col(axis).max().over(own))
    )
    if rule.of_run == "lowest":
        reason = f"{column} is not the lowest of the run (early stopping)"
        selection.drop(pl.col(axis) != stop, "not the lowest", reason)
    else:
        reason = f"after the lowest {column} of the run (early stopping)"
        selection.drop(pl.col(axis) > stop, "after the lowest", reason)


def _said(rule: Rule, selection: Selection, by: str) -> str:
    """The rule with the losses that it was applied to."""
    points, sources = selection.points, selection.table.sources
    text, loss, chosen = rule.text, sources.get("loss"), sources.get(by)
    if "stopped" in points.columns and points["stopped"].is_not_null().any():
        if rule.of_run == "every":
            text += f" up to the lowest {chosen} of each run (early stopping), with {loss} read off"
        else:
            text = f"{loss} of every run at its lowest {chosen} (early stopping)"
        if loss == chosen:
            text += ", chosen on the losses that it is read off, and so a little too low"
    if rule.of_run == "every" and "schedule" in sources:
        text += ", of runs whose learning rate decays the last alone"
    return text
