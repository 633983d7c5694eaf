from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pathlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from scaling_jax.config_data import DataConfig, TokenizerConfig
from scaling_jax.data import prepare
from scaling_jax.data.corpus import SPLITS, build, cached_store, load_corpus, plan_store
from scaling_jax.data.prepare import prepare_store
from scaling_jax.data.sources import embedded
from scaling_jax.data.store import open_store
from scaling_jax.data.tokenizers import ByteTokenizer
from scaling_jax.errors import RequestError, WorkError
from tests.data.stores import (
    DOCUMENTS,
    TEXTS,
    files,
    of_split,
    planned,
    read_back,
    require_contents,
    silent,
)

BPE = TokenizerConfig(name="bpe", n_vocab=290)


def folders(cache: Path) -> list[str]:
    return [path.name for path in (cache / "stores").iterdir()]


@pytest.fixture
def lines(tmp_path: Path) -> str:
    path = tmp_path / "tiny.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": t.decode()}) + "\n" for i, t in TEXTS))
    return str(path)


@pytest.fixture
def poems(tmp_path: Path) -> str:
    path = tmp_path / "poems.jsonl"
    texts = [{"id": f"poem{i}", "text": f"O May {i}!"} for i in range(9)]
    path.write_text("".join(json.dumps(text) + "\n" for text in texts))
    return str(path)


def test_a_corpus_given_in_memory(tmp_path):
    made = build("tiny", DOCUMENTS, tmp_path)
    for name in SPLITS:
        assert read_back(getattr(made, name), 256) == of_split(name)
    assert (made.name, made.n_vocab, made.separator) == ("tiny", 257, 256)
    assert made.token_bytes is not None and made.token_bytes.tolist() == [1] * 256 + [0]
    assert made.evaluations == {}
    again = build("tiny", DOCUMENTS, tmp_path)
    assert again.fingerprint == made.fingerprint and len(folders(tmp_path)) == 1
    assert build("tiny", DOCUMENTS[1:], tmp_path).fingerprint != made.fingerprint
    assert len(folders(tmp_path)) == 2


def test_the_embedded_corpus(tmp_path):
    made = load_corpus(DataConfig(), cache=tmp_path)
    total = sum(len(getattr(made, split).tokens) for split in SPLITS)
    assert total == sum(len(content) + 1 for _, content in embedded.documents())
    assert len(made.train.tokens) > 0.8 * total
    assert len(made.validation.tokens) > 100_000
    assert 2.2 < made.bigram_nats < 2.6


def test_an_unchanged_source_is_not_read_again(lines, tmp_path, monkeypatch):
    data = DataConfig(source=lines, tokenizer=BPE, split_on="#")
    made = load_corpus(data, cache=tmp_path)
    assert (made.name, made.n_vocab) == ("tiny", 290)

    def read(*_: object) -> None:
        raise AssertionError("the source was read")

    with monkeypatch.context() as patch:
        patch.setattr(prepare._Building, "run", read)
        again = load_corpus(data, cache=tmp_path)
    assert again.fingerprint == made.fingerprint
    np.testing.assert_array_equal(np.asarray(again.train.tokens), np.asarray(made.train.tokens))
    with open(lines, "a") as file:
        file.write('{"id": "novel3#900", "text": "more"}\n')
    assert load_corpus(data, cache=tmp_path).fingerprint != made.fingerprint
    bytes_of_it = load_corpus(DataConfig(source=lines), cache=tmp_path)
    assert bytes_of_it.n_vocab == 257 and len(folders(tmp_path)) == 3


def test_order_seed_and_subsets_are_no_part_of_the_corpus(lines, tmp_path):
    other = DataConfig(source=lines, order="epochs", seed=3, unique_tokens=10, subset_seed=5)
    prints = [load_corpus(d, cache=tmp_path).fingerprint for d in (DataConfig(source=lines), other)]
    assert prints[0] == prints[1] and len(folders(tmp_path)) == 1


