"""Many files of the records read at once, where each is a question to a bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_AT_ONCE = 16  # objects asked for together of a bucket
_T = TypeVar("_T")


def read_each(read: Callable[[str], _T], run_ids: Iterable[str], local: bool) -> list[_T]:
    """What `read` gives of each run, in their order; on a local disk one after another."""
    if local:
        return [read(run_id) for run_id in run_ids]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(read, run_ids))
