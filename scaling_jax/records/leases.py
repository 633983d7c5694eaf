"""One writer a folder where there is no lock to hold: a lease, an object that its holder renews."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import threading
import time
from datetime import datetime
from typing import Any

from etils import epath

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.records.files import AbsentFile, DamagedRecord, read_record, refusals, write_record

RENEW_S = 15.0
LEASE_S = 60.0  # not renewed for so long, a lease is anybody's
_SETTLE_S = 2.0  # of two who take a lease at once, the later finds its own
_RECENT_S = 300.0  # clocks of two machines may differ


class FolderBusy(RequestError):
    """Another process writes in a folder; `holder` says which."""

    def __init__(self, folder: epath.Path, holder: str) -> None:
        self.holder = holder
        super().__init__(
            f"Another process writes in {folder} ({holder}). Wait for it, or choose another --out."
        )


class Lease:
    """Held by a process that renews it every 15 s; another takes it over after 60 s of silence.

    The silence is measured on the clock of the one who waits, so that no clock needs to be right.
    A holder that was suspended for longer learns from `lost` that it is one no more: up to a
    renewal after it wakes both may write, each into its own attempts.
    """

    def __init__(self, path: epath.Path) -> None:
        self._path = path
        self._own: dict[str, Any] = {}
        self._lost: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease {path}", daemon=True)

    def take(self) -> None:
        """Raises `FolderBusy` where another process holds it."""
        found = _read(self._path)
        if found is not None and self._is_renewed(found):
            raise FolderBusy(self._path.parent, _name(found))
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self._own = {
            "holder": secrets.token_hex(8),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": now,
            "beat": 0,
        }
        self._write()
        time.sleep(_SETTLE_S)
        found = _read(self._path)
        if found is None or found["holder"] != self._own["holder"]:
            raise FolderBusy(self._path.parent, _name(found or self._own))
        self._thread.start()

    def leave(self) -> None:
        """Ends the lease; another can take it at once."""
        self._ended.set()
        self._thread.join()
        if self._lost is None:
            with refusals(self._path):
                self._path.unlink(missing_ok=True)

    def lost(self) -> str | None:
        """Why it is held no more, or None."""
        return self._lost

    def _is_renewed(self, found: dict[str, Any]) -> bool:
        """Waits for as long as a lease lasts, to see whether its holder is alive."""
        folder = self._path.parent
        print(
            f"scaling-jax: waiting up to {LEASE_S:.0f} s to see whether {_name(found)} still "
            f"writes in {folder}",
            file=sys.stderr,
        )
        deadline = time.monotonic() + LEASE_S
        while time.monotonic() < deadline:
            time.sleep(min(RENEW_S / 3, LEASE_S / 10))
            now = _read(self._path)
            if now is None:
                return False
            if now != found:
                return True
        return False

    def _renew(self) -> None:
        renewed = time.monotonic()
        while not self._ended.wait(RENEW_S):
            with contextlib.suppress(RequestError, WorkError):  # the bucket may answer next time
                found = _read(self._path)
                if found is not None and found["holder"] != self._own["holder"]:
                    self._lost = f"{_name(found)} took over {self._path.parent}"
                    return
                self._write()
                renewed = time.monotonic()
            if time.monotonic() - renewed > LEASE_S:
                self._lost = f"{self._path} could not be renewed for {LEASE_S:.0f} s"
                return

    def _write(self) -> None:
        self._own |= {"beat": self._own["beat"] + 1, "renewed": time.time()}
        write_record(self._path, self._own)


def is_leased(path: epath.Path) -> bool:
    """Whether the lease was renewed of late, by this machine's clock."""
    found = _read(path)
    return found is not None and abs(time.time() - found["renewed"]) <= _RECENT_S


def _read(path: epath.Path) -> dict[str, Any] | None:
    """The lease, None where there is none; one that is damaged is nobody's."""
    try:
        return read_record(path)
    except (AbsentFile, DamagedRecord):
        return None


def _name(found: dict[str, Any]) -> str:
    return f"pid {found['pid']} on {found['host']}, since {found['since']}"
