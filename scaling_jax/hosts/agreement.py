"""What all hosts must do alike, decided by one of them.

With one process every function returns what it is given. With several, all must call them in the
same order. One that waits for a process that lives waits 20 minutes at most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, TypeVar

from scaling_jax.errors import WorkError
from scaling_jax.hosts.channel import WAIT_S, Channel, end_process

T = TypeVar("T")

# Hosts that fail alike do so within this time.
FAILED_S = 20.0

_channel: Channel | None = None


def connect(channel: Channel | None) -> None:
    """From now on agree over this channel; over none, with nobody."""
    global _channel
    _channel = channel


def is_writer() -> bool:
    """Whether this process is the one that writes records and shows progress."""
    return _channel is None or _channel.index == 0


def alone() -> bool:
    """Whether there is no other process."""
    return _channel is None


def agreed(what: str, value: T) -> T:
    """The `value` of process 0, plain data for JSON, for all; raises `WorkError` if they differ
    in `what` they ask."""
    if _channel is None:
        return value
    if _channel.index == 0:
        _channel.tell({"kind": "say", "what": what, "value": value})
        return value
    return _channel.take("say", what)[0]


def gathered(what: str, value: T, wait_s: float = WAIT_S) -> list[T]:
    """The values of all processes, plain data for JSON, in their order, for all."""
    if _channel is None:
        return [value]
    if _channel.index == 0:
        found = {0: value} | _channel.take("give", what, wait_s)
        return agreed(what, [found[index] for index in sorted(found)])
    _channel.tell({"kind": "give", "what": what, "value": value})
    # process 0 says in the same time what it has, or that it has not
    return _channel.take("say", what, wait_s + WAIT_S)[0]


def together(stop: Callable[[], str | None]) -> Callable[[], str | None]:
    """`stop`, asked of every host: all get the same reason at the same question."""

    def ask() -> str | None:
        reason = stop()
        if _channel is None:
            return reason
        if _channel.index and reason is not None:
            _channel.tell({"kind": "stop", "reason": f"{reason} on process {_channel.index}"})
        return agreed("stop", reason or _channel.stop_asked)

    return ask


def failed_alike(message: str) -> bool:
    """Whether what failed on this host failed on all of them, so that all can go on alike.

    Where it did not, another host goes on, and waits for this one in vain. A collective that failed
    because a host was lost does not come back from here: the channel ends the process with what it
    knows.
    """
    try:
        gathered("a failure", message, FAILED_S)
    except WorkError:
        return False
    return True


def end_all(message: str, code: int) -> NoReturn:
    """Ends this process and the others, which say the same; nothing is waited for."""
    if _channel is not None:
        _channel.fail(message, code)
    end_process(message, code)
