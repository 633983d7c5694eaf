"""Datasets of TensorFlow Datasets, read from ArrayRecord without TensorFlow."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from scaling_jax.data.sources.listing import File, local_file
from scaling_jax.data.sources.source import Document, checked_text, decoded
from scaling_jax.data.sources.tfds_build import prepared
from scaling_jax.errors import RequestError, nearest
from scaling_jax.records.files import reading

PREFIX = "tfds:"
_SPEC = re.compile(r"tfds:(?P<name>[A-Za-z]\w*)(/(?P<config>[\w.-]+))?(:(?P<split>.+))?")
_READ_BYTES = 2**24  # records are fetched in batches of about so many bytes, ...
_READ_RECORDS = 1024  # ... and of so many at most


class Tfds:
    """One split of a prepared dataset, or a slice of one as in `train[:10%]`.

    The id of a document is its feature `id`, or else the name of its shard with the number of the
    record in it, which is the same in every slice.
    """

    n_vocab: int | None = None

    def __init__(self, spec: str, text_field: str = "text"):
        """Finds the dataset in `$TFDS_DATA_DIR`, or lets TFDS download and prepare it there.

        Raises `RequestError` for a name, a config, a split or a feature that is not there, for
        what cannot be prepared here, and without the package `tensorflow_datasets`.
        """
        name, config, split = _parsed(spec)
        builder = prepared(name, config)
        info = builder.info
        self._split = split
        self._text_field = text_field
        self._full_name = info.full_name
        self._id_kind = _checked_features(info.features, text_field, self._full_name)
        self._instructions = _instructions(info, split)
        self._files = [_file(instruction.filename) for instruction in self._instructions]
        self._records = _raw_records(builder, split)
        self._batch = _batch(info)
        words = "-".join(filter(None, ("tfds", name, config, split)))
        self.name = re.sub(r"[^A-Za-z0-9_]+", "-", words).strip("-")
        self.licence = " ".join((info.redistribution_info.license or "").split()) or None
        self.facts: dict[str, Any] = {"tfds": self._full_name}
        self.skipped: dict[str, int] = {}

    def key(self) -> dict[str, Any]:
        """The dataset and its version, and the size and time of change of each shard."""
        return {
            "kind": "tfds",
            "dataset": self._full_name,
            "text_field": self._text_field,
            "files": [
                [os.fspath(file.path), file.size, file.version, part.skip, part.take]
                for file, part in zip(self._files, self._instructions, strict=True)
            ],
            "split": self._split,
        }

    def documents(self) -> Iterator[Document]:
        """Every document that is not empty; raises `RequestError` naming the shard and record."""
        self.skipped = {}
        for record_id, record in self._numbered():
            where = f"{self._full_name}, record {record_id}"
            document = self._document(record, record_id, where)
            if document.content:
                yield document
            else:
                self.skipped["empty documents"] = self.skipped.get("empty documents", 0) + 1

    def _numbered(self) -> Iterator[tuple[str, bytes]]:
        ids = (
            f"{file.id}:{number}"
            for file, part in zip(self._files, self._instructions, strict=True)
            for number in range(part.skip, part.skip + part.take)
        )
        for start in range(0, len(self._records), self._batch):
            numbers = range(start, min(start + self._batch, len(self._records)))
            yield from zip((next(ids) for _ in numbers), self._fetched(list(numbers)), strict=True)

    def _fetched(self, numbers: list[int]) -> list[bytes]:
        try:
            return self._records.__getitems__(numbers)
        except Exception as error:  # what array_record raises is not documented
            said = " ".join(str(error).split())
            raise RequestError(
                f"Cannot read records {numbers[0]} to {numbers[-1]} of {self._full_name} "
                f"({said or type(error).__name__}): prepare the dataset again."
            ) from None

    def _document(self, record: bytes, record_id: str, where: str) -> Document:
        features = _features(record, where)
        texts = features[self._text_field].bytes_list.value
        if len(texts) != 1:
            raise RequestError(f"{where}: the feature {self._text_field!r} holds no text.")
        ids = getattr(features["id"], self._id_kind).value if self._id_kind else ()
        if len(ids) == 1:
            record_id = str(ids[0]) if self._id_kind == "int64_list" else decoded(ids[0], where)
        return Document(record_id, checked_text(texts[0], where))


def _features(record: bytes, where: str) -> Any:
    """The features of one record by name, each a list of one kind or another."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    example: Any = tf_example_pb2.Example  # type: ignore[attr-defined]
    try:
        return example.FromString(record).features.feature
    except DecodeError as error:
        raise RequestError(f"{where} is damaged ({error}): prepare the dataset again.") from None


def _parsed(spec: str) -> tuple[str, str | None, str]:
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise RequestError(
            f"{spec!r} is not of the form tfds:NAME:SPLIT or tfds:NAME/CONFIG:SPLIT."
        )
    if match["split"] is None:
        raise RequestError(f"{spec!r} does not say which split, such as {spec}:train.")
    return match["name"], match["config"], match["split"]


def _checked_features(features: Any, text_field: str, name: str) -> str | None:
    """Where a record keeps its id, if it has one; raises `RequestError` without the text."""
    texts = [key for key in features if _holds(features[key], np.object_)]
    if text_field not in texts:
        raise RequestError(
            f"{name} has no feature {text_field!r} of text for data.text_field."
            + nearest(text_field, texts)
        )
    if "id" not in features:
        return None
    if _holds(features["id"], np.object_):
        return "bytes_list"
    return "int64_list" if _holds(features["id"], np.integer) else None


def _holds(feature: Any, kind: type) -> bool:
    # its `dtype` would import TensorFlow
    return feature.shape == () and np.issubdtype(feature.np_dtype, kind)


def _instructions(info: Any, split: str) -> list[Any]:
    """Which shards, and from which record how many; raises `RequestError` for no such split."""
    try:
        parts = info.splits[split].file_instructions
    except (KeyError, ValueError, AssertionError) as error:
        said = str(error).splitlines()[0].strip("'\" ").rstrip(".")
        raise RequestError(
            f"{info.full_name} has no split {split!r} ({said})."
            + nearest(split.split("[")[0], info.splits)
        ) from None
    if not parts or any(part.take < 0 for part in parts):
        raise RequestError(f"{info.full_name}: {split!r} leaves no record.")
    return parts


def _file(filename: str) -> File:
    path = epath.Path(filename)
    with reading(path):
        return local_file(Path(path), path.name)


def _raw_records(builder: Any, split: str) -> Any:
    from tensorflow_datasets.core import decode

    try:
        return builder.as_data_source(
            split=split, deserialize_method=decode.DeserializeMethod.RAW_BYTES
        )
    except Exception as error:  # what array_record raises is not documented
        said = " ".join(str(error).split())
        raise RequestError(f"Cannot read {builder.info.full_name} ({said}).") from None


def _batch(info: Any) -> int:
    sizes = [(split.num_bytes or 0, split.num_examples) for split in info.splits.values()]
    record_bytes = sum(size for size, _ in sizes) / max(1, sum(count for _, count in sizes))
    return int(min(_READ_RECORDS, max(1, _READ_BYTES // max(1, record_bytes))))
