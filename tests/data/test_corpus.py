from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from scaling_jax.data import corpus, embedded
from scaling_jax.data.bigram import bigram_nats
from scaling_jax.data.corpus import SEPARATOR, SPLITS, build, prepare, split_of
from scaling_jax.errors import RequestError

DOCUMENTS = [(f"file{i}.py", bytes([i % 256, 0, 255]) * (i % 7)) for i in range(200)]


def read_back(split: corpus.Split) -> list[bytes]:
    ends = [*split.doc_starts[1:], len(split.tokens)]
    documents = []
    for start, end in zip(split.doc_starts, ends, strict=True):
        *content, last = split.tokens[start:end].tolist()
        assert last == SEPARATOR
        documents.append(bytes(content))
    return documents


def folders(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir()]


def test_every_document_comes_back_from_its_split(tmp_path):
    made = build("tiny", DOCUMENTS, tmp_path)
    for name in SPLITS:
        expected = [content for document_id, content in DOCUMENTS if split_of(document_id) == name]
        split = getattr(made, name)
        assert read_back(split) == expected
        assert split.tokens.dtype == np.uint16
        assert split.doc_starts.dtype == np.int64
    assert (made.n_vocab, made.separator) == (257, 256)
    assert made.bigram_nats == bigram_nats(made.train.tokens, made.validation.tokens, 257)
    assert folders(tmp_path) == [f"tiny-{made.fingerprint[:16]}"]


def test_tokens_are_mapped_and_read_only(tmp_path):
    for made in (build("tiny", DOCUMENTS, tmp_path), build("tiny", DOCUMENTS, tmp_path)):
        assert isinstance(made.train.tokens, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            made.train.tokens[0] = 1


def test_the_split_is_by_document_and_about_90_5_5():
    names = [split_of(f"package{i}/module.py") for i in range(4000)]
    shares = [names.count(split) / len(names) for split in SPLITS]
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=0.015)
    known = {"abc.py": "train", "functools.py": "validation", "gzip.py": "test"}
    assert {name: split_of(name) for name in known} == known


def test_the_fingerprint_knows_ids_contents_order_and_borders(tmp_path):
    variants = [
        [("a", b"xy"), ("b", b"")],
        [("a", b"xy")],
        [("b", b""), ("a", b"xy")],
        [("a", b"x"), ("b", b"y")],
        [("ax", b"y"), ("b", b"")],
        [("a", b"xz"), ("b", b"")],
    ]
    prints = [build("tiny", documents, tmp_path).fingerprint for documents in variants]
    assert len(set(prints)) == len(variants)
    assert build("tiny", variants[0], tmp_path / "other").fingerprint == prints[0]


@pytest.mark.parametrize("documents", [[], [("file0.py", b"")]])
def test_empty_splits_are_empty(tmp_path, documents):
    for _ in range(2):
        made = build("tiny", documents, tmp_path)
        assert sum(len(getattr(made, split).tokens) for split in SPLITS) == len(documents)
        assert made.test.doc_starts.shape == (0,)
        assert math.isnan(made.bigram_nats)


def spoil_cut(folder: Path) -> None:
    tokens = folder / "train.npy"
    tokens.write_bytes(tokens.read_bytes()[:-2])


def spoil_flip(folder: Path) -> None:
    tokens = folder / "validation.npy"
    content = bytearray(tokens.read_bytes())
    content[-1] ^= 1
    tokens.write_bytes(content)


def spoil_missing(folder: Path) -> None:
    (folder / "test_doc_starts.npy").unlink()


def spoil_manifest_missing(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def spoil_manifest_cut(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text()[:100])


def spoil_manifest_of_another(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "fingerprint": "0"}))


def spoil_is_a_file(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("not a folder")


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_cut,
        spoil_flip,
        spoil_missing,
        spoil_manifest_missing,
        spoil_manifest_cut,
        spoil_manifest_of_another,
        spoil_is_a_file,
    ],
)
def test_a_folder_that_is_not_whole_is_built_anew(tmp_path, spoil):
    made = build("tiny", DOCUMENTS, tmp_path)
    (folder,) = tmp_path.iterdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    expected = read_back(made.train)
    spoil(folder)
    assert read_back(build("tiny", DOCUMENTS, tmp_path).train) == expected
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert folders(tmp_path) == [folder.name]


def test_a_whole_folder_is_not_touched(tmp_path):
    build("tiny", DOCUMENTS, tmp_path)
    (folder,) = tmp_path.iterdir()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    build("tiny", DOCUMENTS, tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_loser_reads_what_the_winner_built(tmp_path, monkeypatch):
    write = corpus._write

    def write_while_another_wins(*arguments):
        write(*arguments)
        monkeypatch.setattr(corpus, "_write", write)
        build("tiny", DOCUMENTS, tmp_path)
        (winner,) = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
        (winner / "winner").touch()

    monkeypatch.setattr(corpus, "_write", write_while_another_wins)
    made = build("tiny", DOCUMENTS, tmp_path)
    assert folders(tmp_path) == [f"tiny-{made.fingerprint[:16]}"]
    assert (tmp_path / folders(tmp_path)[0] / "winner").exists()


def build_at_once(cache: Path, start, results) -> None:
    start.wait()
    made = build("tiny", DOCUMENTS, cache)
    results.put((made.fingerprint, read_back(made.train)))


@pytest.mark.parametrize("spoiled", [False, True])
def test_processes_may_build_at_once(tmp_path, spoiled):
    expected = build("tiny", DOCUMENTS, tmp_path / "alone")
    cache = tmp_path / "shared"
    if spoiled:
        build("tiny", DOCUMENTS, cache)
        spoil_flip(cache / folders(cache)[0])
    spawn = multiprocessing.get_context("spawn")
    start, results = spawn.Barrier(2), spawn.Queue()
    processes = [
        spawn.Process(target=build_at_once, args=(cache, start, results)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert found == [(expected.fingerprint, read_back(expected.train))] * 2
    assert folders(cache) == [f"tiny-{expected.fingerprint[:16]}"]


def test_the_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALING_JAX_CACHE", str(tmp_path / "named"))
    build("tiny", DOCUMENTS)
    monkeypatch.delenv("SCALING_JAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    build("tiny", DOCUMENTS)
    assert folders(tmp_path / "named") == folders(tmp_path / "home" / ".cache" / "scaling_jax")


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="SCALING_JAX_CACHE"):
        build("tiny", DOCUMENTS, tmp_path / "file")


def test_a_read_only_cache_that_is_whole_is_read(tmp_path, monkeypatch):
    made = build("tiny", DOCUMENTS, tmp_path)

    def refuse(*_arguments, **_named):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert build("tiny", DOCUMENTS, tmp_path).fingerprint == made.fingerprint
    with pytest.raises(RequestError, match="SCALING_JAX_CACHE"):
        build("tiny", DOCUMENTS[1:], tmp_path)


def test_an_unknown_source_is_refused(tmp_path):
    with pytest.raises(RequestError, match="Did you mean 'embedded'"):
        prepare("embeded", tmp_path)


def test_the_embedded_corpus(tmp_path):
    made = prepare("embedded", tmp_path)
    total = sum(len(getattr(made, split).tokens) for split in SPLITS)
    assert total == sum(len(content) + 1 for _, content in embedded.documents())
    assert len(made.train.tokens) > 0.8 * total
    assert len(made.validation.tokens) > 100_000
    assert 2.2 < made.bigram_nats < 2.6
