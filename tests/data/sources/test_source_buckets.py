"""Sources in a bucket, through the real clients and a real server of each kind of store."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath

from scaling_jax.data.sources import open_source
from scaling_jax.errors import RequestError
from tests.records.object_stores import ObjectStore, folder_of_test, serving_bucket

NAME = "sources"


@pytest.fixture(scope="module", params=("s3", "gs"))
def store(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    with serving_bucket(request.param, NAME) as running:
        yield running


@pytest.fixture
def bucket(store: ObjectStore, request: pytest.FixtureRequest) -> epath.Path:
    return folder_of_test(store, NAME, request)


def _lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def test_a_folder_in_a_bucket_is_read_as_a_local_one(bucket, tmp_path):
    pages = {
        "text": {"a/b.txt": "é".encode(), "c.md": b"c", ".hidden": b"h", "image.png": b"\0"},
        "jsonl": {"a/x.jsonl.gz": gzip.compress(_lines("one", "", "two")), "readme.md": b"r"},
        "parquet": {"p.parquet": _parquet("three", "four")},
    }
    for kind, files in pages.items():
        for name, content in files.items():
            for root in (tmp_path, bucket):
                (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
                (root / kind / name).write_bytes(content)
        local, remote = (open_source(str(root / kind)) for root in (tmp_path, bucket))
        assert list(remote.documents()) == list(local.documents()) != []
        assert remote.skipped == local.skipped
        assert remote.name == local.name
    one = open_source(str(bucket / "jsonl" / "a" / "x.jsonl.gz"))
    assert list(one.documents()) == [("x.jsonl.gz:1", b"one"), ("x.jsonl.gz:3", b"two")]


def _parquet(*texts: str) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": texts}), sink)
    return sink.getvalue().to_pybytes()


def test_the_key_changes_with_an_object_of_the_same_size(bucket):
    path = bucket / "a.jsonl"
    path.write_bytes(_lines("one"))
    key = open_source(str(bucket)).key()
    assert open_source(str(bucket)).key() == key == json.loads(json.dumps(key))
    path.write_bytes(_lines("two"))
    assert open_source(str(bucket)).key() != key


def test_faults_in_a_bucket_are_named(bucket):
    (bucket / "corpus.jsonl").write_bytes(b"{}\n")
    with pytest.raises(RequestError, match=r"corpus\.jsonl, line 1 has no field 'text'"):
        list(open_source(str(bucket)).documents())
    with pytest.raises(RequestError, match=r"Did you mean 'corpus\.jsonl'"):
        open_source(str(bucket / "corpus.json"))
