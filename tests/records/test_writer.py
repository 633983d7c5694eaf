from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from etils import epath

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.records import files, writer
from scaling_jax.records.schema import CURVE_COLUMNS
from scaling_jax.records.writer import RunWriter, run_status, segments, write_study

RUN = "0123456789ab"
HERE = {"versions": "jax 1", "device": "cpu", "mesh": "data=1"}
CONFIG: dict[str, Any] = {
    "config": {"steps": 100, "mesh": {"data": None}},
    "row": {"run_id": RUN, "seed": 0, "bigram_nats": 2.41},
}


@pytest.fixture
def out(tmp_path: Path) -> epath.Path:
    return epath.Path(tmp_path)


def row(step: int, **others: Any) -> dict[str, Any]:
    return {"step_start": step - 10, "step": step, "tokens": 512 * step} | others


def begun(out: epath.Path) -> RunWriter:
    run = RunWriter(out, RUN)
    run.begin(CONFIG, HERE, steps=100)
    return run


def steps(out: epath.Path) -> list[tuple[int, int]]:
    """(attempt, step) of every row that a reader finds."""
    found = []
    for _, path in segments(out / RUN / "curve"):
        table = pq.read_table(os.fspath(path))
        found += zip(table["attempt"].to_pylist(), table["step"].to_pylist(), strict=True)
    return found


def files_of(out: epath.Path) -> list[str]:
    return sorted(path.name for path in (out / RUN / "curve").iterdir())


def test_begin_writes_what_the_run_is_and_that_it_runs(out: epath.Path) -> None:
    assert RunWriter(out, RUN).begin(CONFIG, HERE, steps=100) == 1
    assert files.read_json(out / RUN / "config.json") == {"format": 1, "run_id": RUN} | CONFIG
    assert run_status(out, RUN) == {
        "format": 1,
        "status": "running",
        "attempt": 1,
        "step": 0,
        "steps": 100,
        "message": "",
        "environment": HERE,
    }


def test_no_status_before_the_first_start(out: epath.Path) -> None:
    assert run_status(out, RUN) is None


def test_segments_hold_the_schema_with_nulls_and_raw_infinities(out: epath.Path) -> None:
    run = begun(out)
    run.append([row(10, train_loss=np.float32("nan"), grad_sq_big=float("inf"))])
    run.append([row(20, train_loss=np.float32(2.5), val_loss=2.25, tokens=np.int32(7))])
    run.flush()
    table = pq.read_table(os.fspath(out / RUN / "curve" / "001-00000.parquet"))
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
    assert run_status(out, RUN)["step"] == 10  # type: ignore[index]


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([row(10, loss=1.0)], ValueError, "no curve column"),
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
    assert run_status(out, RUN)["status"] == "done"  # type: ignore[index]
    with pytest.raises(ValueError, match="finished"):
        run.append([row(10)])


def test_an_unknown_status_is_a_fault(out: epath.Path) -> None:
    with pytest.raises(ValueError, match="no status 'finished'"):
        begun(out).finish("finished")


def test_a_run_is_begun_first(out: epath.Path) -> None:
    for act in (RunWriter(out, RUN).flush, lambda: RunWriter(out, RUN).finish("done")):
        with pytest.raises(ValueError, match="not begun"):
            act()


def test_attempts_count_up_and_keep_what_was_there(out: epath.Path) -> None:
    first = begun(out)
    first.append([row(10)])
    first.flush()
    second = RunWriter(out, RUN)
    assert second.begin(CONFIG, HERE | {"device": "gpu"}, steps=100) == 2
    second.append([row(10)])
    second.finish("done")
    assert steps(out) == [(1, 10), (2, 10)]
    assert run_status(out, RUN)["environment"]["device"] == "gpu"  # type: ignore[index]


def test_attempts_count_up_though_the_status_is_lost(out: epath.Path) -> None:
    run = begun(out)
    run.append([row(10)])
    run.flush()
    (out / RUN / "status.json").unlink()
    assert RunWriter(out, RUN).begin(CONFIG, HERE, steps=100) == 2