def test_a_store_is_read_as_it_is(lines, tmp_path, monkeypatch):
    plan = plan_store(lines, "text", BPE, "#")
    manifest, _ = prepare_store(plan, epath.Path(tmp_path / "store"), silent)
    for data in (
        DataConfig(source=str(tmp_path / "store")),
        DataConfig(source=str(tmp_path / "store"), tokenizer=BPE, split_on="#"),
    ):
        made = load_corpus(data, cache=tmp_path / "unused")
        assert (made.fingerprint, made.n_vocab) == (manifest.fingerprint, 290)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_corpus(DataConfig(source="~/store")).fingerprint == manifest.fingerprint
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ({"split_on": "/"}, "was split on '#' and data.split_on is '/'"),
        ({"tokenizer": TokenizerConfig(name="bpe", n_vocab=300)}, "holds tokens of bpe, 290"),
    ],
)
def test_a_store_that_is_not_what_the_config_asks_for_is_refused(lines, tmp_path, wanted, why):
    prepare_store(plan_store(lines, "text", BPE, "#"), epath.Path(tmp_path / "store"), silent)
    data = DataConfig(source=str(tmp_path / "store"), **wanted)
    with pytest.raises(RequestError, match=why):
        load_corpus(data, cache=tmp_path)


def test_a_store_is_compared_with_the_file_of_a_tokenizer(lines, tmp_path):
    prepare_store(plan_store(lines, "text", BPE, None), epath.Path(tmp_path / "store"), silent)
    file = tmp_path / "store" / "tokenizer.json"
    named = TokenizerConfig(name="bpe", file=str(file))
    data = DataConfig(source=str(tmp_path / "store"), tokenizer=named)
    assert load_corpus(data, cache=tmp_path).n_vocab == 290
    other = json.loads(file.read_text()) | {"normalizer": {"type": "NFC"}}
    (tmp_path / "other.json").write_text(json.dumps(other))
    data = data.model_copy(
        update={"tokenizer": TokenizerConfig(name="bpe", file=str(tmp_path / "other.json"))}
    )
    with pytest.raises(RequestError, match=r"data\.tokenizer asks for others"):
        load_corpus(data, cache=tmp_path)


def test_further_corpora_are_whole_and_in_the_same_tokens(lines, poems, tmp_path):
    data = DataConfig(source=lines, tokenizer=BPE)
    plain = load_corpus(data, cache=tmp_path)
    made = load_corpus(data, {"poems": poems}, cache=tmp_path)
    tokenizer = open_store(epath.Path(tmp_path / "stores") / folders(tmp_path)[0]).tokenizer()
    found = read_back(made.evaluations["poems"], made.separator)
    texts = [tokenizer.decode(np.array(row)) for row in found]
    assert sorted(texts) == [f"O May {i}!" for i in range(9)]
    np.testing.assert_array_equal(np.asarray(made.train.tokens), np.asarray(plain.train.tokens))
    named = load_corpus(data, {"verse": poems}, cache=tmp_path)
    assert len({plain.fingerprint, made.fingerprint, named.fingerprint}) == 3
    again = load_corpus(data, {"poems": poems}, cache=tmp_path)
    assert again.fingerprint == made.fingerprint


def test_an_evaluation_that_means_nothing_is_refused(lines, poems, tmp_path):
    data = DataConfig(source=lines, tokenizer=BPE)
    copied = shutil.copy(lines, tmp_path / "copied.jsonl")
    for own in (lines, str(copied)):
        with pytest.raises(RequestError, match=r"corpora own is the training corpus itself"):
            load_corpus(data, {"own": own}, cache=tmp_path)
    prepare_store(
        plan_store(poems, "text", ByteTokenizer(), None), epath.Path(tmp_path / "store"), silent
    )
    with pytest.raises(RequestError, match=r"corpora poems: .*poems.jsonl is in other tokens than"):
        load_corpus(data, {"poems": str(tmp_path / "store")}, cache=tmp_path)


