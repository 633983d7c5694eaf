"""Copies of a store, here of one in a folder, which copying does not tell from a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest
from etils import epath

from scaling_jax.data import shards
from scaling_jax.data.copies import local_copy
from scaling_jax.data.prepare import prepare_store
from scaling_jax.data.store import DamagedStore
from scaling_jax.records.files import AbsentFile
from tests.data.stores import DOCUMENTS, files, planned, require_contents, silent


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> epath.Path:
    monkeypatch.setattr(shards, "_STRETCH", 500)
    prepare_store(planned(), epath.Path(tmp_path / "made"), silent)
    return epath.Path(tmp_path / "made")


def test_a_copy_is_the_store_and_made_once(made, tmp_path):
    heard = []
    copy = local_copy(made, tmp_path / "cache", lambda *told: heard.append(told))
    require_contents(copy, DOCUMENTS)
    assert files(Path(copy.folder)) == files(Path(made))
    total = sum(file.bytes for file in copy.manifest.files().values())
    assert heard[-1] == (f"copying {made}", total, total)
    for path in Path(made, "shards").iterdir():
        path.unlink()
    assert local_copy(made, tmp_path / "cache", silent).folder == copy.folder


@pytest.mark.parametrize("name", ["shards/00001.tokens", "shards/00001.lengths", "manifest.json"])
def test_damage_of_a_copy_is_mended_and_nothing_else_is_copied(made, tmp_path, name):
    copy = local_copy(made, tmp_path / "cache", silent)
    before = {path: path.stat().st_ino for path in Path(copy.folder, "shards").iterdir()}
    (copy.folder / name).write_bytes(b"x")
    require_contents(local_copy(made, tmp_path / "cache", silent), DOCUMENTS)
    assert files(Path(copy.folder)) == files(Path(made))
    changed = [path for path in before if path.stat().st_ino != before[path]]
    assert changed == ([] if name == "manifest.json" else [Path(copy.folder, name)])


def test_a_copy_anew_reads_every_file_and_writes_none_that_is_sound(made, tmp_path):
    copy = local_copy(made, tmp_path / "cache", silent)
    before = {path: path.stat().st_ino for path in Path(copy.folder, "shards").iterdir()}
    require_contents(local_copy(made, tmp_path / "cache", silent, anew=True), DOCUMENTS)
    assert {path: path.stat().st_ino for path in before} == before
    (made / "shards/00001.tokens").write_bytes(b"x")
    local_copy(made, tmp_path / "cache", silent)
    with pytest.raises(DamagedStore, match=r"damaged in shards/00001\.tokens"):
        local_copy(made, tmp_path / "cache", silent, anew=True)


def test_damage_of_the_store_is_not_copied(made, tmp_path):
    (made / "shards/00001.tokens").write_bytes(b"x")
    with pytest.raises(DamagedStore, match=r"damaged in shards/00001\.tokens"):
        local_copy(made, tmp_path / "cache", silent)
    (made / "manifest.json").unlink()
    with pytest.raises(AbsentFile):
        local_copy(made, tmp_path / "cache", silent)
