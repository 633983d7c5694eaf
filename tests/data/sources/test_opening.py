from __future__ import annotations

import pytest

from scaling_jax.data.sources import open_source
from scaling_jax.data.sources import tfds as tfds_source
from scaling_jax.errors import RequestError


def test_each_name_opens_its_source(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text('{"body": "b"}')
    (tmp_path / "c4").mkdir()
    (tmp_path / "c4" / "a.txt").write_text("t")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source("embedded").name == "embedded"
    assert open_source("synthetic").n_vocab is not None
    for spec in ("a.jsonl", "~/a.jsonl", str(tmp_path / "a.jsonl")):
        assert list(open_source(spec, "body").documents()) == [("a.jsonl:1", b"b")]
    assert list(open_source("./c4").documents()) == [("a.txt", b"t")]


def test_a_recipe_is_its_dataset_and_feature(monkeypatch):
    monkeypatch.setattr(tfds_source, "Tfds", lambda spec, text_field: (spec, text_field))
    assert open_source("c4") == ("tfds:c4/en:train", "text")
    assert open_source("pg19") == ("tfds:pg19:train", "book_text")
    assert open_source("pg19", "book_title") == ("tfds:pg19:train", "book_title")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("embeded", "No file or folder embeded. Did you mean 'embedded'"),
        ("wikipedia_en", "Did you mean 'wikipedia'"),
        ("corpus.jsnl", "Did you mean 'corpus.jsonl'"),
        ("tfd:c4:train", "Known beside paths: embedded, synthetic, c4"),
        ("nowhere/corpus.jsonl", "No file or folder nowhere/corpus.jsonl"),
        (" ", "The name of the data source is empty"),
        ("https://x.org/a.jsonl", "it is no folder, gs:// or s3:// path"),
    ],
)
def test_a_name_for_nothing_is_refused_with_the_nearest(tmp_path, monkeypatch, spec, said):
    (tmp_path / "corpus.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=said):
        open_source(spec)
