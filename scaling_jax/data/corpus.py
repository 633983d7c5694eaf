"""The corpus of a run: a token store, from the cache where it was made before."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from scaling_jax.cache import default_cache
from scaling_jax.config_data import DataConfig, TokenizerConfig
from scaling_jax.data.copies import local_copy
from scaling_jax.data.prepare import Plan, prepare_store
from scaling_jax.data.sources import Document, open_source
from scaling_jax.data.splits import SPLITS as SPLITS
from scaling_jax.data.splits import Split as Split
from scaling_jax.data.splits import split_of as split_of
from scaling_jax.data.store import VERIFIED_AT_ONCE, DamagedStore, Store, is_store, open_store
from scaling_jax.data.tokenizers import ByteTokenizer, TokenIds, Tokenizer, Told, open_tokenizer
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.records.files import AbsentFile, as_path, is_local


@dataclass(frozen=True)
class Corpus:
    """Documents as tokens, in three splits by document."""

    name: str
    fingerprint: str
    """Hex sha256 of every document's id and content, and of how they became tokens and splits."""
    n_vocab: int
    separator: int
    bigram_nats: float
    """Validation loss of the training split's bigram model, nats a token; NaN without tokens."""
    train: Split
    validation: Split
    test: Split
    tokenizer: str = "bytes"
    """Its kind: bytes, bpe, sentencepiece, or tokens where the source brings its own."""
    token_bytes: np.ndarray | None = None
    """int64 [n_vocab], bytes of text that each token stands for; None where that is not known."""
    evaluations: Mapping[str, Split] = field(default_factory=dict)
    """Further corpora to be evaluated on, whole, in the tokens of this one."""


def load_corpus(
    data: DataConfig,
    evaluations: Mapping[str, str] | None = None,
    cache: Path | None = None,
    told: Told | None = None,
) -> Corpus:
    """The corpus that `data` names, and further ones, name to source, in its tokens.

    A token store is read as it is, one in a bucket through a copy; anything else is prepared into
    `cache` once, which is `default_cache()` where it is not given. `told` hears of the progress.
    Raises `RequestError` for a source that cannot be read, a store that is damaged, an evaluation
    in other tokens or of the training corpus itself, and a cache that cannot be written.
    """
    cache, told = default_cache() if cache is None else Path(cache), told or _silent
    tokenizer = open_tokenizer(data.tokenizer) or data.tokenizer
    train = open_place(data.source, cache, told)
    if train is None:
        train = _prepared(data.source, data, tokenizer, cache, told)
    else:
        _require_wanted(train, tokenizer, data)
    further = {}
    for name, spec in sorted((evaluations or {}).items()):
        if spec == data.source:
            raise _is_trained_on(name, spec)
        store = open_place(spec, cache, told)
        if store is None:
            store = _prepared(spec, data, train.tokenizer(), cache, told)
        _require_comparable(name, store, train)
        further[name] = store
    return _corpus(train, further)


def build(name: str, documents: Iterable[tuple[str, bytes]], cache: Path | None = None) -> Corpus:
    """The corpus of `documents`, pairs of id and content, as bytes and in the order given.

    Raises as `load_corpus` does.
    """
    given = _Given(name, list(documents))
    cache = default_cache() if cache is None else Path(cache)
    return _corpus(cached_store(Plan(given, name, ByteTokenizer()), cache, _silent), {})


def open_place(
    spec: str, cache: Path, told: Told, at_once: int | None = VERIFIED_AT_ONCE
) -> Store | None:
    """The token store that `spec` is the path of; None where it is no store.

    `at_once` is that of `open_store`; None reads every file of a bucket too. Raises as that and
    `local_copy` do.
    """
    place = as_path(spec)
    if not is_store(place):
        return None
    if not is_local(place):
        return local_copy(place, cache, told, anew=at_once is None)
    return open_store(place, at_once, told)


def plan_store(
    spec: str, text_field: str, tokenizer: Tokenizer | TokenizerConfig, split_on: str | None
) -> Plan:
    """What is to be made of the source that `spec` names.

    A source of tokens keeps its own. Raises `RequestError` for a source that is not there, where
    such a source is to be tokenized, and for an empty `split_on`.
    """
    if split_on == "":
        raise RequestError("The mark to split on is empty: leave it out to split by whole ids.")
    source = open_source(spec, text_field)
    if source.n_vocab is None:
        if not isinstance(tokenizer, TokenizerConfig) and tokenizer.kind == "tokens":
            raise RequestError(f"{spec} is text, and the training corpus has tokens of its own.")
        return Plan(source, spec, tokenizer, split_on)
    own = TokenIds(source.n_vocab)
    if isinstance(tokenizer, TokenizerConfig) or tokenizer.kind not in ("bytes", "tokens"):
        raise RequestError(
            f"{spec} yields tokens of its own, {source.n_vocab:,} of them, and no text: leave out "
            "data.tokenizer."
        )
    return Plan(source, spec, own, split_on)


