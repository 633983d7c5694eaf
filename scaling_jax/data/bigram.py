"""The floor a learning curve must pass before its shape says anything about a language model."""

from __future__ import annotations

import numpy as np


def bigram_nats(train: np.ndarray, validation: np.ndarray, n_vocab: int) -> float:
    """Cross-entropy of `validation` under the bigram model of `train`, in nats a token.

    The mean over every token but the first, which has nothing before it; NaN where there is none.
    """
    if len(validation) < 2:
        return float("nan")
    pairs = _pair_counts(validation, n_vocab)
    return float(-np.sum(pairs * np.log(bigram_probabilities(train, n_vocab))) / pairs.sum())


def bigram_probabilities(train: np.ndarray, n_vocab: int) -> np.ndarray:
    """P(next | previous) as float64 [n_vocab previous, n_vocab next], each row summing to one.

    Counts of `train` with Witten-Bell back-off (Witten and Bell 1991, method C): a context seen n
    times with t distinct followers gives the share t / (n + t) to the unigram model, which gives
    likewise to the uniform one. Every probability is positive, so every cross-entropy is finite.
    """
    pairs = _pair_counts(train, n_vocab)
    uniform = np.full(n_vocab, 1.0 / n_vocab)
    unigram = _witten_bell(np.bincount(train, minlength=n_vocab)[None, :], uniform)[0]
    return _witten_bell(pairs, unigram)


def _witten_bell(counts_cv: np.ndarray, backoff_v: np.ndarray) -> np.ndarray:
    """One distribution a context (row); a context never seen has the back-off's."""
    followers_c = np.count_nonzero(counts_cv, axis=1)[:, None]
    total_c = counts_cv.sum(axis=1, keepdims=True) + followers_c
    mixed = (counts_cv + followers_c * backoff_v) / np.maximum(total_c, 1)
    return np.where(total_c > 0, mixed, backoff_v)


def _pair_counts(tokens: np.ndarray, n_vocab: int) -> np.ndarray:
    codes = tokens[:-1].astype(np.int64) * n_vocab + tokens[1:]
    return np.bincount(codes, minlength=n_vocab * n_vocab).reshape(n_vocab, n_vocab)
