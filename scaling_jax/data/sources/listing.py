"""Which files a path stands for, and of which kind they are."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from etils import epath

from scaling_jax.data.sources.streams import COMPRESSED
from scaling_jax.errors import RequestError, nearest
from scaling_jax.records.files import as_path, digest, is_local, reading

_KINDS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet",
    ".json": "json",
    ".tar": "archive", ".tgz": "archive", ".zip": "archive", ".7z": "archive", ".rar": "archive",
}  # fmt: skip


class File(NamedTuple):
    """One file: where, its path in the folder given, its bytes, and what changes with it."""

    path: epath.Path
    id: str
    size: int
    version: int | str


def existing(spec: str, names: Iterable[str] = ()) -> epath.Path:
    """The path, with `~` expanded.

    Raises `RequestError` where nothing is, with the nearest of what lies beside and of `names`.
    """
    if not spec.strip():
        raise RequestError("The name of the data source is empty.")
    root = as_path(spec)
    with reading(root):
        if root.exists():
            return root
        parent = root.parent
        beside = [path.name for path in parent.iterdir()] if parent.is_dir() else []
    hint = nearest(root.name, {*names, *beside}) if names or beside else ""
    known = f" Known beside paths: {', '.join(names)}." if names else ""
    raise RequestError(f"No file or folder {spec}.{hint if 'mean' in hint else known}")


def files_of(root: epath.Path) -> list[File]:
    """The file itself, or every file in the folder, sorted by its path in it.

    Names that begin with a dot are left out, and links to folders are not followed.
    Raises `RequestError` for what cannot be listed.
    """
    with reading(root):
        listed = _local(Path(root)) if is_local(root) else _bucket(os.fspath(root))
        return sorted(listed, key=lambda file: file.id)


def _local(root: Path) -> Iterator[File]:
    if not root.is_dir():
        if not root.is_file():
            raise RequestError(f"{root} is neither a file nor a folder: write it to a file first.")
        yield local_file(root, root.name)
        return
    for folder, subfolders, names in os.walk(root, onerror=_raise):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                path = Path(folder, name)
                if stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
                    yield local_file(path, path.relative_to(root).as_posix())


def local_file(path: Path, file_id: str) -> File:
    """A file on a disk, which changes with its time of change, in nanoseconds.

    Raises `RequestError` for a name that is not UTF-8, of which no id can be made.
    """
    try:
        file_id.encode()
    except UnicodeEncodeError:
        raise RequestError(
            f"The name of the file {str(path)!r} is not UTF-8: give it another."
        ) from None
    status = path.stat()
    return File(epath.Path(path), file_id, status.st_size, status.st_mtime_ns)


def _raise(error: OSError) -> None:
    raise error


def _bucket(root: str) -> Iterator[File]:
    import fsspec.core

    system, inside = fsspec.core.url_to_fs(root)
    inside = inside.rstrip("/")
    for name, info in system.find(inside, detail=True).items():
        file_id = name.removeprefix(inside).lstrip("/") or PurePosixPath(name).name
        if not any(part.startswith(".") for part in PurePosixPath(file_id).parts):
            # what the bucket says of an object differs between kinds; its time or tag is in it
            version = digest(repr(sorted(info.items(), key=str)).encode())
            yield File(epath.Path(system.unstrip_protocol(name)), file_id, info["size"], version)


def of_one_kind(root: epath.Path, found: list[File]) -> tuple[str, list[File]]:
    """`text`, `jsonl` or `parquet`, and those of the files that are of that kind.

    A single file is what its name says, and text where it says nothing. A folder with JSON lines
    or Parquet is a folder of that, whatever lies beside; any other is one of text.
    Raises `RequestError` for a folder with both, with nothing usable, and for an archive.
    """
    kinds: dict[str, list[File]] = {}
    for file in found:
        kinds.setdefault(_kind_of(file.id), []).append(file)
    if len(found) == 1 and found[0].path == root:
        return _of_one_file(found[0], *kinds)
    if "jsonl" in kinds and "parquet" in kinds:
        raise RequestError(
            f"{root} holds both JSON lines and Parquet, {kinds['jsonl'][0].id} and "
            f"{kinds['parquet'][0].id}: keep one of them there, or give the file."
        )
    for kind in ("jsonl", "parquet"):
        if kind in kinds:
            return kind, kinds[kind]
    if "text" in kinds:
        return "text", [file for file in found if _kind_of(file.id) in ("text", "json")]
    if "json" in kinds:
        raise RequestError(
            f"{root} holds .json files alone, such as {kinds['json'][0].id}: call them .jsonl if "
            "each line is one object, and convert them to that if not."
        )
    if "archive" in kinds:
        raise _packed(kinds["archive"][0])
    raise RequestError(f"{root} holds no file of text, JSON lines or Parquet.")


def _of_one_file(file: File, kind: str) -> tuple[str, list[File]]:
    if kind == "archive":
        raise _packed(file)
    return "jsonl" if kind == "json" else kind, [file]


def _packed(file: File) -> RequestError:
    return RequestError(f"{file.path} is an archive: unpack it, and give the folder.")


def _kind_of(name: str) -> str:
    *_, inner, last = ["", "", *(suffix.lower() for suffix in PurePosixPath(name).suffixes)]
    if last in COMPRESSED:
        kind = _KINDS.get(inner, "text")
        return {"json": "jsonl", "parquet": "text"}.get(kind, kind)
    return _KINDS.get(last, "text")
