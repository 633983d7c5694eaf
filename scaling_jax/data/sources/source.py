"""What a source of documents is, and what every document of text must be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from scaling_jax.errors import RequestError

MAX_DOCUMENT = 64 * 2**20
"""Bytes of UTF-8 text: a longer document is refused, so that reading takes bounded memory."""


class Document(NamedTuple):
    """One document: an id, by which it is split, and its UTF-8 text or its token ids."""

    id: str
    content: bytes | np.ndarray


class Source(Protocol):
    """Documents in a fixed order, and what is known of them beforehand."""

    @property
    def name(self) -> str:
        """Short, and fit to be a part of a file's name."""
        ...

    @property
    def n_vocab(self) -> int | None:
        """Number of token ids of a source that yields tokens; None for text."""
        ...

    @property
    def licence(self) -> str | None:
        """Under which the documents are, where that is known."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of the documents beforehand, such as their entropy; JSON."""
        ...

    @property
    def skipped(self) -> dict[str, int]:
        """What the latest pass over `documents` left out, and how many of each; JSON."""
        ...

    def key(self) -> dict[str, Any]:
        """A cheap identity, JSON: while it is equal, the documents are taken to be equal."""
        ...

    def documents(self) -> Iterator[Document]:
        """Every document, in the same order each time.

        Raises `RequestError` naming the file and the line or the record at fault.
        """
        ...


def checked_text(text: str | bytes, where: str) -> bytes:
    """The UTF-8 bytes of one document, `where` being its file and line or record.

    Raises `RequestError` for what is not UTF-8 and for more than `MAX_DOCUMENT` bytes.
    """
    if isinstance(text, str):
        content = encoded(text, where)
    else:
        decoded(text, where)
        content = text
    if len(content) > MAX_DOCUMENT:
        raise too_long(where, f"{len(content):,} bytes of text")
    return content


def decoded(content: bytes, where: str) -> str:
    """The text of UTF-8 bytes; raises `RequestError` naming the byte that is none."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RequestError(
            f"{where} is not UTF-8: byte {error.start} of it, in its line {line}, is "
            f"0x{content[error.start]:02x}. Convert it, for example with iconv -t UTF-8."
        ) from None


def encoded(text: str, where: str) -> bytes:
    """The UTF-8 bytes of a text; raises `RequestError` naming the character that has none."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{where}: character {error.start} of a text is U+{ord(text[error.start]):04X}, half "
            "of a surrogate pair, which UTF-8 has no bytes for. Repair or remove it."
        ) from None


def too_long(where: str, size: str) -> RequestError:
    """The error of a document that is longer than memory should hold."""
    return RequestError(
        f"{where} is too long for one document: {size}, and the limit is {MAX_DOCUMENT:,} bytes of "
        "text. Split it into several."
    )
