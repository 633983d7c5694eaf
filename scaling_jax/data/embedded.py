"""The default source, with no download: the library source of the running interpreter."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from scaling_jax.errors import RequestError

_LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"})


def documents(library: Path | None = None) -> Iterator[tuple[str, bytes]]:
    """Each `.py` file of the standard library: its path in the library, and its bytes.

    Sorted by the path written with `/`. Installed packages, test folders and idlelib are left out;
    inside a virtual environment the library is that of the interpreter it was made from.
    Raises `RequestError` for a library without source and for an unreadable file.
    """
    library = Path(sysconfig.get_path("stdlib")) if library is None else library
    try:
        paths = {path.relative_to(library).as_posix(): path for path in _python_files(library)}
    except OSError as error:
        raise _unreadable(library, error) from None
    if not paths:
        raise RequestError(
            f"No .py files of the standard library in {library}: the embedded corpus needs a "
            "Python installation that carries its library's source."
        )
    for document_id in sorted(paths):
        try:
            yield document_id, paths[document_id].read_bytes()
        except OSError as error:
            raise _unreadable(paths[document_id], error) from None


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
