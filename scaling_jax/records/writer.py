"""The training side of the records: what was measured, raw, in whole segments.

Layout under `out`:

    <study>/study.json                   the names of the study's runs, in declared order
    <run_id>/config.json                 what the run is
    <run_id>/status.json                 where it stands
    <run_id>/curve/<attempt>-<n>.parquet   segments, one a flush
    <run_id>/curve/<attempt>-all.parquet   the whole attempt, in the place of its segments
"""

from __future__ import annotations

import json
import math
import operator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from scaling_jax.records.files import (
    read_record,
    remove_leftovers,
    write_atomic,
    write_json,
)
from scaling_jax.records.schema import CURVE_COLUMNS, FORMAT, STATUSES

_ARROW = {int: pa.int64(), float: pa.float64(), str: pa.string()}
_CURVE_SCHEMA = pa.schema([(name, _ARROW[kind]) for name, kind in CURVE_COLUMNS.items()])
# `operator.index` takes any integer scalar and refuses 3.7 where `int` would cut it
_SCALAR = {int: operator.index, float: float, str: str}


class RunWriter:
    """Writes one run's folder; the caller holds the lock of `out`.

    Every method raises `WorkError` where the disk refuses; what was flushed before stays readable.
    """

    def __init__(self, out: epath.Path, run_id: str) -> None:
        self.run_id = run_id
        self._folder = out / run_id
        self._curve = self._folder / "curve"
        self._attempt = 0
        self._segment = 0
        self._step = 0
        self._rows: list[dict[str, Any]] = []
        self._finished = False
        self._status: dict[str, Any] = {}

    def begin(self, config_doc: dict[str, Any], environment: dict[str, str], steps: int) -> int:
        """Open the next attempt and return its number, 1 for the first.

        `config_doc` holds `config`, the nested RunConfig, and `row`, the entries of RUN_COLUMNS
        known at the start; `environment` the entries known on the machine (versions, device,
        mesh). Raises ValueError where the same run_id was written with another config: only
        `config.mesh`, where the run is placed, may differ.
        """
        doc = {"format": FORMAT, "run_id": self.run_id, **config_doc}
        path = self._folder / "config.json"
        if path.exists():
            self._check_same(read_record(path), json.loads(json.dumps(doc)))
        else:
            write_json(path, doc)
        remove_leftovers(self._folder)
        remove_leftovers(self._curve)
        self._attempt = 1 + self._last_attempt()
        self._segment, self._step, self._rows, self._finished = 0, 0, [], False
        self._status = {
            "format": FORMAT,
            "status": "running",
            "attempt": self._attempt,
            "step": 0,
            "steps": operator.index(steps),
            "message": "",
            "environment": dict(environment),
        }
        self._write_status()
        return self._attempt

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Keep rows of CURVE_COLUMNS for the next flush; an absent column is null.

        `run_id` and `attempt` are filled in. Raises ValueError for an unknown column, another
        run's row, or a step that is not after the one before; TypeError for a wrong type.
        """
        self._require_open()
        for row in rows:
            if unknown := row.keys() - CURVE_COLUMNS.keys():
                raise ValueError(f"no curve column {sorted(unknown)}")
            if row.get("run_id", self.run_id) != self.run_id:
                raise ValueError(f"a row of run {row['run_id']} given to run {self.run_id}")
            own = {**row, "run_id": self.run_id, "attempt": self._attempt}
            clean = {
                name: None if own.get(name) is None else _SCALAR[kind](own[name])
                for name, kind in CURVE_COLUMNS.items()
            }
            before = self._rows[-1]["step"] if self._rows else self._step if self._segment else -1
            if clean["step"] is None or clean["step_start"] is None or clean["step"] <= before:
                raise ValueError(
                    f"row of steps {clean['step_start']}..{clean['step']} after step {before}"
                )
            self._rows.append(clean)

    def flush(self) -> None:
        """Put the kept rows on the disk as one segment, then the status with the last step."""
        self._require_open()
        if self._rows:
            table = pa.Table.from_pylist(self._rows, schema=_CURVE_SCHEMA)
            write_atomic(self._segment_path(f"{self._segment:05d}"), _parquet(table))
            self._segment += 1
            self._step = self._rows[-1]["step"]
            self._rows = []
        self._status["step"] = self._step
        self._write_status()

    def finish(self, status: str, message: str = "", **timings: float) -> None:
        """Flush, write the last status with `timings` in seconds, and make one file of the attempt.

        A crash in between loses and repeats no row. What is finished stays as it is when finished
        again. Raises ValueError for an unknown status.
        """
        if status not in STATUSES:
            raise ValueError(f"no status {status!r}; known: {', '.join(STATUSES)}")
        if self._finished:
            return
        self._require_open()
        final = {"status": status, "message": message}
        self._status |= final | {name: float(value) for name, value in timings.items()}
        self.flush()
        self._finished = True
        if self._segment > 1:
            self._compact()

    def _compact(self) -> None:
        pieces = [self._segment_path(f"{n:05d}") for n in range(self._segment)]
        tables = [pq.read_table(pa.BufferReader(piece.read_bytes())) for piece in pieces]
        # Readers pass over an attempt's pieces from the moment this one file is there.
        write_atomic(self._segment_path("all"), _parquet(pa.concat_tables(tables)))
        for piece in pieces:
            piece.unlink(missing_ok=True)

    def _segment_path(self, segment: str) -> epath.Path:
        return self._curve / f"{self._attempt:03d}-{segment}.parquet"

    def _last_attempt(self) -> int:
        path = self._folder / "status.json"
        known = [read_record(path)["attempt"]] if path.exists() else []
        return max(known + [attempt for attempt, _ in segments(self._curve)], default=0)

    def _check_same(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        old, new = _fields(before), _fields(now)
        changed = [
            name
            for name in sorted(old.keys() | new.keys())
            if not name.startswith("config.mesh.") and not _equal(old.get(name), new.get(name))
        ]
        if changed:
            raise ValueError(f"run {self.run_id} was written with another {', '.join(changed)}")

    def _write_status(self) -> None:
        write_json(self._folder / "status.json", self._status)

    def _require_open(self) -> None:
        if not self._attempt or self._finished:
            raise ValueError(f"run {self.run_id} is not begun, or it is finished")


def write_study(
    out: epath.Path, study: str, description: str, laws: list[str], runs: dict[str, str]
) -> None:
    """Write `study.json`: the study's laws and its runs, name to run_id, in declared order."""
    doc = {"format": FORMAT, "study": study, "description": description, "laws": laws, "runs": runs}
    write_json(out / study / "study.json", doc)


def run_status(out: epath.Path, run_id: str) -> dict[str, Any] | None:
    """The run's `status.json`, or None where it never started; `RequestError` where it is cut."""
    path = out / run_id / "status.json"
    return read_record(path) if path.exists() else None


def segments(curve: epath.Path) -> list[tuple[int, epath.Path]]:
    """The files that hold a run's rows, as (attempt, path), each row in one of them."""
    if not curve.is_dir():
        return []
    found: dict[int, dict[str, epath.Path]] = {}
    for path in curve.iterdir():
        attempt, _, segment = path.name.removesuffix(".parquet").partition("-")
        if path.name.endswith(".parquet") and attempt.isdigit():
            found.setdefault(int(attempt), {})[segment] = path
    return [
        (attempt, path)
        for attempt, pieces in sorted(found.items())
        for segment, path in sorted(pieces.items())
        if segment == "all" or "all" not in pieces
    ]


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def _fields(doc: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in doc.items():
        inner = isinstance(value, dict)
        found |= _fields(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return found


def _equal(a: Any, b: Any) -> bool:
    # another machine's logarithm may differ in the last digit of what is measured of the corpus
    both = isinstance(a, float) and isinstance(b, float)
    return math.isclose(a, b, rel_tol=1e-9) if both else a == b
