"""How far the records of a run go without a hole, for whoever resumes it."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from scaling_jax.errors import RequestError
from scaling_jax.records.files import refusals, write_atomic
from scaling_jax.records.schema import SIDE_TABLES
from scaling_jax.records.segments import ALL, DamagedSegment, Segment, segments

SET_ASIDE = ".damaged"  # added to the name of a segment that readers shall pass over

_Window = tuple[int, int]  # step_start, step


def recorded_until(out: epath.Path, run_id: str) -> int:
    """The last step up to which readers find every update of the run, -1 where they find none.

    A run can go on from a checkpoint whose open window began at or before it. What lies after a
    damaged or lost segment does not count.
    """
    until = -1
    for start, step in sorted(_kept(out / run_id), key=lambda window: window[1]):
        if start > max(until, 0):
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
    curve, sides = _by_attempt(run / "curve"), [_by_attempt(run / name) for name in SIDE_TABLES]
    kept: list[_Window] = []
    for attempt, pieces in curve.items():
        windows, _ = _whole(pieces)
        for side in sides:
            beside, all_whole = _whole(side.get(attempt, []))
            if not all_whole:
                last = beside[-1][1] if beside else -1
                windows = [window for window in windows if window[1] <= last]
        if windows:
            kept = [window for window in kept if window[1] <= windows[0][0]] + windows
    return kept


def _by_attempt(folder: epath.Path) -> dict[int, list[Segment]]:
    found: dict[int, list[Segment]] = {}
    for segment in segments(folder):
        found.setdefault(segment.attempt, []).append(segment)
    return found


def _whole(pieces: list[Segment]) -> tuple[list[_Window], bool]:
    """The windows up to the first damaged or lost segment, and whether there is none."""
    found: list[_Window] = []
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
        table = pq.read_table(pa.BufferReader(data), columns=["step_start", "step"])
        found += zip(table["step_start"].to_pylist(), table["step"].to_pylist(), strict=True)
    return found, True
