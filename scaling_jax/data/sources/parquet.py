"""Parquet: one row a document, of which one column is the text, read by groups of rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from scaling_jax.data.sources.source import Document, checked_text, decoded
from scaling_jax.errors import RequestError, nearest
from scaling_jax.records.files import reading

# what bounds memory where a file has one large group of rows
_BATCH_ROWS = 256
_BUFFER_BYTES = 2**20


def documents(path: epath.Path, file_id: str, text_field: str) -> Iterator[Document]:
    """The text of each row, known by its column `id` or else by `file_id:row`, rows from 1.

    Raises `RequestError` naming the file and the row.
    """
    row = 0
    with reading(path), path.open("rb") as stream, _whole(path):
        file = pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES)
        columns = _columns(file.schema_arrow, path, text_field)
        for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
            texts = _values(batch, text_field)
            ids = _values(batch, "id") if "id" in columns else [None] * batch.num_rows
            for text, found in zip(texts, ids, strict=True):
                row += 1
                where = f"{path}, row {row}"
                if text is None:
                    raise RequestError(
                        f"{where}: the column {text_field!r} holds no text but null."
                    )
                document_id = _id_of(found, where) or f"{file_id}:{row}"
                yield Document(document_id, checked_text(text, where))


@contextlib.contextmanager
def _whole(path: epath.Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        said = " ".join(str(error).split()).rstrip(".")
        raise RequestError(
            f"{path} is not whole Parquet ({said}). Fetch or write it again."
        ) from None


def _columns(schema: pa.Schema, path: epath.Path, text_field: str) -> list[str]:
    if text_field not in schema.names:
        raise RequestError(
            f"{path} has no column {text_field!r} for data.text_field."
            + (nearest(text_field, schema.names) if schema.names else " It has none.")
        )
    twice = [name for name in (text_field, "id") if schema.names.count(name) > 1]
    if twice:
        raise RequestError(f"{path} has several columns {twice[0]!r}: keep one of them.")
    kind = _value_type(schema, text_field)
    if not _is_text(kind):
        raise RequestError(f"{path}: the column {text_field!r} holds no text but {kind}.")
    if "id" not in schema.names or text_field == "id":
        return [text_field]
    id_kind = _value_type(schema, "id")
    has_id = _is_text(id_kind) or pa.types.is_integer(id_kind)
    return [text_field, "id"] if has_id else [text_field]


def _value_type(schema: pa.Schema, name: str) -> pa.DataType:
    kind = schema.field(name).type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def _id_of(found: bytes | int | None, where: str) -> str | None:
    if isinstance(found, bytes):
        return decoded(found, where)
    return None if found is None else str(found)


def _values(batch: pa.RecordBatch, name: str) -> list[Any]:
    """The column as bytes or integers: what is written as a string need not be UTF-8."""
    kind = _value_type(batch.schema, name)
    column = batch.column(name).cast(kind)
    return (column.cast(pa.large_binary()) if _is_text(kind) else column).to_pylist()
