"""A study's folder, or a folder of studies, as frames."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import polars as pl
from etils import epath

from scaling_jax.errors import RequestError
from scaling_jax.records.evaluated import with_best, with_other_corpora
from scaling_jax.records.files import AbsentFile, is_local, read_record
from scaling_jax.records.locks import is_locked
from scaling_jax.records.many import read_each
from scaling_jax.records.measured import MEASURED
from scaling_jax.records.schema import (
    CURVE_COLUMNS,
    NOISE_COLUMNS,
    RUN_COLUMNS,
    SIDE_KEYS,
    SIDE_TABLES,
)
from scaling_jax.records.segments import DamagedSegment, Segment, segments
from scaling_jax.records.status import standing
from scaling_jax.records.superseded import WINDOW, of_kept_windows, one_row_a_step
from scaling_jax.records.tables import read_parquet, typed

_TABLES = {"curve": CURVE_COLUMNS, MEASURED: NOISE_COLUMNS} | SIDE_TABLES
_TRIES = 5  # a writer may compact an attempt while it is read
_MEASURE = ["run_id", "step", "metric"]


class Frames(NamedTuple):
    """The tables of a study's runs; `sides` by name."""

    runs: pl.DataFrame
    curves: pl.DataFrame
    sides: Mapping[str, pl.DataFrame]


class _Run(NamedTuple):
    row: dict[str, Any]
    tables: dict[str, list[pl.DataFrame]]


def read_folder(folder: epath.Path) -> Frames:
    """Everything in the folder; `RequestError` naming what is absent, damaged or another's."""
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
    declared: dict[str, dict[str, str]] = {}
    for study in studies:
        for name, run_id in declared_runs(study).items():
            declared.setdefault(run_id, {"study": study.name, "name": name})
    if not declared:
        raise RequestError(f"{source} declares no run.")
    # Asked before the statuses are read: a run that ends in between is then read as it ended.
    held, now = is_locked(out), time.time()
    read = read_each(lambda run_id: _read_run(out / run_id, held, now), declared, is_local(out))
    rows = [run.row | own for run, own in zip(read, declared.values(), strict=True)]
    frame = pl.from_dicts(rows, infer_schema_length=None, strict=False)
    tables = {}
    for name, columns in _TABLES.items():
        empty = typed(pl.DataFrame(), columns, source)
        parts = [part.select(empty.columns) for run in read for part in run.tables[name]]
        tables[name] = pl.concat([empty, *parts])
    curves = one_row_a_step(tables.pop("curve").unique(WINDOW, keep="last", maintain_order=True))
    # Two files of a step are there where a command was killed before it removed the older.
    measured = tables.pop(MEASURED).unique(_MEASURE, keep="last", maintain_order=True)
    sides = {name: of_kept_windows(tables[name], SIDE_KEYS[name], curves) for name in SIDE_TABLES}
    sides["noise"] = pl.concat([sides["noise"], measured])
    curves = with_other_corpora(curves, sides["evaluations"])
    runs = typed(frame, RUN_COLUMNS, source).select(RUN_COLUMNS.keys())
    return Frames(with_best(runs, curves), curves, sides)


def declared_runs(study: epath.Path) -> dict[str, str]:
    """The run_ids that `study.json` of a study's folder names, by the runs' names."""
    path = study / "study.json"
    runs = read_record(path).get("runs")
    if not isinstance(runs, dict) or not all(isinstance(run_id, str) for run_id in runs.values()):
        raise RequestError(f"{path} does not name its runs.")
    return runs


def _read_run(run: epath.Path, held: bool, now: float) -> _Run:
    return _Run(
        _read_row(run, held, now),
        {name: _read_table(run / name, columns) for name, columns in _TABLES.items()},
    )


def _read_row(run: epath.Path, held: bool, now: float) -> dict[str, Any]:
    own = {"run_id": run.name}
    if not (run / "status.json").exists():
        return own | {"status": "queued"}
    state, config = (_read_own(run / f"{name}.json") for name in ("status", "config"))
    told = {
        "status": standing(state, held, now),
        "tries": state["attempt"],
        "failures": len(state["failures"]),
        "heartbeat": state["heartbeat"],
        "message": state["message"] or None,
    }
    return config["row"] | state["environment"] | own | told


def _read_own(path: epath.Path) -> dict[str, Any]:
    doc = read_record(path)
    if doc.get("run_id") != path.parent.name:
        raise RequestError(f"{path} is of run {doc.get('run_id')!r}, and was moved here.")
    return doc


def _read_table(folder: epath.Path, columns: dict[str, type]) -> list[pl.DataFrame]:
    for attempt in range(_TRIES):
        pieces = segments(folder)
        try:
            return [_read_segment(pieces, i, columns) for i in range(len(pieces))]
        except AbsentFile:
            if attempt == _TRIES - 1:
                raise
    return []


def _read_segment(pieces: list[Segment], i: int, columns: dict[str, type]) -> pl.DataFrame:
    segment = pieces[i]
    source = str(segment.path)
    try:
        data = segment.read()
    except DamagedSegment as error:
        run = segment.path.parent.parent
        raise RequestError(
            f"{error} It held the rows of attempt {segment.attempt} {_between(pieces, i)}. Remove "
            f"it to go on without them, or remove {run} to train that run anew."
        ) from None
    frame = typed(read_parquet(data, source), columns, source)
    owners = frame.select("run_id", "attempt").unique().rows()
    if owners != [(segment.path.parent.parent.name, segment.attempt)]:
        raise RequestError(f"{source} holds rows of another run or attempt, and was moved here.")
    return frame


def _between(pieces: list[Segment], i: int) -> str:
    """Which steps a damaged segment held, from those of the segments beside it."""
    before = pieces[i - 1] if i else None
    after = pieces[i + 1] if i + 1 < len(pieces) else None
    low = _edge(pieces[i], before, "step", -1)
    high = _edge(pieces[i], after, "step_start", 0)
    since = "from its start" if low is None else f"from step {low}"
    return f"{since} on" if high is None else f"{since} to step {high}"


def _edge(damaged: Segment, beside: Segment | None, column: str, row: int) -> int | None:
    if beside is None or beside.attempt != damaged.attempt:
        return None
    try:
        return read_parquet(beside.read(), str(beside.path))[column][row]
    except RequestError:
        return None
