from __future__ import annotations

import sys

import pytest

from scaling_jax.data.sources import open_source, tfds_build
from scaling_jax.errors import RequestError

pytest.importorskip("tensorflow_datasets")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))


def test_a_dataset_of_beam_is_not_begun(tmp_path):
    with pytest.raises(RequestError, match="prepares it with Apache Beam") as refusal:
        open_source("tfds:c4/en:train")
    command = str(refusal.value).splitlines()[-1]
    assert command.startswith("python -c 'import tensorflow_datasets as tfds")
    assert 'tfds.builder("c4/en"' in command and str(tmp_path / "data") in command
    assert not (tmp_path / "data").exists()


def test_what_cannot_be_downloaded_says_how_to_prepare_it(monkeypatch):
    script = "print('begun') or {name}.nothing or {data_dir} or {kind}"
    monkeypatch.setattr(tfds_build, "_SCRIPT", script)
    said = r"lm1b is not prepared in .*could not .*prepare it here \(AttributeError: 'str' object"
    with pytest.raises(RequestError, match=said) as refusal:
        open_source("tfds:lm1b:train")
    assert str(refusal.value).splitlines()[-1].startswith("python -c ")


def test_what_can_be_downloaded_is_prepared_once(monkeypatch, tfds_folder):
    script = (
        "import shutil; shutil.copytree({source!r}, {{data_dir}} + '/tiny_books/1.0.0'); "
        "print({{name}}, {{kind}})"
    ).format(source=str(tfds_folder / "tiny_books/1.0.0"))
    monkeypatch.setattr(tfds_build, "_SCRIPT", script)
    documents = list(open_source("tfds:tiny_books:test").documents())
    assert len(documents) == 5
    monkeypatch.setattr(tfds_build, "_SCRIPT", "{name}.nothing")
    assert list(open_source("tfds:tiny_books:test").documents()) == documents


def test_another_format_than_array_record_is_refused(tmp_path, tfds_folder):
    folder = tmp_path / "data" / "tiny_books" / "1.0.0"
    folder.mkdir(parents=True)
    for path in (tfds_folder / "tiny_books/1.0.0").iterdir():
        content = path.read_bytes().replace(b"array_record", b"tfrecord")
        (folder / path.name.replace("array_record", "tfrecord")).write_bytes(content)
    with pytest.raises(RequestError, match="is not there as ArrayRecord"):
        open_source("tfds:tiny_books:train")


def test_a_bucket_of_datasets_is_refused(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://tfds-data/datasets")
    with pytest.raises(RequestError, match="read from a disk, and TFDS_DATA_DIR is gs://tfds-data"):
        open_source("tfds:lm1b:train")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(RequestError, match=r"pip install 'scaling_jax\[tfds\]'"):
        open_source("tfds:lm1b:train")
