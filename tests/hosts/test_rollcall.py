"""Every fault of a start is named on every host that came, within the time that is stated."""

from __future__ import annotations

import socket
import threading
from contextlib import closing
from typing import Any

import pytest

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.hosts import rollcall
from scaling_jax.hosts.channel import Channel
from scaling_jax.hosts.rollcall import Place, call_roll, parse_place
from tests.hosts.threads import free_port, side_by_side


def roll(*places: tuple[int, int], at: int | None = None) -> list[Any]:
    port = at or free_port()
    found = side_by_side(
        *(lambda i=i, n=n: call_roll(Place("localhost", port, i, n)) for i, n in places)
    )
    channels = [each for each in found if isinstance(each, Channel)]
    side_by_side(*(channel.close for channel in channels))
    return found


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollcall, "ROLL_CALL_S", 0.5)


def test_all_processes_find_each_other():
    found = roll((0, 3), (2, 3), (1, 3))
    assert [channel.index for channel in found] == [0, 2, 1]


def test_who_is_missing_is_named_on_every_host(brief):
    found = roll((0, 4), (2, 4))
    for error in found:
        assert isinstance(error, WorkError)
        assert "2 of 4 processes came within 0 s; missing: process 1, 3." in str(error)


def test_a_process_0_that_is_not_there_is_named(brief):
    (error,) = roll((1, 2))
    assert isinstance(error, WorkError)
    assert "process 0 was not reached at localhost, port" in str(error)
    assert "Connection refused" in str(error)


def test_an_address_that_does_not_exist_is_named(brief):
    with pytest.raises(WorkError, match=r"not reached at no-such-host\.invalid, port 8477, in 0 s"):
        call_roll(Place("no-such-host.invalid", 8476, 1, 2))


def test_counts_that_differ_are_named_on_every_host():
    for error in roll((0, 2), (1, 3)):
        assert isinstance(error, RequestError)
        assert "was told of 3 processes" in str(error)
        assert "of 2: give all the same --hosts" in str(error)


def test_two_that_are_one_process_are_named_on_every_host():
    for error in roll((0, 3), (1, 3), (1, 3)):
        assert isinstance(error, RequestError)
        assert "were both told that they are process 1 of 3" in str(error)


def test_a_stranger_on_the_port_is_passed_over():
    port = free_port()

    def stranger() -> None:
        while True:
            try:
                with socket.create_connection(("localhost", port + 1), timeout=5) as connection:
                    connection.sendall(b'{"kind": "hello", "index": "1"}\n')
                    assert connection.recv(1) == b""
                return
            except ConnectionRefusedError:
                continue

    thread = threading.Thread(target=stranger)
    thread.start()
    found = side_by_side(
        lambda: call_roll(Place("localhost", port, 0, 2)),
        lambda: (thread.join(), call_roll(Place("localhost", port, 1, 2)))[1],
    )
    assert [channel.index for channel in found] == [0, 1]
    side_by_side(*(channel.close for channel in found))


def test_a_port_that_is_taken_is_named():
    port = free_port()
    with closing(socket.create_server(("", port + 1))):
        (error,) = roll((0, 2), at=port)
    assert isinstance(error, RequestError)
    assert f"port {port + 1} of this host cannot be had" in str(error)


def test_a_place_is_read():
    assert parse_place("10.0.0.1:8476,3/4") == Place("10.0.0.1", 8476, 3, 4)
    assert parse_place("[fd00::1]:8476,0/2").address == "fd00::1"
    assert parse_place("h:65535,0/1").call_port == 65534


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.1", r"as in 10\.0\.0\.1:8476,0/4, not '10\.0\.0\.1'"),
        ("h:8476,4/4", r"4 process\(es\) are counted from 0 to 3"),
        ("h:0,0/2", "there is no port 0"),
        ("h:99999,0/2", "there is no port 99999"),
    ],
)
def test_a_place_that_is_none_is_refused(text, message):
    with pytest.raises(RequestError, match=message):
        parse_place(text)
