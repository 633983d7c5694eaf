from __future__ import annotations

import errno
import io
import os

import polars as pl
import pytest
from etils import epath
from etils.epath import testing as epath_testing
from polars.testing import assert_frame_equal

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.records import folders, load, segments
from scaling_jax.records.files import digest, write_atomic, write_record
from scaling_jax.records.locks import FolderLock
from scaling_jax.records.schema import CURVE_COLUMNS, NOISE_COLUMNS
from scaling_jax.records.segments import Segment
from scaling_jax.records.tables import DTYPES
from scaling_jax.records.writer import write_study
from tests.records.runs import ZERO, begun, fault, noise, row, segment


def test_two_attempts_make_one_curve(study: epath.Path) -> None:
    records = load(study)
    assert records.source == os.fspath(study)
    a = records.curves.filter(run_id="aaa")
    assert a["step"].to_list() == [0, 10, 20, 30, 40]
    assert a["attempt"].to_list() == [1, 1, 1, 2, 2]
    assert a["train_loss"].to_list() == [None, 3.9, 3.8, 9.0, 3.6]
    b = records.curves.filter(run_id="bbb")
    assert b["train_loss"].is_nan().item()
    assert b["grad_sq_big"].item() == float("inf")
    runs = records.runs.rows_by_key("run_id", named=True, unique=True)
    assert list(runs) == ["aaa", "bbb"]
    assert (runs["aaa"]["name"], runs["aaa"]["status"], runs["aaa"]["seed"]) == ("a", "done", 0)
    assert (runs["bbb"]["status"], runs["bbb"]["device"]) == ("diverged", "cpu")
    assert set(records.runs["study"]) == {"ladder"}


