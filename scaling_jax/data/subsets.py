"""Subsets of exactly so many tokens, of which a smaller one lies in a larger one."""

from __future__ import annotations

import numpy as np

from scaling_jax.data.permutation import host_permutation
from scaling_jax.data.splits import Split
from scaling_jax.errors import RequestError


def subset(split: Split, seed: int, n_tokens: int) -> Split:
    """The first `n_tokens` tokens of the split's documents in an order drawn from `seed`.

    The order does not depend on `n_tokens`, so that subsets of one seed are nested. Documents are
    whole but for the last, which ends without a separator where it is cut. In memory. Raises
    `RequestError` where the split has fewer tokens.
    """
    documents, doc_starts = _chosen(split, seed, n_tokens)
    edges = np.append(doc_starts, n_tokens)
    tokens = np.empty(n_tokens, split.tokens.dtype)
    for document, start, end in zip(
        split.doc_starts[documents].tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True
    ):
        tokens[start:end] = split.tokens[document : document + end - start]
    tokens.flags.writeable = False
    return Split(tokens, doc_starts)


def subset_doc_starts(split: Split, seed: int, n_tokens: int) -> np.ndarray:
    """The `doc_starts` of a subset, without its tokens."""
    return _chosen(split, seed, n_tokens)[1]


def require_tokens(split: Split, n_tokens: int) -> None:
    """Raises `RequestError` where the training split has fewer than `n_tokens` tokens."""
    if n_tokens > len(split.tokens):
        raise RequestError(
            f"data.unique_tokens {n_tokens} is more than the {len(split.tokens)} tokens of the "
            "training split"
        )


def _chosen(split: Split, seed: int, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Which documents, in their new order, and where each starts: both int64."""
    require_tokens(split, n_tokens)
    lengths = np.diff(np.append(split.doc_starts, len(split.tokens)))
    documents = host_permutation(seed, len(lengths))
    ends = np.cumsum(lengths[documents])
    n = int(np.searchsorted(ends, n_tokens, side="left")) + 1
    return documents[:n], np.append(0, ends[: n - 1])
