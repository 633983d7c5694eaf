from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scaling_jax.data.sources import open_source
from scaling_jax.data.sources import tfds as tfds_source
from scaling_jax.data.sources.tfds import Tfds
from scaling_jax.errors import RequestError

pytest.importorskip("tensorflow_datasets")


@pytest.fixture
def folder(tfds_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
    return tfds_folder


def test_a_split_is_read_whole_and_by_shard(folder):
    found = Tfds("tfds:tiny_books:train")
    documents = list(found.documents())
    books = {f"bóok {number}".encode() for number in range(20) if number != 7}
    assert {bytes(content) for _, content in documents} == books
    shards = {document_id.partition(":")[0] for document_id, _ in documents}
    assert shards == {f"tiny_books-train.array_record-0000{n}-of-00003" for n in range(3)}
    assert len({document_id for document_id, _ in documents}) == 19
    assert found.skipped == {"empty documents": 1}
    assert list(found.documents()) == documents
    assert found.skipped == {"empty documents": 1}
    assert (found.name, found.n_vocab) == ("tfds-tiny_books-train", None)
    assert (found.licence, found.facts) == ("CC0 1.0", {"tfds": "tiny_books/1.0.0"})


def test_slices_have_the_documents_of_the_whole(folder, monkeypatch):
    monkeypatch.setattr(tfds_source, "_READ_RECORDS", 3)
    whole = list(Tfds("tfds:tiny_books:train").documents())
    parts = [list(Tfds(f"tfds:tiny_books:train[{s}]").documents()) for s in (":35%", "35%:", ":1")]
    assert parts[0] + parts[1] == whole
    assert parts[2] == whole[:1]
    both = list(Tfds("tfds:tiny_books:train[:3]+test").documents())
    assert both[-5:] == list(Tfds("tfds:tiny_books:test").documents())
    assert len(both) in (7, 8)  # the empty one may be among the three


def test_the_feature_and_the_id_are_those_asked_for(folder):
    found = open_source("tfds:tiny_pages/short:train", "body")
    pages = {(str(number), f"page {number}".encode()) for number in range(4)}
    assert set(found.documents()) == pages
    assert (found.name, found.licence) == ("tfds-tiny_pages-short-train", None)
    with pytest.raises(RequestError, match=r"tiny_pages/short/2\.1\.0, record .* is not UTF-8"):
        list(open_source("tfds:tiny_pages/short:train", "raw").documents())


def test_the_key_is_of_the_shards_that_are_read(folder):
    key = Tfds("tfds:tiny_books:train").key()
    assert key == Tfds("tfds:tiny_books:train").key() == json.loads(json.dumps(key))
    others = ["tfds:tiny_books:test", "tfds:tiny_books:train[:50%]", "tfds:tiny_books:train[1:]"]
    assert all(Tfds(other).key() != key for other in others)
    shard = folder / "tiny_books/1.0.0/tiny_books-train.array_record-00001-of-00003"
    os.utime(shard, ns=(1, 1))
    assert Tfds("tfds:tiny_books:train").key() != key


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("tfds:tiny_books", "does not say which split, such as tfds:tiny_books:train"),
        ("tfds:", "not of the form tfds:NAME:SPLIT"),
        ("tfds:huggingface:c4/en:train", "TFDS knows no dataset 'huggingface'"),
        ("tfds:../x:train", "not of the form tfds:NAME:SPLIT"),
        ("tfds:tiny_books:trian", "has no split 'trian' .* Did you mean 'train'"),
        ("tfds:tiny_books:train[:x]", "has no split 'train"),
        ("tfds:tiny_books:train[100:]", "has no split 'train"),
        ("tfds:tiny_books:train[50%:10%]", "leaves no record"),
        ("tfds:tiny_pages/short:train", "no feature 'text' of text .* Known: body, raw"),
        ("tfds:tiny_bookz:train", "TFDS knows no dataset 'tiny_bookz'.* Did you mean 'tiny_books'"),
        ("tfds:tiny_pages/shor:train", "no config 'shor'. Did you mean 'short'"),
        ("tfds:tiny_books/en:train", "no configs, and so no 'en'"),
        ("tfds:c4/eng:train", "c4 has no config 'eng'. Did you mean 'en'"),
    ],
)
def test_what_is_not_there_is_named(folder, spec, said):
    with pytest.raises(RequestError, match=said):
        Tfds(spec)


def test_a_damaged_or_missing_shard_is_named(tfds_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    shutil.copytree(tfds_folder / "tiny_books", tmp_path / "tiny_books")
    shard = tmp_path / "tiny_books/1.0.0/tiny_books-train.array_record-00001-of-00003"
    whole = shard.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:100] + b"\1" * 400 + whole[500:]):
        shard.write_bytes(damaged)
        with pytest.raises(RequestError, match=r"tiny_books/1\.0\.0"):
            list(Tfds("tfds:tiny_books:train").documents())
    shard.unlink()
    with pytest.raises(RequestError, match=r"Cannot read .*00001-of-00003"):
        Tfds("tfds:tiny_books:train")
    (shard.parent / "dataset_info.json").write_text("{")
    with pytest.raises(RequestError, match="Cannot read what is prepared of tiny_books"):
        Tfds("tfds:tiny_books:train")


def test_no_tensorflow_in_the_process(folder, tmp_path):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("__version__ = '2.20.0'\n")
    script = (
        "import importlib.util, sys\n"
        "from scaling_jax.data.sources import open_source\n"
        "assert len(list(open_source('tfds:tiny_books:train[:50%]').documents())) > 8\n"
        "assert importlib.util.find_spec('tensorflow') is not None\n"
        "assert 'tensorflow' not in sys.modules, 'imported'\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(tfds_source.__file__).parents[3])])
    subprocess.run(
        [sys.executable, "-c", script], check=True, env=os.environ | {"PYTHONPATH": path}
    )
