"""Whole files and nothing less: atomic writes, and JSON that knows when it was damaged."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import secrets
from collections.abc import Iterator
from typing import Any

from etils import epath

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.records.schema import FORMAT

_DIGITS = 12
_REMEDY = "Remove it, and the study writes it anew when it is run again."
_CLIENTS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # its package, and our extra with it


class AbsentFile(RequestError):
    """A file of the records that is not there."""


class DamagedRecord(RequestError):
    """A file of the records that does not hold what was written."""


def is_local(path: epath.Path) -> bool:
    """Whether the path is on a disk of this machine, and not in a bucket."""
    return "://" not in os.fspath(path)


def as_path(path: str | os.PathLike[str]) -> epath.Path:
    """An `epath.Path`, with `~` expanded.

    Raises `RequestError` for a store of another kind than gs:// and s3://, one whose client is not
    installed, and one that does not answer.
    """
    scheme, marks, _ = os.fspath(path).partition("://")
    if marks:
        _prepare_client(os.fspath(path), scheme)
    found = epath.Path(path).expanduser()
    with reading(found):
        found.exists()
    return found


def _prepare_client(path: str, scheme: str) -> None:
    if scheme not in _CLIENTS:
        raise RequestError(f"Cannot reach {path}: it is no folder, gs:// or s3:// path.")
    package, extra = _CLIENTS[scheme]
    if importlib.util.find_spec(package) is None:
        raise RequestError(
            f"Cannot reach {path} without its client: pip install 'scaling_jax[{extra}]'."
        )
    import fsspec.config

    os.environ.setdefault("EPATH_USE_TF", "false")  # one client, whatever else is installed
    # what it says of a failure, we say; a program that set up logging is told too
    logging.getLogger(package).addHandler(logging.NullHandler())
    # another process may write there while this one reads
    fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)


def digest(data: bytes) -> str:
    """Twelve hex digits that change with the bytes."""
    return hashlib.sha256(data).hexdigest()[:_DIGITS]


def is_there(path: epath.Path) -> bool:
    """Whether there is such a file or folder; raises `RequestError` where that cannot be known."""
    with reading(path):
        return path.exists()


def write_atomic(path: epath.Path, data: bytes) -> None:
    """Write the file whole or not at all, on the disk when it returns; folders are made.

    In a bucket it is one object under its last name. Raises `WorkError` where the disk or the
    bucket refuses, leaving what was there before.
    """
    with refusals(path):
        if is_local(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, data)
        else:
            path.write_bytes(data)


def _replace(path: epath.Path, data: bytes) -> None:
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_leftovers(folder: epath.Path) -> None:
    """Remove what a killed process had begun to write; the caller holds the lock."""
    if is_local(folder) and folder.is_dir():
        with refusals(folder):
            for path in folder.iterdir():
                if path.name.startswith(".") and path.name.endswith(".tmp"):
                    path.unlink(missing_ok=True)


def write_json(path: epath.Path, doc: dict[str, Any]) -> None:
    """Write one JSON object, as `write_atomic` does; NaN and infinity are a ValueError."""
    write_atomic(path, (json.dumps(doc, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: epath.Path) -> dict[str, Any]:
    """Read one JSON object; raises `RequestError` naming the file that is absent or cut."""
    with reading(path):
        data = path.read_bytes()
    try:
        doc = json.loads(data)
    except (ValueError, RecursionError):
        raise RequestError(f"{path} is not whole JSON; it is cut or was edited.") from None
    if not isinstance(doc, dict):
        raise RequestError(f"{path} does not hold a JSON object.")
    return doc


def write_record(path: epath.Path, doc: dict[str, Any]) -> None:
    """`write_json` of a file of the records, with its format and a digest of all the rest."""
    whole = {"format": FORMAT, **doc}
    write_json(path, whole | {"digest": _digest_of(path.name, whole)})


def read_record(path: epath.Path) -> dict[str, Any]:
    """What `write_record` was given.

    Raises `DamagedRecord` where anything else than was written is there, and `RequestError` where
    it is absent or of a format not known here.
    """
    try:
        doc = read_json(path)
    except AbsentFile:
        raise
    except RequestError as error:
        raise DamagedRecord(f"{error} {_REMEDY}") from None
    written = doc.pop("digest", None)
    if doc.get("format") != FORMAT:
        raise RequestError(
            f"{path} is of format {doc.get('format')!r} and this version reads {FORMAT}; "
            "read it with the version of scaling_jax that wrote it."
        )
    if written != _digest_of(path.name, doc):
        raise DamagedRecord(f"{path} is damaged or was edited: its digest is another. {_REMEDY}")
    del doc["format"]
    return doc


def _digest_of(name: str, doc: dict[str, Any]) -> str:
    return digest(f"{name} {json.dumps(doc)}".encode())  # a status is no config


@contextlib.contextmanager
def reading(path: epath.Path) -> Iterator[None]:
    """What the disk or the bucket says when it does not give, as a `RequestError`."""
    try:
        yield
    except OSError as error:
        absent = isinstance(error, FileNotFoundError)
        where, why = error.filename or path, error.strerror or _said(error)
        raise (AbsentFile if absent else RequestError)(f"Cannot read {where}: {why}.") from None
    except Exception as error:
        if is_local(path) or isinstance(error, RequestError | WorkError):
            raise
        raise RequestError(f"Cannot read {path}: {_said(error)}.") from None


@contextlib.contextmanager
def refusals(path: epath.Path) -> Iterator[None]:
    """What the disk or the bucket says when it does not take, as a `WorkError`."""
    try:
        yield
    except OSError as error:
        no_bucket = isinstance(error, FileNotFoundError) and not is_local(path)
        why = "there is no such bucket" if no_bucket else error.strerror or _said(error)
        raise WorkError(_refused(path, why)) from error
    except Exception as error:
        if is_local(path) or isinstance(error, RequestError | WorkError):
            raise
        raise WorkError(_refused(path, _said(error))) from error


def _refused(path: epath.Path, why: str) -> str:
    return f"Could not write {path}: {why}. What was written before is whole."


def _said(error: Exception) -> str:
    # clients of buckets have exceptions of their own, some of them without a word
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
