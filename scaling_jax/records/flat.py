"""One flat table of anybody's, split into runs and their curves."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl
from etils import epath

from scaling_jax.errors import RequestError
from scaling_jax.records.files import reading
from scaling_jax.records.schema import CURVE_COLUMNS, RUN_COLUMNS
from scaling_jax.records.superseded import one_row_a_step
from scaling_jax.records.tables import read_csv, read_parquet, typed, typed_flat

_READERS = {".csv": read_csv, ".parquet": read_parquet}
_RUN_KEYS = ("seed", "lr_peak", "d_model", "n_layer")  # beside every column named params...


class Split(NamedTuple):
    """The two tables, and whether run_id was made up."""

    runs: pl.DataFrame
    curves: pl.DataFrame
    made_ids: bool


def read_flat(source: epath.Path) -> Split:
    """The table split in two; `RequestError` where it is absent, empty, cut, or of another kind."""
    if not source.exists():
        raise RequestError(f"There is no {source}.")
    reader = _READERS.get(source.suffix.lower())
    if reader is None:
        raise RequestError(
            f"{source} is no study folder and no table; a table ends in .csv or .parquet."
        )
    with reading(source):
        data = source.read_bytes()
    return _split(reader(data, str(source)), source)


def _split(frame: pl.DataFrame, source: epath.Path) -> Split:
    if not frame.height or not frame.width:
        raise RequestError(f"{source} holds no row.")
    flat = typed_flat(frame, str(source))
    made_ids = "run_id" not in flat.columns
    if made_ids:
        flat = flat.with_columns(_synthesised_ids(flat))
    if flat["run_id"].null_count():
        raise RequestError(f"{source}: column 'run_id' is empty in some rows.")
    single = _one_value_a_run(flat)
    defaults = {"study": pl.lit(source.stem), "name": pl.col("run_id"), "status": pl.lit("done")}
    runs = (
        flat.select("run_id", *single)
        .group_by("run_id", maintain_order=True)
        .agg(pl.all().drop_nulls().first())
        .with_columns(**{k: v for k, v in defaults.items() if k not in flat.columns})
    )
    curves = flat.select([n for n in flat.columns if n not in single or _of_a_window(n)])
    curves = typed(curves, CURVE_COLUMNS, str(source), foreign=True)
    curves = curves.with_columns(pl.col("attempt").fill_null(1))
    runs = typed(runs, RUN_COLUMNS, str(source), foreign=True)
    return Split(runs, one_row_a_step(curves), made_ids)


def _synthesised_ids(flat: pl.DataFrame) -> pl.Series:
    keys = [n for n in flat.columns if n in _RUN_KEYS or n.startswith("params")]
    if keys:
        numbers = flat.select(pl.struct(keys).rank("dense")).to_series()
    else:
        numbers = pl.Series(range(1, flat.height + 1))
    return pl.Series("run_id", [f"run-{n:04d}" for n in numbers])


def _one_value_a_run(flat: pl.DataFrame) -> list[str]:
    """The columns, not of a window, that hold one value (or none) in every run."""
    others = [n for n in flat.columns if n not in CURVE_COLUMNS or n in RUN_COLUMNS]
    others.remove("run_id")
    counts = flat.group_by("run_id").agg(pl.col(others).drop_nulls().n_unique())
    return [name for name in others if (counts[name] <= 1).all()]


def _of_a_window(name: str) -> bool:
    return name in CURVE_COLUMNS or name not in RUN_COLUMNS
