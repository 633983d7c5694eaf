from __future__ import annotations

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling_jax.data import bigram
from scaling_jax.data.bigram import BigramCounts, bigram_nats


@pytest.fixture(params=["table", "sorted pairs"])
def kind(request, monkeypatch):
    """Both ways to count, of which a vocabulary's size chooses one."""
    monkeypatch.setattr(bigram, "_DENSE", 2**24 if request.param == "table" else 0)


def bigram_probabilities(train: np.ndarray, n_vocab: int) -> np.ndarray:
    counts = BigramCounts(n_vocab)
    counts.add_train(train)
    return counts.probabilities()


@pytest.mark.usefixtures("kind")
def test_a_case_worked_by_hand():
    # train a b a c over {a, b, c, d}: unigram n = 4, 3 types, so (count + 3/4) / 7;
    # after a: b, c once each, 2 types: (count + 2 unigram) / 4; after b: a once: (count + u) / 2.
    train = np.array([0, 1, 0, 2], np.uint16)
    u = np.array([2.75, 1.75, 1.75, 0.75]) / 7
    expected = np.array(
        [(np.array([0, 1, 1, 0]) + 2 * u) / 4, (np.array([1, 0, 0, 0]) + u) / 2, u, u]
    )
    np.testing.assert_allclose(bigram_probabilities(train, 4), expected, rtol=1e-14)
    nats = -(math.log((1 + 2 * 0.25) / 4) + math.log(0.125) + math.log(0.75 / 7)) / 3
    validation = np.array([0, 1, 2, 3], np.uint16)
    assert bigram_nats(train, validation, 4) == pytest.approx(nats, rel=1e-14)


@pytest.mark.usefixtures("kind")
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 5), max_size=30), st.integers(6, 9))
def test_every_row_is_a_distribution(train, n_vocab):
    probabilities = bigram_probabilities(np.array(train, np.uint16), n_vocab)
    assert (probabilities > 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-12)


@pytest.mark.usefixtures("kind")
def test_tokens_may_come_in_pieces(monkeypatch):
    monkeypatch.setattr(bigram, "_CHUNK", 7)
    rng = np.random.default_rng(0)
    train, validation = rng.integers(0, 5, 100, np.uint16), rng.integers(0, 6, 60, np.uint16)
    counts = BigramCounts(6)
    for piece in np.split(train, [0, 1, 2, 40, 99]):
        counts.add_train(piece)
    for piece in np.split(validation, [30, 30, 59]):
        counts.add_validation(piece)
    codes = train[:-1].astype(int) * 6 + train[1:]
    pairs = np.bincount(codes, minlength=36).reshape(6, 6)
    types, unigrams = len(np.unique(train)), np.bincount(train, minlength=6)
    u = (unigrams + types / 6) / (100 + types)
    t = np.count_nonzero(pairs, axis=1)
    model = np.where(
        (t > 0)[:, None],
        (pairs + t[:, None] * u) / np.maximum(pairs.sum(axis=1) + t, 1)[:, None],
        u,
    )
    expected = -np.log(model[validation[:-1], validation[1:]]).mean()
    assert counts.nats() == pytest.approx(expected, rel=1e-12)
    assert bigram_nats(train, validation, 6) == counts.nats()


def test_of_a_large_vocabulary_the_first_tokens_count(monkeypatch):
    monkeypatch.setattr(bigram, "_SPARSE_TOKENS", 40)
    rng = np.random.default_rng(0)
    train, validation = rng.integers(0, 5000, (2, 100), np.uint16) % 9
    expected = bigram_nats(train[:40], validation[:40], 5000)
    assert bigram_nats(train, validation, 5000) == expected
    assert bigram_nats(train, validation, 9) != expected


def test_it_reaches_the_entropy_rate_of_a_markov_chain():
    transition = np.array([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5], [0.6, 0.0, 0.4]])
    values, vectors = np.linalg.eig(transition.T)
    stationary = np.real(vectors[:, np.argmax(np.real(values))])
    stationary /= stationary.sum()
    logs = np.log(np.where(transition > 0, transition, 1.0))
    rate = -np.sum(stationary[:, None] * transition * logs)
    draws = np.random.default_rng(0).random(600_000)
    cumulative = transition.cumsum(axis=1).tolist()
    chain = np.empty(len(draws), np.uint16)
    state = 0
    for i, draw in enumerate(draws.tolist()):
        row = cumulative[state]
        state = 0 if draw < row[0] else 1 if draw < row[1] else 2
        chain[i] = state
    # the standard error of 300,000 draws is about 0.001 nats
    assert bigram_nats(chain[:300_000], chain[300_000:], 3) == pytest.approx(rate, abs=0.004)


def test_without_counts_it_is_uniform_and_without_validation_undefined():
    empty = np.zeros(0, np.uint16)
    assert bigram_nats(empty, np.array([3, 1, 2], np.uint16), 257) == pytest.approx(math.log(257))
    assert math.isnan(bigram_nats(np.array([0, 1], np.uint16), empty, 257))
