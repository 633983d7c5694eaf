"""The bytes of one file, uncompressed as they are read, and its lines."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

import pyarrow as pa
from etils import epath

from scaling_jax.data.sources.source import MAX_DOCUMENT, too_long
from scaling_jax.errors import RequestError
from scaling_jax.records.files import reading

MAX_LINE = 4 * MAX_DOCUMENT
r"""Bytes of one line of JSON, where two bytes of text may be six, as in é."""


def _unzstd(file: IO[bytes]) -> IO[bytes]:
    return io.BufferedReader(pa.CompressedInputStream(file, "zstd"))  # type: ignore[arg-type]


_DECOMPRESSORS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": _unzstd,
}
COMPRESSED = tuple(_DECOMPRESSORS)


@contextlib.contextmanager
def opened(path: epath.Path) -> Iterator[IO[bytes]]:
    """The file's bytes, uncompressed as its suffix says.

    Raises `RequestError` naming the file that cannot be read, is cut, or is not of that kind,
    for what is wrong inside the `with` block too.
    """
    decompress = _DECOMPRESSORS.get(path.suffix.lower())
    with reading(path), contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(path.open("rb"))
        if decompress is None:
            # the file of a bucket has no lines of bounded length of its own
            yield file if isinstance(file, io.BufferedReader) else io.BufferedReader(file)
        else:
            with _whole(path):
                yield stack.enter_context(decompress(file))


@contextlib.contextmanager
def _whole(path: epath.Path) -> Iterator[None]:
    try:
        yield
    except EOFError:
        raise RequestError(
            f"{path} is cut: its compressed data end too early. Fetch or write it again."
        ) from None
    except (lzma.LZMAError, zlib.error, gzip.BadGzipFile, pa.ArrowException) as error:
        raise _damaged(path, error) from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(path, error) from None  # bz2 and zstd say it so


def _damaged(path: epath.Path, error: Exception) -> RequestError:
    return RequestError(
        f"{path} is not whole {path.suffix} data ({str(error).rstrip('.')}). "
        "Fetch or write it again."
    )


def lines(path: epath.Path) -> Iterator[tuple[int, bytes]]:
    """Each line of the file and its number, from 1; without a byte order mark at the beginning.

    Raises `RequestError` as `opened` does, and for a line beyond `MAX_LINE` before it is read.
    """
    with opened(path) as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise too_long(f"{path}, line {number},", f"more than {MAX_LINE:,} bytes of JSON")
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
