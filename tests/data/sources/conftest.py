from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest


def _zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


_BY_SUFFIX = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": _zstd,
}


@pytest.fixture(scope="session")
def compress() -> Callable[[bytes, str], bytes]:
    """The bytes compressed as the suffix of a name says."""

    def compressed(data: bytes, name: str) -> bytes:
        suffix = "." + name.rpartition(".")[2]
        return _BY_SUFFIX[suffix](data) if suffix in _BY_SUFFIX else data

    return compressed


@pytest.fixture(scope="session")
def tfds_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for TFDS_DATA_DIR with `tiny_books` in three shards and `tiny_pages` with ids.

    `tiny_books` has the splits train, 20 texts of which one is empty, and test, 5 texts.
    `tiny_pages/short` has the split train, `page 0` to `page 3`, in the feature `body`.
    """
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("tfds")

    class TinyBooks(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features, license="CC0\n1.0")

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(20), "test": self._generate_examples(5)}

        def _generate_examples(self, count):
            for number in range(count):
                yield number, {"text": f"bóok {number}" if number != 7 else ""}

    class TinyPages(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("2.1.0")
        BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="short")]

        def _info(self):
            features = {
                "body": tfds.features.Text(),
                "id": np.int64,
                "pixels": tfds.features.Tensor(shape=(2,), dtype=np.float32),
                "raw": np.str_,
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number in range(4):
                raw = b"a\xff" if number == 2 else b"a"
                pixels = np.zeros(2, np.float32)
                row = {"body": f"page {number}", "id": number, "pixels": pixels, "raw": raw}
                yield number, row

    shards = tfds.download.DownloadConfig(num_shards=3)
    for builder, config in (
        (TinyBooks(data_dir=folder, file_format="array_record"), shards),
        (TinyPages(data_dir=folder, file_format="array_record"), None),
    ):
        builder.download_and_prepare(download_config=config)
    return folder
