from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling_jax.data.splits import Split
from scaling_jax.data.subsets import require_tokens, subset, subset_doc_starts
from scaling_jax.data.tokens import ShardedTokens
from scaling_jax.errors import RequestError

SEPARATOR = 999
SEEDS = st.integers(0, 2**31 - 1)
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def split_of(lengths: list[int]) -> Split:
    """Documents whose tokens are all different but for the separators that end them."""
    ends = np.cumsum(lengths)
    tokens = np.arange(sum(lengths), dtype=np.uint16)
    tokens[ends - 1] = SEPARATOR
    return Split(tokens, (ends - lengths).astype(np.int64))


def documents(split: Split) -> list[list[int]]:
    return [part.tolist() for part in np.split(np.asarray(split.tokens), split.doc_starts[1:])]


@given(LENGTHS, SEEDS, st.data())
def test_a_subset_is_exact_and_of_whole_documents_but_the_last(lengths, seed, data):
    split = split_of(lengths)
    n_tokens = data.draw(st.integers(1, sum(lengths)))
    found = subset(split, seed, n_tokens)
    assert len(found.tokens) == n_tokens
    assert found.tokens.dtype == np.uint16 and found.doc_starts.dtype == np.int64
    np.testing.assert_array_equal(found.doc_starts, subset_doc_starts(split, seed, n_tokens))
    *whole, last = documents(found)
    known = documents(split)
    rest = [document for document in known if document not in whole]
    assert len(rest) == len(known) - len(whole) or lengths.count(1) > 1
    assert all(document in known for document in whole)
    assert any(document[: len(last)] == last for document in rest) or lengths.count(1) > 1


@given(LENGTHS, SEEDS, st.data())
def test_a_smaller_subset_begins_a_larger_one(lengths, seed, data):
    split = split_of(lengths)
    few, many = sorted(data.draw(st.integers(1, sum(lengths))) for _ in range(2))
    smaller, larger = subset(split, seed, few), subset(split, seed, many)
    np.testing.assert_array_equal(smaller.tokens, larger.tokens[:few])
    np.testing.assert_array_equal(smaller.doc_starts, larger.doc_starts[: len(smaller.doc_starts)])


def test_the_whole_is_every_document_in_another_order():
    split = split_of([3, 1, 4, 1, 5, 9, 2, 6] * 5)
    found = subset(split, 0, len(split.tokens))
    assert sorted(documents(found)) == sorted(documents(split))
    assert documents(found) != documents(split)


def test_the_seed_decides_and_documents_come_first_evenly():
    split = split_of([4] * 10)
    firsts = [int(np.asarray(subset(split, seed, 4).tokens)[0]) // 4 for seed in range(400)]
    counts = np.bincount(firsts, minlength=10)
    assert np.sum((counts - 40) ** 2 / 40) < 27.9  # chi-squared, 9 degrees, p = 0.001
    np.testing.assert_array_equal(subset(split, 5, 30).tokens, subset(split, 5, 30).tokens)


def test_a_subset_of_shards_is_that_of_one_array():
    split = split_of([3, 1, 4, 1, 5, 9, 2, 6])
    whole = np.asarray(split.tokens)
    sharded = Split(
        ShardedTokens([whole[:5], whole[5:6], whole[6:]], whole.dtype), split.doc_starts
    )
    np.testing.assert_array_equal(subset(sharded, 3, 20).tokens, subset(split, 3, 20).tokens)


def test_a_subset_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(subset(split_of([3, 4]), 0, 5).tokens)[0] = 1


def test_more_than_there_is_is_refused_with_both_numbers():
    split = split_of([3, 4])
    require_tokens(split, 7)
    for refused in (require_tokens, lambda split, n: subset(split, 0, n)):
        with pytest.raises(RequestError, match="unique_tokens 8 is more than the 7 tokens of the"):
            refused(split, 8)
