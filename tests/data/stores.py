"""Sources in memory for the tests of token stores, and what is in a store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from scaling_jax.data import shards
from scaling_jax.data.prepare import Plan, prepare_store
from scaling_jax.data.sources import Document
from scaling_jax.data.splits import SPLITS, Split, split_of
from scaling_jax.data.store import Store
from scaling_jax.data.tokenizers import ByteTokenizer, TokenIds, Tokenizer

DOCUMENTS = [(f"file{i}.py", bytes([i % 256, 0, 255]) * (i % 7)) for i in range(200)]
TEXTS = [
    (f"novel{i % 50}#{i}", f"Chapter {i}. It was the {i % 7}th of May.\n".encode() * (i % 5 + 1))
    for i in range(150)
]


SMALL = 200  # bytes of a stretch, so that few documents make many shards


def small_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes many shards of few documents."""
    monkeypatch.setattr(shards, "_STRETCH", SMALL)
    monkeypatch.setattr(shards, "_GROUP", 70)


class Listed:
    """A source of the documents given; `reads` counts how often it was read."""

    licence: str | None = "CC0-1.0"

    def __init__(
        self, documents: Iterable[tuple[str, Any]], n_vocab: int | None = None, name: str = "tiny"
    ) -> None:
        self.name, self.n_vocab = name, n_vocab
        self.facts: dict[str, Any] = {"entropy": 1.5}
        self.skipped: dict[str, int] = {"empty documents": 3}
        self.reads = 0
        self._documents = list(documents)

    def key(self) -> dict[str, Any]:
        return {"kind": "listed", "documents": repr(self._documents)}

    def documents(self) -> Iterator[Document]:
        self.reads += 1
        for document in self._documents:
            yield Document(*document)


def planned(
    documents: Iterable[tuple[str, Any]] = tuple(DOCUMENTS),
    tokenizer: Any = None,
    split_on: str | None = None,
    n_vocab: int | None = None,
) -> Plan:
    """The plan of a store of bytes, or of tokens where the source has its own `n_vocab`."""
    own: Tokenizer = ByteTokenizer() if n_vocab is None else TokenIds(n_vocab)
    return Plan(Listed(documents, n_vocab), "listed", tokenizer or own, split_on)


def made(folder: Path, plan: Plan | None = None, **named: Any) -> tuple[Any, bool]:
    """`prepare_store`, of the documents of this module where no plan is given."""
    return prepare_store(plan or planned(), epath.Path(folder), silent, **named)


def read_back(split: Split, separator: int) -> list[list[int]]:
    """The tokens of each document of a split, without the separator that must close each."""
    tokens = np.asarray(split.tokens)
    ends = [*split.doc_starts[1:], len(tokens)][: len(split.doc_starts)]
    documents = []
    for start, end in zip(split.doc_starts, ends, strict=True):
        *content, last = tokens[start:end].tolist()
        assert last == separator
        documents.append(content)
    return documents


def of_split(name: str, documents: Iterable[tuple[str, Any]] = tuple(DOCUMENTS)) -> list[list[int]]:
    return [list(content) for document_id, content in documents if split_of(document_id) == name]


def require_contents(store: Store, documents: Iterable[tuple[str, Any]]) -> None:
    """Every split of a store is that of the documents, in their order."""
    documents = list(documents)
    for name in SPLITS:
        found = read_back(store.split(name), store.manifest.tokenizer.separator)
        assert found == of_split(name, documents)


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a store by its path in it, but the lock."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in found
        if path.name != ".lock"
    }


def silent(what: str, done: int, total: int | None) -> None: ...
