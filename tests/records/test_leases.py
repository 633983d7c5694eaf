from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from etils import epath

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.records import leases
from scaling_jax.records.files import read_record, write_record
from scaling_jax.records.leases import Lease, is_leased


@pytest.fixture
def path(tmp_path: Path) -> epath.Path:
    return epath.Path(tmp_path) / ".lock"


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("RENEW_S", 0.05), ("LEASE_S", 0.4), ("_SETTLE_S", 0.02)):
        monkeypatch.setattr(leases, name, seconds)


def taken(path: epath.Path) -> Lease:
    lease = Lease(path)
    lease.take()
    return lease


def until(true) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_lease_is_renewed_and_ends_when_left(path: epath.Path) -> None:
    lease = taken(path)
    beat = read_record(path)["beat"]
    until(lambda: read_record(path)["beat"] > beat + 1)
    assert is_leased(path)
    assert lease.lost() is None
    lease.leave()
    assert not path.exists()
    assert not is_leased(path)


def test_a_second_is_told_who_writes(path: epath.Path, capsys: pytest.CaptureFixture[str]) -> None:
    lease = taken(path)
    with pytest.raises(RequestError, match=rf"writes in {path.parent} \(pid {os.getpid()} on .*"):
        Lease(path).take()
    assert re.fullmatch(
        rf"scaling-jax: waiting up to 0 s to see whether pid {os.getpid()} on .+\n",
        capsys.readouterr().err,
    )
    lease.leave()
    taken(path).leave()


def kill(lease: Lease) -> None:
    """As a process that is killed leaves it: there, and never renewed."""
    lease._ended.set()
    lease._thread.join()


@pytest.mark.parametrize("jump", [0.0, 1e9, -1e9])
def test_a_dead_process_holds_nothing_whatever_the_clocks_say(
    path: epath.Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    kill(taken(path))
    monkeypatch.setattr(leases.time, "time", lambda: 1e9 + jump)
    taken(path).leave()
    assert not path.exists()


def test_one_that_was_asleep_learns_that_it_lost_it(path: epath.Path) -> None:
    asleep = taken(path)
    write_record(path, read_record(path) | {"holder": "other", "pid": 7, "host": "there"})
    until(lambda: asleep.lost() is not None)
    assert re.match(rf"pid 7 on there, since .* took over {path.parent}", asleep.lost() or "")
    asleep.leave()
    assert read_record(path)["holder"] == "other", "what is not one's own is left"


def test_of_two_at_once_one_holds_it(path: epath.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other writes while the first one waits to find its own."""

    def sleep(seconds: float) -> None:
        write_record(path, read_record(path) | {"holder": "other"})

    lease = Lease(path)
    with monkeypatch.context() as patch:
        patch.setattr(leases.time, "sleep", sleep)
        with pytest.raises(RequestError, match="Another process writes"):
            lease.take()


def test_a_bucket_that_fails_for_a_while_loses_nothing_and_for_long_all(
    path: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = taken(path)
    beat = read_record(path)["beat"]
    whole, calls = leases.write_record, []

    def sometimes(path: epath.Path, doc: dict[str, object]) -> None:
        calls.append(doc)
        if len(calls) < 3:
            raise WorkError("no answer")
        whole(path, doc)

    monkeypatch.setattr(leases, "LEASE_S", 60.0)
    monkeypatch.setattr(leases, "write_record", sometimes)
    until(lambda: read_record(path)["beat"] > beat + 3)
    assert lease.lost() is None

    def never(path: epath.Path, doc: dict[str, object]) -> None:
        raise WorkError("no answer")

    monkeypatch.setattr(leases, "LEASE_S", 0.2)
    monkeypatch.setattr(leases, "write_record", never)
    until(lambda: lease.lost() is not None)
    assert "could not be renewed for 0 s" in (lease.lost() or "")
    lease.leave()


def test_a_damaged_lease_is_nobodys(path: epath.Path) -> None:
    kill(taken(path))
    path.write_bytes(path.read_bytes()[:30])
    assert not is_leased(path)
    taken(path).leave()


def test_an_old_lease_is_no_sign_of_life(path: epath.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    kill(taken(path))
    assert is_leased(path)
    for away in (-400.0, 400.0):
        monkeypatch.setattr(leases.time, "time", lambda away=away: now + away)
        assert not is_leased(path)
