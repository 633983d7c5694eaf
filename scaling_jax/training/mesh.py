"""The one mesh every program runs on, and what may be laid over it."""

from __future__ import annotations

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from scaling_jax.config import MeshConfig, RunConfig
from scaling_jax.errors import RequestError

AXES = ("lane", "data")


def resolve_mesh(config: RunConfig, n_lanes: int, n_devices: int) -> MeshConfig:
    """The mesh shape of a cohort of `n_lanes` runs on `n_devices`, its automatic axes filled in.

    An automatic `lane` takes as many devices as divide both lanes and devices; an automatic `data`
    takes the rest, down to the largest number of shards that divides the rows of a microbatch.
    Raises `RequestError` where an axis that was asked for does not fit.
    """
    lane = config.mesh.lane
    if lane is None:
        lane = max(i for i in range(1, n_lanes + 1) if n_lanes % i == 0 and n_devices % i == 0)
    elif n_lanes % lane or lane > n_devices:
        raise RequestError(
            f"mesh.lane {lane} does not fit {n_lanes} lane(s) on {n_devices} device(s); "
            "leave it out to have it chosen"
        )
    rows = config.batch.sequences // config.batch.microbatches
    room = n_devices // lane
    fitting = [i for i in range(1, room + 1) if rows % i == 0]
    data = config.mesh.data or max(fitting)
    if data not in fitting:
        raise RequestError(
            f"mesh.data {data} does not fit: {room} device(s) are left by mesh.lane {lane}, and "
            f"a microbatch has {rows} row(s); the nearest that fits is "
            f"{min(fitting, key=lambda i: abs(i - data))}"
        )
    return MeshConfig(lane=lane, data=data)


def make_mesh(shape: MeshConfig) -> Mesh:
    """A mesh with the axes `lane`, `data` over the first devices that it needs."""
    sizes = (shape.lane or 1, shape.data or 1)
    devices = jax.devices()[: sizes[0] * sizes[1]]
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def over_lanes(mesh: Mesh) -> NamedSharding:
    """The first axis of each array over `lane`, a copy along `data`."""
    return NamedSharding(mesh, PartitionSpec("lane"))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
