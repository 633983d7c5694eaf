"""Loss on other corpora against loss on the training one, from anybody's table."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Corpus:
    """One other corpus: its `line`, or why there is none (`refusal`).

    `points`: run, loss (nats a token, training corpus), other, and `phase` ("end": the last point
    of a run, else "during"), null throughout where every run has one point.
    """

    column: str
    line: TransferLine | None
    refusal: str
    points: pl.DataFrame
    excluded: list[dict[str, Any]]

    @property
    def flags(self) -> list[str]:
        """What speaks against the line, as sentences."""
        allowed = MAX_RMS * float(np.mean(self.points["other"].to_numpy()))
        if self.line is None or self.line.rms_residual <= allowed:
            return []
        return [
            f"points lie {self.line.rms_residual:.2g} nats off the line, above {MAX_RMS:.0%} of "
            "the loss: are these runs of one training corpus? --where keeps one"
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
                    each.column: _line(each.line) | {"flags": each.flags, "excluded": each.excluded}
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
    other: Sequence[str],
    columns: Mapping[str, str] | None = None,
    *,
    where: str | None = None,
    level: float = 0.9,
) -> Transfer:
    """L_other = offset + slope L_train for each column of `other`, losses in nats a token.

    Where runs have several points, also whether the last ones ("end") lie on the line of those
    before ("during"). Rows of diverged runs and without either loss are left out. A corpus whose
    points give no line is refused in `Corpus.refusal`. Raises `RequestError` where the request is
    wrong. Source: Kaplan et al. (2020), section 3.2.2, Fig. 8.
    """
    require_level(level)
    if not other:
        raise RequestError("No other corpus: name a column of its loss")
    corpora = [_corpus(records, column, columns, where, level) for column in dict.fromkeys(other)]
    table = flat_table(records, columns, ("run", "loss"), where)
    return Transfer(corpora, table.sources["loss"], level, records.source)


def _corpus(
    records: Records,
    column: str,
    columns: Mapping[str, str] | None,
    where: str | None,
    level: float,
) -> Corpus:
    selection = _selection(records, column, columns, where)
    try:
        if selection.points.is_empty():
            raise WorkError(f"No row has a loss and a number in {column}")
        require_measured(selection, {"other": 1e-300})
        points = _with_phase(selection)
        phase = points["phase"] if points["phase"].null_count() == 0 else None
        line = transfer_line(points["loss"], points["other"], points["run"], phase, level)
    except WorkError as error:
        return Corpus(column, None, str(error), selection.points, selection.excluded)
    return Corpus(column, line, "", points, selection.excluded)


def _selection(
    records: Records, column: str, columns: Mapping[str, str] | None, where: str | None
) -> Selection:
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
    points = selection.points
    last = pl.int_range(pl.len()) == pl.len() - 1
    if axis is not None:
        last = pl.col(axis) == pl.col(axis).max()
    phase = pl.when(last.over("run")).then(pl.lit(END)).otherwise(pl.lit(DURING))
    points = points.select("run", "loss", "other", phase=phase)
    if points["phase"].n_unique() == 1:
        return points.with_columns(phase=pl.lit(None, pl.String))
    return points


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
