"""The analysis side of the records: whatever the source, two polars frames."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import polars as pl
from etils import epath

from scaling_jax.errors import RequestError
from scaling_jax.records.files import as_path, is_local, is_locked, read_record
from scaling_jax.records.schema import CURVE_COLUMNS, RUN_COLUMNS
from scaling_jax.records.tables import read_csv, read_parquet, typed, typed_flat
from scaling_jax.records.writer import run_status, segments

_READERS = {".csv": read_csv, ".parquet": read_parquet}
_RUN_KEYS = ("seed", "lr_peak", "d_model", "n_layer")  # beside every column named params...
_NEXT = "where the next attempt begins"
_TRIES = 5  # a writer may compact an attempt while it is read


@dataclass(frozen=True)
class Records:
    """`runs`, one row a run, and `curves`, one row a recorded window.

    Columns, types and units are those of `records.schema`; a table's further columns are kept in
    `curves`, and in `runs` too where each run has one value.
    """

    runs: pl.DataFrame
    curves: pl.DataFrame
    source: str
    made_ids: bool = False  # run_id was not in the table


def load(path: str | os.PathLike[str]) -> Records:
    """Read a study's folder, a folder of studies, or one flat table (CSV, Parquet).

    A row that a later attempt of its run went over again is dropped. A run that says `running`
    where no process holds the folder is `interrupted`; one that never started is `queued`. In a
    folder of studies a run of two studies is listed once, under the first by name. In a table
    without `run_id`, rows of equal size (every column named params...), seed, lr_peak, d_model and
    n_layer are one run, and without any of these every row is one.

    Raises `RequestError` where the source is absent, empty, cut, or of another kind.
    """
    source = as_path(path)
    try:
        return _load_folder(source) if source.is_dir() else _load_table(source)
    except OSError as error:
        where = error.filename or source
        raise RequestError(f"Cannot read {where}: {error.strerror or error}.") from None


def overview(records: Records) -> pl.DataFrame:
    """One row a run: where it stands, its last losses (nats a token), size, rate and seed."""
    last = (
        records.curves.sort("run_id", "step")
        .group_by("run_id")
        .agg(
            pl.col("step").max(),
            pl.col("train_loss").drop_nulls().last(),
            pl.col("val_loss").drop_nulls().last(),
        )
    )
    joined = records.runs.join(last, on="run_id", how="left", maintain_order="left")
    return joined.select(
        "study",
        "name",
        "status",
        pl.col("step").fill_null(0),
        "steps",
        "train_loss",
        "val_loss",
        "params_non_embedding",
        "lr_peak",
        "seed",
    )


def _load_table(source: epath.Path) -> Records:
    if not source.exists():
        raise RequestError(f"There is no {source}.")
    reader = _READERS.get(source.suffix.lower())
    if reader is None:
        raise RequestError(
            f"{source} is no study folder and no table; a table ends in .csv or .parquet."
        )
    return _split_flat(reader(source.read_bytes(), str(source)), source)


def _load_folder(folder: epath.Path) -> Records:
    source = str(folder)
    if is_local(folder):
        folder = folder.resolve()  # `.` has no name and no parent
    if (folder / "study.json").exists():
        out, studies = folder.parent, [folder]
    else:
        out = folder
        studies = sorted(p for p in folder.iterdir() if (p / "study.json").exists())
    if not studies:
        raise RequestError(f"{source} holds neither study.json nor studies.")
    # Asked before the statuses are read: a run that ends in between is then read as it ended.
    held = is_locked(out) or not is_local(out)
    rows: dict[str, dict[str, Any]] = {}
    for study in studies:
        for name, run_id in _declared(study).items():
            rows.setdefault(run_id, _run_row(out, study.name, name, run_id, held))
    if not rows:
        raise RequestError(f"{source} declares no run.")
    frame = pl.from_dicts(list(rows.values()), infer_schema_length=None, strict=False)
    runs = typed(frame, RUN_COLUMNS, source).select(RUN_COLUMNS.keys())
    empty = typed(pl.DataFrame(), CURVE_COLUMNS, source)
    parts = [part for run_id in rows for part in _read_curve(out / run_id / "curve")]
    curves = pl.concat([empty, *(part.select(empty.columns) for part in parts)])
    return Records(runs, _one_row_a_step(curves), source)


def _declared(study: epath.Path) -> dict[str, str]:
    path = study / "study.json"
    runs = read_record(path).get("runs")
    if not isinstance(runs, dict) or not all(isinstance(run_id, str) for run_id in runs.values()):
        raise RequestError(f"{path} does not name its runs.")
    return runs


def _run_row(out: epath.Path, study: str, name: str, run_id: str, held: bool) -> dict[str, Any]:
    own = {"run_id": run_id, "study": study, "name": name}
    state = run_status(out, run_id)
    if state is None:
        return own | {"status": "queued"}
    status = state.get("status")
    if status == "running" and not held:
        status = "interrupted"
    config = read_record(out / run_id / "config.json")
    return config.get("row", {}) | state.get("environment", {}) | own | {"status": status}


def _read_curve(curve: epath.Path) -> list[pl.DataFrame]:
    for attempt in range(_TRIES):
        try:
            return [
                typed(read_parquet(path.read_bytes(), str(path)), CURVE_COLUMNS, str(path))
                for _, path in segments(curve)
            ]
        except FileNotFoundError:
            if attempt == _TRIES - 1:
                raise
    return []


def _one_row_a_step(curves: pl.DataFrame) -> pl.DataFrame:
    """Drop what a later attempt went over again: its rows begin after `step_start` of its first."""
    begins = (
        curves.drop_nulls(["attempt", "step", "step_start"])
        .sort("run_id", "attempt", "step")
        .group_by("run_id", "attempt", maintain_order=True)
        .agg(pl.col("step_start").first().alias(_NEXT))
        .with_columns(pl.col(_NEXT).cum_min(reverse=True).shift(-1).over("run_id"))
    )
    kept = curves.join(begins, on=["run_id", "attempt"], how="left", maintain_order="left").filter(
        pl.col(_NEXT).is_null() | pl.col("step").is_null() | (pl.col("step") <= pl.col(_NEXT))
    )
    # an attempt from the start repeats the evaluation at step 0, which is after no update
    latest = pl.col("attempt") == pl.col("attempt").max().over("run_id", "step")
    return kept.filter(pl.col("step").is_null() | latest).drop(_NEXT)


def _split_flat(frame: pl.DataFrame, source: epath.Path) -> Records:
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
    return Records(runs, _one_row_a_step(curves), str(source), made_ids)


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
