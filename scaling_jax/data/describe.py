"""What is in a token store, and which stores the cache has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from scaling_jax.data.splits import SPLITS
from scaling_jax.data.store import DamagedStore, Manifest, Store, read_manifest
from scaling_jax.errors import RequestError
from scaling_jax.records.files import AbsentFile

_SHOWN = 240  # characters of a sample


def describe_store(manifest: Manifest) -> dict[str, Any]:
    """The manifest without its shards, and the bytes of text that a token stands for; JSON."""
    found = manifest.model_dump(exclude={"shards", "tokenizer"})
    tokenizer = manifest.tokenizer.model_dump(exclude={"file", "token_bytes"})
    tokens = sum(split.tokens for split in manifest.splits.values())
    texts = [split.text_bytes for split in manifest.splits.values()]
    size = sum(text for text in texts if text is not None)
    return found | {
        "tokenizer": tokenizer,
        "tokens": tokens,
        "documents": sum(split.documents for split in manifest.splits.values()),
        "text_bytes": None if None in texts else size,
        "bytes_per_token": None if None in texts or not tokens else size / tokens,
        "file_bytes": sum(file.bytes for file in manifest.files().values()),
        "shards": len(manifest.shards),
    }


def samples(store: Store, count: int) -> list[dict[str, Any]]:
    """The beginnings of `count` training documents, decoded, spread evenly over the split.

    Of another split where there is no training document. Raises `RequestError` where the package
    of the tokenizer is not installed.
    """
    tokenizer = store.tokenizer()
    filled = [name for name in SPLITS if store.manifest.splits[name].documents]
    if not filled or count < 1:
        return []
    split = store.split(filled[0])
    n_documents = len(split.doc_starts)
    found = []
    for i in np.unique(np.arange(count) * n_documents // count).tolist():
        start = int(split.doc_starts[i])
        following = split.doc_starts[i + 1] if i + 1 < n_documents else len(split.tokens)
        read = split.tokens[start : min(int(following) - 1, start + _SHOWN)]
        text = tokenizer.decode(read)[:_SHOWN]
        tokens = int(following) - start - 1
        found.append({"split": filled[0], "document": i, "tokens": tokens, "text": text})
    return found


def cached_stores(cache: Path) -> list[dict[str, Any]]:
    """The stores in `cache` by name, whole by their manifests, which `state` says, or not."""
    folders = [path for kind in ("stores", "copies") for path in _inside(cache / kind)]
    return [_cached(epath.Path(folder)) for folder in sorted(folders)]


def _cached(folder: epath.Path) -> dict[str, Any]:
    found: dict[str, Any] = {"folder": str(folder), "state": "whole"}
    try:
        manifest = read_manifest(folder)
    except RequestError as error:
        return found | {"name": folder.name, "state": _state_of(error)}
    described = describe_store(manifest)
    kept = ("name", "source", "tokens", "documents", "file_bytes", "fingerprint")
    tokenizer = f"{manifest.tokenizer.kind} {manifest.tokenizer.n_vocab}"
    return found | {name: described[name] for name in kept} | {"tokenizer": tokenizer}


def _state_of(error: RequestError) -> str:
    if isinstance(error, AbsentFile):
        return "unfinished"
    return "damaged" if isinstance(error, DamagedStore) else "unreadable"


def _inside(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
