from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scaling_jax.config import RunConfig
from scaling_jax.data.corpus import Corpus
from scaling_jax.data.splits import Split
from scaling_jax.data.subsets import subset
from scaling_jax.data.training_set import largest_set, targets_an_epoch, training_set
from scaling_jax.errors import RequestError
from scaling_jax.settings import parse_config

LENGTHS = np.random.default_rng(0).integers(1, 60, 40)
N = int(LENGTHS.sum())


def split() -> Split:
    ends = np.cumsum(LENGTHS)
    tokens = np.random.default_rng(1).integers(0, 28, N).astype(np.uint16)
    tokens[ends - 1] = 28
    return Split(tokens, ends - LENGTHS)


CORPUS = Corpus("c", "0" * 64, 29, 28, 1.0, split(), split(), split())


def config(**data: Any) -> RunConfig:
    model = {"n_layer": 1, "d_model": 8, "n_head": 2, "n_ctx": 8, "n_vocab": 29}
    return parse_config({"model": model, "steps": 10, "data": data})


def test_without_unique_tokens_it_is_the_split_as_it_stands():
    source = training_set([config()], CORPUS)
    assert source.tokens is CORPUS.train.tokens
    assert source.table is None and source.windows_an_epoch(N) is None
    assert source.tokens_an_epoch(N) == N
    drawn = source.draws([0], np.arange(3), 4, [N])
    assert drawn.valid is None
    for row, start in zip(
        source.rows(drawn).reshape(-1, 9), np.ravel(drawn.starts).tolist(), strict=True
    ):
        np.testing.assert_array_equal(row, source.tokens[start : start + 9])


@pytest.mark.parametrize("order", ["random", "epochs", "documents"])
def test_a_cohort_has_one_set_and_each_run_the_beginning_of_it(order):
    configs = [config(order=order, unique_tokens=n, subset_seed=3) for n in (100, 333, 200)]
    assert largest_set(configs, CORPUS) == 333
    source = training_set(configs, CORPUS)
    np.testing.assert_array_equal(source.tokens, subset(CORPUS.train, 3, 333).tokens)
    seen = [set() for _ in configs]
    drawn = source.draws([0, 0, 0], np.arange(800), 4, [100, 333, 200])
    for lane, starts in enumerate(np.moveaxis(drawn.starts, 1, 0)):
        valid = np.full_like(starts, 8) if drawn.valid is None else drawn.valid[:, lane]
        for start, n in zip(starts.ravel().tolist(), valid.ravel().tolist(), strict=True):
            seen[lane] |= {*range(start + 1, start + 1 + n)}
    first = 1 if order == "random" else 0
    assert [(min(each), max(each)) for each in seen] == [(first, 99), (first, 332), (first, 199)]


@pytest.mark.parametrize("unique", [None, 333])
def test_targets_of_an_epoch_are_known_without_its_tokens(unique):
    n_tokens = unique or N
    blocks = -(-n_tokens // 8) * 8
    found = {
        order: targets_an_epoch(config(order=order, unique_tokens=unique), CORPUS)
        for order in ("random", "epochs", "documents")
    }
    assert found["random"] == (n_tokens, n_tokens)
    assert found["epochs"] == (blocks, n_tokens)
    assert found["documents"][1] == n_tokens and found["documents"][0] > blocks
    for order, (targets, _) in found.items():
        source = training_set([config(order=order, unique_tokens=unique)], CORPUS)
        assert source.tokens_an_epoch(n_tokens) == targets
    if unique is None:
        assert found["documents"][0] == 8 * sum(-(-int(n) // 8) for n in LENGTHS)


def test_sets_that_cannot_be_are_refused_by_their_numbers():
    for refused in (lambda c: training_set([c], CORPUS), lambda c: targets_an_epoch(c, CORPUS)):
        with pytest.raises(RequestError, match=f"unique_tokens 5000 is more than the {N} tokens"):
            refused(config(unique_tokens=5000))
    with pytest.raises(RequestError, match="8 tokens hold no window of n_ctx 8"):
        training_set([config(unique_tokens=8), config(unique_tokens=90)], CORPUS)
