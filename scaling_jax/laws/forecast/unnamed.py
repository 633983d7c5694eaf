"""Curves of a table that does not say which run a row is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl

from scaling_jax.laws.columns import DEFAULTS

if TYPE_CHECKING:
    from scaling_jax.records.store import Records


def with_runs(records: Records, columns: Mapping[str, str] | None = None) -> Records:
    """The records, with one run for each size where none are named: the rows of one size are one
    run, or those of one id where these were made of other columns (`records.load`).

    Without sizes all rows are one curve. A table that says which run a row is of, by the usual name
    or by a column that `columns` maps onto the role `run`, keeps its runs; in the second case names
    that were made of other ids give way to the values of that column.
    """
    columns = columns or {}
    runs, curves = records.runs, records.curves
    if "run" in columns:
        if "name" not in runs.columns or "name" in columns:
            return records
        mapped = columns["run"]
        own = pl.col(mapped).cast(pl.String) if mapped in runs.columns else pl.lit(None, pl.String)
        name = pl.when(pl.col("name") == pl.col("run_id")).then(own).otherwise("name")
        return replace(records, runs=runs.with_columns(name=name))
    if not records.made_ids:
        return records
    named = (columns["N"],) if "N" in columns else DEFAULTS["N"]
    if not 1 < curves.height == runs.height:
        return _by_size_too(records, named)
    size = next(
        (n for n in named if n in runs.columns and runs[n].null_count() < runs.height), None
    )
    new = pl.lit("run") if size is None else _named_by(runs[size])
    runs = runs.with_columns(name=new)
    ids = dict(zip(runs["run_id"], runs["name"], strict=True))
    runs = runs.with_columns(run_id="name").group_by("run_id", maintain_order=True)
    single = runs.agg(
        pl.when(pl.all().drop_nulls().n_unique() <= 1).then(pl.all().drop_nulls().first())
    )
    curves = curves.with_columns(pl.col("run_id").replace_strict(ids))
    return replace(records, runs=single, curves=curves)


def _by_size_too(records: Records, named: Sequence[str]) -> Records:
    """The runs split by size, where their ids were made without it, as of the seed alone."""
    runs, curves = records.runs, records.curves
    size = next((n for n in named if n in curves.columns and n not in runs.columns), None)
    if size is None:
        return records
    curves = curves.with_columns(name=_named_by(curves[size]))
    new = pl.format("{} {}", "run_id", "name")
    ids = curves.select("run_id", size, name=new).unique(["run_id", "name"], maintain_order=True)
    runs = ids.join(runs.drop("name"), on="run_id", how="left", maintain_order="left")
    return replace(
        records,
        runs=runs.with_columns(run_id="name"),
        curves=curves.with_columns(run_id=new).drop("name"),
    )


def _named_by(sizes: pl.Series) -> pl.Series:
    """`N=25000000`: the name of each row by its size."""
    name, kind = sizes.name, sizes.dtype
    words = {
        size: f"{name}={size:.15g}" if kind.is_float() else f"{name}={size}"
        for size in sizes.unique()
        if size is not None
    }
    return sizes.replace_strict(words, default=f"{name} not known", return_dtype=pl.String)
