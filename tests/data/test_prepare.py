from __future__ import annotations

import resource

import numpy as np
import pytest
from etils import epath

from scaling_jax.config_data import TokenizerConfig
from scaling_jax.data import prepare, shards
from scaling_jax.data.bigram import bigram_nats
from scaling_jax.data.prepare import Plan, prepare_store
from scaling_jax.data.sources import Document
from scaling_jax.data.splits import SPLITS, split_of
from scaling_jax.data.store import open_store
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.records.locks import FolderLock
from tests.data.stores import (
    DOCUMENTS,
    TEXTS,
    Listed,
    files,
    made,
    planned,
    read_back,
    require_contents,
    small_stretches,
)

BPE = TokenizerConfig(name="bpe", n_vocab=300)


@pytest.fixture(autouse=True)
def _small_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    small_stretches(monkeypatch)


def test_every_document_comes_back_from_its_split(tmp_path):
    manifest, built = made(tmp_path / "a")
    store = open_store(epath.Path(tmp_path / "a"))
    assert built and store.manifest == manifest and len(manifest.shards) > 5
    require_contents(store, DOCUMENTS)
    for name in SPLITS:
        counts, split = manifest.splits[name], store.split(name)
        assert (counts.tokens, counts.documents) == (len(split.tokens), len(split.doc_starts))
        assert counts.text_bytes == counts.tokens - counts.documents
        assert split.tokens.dtype == np.uint16 and split.doc_starts.dtype == np.int64
    whole = read_back(store.whole(), 256)
    assert sorted(whole) == sorted(list(content) for _, content in DOCUMENTS)
    train, validation = (np.asarray(store.split(name).tokens) for name in SPLITS[:2])
    assert manifest.bigram_nats == bigram_nats(train, validation, 257)
    assert (manifest.licence, manifest.facts) == ("CC0-1.0", {"entropy": 1.5})
    assert manifest.skipped == {"empty documents": 3}


def test_a_source_of_tokens_keeps_them(tmp_path):
    rng = np.random.default_rng(0)
    documents = [(f"d{i}", rng.integers(0, 70000, i % 9)) for i in range(80)]
    manifest, _ = made(tmp_path, planned(documents, n_vocab=70000))
    store = open_store(epath.Path(tmp_path))
    assert (manifest.dtype, manifest.tokenizer.n_vocab) == ("<u4", 70001)
    assert manifest.tokenizer.kind == "tokens" and store.token_bytes() is None
    assert [split.text_bytes for split in manifest.splits.values()] == [None, None, None]
    require_contents(store, [(name, content.tolist()) for name, content in documents])


def test_a_tokenizer_is_trained_on_the_training_split(tmp_path):
    manifest, _ = made(tmp_path / "a", planned(TEXTS, BPE, "#"))
    store = open_store(epath.Path(tmp_path / "a"))
    tokenizer = store.tokenizer()
    assert (tokenizer.n_vocab, manifest.tokenizer.n_vocab, manifest.dtype) == (300, 300, "<u2")
    for name in SPLITS:
        wanted = [text.decode() for book, text in TEXTS if split_of(book, "#") == name]
        found = read_back(store.split(name), tokenizer.separator)
        assert [tokenizer.decode(np.array(row, np.int64)) for row in found] == wanted
        assert manifest.splits[name].text_bytes == sum(len(text.encode()) for text in wanted)
    token_bytes = store.token_bytes()
    assert token_bytes is not None and tokenizer.token_bytes is not None
    np.testing.assert_array_equal(token_bytes, tokenizer.token_bytes)
    other = [(book, text if split_of(book, "#") == "train" else b"z" * 500) for book, text in TEXTS]
    same, _ = made(tmp_path / "b", planned(other, BPE, "#"))
    assert same.tokenizer == manifest.tokenizer and same.fingerprint != manifest.fingerprint
    loaded, _ = made(tmp_path / "c", planned(TEXTS, tokenizer, "#"))
    assert loaded.fingerprint == manifest.fingerprint


def test_the_fingerprint_knows_ids_contents_order_and_borders(tmp_path):
    variants = [
        [("a", b"xy"), ("b", b"")],
        [("a", b"xy")],
        [("b", b""), ("a", b"xy")],
        [("a", b"x"), ("b", b"y")],
        [("ax", b"y"), ("b", b"")],
        [("a", b"xz"), ("b", b"")],
    ]
    plans = [*map(planned, variants), planned(variants[0], split_on="#")]
    prints = [made(tmp_path / str(i), plan)[0].fingerprint for i, plan in enumerate(plans)]
    assert len(set(prints)) == len(plans)


