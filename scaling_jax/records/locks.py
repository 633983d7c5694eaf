"""One writer a folder, on a disk or in a bucket."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from datetime import datetime
from types import TracebackType

from etils import epath

from scaling_jax.records.files import is_local, refusals
from scaling_jax.records.leases import FolderBusy, Lease, is_leased

LOCK_NAME = ".lock"
_PATIENCE_S = 0.5  # `is_locked` holds the lock for an instant; a writer waits that out


class FolderLock:
    """The right to write in a folder, held by one process at a time.

    On a disk it is a `flock` of `.lock`, which ends with the process, however that ends; in a
    bucket a `Lease` of the same name.
    """

    def __init__(self, folder: epath.Path) -> None:
        self.folder = folder
        self._fd: int | None = None
        self._lease: Lease | None = None

    def __enter__(self) -> FolderLock:
        """Raises `FolderBusy` where another process holds the folder."""
        path = self.folder / LOCK_NAME
        if is_local(self.folder):
            self._fd = _hold(path)
        else:
            lease = Lease(path)
            lease.take()
            self._lease = lease
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lease is not None:
            self._lease.leave()
            self._lease = None
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # closing alone leaves it with forked children
            os.close(self._fd)
            self._fd = None

    def lost(self) -> str | None:
        """Why another process may write here by now, so that this one must stop; None: it may not.

        A lock on a disk is not lost.
        """
        return None if self._lease is None else self._lease.lost()


def _hold(path: epath.Path) -> int:
    """The open file of a lock that this process holds from now on."""
    with refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with refusals(path):
            held = _take(fd)
        if not held:
            raise FolderBusy(path.parent, _holder(fd))
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        with refusals(path):
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"pid {os.getpid()} on {socket.gethostname()}, since {now}".encode(), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_locked(folder: epath.Path) -> bool:
    """Whether some process writes in the folder; on a disk, some process of this machine."""
    if not is_local(folder):
        return is_leased(folder / LOCK_NAME)
    try:
        fd = os.open(folder / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def _take(fd: int) -> bool:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)


def _holder(fd: int) -> str:
    return os.pread(fd, 1024, 0).decode(errors="replace") or "it has not said which"
