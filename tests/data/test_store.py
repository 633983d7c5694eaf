from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from scaling_jax.data import shards, store
from scaling_jax.data.prepare import prepare_store
from scaling_jax.data.store import DamagedStore, is_store, open_store, read_manifest
from scaling_jax.errors import RequestError
from scaling_jax.records.files import AbsentFile
from tests.data.stores import DOCUMENTS, planned, require_contents, silent


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(shards, "_STRETCH", 500)
    prepare_store(planned(), epath.Path(tmp_path / "a"), silent)
    return tmp_path / "a"


def opened(folder: Path, **named: Any) -> store.Store:
    return open_store(epath.Path(folder), **named)


def rewrite(folder: Path, **fields: Any) -> None:
    """The manifest with other fields and the digest that belongs to them."""
    doc = json.loads((folder / "manifest.json").read_text()) | fields
    del doc["digest"]
    doc["digest"] = hashlib.sha256(json.dumps(doc, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(doc))


def test_tokens_are_mapped_and_read_only(folder):
    first = opened(folder).split("train").tokens[0:9]
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1
    while isinstance(first, np.ndarray) and not isinstance(first, np.memmap):
        first = first.base
    assert isinstance(first, np.memmap)


def test_a_store_may_move_and_be_copied(folder, tmp_path):
    moved = folder.rename(tmp_path / "b")
    require_contents(opened(moved), DOCUMENTS)
    assert is_store(epath.Path(moved)) and not is_store(epath.Path(folder))


@pytest.mark.parametrize(
    ("name", "spoil", "why"),
    [
        ("shards/00001.tokens", lambda data: data[:-2], r"it has [\d,]+ bytes and not [\d,]+"),
        ("shards/00001.tokens", lambda data: data + b"x", r"it has [\d,]+ bytes and not [\d,]+"),
        (
            "shards/00000.lengths",
            lambda data: data[:3] + b"\x01" + data[4:],
            "its digest is another",
        ),
        ("shards/00002.tokens", lambda data: b"\xff" + data[1:], "its digest is another"),
        ("token_bytes", lambda data: b"\xff" + data[1:], "its digest is another"),
        ("manifest.json", lambda data: data[:100], "it is cut, was edited, or is none of ours"),
        ("manifest.json", lambda data: b"[1]", "it is cut, was edited, or is none of ours"),
        (
            "manifest.json",
            lambda data: data.replace(b'"listed"', b'"others"'),
            "its digest is anoth",
        ),
    ],
)
def test_damage_is_refused_naming_the_file_and_the_remedy(folder, name, spoil, why):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(spoil(data))
    with pytest.raises(DamagedStore, match=f"damaged in {name}: {why}.*Remove it and prepare"):
        opened(folder)
    assert is_store(epath.Path(folder))


def test_a_file_that_is_missing_is_named(folder):
    (folder / "shards" / "00001.lengths").unlink()
    with pytest.raises(DamagedStore, match=r"damaged in shards/00001\.lengths: it is missing"):
        opened(folder)


def test_of_a_large_store_sizes_are_verified_and_digests_when_asked(folder):
    data = (folder / "shards" / "00001.tokens").read_bytes()
    (folder / "shards" / "00001.tokens").write_bytes(b"\xff" + data[1:])
    total = sum(file.bytes for file in read_manifest(epath.Path(folder)).files().values())
    opened(folder, at_once=total - 1)
    for at_once in (total, None):
        with pytest.raises(DamagedStore, match=r"damaged in shards/00001\.tokens"):
            opened(folder, at_once=at_once)
    (folder / "shards" / "00001.tokens").write_bytes(data[1:])
    with pytest.raises(DamagedStore, match="bytes and not"):
        opened(folder, at_once=0)


@pytest.mark.parametrize(
    "fields", [{"format": 3}, {"format": "2"}, {"kind": "somebody else's"}, {"kind": None}]
)
def test_a_newer_and_a_foreign_format_are_refused_by_name(folder, fields):
    rewrite(folder, **fields)
    with pytest.raises(RequestError, match=r"is of a .* of format .* and this version reads") as no:
        opened(folder)
    assert str(next(iter(fields.values()))) in str(no.value)
    assert not isinstance(no.value, DamagedStore)


def test_fields_that_are_not_as_they_should_be_are_damage(folder):
    for fields in ({"name": 3}, {"more": 1}, {"shards": [{}]}):
        rewrite(folder, **fields)
        with pytest.raises(DamagedStore, match=r"manifest\.json"):
            opened(folder)


def test_a_folder_without_a_manifest_is_no_store(tmp_path, folder):
    with pytest.raises(AbsentFile):
        opened(tmp_path)
    assert not is_store(epath.Path(tmp_path)) and not is_store(epath.Path(tmp_path / "none"))
    (tmp_path / "manifest.json").write_text('{"a": 1}')  # of some other program
    assert not is_store(epath.Path(tmp_path))
    (folder / "manifest.json").unlink()
    (folder / "building.json").write_text("{}")
    with pytest.raises(RequestError, match="is not finished: the same `scaling-jax data prepare`"):
        is_store(epath.Path(folder))
