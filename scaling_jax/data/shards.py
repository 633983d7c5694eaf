"""Stretches of a source, and the shard that each becomes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from scaling_jax.data.sources.source import Document
from scaling_jax.data.splits import SPLITS, split_of
from scaling_jax.data.store import Counts
from scaling_jax.data.tokenizers import Tokenizer, dtype_of

_STRETCH = 2**25  # bytes of documents
_DOCUMENTS = 2**17  # short ones weigh more than their bytes
_GROUP = 2**20


@dataclass(frozen=True)
class Stretch:
    """Consecutive documents, and the sha256 of each."""

    documents: list[Document] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)

    def sha256(self) -> str:
        return hashlib.sha256(b"".join(self.digests)).hexdigest()

    def size(self) -> int:
        return sum(len(document.content) for document in self.documents)


def stretches(documents: Iterator[Document]) -> Iterator[Stretch]:
    """The documents in stretches of about 32 MiB, or of 131,072, in order."""
    stretch, size = Stretch(), 0
    for document in documents:
        stretch.documents.append(document)
        stretch.digests.append(_digest(document))
        size += len(document.content)
        if size >= _STRETCH or len(stretch.documents) >= _DOCUMENTS:
            yield stretch
            stretch, size = Stretch(), 0
    if stretch.documents:
        yield stretch


def tokenized(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    split_on: str | None,
    advance: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray, dict[str, Counts]]:
    """The tokens of documents sorted by split, their lengths (int64), and what each split holds.

    Each document is closed by the separator, which counts. `advance` hears of the size of what was
    encoded. Raises `RequestError` for a document that the tokenizer cannot read.
    """
    rows: list[np.ndarray] = []
    for group in _groups(documents):
        rows.extend(tokenizer.encode(group))
        advance(sum(len(document.content) for document in group))
    by_split: dict[str, list[int]] = {name: [] for name in SPLITS}
    for i, document in enumerate(documents):
        by_split[split_of(document.id, split_on)].append(i)
    order = [i for name in SPLITS for i in by_split[name]]
    lengths = np.array([len(rows[i]) + 1 for i in order], np.int64)
    tokens = np.full(lengths.sum(), tokenizer.separator, dtype_of(tokenizer.n_vocab))
    for i, end in zip(order, np.cumsum(lengths).tolist(), strict=True):
        tokens[end - 1 - len(rows[i]) : end - 1] = rows[i]
    counts = {
        name: Counts(
            tokens=sum(len(rows[i]) + 1 for i in chosen),
            documents=len(chosen),
            text_bytes=_text_bytes([documents[i] for i in chosen]),
        )
        for name, chosen in by_split.items()
    }
    return tokens, lengths, counts


def summed(counts: Sequence[Counts]) -> Counts:
    """What several shards hold of a split."""
    texts = [count.text_bytes for count in counts if count.text_bytes is not None]
    return Counts(
        tokens=sum(count.tokens for count in counts),
        documents=sum(count.documents for count in counts),
        text_bytes=sum(texts) if len(texts) == len(counts) else None,
    )


def _text_bytes(documents: Sequence[Document]) -> int | None:
    sizes = [len(d.content) for d in documents if isinstance(d.content, bytes)]
    return sum(sizes) if len(sizes) == len(documents) else None


def _digest(document: Document) -> bytes:
    encoded, content = document.id.encode(), document.content
    if not isinstance(content, bytes):
        content = np.asarray(content).astype("<i8").tobytes()
    digest = hashlib.sha256(f"{len(encoded)} {len(content)}\n".encode() + encoded)
    digest.update(content)
    return digest.digest()


def _groups(documents: Sequence[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document.content)
        if size >= _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group