def test_begin_clears_what_a_killed_process_had_begun_to_write(out: epath.Path) -> None:
    run = begun(out)
    run.append([row(10)])
    run.flush()
    for folder in (out / RUN, out / RUN / "curve"):
        (folder / ".status.json.00000000.tmp").write_text("{")
    begun(out)
    assert files_of(out) == ["001-00000.parquet"]
    assert not list((out / RUN).glob(".*.tmp"))


def test_a_run_may_move_but_not_change(out: epath.Path) -> None:
    begun(out)
    other_machine = CONFIG["row"] | {"bigram_nats": np.nextafter(2.41, 3)}
    moved = {"config": {"steps": 100, "mesh": {"data": 8}}, "row": other_machine}
    assert RunWriter(out, RUN).begin(moved, HERE, steps=100) == 2
    assert files.read_json(out / RUN / "config.json")["config"] == CONFIG["config"]
    changed = {**CONFIG, "row": CONFIG["row"] | {"seed": 1}}
    with pytest.raises(ValueError, match=r"another row\.seed$"):
        RunWriter(out, RUN).begin(changed, HERE, steps=100)


def test_a_cut_status_is_named(out: epath.Path) -> None:
    begun(out)
    path = out / RUN / "status.json"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(RequestError, match=r"status\.json"):
        run_status(out, RUN)
    with pytest.raises(RequestError, match=r"status\.json"):
        begun(out)


class Crash(BaseException):
    """A kill: from then on nothing reaches the disk."""


@pytest.mark.parametrize("at", range(12))
def test_a_crash_anywhere_in_finish_loses_and_repeats_nothing(
    out: epath.Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The kill falls before act `at // 2` on the disk, or (odd) right after it."""
    run = begun(out)
    for step in (10, 20, 30):
        run.append([row(step)])
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
        if at < 2 * 5:  # the status, the one file, three pieces
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


def test_a_full_disk_keeps_what_was_flushed_and_what_was_not(
    out: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(out)
    run.append([row(10)])
    run.flush()
    run.append([row(20)])

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(WorkError, match=r"001-00001\.parquet: No space left"):
            run.flush()
    assert files_of(out) == ["001-00000.parquet"]
    assert run_status(out, RUN)["step"] == 10  # type: ignore[index]
    run.finish("done")
    assert steps(out) == [(1, 10), (1, 20)]


def test_a_full_disk_while_compacting_leaves_the_run_done(
    out: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(out)
    for step in (10, 20):
        run.append([row(step)])
        run.flush()
    whole = writer.write_atomic

    def full(path: epath.Path, data: bytes) -> None:
        if "all" in path.name:
            raise WorkError(f"Could not write {path}")
        whole(path, data)

    monkeypatch.setattr(writer, "write_atomic", full)
    with pytest.raises(WorkError, match="001-all"):
        run.finish("done")
    run.finish("failed", "as a caller does who caught it")
    assert run_status(out, RUN)["status"] == "done"  # type: ignore[index]
    assert steps(out) == [(1, 10), (1, 20)]


def test_a_study_keeps_the_order_of_its_runs(out: epath.Path) -> None:
    write_study(out, "ladder", "A claim.", ["l_ns"], {"big": "b", "a small one": "a"})
    doc = files.read_record(out / "ladder" / "study.json")
    assert list(doc["runs"].items()) == [("big", "b"), ("a small one", "a")]
    assert (doc["study"], doc["description"], doc["laws"]) == ("ladder", "A claim.", ["l_ns"])


def test_segments_pass_over_pieces_and_strangers(out: epath.Path) -> None:
    curve = out / "curve"
    curve.mkdir()
    for name in (
        "001-00000.parquet",
        "001-00001.parquet",
        "001-all.parquet",
        "002-00001.parquet",
        "002-00000.parquet",
        ".002-all.parquet.00000000.tmp",
        "notes.parquet",
    ):
        (curve / name).write_text("")
    assert [(attempt, path.name) for attempt, path in segments(curve)] == [
        (1, "001-all.parquet"),
        (2, "002-00000.parquet"),
        (2, "002-00001.parquet"),
    ]
    assert segments(out / "absent") == []
