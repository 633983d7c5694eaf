from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath

from scaling_jax.data.sources import parquet, source
from scaling_jax.errors import RequestError


def _read(tmp_path, table, text_field: str = "text", **options):
    path = tmp_path / "a.parquet"
    table = table if isinstance(table, pa.Table) else pa.table(table)
    pq.write_table(table, path, **options)
    return list(parquet.documents(epath.Path(path), "sub/a.parquet", text_field))


def test_ids_are_the_column_or_the_row_across_groups(tmp_path):
    texts = [f"té {n}" for n in range(700)]
    numbered = [(f"sub/a.parquet:{n + 1}", t.encode()) for n, t in enumerate(texts)]
    assert _read(tmp_path, {"text": texts}, row_group_size=300) == numbered
    named = [(str(n * 3), t.encode()) for n, t in enumerate(texts)]
    assert _read(tmp_path, {"id": [n * 3 for n in range(700)], "text": texts}) == named
    some = {"id": ["a", None], "body": ["x", ""], "unused": [1.5, 2.5]}
    assert _read(tmp_path, some, "body") == [("a", b"x"), ("sub/a.parquet:2", b"")]
    assert _read(tmp_path, {"id": [1.5], "text": ["x"]}) == [("sub/a.parquet:1", b"x")]


@pytest.mark.parametrize(
    "kind",
    [pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int8(), pa.string())],
    ids=str,
)
def test_columns_that_are_text_too(tmp_path, kind):
    texts = pa.array(["é", "b", "é"]).cast(kind)
    contents = [content for _, content in _read(tmp_path, {"text": texts, "id": texts})]
    assert contents == [b"\xc3\xa9", b"b", b"\xc3\xa9"]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"txt": ["a"], "url": ["b"]}, "no column 'text' for data.text_field. Did you mean 'txt'"),
        ({"text": [1]}, "the column 'text' holds no text but int64"),
        ({"text": ["a", None]}, "row 2: the column 'text' holds no text but null"),
        ({"text": [b"a", b"a\xff"]}, "row 2 is not UTF-8: byte 1 of it"),
    ],
)
def test_a_fault_is_named_with_its_row(tmp_path, table, said):
    with pytest.raises(RequestError, match=rf"a\.parquet.*{said}"):
        _read(tmp_path, table)


@pytest.mark.parametrize("name", ["text", "id"])
def test_two_columns_of_a_name_are_refused(tmp_path, name):
    columns = [pa.array(["x"])] * 3
    table = pa.Table.from_arrays(columns, names=["text", "id", name])
    with pytest.raises(RequestError, match=f"several columns '{name}'"):
        _read(tmp_path, table)


def test_a_string_that_is_not_utf8_is_named(tmp_path):
    offsets, data = pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")
    wrong = pa.StringArray.from_buffers(1, offsets, data)
    for table in ({"text": wrong}, {"text": ["a"], "id": wrong}):
        with pytest.raises(RequestError, match=r"a\.parquet, row 1 is not UTF-8: byte 1"):
            _read(tmp_path, table)


def test_a_long_document_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "MAX_DOCUMENT", 10)
    with pytest.raises(RequestError, match=r"a\.parquet, row 2 is too long for one document"):
        _read(tmp_path, {"text": ["a" * 10, "a" * 11]})


def test_a_damaged_file_is_named(tmp_path):
    _read(tmp_path, {"text": [f"{n}" * 50 for n in range(1000)]}, compression="gzip")
    path = tmp_path / "a.parquet"
    whole = path.read_bytes()
    for damaged in (whole[:500], b"", whole[:100] + b"\0" * 200 + whole[300:]):
        path.write_bytes(damaged)
        with pytest.raises(RequestError, match=r"a\.parquet is not whole Parquet"):
            list(parquet.documents(epath.Path(path), "a.parquet", "text"))
