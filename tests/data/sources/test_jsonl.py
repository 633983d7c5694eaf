from __future__ import annotations

import pytest
from etils import epath

from scaling_jax.data.sources import jsonl, source
from scaling_jax.errors import RequestError


def _read(tmp_path, content: bytes, text_field: str = "text"):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    return list(jsonl.documents(epath.Path(path), "sub/a.jsonl", text_field))


def test_ids_are_the_field_or_the_line(tmp_path):
    lines = (
        b'{"id": "x", "text": "one"}\n\n{"text": "tw\\u00f6"}\n{"id": 7, "text": "\xc3\xa9"}\n'
        b'{"id": null, "text": ""}\n{"id": "", "body": 1, "text": "end"}'
    )
    assert _read(tmp_path, lines) == [
        ("x", b"one"),
        ("sub/a.jsonl:3", "twö".encode()),
        ("7", "é".encode()),
        ("sub/a.jsonl:5", b""),
        ("sub/a.jsonl:6", b"end"),
    ]
    assert _read(tmp_path, b'{"body": "b"}', "body") == [("sub/a.jsonl:1", b"b")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{'text': 1}", "is not JSON: Expecting property name .*character 2"),
        (b'{"text": "cut', "is not JSON: Unterminated string"),
        (b'["text"]', r'holds no JSON object but \["text"\]'),
        (b"[" * 200_000, "too many levels"),
        (b"1" * 5000, "too many digits"),
        (b'{"txt": "a", "url": "b"}', "no field 'text' for data.text_field. Did you mean 'txt'"),
        (b"{}", "no field 'text' for data.text_field. It has none"),
        (b'{"text": 3}', "the field 'text' holds no text but 3"),
        (b'{"text": null}', "the field 'text' holds no text but null"),
        (b'{"text": "a", "id": [1]}', r"the field 'id' holds no id but \[1\]"),
        (b'{"text": "a", "id": true}', "the field 'id' holds no id but true"),
        (b'{"text": "a\xff"}', "is not UTF-8: byte 11 of it"),
        (b'{"text": "a\\ud800"}', r"character 1 of a text is U\+D800, half of a surrogate"),
        (b'{"text": "a", "id": "\\udfff"}', r"U\+DFFF, half of a surrogate"),
    ],
)
def test_a_line_at_fault_is_named_by_its_number(tmp_path, line, said):
    with pytest.raises(RequestError, match=rf"a\.jsonl, line 3.*{said}"):
        _read(tmp_path, b'{"text": "fine"}\n\n' + line + b"\n")


def test_a_long_document_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "MAX_DOCUMENT", 10)
    assert _read(tmp_path, b'{"text": "%s"}' % (b"a" * 10)) == [("sub/a.jsonl:1", b"a" * 10)]
    with pytest.raises(RequestError, match=r"line 1 is too long .* 11 bytes .* Split it"):
        _read(tmp_path, b'{"text": "%s"}' % (b"a" * 11))
