"""The floor a learning curve must pass before its shape says anything about a language model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_DENSE = 2**24  # pairs of tokens counted in one table: a vocabulary of 4,096, 128 MiB
_SPARSE_TOKENS = 2**25  # of a larger vocabulary only so many tokens of each split count
_CHUNK = 2**23


class BigramCounts:
    """Counts of the training and the validation split, taken piece by piece.

    Exact for a vocabulary of up to 4,096; of a larger one the first 2^25 tokens of each split
    count, so that memory stays bounded.
    """

    def __init__(self, n_vocab: int) -> None:
        self._n_vocab = n_vocab
        self._unigrams = np.zeros(n_vocab, np.int64)
        self._train, self._validation = _pairs(n_vocab), _pairs(n_vocab)

    def add_train(self, tokens: np.ndarray) -> None:
        """Further tokens of the training split, which go on where the last ones ended."""
        for chunk in _chunks(tokens):
            counted = self._train.add(chunk)
            self._unigrams += np.bincount(counted, minlength=self._n_vocab)

    def add_validation(self, tokens: np.ndarray) -> None:
        """Further tokens of the validation split."""
        for chunk in _chunks(tokens):
            self._validation.add(chunk)

    def nats(self) -> float:
        """Cross-entropy of the validation split under the training split's model, nats a token.

        The mean over every token but the first, which has nothing before it; NaN without one.
        """
        codes, counts = self._validation.seen()
        if not len(codes):
            return float("nan")
        return float(-np.sum(counts * np.log(self._probabilities(codes))) / counts.sum())

    def probabilities(self) -> np.ndarray:
        """P(next | previous) as float64 [n_vocab previous, n_vocab next], each row summing to one.

        Counts with Witten-Bell back-off (Witten and Bell 1991, method C): a context seen n times
        with t distinct followers gives the share t / (n + t) to the unigram model, which gives
        likewise to the uniform one. Every probability is positive, so every cross-entropy is
        finite.
        """
        n_vocab = self._n_vocab
        return self._probabilities(np.arange(n_vocab * n_vocab)).reshape(n_vocab, n_vocab)

    def _probabilities(self, codes: np.ndarray) -> np.ndarray:
        n_vocab = self._n_vocab
        types, total = np.count_nonzero(self._unigrams), self._unigrams.sum()
        unigram_v = np.full(n_vocab, 1.0 / n_vocab)
        if total:
            unigram_v = (self._unigrams + types * unigram_v) / (total + types)
        total_c, followers_c = self._train.contexts()
        context, following = np.divmod(codes, n_vocab)
        backed_off = unigram_v[following]
        n, t = total_c[context], followers_c[context]
        mixed = (self._train.of(codes) + t * backed_off) / np.maximum(n + t, 1)
        return np.where(n + t > 0, mixed, backed_off)


def bigram_nats(train: np.ndarray, validation: np.ndarray, n_vocab: int) -> float:
    """Cross-entropy of `validation` under the bigram model of `train`, in nats a token."""
    counts = BigramCounts(n_vocab)
    counts.add_train(train)
    counts.add_validation(validation)
    return counts.nats()


class _Dense:
    """Counts of pairs in one table: int64 [n_vocab²]."""

    def __init__(self, n_vocab: int) -> None:
        self._n_vocab = n_vocab
        self._counts = np.zeros(n_vocab * n_vocab, np.int64)
        self._last = np.zeros(0, np.int64)

    def add(self, tokens: np.ndarray) -> np.ndarray:
        row = np.concatenate([self._last, tokens], dtype=np.int64)
        codes = row[:-1] * self._n_vocab + row[1:]
        self._counts += np.bincount(codes, minlength=len(self._counts))
        self._last = row[-1:]
        return tokens

    def seen(self) -> tuple[np.ndarray, np.ndarray]:
        codes = np.flatnonzero(self._counts)
        return codes, self._counts[codes]

    def of(self, codes: np.ndarray) -> np.ndarray:
        return self._counts[codes]

    def contexts(self) -> tuple[np.ndarray, np.ndarray]:
        table = self._counts.reshape(self._n_vocab, self._n_vocab)
        return table.sum(axis=1), np.count_nonzero(table, axis=1)


class _Sparse:
    """Counts of the pairs that occur among the first tokens: sorted codes, and how often each."""

    def __init__(self, n_vocab: int) -> None:
        self._n_vocab = n_vocab
        self._codes, self._counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._last = np.zeros(0, np.int64)
        self._room = _SPARSE_TOKENS

    def add(self, tokens: np.ndarray) -> np.ndarray:
        tokens = tokens[: self._room]
        if not len(tokens):
            return tokens
        self._room -= len(tokens)
        row = np.concatenate([self._last, tokens], dtype=np.int64)
        codes = row[:-1] * self._n_vocab + row[1:]
        self._merge(*np.unique(codes, return_counts=True))
        self._last = row[-1:]
        return tokens

    def _merge(self, codes: np.ndarray, counts: np.ndarray) -> None:
        both, place = np.unique(np.concatenate([self._codes, codes]), return_inverse=True)
        merged = np.zeros(len(both), np.int64)
        merged[place[: len(self._codes)]] += self._counts
        merged[place[len(self._codes) :]] += counts
        self._codes, self._counts = both, merged

    def seen(self) -> tuple[np.ndarray, np.ndarray]:
        return self._codes, self._counts

    def of(self, codes: np.ndarray) -> np.ndarray:
        if not len(self._codes):
            return np.zeros(len(codes), np.int64)
        place = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        return np.where(self._codes[place] == codes, self._counts[place], 0)

    def contexts(self) -> tuple[np.ndarray, np.ndarray]:
        context = self._codes // self._n_vocab
        total_c = np.zeros(self._n_vocab, np.int64)
        np.add.at(total_c, context, self._counts)
        return total_c, np.bincount(context, minlength=self._n_vocab)


def _chunks(tokens: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(tokens), _CHUNK):
        yield tokens[start : start + _CHUNK]


def _pairs(n_vocab: int) -> _Dense | _Sparse:
    return _Dense(n_vocab) if n_vocab * n_vocab <= _DENSE else _Sparse(n_vocab)
