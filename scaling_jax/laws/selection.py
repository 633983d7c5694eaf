"""Which points of the curves enter L(N, S), by stated rules; what is left out, and why, as data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.columns import Table, flat_table

if TYPE_CHECKING:
    from scaling_jax.records.store import Records

MIN_SIZES = 3
MIN_POINTS = 4  # of a run, in any window
HALF_DECADE = 10**0.5
PER_DECADE = 24  # points of a run kept for each decade of steps
MOST_POINTS = 5_000  # fewer a decade are kept where there would be more
# Below the floor for the last half of a run, or the run's size does not follow the law yet.
LATEST_ENTRY = 0.5
# Runs of one fit agree in these, so that N and S alone tell them apart.
FAMILY = ("data_fingerprint", "arch", "n_ctx", "n_vocab", "optimizer", "batch_tokens")
# Runs that agree in these differ in learning rate and seed.
SHAPE = (
    "N",
    "n_layer",
    "d_model",
    "d_ff",
    "n_head",
    "activation",
    "tied_embeddings",
    "dropout",
    "batch_tokens",
)


@dataclass
class Selection:
    """`points`: what may enter the fit, columns by role; the window's start is still to be chosen.

    `candidates`: every loss of comparable runs (one family, constant learning rate, more than one
    layer), also of runs that are not in the fit. `excluded`: {run_id, name, rule, reason,
    n_points}. `starts`: the first and last step at which a window may begin. `below_floor`: N to
    the share of its run, in steps, that lies below the bigram floor (None without a floor). `rule`:
    in words, which rows of a run are its points.
    """

    table: Table
    points: pl.DataFrame
    candidates: pl.DataFrame
    excluded: list[dict] = field(default_factory=list)
    starts: tuple[float, float] = (1.0, 1.0)
    below_floor: dict[float, float] | None = None
    rule: str = ""

    def drop(self, which: pl.Expr, rule: str, reason: str | pl.Expr) -> None:
        """Take the points where `which` holds out of the fit, with the reason for each run."""
        reason = pl.lit(reason) if isinstance(reason, str) else reason
        name = pl.col("name") if "name" in self.points.columns else pl.col("run")
        judged = self.points.with_columns(
            which.fill_null(False).alias("_gone"), reason.alias("_reason"), name.alias("_label")
        )
        self.points = self.points.filter(~judged["_gone"])
        rows = (
            judged.filter("_gone")
            .group_by("run", maintain_order=True)
            .agg(pl.col("_label", "_reason").last(), pl.len().alias("n_points"))
        )
        for run, label, why, count in rows.iter_rows():
            self.exclude(run, label, rule, why, count)

    def counts(self) -> str:
        """Of the runs that have no point left, how many went by which rule."""
        left = set(self.points["run"])
        rules: dict[str, str] = {}
        for row in self.excluded:
            if row["run_id"] not in left:
                rules[row["run_id"]] = row["rule"]
        tally = Counter(rules.values())
        return "; ".join(f"{n} run{'s' if n > 1 else ''}: {rule}" for rule, n in tally.items())

    def exclude(self, run: str, name: str | None, rule: str, reason: str, n_points: int) -> None:
        """List points that are not in the fit."""
        self.excluded.append(
            {
                "run_id": run,
                "name": name or run,
                "rule": rule,
                "reason": reason,
                "n_points": n_points,
            }
        )


def select(
    records: Records,
    columns: Mapping[str, str] | None = None,
    one_batch: bool = True,
    where: str | None = None,
) -> Selection:
    """The points of L(N, S) and the list of what was left out.

    In order: one layer, schedule not constant, another family, not done, learning rate not the
    best of its shape, warm-up, at or above the bigram floor, sizes that pass the floor late,
    thinning to `PER_DECADE` points a decade of steps, too few points. `one_batch` is False where
    S is converted to S_min, which runs of different batches share. A rule whose column is missing
    is not applied. Raises `RequestError` for missing columns and losses that are not positive and
    finite, `WorkError` for fewer than three sizes or less than half a decade of steps.
    """
    table = flat_table(records, columns, where=where)
    selection = begin(table, records, where)
    present = table.sources
    drop_incomplete(selection, ("N", "S", "loss"))
    if not records.made_ids:
        require_single(selection, ("S",))
    if "n_layer" in present:
        selection.drop(pl.col("n_layer") == 1, "one layer", "one layer (Kaplan et al., D.7)")
    if "schedule" in present:
        selection.drop(
            pl.col("schedule") != "constant",
            "schedule",
            pl.format("schedule {}: only runs at constant learning rate", "schedule"),
        )
    for name in FAMILY if one_batch else FAMILY[:-1]:
        keep_one_family(selection, name)
    selection.candidates = selection.points
    if "status" in present:
        selection.drop(pl.col("status") != "done", "not done", pl.format("status {}", "status"))
    keep_best_rate(selection, [name for name in SHAPE if name in present], equal_length=True)
    require_measured(selection, {"N": 1.0, "S": 0.0})
    warmup = pl.col("warmup_steps").fill_null(0) if "warmup_steps" in present else pl.lit(0)
    selection.drop(pl.col("S") <= warmup, "warm-up", pl.format("step <= {}: warm-up", warmup))
    _below_floor(selection)
    thin(selection, "S")
    of_run = pl.len().over("run")
    selection.drop(
        of_run < MIN_POINTS,
        "too few points",
        pl.format(f"{{}} points, {MIN_POINTS} needed", of_run),
    )
    _require_sizes(selection)
    selection.starts = _allowed_starts(selection.points)
    return selection


def begin(table: Table, records: Records, where: str | None) -> Selection:
    """A selection of all points; runs without any and rows outside `where` are excluded."""
    selection = Selection(table, table.points, table.points)
    names = {}
    if {"run_id", "name"} <= set(records.runs.columns):
        names = dict(records.runs.select("run_id", "name").iter_rows())
    for run, count in table.left_out.sort("run").iter_rows():
        selection.exclude(run, names.get(run), "where", f"not {where}", count)
    measured = {*selection.points["run"], *table.left_out["run"]}
    if table.sources["run"] == "run_id":
        for row in records.runs.iter_rows(named=True):
            if row["run_id"] not in measured:
                status = row.get("status")
                rule = "not done" if status not in (None, "done") else "incomplete"
                reason = f"{status or 'a run'} without a {table.sources.get('loss', 'value')}"
                selection.exclude(row["run_id"], row.get("name"), rule, reason, 0)
    return selection


def require_single(selection: Selection, place: Iterable[str]) -> None:
    """Raises `RequestError` for a run of two sizes, and for one with two rows at one place.

    Only where runs are named by `run_id`: other columns may well group rows of several runs.
    """
    sources, points = selection.table.sources, selection.points
    if sources["run"] != "run_id" or points.is_empty():
        return
    if "N" in sources:
        sizes = points.group_by("run").agg(pl.col("N").unique().sort()).filter(
            pl.col("N").list.len() > 1
        )  # fmt: skip
        for run, found in sizes.sort("run").iter_rows():
            raise RequestError(
                f"run_id {run!r} has {len(found)} values of {sources['N']}, {found[0]:g} and "
                f"{found[1]:g}: a run is one training of one model"
            )
    place = [name for name in place if name in sources]
    again = points.group_by("run", *place).len().filter(pl.col("len") > 1).sort("run", *place)
    if again.is_empty():
        return
    row = again.row(0, named=True)
    known = {sources[name]: row[name] for name in place if row[name] is not None}
    where = " and ".join(f"{column} = {value:g}" for column, value in known.items())
    raise RequestError(
        f"run_id {row['run']!r} has {row['len']} rows at {where} ({again.height} such cases): "
        "runs have one row at one place. --where can keep one kind of them"
    )


def drop_incomplete(selection: Selection, roles: Sequence[str]) -> None:
    """Leave out rows in which one of the roles is missing or not a number.

    A run that diverged has none from there on, and that is no fault of its table.
    """
    bad = pl.any_horizontal(pl.col(role).is_null() | pl.col(role).is_nan() for role in roles)
    if "status" in selection.table.sources:
        lost = bad & (pl.col("status") == "diverged")
        selection.drop(lost, "not done", "status diverged")
    columns = [selection.table.sources[role] for role in roles]
    selection.drop(bad, "incomplete", f"missing or not a number in {' or '.join(columns)}")


def keep_one_family(selection: Selection, name: str) -> None:
    if name not in selection.table.sources:
        return
    unit = "N" if "N" in selection.points.columns else "run"
    kinds = (
        selection.points.group_by(name, maintain_order=True)
        .agg(pl.col(unit).n_unique().alias("sizes"), pl.len().alias("rows"))
        .sort("sizes", "rows", descending=True, maintain_order=True)
    )
    if kinds.height > 1:
        kept = kinds[name][0]
        selection.drop(
            pl.col(name).ne_missing(pl.lit(kept)),
            "another family",
            pl.format(f"{name} {{}}, most sizes have {kept}", pl.col(name).cast(pl.String)),
        )


def keep_best_rate(
    selection: Selection, shape: list[str], equal_length: bool, by: str = "loss"
) -> None:
    """Of the runs that agree in `shape` keep the learning rate with the lowest final loss `by`.

    Runs that differ in seeds alone count together, by their mean. Where lengths are `equal_length`,
    a run shorter than the longest of its shape is a check of the learning rate and no measurement.
    """
    if "lr" not in selection.table.sources or selection.points.is_empty():
        return
    last = pl.col("S").max().over("run")
    longest = pl.col("S").max().over(shape)
    if equal_length:
        selection.drop(
            last < longest,
            "bracket check",
            pl.format("learning rate {}: {} of {} steps", "lr", _whole(last), _whole(longest)),
        )
    final = (
        selection.points.filter(pl.col("S") == last)
        .group_by(*shape, "lr")
        .agg(pl.col(by).mean().alias("final"))
    )
    best = (
        final.sort("final", "lr", nulls_last=True)
        .group_by(shape, maintain_order=True)
        .agg(pl.col("lr").first().alias("best_lr"), pl.col("final").first().alias("best_final"))
    )
    selection.points = selection.points.join(
        final, on=[*shape, "lr"], how="left", nulls_equal=True, maintain_order="left"
    ).join(best, on=shape, how="left", nulls_equal=True, maintain_order="left")
    selection.drop(
        pl.col("lr") != pl.col("best_lr"),
        "learning rate",
        pl.format(
            "learning rate {} ends at {} nats, {} at {}",
            "lr", pl.col("final").round(4), "best_lr", pl.col("best_final").round(4),
        ),
    )  # fmt: skip


def require_measured(
    selection: Selection, least: Mapping[str, float], output: str = "loss"
) -> None:
    """Raises `RequestError` for values that are infinite or below what their unit allows.

    `least` gives the smallest value of each input; the output is positive.
    """
    for role, lowest in {**least, output: 1e-300}.items():
        bad = selection.points.filter(~(pl.col(role).is_finite() & (pl.col(role) >= lowest)))
        if not bad.is_empty():
            column = selection.table.sources[role]
            rows = "row" if bad.height == 1 else "rows"
            fault = "not positive and finite" if lowest < 1 else f"below {lowest:g} or infinite"
            raise RequestError(
                f"{bad.height} {rows} of {column} ({role}) {fault}, as in {bad[role][0]:g}: "
                f"is the column right, and its unit? --where can leave rows out"
            )


def _below_floor(selection: Selection) -> None:
    if "bigram_nats" not in selection.table.sources:
        return
    above = pl.col("loss") >= pl.col("bigram_nats")
    last_above = pl.col("S").filter(above).max().over("run").fill_null(0)
    end = pl.col("S").max().over("run")
    first_below = pl.col("S").filter(pl.col("S") > last_above).min().over("run").fill_null(end)
    entry = pl.when(last_above > 0).then(first_below / end).otherwise(0.0)
    late = entry.max().over("N") > LATEST_ENTRY
    entries = selection.points.group_by("N").agg(entry.max().alias("entry"))
    selection.below_floor = {n: 1.0 - e for n, e in entries.iter_rows()}
    selection.drop(
        late,
        "passes the floor late",
        pl.format(
            f"below the bigram floor only after {{}} % of its steps, {LATEST_ENTRY:.0%} allowed",
            _whole(100 * entry.max().over("N")),
        ),
    )
    selection.drop(
        pl.col("S") <= last_above,
        "above the floor",
        pl.format("at or above the bigram floor of {} nats", pl.col("bigram_nats").round(3)),
    )


def thin(selection: Selection, axis: str) -> None:
    """Keep the last point of every cell in log `axis` of a run.

    Cells are 1/24 of a decade, and wider where more than `MOST_POINTS` would be left: neighbours
    on a curve say nearly the same.
    """
    along = pl.col(axis).log10()
    for per_decade in (PER_DECADE, 12, 6, 3):
        cell = (along * per_decade).floor()
        kept = selection.points.select(pl.struct("run", cell).n_unique()).item()
        if kept <= MOST_POINTS:
            break
    later = pl.col(axis) < pl.col(axis).max().over("run", cell)
    selection.drop(later, "thinned", f"another point of the same 1/{per_decade} decade is kept")


def _require_sizes(selection: Selection) -> None:
    sizes = sorted(selection.points["N"].unique().to_list())
    if len(sizes) >= MIN_SIZES:
        return
    left = ", ".join(f"{n:.4g}" for n in sizes)
    why = selection.counts()
    raise WorkError(
        f"L(N, S) needs {MIN_SIZES} sizes with {MIN_POINTS} steps each, and "
        f"{len(sizes)} {'is' if len(sizes) == 1 else 'are'} left{f' (N = {left})' if left else ''}."
        + (f" Left out: {why}." if why else "")
    )


def _allowed_starts(points: pl.DataFrame) -> tuple[float, float]:
    """From the first point on, and at the latest where every run still has its least window."""
    runs = points.group_by("run").agg(
        pl.col("S")
        .filter(pl.col("S") <= pl.col("S").max() / HALF_DECADE)
        .max()
        .fill_null(pl.col("S").max() / HALF_DECADE)
        .alias("half_decade"),
        pl.col("S").sort().get(-MIN_POINTS).alias("points"),
    )
    first = points.select(pl.col("S").min()).item()
    last = runs.select(pl.min_horizontal("half_decade", "points").min()).item()
    if last < first:
        span = math.log10(points.select(pl.col("S").max()).item() / first)
        raise WorkError(
            f"The steps after warm-up and below the floor span {span:.2f} decades; L(N, S) needs "
            "half a decade of every run. Train longer"
        )
    return first, last


def _whole(value: pl.Expr) -> pl.Expr:
    return value.round(0).cast(pl.Int64)
