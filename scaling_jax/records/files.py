"""Whole files and nothing less: atomic writes, readable JSON, and one writer a folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from types import TracebackType
from typing import Any

from etils import epath

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.records.schema import FORMAT

LOCK_NAME = ".lock"
_PATIENCE_S = 0.5  # `is_locked` holds the lock for an instant; a writer waits that out


def is_local(path: epath.Path) -> bool:
    """Whether the path is on a disk of this machine, and not in a bucket."""
    return "://" not in os.fspath(path)


def as_path(path: str | os.PathLike[str]) -> epath.Path:
    """An `epath.Path`, with `~` expanded.

    Raises `RequestError` for a bucket whose client library is not installed.
    """
    found = epath.Path(path).expanduser()
    try:
        found.exists()
    except ImportError as error:
        raise RequestError(
            f"Cannot reach {found}: {error}. Install the client of that store "
            "(pip install 'scaling_jax[gcs]' for gs://)."
        ) from None
    return found


def write_atomic(path: epath.Path, data: bytes) -> None:
    """Write the file whole or not at all, on the disk when it returns; folders are made.

    Raises `WorkError` where the disk refuses, leaving what was there before.
    """
    with _refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_local(path):
            _replace(path, data)
        else:
            path.write_bytes(data)


def _replace(path: epath.Path, data: bytes) -> None:
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_leftovers(folder: epath.Path) -> None:
    """Remove what a killed process had begun to write; the caller holds the lock."""
    if is_local(folder) and folder.is_dir():
        with _refusals(folder):
            for path in folder.iterdir():
                if path.name.startswith(".") and path.name.endswith(".tmp"):
                    path.unlink(missing_ok=True)


def write_json(path: epath.Path, doc: dict[str, Any]) -> None:
    """Write one JSON object, as `write_atomic` does; NaN and infinity are a ValueError."""
    write_atomic(path, (json.dumps(doc, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: epath.Path) -> dict[str, Any]:
    """Read one JSON object; raises `RequestError` naming the file that is absent or cut."""
    try:
        doc = json.loads(path.read_bytes())
    except OSError as error:
        raise RequestError(f"Cannot read {path}: {error.strerror or error}.") from None
    except (ValueError, RecursionError):
        raise RequestError(f"{path} is not whole JSON; it is cut or was edited.") from None
    if not isinstance(doc, dict):
        raise RequestError(f"{path} does not hold a JSON object.")
    return doc


def read_record(path: epath.Path) -> dict[str, Any]:
    """`read_json` of a file of the records; raises `RequestError` for a format not known here."""
    doc = read_json(path)
    if doc.get("format") != FORMAT:
        raise RequestError(
            f"{path} is of format {doc.get('format')!r} and this version reads {FORMAT}; "
            "read it with the version of scaling_jax that wrote it."
        )
    return doc


class FolderLock:
    """The right to write in a folder, held by one process at a time (`flock` of `.lock`).

    It ends with the process, however that ends. A bucket has no locks: nothing is guarded there.
    """

    def __init__(self, folder: epath.Path) -> None:
        self.folder = folder
        self._fd: int | None = None

    def __enter__(self) -> FolderLock:
        """Raises `RequestError` where another process holds the folder, saying which."""
        if not is_local(self.folder):
            return self
        path = self.folder / LOCK_NAME
        with _refusals(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with _refusals(path):
                held = _take(fd)
            if not held:
                raise RequestError(
                    f"Another process writes in {self.folder} ({_holder(fd)}). "
                    "Wait for it, or choose another --out."
                )
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            with _refusals(path):
                os.ftruncate(fd, 0)
                os.pwrite(
                    fd, f"pid {os.getpid()} on {socket.gethostname()}, since {now}".encode(), 0
                )
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # closing alone leaves it with forked children
            os.close(self._fd)
            self._fd = None


def is_locked(folder: epath.Path) -> bool:
    """Whether some process on this machine writes in the folder; False where it cannot be known."""
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


@contextlib.contextmanager
def _refusals(path: epath.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WorkError(
            f"Could not write {path}: {error.strerror or error}. What was written before is whole."
        ) from error
