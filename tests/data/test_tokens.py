from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling_jax.data import tokens as tokens_module
from scaling_jax.data.tokens import ShardedTokens, gather_rows, joined

U2 = np.dtype("<u2")


def shards_of(lengths: list[int]) -> list[np.ndarray]:
    ends = np.cumsum(lengths)
    return [np.arange(end - n, end, dtype=U2) for n, end in zip(lengths, ends, strict=True)]


@given(st.lists(st.integers(0, 6), max_size=6), st.data())
def test_shards_read_as_one_array(lengths, data):
    sharded = ShardedTokens(shards_of(lengths), U2)
    whole = np.arange(sum(lengths), dtype=U2)
    assert (len(sharded), sharded.size, sharded.nbytes) == (len(whole), whole.size, whole.nbytes)
    np.testing.assert_array_equal(np.asarray(sharded), whole)
    edge = st.integers(-len(whole) - 2, len(whole) + 2) | st.none()
    index = slice(data.draw(edge), data.draw(edge), data.draw(st.integers(1, 3) | st.none()))
    np.testing.assert_array_equal(sharded[index], whole[index])
    assert sharded[index].dtype == np.asarray(sharded).dtype == U2


@pytest.mark.parametrize("few", [1, 3, 99])
@given(st.lists(st.integers(0, 6), max_size=6), st.integers(1, 9), st.data())
def test_rows_are_those_of_the_whole_array_and_a_token_outside_it(few, lengths, width, data):
    n, outside = sum(lengths), 999
    starts = data.draw(st.lists(st.integers(-width - 1, n + 1), max_size=8))
    starts = np.array(starts * 2, np.int64).reshape(2, -1)
    padded = np.full(n + 4 * (width + 2), outside, U2)
    padded[2 * (width + 2) :][:n] = np.arange(n)
    expected = padded[starts[..., None] + np.arange(width) + 2 * (width + 2)]
    for tokens in (ShardedTokens(shards_of(lengths), U2), np.arange(n, dtype=U2)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokens_module, "_FEW", few)
            rows = gather_rows(tokens, starts, width, outside)
        np.testing.assert_array_equal(rows, expected)
        assert rows.dtype == U2


def test_rows_that_leave_the_array_are_refused_where_nothing_stands_outside():
    sharded = ShardedTokens(shards_of([3, 4]), U2)
    np.testing.assert_array_equal(gather_rows(sharded, np.array([4, 1]), 3), [[4, 5, 6], [1, 2, 3]])
    for start in (-1, 5):
        with pytest.raises(IndexError, match="leave an array of 7"):
            gather_rows(sharded, np.array([start]), 3)


def test_a_slice_inside_a_shard_is_a_view_and_one_shard_is_itself():
    first, second = shards_of([3, 4])
    sharded = ShardedTokens([first, second], U2)
    assert np.shares_memory(sharded[4:6], second)
    assert joined([first[:0], second], U2) is second


def test_shards_of_different_types_and_backward_reading_are_refused():
    with pytest.raises(ValueError, match="flat arrays of uint16"):
        ShardedTokens([np.zeros(3, np.uint8)], U2)
    with pytest.raises(ValueError, match="forwards"):
        ShardedTokens(shards_of([3]), U2)[::-1]
