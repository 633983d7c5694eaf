from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from etils import epath

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.records import files, writer
from scaling_jax.records.status import run_status
from scaling_jax.records.writer import RunWriter
from tests.records.one_run import CONFIG, HERE, RUN, begun, files_of, row, status_of, steps


@pytest.fixture
def out(tmp_path: Path) -> epath.Path:
    return epath.Path(tmp_path)


def test_attempts_count_up_and_keep_what_was_there(out: epath.Path) -> None:
    first = begun(out)
    first.append([row(10)])
    first.flush()
    second = RunWriter(out, RUN)
    assert second.begin(CONFIG, HERE | {"device": "gpu"}, steps=100) == 2
    second.append([row(10)])
    second.finish("done")
    assert steps(out) == [(1, 10), (2, 10)]
    assert status_of(out)["environment"]["device"] == "gpu"


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
    placed = {"mesh": {"data": 8}, "engine": {"feed": "host"}}
    moved = {"config": CONFIG["config"] | placed, "row": other_machine}
    assert RunWriter(out, RUN).begin(moved, HERE, steps=100) == 2
    assert files.read_record(out / RUN / "config.json")["config"] == CONFIG["config"]
    read = {"data": {"source": "a.jsonl"}, "evaluation": {"corpora": {"law": "/law"}}}
    elsewhere = {
        "config": CONFIG["config"] | read,
        "row": CONFIG["row"] | {"data_source": "a.jsonl"},
    }
    assert RunWriter(out, RUN).begin(elsewhere, HERE, steps=100) == 3
    changed = {**CONFIG, "row": CONFIG["row"] | {"seed": 1}}
    with pytest.raises(RequestError, match=r"config\.json is of another run .* in row\.seed\."):
        RunWriter(out, RUN).begin(changed, HERE, steps=100)


def test_a_damaged_status_is_named(out: epath.Path) -> None:
    begun(out)
    path = out / RUN / "status.json"
    path.write_bytes(path.read_bytes()[:20])
    for ask in (lambda: run_status(out, RUN), lambda: begun(out)):
        with pytest.raises(RequestError, match=r"status\.json .* Remove it"):
            ask()


def test_a_run_whose_config_was_removed_is_begun_again(out: epath.Path) -> None:
    begun(out).finish("done")
    (out / RUN / "config.json").unlink()
    assert run_status(out, RUN) is None
    assert RunWriter(out, RUN).begin(CONFIG, HERE, steps=100) == 2


def test_failures_are_kept_with_their_reasons(out: epath.Path) -> None:
    begun(out).finish("interrupted", "stopped by SIGTERM")
    for step in (10, 20):
        run = begun(out)
        run.append([row(step)])
        run.finish("failed", f"out of memory at {step}")
    begun(out)
    assert status_of(out)["status"] == "running"
    assert status_of(out)["failures"] == [
        {"attempt": 2, "step": 10, "message": "out of memory at 10"},
        {"attempt": 3, "step": 20, "message": "out of memory at 20"},
    ]


def test_every_flush_is_a_heartbeat(out: epath.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(out)
    for now in (2e9, 1e9):  # a clock may jump back
        monkeypatch.setattr(writer.time, "time", lambda now=now: now)
        run.flush()
        assert status_of(out)["heartbeat"] == now


def test_an_attempt_that_goes_on_says_from_where(out: epath.Path) -> None:
    first = begun(out)
    first.append([row(10), row(20), row(30)])
    first.flush()
    second = RunWriter(out, RUN)
    assert second.begin(CONFIG, HERE, steps=100, resumed_at=25) == 2
    assert (status_of(out)["resumed_at"], status_of(out)["step"]) == (25, 25)
    second.append([row(30)])
    second.finish("done")
    assert status_of(out)["step"] == 30


def test_an_attempt_that_would_leave_a_hole_is_refused(out: epath.Path) -> None:
    """The checkpoint is newer than the rows that reached the disk."""
    first = begun(out)
    first.append([row(10)])
    first.flush()
    second = RunWriter(out, RUN)
    second.begin(CONFIG, HERE, steps=100, resumed_at=25)
    with pytest.raises(WorkError, match=rf"{RUN} holds no whole rows of steps 10 to 20"):
        second.append([row(30)])


def test_a_folder_that_vanishes_is_not_made_anew_without_its_config(out: epath.Path) -> None:
    run = begun(out)
    run.append([row(10)])
    (out / RUN).rmtree()
    with pytest.raises(WorkError, match=f"{RUN} has vanished"):
        run.flush()
    run.finish("failed", "the folder has vanished")
    assert not (out / RUN).exists()
