from __future__ import annotations

import re

import jax
import pytest
from jax.sharding import AxisType

from scaling_jax.config import MeshConfig
from scaling_jax.errors import RequestError
from scaling_jax.training.mesh import (
    AXES,
    describe_mesh,
    make_mesh,
    mesh_config,
    resolve_mesh,
    sizes,
)


@pytest.mark.parametrize(
    ("mesh", "rows", "n_lanes", "n_devices", "expected"),
    [
        ({}, 8, 1, 1, (1, 1, 1, 1)),
        ({}, 8, 1, 8, (1, 8, 1, 1)),
        ({}, 8, 2, 8, (2, 4, 1, 1)),  # lanes first, the rest to data
        ({}, 8, 8, 8, (8, 1, 1, 1)),
        ({}, 8, 6, 8, (2, 4, 1, 1)),  # two divides both
        ({}, 8, 16, 8, (8, 1, 1, 1)),
        ({}, 8, 3, 8, (1, 8, 1, 1)),
        ({}, 6, 1, 8, (1, 6, 1, 1)),  # seven and eight do not divide six rows
        ({}, 7, 1, 4, (1, 1, 1, 1)),
        ({"lane": 1}, 8, 2, 8, (1, 8, 1, 1)),
        ({"lane": 2}, 8, 4, 8, (2, 4, 1, 1)),
        ({"data": 2}, 8, 2, 8, (2, 2, 1, 1)),
        ({"data": 2}, 8, 8, 8, (4, 2, 1, 1)),
        ({"data": 2, "tensor": 2}, 8, 4, 8, (2, 2, 1, 2)),
        ({"fsdp": 4}, 8, 1, 8, (1, 2, 4, 1)),
        ({"fsdp": 4}, 8, 2, 8, (2, 1, 4, 1)),
        ({"fsdp": 8}, 8, 2, 8, (1, 1, 8, 1)),
        ({"tensor": 2}, 8, 1, 8, (1, 4, 1, 2)),
        ({"fsdp": 4}, 12, 1, 8, (1, 1, 4, 1)),  # two shards of four do not divide twelve rows
        ({"lane": 1, "data": 2, "fsdp": 2, "tensor": 2}, 8, 1, 8, (1, 2, 2, 2)),
    ],
)
def test_axes_are_filled_in(tiny, mesh, rows, n_lanes, n_devices, expected):
    for microbatches in (1, 3):
        batch = {"sequences": rows * microbatches, "microbatches": microbatches}
        resolved = resolve_mesh(tiny(mesh=mesh, batch=batch), n_lanes, n_devices)
        assert sizes(resolved) == expected


def test_fsdp_is_what_the_caller_needs_where_the_config_does_not_say(tiny):
    assert sizes(resolve_mesh(tiny(), 1, 8, fsdp=2)) == (1, 2, 2, 1)
    assert sizes(resolve_mesh(tiny(mesh={"fsdp": 4}), 1, 8, fsdp=2)) == (1, 1, 4, 1)


@pytest.mark.parametrize(
    ("changes", "n_lanes", "n_devices", "message"),
    [
        (
            {"mesh": {"lane": 2}},
            3,
            8,
            "mesh.lane 2 does not divide the 3 lane(s) of a cohort; leave it out to have it chosen",
        ),
        (
            {"mesh": {"lane": 4}},
            4,
            2,
            "the mesh asks for lane 4 = 4 device(s) and there are 2; "
            "the nearest product that fits is 2",
        ),
        (
            {"mesh": {"data": 3, "tensor": 2}},
            1,
            8,
            "the mesh asks for data 3 x tensor 2 = 6 device(s) and there are 8; "
            "the nearest product that fits is 4",
        ),
        (
            {"mesh": {"lane": 1, "data": 2, "fsdp": 1, "tensor": 2}},
            1,
            8,
            "the mesh asks for lane 1 x data 2 x fsdp 1 x tensor 2 = 4 device(s) and there are 8; "
            "the nearest product that fits is 8",
        ),
        (
            {"mesh": {"data": 8}},
            1,
            8,
            "mesh.data 8 does not fit: 8 device(s) are left by the other axes, and a microbatch "
            "has 4 row(s); the nearest that fits is 4",
        ),
        (
            {"mesh": {"fsdp": 8}},
            1,
            8,
            "a microbatch has 4 row(s), which mesh.fsdp 8 does not divide",
        ),
        (
            {"mesh": {"fsdp": 8}, "model": {"d_model": 12}},
            1,
            8,
            "mesh.fsdp 8 does not divide model.d_model 12",
        ),
        ({"mesh": {"tensor": 4}}, 1, 8, "mesh.tensor 4 does not divide model.n_head 2"),
        (
            {"mesh": {"tensor": 2}, "model": {"d_ff": 33}},
            1,
            8,
            "mesh.tensor 2 does not divide model.d_ff 33",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tiny, changes, n_lanes, n_devices, message):
    with pytest.raises(RequestError, match=f"^{re.escape(message)}$"):
        resolve_mesh(tiny(**changes), n_lanes, n_devices)


def test_the_mesh_takes_the_first_devices_that_it_needs():
    shape = MeshConfig(lane=1, data=3, fsdp=2, tensor=1)
    mesh = make_mesh(shape)
    assert dict(mesh.shape) == {"lane": 1, "data": 3, "fsdp": 2, "tensor": 1}
    assert mesh.axis_names == AXES
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert mesh.devices.ravel().tolist() == jax.devices()[:6]
    assert mesh_config(mesh) == shape
    assert make_mesh(MeshConfig()).devices.size == 1


def test_a_mesh_is_told_by_its_axes_of_more_than_one():
    assert describe_mesh(MeshConfig()) == "1 device"
    assert describe_mesh(MeshConfig(lane=2, data=1, fsdp=4)) == "lane=2 fsdp=4"
    assert describe_mesh(MeshConfig(tensor=2, data=3)) == "data=3 tensor=2"
