"""Requests to stop: written whole, read many at once, and refused by name where they are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from etils import epath

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.records.files import write_record
from scaling_jax.records.locks import FolderLock
from scaling_jax.records.requests import (
    STOP_FILE,
    StopRequest,
    ask_to_stop,
    requests_beside,
    stop_requests,
)
from scaling_jax.records.status import end_early, run_status
from scaling_jax.records.writer import write_study
from tests.records.object_stores import folder_of_test, serving_bucket
from tests.records.runs import begun

ASKED = ("l_ns", "the rule", "alpha_N would move by at most 1 %")


@pytest.fixture
def runs(out: epath.Path) -> epath.Path:
    for seed, run_id in enumerate(("aaa", "bbb", "ccc")):
        begun(out, run_id, seed=seed)
    return out


def test_what_was_asked_is_read_of_many_runs(runs: epath.Path) -> None:
    assert stop_requests(runs, ["aaa", "bbb", "ccc", "never"]) == {}
    assert ask_to_stop(runs, "bbb", *ASKED)
    (found,) = stop_requests(runs, ["aaa", "bbb", "ccc", "never"]).values()
    assert found[:4] == ("bbb", *ASKED)
    assert found.asked_at.endswith("+00:00")
    assert stop_requests(runs, ["aaa"]) == {}


def test_the_first_request_stands(runs: epath.Path) -> None:
    assert ask_to_stop(runs, "aaa", *ASKED)
    assert not ask_to_stop(runs, "aaa", "l_nd", "another", "another")
    assert stop_requests(runs, ["aaa"])["aaa"].law == "l_ns"


def test_a_run_that_was_never_begun_is_not_asked(runs: epath.Path) -> None:
    with pytest.raises(RequestError, match="no run never that was begun"):
        ask_to_stop(runs, "never", *ASKED)
    assert not (runs / "never").exists()


def test_a_disk_that_refuses_is_named(runs: epath.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scaling_jax.records.files.os.fsync", full)
    with pytest.raises(WorkError, match=rf"Could not write .*{STOP_FILE}: No space left"):
        ask_to_stop(runs, "aaa", *ASKED)
    assert stop_requests(runs, ["aaa"]) == {}


def _edited(path: Path) -> None:
    path.write_text(path.read_text().replace("1 %", "9 %"))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def _moved(path: Path) -> None:
    path.rename(path.parents[1] / "bbb" / path.name)


def _by_hand(path: Path) -> None:
    path.write_text("please")


def _without_reason(path: Path) -> None:
    doc = StopRequest("aaa", *ASKED, "now")._asdict()
    del doc["reason"]
    write_record(epath.Path(path), doc)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_edited, "is no whole request to stop: it is damaged or was edited"),
        (_cut, "is no whole request to stop"),
        (_by_hand, "is no whole request to stop"),
        (_moved, "bbb/stop.json asks run aaa to stop, and was moved here"),
        (_without_reason, "is no request to stop"),
    ],
)
def test_what_is_no_request_is_refused_by_name(runs: epath.Path, spoil, says: str) -> None:
    ask_to_stop(runs, "aaa", *ASKED)
    spoil(Path(runs) / "aaa" / STOP_FILE)
    with pytest.raises(RequestError, match=says) as refused:
        stop_requests(runs, ["aaa", "bbb"])
    assert f"{STOP_FILE}" in str(refused.value) and "Remove it, and the run goes on" in str(
        refused.value
    )


def test_a_request_of_another_format_is_refused(runs: epath.Path) -> None:
    ask_to_stop(runs, "aaa", *ASKED)
    path = runs / "aaa" / STOP_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(RequestError, match="of format 99"):
        stop_requests(runs, ["aaa"])


def test_a_run_that_nobody_trains_is_stopped(runs: epath.Path) -> None:
    before = run_status(runs, "aaa")
    assert before is not None
    with FolderLock(runs):
        end_early(runs, "aaa", "a reason")
    assert run_status(runs, "aaa") == before | {"status": "stopped", "message": "a reason"}


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_requests_in_a_bucket(scheme: str, request: pytest.FixtureRequest) -> None:
    with serving_bucket(scheme, "scaling") as store:
        runs = folder_of_test(store, "scaling", request)
        for run_id in ("aaa", "bbb"):
            begun(runs, run_id)
        assert ask_to_stop(runs, "bbb", *ASKED) and not ask_to_stop(runs, "bbb", *ASKED)
        found = stop_requests(runs, ["aaa", "bbb", *(f"never{i}" for i in range(30))])
        assert list(found) == ["bbb"]
        (runs / "bbb" / STOP_FILE).unlink()
        assert stop_requests(runs, ["bbb"]) == {}


def test_requests_are_found_beside_a_study_and_among_studies(
    runs: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(runs, "small", "", [], {"one": "aaa", "two": "bbb"})
    ask_to_stop(runs, "aaa", *ASKED)
    for source in (runs, runs / "small"):
        assert list(requests_beside(str(source), ["aaa", "bbb"])) == ["aaa"]
    monkeypatch.chdir(runs / "small")
    assert list(requests_beside(".", ["aaa", "bbb"])) == ["aaa"]
    assert requests_beside(str(runs / "table.csv"), ["aaa"]) == {}
