from __future__ import annotations

import pytest

from scaling_jax.data.sources import open_source

beam = pytest.importorskip("apache_beam")
tfds = pytest.importorskip("tensorflow_datasets")


class TinyPipeline(tfds.core.BeamBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager, pipeline):
        return {"train": self._generate_examples(30), "test": self._generate_examples(3)}

    def _generate_examples(self, count):
        return beam.Create(range(count)) | beam.Map(lambda n: (n, {"text": f"né {n}"}))


@pytest.mark.filterwarnings("ignore:label:DeprecationWarning")  # of protobuf 6, in TFDS
def test_what_beam_prepares_is_read(tmp_path, monkeypatch):
    options = beam.options.pipeline_options.PipelineOptions(["--runner=DirectRunner"])
    builder = TinyPipeline(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(beam_options=options, num_shards=2)
    )
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    documents = list(open_source("tfds:tiny_pipeline:train").documents())
    assert sorted(content for _, content in documents) == sorted(
        f"né {number}".encode() for number in range(30)
    )
    assert len({document_id for document_id, _ in documents}) == 30
    assert len(list(open_source("tfds:tiny_pipeline:test").documents())) == 3
