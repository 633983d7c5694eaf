"""Which split a document is in, and what a split is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from scaling_jax.data.tokens import TokenArray

SPLITS = ("train", "validation", "test")
SHARES = (0.9, 0.05, 0.05)


@dataclass(frozen=True)
class Split:
    """One document after another, each closed by the separator."""

    tokens: TokenArray
    """Unsigned integers [n_tokens], mapped from disk and read-only; may be empty."""
    doc_starts: np.ndarray
    """int64 [n_documents], the offset of each document in `tokens`."""


def split_of(document_id: str, split_on: str | None = None) -> str:
    """Which split a document is in: by the sha256 of its id, 90 % train, 5 and 5 % the others.

    Of the id counts what stands before the first `split_on`, where that is given. The same document
    is in the same split of every corpus.
    """
    counted = document_id if split_on is None else document_id.split(split_on, 1)[0]
    share = int.from_bytes(hashlib.sha256(counted.encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.9 else "validation" if share < 0.95 else "test"
