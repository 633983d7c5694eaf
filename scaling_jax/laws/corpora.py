"""Loss on other corpora against loss on the training one, from anybody's table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.columns import flat_table
from scaling_jax.laws.panel import MAX_RMS
from scaling_jax.laws.request import require_level
from scaling_jax.laws.result import plain
from scaling_jax.laws.selection import Selection, begin, drop_incomplete, require_measured
from scaling_jax.laws.transfer import TransferLine, transfer_line

if TYPE_CHECKING:
    from scaling_jax.records.store import Records

END, DURING = "end", "during"
# Of the highest loss that a run ends at. Far above, where a model learns what single tokens and
# pairs tell, losses on other corpora go up and down along that on the training one.
EARLY = 1.25


@dataclass(frozen=True)
class Corpus:
    """One other corpus: its `line`, or why there is none (`refusal`).

    `points`: run, N (null where unknown), loss (nats a token, training corpus), other, and `phase`
    ("end": the last point of a run, else "during"), null throughout where every run has one point.
    `sample_se`: the standard error, nats a token, that the gap has beside its interval because both
    corpora were measured on some documents of many, the same at every point; None where unknown.
    """

    column: str
    line: TransferLine | None
    refusal: str
    points: pl.DataFrame
    excluded: list[dict[str, Any]]
    sample_se: float | None = None

    @property
    def name(self) -> str:
        """The corpus without what columns have around it."""
        return corpus_name(self.column)

    @property
    def flags(self) -> list[str]:
        """What speaks against the line, as sentences."""
        allowed = MAX_RMS * float(np.mean(self.points["other"].to_numpy()))
        if self.line is None or self.line.rms_residual <= allowed:
            return []
        return [
            f"points lie {self.line.rms_residual:.2g} nats off the line, above {MAX_RMS:.0%} of "
            "the loss: does the relation bend, or are these not runs of one training corpus? "
            "--where keeps a part"
        ]


@dataclass(frozen=True)
class Transfer:
    """Every other corpus against the training one, whose loss was read from `column`."""

    corpora: list[Corpus]
    column: str
    level: float
    source: str

    def to_json(self) -> dict[str, Any]:
        """Plain data; a number that could not be had is null."""
        return plain(
            {
                "transfer": {
                    each.column: {
                        **_line(each.line),
                        "sample_se": each.sample_se,
                        "flags": each.flags,
                        "excluded": each.excluded,
                    }
                    for each in self.corpora
                    if each.line is not None
                },
                "refused": {
                    each.column: each.refusal for each in self.corpora if each.line is None
                },
                "loss": self.column,
                "level": self.level,
                "source": self.source,
            }
        )


def measure_transfer(
    records: Records,
    other: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    *,
    where: str | None = None,
    level: float = 0.9,
) -> Transfer:
    """L_other = offset + slope L_train for each column of `other`, losses in nats a token.

    Without `other` these are all columns loss_<corpus> but that of the training corpus. Where runs
    have several points, also whether the last ones ("end") lie on the line of those before
    ("during"). Rows of diverged runs, without either loss, and of the first part of training
    (`EARLY`) are left out. A corpus whose points give no line is refused in `Corpus.refusal`.
    Raises `RequestError` where the request is wrong.
    Source: Kaplan et al. (2020), section 3.2.2, Fig. 8.
    """
    require_level(level)
    table = flat_table(records, columns, ("run", "loss"), where)
    trained_on = table.sources["loss"]
    found = other or other_corpora(records, trained_on)
    if not found:
        raise RequestError(
            f"No other corpus in {records.source}: it has no column loss_<corpus> beside "
            f"{trained_on}; name columns of other losses"
        )
    corpora = [_corpus(records, column, columns, where, level) for column in dict.fromkeys(found)]
    return Transfer(corpora, trained_on, level, records.source)


def other_corpora(records: Records, trained_on: str = "val_loss") -> list[str]:
    """The columns loss_<corpus> that hold a number: no standard errors, not the training one's."""
    curves = records.curves
    return [
        name
        for name in curves.columns
        if name.startswith("loss_")
        and name != trained_on
        and not _is_standard_error(name, curves)
        and curves.schema[name].is_numeric()
        and curves[name].null_count() < curves.height
    ]