def test_the_fingerprint_does_not_know_shards_names_nor_workers(tmp_path, monkeypatch):
    first, _ = made(tmp_path / "a")
    monkeypatch.setattr(shards, "_STRETCH", 1000)
    monkeypatch.setattr(prepare, "_WORKERS", 1)
    source = Listed(DOCUMENTS, name="other")
    second, _ = made(tmp_path / "b", Plan(source, "elsewhere", planned().tokenizer))
    assert len(second.shards) < len(first.shards)
    assert second.fingerprint == first.fingerprint
    assert second.bigram_nats == first.bigram_nats


@pytest.mark.parametrize("documents", [[], [("file0.py", b"")], [("abc.py", b"xyz")]])
def test_empty_splits_are_empty(tmp_path, documents):
    manifest, _ = made(tmp_path, planned(documents))
    store = open_store(epath.Path(tmp_path))
    require_contents(store, documents)
    assert store.split("test").doc_starts.shape == (0,) and len(store.split("test").tokens) == 0
    assert manifest.bigram_nats is None
    assert len(store.whole().tokens) == sum(len(content) + 1 for _, content in documents)


def test_a_store_that_is_there_is_not_touched_and_the_source_not_read(tmp_path):
    made(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    plan = planned()
    manifest, built = made(tmp_path, plan)
    assert not built and isinstance(plan.source, Listed) and plan.source.reads == 0
    after = {path: path.stat().st_mtime_ns for path in before if path.name != ".lock"}
    assert after.items() <= before.items()
    assert manifest.splits["train"].documents == sum(
        split_of(document_id) == "train" for document_id, _ in DOCUMENTS
    )


def test_another_store_and_other_things_are_not_written_over(tmp_path):
    made(tmp_path / "a")
    before = files(tmp_path / "a")
    with pytest.raises(RequestError, match="holds another token store, of listed: choose another"):
        made(tmp_path / "a", planned(DOCUMENTS[1:]))
    assert files(tmp_path / "a") == before
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("")
    with pytest.raises(RequestError, match=r"holds other things .thesis\.txt.: choose another"):
        made(tmp_path / "b")
    assert list(files(tmp_path / "b")) == ["thesis.txt"]


def test_a_full_disk_is_said_and_what_was_written_is_kept(tmp_path, monkeypatch):
    made(tmp_path / "whole")
    monkeypatch.setattr(prepare, "_WORKERS", 1)
    big = [*DOCUMENTS[:100], ("big", b"x" * 9000), *DOCUMENTS[100:]]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
    try:
        with pytest.raises(WorkError, match=r"shards/000\d\d\.tokens: File too large"):
            made(tmp_path / "a", planned(big))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept = {path: path.stat().st_ino for path in (tmp_path / "a").rglob("*.tokens")}
    assert kept and not list((tmp_path / "a").rglob("*.tmp"))
    made(tmp_path / "a", planned(big))
    assert {path: path.stat().st_ino for path in kept} == kept
    require_contents(open_store(epath.Path(tmp_path / "a")), big)


def test_a_lock_that_was_lost_stops_the_preparation(tmp_path, monkeypatch):
    monkeypatch.setattr(FolderLock, "lost", lambda self: "another took over")
    with pytest.raises(WorkError, match="another took over: the preparation stops here"):
        made(tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_a_fault_of_a_document_reaches_the_caller_and_names_it(tmp_path):
    documents = [*TEXTS, ("novel0#bad", b"\xff" * 20)]
    tokenizer = (
        open_store(epath.Path(tmp_path / "a"))
        if made(tmp_path / "a", planned(TEXTS, BPE))[1]
        else None
    )
    assert tokenizer is not None
    with pytest.raises(RequestError, match="Document novel0#bad is not UTF-8: byte 0"):
        made(tmp_path / "b", planned(documents, tokenizer.tokenizer()))


def test_progress_is_told_in_bytes(tmp_path):
    heard: list[tuple[str, int, int | None]] = []
    prepare_store(planned(TEXTS, BPE), epath.Path(tmp_path), lambda *told: heard.append(told))
    size = sum(len(text) for _, text in TEXTS)
    whats = list(dict.fromkeys(what for what, _, _ in heard))
    assert whats == [
        "reading for the tokenizer",
        "training a tokenizer of 300 tokens",
        "documents to tokens",
    ]
    done = [n for what, n, _ in heard if what == "documents to tokens"]
    assert done == sorted(done) and len(done) > 10
    assert heard[-1] == ("documents to tokens", size, size)


def test_documents_may_be_of_any_iterable_kind():
    assert shards.stretches(iter([Document("a", b"")])).__next__().size() == 0
