"""A preparation that was interrupted, spoilt, or begun twice."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from scaling_jax.config_data import TokenizerConfig
from scaling_jax.data import prepare, shards
from scaling_jax.data.prepare import Plan, prepare_store
from scaling_jax.data.store import open_store
from scaling_jax.errors import RequestError
from scaling_jax.records.locks import FolderLock
from tests.data.stores import (
    DOCUMENTS,
    TEXTS,
    Listed,
    files,
    made,
    planned,
    require_contents,
    silent,
    small_stretches,
)

BPE = TokenizerConfig(name="bpe", n_vocab=300)


@pytest.fixture(autouse=True)
def _small_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    small_stretches(monkeypatch)


class Killed(BaseException):
    pass


class Failing(Listed):
    """Ends in an error after some documents."""

    def __init__(self, documents: Any, after: int) -> None:
        super().__init__(documents)
        self._after = after

    def documents(self):
        for i, document in enumerate(super().documents()):
            if i == self._after and self.reads == 1:
                raise Killed
            yield document


@pytest.mark.parametrize("after", [0, 20, 150, 199])
def test_interrupted_and_resumed_it_is_the_same_store(tmp_path, monkeypatch, after):
    made(tmp_path / "whole")
    source = Failing(DOCUMENTS, after)
    plan = Plan(source, "listed", planned().tokenizer)
    with pytest.raises(Killed):
        made(tmp_path / "resumed", plan)
    kept = {path: path.stat().st_ino for path in (tmp_path / "resumed").rglob("*.tokens")}
    assert (after < 40) == (len(kept) < 5)
    encoded = []
    monkeypatch.setattr(prepare, "tokenized", lambda *a: encoded.append(a) or shards.tokenized(*a))
    manifest, built = made(tmp_path / "resumed", plan)
    assert built and files(tmp_path / "resumed") == files(tmp_path / "whole")
    assert {path: path.stat().st_ino for path in kept} == kept
    assert len(encoded) == len(manifest.shards) - len(kept)


def test_a_trained_tokenizer_is_kept_for_the_resumption(tmp_path, monkeypatch):
    made(tmp_path / "whole", planned(TEXTS, BPE))

    def kill(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(prepare._Building, "_make_shards", kill)
        with pytest.raises(Killed):
            made(tmp_path / "resumed", planned(TEXTS, BPE))
    kept = (tmp_path / "resumed" / "tokenizer.json").read_bytes()
    for data, reads in ((kept, 1), (kept[:-9], 2)):
        (tmp_path / "resumed" / "tokenizer.json").write_bytes(data)
        plan = planned(TEXTS, BPE)
        with monkeypatch.context() as patch:
            patch.setattr(prepare, "write_manifest", kill)
            with pytest.raises(Killed):
                made(tmp_path / "resumed", plan)
        assert isinstance(plan.source, Listed) and plan.source.reads == reads
    made(tmp_path / "resumed", planned(TEXTS, BPE))
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")


def spoil_other_documents(folder: Path) -> None:
    commit = folder / "segments" / "00001.json"
    commit.write_bytes(
        commit.read_bytes().replace(b'"documents_sha256": "', b'"documents_sha256": "0')
    )


def spoil_cut_commit(folder: Path) -> None:
    commit = folder / "segments" / "00001.json"
    commit.write_bytes(commit.read_bytes()[:50])


def spoil_other_tokenizer(folder: Path) -> None:
    commit = folder / "segments" / "00001.json"
    commit.write_bytes(commit.read_bytes().replace(b'"tokenizer": "', b'"tokenizer": "0'))


def spoil_shard(folder: Path) -> None:
    shard = folder / "shards" / "00001.tokens"
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(data)


def spoil_lengths_missing(folder: Path) -> None:
    (folder / "shards" / "00001.lengths").unlink()


def spoil_more_shards(folder: Path) -> None:
    for name in ("shards/00999.tokens", "shards/.00001.tokens.0a1b2c3d.tmp", ".x.9f9f9f9f.tmp"):
        (folder / name).write_bytes(b"left over")


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_other_documents,
        spoil_cut_commit,
        spoil_other_tokenizer,
        spoil_shard,
        spoil_lengths_missing,
        spoil_more_shards,
    ],
)
def test_what_an_earlier_attempt_left_is_kept_only_where_it_is_sound(tmp_path, spoil):
    made(tmp_path / "whole")
    plan = Plan(Failing(DOCUMENTS, 150), "listed", planned().tokenizer)
    with pytest.raises(Killed):
        made(tmp_path / "resumed", plan)
    spoil(tmp_path / "resumed")
    made(tmp_path / "resumed", plan)
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")


def test_the_beginning_of_another_store_is_refused(tmp_path):
    plan = Plan(Failing(DOCUMENTS, 150), "listed", planned().tokenizer)
    with pytest.raises(Killed):
        made(tmp_path, plan)
    with pytest.raises(RequestError, match="holds the beginning of another token store"):
        made(tmp_path, planned(DOCUMENTS[1:]))
    (tmp_path / "building.json").write_bytes(b"{")
    with pytest.raises(RequestError, match="holds the damaged beginning of a token store"):
        made(tmp_path, plan)
    assert made(tmp_path, plan, in_cache=True)[1]


def test_what_a_killed_builder_did_not_remove_goes(tmp_path, monkeypatch):
    made(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_remove_scaffold", lambda folder: None)
        made(tmp_path / "killed")
    assert (tmp_path / "killed" / "building.json").exists()
    assert not made(tmp_path / "killed")[1]
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def spoil_finished(folder: Path) -> None:
    spoil_shard(folder)


def spoil_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"{")


@pytest.mark.parametrize("spoil", [spoil_finished, spoil_manifest])
def test_a_damaged_store_is_built_anew_in_the_cache_and_refused_elsewhere(tmp_path, spoil):
    made(tmp_path)
    before = files(tmp_path)
    spoil(tmp_path)
    with pytest.raises(RequestError, match="Remove it and prepare the source again"):
        made(tmp_path)
    assert made(tmp_path, in_cache=True)[1]
    assert files(tmp_path) == before


def build_slowly(folder: str, started: Any) -> None:
    """Builds, and stays at its first document until it is killed."""

    class Slow(Listed):
        def documents(self):
            started.set()
            time.sleep(60)
            yield from super().documents()

    prepare_store(Plan(Slow(DOCUMENTS), "listed", planned().tokenizer), epath.Path(folder), silent)


def test_the_second_builder_waits_for_the_first_as_long_as_that_lives(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    started = spawn.Event()
    first = spawn.Process(target=build_slowly, args=(str(tmp_path), started))
    first.start()
    heard: list[str] = []

    def told(what: str, done: int, total: int | None) -> None:
        if what.startswith("waiting"):
            heard.append(what)
            assert first.pid is not None
            os.kill(first.pid, signal.SIGKILL)

    assert started.wait(60)
    _, built = prepare_store(planned(), epath.Path(tmp_path), told)
    first.join()
    assert built and f"waiting for pid {first.pid} on" in heard[0]
    require_contents(open_store(epath.Path(tmp_path)), DOCUMENTS)


def test_the_second_builder_has_the_store_of_the_first(tmp_path):
    other = FolderLock(epath.Path(tmp_path))
    other.__enter__()
    made(tmp_path / "aside")
    want = files(tmp_path / "aside")

    def told(what: str, done: int, total: int | None) -> None:
        for name, data in want.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(data)
        other.__exit__(None, None, None)

    plan = planned()
    _, built = prepare_store(plan, epath.Path(tmp_path), told)
    assert not built and isinstance(plan.source, Listed) and plan.source.reads == 0
