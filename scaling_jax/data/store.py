"""A token store: shards of tokens in a folder or a bucket, and a manifest that vouches for them.

A shard holds the documents of one stretch of the source, those of the training split first, then
validation, then test, each closed by the separator: flat little-endian integers. Beside it are the
lengths of these documents, int64. The manifest is written last; without it there is no store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from etils import epath
from pydantic import ValidationError

from scaling_jax.config_data import Part
from scaling_jax.data.splits import SPLITS, Split
from scaling_jax.data.tokenizers import Tokenizer, tokenizer_from
from scaling_jax.data.tokens import joined
from scaling_jax.errors import RequestError
from scaling_jax.records.files import AbsentFile, is_local, reading, write_atomic

KIND = "scaling_jax token store"
FORMAT = 2
MANIFEST = "manifest.json"
BUILDING = "building.json"
"""Says that a store is being made, and of what; goes when the manifest is written."""
TOKEN_BYTES = "token_bytes"
VERIFIED_AT_ONCE = 2 * 2**30
"""Bytes of a store whose digests are read whenever it is loaded; beyond, `data inspect` does."""


class DamagedStore(RequestError):
    """A store that does not hold what was written."""


class FileMark(Part):
    """How many bytes a file has, and their sha256 in hex."""

    bytes: int
    sha256: str


class Counts(Part):
    """What a split holds; `text_bytes` is None for a source of tokens."""

    tokens: int
    documents: int
    text_bytes: int | None


class Shard(Part):
    """One stretch of the source: its documents' digest, and what was made of them."""

    documents_sha256: str
    tokens: FileMark
    lengths: FileMark
    splits: dict[str, Counts]


class TokenizerMark(Part):
    """The tokenizer of a store; `file` is what `tokenizer_from` needs beside `kind`, if anything.

    `lost` is what of a text does not come back.
    """

    kind: str
    fingerprint: str
    n_vocab: int
    separator: int
    lost: list[str]
    file: FileMark | None
    token_bytes: FileMark | None


class Manifest(Part):
    """All that is known of a store without reading its shards."""

    name: str
    key: str
    fingerprint: str
    source: str
    licence: str | None
    facts: dict[str, Any]
    skipped: dict[str, int]
    split_on: str | None
    tokenizer: TokenizerMark
    dtype: str
    splits: dict[str, Counts]
    bigram_nats: float | None
    shards: list[Shard]

    def files(self) -> dict[str, FileMark]:
        """Every file of the store but the manifest, by its path in the store."""
        found = {}
        for i, shard in enumerate(self.shards):
            found[tokens_file(i)] = shard.tokens
            found[lengths_file(i)] = shard.lengths
        if self.tokenizer.file is not None:
            found[tokenizer_file(self.tokenizer.kind)] = self.tokenizer.file
        if self.tokenizer.token_bytes is not None:
            found[TOKEN_BYTES] = self.tokenizer.token_bytes
        return found


def tokens_file(shard: int) -> str:
    return f"shards/{shard:05d}.tokens"


def lengths_file(shard: int) -> str:
    return f"shards/{shard:05d}.lengths"


def tokenizer_file(kind: str) -> str:
    return "tokenizer.json" if kind == "bpe" else "tokenizer.model"


