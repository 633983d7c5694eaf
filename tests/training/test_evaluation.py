from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from scaling_jax.config import EngineConfig
from scaling_jax.data.corpus import Split
from scaling_jax.data.sampler import validation_windows
from scaling_jax.training.evaluation import evaluation_set, mean_and_error
from scaling_jax.training.sharding import state_shardings
from scaling_jax.training.step import make_model

N_CTX, TOKENS = 8, 800


@pytest.fixture(scope="module")
def trained(tiny, compiled, train):
    """A program of one lane and its state after enough updates for losses to differ."""
    program = compiled(tiny())
    return program, train(program, [tiny()], [100])[0]


@pytest.mark.parametrize("shards", [1, 3, 8])
def test_every_window_is_there_once_and_fillers_are_marked(corpus, shards):
    split = corpus.validation
    window_nbt, document_nbt, counts_nb, tokens = evaluation_set(split, N_CTX, TOKENS, shards)
    assert window_nbt.shape[1] % shards == 0
    starts = validation_windows(len(split.tokens), N_CTX, TOKENS)
    real = counts_nb.ravel() == 1
    assert real.sum() == len(starts) == TOKENS // N_CTX
    assert counts_nb.sum() == len(starts)
    np.testing.assert_array_equal(
        window_nbt.reshape(-1, N_CTX + 1)[real],
        [split.tokens[start : start + N_CTX + 1] for start in starts],
    )
    documents = np.array(
        [
            [(split.doc_starts <= start + 1 + t).sum() - 1 for t in range(N_CTX)]
            for start in starts.tolist()
        ]
    )
    touched = np.unique(documents)
    np.testing.assert_array_equal(touched[document_nbt.reshape(-1, N_CTX)[real]], documents)
    np.testing.assert_array_equal(tokens, [(documents == document).sum() for document in touched])


def test_the_mean_is_that_over_every_token(corpus, tiny, trained, quick_jit):
    program, state = trained
    split = corpus.validation
    starts = validation_windows(len(split.tokens), N_CTX, TOKENS)
    windows = np.array([split.tokens[s : s + N_CTX + 1] for s in starts], np.int32)
    documents = np.searchsorted(split.doc_starts, starts[:, None] + np.arange(1, 9), "right") - 1
    params = jax.tree.map(lambda leaf: np.asarray(leaf)[0], state.params)
    logits = np.asarray(
        quick_jit(make_model(tiny(), EngineConfig()))(params, windows[:, :-1]), np.float64
    )
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -np.take_along_axis(log_p, windows[:, 1:, None], -1)[..., 0]

    sums = np.asarray(program.evaluate(state))
    assert sums.shape == (1, len(np.unique(documents)))
    by_document = [losses[documents == document].sum() for document in np.unique(documents)]
    np.testing.assert_allclose(sums[0], by_document, rtol=1e-5)
    mean, _ = mean_and_error(sums[0], program.evaluation.document_tokens)
    assert mean == pytest.approx(losses.mean(), rel=1e-6)
    assert losses.std() > 0.1


def test_the_shards_and_so_the_filling_rows_change_nothing(tiny, compiled, trained):
    program, state = trained
    sharded = compiled(tiny(batch={"microbatches": 1}), data=8)
    assert (sharded.evaluation.counts_nb == 0).any()
    moved = jax.device_put(state, state_shardings(state, sharded.mesh))
    np.testing.assert_allclose(sharded.evaluate(moved), program.evaluate(state), rtol=1e-6)


def test_a_set_of_fewer_windows_than_shards():
    split = Split(np.arange(30, dtype=np.uint16), np.array([0, 13]))
    made = evaluation_set(split, N_CTX, 10**6, 8)
    assert made.window_nbt.shape == (1, 8, N_CTX + 1)
    assert made.counts_nb.sum() == 3
    assert made.document_tokens.sum() == 3 * N_CTX


def test_the_error_by_hand():
    # mean 2; the documents' sums differ from 2 tokens each by -2, 0, 2
    mean, error = mean_and_error(np.array([2.0, 4.0, 10.0]), np.array([2, 2, 4]))
    assert mean == 2.0
    assert error == pytest.approx(math.sqrt(3 / 2 * 8) / 8)


def test_the_error_is_that_of_resampled_documents():
    draws = np.random.default_rng(0)
    tokens = draws.integers(20, 400, 60)
    level = 2 + 0.3 * draws.standard_normal(60)  # documents differ more than their tokens do
    sums = tokens * level + np.sqrt(tokens) * draws.standard_normal(60)
    _, error = mean_and_error(sums, tokens)
    picks = draws.integers(0, 60, (4000, 60))
    resampled = sums[picks].sum(1) / tokens[picks].sum(1)
    assert error == pytest.approx(resampled.std(), rel=0.1)
    assert error > 2 / math.sqrt(tokens.sum())  # what independent tokens would have


def test_equal_documents_have_no_error():
    assert mean_and_error(np.array([3.0, 6.0]), np.array([1, 2])) == (3.0, 0.0)


def test_one_document_has_no_known_error():
    mean, error = mean_and_error(np.array([6.0]), np.array([3]))
    assert mean == 2.0
    assert math.isnan(error)
