"""Hosts as threads of one process, with the sockets that real ones have."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

from scaling_jax.hosts.rollcall import Place, call_roll


def free_port() -> int:
    """A port whose successor is free too, for the roll call."""
    while True:
        with closing(socket.socket()) as first, closing(socket.socket()) as second:
            first.bind(("", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("", port + 1))
            except (OSError, OverflowError):
                continue
            return port


def side_by_side(*calls: Callable[[], Any]) -> list[Any]:
    """What each returns or raises, in threads that stand for hosts."""
    found: list[Any] = [None] * len(calls)

    def run(i: int) -> None:
        try:
            found[i] = calls[i]()
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


class OfThread:
    """The channel of whichever thread asks, for what keeps one in a module."""

    def __init__(self) -> None:
        self.own = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own.channel, name)


def on_hosts(count: int, work: Callable[[int], Any], channel: OfThread) -> list[Any]:
    """What `work(index)` returns or raises on each host, connected to the others."""
    port = free_port()

    def host(index: int) -> Any:
        channel.own.channel = call_roll(Place("localhost", port, index, count))
        try:
            return work(index)
        finally:
            channel.own.channel.close()

    return side_by_side(*(lambda i=i: host(i) for i in range(count)))
