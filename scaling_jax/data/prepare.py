"""From documents to a token store: in parallel, resumable, and by one process at a time.

The documents are taken in stretches of about 32 MiB. Each becomes one shard, and a small file that
says from which documents; an interrupted preparation keeps every shard whose documents are still
the same, so that the store is byte for byte what an undisturbed one is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from scaling_jax.config_data import TokenizerConfig
from scaling_jax.data.bigram import BigramCounts
from scaling_jax.data.shards import Stretch, stretches, summed, tokenized
from scaling_jax.data.sources import Source
from scaling_jax.data.splits import SHARES, SPLITS
from scaling_jax.data.store import (
    BUILDING,
    FORMAT,
    MANIFEST,
    TOKEN_BYTES,
    FileMark,
    Manifest,
    Shard,
    TokenizerMark,
    lengths_file,
    mark,
    open_store,
    read_manifest,
    tokenizer_file,
    tokens_file,
    write_manifest,
)
from scaling_jax.data.tokenizers import (
    TRAINED_ON,
    Tokenizer,
    Told,
    decoded_text,
    dtype_of,
    need,
    tokenizer_from,
)
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.records.files import (
    AbsentFile,
    is_local,
    read_json,
    reading,
    refusals,
    remove_leftovers,
    write_atomic,
    write_json,
)
from scaling_jax.records.leases import FolderBusy
from scaling_jax.records.locks import LOCK_NAME, FolderLock

_WORKERS = 4
_AGAIN_S = 0.5


@dataclass(frozen=True)
class Plan:
    """What determines a store. A `tokenizer` given by its config is trained on the source."""

    source: Source
    spec: str
    tokenizer: Tokenizer | TokenizerConfig
    split_on: str | None = None

    def key(self) -> str:
        """Hex sha256: while it is equal, so is the store."""
        if isinstance(self.tokenizer, TokenizerConfig):
            tokenizer: Any = [self.tokenizer.name, self.tokenizer.n_vocab, TRAINED_ON]
        else:
            tokenizer = self.tokenizer.fingerprint
        parts = [FORMAT, self.source.key(), tokenizer, SHARES, self.split_on]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def prepare_store(
    plan: Plan, folder: epath.Path, told: Told, in_cache: bool = False
) -> tuple[Manifest, bool]:
    """The store of `plan` in `folder`, of a disk or a bucket, and whether it was built now.

    Waits for another process that builds there, and then has its store. A folder in the cache that
    is not whole is built anew. Elsewhere it is refused, as is another store, with a `RequestError`.
    """
    key = plan.key()
    with turn(folder, told) as lock:
        found = _there(folder, key, in_cache)
        if found is not None:
            return found, False
        return _Building(plan, key, folder, told, lock).run(), True


@contextlib.contextmanager
def turn(folder: epath.Path, told: Told) -> Iterator[FolderLock]:
    """The lock of a folder, after whoever holds it: for as long as that process lives."""
    with contextlib.ExitStack() as stack:
        while True:
            try:
                lock = stack.enter_context(FolderLock(folder))
                break
            except FolderBusy as busy:
                told(f"waiting for {busy.holder}, which prepares {folder}", 0, None)
                time.sleep(_AGAIN_S)
        yield lock


def _there(folder: epath.Path, key: str, in_cache: bool) -> Manifest | None:
    """The finished store of that key; what may be built over is cleared away."""
    try:
        manifest = read_manifest(folder)
        if manifest.key == key:
            if is_local(folder):
                open_store(folder)
            _remove_scaffold(folder)
            return manifest
        held = f"another token store, of {manifest.source}"
    except AbsentFile:
        held = _held_instead(folder, key)
        if held is None:
            return None
    except RequestError:
        if not in_cache:
            raise
        held = "a damaged one"
    if not in_cache:
        raise RequestError(f"{folder} holds {held}: choose another --out, or remove it.")
    _clear(folder)
    return None


def _held_instead(folder: epath.Path, key: str) -> str | None:
    """What keeps a folder without a store from becoming this one."""
    with reading(folder):
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if BUILDING not in names:
        return f"other things ({min(names)})" if names else None
    try:
        begun = read_json(folder / BUILDING).get("key")
    except RequestError:
        return "the damaged beginning of a token store"
    return None if begun == key else "the beginning of another token store"


def _clear(folder: epath.Path) -> None:
    """Removes a store, its manifest first."""
    with refusals(folder):
        (folder / MANIFEST).unlink(missing_ok=True)
        for path in list(folder.iterdir()):
            if path.name == LOCK_NAME:
                continue
            path.rmtree() if path.is_dir() else path.unlink(missing_ok=True)


class _Building:
    """The building of one store, by the holder of its folder's lock."""

    def __init__(
        self, plan: Plan, key: str, folder: epath.Path, told: Told, lock: FolderLock
    ) -> None:
        self._plan, self._key, self._folder = plan, key, folder
        self._told, self._lock = told, lock
        self._counting = threading.Lock()
        self._done, self._total = 0, None
        self._digest = hashlib.sha256()
        self._shards: list[Shard] = []

    def run(self) -> Manifest:
        for folder in (self._folder, self._folder / "shards", self._folder / "segments"):
            remove_leftovers(folder)
        write_json(self._folder / BUILDING, {"key": self._key})
        self._tokenizer = self._chosen_tokenizer()
        self._bigrams = BigramCounts(self._tokenizer.n_vocab)
        rule = [FORMAT, self._tokenizer.fingerprint, SHARES, self._plan.split_on]
        self._digest.update(f"scaling_jax corpus {json.dumps(rule)}\n".encode())
        self._make_shards()
        manifest = self._manifest()
        self._remove_others(manifest)
        self._require_lock()
        write_manifest(self._folder, manifest)
        _remove_scaffold(self._folder)
        return manifest

    def _chosen_tokenizer(self) -> Tokenizer:
        if not isinstance(self._plan.tokenizer, TokenizerConfig):
            return self._plan.tokenizer
        path = self._folder / tokenizer_file("bpe")
        with contextlib.suppress(RequestError), reading(path):
            return tokenizer_from("bpe", path.read_bytes(), str(path))
        n_vocab = self._plan.tokenizer.n_vocab
        assert n_vocab is not None
        found = self._trained(n_vocab)
        write_atomic(path, found.to_bytes() or b"")
        return found

    def _trained(self, n_vocab: int) -> Tokenizer:
        from scaling_jax.data.bpe import sample, train

        need("tokenizers")
        found, self._total = sample(self._plan.source.documents(), self._plan.split_on, self._told)
        self._told(f"training a tokenizer of {n_vocab:,} tokens", 0, None)
        return train((decoded_text(document) for document in found), n_vocab)

    def _make_shards(self) -> None:
        workers = min(_WORKERS, os.cpu_count() or 1)
        pending: deque[Future[tuple[Shard, np.ndarray]]] = deque()
        with ThreadPoolExecutor(workers, "tokens") as pool:
            try:
                for i, stretch in enumerate(stretches(self._plan.source.documents())):
                    for digest in stretch.digests:
                        self._digest.update(digest)
                    pending.append(pool.submit(self._shard, i, stretch))
                    del stretch
                    if len(pending) > workers:
                        self._take(*pending.popleft().result())
                while pending:
                    self._take(*pending.popleft().result())
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _take(self, shard: Shard, tokens: np.ndarray) -> None:
        """The next shard in order."""
        self._require_lock()
        train, validation = shard.splits["train"].tokens, shard.splits["validation"].tokens
        self._bigrams.add_train(tokens[:train])
        self._bigrams.add_validation(tokens[train : train + validation])
        self._shards.append(shard)

    def _require_lock(self) -> None:
        lost = self._lock.lost()
        if lost is not None:
            raise WorkError(f"{lost}: the preparation stops here.")

    def _shard(self, i: int, stretch: Stretch) -> tuple[Shard, np.ndarray]:
        """Shard `i`: as it lies there where it is of the same documents, else made now."""
        commit, documents_sha256 = self._folder / "segments" / f"{i:05d}.json", stretch.sha256()
        kept = self._kept(i, commit, documents_sha256)
        if kept is not None:
            self._advance(stretch.size())
            return kept
        tokens, lengths, splits = tokenized(
            stretch.documents, self._tokenizer, self._plan.split_on, self._advance
        )
        data, rows = tokens.tobytes(), lengths.astype("<i8").tobytes()
        shard = Shard(
            documents_sha256=documents_sha256,
            tokens=mark(data),
            lengths=mark(rows),
            splits=splits,
        )
        write_atomic(self._folder / tokens_file(i), data)
        write_atomic(self._folder / lengths_file(i), rows)
        write_json(commit, {"tokenizer": self._tokenizer.fingerprint, "shard": shard.model_dump()})
        return shard, tokens

    def _kept(self, i: int, commit: epath.Path, sha256: str) -> tuple[Shard, np.ndarray] | None:
        try:
            doc = read_json(commit)
            shard = Shard.model_validate(doc["shard"])
            if (doc["tokenizer"], shard.documents_sha256) != (self._tokenizer.fingerprint, sha256):
                return None
            data = (self._folder / tokens_file(i)).read_bytes()
            rows = (self._folder / lengths_file(i)).read_bytes()
        except (RequestError, OSError, ValueError, KeyError):
            return None
        if (mark(data), mark(rows)) != (shard.tokens, shard.lengths):
            return None
        return shard, np.frombuffer(data, dtype_of(self._tokenizer.n_vocab))

    def _advance(self, size: int) -> None:
        with self._counting:
            self._done += size
            self._told("documents to tokens", self._done, self._total)

    def _manifest(self) -> Manifest:
        source, nats = self._plan.source, self._bigrams.nats()
        return Manifest(
            name=source.name,
            key=self._key,
            fingerprint=self._digest.hexdigest(),
            source=self._plan.spec,
            licence=source.licence,
            facts=source.facts,
            skipped=source.skipped,
            split_on=self._plan.split_on,
            tokenizer=self._tokenizer_mark(),
            dtype=dtype_of(self._tokenizer.n_vocab).str,
            splits={
                name: summed([shard.splits[name] for shard in self._shards]) for name in SPLITS
            },
            bigram_nats=None if math.isnan(nats) else nats,
            shards=self._shards,
        )

    def _tokenizer_mark(self) -> TokenizerMark:
        tokenizer = self._tokenizer
        return TokenizerMark(
            kind=tokenizer.kind,
            fingerprint=tokenizer.fingerprint,
            n_vocab=tokenizer.n_vocab,
            separator=tokenizer.separator,
            lost=tokenizer.lost,
            file=self._written(tokenizer_file(tokenizer.kind), tokenizer.to_bytes()),
            token_bytes=self._written(
                TOKEN_BYTES,
                None
                if tokenizer.token_bytes is None
                else tokenizer.token_bytes.astype("<i8").tobytes(),
            ),
        )

    def _written(self, name: str, data: bytes | None) -> FileMark | None:
        if data is None:
            return None
        write_atomic(self._folder / name, data)
        return mark(data)

    def _remove_others(self, manifest: Manifest) -> None:
        """Shards of an earlier attempt that had more documents."""
        named = manifest.files()
        with refusals(self._folder):
            for path in _inside(self._folder / "shards"):
                if f"shards/{path.name}" not in named:
                    path.unlink(missing_ok=True)


def _remove_scaffold(folder: epath.Path) -> None:
    """What is of use only until the store is one."""
    with refusals(folder):
        if (folder / "segments").exists():
            (folder / "segments").rmtree()
        (folder / BUILDING).unlink(missing_ok=True)


def _inside(folder: epath.Path) -> list[epath.Path]:
    return list(folder.iterdir()) if folder.exists() else []
