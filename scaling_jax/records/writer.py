"""The training side of the records: what was measured, raw, in whole segments.

Layout under `out`:

    <study>/study.json      the names of the study's runs, in declared order
    <run_id>/config.json    what the run is
    <run_id>/status.json    where it stands
    <run_id>/curve/         its rows, in segments
    <run_id>/<side table>/  likewise
    <run_id>/stop.json      that it is asked to stop, by whoever may (`records.requests`)
"""

from __future__ import annotations

import contextlib
import json
import math
import operator
import os
import socket
import time
from typing import Any

from etils import epath

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.records.coverage import recorded_until, set_aside_damaged
from scaling_jax.records.files import (
    DamagedRecord,
    is_local,
    is_there,
    read_record,
    remove_leftovers,
    write_record,
)
from scaling_jax.records.schema import CURVE_COLUMNS, ENDINGS, PLACEMENT, READ_FROM, SIDE_TABLES
from scaling_jax.records.segments import SegmentWriter, segments

_TABLES = {"curve": CURVE_COLUMNS} | SIDE_TABLES
_OF_THE_WINDOW = ("run_id", "attempt", "step_start", "step")
# One run may be computed elsewhere, and read the same corpora from elsewhere.
_MAY_DIFFER = (
    *(f"config.{part}." for part in PLACEMENT),
    *(f"config.data.{part}" for part in READ_FROM),
    "config.evaluation.corpora.",
    "row.data_source",
)


