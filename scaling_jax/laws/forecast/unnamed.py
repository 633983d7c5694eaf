"""Curves of a table that does not say which run a row is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl

from scaling_jax.laws.columns import DEFAULTS

if TYPE_CHECKING:
    from scaling_jax.records.store import Records


def with_runs(records: Records, columns: Mapping[str, str] | None = None) -> Records:
    """The records, with one run for each size where every row was made a run of its own.

    Without sizes all rows are one curve. A table that says which run a row is of, by the usual name
    or by a column that `columns` maps onto the role `run`, is left as it is.
    """
    columns = columns or {}
    runs, curves = records.runs, records.curves
    each_row = records.made_ids and 1 < curves.height == runs.height
    if not each_row or "run" in columns:
        return records
    named = (columns["N"],) if "N" in columns else DEFAULTS["N"]
    size = next(
        (n for n in named if n in runs.columns and runs[n].null_count() < runs.height), None
    )
    new = pl.lit("run") if size is None else pl.format("{}={}", pl.lit(size), pl.col(size))
    runs = runs.with_columns(name=new)
    ids = dict(zip(runs["run_id"], runs["name"], strict=True))
    runs = runs.with_columns(run_id="name").group_by("run_id", maintain_order=True)
    single = runs.agg(
        pl.when(pl.all().drop_nulls().n_unique() <= 1).then(pl.all().drop_nulls().first())
    )
    curves = curves.with_columns(pl.col("run_id").replace_strict(ids))
    return replace(records, runs=single, curves=curves)