def test_the_folder_may_be_here(study: epath.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    here = load(".")
    monkeypatch.chdir(study.parent)
    assert_frame_equal(load("ladder").runs, here.runs)
    assert_frame_equal(load(".").curves, here.curves)


def test_an_attempt_from_the_start_repeats_step_0(out: epath.Path) -> None:
    for _ in range(2):
        run = begun(out, "aaa")
        run.append([ZERO, row(10)])
        run.flush()
    write_study(out, "ladder", "", [], {"a": "aaa"})
    curves = load(out).curves
    assert curves.select("attempt", "step").rows() == [(2, 0), (2, 10)]


def test_an_attempt_without_rows_supersedes_nothing(study: epath.Path) -> None:
    before = load(study).curves
    begun(study.parent, "aaa")
    assert_frame_equal(load(study).curves, before)


def test_running_is_believed_while_somebody_writes(study: epath.Path) -> None:
    begun(study.parent, "aaa")
    assert load(study).runs["status"].to_list() == ["stale", "diverged"]
    with FolderLock(study.parent):
        assert load(study).runs["status"].to_list() == ["running", "diverged"]


def test_runs_that_never_started_are_queued(study: epath.Path) -> None:
    out = study.parent
    write_study(out, "ladder", "", [], {"c": "ccc", "b": "bbb", "d": "ddd"})
    records = load(study)
    assert records.runs.select("name", "status").rows() == [
        ("c", "queued"),
        ("b", "diverged"),
        ("d", "queued"),
    ]
    assert set(records.curves["run_id"]) == {"bbb"}
    write_study(out, "ladder", "", [], {"c": "ccc"})
    assert load(study).curves.is_empty()
    assert dict(load(study).curves.schema) == {n: DTYPES[k] for n, k in CURVE_COLUMNS.items()}


def test_a_run_of_two_studies_is_one_run(study: epath.Path) -> None:
    out = study.parent
    write_study(out, "seeds", "", [], {"again": "bbb", "new": "ccc"})
    runs = load(out).runs
    assert runs.select("study", "name").rows() == [
        ("ladder", "a"),
        ("ladder", "b"),
        ("seeds", "new"),
    ]
    assert load(out / "seeds").runs["name"].to_list() == ["again", "new"]


def test_a_curve_may_be_compacted_while_it_is_read(
    study: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load(study).curves
    listed = folders.segments

    def late(curve: epath.Path) -> list[Segment]:
        monkeypatch.setattr(folders, "segments", listed)
        gone = Segment(curve / "001-00009-0a1b2c.parquet", 1, "00009", "0a1b2c")
        return [*listed(curve), gone]

    monkeypatch.setattr(folders, "segments", late)
    assert_frame_equal(load(study).curves, before)


def test_columns_of_a_later_version_are_passed_over(study: epath.Path) -> None:
    before = load(study).curves
    path = segment(study.parent, "bbb", "001-00000")
    later = io.BytesIO()
    pl.read_parquet(path.read_bytes()).with_columns(later=1).write_parquet(later)
    path.unlink()
    (path.parent / f"001-00000-{digest(later.getvalue())}.parquet").write_bytes(later.getvalue())
    assert_frame_equal(load(study).curves, before)


@pytest.mark.parametrize("runs", [None, [], {"a": 1}])
def test_a_study_without_names(study: epath.Path, runs: object) -> None:
    write_record(study / "study.json", {"runs": runs})
    assert "does not name its runs" in fault(study)


def test_folders_without_anything(out: epath.Path) -> None:
    assert "There is no" in fault(out)
    out.mkdir()
    assert "holds neither study.json nor studies" in fault(out)
    write_study(out, "ladder", "", [], {})
    assert "declares no run" in fault(out / "ladder")


def test_a_lost_config_is_named(study: epath.Path) -> None:
    (study.parent / "aaa" / "config.json").unlink()
    with pytest.raises(RequestError, match=r"aaa/config\.json"):
        load(study)


def test_a_folder_that_may_not_be_read(out: epath.Path) -> None:
    def denied(original, path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    out.mkdir()
    with epath_testing.mock_epath(listdir=denied):
        assert fault(out) == f"Cannot read {out}: Permission denied."


def test_side_tables_go_with_their_windows(out: epath.Path) -> None:
    first = begun(out, "aaa")
    first.append([row(10, noise=[noise(), noise(part="head")]), row(20, noise=[noise(small=3.0)])])
    first.flush()
    second = begun(out, "aaa", resumed_at=10)
    second.append([row(20, noise=[noise(small=4.0)]), row(30)])
    second.finish("done")
    other = begun(out, "bbb")
    other.append([row(10)])
    other.finish("done")
    write_study(out, "ladder", "", [], {"a": "aaa", "b": "bbb"})
    found = load(out).noise
    assert dict(found.schema) == {n: DTYPES[k] for n, k in NOISE_COLUMNS.items()}
    assert found.select(
        "run_id", "attempt", "step_start", "step", "part", "grad_sq_small"
    ).rows() == [
        ("aaa", 1, 0, 10, "total", 2.0),
        ("aaa", 1, 0, 10, "head", 2.0),
        ("aaa", 2, 10, 20, "total", 4.0),
    ]
    assert "noise" not in load(out).curves.columns


def test_side_rows_whose_window_was_not_written_do_not_count(out: epath.Path) -> None:
    """A kill between the two files of a flush."""
    run = begun(out, "aaa")
    run.append([row(10, noise=[noise()]), row(20, noise=[noise()])])
    run.flush()
    segment(out, "aaa", "001-00000").unlink()
    write_study(out, "ladder", "", [], {"a": "aaa"})
    assert load(out).noise.is_empty()


def test_what_lies_in_a_folder_of_another_run_is_refused(study: epath.Path) -> None:
    out = study.parent
    for name in ("config", "status"):
        mine, theirs = (out / run / f"{name}.json" for run in ("aaa", "bbb"))
        whole = mine.read_bytes()
        mine.write_bytes(theirs.read_bytes())
        with pytest.raises(RequestError, match=rf"aaa/{name}\.json is of run 'bbb'"):
            load(study)
        mine.write_bytes(whole)
    stray = segment(out, "bbb", "001-00000")
    (out / "aaa" / "curve" / stray.name).write_bytes(stray.read_bytes())
    with pytest.raises(RequestError, match=rf"aaa/curve/{stray.name} holds rows of another run"):
        load(study)


def test_a_row_that_two_segments_hold_is_one_row(
    out: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket may keep what it said it had not taken; the rows then come again with others."""
    run = begun(out, "aaa")
    run.append([row(10, noise=[noise()])])

    def deceive(path: epath.Path, data: bytes) -> None:
        write_atomic(path, data)
        raise WorkError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(segments, "write_atomic", deceive)
        with pytest.raises(WorkError, match="no answer"):
            run.flush()
    run.append([row(20, noise=[noise()])])
    run.flush()
    assert len(list((out / "aaa" / "noise").glob("001-00000-*"))) == 2
    write_study(out, "ladder", "", [], {"a": "aaa"})
    records = load(out)
    assert sorted(records.curves["step"]) == [10, 20] == sorted(records.noise["step"])
