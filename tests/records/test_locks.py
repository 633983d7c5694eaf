from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from etils import epath

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.records import locks
from scaling_jax.records.locks import FolderLock, is_locked

HOLDER = """
import sys
from etils import epath
from scaling_jax.records.locks import FolderLock
with FolderLock(epath.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
print("let go", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def folder(tmp_path: Path) -> epath.Path:
    return epath.Path(tmp_path)


@pytest.fixture
def holder(folder: epath.Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, os.fspath(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def names(folder: epath.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_process_is_told_who_writes(
    folder: epath.Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_PATIENCE_S", 0.05)
    assert is_locked(folder)
    with (
        pytest.raises(RequestError, match=rf"pid {holder.pid} on .+, since 20"),
        FolderLock(folder),
    ):
        pass
    assert is_locked(folder), "asking must not disturb the holder"
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "let go\n"
    assert not is_locked(folder)
    assert (folder / ".lock").read_text() == ""
    with FolderLock(folder):
        assert is_locked(folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_ends_with_its_process(
    folder: epath.Path, holder: subprocess.Popen[str], number: signal.Signals
) -> None:
    holder.send_signal(number)
    holder.wait()
    assert not is_locked(folder)
    with FolderLock(folder):
        pass


def test_the_lock_is_let_go_though_a_child_lives_on(folder: epath.Path) -> None:
    """A forked worker shares the open file; closing ours alone would leave it locked."""
    with FolderLock(folder) as lock:
        assert lock._fd is not None
        shared = os.dup(lock._fd)
    try:
        assert not is_locked(folder)
    finally:
        os.close(shared)


def test_a_failure_inside_lets_go(folder: epath.Path) -> None:
    with pytest.raises(ZeroDivisionError), FolderLock(folder):
        _ = 1 / 0
    assert not is_locked(folder)


def test_one_process_does_not_take_a_folder_twice(
    folder: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_PATIENCE_S", 0.05)
    with FolderLock(folder):
        with pytest.raises(RequestError, match=f"pid {os.getpid()} "), FolderLock(folder):
            pass
        assert is_locked(folder)


def test_a_look_at_the_lock_does_not_turn_a_writer_away(folder: epath.Path) -> None:
    """`is_locked` holds a shared lock for an instant; here the instant is a tenth of a second."""
    (folder / ".lock").touch()
    fd = os.open(folder / ".lock", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    threading.Timer(0.1, os.close, [fd]).start()
    with FolderLock(folder):
        assert is_locked(folder)


def test_a_folder_never_written_is_not_locked(folder: epath.Path) -> None:
    assert not is_locked(folder)
    assert not is_locked(folder / "absent")
    assert names(folder) == []


def test_a_lock_on_a_disk_is_not_lost(folder: epath.Path) -> None:
    with FolderLock(folder) as lock:
        assert lock.lost() is None


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_may_not_be_written_is_named(
    folder: epath.Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def denied(path: object, *args: object) -> int:
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(locks.os, "open", denied)
    with pytest.raises(WorkError, match=rf"\.lock: {os.strerror(code)}"), FolderLock(folder):
        pass
