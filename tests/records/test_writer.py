from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from etils import epath

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.records import files, writer
from scaling_jax.records import segments as segments_module
from scaling_jax.records.schema import CURVE_COLUMNS, NOISE_COLUMNS
from scaling_jax.records.segments import segments
from scaling_jax.records.status import run_status
from scaling_jax.records.writer import RunWriter, write_study
from tests.records.one_run import CONFIG, HERE, RUN, begun, files_of, row, status_of, steps
from tests.records.runs import noise, segment


@pytest.fixture
def out(tmp_path: Path) -> epath.Path:
    return epath.Path(tmp_path)


def test_begin_writes_what_the_run_is_and_that_it_runs(
    out: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer.time, "time", lambda: 1e9)
    assert RunWriter(out, RUN).begin(CONFIG, HERE, steps=100) == 1
    assert files.read_record(out / RUN / "config.json") == {"run_id": RUN} | CONFIG
    assert status_of(out) == {
        "run_id": RUN,
        "status": "running",
        "attempt": 1,
        "resumed_at": None,
        "step": 0,
        "steps": 100,
        "message": "",
        "failures": [],
        "environment": HERE,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "heartbeat": 1e9,
    }


def test_no_status_before_the_first_start(out: epath.Path) -> None:
    assert run_status(out, RUN) is None


def test_segments_hold_the_schema_with_nulls_and_raw_infinities(out: epath.Path) -> None:
    run = begun(out)
    run.append([row(10, train_loss=np.float32("nan"), grad_sq_big=float("inf"))])
    run.append([row(20, train_loss=np.float32(2.5), val_loss=2.25, tokens=np.int32(7))])
    run.flush()
    table = pq.read_table(os.fspath(segment(out, RUN, "001-00000")))
    assert table.column_names == list(CURVE_COLUMNS)
    assert {str(kind) for kind in table.schema.types} == {"int64", "double", "string"}
    first, second = table.to_pylist()
    assert np.isnan(first["train_loss"])
    assert first["grad_sq_big"] == float("inf")
    assert first["val_loss"] is None
    assert (second["train_loss"], second["val_loss"], second["tokens"]) == (2.5, 2.25, 7)
    assert (second["run_id"], second["attempt"]) == (RUN, 1)


