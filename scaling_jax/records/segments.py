"""The rows of one table of one run, in files that are whole or known not to be.

<attempt>-<n>-<digest>.parquet     a segment, one a flush
<attempt>-all-<digest>.parquet     the whole attempt, in the place of its segments
"""

from __future__ import annotations

import operator
import re
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.records.files import digest, reading, refusals, write_atomic

ALL = "all"
_NAME = re.compile(rf"(\d+)-(\d+|{ALL})-([0-9a-f]+)\.parquet")
_ARROW = {int: pa.int64(), float: pa.float64(), str: pa.string()}
# `operator.index` takes any integer scalar and refuses 3.7 where `int` would cut it
_SCALAR = {int: operator.index, float: float, str: str}


class DamagedSegment(RequestError):
    """A segment whose bytes are not those that were written."""


class Segment(NamedTuple):
    """One file of rows; `piece` counts the flushes of an attempt, or is `all`."""

    path: epath.Path
    attempt: int
    piece: str
    digest: str

    def read(self) -> bytes:
        """Its bytes; raises `DamagedSegment` where one is another than was written."""
        with reading(self.path):
            data = self.path.read_bytes()
        if digest(data) != self.digest:
            raise DamagedSegment(
                f"{self.path} is damaged: it does not match the digest in its name."
            )
        return data


def segments(folder: epath.Path) -> list[Segment]:
    """The files that hold the rows of a table, each row in one of them."""
    with reading(folder):
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = [
        Segment(folder / name, int(match[1]), match[2], match[3])
        for name in sorted(names)
        if (match := _NAME.fullmatch(name))
    ]
    compacted = {segment.attempt for segment in found if segment.piece == ALL}
    return sorted(
        (each for each in found if each.piece == ALL or each.attempt not in compacted),
        key=lambda each: (each.attempt, each.piece),
    )


class SegmentWriter:
    """Writes the rows of one attempt in one table, pieces counted from `first`."""

    def __init__(
        self, folder: epath.Path, columns: dict[str, type], attempt: int, first: int = 0
    ) -> None:
        self._folder = folder
        self._columns = columns
        self._schema = pa.schema([(name, _ARROW[kind]) for name, kind in columns.items()])
        self._attempt = attempt
        self._first = first
        self._rows: list[dict[str, Any]] = []
        self._written: list[Segment] = []

    def keep(self, row: dict[str, Any]) -> dict[str, Any]:
        """Keep a row for the next flush and return it as it will be written; absent is null.

        Raises ValueError for an unknown column, TypeError or ValueError for a wrong type.
        """
        if unknown := row.keys() - self._columns.keys():
            raise ValueError(f"no column {sorted(unknown)} in {self._folder.name}")
        clean = {
            name: None if row.get(name) is None else _SCALAR[kind](row[name])
            for name, kind in self._columns.items()
        }
        self._rows.append(clean)
        return clean

    def flush(self) -> None:
        """Put the kept rows on the disk as one segment; where it refuses they stay kept."""
        if self._rows:
            table = pa.Table.from_pylist(self._rows, schema=self._schema)
            piece = self._first + len(self._written)
            self._written.append(self._write(f"{piece:05d}", table))
            self._rows = []

    def compact(self) -> None:
        """Make one file of the attempt; a crash in between loses and repeats no row."""
        if len(self._written) < 2:
            return
        try:
            tables = [pq.read_table(pa.BufferReader(each.read())) for each in self._written]
        except RequestError as error:
            raise WorkError(f"Could not make one file of {self._folder}: {error}") from None
        # Readers pass over an attempt's pieces from the moment this one file is there.
        self._write(ALL, pa.concat_tables(tables))
        for piece in self._written:
            with refusals(piece.path):
                piece.path.unlink(missing_ok=True)

    def _write(self, piece: str, table: pa.Table) -> Segment:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        data = sink.getvalue().to_pybytes()
        mark = digest(data)
        path = self._folder / f"{self._attempt:03d}-{piece}-{mark}.parquet"
        write_atomic(path, data)
        return Segment(path, self._attempt, piece, mark)
