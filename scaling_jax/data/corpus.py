"""Documents as tokens: split, cached on disk, and known by a fingerprint."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scaling_jax.cache import default_cache
from scaling_jax.data import embedded
from scaling_jax.data.bigram import bigram_nats
from scaling_jax.errors import RequestError, WorkError, nearest

FORMAT = 1
SPLITS = ("train", "validation", "test")
SEPARATOR = 256
N_VOCAB = 257
_ATTEMPTS = 20
_SOURCES: dict[str, Callable[[], Iterator[tuple[str, bytes]]]] = {"embedded": embedded.documents}


@dataclass(frozen=True)
class Split:
    """One document after another, each closed by the separator."""

    tokens: np.ndarray
    """uint16 [n_tokens], mapped from disk and read-only; may be empty."""
    doc_starts: np.ndarray
    """int64 [n_documents], the offset of each document in `tokens`."""


@dataclass(frozen=True)
class Corpus:
    """Bytes as tokens 0..255 and a separator, in three splits by document."""

    name: str
    fingerprint: str
    """Hex sha256 of the format of the preparation and of every document's id and content."""
    n_vocab: int
    separator: int
    bigram_nats: float
    """Validation loss of the training split's bigram model, nats a token; NaN without tokens."""
    train: Split
    validation: Split
    test: Split


def prepare(source: str = "embedded", cache: Path | None = None) -> Corpus:
    """The corpus of a named source, from the cache where it is there and whole.

    Raises `RequestError` for an unknown source, an unreadable document, an unwritable cache.
    """
    if source not in _SOURCES:
        raise RequestError(f"No data source {source!r}.{nearest(source, _SOURCES)}")
    return build(source, _SOURCES[source](), cache)


def build(name: str, documents: Iterable[tuple[str, bytes]], cache: Path | None = None) -> Corpus:
    """The corpus of `documents`, pairs of id and content, in the order given.

    `cache` is `$SCALING_JAX_CACHE`, or `~/.cache/scaling_jax`, where it is not given. The folder in
    it is built aside and renamed into place, so that several processes may build at once: who
    comes second discards its copy. A folder that its manifest does not vouch for is built anew.
    Raises `RequestError` naming SCALING_JAX_CACHE where the cache cannot be written.
    """
    documents = list(documents)
    fingerprint = _fingerprint(documents)
    cache = default_cache() if cache is None else Path(cache)
    folder = cache / f"{name}-{fingerprint[:16]}"
    for _ in range(_ATTEMPTS):
        corpus = _load(folder, name, fingerprint)
        if corpus is not None:
            return corpus
        try:
            _install(folder, name, fingerprint, documents)
        except OSError as error:
            raise RequestError(
                f"Cannot write the corpus to {cache} ({error.strerror}): "
                "set SCALING_JAX_CACHE to a folder that can be written."
            ) from None
    raise WorkError(f"Cannot read back the corpus written to {folder}: is its disk sound?")


def split_of(document_id: str) -> str:
    """Which split a document is in: by the sha256 of its id, 90 % train, 5 and 5 % the others.

    The same document is in the same split of every corpus.
    """
    share = int.from_bytes(hashlib.sha256(document_id.encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.9 else "validation" if share < 0.95 else "test"


def _fingerprint(documents: list[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256(f"scaling_jax corpus {FORMAT}\n".encode())
    for document_id, content in documents:
        encoded = document_id.encode()
        digest.update(f"{len(encoded)} {len(content)}\n".encode())
        digest.update(encoded)
        digest.update(content)
    return digest.hexdigest()


def _tokenize(contents: list[bytes]) -> Split:
    lengths = np.array([len(content) + 1 for content in contents], np.int64)
    ends = np.cumsum(lengths)
    tokens = np.empty(int(lengths.sum()), np.uint16)
    for content, end in zip(contents, ends.tolist(), strict=True):
        tokens[end - 1 - len(content) : end - 1] = np.frombuffer(content, np.uint8)
        tokens[end - 1] = SEPARATOR
    return Split(tokens, ends - lengths)


def _write(folder: Path, name: str, fingerprint: str, documents: list[tuple[str, bytes]]) -> None:
    contents: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    for document_id, content in documents:
        contents[split_of(document_id)].append(content)
    splits = {split: _tokenize(contents[split]) for split in SPLITS}
    for split, store in splits.items():
        np.save(folder / f"{split}.npy", store.tokens)
        np.save(folder / f"{split}_doc_starts.npy", store.doc_starts)
    nats = bigram_nats(splits["train"].tokens, splits["validation"].tokens, N_VOCAB)
    manifest = {
        "format": FORMAT,
        "name": name,
        "fingerprint": fingerprint,
        "n_vocab": N_VOCAB,
        "separator": SEPARATOR,
        "bigram_nats": None if math.isnan(nats) else nats,
        "files": {file: _vouch(folder / file) for file in _files()},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _install(folder: Path, name: str, fingerprint: str, documents: list[tuple[str, bytes]]) -> None:
    """Builds the corpus aside and renames it to `folder`, unless another process was first.

    A folder that is not whole is moved away. Two processes may both have seen it so, and one then
    moves away the other's good copy: the other finds that out when it loads, and tries again.
    """
    aside = folder.with_name(f".{folder.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        (aside / "new").mkdir(parents=True)
        _write(aside / "new", name, fingerprint, documents)
        if _load(folder, name, fingerprint) is None:
            with contextlib.suppress(FileNotFoundError):
                os.rename(folder, aside / "old")
        os.rename(aside / "new", folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _load(folder: Path, name: str, fingerprint: str) -> Corpus | None:
    """The corpus in `folder`; nothing where any of its files is not as the manifest says."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
        told = (manifest["format"], manifest["name"], manifest["fingerprint"])
        if told != (FORMAT, name, fingerprint):
            return None
        if any(manifest["files"][file] != _vouch(folder / file) for file in _files()):
            return None
        train, validation, test = (_map(folder, split) for split in SPLITS)
        nats = manifest["bigram_nats"]
        return Corpus(
            name=name,
            fingerprint=fingerprint,
            n_vocab=manifest["n_vocab"],
            separator=manifest["separator"],
            bigram_nats=float("nan") if nats is None else float(nats),
            train=train,
            validation=validation,
            test=test,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _files() -> list[str]:
    return [f"{split}{part}.npy" for split in SPLITS for part in ("", "_doc_starts")]


def _vouch(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _map(folder: Path, split: str) -> Split:
    tokens = np.load(folder / f"{split}.npy", mmap_mode="r", allow_pickle=False)
    doc_starts = np.load(folder / f"{split}_doc_starts.npy", mmap_mode="r", allow_pickle=False)
    return Split(tokens, doc_starts)