class RunWriter:
    """Writes one run's folder; the caller holds the lock of `out`.

    Every method raises `WorkError` where the disk or the bucket refuses; what was flushed before
    stays readable.
    """

    def __init__(self, out: epath.Path, run_id: str) -> None:
        self.run_id = run_id
        self._out = out
        self._folder = out / run_id
        self._attempt = 0
        self._step = -1  # of the last row kept
        self._go_on_from: int | None = None  # how far an attempt that goes on found rows
        self._tables: dict[str, SegmentWriter] = {}
        self._finished = False
        self._status: dict[str, Any] = {}

    def begin(
        self,
        config_doc: dict[str, Any],
        environment: dict[str, str],
        steps: int,
        resumed_at: int | None = None,
    ) -> int:
        """Open the next attempt and return its number, 1 for the first.

        `config_doc` holds `config`, the nested RunConfig, and `row`, the entries of RUN_COLUMNS
        known at the start; `environment` the entries known on the machine (versions, device,
        mesh, engine). `resumed_at` is the step of the checkpoint that the attempt goes on from;
        without one it starts anew. Its first row supersedes all that earlier attempts recorded
        after that row's `step_start`, where the window was opened that the checkpoint found open.

        A damaged segment of earlier attempts is set aside. Raises `RequestError` where the folder
        holds another run, naming what differs: only where and how a run is computed may, and from
        where it reads its corpora.
        """
        self._check_same({"run_id": self.run_id, **config_doc})
        before = self._clear_up()
        self._attempt = 1 + self._last_attempt(before)
        self._tables = {
            name: SegmentWriter(self._folder / name, columns, self._attempt)
            for name, columns in _TABLES.items()
        }
        self._step, self._finished, self._go_on_from = -1, False, None
        begin = _first_step(config_doc)
        if resumed_at is not None:
            self._go_on_from = max(recorded_until(self._out, self.run_id, begin), begin)
        self._status = {
            "run_id": self.run_id,
            "status": "running",
            "attempt": self._attempt,
            "resumed_at": resumed_at,
            "step": resumed_at or begin,
            "steps": operator.index(steps),
            "message": "",
            "failures": before.get("failures", []),
            "environment": dict(environment),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        self._write_status()
        return self._attempt

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Keep rows of CURVE_COLUMNS for the next flush; an absent column is null.

        A row may hold the rows of a side table under the table's name, as `noise`. `run_id` and
        `attempt` are filled in, and in side rows the window too. Raises ValueError for an unknown
        column, another run's row, or a step that is not after the one before; TypeError for a
        wrong type; `WorkError` where rows are missing before the first one of an attempt that
        goes on.
        """
        self._require_open()
        for row in rows:
            if row.get("run_id", self.run_id) != self.run_id:
                raise ValueError(f"a row of run {row['run_id']} given to run {self.run_id}")
            start, step = row.get("step_start"), row.get("step")
            if start is None or step is None or step <= self._step:
                raise ValueError(f"row of steps {start}..{step} after step {self._step}")
            if self._step < 0:
                self._require_no_hole(start)
            own = {**row, "run_id": self.run_id, "attempt": self._attempt}
            sides = {name: own.pop(name, None) or [] for name in SIDE_TABLES}
            window = {name: own[name] for name in _OF_THE_WINDOW}
            for name, side in sides.items():
                for each in side:
                    self._tables[name].keep({**each, **window})
            self._step = self._tables["curve"].keep(own)["step"]

    def flush(self) -> None:
        """Put the kept rows on the disk as one segment a table, then the status, heard of now."""
        self._require_open()
        self._require_there()
        # A side row counts from the moment its window lies in the curve.
        for name in (*SIDE_TABLES, "curve"):
            self._tables[name].flush()
        self._status["step"] = max(self._step, self._status["step"])
        self._write_status()

    def finish(self, status: str, message: str = "", **timings: float) -> None:
        """Flush, write the last status with `timings` in seconds, and make one file of the attempt.

        A crash in between loses and repeats no row. What is finished stays as it is when finished
        again. `failed` is not raised on where the disk takes nothing any more: readers will find
        the run `stale`. Raises ValueError for an unknown status.
        """
        if status not in ENDINGS:
            raise ValueError(f"no run ends {status!r}; known: {', '.join(ENDINGS)}")
        if self._finished:
            return
        self._require_open()
        self._status |= {"status": status, "message": message}
        self._status |= {name: float(value) for name, value in timings.items()}
        if status != "failed":
            self._end()
            return
        failure = {"attempt": self._attempt, "step": max(self._step, 0), "message": message}
        self._status["failures"] = [*self._status["failures"], failure]
        try:
            self._end()
        except WorkError:  # a word may still fit where the rows do not
            with contextlib.suppress(WorkError):
                self._write_status()
        self._finished = True

    def _end(self) -> None:
        self.flush()
        self._finished = True
        for table in self._tables.values():
            table.compact()

    def _check_same(self, doc: dict[str, Any]) -> None:
        path = self._folder / "config.json"
        if not is_there(path):
            write_record(path, doc)
            return
        old, new = _fields(read_record(path)), _fields(json.loads(json.dumps(doc)))
        changed = [
            name
            for name in sorted(old.keys() | new.keys())
            if not name.startswith(_MAY_DIFFER) and not _equal(old.get(name), new.get(name))
        ]
        if changed:
            raise RequestError(
                f"{path} is of another run than the one to train now: it differs in "
                f"{', '.join(changed)}. Choose another --out."
            )

    def _clear_up(self) -> dict[str, Any]:
        """What earlier attempts left, made fit to go on from; returns their last status."""
        for folder in (self._folder, *(self._folder / name for name in _TABLES)):
            remove_leftovers(folder)
        set_aside_damaged(self._folder)
        path = self._folder / "status.json"
        return read_record(path) if is_there(path) else {}

    def _last_attempt(self, before: dict[str, Any]) -> int:
        found = [each.attempt for name in _TABLES for each in segments(self._folder / name)]
        return max(found, default=before.get("attempt", 0))

    def _require_no_hole(self, start: int) -> None:
        if self._go_on_from is not None and start > self._go_on_from:
            raise WorkError(
                f"{self._folder} holds no whole rows of steps {self._go_on_from} to "
                f"{start}, before the checkpoint that the run goes on from; remove the folder to "
                "train the run anew."
            )

    def _write_status(self) -> None:
        self._require_there()
        self._status["heartbeat"] = time.time()
        write_record(self._folder / "status.json", self._status)

    def _require_there(self) -> None:
        if is_local(self._folder) and not self._folder.is_dir():
            raise WorkError(f"{self._folder} has vanished while the run was trained.")

    def _require_open(self) -> None:
        if not self._attempt or self._finished:
            raise ValueError(f"run {self.run_id} is not begun, or it is finished")


def write_study(
    out: epath.Path, study: str, description: str, laws: list[str], runs: dict[str, str]
) -> None:
    """Write `study.json`: the study's laws and its runs, name to run_id, in declared order.

    One that is damaged is written anew. Raises `RequestError` where `out` is itself the folder of a
    study, and where another version wrote the file.
    """
    if is_there(out / "study.json"):
        raise RequestError(
            f"{out} is itself the folder of a study; name the folder that holds it, {out.parent}."
        )
    path = out / study / "study.json"
    if is_there(path):
        with contextlib.suppress(DamagedRecord):
            read_record(path)
    doc = {"study": study, "description": description, "laws": laws, "runs": runs}
    write_record(path, doc)


def _first_step(config_doc: dict[str, Any]) -> int:
    branch = config_doc["config"].get("branch")
    return branch["step"] if branch else 0


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
