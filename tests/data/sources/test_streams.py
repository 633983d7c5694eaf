from __future__ import annotations

import gzip
import tracemalloc

import pytest
from etils import epath

from scaling_jax.data.sources import streams
from scaling_jax.errors import RequestError

_KINDS = [".gz", ".xz", ".bz2", ".zst"]
_NOISE = bytes(range(256)) * 40 + b"\n" + b"end"


def _read(path):
    return list(streams.lines(epath.Path(path)))


@pytest.mark.parametrize("suffix", ["", *_KINDS])
def test_lines_of_each_compression(tmp_path, compress, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(b"\xef\xbb\xbfone\n\r\n\ntwo", suffix))
    assert _read(path) == [(1, b"one\n"), (2, b"\r\n"), (3, b"\n"), (4, b"two")]
    path.write_bytes(compress(b"one\n", suffix) + compress(b"two\n", suffix))
    assert _read(path) == [(1, b"one\n"), (2, b"two\n")]
    path.write_bytes(compress(b"", suffix))
    assert _read(path) == []


@pytest.mark.parametrize("suffix", _KINDS)
def test_a_damaged_file_is_named(tmp_path, compress, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    whole = compress(_NOISE, suffix)
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(RequestError, match=rf"a\.jsonl\{suffix} is (cut|not whole)"):
        _read(path)
    path.write_bytes(b"these are no compressed data at all")
    with pytest.raises(RequestError, match=rf"a\.jsonl\{suffix} is not whole \{suffix} data"):
        _read(path)


def test_an_endless_line_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MAX_LINE", 1000)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"short\n" + b"a" * 30_000_000))
    tracemalloc.start()
    with pytest.raises(RequestError, match=r"a\.jsonl\.gz, line 2, is too long for one document"):
        _read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000
    path.write_bytes(gzip.compress(b"a" * 999 + b"\n"))
    assert len(_read(path)) == 1


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(RequestError, match=r"Cannot read .*gone\.jsonl"):
        _read(tmp_path / "gone.jsonl")
