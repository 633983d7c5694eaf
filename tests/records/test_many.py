from __future__ import annotations

import threading

import pytest

from scaling_jax.records.many import read_each


@pytest.mark.parametrize("local", [True, False])
def test_what_is_read_is_in_the_order_asked(local: bool) -> None:
    asked = [f"run{i}" for i in range(50)]
    assert read_each(str.upper, asked, local) == [run_id.upper() for run_id in asked]


def test_of_a_bucket_several_are_asked_for_at_once() -> None:
    together = threading.Barrier(4, timeout=30.0)
    assert read_each(lambda _: together.wait() < 4, ["a", "b", "c", "d"], local=False) == [True] * 4


def test_a_fault_is_raised() -> None:
    with pytest.raises(KeyError):
        read_each({"a": 1}.__getitem__, ["a", "b"], local=False)