def cached_store(plan: Plan, cache: Path, told: Told) -> Store:
    """The store of a plan from the cache, made where it is not there or not whole.

    Raises `RequestError` naming SCALING_JAX_CACHE where the cache cannot be written.
    """
    folder = epath.Path(cache) / "stores" / f"{plan.source.name}-{plan.key()[:16]}"
    if folder.is_dir():
        with contextlib.suppress(AbsentFile, DamagedStore):
            return open_store(folder, told=told)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"Cannot write the corpus to {cache} ({error.strerror}): "
            "set SCALING_JAX_CACHE to a folder that can be written."
        ) from None
    try:
        prepare_store(plan, folder, told, in_cache=True)
    except WorkError as error:
        raise WorkError(f"{error} SCALING_JAX_CACHE may name another folder.") from error
    return open_store(folder, at_once=0)


def _prepared(
    spec: str,
    data: DataConfig,
    tokenizer: Tokenizer | TokenizerConfig,
    cache: Path,
    told: Told,
) -> Store:
    return cached_store(plan_store(spec, data.text_field, tokenizer, data.split_on), cache, told)


def _require_wanted(store: Store, tokenizer: Tokenizer | TokenizerConfig, data: DataConfig) -> None:
    """Refuses a store that contradicts what of `data` is not left at its default."""
    spec, manifest, config = data.source, store.manifest, data.tokenizer
    if data.split_on not in (None, manifest.split_on):
        raise RequestError(
            f"{spec} was split on {manifest.split_on!r} and data.split_on is {data.split_on!r}: "
            "leave it out, or prepare the source again."
        )
    if config == TokenizerConfig():
        return
    found = manifest.tokenizer
    wanted = (
        ("bpe", config.n_vocab)
        if isinstance(tokenizer, TokenizerConfig)
        else (tokenizer.kind, tokenizer.n_vocab)
    )
    other_file = (
        not isinstance(tokenizer, TokenizerConfig) and tokenizer.fingerprint != found.fingerprint
    )
    if (found.kind, found.n_vocab) != wanted or other_file:
        raise RequestError(
            f"{spec} holds tokens of {found.kind}, {found.n_vocab:,} of them, and data.tokenizer "
            "asks for others: leave it out, or prepare the source again."
        )


def _require_comparable(name: str, store: Store, train: Store) -> None:
    if store.manifest.tokenizer.fingerprint != train.manifest.tokenizer.fingerprint:
        raise RequestError(
            f"evaluation.corpora {name}: {store.manifest.source} is in other tokens than the "
            f"training corpus, {train.manifest.source}: give its text, and it is tokenized alike."
        )
    if store.manifest.fingerprint == train.manifest.fingerprint:
        raise _is_trained_on(name, store.manifest.source)


def _is_trained_on(name: str, source: str) -> RequestError:
    return RequestError(
        f"evaluation.corpora {name} is the training corpus itself, {source}, whose validation and "
        "test splits are evaluated anyway: leave it out."
    )


def _corpus(train: Store, further: Mapping[str, Store]) -> Corpus:
    manifest = train.manifest
    named = [(name, further[name].manifest.fingerprint) for name in sorted(further)]
    fingerprint = manifest.fingerprint
    if named:
        fingerprint = hashlib.sha256(json.dumps([fingerprint, named]).encode()).hexdigest()
    nats = manifest.bigram_nats
    return Corpus(
        name=manifest.name,
        fingerprint=fingerprint,
        n_vocab=manifest.tokenizer.n_vocab,
        separator=manifest.tokenizer.separator,
        bigram_nats=float("nan") if nats is None else nats,
        train=train.split("train"),
        validation=train.split("validation"),
        test=train.split("test"),
        tokenizer=manifest.tokenizer.kind,
        token_bytes=train.token_bytes(),
        evaluations={name: store.whole() for name, store in further.items()},
    )


class _Given:
    """Documents of text in memory, as a source."""

    n_vocab: int | None = None
    licence: str | None = None

    def __init__(self, name: str, documents: list[tuple[str, bytes]]) -> None:
        self.name = name
        self.facts: dict[str, Any] = {}
        self.skipped: dict[str, int] = {}
        self._documents = documents

    def key(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for document_id, content in self._documents:
            digest.update(f"{len(document_id.encode())} {len(content)}\n{document_id}".encode())
            digest.update(content)
        return {"kind": "given", "sha256": digest.hexdigest()}

    def documents(self) -> Iterator[Document]:
        return (Document(*document) for document in self._documents)


def _silent(what: str, done: int, total: int | None) -> None:
    """Nobody hears of the progress."""
