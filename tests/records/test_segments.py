from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.records.files import AbsentFile
from scaling_jax.records.segments import DamagedSegment, SegmentWriter, segments

COLUMNS: dict[str, type] = {"step": int, "loss": float, "part": str}


@pytest.fixture
def folder(tmp_path: Path) -> epath.Path:
    return epath.Path(tmp_path) / "curve"


def written(folder: epath.Path, steps: tuple[int, ...], attempt: int = 1) -> SegmentWriter:
    table = SegmentWriter(folder, COLUMNS, attempt)
    for step in steps:
        table.keep({"step": step, "part": "a"})
        table.flush()
    return table


def steps(folder: epath.Path) -> list[int]:
    tables = [pq.read_table(pa.BufferReader(each.read())) for each in segments(folder)]
    return [step for table in tables for step in table["step"].to_pylist()]


def test_pieces_become_one_file(folder: epath.Path) -> None:
    table = written(folder, (10, 20, 30))
    assert [each.piece for each in segments(folder)] == ["00000", "00001", "00002"]
    table.compact()
    assert [each.piece for each in segments(folder)] == ["all"]
    assert len(list(folder.iterdir())) == 1
    assert steps(folder) == [10, 20, 30]


def test_one_segment_is_one_file_already(folder: epath.Path) -> None:
    written(folder, (10,)).compact()
    assert [each.piece for each in segments(folder)] == ["00000"]


def test_no_row_is_no_file(folder: epath.Path) -> None:
    table = written(folder, ())
    table.flush()
    table.compact()
    assert not folder.exists()
    assert segments(folder) == []


def test_every_other_byte_and_every_cut_is_damage(folder: epath.Path) -> None:
    written(folder, (10,))
    (segment,) = segments(folder)
    whole = segment.read()
    for i in range(0, len(whole), 41):
        for data in (whole[:i], whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :]):
            segment.path.write_bytes(data)
            with pytest.raises(DamagedSegment, match=f"{segment.path.name} is damaged"):
                segment.read()


def test_a_segment_that_is_gone_is_absent(folder: epath.Path) -> None:
    written(folder, (10,))
    (segment,) = segments(folder)
    segment.path.unlink()
    with pytest.raises(AbsentFile, match=segment.path.name):
        segment.read()


def test_what_is_damaged_is_not_compacted(folder: epath.Path) -> None:
    table = written(folder, (10, 20))
    first, second = segments(folder)
    first.path.write_bytes(b"")
    with pytest.raises(WorkError, match=first.path.name):
        table.compact()
    assert segments(folder) == [first, second]


def test_segments_pass_over_pieces_and_strangers(folder: epath.Path) -> None:
    folder.mkdir()
    mark = "0123456789ab"
    for name in (
        f"001-00000-{mark}.parquet",
        f"001-all-{mark}.parquet",
        f"002-00001-{mark}.parquet",
        f"002-00000-{mark}.parquet",
        f"002-00002-{mark}.parquet.damaged",
        f".002-all-{mark}.parquet.00000000.tmp",
        "notes.parquet",
    ):
        (folder / name).write_text("")
    assert [(each.attempt, each.piece, each.digest) for each in segments(folder)] == [
        (1, "all", mark),
        (2, "00000", mark),
        (2, "00001", mark),
    ]


def test_a_folder_that_cannot_be_listed_is_named(
    folder: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: epath.Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    folder.mkdir()
    monkeypatch.setattr(type(folder), "iterdir", denied)
    with pytest.raises(RequestError, match=f"Cannot read {folder}: Permission denied"):
        segments(folder)