def corpus_name(column: str) -> str:
    """The corpus whose loss a column holds, for people."""
    own = {"val_loss": "validation split", "loss_test": "test split", "test_loss": "test split"}
    return own.get(column, column.removeprefix("loss_").replace("_", " "))


def _is_standard_error(column: str, table: pl.DataFrame) -> bool:
    return column.endswith("_se") and column.removesuffix("_se") in table.columns


def _corpus(
    records: Records,
    column: str,
    columns: Mapping[str, str] | None,
    where: str | None,
    level: float,
) -> Corpus:
    selection = _selection(records, column, columns, where)
    sample = None
    try:
        if selection.points.is_empty():
            raise WorkError(f"No row has a loss and a number in {column}")
        require_measured(selection, {"other": 1e-300})
        points = _with_phase(selection)
        phase = points["phase"] if points["phase"].null_count() == 0 else None
        line = transfer_line(points["loss"], points["other"], points["run"], phase, level)
        sample = _sample_se(records, selection, line)
    except WorkError as error:
        return Corpus(column, None, str(error), selection.points, selection.excluded)
    return Corpus(column, line, "", points, selection.excluded, sample)


def _selection(
    records: Records, column: str, columns: Mapping[str, str] | None, where: str | None
) -> Selection:
    if _is_standard_error(column, records.curves):
        raise RequestError(
            f"{column} is the standard error of {column.removesuffix('_se')}, not a loss"
        )
    roles = {**(columns or {}), "other": column}
    table = flat_table(records, roles, ("run", "loss", "other"), where)
    if table.sources["loss"] == column:
        raise RequestError(
            f"{column} is the training corpus's loss itself; loss=COLUMN names another"
        )
    if not table.points.schema["other"].is_numeric():
        raise RequestError(f"Not numbers in {records.source}: column {column} (other)")
    selection = begin(table, records, where)
    selection.points = selection.points.with_columns(pl.col("other").cast(pl.Float64))
    if "status" in table.sources:
        selection.drop(pl.col("status") == "diverged", "diverged", "status diverged")
    drop_incomplete(selection, ("loss", "other"))
    return selection


def _with_phase(selection: Selection) -> pl.DataFrame:
    axis = next((name for name in ("S", "D", "C") if name in selection.table.sources), None)
    last = pl.int_range(pl.len()) == pl.len() - 1
    if axis is not None:
        last = pl.col(axis) == pl.col(axis).max()
    done = pl.lit(True)
    if "status" in selection.table.sources:  # one that was stopped or goes on has no end yet
        done = (pl.col("status") == "done").fill_null(True)
    phase = pl.when(last.over("run") & done).then(pl.lit(END)).otherwise(pl.lit(DURING))
    selection.points = selection.points.with_columns(phase=phase)
    highest = pl.col("loss").filter(pl.col("phase") == END).max()
    selection.drop(
        (pl.col("phase") == DURING) & (pl.col("loss") > EARLY * highest).fill_null(False),
        "early",
        f"above {EARLY:g} times the highest loss at an end: too early for one line",
    )
    size = pl.col("N") if "N" in selection.points.columns else pl.lit(None, pl.Float64)
    points = selection.points.select("run", "loss", "other", "phase", N=size)
    if points["phase"].n_unique() == 1:
        return points.with_columns(phase=pl.lit(None, pl.String))
    return points


def _sample_se(records: Records, selection: Selection, line: TransferLine) -> float | None:
    columns = [selection.table.sources[role] + "_se" for role in ("loss", "other")]
    if any(name not in records.curves.columns for name in columns):
        return None
    of_runs = records.curves.filter(
        pl.col("run_id").cast(pl.String).is_in(selection.points["run"].unique().implode())
    )
    train, other = (of_runs.select(pl.col(name).median()).item() for name in columns)
    if train is None or other is None:
        return None
    return math.hypot(other, line.slope.value * train)


def _line(line: TransferLine) -> dict[str, Any]:
    test = line.phase_test
    return {
        **{name: getattr(line, name)._asdict() for name in ("slope", "offset", "gap")},
        "centre": line.centre,
        "rms_residual": line.rms_residual,
        "n_points": line.n_points,
        "n_runs": line.n_runs,
        "phase_test": None if test is None else test._asdict(),
    }
