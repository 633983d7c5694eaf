"""A file or a folder of text, JSON lines or Parquet, on a disk or in a bucket."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from scaling_jax.data.sources import jsonl, parquet, text
from scaling_jax.data.sources.listing import File, files_of, of_one_kind
from scaling_jax.data.sources.source import Document
from scaling_jax.records.files import is_local


class Files:
    """The documents of one file, or of all files of one kind in a folder, in sorted order.

    The id of a document is its field `id`, or else the file's path in the folder with the number
    of the line or row; of a text file it is that path alone.
    """

    n_vocab: int | None = None
    licence: str | None = None

    def __init__(self, root: epath.Path, text_field: str = "text"):
        """Raises `RequestError` for a folder with nothing usable and one that is unreadable."""
        self._root = root
        self._text_field = text_field
        found = files_of(self._root)
        self._kind, self._files = of_one_kind(self._root, found)
        self._left_out = len(found) - len(self._files)
        self.facts: dict[str, Any] = {}
        self.skipped: dict[str, int] = {}

    @property
    def name(self) -> str:
        """The file's or folder's own, without what the name of a file had better not carry."""
        stem = self._root.name.split(".")[0] or self._root.name
        return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:40] or "files"

    def key(self) -> dict[str, Any]:
        """Where the files are, their sizes, and their times of change or what a bucket has."""
        return {
            "kind": self._kind,
            "root": os.fspath(self._root.resolve() if is_local(self._root) else self._root),
            "text_field": None if self._kind == "text" else self._text_field,
            "files": [[file.id, file.size, file.version] for file in self._files],
        }

    def documents(self) -> Iterator[Document]:
        """Every document that is not empty; raises `RequestError` naming the file and line."""
        self.skipped = {}
        if self._left_out:
            self._skip("files of another kind", self._left_out)
        for file in self._files:
            for document in self._documents(file):
                if document.content:
                    yield document
                else:
                    self._skip("empty documents")

    def _documents(self, file: File) -> Iterator[Document]:
        if self._kind == "jsonl":
            return jsonl.documents(file.path, file.id, self._text_field)
        if self._kind == "parquet":
            return parquet.documents(file.path, file.id, self._text_field)
        return self._text(file)

    def _text(self, file: File) -> Iterator[Document]:
        document = text.document(file.path, file.id, is_named=file.path == self._root)
        if document is None:
            self._skip("binary files")
        else:
            yield document

    def _skip(self, what: str, count: int = 1) -> None:
        self.skipped[what] = self.skipped.get(what, 0) + count