def test_a_source_of_tokens_is_not_tokenized(poems, tmp_path):
    plan = planned([("a", np.array([1, 2]))], n_vocab=9)
    require_contents(cached_store(plan, tmp_path, silent), [("a", [1, 2])])
    source = "synthetic:tokens=3000,seed=1"
    made = load_corpus(DataConfig(source=source), {"a": source[:-1] + "2"}, cache=tmp_path)
    assert made.separator == made.n_vocab - 1 and made.token_bytes is None
    sizes = [len(getattr(made, name).tokens) for name in SPLITS]
    assert 3000 <= sum(sizes) <= 4000
    with pytest.raises(RequestError, match=r"yields tokens of its own.*leave out data.tokenizer"):
        load_corpus(DataConfig(source=source, tokenizer=BPE), cache=tmp_path)
    with pytest.raises(RequestError, match=r"poems.jsonl is text, and the training corpus has"):
        load_corpus(DataConfig(source=source), {"poems": poems}, cache=tmp_path)
    with pytest.raises(RequestError, match=r"corpora a: synthetic:.* is in other tokens than"):
        load_corpus(DataConfig(source=poems), {"a": source}, cache=tmp_path)


def test_a_source_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RequestError, match="Did you mean 'embedded'"):
        load_corpus(DataConfig(source="embeded"), cache=tmp_path)


def spoil_flip(folder: Path) -> None:
    shard = folder / "shards" / "00000.tokens"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)


def spoil_missing(folder: Path) -> None:
    (folder / "shards" / "00000.lengths").unlink()


def spoil_manifest_missing(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def spoil_manifest_cut(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text()[:100])


@pytest.mark.parametrize(
    "spoil", [spoil_flip, spoil_missing, spoil_manifest_missing, spoil_manifest_cut]
)
def test_a_cached_store_that_is_not_whole_is_built_anew(tmp_path, spoil):
    made = build("tiny", DOCUMENTS, tmp_path)
    folder = tmp_path / "stores" / folders(tmp_path)[0]
    before = files(folder)
    expected = read_back(made.train, 256)
    spoil(folder)
    assert read_back(build("tiny", DOCUMENTS, tmp_path).train, 256) == expected
    assert files(folder) == before


def build_at_once(cache: Path, start, results) -> None:
    start.wait()
    made = build("tiny", DOCUMENTS, cache)
    results.put((made.fingerprint, read_back(made.train, 256)))


@pytest.mark.parametrize("spoiled", [False, True])
def test_processes_may_build_at_once(tmp_path, spoiled):
    expected = build("tiny", DOCUMENTS, tmp_path / "alone")
    cache = tmp_path / "shared"
    if spoiled:
        build("tiny", DOCUMENTS, cache)
        spoil_flip(cache / "stores" / folders(cache)[0])
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
    assert found == [(expected.fingerprint, read_back(expected.train, 256))] * 2
    assert files(cache / "stores") == files(tmp_path / "alone" / "stores")


def test_the_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALING_JAX_CACHE", str(tmp_path / "named"))
    build("tiny", DOCUMENTS)
    monkeypatch.delenv("SCALING_JAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    build("tiny", DOCUMENTS)
    assert folders(tmp_path / "named") == folders(tmp_path / "home" / ".cache" / "scaling_jax")


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="SCALING_JAX_CACHE"):
        build("tiny", DOCUMENTS, tmp_path / "file")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WorkError, match=r"No space left on device.*SCALING_JAX_CACHE"):
        build("tiny", DOCUMENTS, tmp_path / "cache")


def test_a_read_only_cache_that_is_whole_is_read(tmp_path, monkeypatch):
    made = build("tiny", DOCUMENTS, tmp_path)

    def refuse(*_arguments, **_named):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    monkeypatch.setattr(os, "mkdir", refuse)
    monkeypatch.setattr(os, "makedirs", refuse)
    assert build("tiny", DOCUMENTS, tmp_path).fingerprint == made.fingerprint
    with pytest.raises(RequestError, match="SCALING_JAX_CACHE"):
        build("tiny", DOCUMENTS[1:], tmp_path)
