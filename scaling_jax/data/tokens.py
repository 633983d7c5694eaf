"""A flat array of tokens, in memory or on a disk, and rows of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

_FEW = 16  # rows of a shard, that are copied one by one sooner than a view is made of it


class TokenArray(Protocol):
    """What a split's tokens can do, whether they are one array or the shards of a store."""

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def size(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> np.ndarray: ...

    def __array__(self, dtype: Any = None, /, *, copy: bool | None = None) -> np.ndarray: ...


class ShardedTokens:
    """Arrays of tokens of one type, one after another, read as one array; nothing is copied.

    A slice inside one shard is a view of it, and one across shards a copy.
    """

    def __init__(self, shards: Sequence[np.ndarray], dtype: np.dtype) -> None:
        self.shards = [shard for shard in shards if len(shard)]
        self.dtype = np.dtype(dtype)
        if any(shard.dtype != self.dtype or shard.ndim != 1 for shard in self.shards):
            raise ValueError(f"The shards are to be flat arrays of {self.dtype}.")
        self.ends = np.cumsum([len(shard) for shard in self.shards], dtype=np.int64)
        self.begins = self.ends - [len(shard) for shard in self.shards]

    @property
    def size(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: slice) -> np.ndarray:
        start, stop, step = index.indices(self.size)
        if step < 1:
            raise ValueError("Tokens are read forwards.")
        parts = []
        at = start
        while at < stop:
            i = int(np.searchsorted(self.ends, at, side="right"))
            begin, end = int(self.begins[i]), min(stop, int(self.ends[i]))
            parts.append(self.shards[i][at - begin : end - begin])
            at = end
        whole = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, self.dtype), *parts])
        return whole[::step]

    def __array__(self, dtype: Any = None, /, *, copy: bool | None = None) -> np.ndarray:
        if copy is False and len(self.shards) > 1:
            raise ValueError("Shards become one array by copying alone.")
        whole = self[:]
        return whole.astype(self.dtype if dtype is None else dtype, copy=bool(copy))


def joined(shards: Sequence[np.ndarray], dtype: np.dtype) -> TokenArray:
    """The shards as one: a single one as it is."""
    filled = [shard for shard in shards if len(shard)]
    return filled[0] if len(filled) == 1 else ShardedTokens(filled, dtype)


def gather_rows(
    tokens: TokenArray, starts: np.ndarray, width: int, outside: int | None = None
) -> np.ndarray:
    """`width` tokens from each start: `[*starts.shape, width]`, of the type of `tokens`.

    `outside` stands at every position before the first token and from the end on. Without it a row
    that is not inside the array is an `IndexError`.
    """
    starts = np.asarray(starts, np.int64)
    flat = starts.reshape(-1)
    if outside is None and len(flat) and (flat.min() < 0 or flat.max() + width > len(tokens)):
        raise IndexError(f"Rows of {width} tokens leave an array of {len(tokens)}.")
    if isinstance(tokens, ShardedTokens):
        shards, begins = tokens.shards, tokens.begins
    else:
        shards, begins = [np.asarray(tokens)], np.zeros(1, np.int64)
    rows = np.empty((len(flat), width), tokens.dtype)
    shard_of = np.searchsorted(begins, flat, side="right") - 1
    order = np.argsort(shard_of, kind="stable")
    found, firsts = np.unique(shard_of[order], return_index=True)
    for i, of_shard in zip(found.tolist(), np.split(order, firsts)[1:], strict=True):
        inside = np.zeros(len(of_shard), bool)
        if i >= 0:
            within = flat[of_shard] - begins[i]
            inside = within + width <= len(shards[i])
            _copy_rows(shards[i], within[inside], rows, of_shard[inside])
        for row in of_shard[~inside].tolist():
            rows[row] = _row(tokens, int(flat[row]), width, outside)
    return rows.reshape(*starts.shape, width)


def _copy_rows(shard: np.ndarray, starts: np.ndarray, rows: np.ndarray, to: np.ndarray) -> None:
    width = rows.shape[1]
    if len(starts) >= _FEW:
        rows[to] = sliding_window_view(shard, width)[starts]
        return
    for row, start in zip(to.tolist(), starts.tolist(), strict=True):
        rows[row] = shard[start : start + width]


def _row(tokens: TokenArray, start: int, width: int, outside: int | None) -> np.ndarray:
    """One row that no shard holds whole."""
    row = np.full(width, 0 if outside is None else outside, tokens.dtype)
    first, last = max(start, 0), min(start + width, len(tokens))
    if first < last:
        row[first - start : last - start] = tokens[first:last]
    return row
