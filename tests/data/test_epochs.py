from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling_jax.data.epochs import (
    MOST_WINDOWS,
    WindowTable,
    epoch_windows,
    host_epoch_windows,
    require_countable,
    window_table,
    windows_an_epoch,
)
from scaling_jax.data.sampler import Draw
from scaling_jax.errors import RequestError

SEEDS = st.integers(0, 2**31 - 1)
N_CTX = 5
# Lengths of documents, as many in every example: one shape compiles once.
LENGTHS = st.lists(st.integers(1, 17), min_size=6, max_size=6)


def table_of(lengths: list[int]) -> WindowTable:
    ends = np.cumsum(lengths)
    return window_table(ends - lengths, int(ends[-1]), N_CTX)


def targets(draw: Draw) -> list[int]:
    """Every target that counts, in any order."""
    starts, valid = (np.asarray(x).ravel() for x in draw)
    return sorted(
        t for start, n in zip(starts, valid, strict=True) for t in range(start + 1, start + 1 + n)
    )


@settings(max_examples=60)
@given(SEEDS, LENGTHS, st.sampled_from([1, 3, 8]), st.data())
def test_every_token_is_a_target_once_an_epoch(seed, lengths, batch, data):
    table = table_of(lengths)
    n_tokens = data.draw(st.integers(1, sum(lengths)))
    m = windows_an_epoch(table, n_tokens, N_CTX)
    drawn = host_epoch_windows([seed], np.arange(24), batch, N_CTX, [n_tokens], [m], table)
    assert drawn.starts.dtype == np.int64 and drawn.starts.min() >= -1
    assert drawn.valid.min() >= 1 and drawn.valid.max() <= N_CTX
    starts, valid = (x.ravel() for x in drawn)
    assert m <= 24
    for first in range(0, 24 * batch - m + 1, m):
        epoch = slice(first, first + m)
        assert targets(Draw(starts[epoch], valid[epoch])) == list(range(n_tokens))
    # A window begins with a document or where another one of the document ended.
    within = np.concatenate([np.arange(0, n, N_CTX) + s for s, n in _documents(lengths)])
    assert {*starts + 1} <= {*within}


def _documents(lengths: list[int]) -> list[tuple[int, int]]:
    return list(zip(np.cumsum(lengths) - lengths, lengths, strict=True))


@given(LENGTHS, st.data())
def test_windows_are_those_of_each_document(lengths, data):
    n_tokens = data.draw(st.integers(1, sum(lengths)))
    kept = [min(n, n_tokens - start) for start, n in _documents(lengths) if start < n_tokens]
    expected = sum(-(-n // N_CTX) for n in kept)
    assert windows_an_epoch(table_of(lengths), n_tokens, N_CTX) == expected


def test_a_set_without_documents_has_no_windows():
    assert windows_an_epoch(window_table(np.zeros(0, np.int64), 0, 5), 0, 5) == 0


def test_one_document_is_cut_into_blocks():
    table = window_table(np.zeros(1, np.int64), 23, 5)
    assert windows_an_epoch(table, 23, 5) == 5
    drawn = host_epoch_windows([0], np.arange(5), 1, 5, [23], [5], table)
    found = dict(zip(drawn.starts.ravel().tolist(), drawn.valid.ravel().tolist(), strict=True))
    assert found == {-1: 5, 4: 5, 9: 5, 14: 5, 19: 3}


@jax.jit
def on_device(
    seeds: jax.Array, steps: jax.Array, n: jax.Array, m: jax.Array, table: WindowTable
) -> Draw:
    def draw(seed, step, n, m):
        return epoch_windows(seed, step, 4, N_CTX, n, m, table)

    lanes = jax.vmap(draw, in_axes=(0, None, 0, 0))
    return jax.vmap(lanes, in_axes=(None, 0, None, None))(seeds, steps, n, m)


@settings(max_examples=25)
@given(
    st.lists(SEEDS, min_size=2, max_size=2),
    st.lists(st.integers(0, 2**30 - 1), min_size=3, max_size=3),
    LENGTHS,
    st.data(),
)
def test_the_host_draws_what_the_device_draws(seeds, steps, lengths, data):
    table = table_of(lengths)
    n_tokens = [data.draw(st.integers(1, sum(lengths))) for _ in seeds]
    m = [windows_an_epoch(table, n, N_CTX) for n in n_tokens]
    host = host_epoch_windows(seeds, steps, 4, N_CTX, n_tokens, m, table)
    device = on_device(
        jnp.asarray(seeds, jnp.uint32),
        jnp.asarray(steps, jnp.int32),
        jnp.asarray(n_tokens, jnp.int32),
        jnp.asarray(m, jnp.uint32),
        WindowTable(*(jnp.asarray(x, jnp.int32) for x in table)),
    )
    assert device.starts.dtype == device.valid.dtype == jnp.int32
    np.testing.assert_array_equal(host.starts, device.starts)
    np.testing.assert_array_equal(host.valid, device.valid)


def test_each_epoch_goes_its_own_way():
    table, m = window_table(np.zeros(1, np.int64), 500, N_CTX), 100
    starts = host_epoch_windows([0, 1], np.arange(100), 4, N_CTX, [500] * 2, [m] * 2, table).starts
    ways = np.moveaxis(starts, 1, 0).reshape(8, m)  # four epochs of each of two seeds
    alike = (ways[:, None] == ways[None]).sum(-1)
    assert (alike[~np.eye(8, dtype=bool)] < 8).all()


def test_numbers_of_windows_go_on_beyond_an_int32():
    table, m = window_table(np.zeros(1, np.int64), 35, N_CTX), 7
    steps = np.arange(2**29 - 3, 2**29 + 4)
    drawn = host_epoch_windows([0], steps, 4, N_CTX, [35], [m], table)
    numbers = steps[:, None] * 4 + np.arange(4)
    assert numbers.max() > 2**31
    whole = [e for e in range(2**31 // m - 5, 2**31 // m + 5) if (numbers // m == e).sum() == m]
    assert len(whole) >= 2
    for epoch in whole:
        mine = numbers // m == epoch
        assert targets(Draw(drawn.starts[:, 0][mine], drawn.valid[:, 0][mine])) == [*range(35)]


def test_sets_beyond_an_int32():
    n_tokens, n_ctx = 2**33 + 7, 2**20
    table = window_table(np.array([0, 2**32 + 5]), n_tokens, n_ctx)
    m = windows_an_epoch(table, n_tokens, n_ctx)
    assert m == 4097 + 4097
    drawn = host_epoch_windows([3], np.arange(m), 1, n_ctx, [n_tokens], [m], table)
    assert jnp.arange(3).dtype == jnp.int32
    order = np.argsort(drawn.starts.ravel())
    starts, valid = drawn.starts.ravel()[order], drawn.valid.ravel()[order].astype(np.int64)
    assert starts[0] == -1
    np.testing.assert_array_equal(starts[1:], (starts + valid)[:-1])
    assert starts[-1] + valid[-1] == n_tokens - 1


def test_what_cannot_be_counted_is_refused():
    require_countable(MOST_WINDOWS, 2**31)
    with pytest.raises(RequestError, match="4,294,967,297 windows are more than the 4,294,967,296"):
        require_countable(MOST_WINDOWS + 1, 100)
    with pytest.raises(RequestError, match="an epoch of 2,147,483,649 windows"):
        require_countable(100, 2**31 + 1)
