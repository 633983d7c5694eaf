from __future__ import annotations

import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from scaling_jax.config import MeshConfig
from scaling_jax.errors import RequestError
from scaling_jax.training.mesh import make_mesh, over_lanes, replicated, resolve_mesh


@pytest.mark.parametrize(
    ("mesh", "rows", "n_lanes", "n_devices", "lane", "data"),
    [
        ({}, 8, 1, 1, 1, 1),
        ({}, 8, 1, 8, 1, 8),
        ({}, 8, 2, 8, 2, 4),  # lanes first, the rest to data
        ({}, 8, 8, 8, 8, 1),
        ({}, 8, 6, 8, 2, 4),  # two divides both
        ({}, 8, 16, 8, 8, 1),
        ({}, 8, 3, 8, 1, 8),
        ({}, 6, 1, 8, 1, 6),  # seven and eight do not divide six rows
        ({}, 7, 1, 4, 1, 1),
        ({"lane": 1}, 8, 2, 8, 1, 8),
        ({"lane": 2}, 8, 4, 7, 2, 2),
        ({"data": 2}, 8, 2, 8, 2, 2),
        ({"lane": 1, "data": 1}, 8, 2, 8, 1, 1),
    ],
)
def test_axes_are_filled_in(tiny, mesh, rows, n_lanes, n_devices, lane, data):
    for microbatches in (1, 3):
        batch = {"sequences": rows * microbatches, "microbatches": microbatches}
        config = tiny(mesh=mesh, batch=batch)
        assert resolve_mesh(config, n_lanes, n_devices) == MeshConfig(lane=lane, data=data)


@pytest.mark.parametrize(
    ("mesh", "n_lanes", "n_devices", "message"),
    [
        ({"lane": 2}, 3, 8, "mesh.lane 2 does not fit 3 lane(s) on 8 device(s); leave it out"),
        ({"lane": 4}, 4, 2, "mesh.lane 4 does not fit 4 lane(s) on 2 device(s)"),
        ({"data": 3}, 1, 8, "mesh.data 3 does not fit: 8 device(s) are left by mesh.lane 1, and "),
        ({"data": 3}, 1, 8, "a microbatch has 4 row(s); the nearest that fits is 2"),
        ({"data": 8}, 1, 8, "the nearest that fits is 4"),
        ({"data": 4}, 2, 2, "1 device(s) are left by mesh.lane 2"),
        ({"data": 4}, 2, 2, "the nearest that fits is 1"),
    ],
)
def test_what_does_not_fit_is_refused(tiny, mesh, n_lanes, n_devices, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        resolve_mesh(tiny(mesh=mesh), n_lanes, n_devices)


def test_the_mesh_takes_the_first_devices_that_it_needs():
    mesh = make_mesh(MeshConfig(lane=2, data=3))
    assert dict(mesh.shape) == {"lane": 2, "data": 3}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert mesh.devices.ravel().tolist() == jax.devices()[:6]
    assert make_mesh(MeshConfig()).devices.size == 1


def test_what_is_laid_over_the_mesh():
    mesh = make_mesh(MeshConfig(lane=2, data=3))
    x = np.arange(8.0).reshape(4, 2)
    lanes = jax.device_put(x, over_lanes(mesh))
    shards = {shard.device: np.asarray(shard.data) for shard in lanes.addressable_shards}
    for lane, devices in enumerate(mesh.devices):
        for device in devices:
            np.testing.assert_array_equal(shards[device], x[2 * lane : 2 * lane + 2])
    assert jax.device_put(x, replicated(mesh)).is_fully_replicated
