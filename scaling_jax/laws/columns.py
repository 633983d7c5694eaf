"""One flat table of curve points under the names the laws use, whatever a table calls them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from scaling_jax.errors import RequestError, nearest
from scaling_jax.records.schema import CURVE_COLUMNS, RUN_COLUMNS

if TYPE_CHECKING:
    from scaling_jax.records.store import Records

# A role that is not here is the schema's column of the same name.
DEFAULTS = {
    **{name: name for name in (*RUN_COLUMNS, *CURVE_COLUMNS)},
    "run": "run_id",
    "N": "params_non_embedding",
    "S": "step",
    "loss": "val_loss",
    "lr": "lr_peak",
}
REQUIRED = ("run", "N", "S", "loss")
CONVENTIONS = ("params_non_embedding", "params_total")
# Means over a window, and so placed in the middle of it; everything else is measured after `S`.
WINDOW_MEANS = ("train_loss",)


@dataclass(frozen=True)
class Table:
    """`points`: one row a measured loss, columns by role (`run`, `N`, `S`, `loss`, ...).

    `sources` gives the column behind each role present; a role that is absent, or null
    throughout, is not in it. `N_other` is N in the other convention, where there is one.
    """

    points: pl.DataFrame
    sources: dict[str, str]

    def missing(self, role: str) -> str | None:
        """`column x missing`, or None when the role is there."""
        return None if role in self.sources else f"column {DEFAULTS[role]} missing"


def flat_table(records: Records, columns: Mapping[str, str] | None = None) -> Table:
    """Both tables of `records` as one, `columns` mapping a role onto a column of the source.

    Rows without a loss (windows without an evaluation) are left out, and a window mean is placed
    at the geometric middle of its steps. Raises `RequestError` for an unknown role, and for a
    column that is not there, with the nearest one.
    """
    columns = dict(columns or {})
    wide = _joined(records)
    for role, column in columns.items():
        if role not in DEFAULTS:
            raise RequestError(f"No role {role!r} for a column.{nearest(role, DEFAULTS)}")
        if column not in wide.columns:
            raise RequestError(
                f"No column {column!r} for {role} in {records.source}."
                f"{nearest(column, wide.columns)}"
            )
    wanted = {**DEFAULTS, **columns}
    sources = {
        role: column
        for role, column in wanted.items()
        if column in wide.columns and wide[column].null_count() < wide.height
    }
    for role in REQUIRED:
        if role not in sources:
            raise RequestError(
                f"No column {wanted[role]!r} for {role} in {records.source} holds a value; "
                f"name the column with {role}=COLUMN.{nearest(wanted[role], wide.columns)}"
            )
    if sources["N"] in CONVENTIONS:
        other = CONVENTIONS[1 - CONVENTIONS.index(sources["N"])]
        if other in wide.columns and wide[other].null_count() < wide.height:
            sources["N_other"] = other
    points = wide.select(pl.col(column).alias(role) for role, column in sources.items())
    points = _numbers(points, sources, records.source).filter(pl.col("loss").is_not_null())
    if sources["loss"] in WINDOW_MEANS and "step_start" in sources:
        points = points.with_columns(S=((pl.col("step_start") + 1) * pl.col("S")).sqrt())
    return Table(points.sort("run", "S", maintain_order=True), sources)


def _joined(records: Records) -> pl.DataFrame:
    runs, curves = records.runs, records.curves
    shared = [name for name in runs.columns if name in curves.columns and name != "run_id"]
    wide = curves.join(runs, on="run_id", how="left", suffix="_of_run", maintain_order="left")
    filled = [pl.coalesce(name, f"{name}_of_run").alias(name) for name in shared]
    return wide.with_columns(filled).drop(f"{name}_of_run" for name in shared)


def _numbers(points: pl.DataFrame, sources: Mapping[str, str], source: str) -> pl.DataFrame:
    roles = [name for name in ("N", "N_other", "S", "loss", "lr") if name in sources]
    try:
        return points.with_columns(
            pl.col("run").cast(pl.String), *(pl.col(name).cast(pl.Float64) for name in roles)
        )
    except pl.exceptions.PolarsError:
        bad = [sources[n] for n in roles if not points.schema[n].is_numeric()]
        raise RequestError(f"Not numbers in {source}: column {', '.join(bad)}") from None
