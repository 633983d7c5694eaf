"""One line from each process to process 0: messages, signs of life, and the end of all when one is
lost.

It is apart from the collectives of JAX, so that what the hosts agree on neither waits for the
device nor hangs with it. A message is one line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import sys
import threading
import time
from typing import Any, NoReturn

from scaling_jax.errors import WorkError

BEAT_S = 5.0
# A process that ends is noticed at once, by its connection; a machine that vanishes, by silence.
# JAX would abort the process after 100 s, and say less.
DEAD_S = 60.0
# A process that lives and says nothing: it compiles, or waits for a disk.
WAIT_S = 1200.0

_REMEDY = "the same command on all hosts goes on from the last checkpoints"

Message = dict[str, Any]


class Link:
    """One connection, whose other end is named for messages to the user."""

    def __init__(self, connection: socket.socket, index: int, name: str):
        self.index, self.name = index, name
        self.heard = time.monotonic()
        self.given: queue.Queue[Message] = queue.Queue()
        self.left = False
        self._connection = connection
        self._file = connection.makefile("rb")
        self._sending = threading.Lock()

    def send(self, message: Message, patience_s: float = WAIT_S) -> None:
        """Sends it, if the other end is there: that it is not, `receive` tells."""
        if self._sending.acquire(timeout=patience_s):
            try:
                with contextlib.suppress(OSError):
                    self._connection.sendall(json.dumps(message).encode() + b"\n")
            finally:
                self._sending.release()

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """The next message, None where there is none any more or in time."""
        try:
            self._connection.settimeout(timeout_s)
            line = self._file.readline()
            message = json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError):
            return None
        self.heard = time.monotonic()
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        """Ends the connection; a thread that waits in `receive` gets None."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._file.close()
        self._connection.close()


class Channel:
    """The links of this process: to process 0, or from process 0 to all others.

    Threads listen until `close`. Where another process fails or is lost, they say so on standard
    error and end this one, whatever it is doing: what it waits for may never come.
    """

    def __init__(self, index: int, links: list[Link]):
        self.index = index
        self.stop_asked: str | None = None
        self._links = links
        self._closing = threading.Event()
        self._ending = threading.Lock()
        for link in links:
            self._thread(self._listen, link)
        self._thread(self._beat)

    def _thread(self, work: Any, *args: Any) -> None:
        threading.Thread(target=work, args=args, name="hosts", daemon=True).start()

    def tell(self, message: Message) -> None:
        """To process 0, or from it to all."""
        for link in self._links:
            link.send(message)

    def take(self, kind: str, what: str, wait_s: float = WAIT_S) -> dict[int, Any]:
        """The next value of `kind` from each link, by its process; all are about `what`.

        Raises `WorkError` where one does not come in time, or is about something else.
        """
        deadline, found = time.monotonic() + wait_s, {}
        for link in self._links:
            try:
                left = max(0.0, min(deadline - time.monotonic(), threading.TIMEOUT_MAX))
                message = link.given.get(timeout=left)
            except queue.Empty:
                raise WorkError(
                    f"process {link.index} ({link.name}) has not come to {what!r} in {wait_s:.0f} s"
                ) from None
            if (message["kind"], message["what"]) != (kind, what):
                raise WorkError(
                    f"process {self.index} is at {what!r} and process {link.index} ({link.name}) "
                    f"at {message['what']!r}: they do not run the same program"
                )
            found[link.index] = message["value"]
        return found

    def fail(self, message: str, code: int) -> None:
        """Ends the other processes too, with this message and exit status."""
        said = f"process {self.index} ({socket.gethostname()}): {message}"
        self.tell({"kind": "fail", "message": said, "code": code})

    def close(self) -> None:
        """An orderly end, on all sides about the same time."""
        self._closing.set()
        self.tell({"kind": "bye"})
        deadline = time.monotonic() + 10.0
        while not all(link.left for link in self._links) and time.monotonic() < deadline:
            time.sleep(0.01)
        for link in self._links:
            link.close()

    def _listen(self, link: Link) -> None:
        while (message := link.receive()) is not None:
            kind = message["kind"]
            if kind == "stop":
                self.stop_asked = self.stop_asked or message["reason"]
            elif kind == "fail":
                self._end(message["message"], message["code"], knows=link)
            elif kind == "bye":
                link.left = True
            elif kind != "beat":
                link.given.put(message)
        if not link.left:
            self._lost(link, "has ended without a word")
        link.left = True

    def _beat(self) -> None:
        while not self._closing.wait(BEAT_S):
            self.tell({"kind": "beat"})
            for link in self._links:
                if not link.left and time.monotonic() - link.heard > DEAD_S:
                    self._lost(link, f"has not been heard of for {DEAD_S:.0f} s")

    def _lost(self, link: Link, how: str) -> None:
        if not self._closing.is_set():
            self._end(f"process {link.index} ({link.name}) {how}; {_REMEDY}", 1)

    def _end(self, message: str, code: int, knows: Link | None = None) -> NoReturn:
        self._ending.acquire()  # never released: one thread ends the process
        for link in self._links:
            if link is not knows:  # but to one that is lost: it may live, and only be silent
                link.send({"kind": "fail", "message": message, "code": code}, patience_s=1.0)
        end_process(message, code)


def end_process(message: str, code: int) -> NoReturn:
    """Says why and ends, without waiting for threads, collectives or another process."""
    with contextlib.suppress(OSError):
        os.write(2, f"scaling-jax: {message}\n".encode())
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(code)
