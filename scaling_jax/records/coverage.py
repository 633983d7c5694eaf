"""How far the records of a run go without a hole, for whoever resumes it."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from scaling_jax.errors import RequestError
from scaling_jax.records.files import refusals, write_atomic
from scaling_jax.records.schema import OF_EVALUATIONS, SIDE_TABLES
from scaling_jax.records.segments import ALL, DamagedSegment, Segment, segments

SET_ASIDE = ".damaged"  # added to the name of a segment that readers shall pass over

_WINDOW = ("step_start", "step")
_Window = tuple[int, int]


def recorded_until(out: epath.Path, run_id: str, begin: int = 0) -> int:
    """The last step up to which readers find every update of the run, -1 where they find none.

    The run begins at step `begin`. It can go on from a checkpoint whose open window began at or
    before what is returned. What lies after a damaged or lost segment does not count.
    """
    until = -1
    for start, step in sorted(_kept(out / run_id), key=lambda window: window[1]):
        if start > max(until, begin):
            break
        until = step
    return until


def set_aside_damaged(run: epath.Path) -> list[epath.Path]:
    """Rename the damaged segments of a run, whose rows it is about to make anew.

    The caller holds the lock. Raises `WorkError` where the disk refuses.
    """
    found = []
    for table in ("curve", *SIDE_TABLES):
        for segment in segments(run / table):
            try:
                segment.read()
            except DamagedSegment:
                found.append(segment.path)
    for path in found:
        with refusals(path):
            write_atomic(path.parent / f"{path.name}{SET_ASIDE}", path.read_bytes())
            path.unlink()
    return found


def _kept(run: epath.Path) -> list[_Window]:
    """The whole windows that readers keep: a later attempt supersedes from where it begins."""
    curve = _by_attempt(run / "curve")
    sides = {name: _by_attempt(run / name) for name in SIDE_TABLES}
    kept: list[_Window] = []
    for attempt, pieces in curve.items():
        rows, _ = _whole(pieces, *_WINDOW, "val_loss")
        windows = [(start, step) for start, step, _ in rows]
        for name, side in sides.items():
            beside, all_whole = _whole(side.get(attempt, []), *_WINDOW)
            if not all_whole:
                last = beside[-1][1] if beside else -1
                windows = [window for window in windows if window[1] <= last]
            if name in OF_EVALUATIONS:  # so that the loss of a last file is seen, too
                due = {(start, step) for start, step, loss in rows if loss is not None}
                lost = due.difference(beside)
                windows = list(takewhile(lambda window, lost=lost: window not in lost, windows))
        if windows:
            kept = [window for window in kept if window[1] <= windows[0][0]] + windows
    return kept


def _by_attempt(folder: epath.Path) -> dict[int, list[Segment]]:
    found: dict[int, list[Segment]] = {}
    for segment in segments(folder):
        found.setdefault(segment.attempt, []).append(segment)
    return found


def _whole(pieces: list[Segment], *columns: str) -> tuple[list[tuple[Any, ...]], bool]:
    """The rows up to the first damaged or lost segment, and whether there is none."""
    found: list[tuple[Any, ...]] = []
    last = -1
    for segment in pieces:
        number = last if segment.piece == ALL else int(segment.piece)
        try:
            data = segment.read()
        except RequestError:
            return found, False
        if number > last + 1:
            return found, False
        last = number
        table = pq.read_table(pa.BufferReader(data), columns=list(columns))
        found += zip(*(table[name].to_pylist() for name in columns), strict=True)
    return found, True