def mark(data: bytes) -> FileMark:
    return FileMark(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Store:
    """A store in a folder of this machine, whole as far as it was verified."""

    folder: epath.Path
    manifest: Manifest

    def split(self, name: str) -> Split:
        """One split, its tokens mapped from disk."""
        return self._documents((name,))

    def whole(self) -> Split:
        """All documents, of whatever split."""
        return self._documents(SPLITS)

    def tokenizer(self) -> Tokenizer:
        """What decodes its tokens; raises `RequestError` where its package is not installed."""
        found = self.manifest.tokenizer
        path = self.folder / tokenizer_file(found.kind)
        data = None
        if found.file is not None:
            with reading(path):
                data = path.read_bytes()
        return tokenizer_from(found.kind, data, str(path), found.n_vocab)

    def token_bytes(self) -> np.ndarray | None:
        """int64 [n_vocab], bytes of text a token stands for; None where that is not known."""
        if self.manifest.tokenizer.token_bytes is None:
            return None
        return self._read(TOKEN_BYTES, np.dtype("<i8"))

    @cached_property
    def _shards(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Tokens and lengths of each shard; a file is mapped once, whatever is read of it."""
        tokens, lengths = np.dtype(self.manifest.dtype), np.dtype("<i8")
        return [
            (self._map(tokens_file(i), tokens), self._read(lengths_file(i), lengths))
            for i in range(len(self.manifest.shards))
        ]

    def _documents(self, names: tuple[str, ...]) -> Split:
        """The splits of these names, which stand side by side in a shard."""
        parts, lengths = [], [np.zeros(1, np.int64)]
        for (tokens, rows), shard in zip(self._shards, self.manifest.shards, strict=True):
            counts = [shard.splits[name] for name in SPLITS]
            before = counts[: SPLITS.index(names[0])]
            wanted = counts[: SPLITS.index(names[-1]) + 1]
            parts.append(tokens[sum(c.tokens for c in before) : sum(c.tokens for c in wanted)])
            first, last = (sum(c.documents for c in each) for each in (before, wanted))
            lengths.append(rows[first:last])
        doc_starts = np.cumsum(np.concatenate(lengths)[:-1])
        return Split(joined(parts, np.dtype(self.manifest.dtype)), doc_starts)

    def _map(self, file: str, dtype: np.dtype) -> np.ndarray:
        path = self.folder / file
        with reading(path):
            if not path.stat().length:
                return np.zeros(0, dtype)
            # as a plain array, which is sliced faster
            return np.asarray(np.memmap(path, dtype, mode="r"))

    def _read(self, file: str, dtype: np.dtype) -> np.ndarray:
        path = self.folder / file
        with reading(path):
            return np.frombuffer(path.read_bytes(), dtype)


def is_store(path: epath.Path) -> bool:
    """Whether the folder is a token store, be it damaged.

    Raises `RequestError` for one whose preparation has not ended.
    """
    with reading(path):
        if (path / MANIFEST).exists():
            return (path / "shards").exists() or KIND.encode() in (path / MANIFEST).read_bytes()
        unfinished = (path / BUILDING).exists()
    if unfinished:
        raise RequestError(
            f"The token store {path} is not finished: the same `scaling-jax data prepare` goes on "
            "with it."
        )
    return False


def write_manifest(folder: epath.Path, manifest: Manifest) -> None:
    """Makes the store one; raises `WorkError` where it cannot be written."""
    doc = {"kind": KIND, "format": FORMAT, **manifest.model_dump()}
    doc["digest"] = _digest(doc)
    write_atomic(folder / MANIFEST, (json.dumps(doc, indent=1) + "\n").encode())


def read_manifest(folder: epath.Path) -> Manifest:
    """The manifest of a store in a folder or a bucket.

    Raises `AbsentFile` where there is none, `DamagedStore` where it is not what was written, and
    `RequestError` for one of another format.
    """
    path = folder / MANIFEST
    with reading(path):
        data = path.read_bytes()
    try:
        doc = json.loads(data)
        kind, written = doc["kind"], doc["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise damaged(folder, MANIFEST, "it is cut, was edited, or is none of ours") from None
    if (kind, written) != (KIND, FORMAT):
        raise RequestError(
            f"{path} is of a {kind!r} of format {written!r}, and this version reads {KIND!r} of "
            f"format {FORMAT}: prepare its source again, or read it with what wrote it."
        )
    digest = doc.pop("digest", None)
    try:
        if digest != _digest(doc):
            raise ValueError
        return Manifest.model_validate({k: v for k, v in doc.items() if k not in _HEAD})
    except (ValueError, ValidationError):
        raise damaged(folder, MANIFEST, "its digest is another") from None


def open_store(
    folder: epath.Path,
    at_once: int | None = VERIFIED_AT_ONCE,
    told: Callable[[str, int, int | None], None] | None = None,
) -> Store:
    """The store in a local folder: every file's size verified, and its digest while they are small.

    Beyond `at_once` bytes in all no digest is read; None reads them all. Raises as `read_manifest`
    does, and `DamagedStore` naming the file at fault.
    """
    manifest = read_manifest(folder)
    files = manifest.files()
    total = sum(file.bytes for file in files.values())
    for name, file in files.items():
        _verify_size(folder, name, file)
    if at_once is None or total <= at_once:
        done = 0
        for name, file in files.items():
            _verify_digest(folder, name, file)
            done += file.bytes
            if told is not None:
                told("verified", done, total)
    return Store(folder, manifest)


def _verify_size(folder: epath.Path, name: str, file: FileMark) -> None:
    path = folder / name
    try:
        with reading(path):
            found = path.stat().length
    except AbsentFile:
        raise damaged(folder, name, "it is missing") from None
    if found != file.bytes:
        raise damaged(folder, name, f"it has {found:,} bytes and not {file.bytes:,}")


def _verify_digest(folder: epath.Path, name: str, file: FileMark) -> None:
    with reading(folder / name), open(folder / name, "rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != file.sha256:
        raise damaged(folder, name, "its digest is another")


_HEAD = ("kind", "format")


def _digest(doc: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(doc, sort_keys=True).encode()).hexdigest()


def damaged(folder: epath.Path, name: str, why: str) -> DamagedStore:
    """The error of a store whose file `name` is not what its manifest says."""
    whose = "it" if is_local(folder) else "that folder of the bucket"
    return DamagedStore(
        f"The token store {folder} is damaged in {name}: {why}. "
        f"Remove {whose} and prepare the source again."
    )
