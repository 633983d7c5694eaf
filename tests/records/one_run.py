"""One run and what is on the disk of it, for the tests of the writer."""

from __future__ import annotations

import os
import re
from typing import Any

import pyarrow.parquet as pq
from etils import epath

from scaling_jax.records.segments import segments
from scaling_jax.records.status import run_status
from scaling_jax.records.writer import RunWriter

RUN = "0123456789ab"
HERE = {"versions": "jax 1", "device": "cpu", "mesh": "data=1"}
CONFIG: dict[str, Any] = {
    "config": {"steps": 100, "mesh": {"data": None}},
    "row": {"run_id": RUN, "seed": 0, "bigram_nats": 2.41},
}


def row(step: int, **others: Any) -> dict[str, Any]:
    return {"step_start": step - 10, "step": step, "tokens": 512 * step} | others


def begun(out: epath.Path) -> RunWriter:
    run = RunWriter(out, RUN)
    run.begin(CONFIG, HERE, steps=100)
    return run


def steps(out: epath.Path) -> list[tuple[int, int]]:
    """(attempt, step) of every row that a reader finds."""
    found = []
    for each in segments(out / RUN / "curve"):
        table = pq.read_table(os.fspath(each.path))
        found += zip(table["attempt"].to_pylist(), table["step"].to_pylist(), strict=True)
    return found


def files_of(out: epath.Path, table: str = "curve") -> list[str]:
    """The names of a table's files, without their digests."""
    names = (path.name for path in (out / RUN / table).iterdir())
    return sorted(re.sub(r"-[0-9a-f]{12}(?=\.parquet)", "", name) for name in names)


def status_of(out: epath.Path) -> dict[str, Any]:
    found = run_status(out, RUN)
    assert found is not None
    return found
