from __future__ import annotations

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling_jax.data.sources.files import Files
from scaling_jax.errors import RequestError


def _write(folder, files: dict[str, bytes]):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _open(path, text_field="text") -> Files:
    return Files(epath.Path(path), text_field)


def test_a_folder_of_text_in_sorted_order(tmp_path):
    texts = {"b.txt": b"b", "a/z.md": b"z", "a.py": b"p", "a/package.json": b"{}", "a/no.txt": b""}
    others = {"image.png": b"\0", "a/data.tar": b"t", ".hidden": b"h", ".git/config": b"h"}
    _write(tmp_path, texts | others)
    found = _open(tmp_path)
    documents = list(found.documents())
    assert documents == [
        ("a.py", b"p"),
        ("a/package.json", b"{}"),
        ("a/z.md", b"z"),
        ("b.txt", b"b"),
    ]
    told = {"files of another kind": 1, "empty documents": 1, "binary files": 1}
    assert found.skipped == told
    assert list(found.documents()) == documents
    assert found.skipped == told
    assert (found.n_vocab, found.licence, found.facts) == (None, None, {})


def test_data_files_are_the_corpus_and_what_lies_beside_is_left_out(tmp_path):
    lines = {"b.jsonl": b'{"text": "b"}', "a/a.jsonl": b'{"text": "a"}\n{"text": ""}'}
    _write(tmp_path, lines | {"readme.md": b"r"})
    found = _open(tmp_path)
    assert list(found.documents()) == [("a/a.jsonl:1", b"a"), ("b.jsonl:1", b"b")]
    assert found.skipped == {"files of another kind": 1, "empty documents": 1}
    pq.write_table(pa.table({"text": ["p"]}), tmp_path / "p.parquet")
    with pytest.raises(RequestError, match=r"both JSON lines and Parquet, a/a\.jsonl and p\.parq"):
        _open(tmp_path)


def test_a_single_file_is_what_its_name_says(tmp_path):
    _write(tmp_path, dict.fromkeys(("a.json", "a.txt", "corpus"), b'{"text": "j"}'))
    assert list(_open(tmp_path / "a.json").documents()) == [("a.json:1", b"j")]
    for name in ("a.txt", "corpus"):
        assert list(_open(tmp_path / name).documents()) == [(name, b'{"text": "j"}')]
    assert _open(tmp_path / "a.txt").name == "a"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "holds no file of text, JSON lines or Parquet"),
        (["_hidden"], "holds no file of text, JSON lines or Parquet"),
        (["a.json", "b.json"], r"holds \.json files alone, such as a\.json: call them \.jsonl"),
        (["a.tar.gz", "b.zip"], r"a\.tar\.gz is an archive: unpack it"),
    ],
)
def test_a_folder_with_nothing_usable_is_refused(tmp_path, names, said):
    for name in names:
        (tmp_path / name.replace("_", ".")).write_bytes(b"{}")
    with pytest.raises(RequestError, match=said):
        _open(tmp_path)
    if "a.tar.gz" in names:
        with pytest.raises(RequestError, match=said):
            _open(tmp_path / "a.tar.gz")


def test_the_key_changes_with_what_is_read(tmp_path):
    _write(tmp_path, {"a.jsonl": b'{"text": "a"}'})
    key = _open(tmp_path).key()
    assert key == _open(tmp_path).key() == json.loads(json.dumps(key))
    assert key != _open(tmp_path, "body").key()
    assert key != _open(tmp_path / "a.jsonl").key()
    os.utime(tmp_path / "a.jsonl", ns=(1, 1))
    touched = _open(tmp_path).key()
    assert touched != key
    _write(tmp_path, {"a.jsonl": b'{"text": "ab"}'})
    os.utime(tmp_path / "a.jsonl", ns=(1, 1))
    assert _open(tmp_path).key() != touched


def test_names_fit_a_file(tmp_path):
    for given_name, name in {"a b.c": "a-b", "..x": "x", "é": "files", "n" * 90: "n" * 40}.items():
        _write(tmp_path / given_name, {"a.txt": b"a"})
        assert _open(tmp_path / given_name).name == name


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RequestError, match=r"Cannot read .*gone\.txt"):
        _open(tmp_path)


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"\xff.txt")).write_text("x")
    except OSError:
        pytest.skip("the disk has no such names")
    with pytest.raises(RequestError, match="is not UTF-8: give it another"):
        Files(epath.Path(tmp_path))


def test_a_pipe_is_not_waited_for(tmp_path):
    _write(tmp_path, {"a.txt": b"a"})
    os.mkfifo(tmp_path / "pipe.txt")
    assert list(_open(tmp_path).documents()) == [("a.txt", b"a")]
    with pytest.raises(RequestError, match=r"pipe\.txt is neither a file nor a folder"):
        _open(tmp_path / "pipe.txt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_is_not_permitted_is_named(tmp_path):
    _write(tmp_path, {"a.txt": b"a"})
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(RequestError, match=r"Cannot read .*a\.txt: Permission denied"):
        list(_open(tmp_path).documents())


_KINDS = ("txt", "jsonl", "jsonl.gz", "jsonl.xz", "jsonl.bz2", "jsonl.zst", "parquet")


@pytest.mark.parametrize("kind", _KINDS)
@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=8), is_ascii=st.booleans())
def test_any_text_comes_back_from_every_format(tmp_path_factory, compress, kind, texts, is_ascii):
    folder = tmp_path_factory.mktemp("texts")
    lines = "".join(json.dumps({"text": t}, ensure_ascii=is_ascii) + "\n" for t in texts).encode()
    if kind == "txt":
        texts = [text.replace("\0", "0").removeprefix("\ufeff") for text in texts]
        for number, text in enumerate(texts):
            (folder / f"{number}.txt").write_bytes(text.encode())
    elif kind == "parquet":
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), folder / "a.parquet")
    else:
        (folder / f"a.{kind}").write_bytes(compress(lines, kind))
    found = _open(folder)
    assert [content for _, content in found.documents()] == [t.encode() for t in texts if t]
    assert found.skipped.get("empty documents", 0) == texts.count("")
