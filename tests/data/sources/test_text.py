from __future__ import annotations

import pytest
from etils import epath

from scaling_jax.data.sources import source, text
from scaling_jax.errors import RequestError


def _read(tmp_path, content: bytes, is_named: bool = False):
    path = epath.Path(tmp_path / "a.txt")
    path.write_bytes(content)
    return text.document(path, "sub/a.txt", is_named)


def test_a_file_is_a_document(tmp_path):
    assert _read(tmp_path, "dé\n".encode() * 9000) == ("sub/a.txt", "dé\n".encode() * 9000)
    assert _read(tmp_path, b"") == ("sub/a.txt", b"")
    assert _read(tmp_path, b"\xef\xbb\xbfbegun") == ("sub/a.txt", b"begun")


def test_a_binary_file_is_none_unless_it_was_named(tmp_path):
    assert _read(tmp_path, b"\x89PNG\0\0\xff") is None
    assert _read(tmp_path, b"a\0b", is_named=True) == ("sub/a.txt", b"a\0b")
    with pytest.raises(RequestError, match=r"a\.txt is not UTF-8: byte 0"):
        _read(tmp_path, b"\x89PNG\0\0\xff", is_named=True)


def test_what_is_not_utf8_is_named_with_its_line(tmp_path):
    with pytest.raises(RequestError, match=r"a\.txt is not UTF-8: byte 9 of it, in its line 3, is"):
        _read(tmp_path, b"one\ntwo\nd\xe9j\xe0\n")


def test_a_long_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "MAX_DOCUMENT", 9000)
    monkeypatch.setattr(source, "MAX_DOCUMENT", 9000)
    assert _read(tmp_path, b"a" * 9000) is not None
    with pytest.raises(RequestError, match=r"a\.txt is too long for one document: more than 9,000"):
        _read(tmp_path, b"a" * 9001)
