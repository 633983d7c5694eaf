"""Steps that the runs of a batch sweep take to losses, out of a table of them or of curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.columns import flat_table
from scaling_jax.laws.curves import crossings, points_of_runs, smooth
from scaling_jax.laws.hyperbola import LEAST
from scaling_jax.laws.selection import (
    Selection,
    begin,
    drop_incomplete,
    keep_one_family,
    require_measured,
)

if TYPE_CHECKING:
    from scaling_jax.records.store import Records

MOST_LEVELS = 8
# Runs of one sweep agree in these, where the records say it.
FAMILY = ("data_fingerprint", "arch", "n_ctx", "n_vocab", "optimizer")
# What may be tuned at each batch size beside the learning rate.
TUNED = ("beta1", "beta2", "momentum", "weight_decay", "grad_clip", "warmup_steps")
_KIND = ("N", "lr", "setting", "seed")
_PARTS = 1000  # of a nat, which levels that are chosen here are rounded up to
_ROLES = (
    "Roles: B, S and L (the losses that steps lead to) of a table of steps; run, B, S and loss of "
    "curves"
)


def select_sweep(
    records: Records, columns: Mapping[str, str] | None, where: str | None, by_level: bool
) -> Selection:
    """The rows of a sweep, of steps to losses (`by_level`) or of curves, and what was left out."""
    output = "L" if by_level else "loss"
    try:
        table = flat_table(records, columns, ("run", "B", "S", output), where)
    except RequestError as error:
        said = str(error)
        raise RequestError(f"{said}{'' if said[-1] in '.?' else '.'} {_ROLES}") from None
    selection = begin(table, records, where)
    if "status" in table.sources:
        kept = pl.col("status").is_in(["done", "diverged"])
        selection.drop(~kept, "not done", pl.format("status {}", "status"))
        reason = "diverged: a learning rate that reaches no level"
        selection.drop(pl.col("status") == "diverged", "diverged", reason)
    if "batch_policy" in table.sources:
        reason = pl.format("batch policy {}: a sweep is of fixed batches", "batch_policy")
        selection.drop(pl.col("batch_policy") != "fixed", "batch policy", reason)
    known = [name for name in ("N", "lr") if name in table.sources]
    # A level without steps was not reached.
    drop_incomplete(selection, ["B", output, *known, *([] if by_level else ["S"])])
    for name in FAMILY:
        keep_one_family(selection, name)
    if not by_level:
        selection.drop(pl.col("S") <= 0, "initialisation", "step 0: before any update")
    if selection.points.is_empty():
        raise WorkError("No row is left to read steps off")
    require_measured(selection, {"B": 1e-300}, output)
    sizes = selection.points["B"].unique().sort().to_list()
    if len(sizes) < LEAST:
        said = ", ".join(f"{size:g}" for size in sizes)
        raise WorkError(
            f"{table.sources['B']} has {len(sizes)} value{'s' * (len(sizes) > 1)} ({said}): steps "
            f"to a loss at {LEAST} batch sizes or more are needed"
        )
    return selection


class Steps(NamedTuple):
    """`table`: N, batch, loss, steps (null: not reached), lr, setting, seed.

    `setting` says in one word how the run was set in `TUNED`. `levels`: where they come from.
    `excluded`: {rule, reason, loss, batch, n_points, N} of batch sizes whose steps to a level were
    not measured.
    """

    table: pl.DataFrame
    levels: str
    excluded: list[dict[str, Any]]


def given_steps(selection: Selection) -> Steps:
    """The steps of a table of steps, one row a batch and level.

    Raises `RequestError` for two rows at one batch and level.
    """
    points, sources = selection.points, selection.table.sources
    place = [name for name in ("N", "B", "L", "lr", "seed") if name in sources]
    tuned = [name for name in TUNED if name in sources]
    again = points.group_by(*place, *tuned).len().filter(pl.col("len") > 1).sort(place)
    if not again.is_empty():
        row = again.row(0, named=True)
        at = " and ".join(f"{sources[name]} = {row[name]:g}" for name in place)
        tell = "" if "N" in sources else ", N=COLUMN tells sizes apart"
        raise RequestError(
            f"{row['len']} rows have one batch and level, {at} ({again.height} such cases): "
            f"--where keeps one kind of them{tell}"
        )
    steps = pl.col("S").fill_nan(None)
    table = points.select(batch="B", loss="L", steps=steps, **_kind(selection))
    return Steps(table, "as the table has them", [])


def crossed_steps(selection: Selection, levels: Sequence[float] | None) -> Steps:
    """The steps of every run to every level, read off its smoothed curve.

    A batch size is left out at a level that one of its runs begins below, or that one ends above
    before the fastest gets there: which rate is the fastest was not measured then.

    Raises `RequestError` for a batch that changes within a run, `WorkError` where runs have one row
    or no loss is passed by every batch size.
    """
    points, sources = selection.points, selection.table.sources
    again = points.group_by("run", "S").len().filter(pl.col("len") > 1).sort("run", "S")
    if not again.is_empty():
        run, step, count = again.row(0)
        raise RequestError(
            f"Run {run!r} has {count} rows at {sources['S']} = {step:g}, so its rows are no "
            f"curve; --where may keep one kind of them. {_ROLES}"
        )
    if points["run"].is_unique().all():
        raise WorkError(f"Every run has one row, and no curve to read steps off. {_ROLES}")
    warmup = pl.col("warmup_steps").fill_null(0) if "warmup_steps" in sources else pl.lit(0)
    points = points.with_columns(**_kind(selection), warmup=warmup)
    parts, counts = [], []
    for (size,), rows in points.sort("N").group_by("N", maintain_order=True):
        curves = [_Curve.of(run, rows[at]) for run, at in _runs(rows).items()]
        own = _common_levels(curves, size) if levels is None else np.unique(levels)
        counts.append(len(own))
        parts += [curve.steps_to(own) for curve in curves]
        parts += _never(selection, size, own)
    text = "as asked"
    if levels is None:
        count = f"{max(counts)}" if min(counts) == max(counts) else f"up to {max(counts)}"
        text = (
            f"{count} losses, evenly spaced in ln L, that every batch size passes after warm-up"
            + (", for each N" if len(counts) > 1 else "")
        )
    table, excluded = _measured(pl.concat(parts))
    return Steps(table, text, excluded)


def _measured(table: pl.DataFrame) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
    place = ("N", "batch", "loss")
    ended = pl.col("steps").is_null() & (pl.col("end") < pl.col("steps").min().over(place))
    judged = table.with_columns(ended=ended.fill_null(False))
    lost = judged.group_by(place, maintain_order=True).agg(
        pl.col("early").any(), pl.col("ended").any(), pl.len().alias("n_points")
    )
    lost = lost.filter(pl.col("early") | pl.col("ended"))
    excluded = [
        {"rule": "not_measured", "loss": row["loss"], "batch": row["batch"], "N": row["N"],
         "n_points": row["n_points"],
         "reason": f"at batch {row['batch']:.4g} a run "
         + ("begins below this loss" if row["early"] else "ends before the fastest gets there")}
        for row in lost.iter_rows(named=True)
    ]  # fmt: skip
    known = table.join(lost, on=place, how="anti", nulls_equal=True, maintain_order="left")
    return known.drop("early", "end"), excluded


class _Curve(NamedTuple):
    """Steps (n,) of one run against its smoothed loss (n,), measured; `top` after warm-up."""

    batch: float
    kind: pl.DataFrame
    steps: np.ndarray
    loss: np.ndarray
    top: float
    low: float

    @classmethod
    def of(cls, run: str, rows: pl.DataFrame) -> _Curve:
        batch = rows["B"].to_numpy()
        if np.ptp(batch) > 0:
            raise RequestError(
                f"The batch of run {run!r} changes from {batch.min():g} to {batch.max():g}, and a "
                f"curve has one. {_ROLES}"
            )
        steps, loss = rows["S"].to_numpy(), rows["loss"].to_numpy()
        smoothed = smooth(steps, loss)
        after = smoothed[steps > rows["warmup"].to_numpy()]
        top = float(after[0]) if after.size else 0.0
        kind = rows.select("B", *_KIND).head(1)
        return cls(float(batch[0]), kind, steps, loss, top, float(smoothed.min()))

    def steps_to(self, levels: np.ndarray) -> pl.DataFrame:
        found = crossings(self.steps, self.loss, levels)
        early = ~found["status"].is_in(["crossed", "never reached"])
        end = pl.lit(float(self.steps.max()))
        return _steps(self.kind, found["level"], found["x"]).with_columns(early=early, end=end)


def _runs(rows: pl.DataFrame) -> dict[str, np.ndarray]:
    return points_of_runs(rows["run"], rows["S"].to_numpy())


def _common_levels(curves: Sequence[_Curve], size: float | None) -> np.ndarray:
    """Up to eight losses between the highest and the lowest that every batch size passes.

    A batch size passes what one of its rates does, with all seeds.
    """
    tops: dict[float, float] = {}
    lows: dict[float, dict[Any, float]] = {}
    for batch, kind, _, _, top, low in curves:
        tops[batch] = max(top, tops.get(batch, top))
        of_rate = lows.setdefault(batch, {})
        rate = kind.select("lr", "setting").row(0)
        of_rate[rate] = max(low, of_rate.get(rate, low))
    high = min(tops.values())
    low = max(min(of_rate.values()) for of_rate in lows.values())
    if high > low:
        levels = np.geomspace(high, low, MOST_LEVELS + 1)[1:]
        levels = np.unique(np.ceil(levels * _PARTS) / _PARTS)
        levels = levels[levels < high]
        if levels.size:
            return levels
    raise WorkError(
        f"{of_size(size)}no loss that all {len(tops)} batch sizes pass: one of them ends at "
        f"{low:.4g} nats, one begins at {high:.4g}. --levels names losses"
    )


def _never(selection: Selection, size: float | None, levels: np.ndarray) -> list[pl.DataFrame]:
    """Runs that diverged: they reach nothing, and show that their learning rate is no better."""
    table = selection.table
    if not {"status", "lr"} <= set(table.sources):
        return []
    lost = table.points.filter(pl.col("status") == "diverged").with_columns(**_kind(selection))
    lost = lost.filter(pl.col("N").eq_missing(pl.lit(size, pl.Float64))).drop_nulls(["B", "lr"])
    nothing = pl.Series([None] * len(levels), dtype=pl.Float64)
    absent = {"early": pl.lit(False), "end": pl.lit(None, pl.Float64)}
    return [
        _steps(kind, pl.Series(levels), nothing).with_columns(**absent)
        for kind in lost.select("B", *_KIND).unique(maintain_order=True).iter_slices(1)
    ]


def _steps(kind: pl.DataFrame, levels: pl.Series, steps: pl.Series) -> pl.DataFrame:
    """The steps of one run, `kind` its row of B and `_KIND`."""
    return pl.DataFrame({"loss": levels, "steps": steps}).join(kind, how="cross").select(
        *_KIND, "loss", "steps", batch="B"
    )  # fmt: skip


def _kind(selection: Selection) -> dict[str, pl.Expr]:
    """What tells runs at one batch apart; N, lr and seed are null where they are not known."""
    sources = selection.table.sources
    tuned = [pl.format("{}", name).fill_null("none") for name in TUNED if name in sources]
    return {
        "N": pl.col("N") if "N" in sources else pl.lit(None, pl.Float64),
        "lr": pl.col("lr") if "lr" in sources else pl.lit(None, pl.Float64),
        "setting": pl.concat_str(tuned, separator=" ") if tuned else pl.lit(""),
        "seed": (pl.col("seed") if "seed" in sources else pl.lit(None)).cast(pl.String),
    }


def decaying(selection: Selection) -> list[str]:
    """A flag where the learning rate decays within a run."""
    if "schedule" not in selection.table.sources:
        return []
    kinds = selection.points["schedule"].drop_nulls().unique()
    decaying = kinds.filter(kinds != "constant").sort().to_list()
    if not decaying:
        return []
    return [f"schedule {', '.join(decaying)}: steps to a loss depend on how long a run was to be"]


def of_size(size: float | None) -> str:
    """`N = ...: ` for the beginning of a sentence, nothing where N is unknown."""
    return "" if size is None else f"N = {size:.4g}: "