def test_nothing_is_on_the_disk_before_a_flush(out: epath.Path) -> None:
    run = begun(out)
    run.append([row(10)])
    assert not segments(out / RUN / "curve")
    run.flush()
    run.flush()
    assert files_of(out) == ["001-00000.parquet"], "an empty flush writes no segment"
    assert status_of(out)["step"] == 10


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([row(10, loss=1.0)], ValueError, r"no column \['loss'\] in curve"),
        ([row(10, run_id="another")], ValueError, "another"),
        ([row(10), row(10)], ValueError, "after step 10"),
        ([{"step": 10}], ValueError, "None..10"),
        ([row(10, tokens=3.7)], TypeError, "integer"),
        ([row(10, train_loss="low")], ValueError, "low"),
    ],
)
def test_a_faulty_row_is_a_fault_of_the_trainer(
    out: epath.Path, rows: list[dict[str, Any]], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        begun(out).append(rows)


def test_steps_go_on_across_flushes(out: epath.Path) -> None:
    run = begun(out)
    run.append([{"step_start": 0, "step": 0, "val_loss": 5.5}, row(10)])
    run.flush()
    with pytest.raises(ValueError, match="after step 10"):
        run.append([row(10)])


def test_finish_compacts_and_says_how_it_ended(out: epath.Path) -> None:
    run = begun(out)
    for step in (10, 20, 30):
        run.append([row(step)])
        run.flush()
    run.append([row(40)])
    run.finish("diverged", "loss is not finite at step 40", compile_s=1.5, wall_s=np.float64(2.0))
    assert files_of(out) == ["001-all.parquet"]
    assert steps(out) == [(1, 10), (1, 20), (1, 30), (1, 40)]
    status = run_status(out, RUN)
    assert status is not None
    assert (status["status"], status["step"], status["wall_s"]) == ("diverged", 40, 2.0)
    assert status["message"] == "loss is not finite at step 40"


def test_one_segment_is_one_file_already(out: epath.Path) -> None:
    run = begun(out)
    run.append([row(10)])
    run.finish("done")
    assert files_of(out) == ["001-00000.parquet"]


def test_what_is_finished_stays(out: epath.Path) -> None:
    run = begun(out)
    run.finish("done")
    run.finish("failed", "something after it")
    assert status_of(out)["status"] == "done"
    with pytest.raises(ValueError, match="finished"):
        run.append([row(10)])


@pytest.mark.parametrize("status", ["finished", "running", "stale", "queued"])
def test_a_run_does_not_end_in_any_word(out: epath.Path, status: str) -> None:
    with pytest.raises(ValueError, match=f"no run ends '{status}'"):
        begun(out).finish(status)


def test_a_run_is_begun_first(out: epath.Path) -> None:
    for act in (RunWriter(out, RUN).flush, lambda: RunWriter(out, RUN).finish("done")):
        with pytest.raises(ValueError, match="not begun"):
            act()


def test_side_rows_lie_beside_the_curve_and_live_as_it_does(out: epath.Path) -> None:
    run = begun(out)
    run.append([row(10, noise=[noise(), noise(part="head", small=3.0)]), row(20)])
    run.flush()
    assert files_of(out, "noise") == ["001-00000.parquet"]
    table = pq.read_table(os.fspath(segment(out, RUN, "001-00000", "noise")))
    assert table.column_names == list(NOISE_COLUMNS)
    first, second = table.to_pylist()
    place = {"run_id": RUN, "attempt": 1, "step_start": 0, "step": 10}
    assert first.items() >= (place | noise()).items()
    assert second.items() >= (place | {"part": "head", "grad_sq_small": 3.0}).items()
    run.append([row(30, noise=[noise()])])
    run.finish("done")
    assert files_of(out, "noise") == files_of(out) == ["001-all.parquet"]


def test_a_faulty_side_row_is_a_fault_of_the_trainer(out: epath.Path) -> None:
    with pytest.raises(ValueError, match=r"no column \['loss'\] in noise"):
        begun(out).append([row(10, noise=[noise() | {"loss": 1.0}])])


class Crash(BaseException):
    """A kill: from then on nothing reaches the disk."""


@pytest.mark.parametrize("at", range(20))
def test_a_crash_anywhere_in_finish_loses_and_repeats_nothing(
    out: epath.Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The kill falls before act `at // 2` on the disk, or (odd) right after it."""
    run = begun(out)
    for step in (10, 20, 30):
        run.append([row(step, noise=[noise()])])
        run.flush()
    acts, killed = 0, False

    def mortal(act):
        def wrapped(*args, **kwargs):
            nonlocal acts, killed
            killed = killed or at == 2 * acts
            if killed:
                raise Crash
            act(*args, **kwargs)
            killed = at == 2 * acts + 1
            acts += 1
            if killed:
                raise Crash

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", mortal(os.replace))
        patch.setattr(type(out), "unlink", mortal(type(out).unlink))
        if at < 2 * 9:  # the status, and twice one file and three pieces
            with pytest.raises(Crash):
                run.finish("done")
        else:
            run.finish("done")
            assert files_of(out) == ["001-all.parquet"]
    assert steps(out) == [(1, 10), (1, 20), (1, 30)]
    second = begun(out)
    second.append([row(40)])
    second.finish("done")
    assert steps(out) == [(1, 10), (1, 20), (1, 30), (2, 40)]
    assert not [name for name in files_of(out) if name.startswith(".")]


def full_disk(fd: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_what_was_flushed_and_what_was_not(
    out: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(out)
    run.append([row(10)])
    run.flush()
    run.append([row(20)])
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full_disk)
        with pytest.raises(WorkError, match=r"001-00001-[0-9a-f]{12}\.parquet: No space left"):
            run.flush()
    assert files_of(out) == ["001-00000.parquet"]
    assert status_of(out)["step"] == 10
    run.finish("done")
    assert steps(out) == [(1, 10), (1, 20)]


def test_a_full_disk_while_compacting_leaves_the_run_done(
    out: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(out)
    for step in (10, 20):
        run.append([row(step)])
        run.flush()
    whole = files.write_atomic

    def full(path: epath.Path, data: bytes) -> None:
        if "all" in path.name:
            raise WorkError(f"Could not write {path}")
        whole(path, data)

    monkeypatch.setattr(segments_module, "write_atomic", full)
    with pytest.raises(WorkError, match="001-all"):
        run.finish("done")
    run.finish("failed", "as a caller does who caught it")
    assert status_of(out)["status"] == "done"
    assert steps(out) == [(1, 10), (1, 20)]


def test_a_failure_that_the_disk_does_not_take_is_not_raised_on(
    out: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(out)
    run.append([row(10)])
    run.flush()
    run.append([row(20)])
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full_disk)
        with pytest.raises(WorkError, match="No space left"):
            run.finish("done")
        run.finish("failed", "the disk is full")
    assert status_of(out)["status"] == "running", "readers find it stale"
    assert steps(out) == [(1, 10)]
    assert begun(out)


def test_a_study_keeps_the_order_of_its_runs(out: epath.Path) -> None:
    write_study(out, "ladder", "A claim.", ["l_ns"], {"big": "b", "a small one": "a"})
    doc = files.read_record(out / "ladder" / "study.json")
    assert list(doc["runs"].items()) == [("big", "b"), ("a small one", "a")]
    assert (doc["study"], doc["description"], doc["laws"]) == ("ladder", "A claim.", ["l_ns"])


def test_a_study_is_not_written_inside_a_study(out: epath.Path) -> None:
    write_study(out, "ladder", "", [], {"a": "a"})
    with pytest.raises(RequestError, match=rf"ladder is itself the folder of a study.* {out}\."):
        write_study(out / "ladder", "ladder", "", [], {"a": "a"})


def test_a_damaged_study_is_written_anew_and_a_foreign_one_left(out: epath.Path) -> None:
    write_study(out, "ladder", "", [], {"a": "a"})
    path = out / "ladder" / "study.json"
    path.write_bytes(path.read_bytes()[:-9])
    write_study(out, "ladder", "", [], {"a": "b"})
    assert files.read_record(path)["runs"] == {"a": "b"}
    files.write_json(path, {"format": 7})
    with pytest.raises(RequestError, match=r"study\.json is of format 7"):
        write_study(out, "ladder", "", [], {"a": "c"})
    assert files.read_json(path) == {"format": 7}
