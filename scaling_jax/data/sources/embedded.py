"""The default source, with no download: the library source of the running interpreter."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scaling_jax.data.sources.source import Document
from scaling_jax.errors import RequestError

_LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"})


class Embedded:
    """The library source of the running interpreter, as `documents` gives it."""

    name = "embedded"
    n_vocab: int | None = None
    licence: str | None = "PSF-2.0"

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.skipped: dict[str, int] = {}

    def key(self) -> dict[str, Any]:
        """The paths of the files, their sizes and their times of change."""
        library = _library()
        return {"kind": "embedded", "root": str(library), "files": _listed(library)}

    def documents(self) -> Iterator[Document]:
        """Every file, the empty ones too; raises `RequestError` for one that is unreadable."""
        return documents()


def documents(library: Path | None = None) -> Iterator[Document]:
    """Each `.py` file of the standard library: its path in the library, and its bytes.

    Sorted by the path written with `/`. Installed packages, test folders and idlelib are left out;
    inside a virtual environment the library is that of the interpreter it was made from.
    Raises `RequestError` for a library without source and for an unreadable file.
    """
    for document_id, path in _paths(_library() if library is None else library):
        try:
            yield Document(document_id, path.read_bytes())
        except OSError as error:
            raise _unreadable(path, error) from None


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _listed(library: Path) -> list[list[str | int]]:
    try:
        statuses = [(document_id, path.stat()) for document_id, path in _paths(library)]
    except OSError as error:
        raise _unreadable(library, error) from None
    return [[document_id, status.st_size, status.st_mtime_ns] for document_id, status in statuses]


def _paths(library: Path) -> list[tuple[str, Path]]:
    try:
        paths = {path.relative_to(library).as_posix(): path for path in _python_files(library)}
    except OSError as error:
        raise _unreadable(library, error) from None
    if not paths:
        raise RequestError(
            f"No .py files of the standard library in {library}: the embedded corpus needs a "
            "Python installation that carries its library's source."
        )
    return sorted(paths.items())


def _python_files(library: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(library, onerror=_raise, followlinks=False):
        subfolders[:] = [name for name in subfolders if name not in _LEFT_OUT]
        for name in files:
            if name.endswith(".py"):
                yield Path(folder, name)


def _raise(error: OSError) -> None:
    raise error


def _unreadable(path: Path, error: OSError) -> RequestError:
    return RequestError(
        f"Cannot read {error.filename or path} for the embedded corpus ({error.strerror}): "
        "repair the Python installation or use another interpreter."
    )
