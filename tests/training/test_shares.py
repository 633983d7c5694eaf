"""Batches from the host, on one host; several are tested as processes."""

from __future__ import annotations

import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from scaling_jax.config import MeshConfig
from scaling_jax.training.mesh import make_mesh, require_all_hosts
from scaling_jax.training.sharding import (
    fed_sharding,
    lay,
    lay_share,
    over_lanes,
    readable,
    share_of,
)

MESH = MeshConfig(lane=2, data=2, fsdp=2)


def test_one_host_reads_everything_and_gives_each_device_its_lanes():
    mesh = make_mesh(MESH)
    assert fed_sharding(mesh).spec == PartitionSpec(None, "lane")
    assert readable(mesh) == over_lanes(mesh)
    require_all_hosts(MeshConfig())


@pytest.mark.parametrize("spec", [(None, "lane"), (None, "lane", ("data", "fsdp"))])
def test_what_is_laid_is_what_was_sent(spec):
    sharding = NamedSharding(make_mesh(MESH), PartitionSpec(*spec))
    x = np.arange(3 * 2 * 8 * 5).reshape(3, 2, 8, 5).astype(np.uint16)
    share = share_of(sharding, 2, 8)
    np.testing.assert_array_equal(share.lanes, np.arange(2))
    np.testing.assert_array_equal(share.rows, np.arange(8))
    laid = lay_share(x, sharding, share, 2, 8)
    np.testing.assert_array_equal(laid, x)
    np.testing.assert_array_equal(lay({"x": x}, sharding)["x"], x)
    assert laid.sharding == sharding
