"""A token store of a bucket, as a verified copy in the cache."""

from __future__ import annotations

import contextlib
from pathlib import Path

from etils import epath

from scaling_jax.data.prepare import turn
from scaling_jax.data.store import (
    FileMark,
    Store,
    damaged,
    mark,
    open_store,
    read_manifest,
    write_manifest,
)
from scaling_jax.data.tokenizers import Told
from scaling_jax.errors import RequestError
from scaling_jax.records.files import reading, write_atomic


def local_copy(folder: epath.Path, cache: Path, told: Told, anew: bool = False) -> Store:
    """The store in a bucket; what of it is in the cache already, and sound, is not read again.

    With `anew` every file of the bucket is, so that all of them are verified.
    Raises as `read_manifest` does, and `DamagedStore` for a file that its manifest does not vouch
    for.
    """
    manifest = read_manifest(folder)
    name = f"{manifest.name}-{manifest.fingerprint[:16]}-{manifest.key[:8]}"
    target = epath.Path(cache) / "copies" / name
    if not anew:
        with contextlib.suppress(RequestError):
            store = open_store(target)
            if store.manifest == manifest:
                return store
    with turn(target, told):
        total = sum(file.bytes for file in manifest.files().values())
        done = 0
        for file, expected in manifest.files().items():
            _copy(folder, target, file, expected, anew)
            done += expected.bytes
            told(f"copying {folder}", done, total)
        write_manifest(target, manifest)
    return open_store(target, at_once=0)


def _copy(
    folder: epath.Path, target: epath.Path, file: str, expected: FileMark, anew: bool
) -> None:
    is_held = False
    with contextlib.suppress(OSError):
        is_held = mark((target / file).read_bytes()) == expected
    if is_held and not anew:
        return
    with reading(folder / file):
        data = (folder / file).read_bytes()
    if mark(data) != expected:
        raise damaged(folder, file, "its digest is another")
    if not is_held:
        write_atomic(target / file, data)
