"""JSON lines: one object a line, of which one field is the text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from scaling_jax.data.sources.source import Document, checked_text, decoded, encoded
from scaling_jax.data.sources.streams import lines
from scaling_jax.errors import RequestError, nearest


def documents(path: epath.Path, file_id: str, text_field: str) -> Iterator[Document]:
    """The text of each line, known by the line's `id` or else by `file_id:line`.

    Raises `RequestError` naming the file and the line.
    """
    for number, line in lines(path):
        if not line.isspace():
            where = f"{path}, line {number}"
            row = _object(line, where)
            yield Document(
                _id_of(row, where) or f"{file_id}:{number}", _text_of(row, text_field, where)
            )


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(decoded(line, where).strip())
    except json.JSONDecodeError as error:
        raise RequestError(
            f"{where} is not JSON: {error.msg} (character {error.pos + 1}). "
            "Each line is to hold one JSON object."
        ) from None
    except (ValueError, RecursionError):
        raise RequestError(f"{where} is JSON with too many digits or too many levels.") from None
    if not isinstance(row, dict):
        raise RequestError(f"{where} holds no JSON object but {json.dumps(row)[:40]}.")
    return row


def _text_of(row: dict[str, Any], text_field: str, where: str) -> bytes:
    if text_field not in row:
        raise RequestError(
            f"{where} has no field {text_field!r} for data.text_field."
            + (nearest(text_field, row) if row else " It has none.")
        )
    text = row[text_field]
    if not isinstance(text, str):
        raise RequestError(
            f"{where}: the field {text_field!r} holds no text but {json.dumps(text)[:40]}."
        )
    return checked_text(text, where)


def _id_of(row: dict[str, Any], where: str) -> str | None:
    found = row.get("id")
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    if found is not None and not isinstance(found, str):
        raise RequestError(f"{where}: the field 'id' holds no id but {json.dumps(found)[:40]}.")
    if found is not None:
        encoded(found, where)
    return found
