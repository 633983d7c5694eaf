"""Token stores in a bucket, through the real clients and a real server of each kind of store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from etils import epath

from scaling_jax.config_data import DataConfig
from scaling_jax.data import shards
from scaling_jax.data.copies import local_copy
from scaling_jax.data.corpus import load_corpus, open_place
from scaling_jax.data.prepare import Plan, prepare_store
from scaling_jax.data.store import DamagedStore, is_store
from scaling_jax.errors import RequestError
from scaling_jax.records import leases
from tests.data.stores import DOCUMENTS, Listed, files, planned, require_contents, silent
from tests.records.object_stores import ObjectStore, folder_of_test, serving_bucket

NAME = "tokens"


@pytest.fixture(scope="module", params=("s3", "gs"))
def store(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    with serving_bucket(request.param, NAME) as running:
        yield running


@pytest.fixture
def bucket(
    store: ObjectStore, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> epath.Path:
    monkeypatch.setattr(shards, "_STRETCH", 500)
    monkeypatch.setattr(leases, "_SETTLE_S", 0.1)
    monkeypatch.setattr(leases, "LEASE_S", 0.5)
    return folder_of_test(store, NAME, request)


class Killed(BaseException):
    pass


class Failing(Listed):
    def documents(self):
        for i, document in enumerate(super().documents()):
            if i == 150 and self.reads == 1:
                raise Killed
            yield document


def test_a_store_is_written_straight_to_a_bucket_and_read_through_a_copy(bucket, tmp_path):
    prepare_store(planned(), epath.Path(tmp_path / "whole"), silent)
    plan = Plan(Failing(DOCUMENTS), "listed", planned().tokenizer)
    with pytest.raises(Killed):
        prepare_store(plan, bucket, silent)
    with pytest.raises(RequestError, match="is not finished"):
        is_store(bucket)
    assert prepare_store(plan, bucket, silent)[1]
    assert not prepare_store(planned(), bucket, silent)[1]
    with pytest.raises(RequestError, match="holds another token store"):
        prepare_store(planned(DOCUMENTS[1:]), bucket, silent)
    copy = local_copy(bucket, tmp_path / "cache", silent)
    require_contents(copy, DOCUMENTS)
    assert files(Path(copy.folder)) == files(tmp_path / "whole")
    corpus = load_corpus(DataConfig(source=str(bucket)), cache=tmp_path / "cache")
    assert corpus.fingerprint == copy.manifest.fingerprint


def test_damage_in_the_bucket_is_found_and_in_the_copy_is_mended(bucket, tmp_path):
    prepare_store(planned(), bucket, silent)
    copy = local_copy(bucket, tmp_path / "cache", silent)
    for spoilt in ("shards/00001.tokens", "manifest.json"):
        (copy.folder / spoilt).write_bytes(b"x")
        require_contents(local_copy(bucket, tmp_path / "cache", silent), DOCUMENTS)
    (bucket / "shards/00001.tokens").write_bytes(b"x")
    require_contents(local_copy(bucket, tmp_path / "cache", silent), DOCUMENTS)
    with pytest.raises(DamagedStore, match=r"damaged in shards/00001\.tokens"):
        local_copy(bucket, tmp_path / "other", silent)
    with pytest.raises(DamagedStore, match=r"damaged in shards/00001\.tokens"):
        open_place(str(bucket), tmp_path / "cache", silent, at_once=None)
