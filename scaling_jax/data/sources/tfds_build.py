"""Finding a dataset of TFDS that is prepared as ArrayRecord, and preparing one that is not."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from scaling_jax.errors import RequestError, nearest

_FORMAT = "array_record"
# older datasets are registered by an import of their own
_SCRIPT = (
    "import tensorflow_datasets as tfds, tensorflow_datasets.text; "
    "tfds.builder({name}, data_dir={data_dir}, file_format={kind}).download_and_prepare()"
)
_GUARDED = """\
try:
    {script}
except Exception as error:
    print(type(error).__name__ + ":", *str(error).split())
    raise SystemExit(1)"""
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def prepared(name: str, config: str | None) -> Any:
    """The builder of a dataset that can be read, after TFDS has downloaded it if need be.

    That is done in a process of its own, since preparing, unlike reading, may need TensorFlow.
    A dataset that TFDS prepares with Apache Beam is not begun here: it asks for many machines.
    Raises `RequestError` that says how to prepare what is not there and cannot be prepared.
    """
    _imported()
    builder = _found(name, config)
    if builder is None:
        _prepare(name, config)
        builder = _found(name, config)
    if builder is None or not _is_readable(builder):
        full_name = name if config is None else f"{name}/{config}"
        raise RequestError(
            f"{full_name} in {_data_dir()} is not there as ArrayRecord. Prepare it as that, in a "
            f"folder of its own for TFDS_DATA_DIR:\n{_command(full_name)}"
        )
    return builder


def _imported() -> None:
    try:
        import tensorflow_datasets  # noqa: F401
    except ImportError as error:
        raise RequestError(
            f"Datasets of TFDS need its package ({error}): pip install 'scaling_jax[tfds]'."
        ) from None


def _data_dir() -> Path:
    folder = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    if "://" in folder:
        raise RequestError(
            f"ArrayRecord is read from a disk, and TFDS_DATA_DIR is {folder}: copy the datasets to "
            "a folder, or prepare token stores of them, which may lie in a bucket."
        )
    return Path(os.path.expanduser(folder))


def _found(name: str, config: str | None) -> Any:
    from tensorflow_datasets.core import read_only_builder, registered

    try:
        return read_only_builder.builder_from_files(name, config=config, data_dir=_data_dir())
    except registered.DatasetNotFoundError:
        return None
    except Exception as error:  # of JSON, of protocol buffers, of the disk
        said = " ".join(str(error).split())
        raise RequestError(
            f"Cannot read what is prepared of {name} in {_data_dir()} ({said})."
        ) from None


def _is_readable(builder: Any) -> bool:
    return any(kind.value == _FORMAT for kind in builder.info.available_file_formats())


def _prepare(name: str, config: str | None) -> None:
    """Lets TFDS download and prepare it; raises `RequestError` where that cannot be."""
    full_name = name if config is None else f"{name}/{config}"
    if _needs_beam(name, config):
        raise RequestError(
            f"{full_name} is not prepared in {_data_dir()}, and TFDS prepares it with Apache Beam. "
            "Do that where Beam and TensorFlow are installed, and set TFDS_DATA_DIR to the folder "
            f"it was prepared in:\n{_command(full_name)}"
        )
    done = subprocess.run(
        [sys.executable, "-c", _GUARDED.format(script=_script(full_name))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,  # its last line says why, and its progress goes to stderr
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stdout.strip().splitlines() or ["no reason given"])[-1].rstrip(".")
        raise RequestError(
            f"{full_name} is not prepared in {_data_dir()}, and TFDS could not download and "
            f"prepare it here ({said}). Do that where it can be, and set TFDS_DATA_DIR to the "
            f"folder it was prepared in:\n{_command(full_name)}"
        )


def _needs_beam(name: str, config: str | None) -> bool:
    """Of a dataset that TFDS knows; raises `RequestError` with the nearest name or config."""
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text

    folder = _data_dir() / name
    try:
        kind = tfds.builder_cls(name)
    except tfds.core.DatasetNotFoundError:
        if folder.is_dir():
            _refuse_config(name, config, _folders(folder))
        known = {*tfds.list_builders(with_community_datasets=False), *_folders(folder.parent)}
        hint = nearest(name, known)
        raise RequestError(
            f"TFDS knows no dataset {name!r}, and none is in {_data_dir()}."
            + (hint if "mean" in hint else " Its catalogue: tensorflow.org/datasets/catalog.")
        ) from None
    if config is not None and config not in kind.builder_configs:
        _refuse_config(name, config, kind.builder_configs)
    return issubclass(kind, tfds.core.BeamBasedBuilder)


def _folders(folder: Path) -> list[str]:
    paths = folder.iterdir() if folder.is_dir() else ()
    return [path.name for path in paths if path.is_dir() and not _VERSION.fullmatch(path.name)]


def _refuse_config(name: str, config: str | None, configs: Collection[str]) -> None:
    if config is None:
        raise RequestError(f"Say which config of {name}: {', '.join(sorted(configs))}.")
    if not configs:
        raise RequestError(f"The dataset {name} has no configs, and so no {config!r}.")
    raise RequestError(f"The dataset {name} has no config {config!r}.{nearest(config, configs)}")


def _script(full_name: str) -> str:
    words = {"name": full_name, "data_dir": str(_data_dir()), "kind": _FORMAT}
    return _SCRIPT.format(**{key: json.dumps(word) for key, word in words.items()})


def _command(full_name: str) -> str:
    return f"python -c {shlex.quote(_script(full_name))}"
