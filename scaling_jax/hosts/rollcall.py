"""Who is there: every process says which it is, before JAX begins to wait for them.

JAX itself aborts, with a trace of its own code, where a process is missing or counts differently.
"""

from __future__ import annotations

import os
import re
import socket
import time
from typing import NamedTuple, TypeGuard

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.hosts.channel import Channel, Link, Message

ROLL_CALL_S = 300.0
_HELLO_S = 5.0
_RETRY_S = 0.2


class Place(NamedTuple):
    """Which process this is, and where process 0 is."""

    address: str
    port: int
    """Of JAX's own coordinator; the roll call has the one after it."""
    index: int
    count: int

    @property
    def call_port(self) -> int:
        """The port of the roll call and of what is said later."""
        return self.port + 1 if self.port < 65535 else self.port - 1


def parse_place(text: str) -> Place:
    """`10.0.0.1:8476,0/4`: process 0 of 4, of which process 0 is at 10.0.0.1, ports 8476 and 8477.

    Raises `RequestError` for anything else.
    """
    match = re.fullmatch(r"([^\s,]+):(\d+),(\d+)/(\d+)", text)
    if match is None:
        raise RequestError(
            "--hosts takes auto, or the address of process 0, the index of this process and the "
            f"number of processes, as in 10.0.0.1:8476,0/4, not {text!r}"
        )
    place = Place(match[1].strip("[]"), int(match[2]), int(match[3]), int(match[4]))
    if not 0 < place.port < 65536:
        raise RequestError(f"--hosts {text}: there is no port {place.port}")
    if place.index >= place.count:
        raise RequestError(
            f"--hosts {text}: {place.count} process(es) are counted from 0 to {place.count - 1}"
        )
    return place


def call_roll(place: Place) -> Channel:
    """Waits for all processes and returns the channel between them.

    Raises `RequestError` where two say that they are the same or count differently, and `WorkError`
    where one does not come within 5 minutes; every process that came says the same.
    """
    if place.index == 0:
        return Channel(0, _gather(place))
    return Channel(place.index, [_join(place)])


def _hello(place: Place) -> Message:
    who = f"pid {os.getpid()} on {socket.gethostname()}"
    return {"kind": "hello", "index": place.index, "count": place.count, "name": who}


def _is_hello(message: Message | None) -> TypeGuard[Message]:
    types = {"kind": str, "index": int, "count": int, "name": str}
    return message is not None and all(
        isinstance(message.get(name), kind) for name, kind in types.items()
    )


def _gather(place: Place) -> list[Link]:
    found: dict[int, Link] = {}
    deadline = time.monotonic() + ROLL_CALL_S
    fault: tuple[str, int] | None = None
    with _listener(place) as listener:
        while fault is None and len(found) < place.count - 1:
            listener.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                fault = (_missing(place, found), 1)
                break
            link = Link(connection, -1, "")
            hello = link.receive(_HELLO_S)
            if not _is_hello(hello):
                link.close()  # a stranger
                continue
            link.index, link.name = hello["index"], hello["name"]
            fault = _fault(place, link, hello, found)
            found[-1 if fault else link.index] = link
    verdict = {"kind": "roll", "name": _hello(place)["name"], "fault": fault}
    for link in found.values():
        link.send(verdict)
    if fault is not None:
        for link in found.values():
            link.close()
        raise _error(*fault)
    return [found[index] for index in sorted(found)]


def _fault(
    place: Place, link: Link, hello: Message, found: dict[int, Link]
) -> tuple[str, int] | None:
    if hello["count"] != place.count:
        return (
            f"process {link.index} ({link.name}) was told of {hello['count']} processes and "
            f"process 0 ({_hello(place)['name']}) of {place.count}: give all the same --hosts "
            "but for the index"
        ), 2
    if link.index in found or link.index == 0:
        other = found[link.index].name if link.index else _hello(place)["name"]
        return (
            f"{other} and {link.name} were both told that they are process {link.index} of "
            f"{place.count}: give each its own index in --hosts"
        ), 2
    return None


def _missing(place: Place, found: dict[int, Link]) -> str:
    absent = ", ".join(str(i) for i in range(1, place.count) if i not in found)
    return (
        f"{1 + len(found)} of {place.count} processes came within {ROLL_CALL_S:.0f} s; missing: "
        f"process {absent}. Start the same command on all hosts, and see that they reach "
        f"{place.address}, ports {place.port} and {place.call_port}"
    )


def _join(place: Place) -> Link:
    link = Link(_connect(place), 0, f"on {place.address}")
    link.send(_hello(place))
    verdict = link.receive(ROLL_CALL_S + 2 * _HELLO_S)
    if verdict is None or verdict.get("kind") != "roll":
        link.close()
        raise WorkError(
            f"process 0 at {place.address}, port {place.call_port}, has not called the roll; see "
            "there what it says"
        )
    if verdict["fault"] is not None:
        link.close()
        raise _error(*verdict["fault"])
    link.name = verdict["name"]
    return link


def _connect(place: Place) -> socket.socket:
    deadline, why = time.monotonic() + ROLL_CALL_S, "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            return socket.create_connection((place.address, place.call_port), timeout=left)
        except OSError as error:
            why = error.strerror or str(error)
            time.sleep(_RETRY_S)
    raise WorkError(
        f"process 0 was not reached at {place.address}, port {place.call_port}, in "
        f"{ROLL_CALL_S:.0f} s ({why}): see that it runs there and that no firewall shuts ports "
        f"{place.port} and {place.call_port}"
    )


def _listener(place: Place) -> socket.socket:
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(
            ("", place.call_port), family=family, dualstack_ipv6=dual, backlog=place.count
        )
    except OSError as error:
        raise RequestError(
            f"port {place.call_port} of this host cannot be had ({error.strerror}); name another "
            "in --hosts, on all hosts"
        ) from None


def _error(message: str, code: int) -> Exception:
    return (RequestError if code == 2 else WorkError)(message)
