"""What one host says counts for all, and what differs between them is named on all."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.hosts import agreement, checks
from scaling_jax.hosts.agreement import (
    agreed,
    alone,
    failed_alike,
    gathered,
    is_writer,
    together,
)
from scaling_jax.hosts.checks import require_same, require_shared
from tests.hosts.threads import OfThread, on_hosts

Hosts = Callable[[int, Callable[[int], Any]], list[Any]]


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Hosts:
    """`hosts(count, work)`: `work(index)` on each of them."""
    channel = OfThread()
    monkeypatch.setattr(agreement, "_channel", channel)
    return lambda count, work: on_hosts(count, work, channel)


def test_one_process_agrees_with_itself():
    assert alone()
    assert is_writer()
    assert agreed("a thing", 3) == 3
    assert gathered("a thing", 3) == [3]
    assert together(lambda: "why")() == "why"
    assert failed_alike("why")


def test_process_0_decides(hosts):
    assert hosts(3, lambda i: [agreed("a", i), agreed("b", {"n": i}), is_writer()]) == [
        [0, {"n": 0}, True],
        [0, {"n": 0}, False],
        [0, {"n": 0}, False],
    ]


def test_all_hear_what_each_says_in_their_order(hosts):
    assert hosts(3, lambda i: gathered("a", i * i)) == [[0, 1, 4]] * 3


@pytest.mark.parametrize("asked", [0, 2])
def test_whoever_is_asked_to_stop_all_stop_at_one_question(hosts, asked):
    def work(i: int) -> tuple[int, str]:
        began = time.monotonic()
        late = i == asked
        stop = together(lambda: "SIGTERM" if late and time.monotonic() - began > 0.2 else None)
        questions = 0
        while (reason := stop()) is None:
            questions += 1
            time.sleep(0.001 * (1 + i))
        return questions, reason

    (first, *others) = hosts(3, work)
    assert first[0] > 0
    assert first[1] == ("SIGTERM" if asked == 0 else "SIGTERM on process 2")
    assert others == [first, first]


def test_hosts_that_ask_different_things_are_told(hosts):
    first, second = hosts(2, lambda i: agreed("the length" if i else "the end", 1))
    assert first == 1
    assert isinstance(second, WorkError)
    assert "process 1 is at 'the length' and process 0" in str(second)
    assert "at 'the end': they do not run the same program" in str(second)


def test_a_host_that_does_not_come_is_waited_for_no_longer_than_said(hosts):
    def work(i: int) -> Any:
        if i == 1:
            time.sleep(0.5)
            return None
        return gathered("a", i, wait_s=0.1)

    first, _ = hosts(2, work)
    assert isinstance(first, WorkError)
    assert "has not come to 'a' in 0 s" in str(first)


def test_what_fails_everywhere_fails_alike(hosts):
    assert hosts(2, lambda i: failed_alike(f"no memory on {i}")) == [True, True]


def test_what_fails_on_one_host_is_known_to_have_failed_there_only(hosts, monkeypatch):
    monkeypatch.setattr(agreement, "FAILED_S", 0.1)
    assert hosts(2, lambda i: time.sleep(0.5) if i else failed_alike("the disk is full")) == [
        False,
        None,
    ]


def test_hosts_that_are_alike_go_on(hosts):
    assert hosts(3, lambda i: require_same({"the corpus": "a", "packages": "b"})) == [None] * 3


def test_what_differs_is_named_on_every_host(hosts):
    def work(i: int) -> None:
        require_same({"the corpus": "ab"[i // 2], "packages": "jax", "the code": str(i)})

    for error in hosts(3, work):
        assert isinstance(error, RequestError)
        assert "the hosts differ in the corpus (processes 0, 1: a; process 2: b)" in str(error)
        assert "in the code (process 0: 0; process 1: 1; process 2: 2)" in str(error)
        assert "packages" not in str(error)


def test_a_folder_that_all_share_is_left_as_it_was(hosts, tmp_path):
    assert hosts(2, lambda i: require_shared(epath.Path(tmp_path))) == [None, None]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_each_host_is_refused_on_all(hosts, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(checks, "_SEEN_S", 0.1)
    for error in hosts(3, lambda i: require_shared(epath.Path(tmp_path / str(i % 2)))):
        assert isinstance(error, RequestError)
        assert "another folder on process 1 than on process 0" in str(error)
