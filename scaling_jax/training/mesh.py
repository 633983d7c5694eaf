"""The one mesh every program runs on, and how a cohort is laid over it."""

from __future__ import annotations

from math import gcd, prod

import jax
from jax.sharding import AxisType, Mesh

from scaling_jax.config import MeshConfig, RunConfig
from scaling_jax.errors import RequestError

AXES = ("lane", "data", "fsdp", "tensor")


def sizes(mesh: MeshConfig) -> tuple[int, ...]:
    """Devices along each of `AXES`, 1 where nothing is said."""
    return tuple(getattr(mesh, axis) or 1 for axis in AXES)


def describe_mesh(mesh: MeshConfig) -> str:
    """As in `lane=2 data=4`: the axes that are more than 1, or `1 device`."""
    named = [f"{axis}={size}" for axis, size in zip(AXES, sizes(mesh), strict=True) if size > 1]
    return " ".join(named) or "1 device"


def resolve_mesh(config: RunConfig, n_lanes: int, n_devices: int, fsdp: int = 1) -> MeshConfig:
    """The mesh of a cohort of `n_lanes` runs on `n_devices`, its automatic axes filled in.

    `fsdp` is what that axis is where the config does not say. An automatic `lane` takes as many
    devices as divide both lanes and devices; an automatic `data` takes the rest, down to the
    largest number of shards that divides the rows of a microbatch. Raises `RequestError` where an
    axis that was asked for does not fit.
    """
    asked = config.mesh
    fsdp, tensor = asked.fsdp or fsdp, asked.tensor or 1
    _check_product(asked, n_devices)
    _check_model(config, fsdp, tensor)
    n_devices = n_devices // (fsdp * tensor)
    lane = asked.lane
    if lane is None:
        room = n_devices // (asked.data or 1)
        lane = max(i for i in range(1, n_lanes + 1) if n_lanes % i == 0 and room % i == 0)
    elif n_lanes % lane:
        raise RequestError(
            f"mesh.lane {lane} does not divide the {n_lanes} lane(s) of a cohort; "
            "leave it out to have it chosen"
        )
    # At every size of the batch there are whole rows on each shard.
    rows = gcd(*(size // config.batch.microbatches_at(size) for size in config.batch.sizes))
    if rows % fsdp:
        raise RequestError(
            f"a microbatch has {rows} row(s), which mesh.fsdp {fsdp} does not divide"
        )
    fitting = [i for i in range(1, n_devices // lane + 1) if rows % (i * fsdp) == 0]
    data = asked.data or max(fitting)
    if data not in fitting:
        nearest = min(fitting, key=lambda i: abs(i - data))
        raise RequestError(
            f"mesh.data {data} does not fit: {n_devices // lane} device(s) are left by the other "
            f"axes, and a microbatch has {rows} row(s); the nearest that fits is {nearest}"
        )
    return MeshConfig(lane=lane, data=data, fsdp=fsdp, tensor=tensor)


def _check_product(asked: MeshConfig, n_devices: int) -> None:
    product = prod(sizes(asked))
    whole = None not in (asked.lane, asked.data, asked.fsdp, asked.tensor)
    if n_devices % product or (whole and product != n_devices):
        named = " x ".join(
            f"{axis} {size}" for axis in AXES if (size := getattr(asked, axis)) is not None
        )
        divisors = [i for i in range(1, n_devices + 1) if n_devices % i == 0]
        nearest = n_devices if whole else min(divisors, key=lambda i: abs(i - product))
        raise RequestError(
            f"the mesh asks for {named} = {product} device(s) and there are {n_devices}; "
            f"the nearest product that fits is {nearest}"
        )


def _check_model(config: RunConfig, fsdp: int, tensor: int) -> None:
    model = config.model
    for axis, size, name, dimension in (
        ("fsdp", fsdp, "d_model", model.d_model),
        ("tensor", tensor, "n_head", model.n_head),
        ("tensor", tensor, "d_ff", model.d_ff),
    ):
        if dimension % size:
            raise RequestError(f"mesh.{axis} {size} does not divide model.{name} {dimension}")


def make_mesh(shape: MeshConfig) -> Mesh:
    """A mesh with the axes `AXES` over the first devices that it needs."""
    devices = jax.devices()[: prod(sizes(shape))]
    return jax.make_mesh(
        sizes(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def require_all_hosts(mesh: MeshConfig) -> None:
    """Raises `RequestError` where a process would have no device in a mesh."""
    if jax.process_count() == 1:
        return
    devices = jax.devices()
    used = {device.process_index for device in devices[: prod(sizes(mesh))]}
    if idle := sorted({device.process_index for device in devices} - used):
        named = ", ".join(map(str, idle))
        raise RequestError(
            f"the mesh {describe_mesh(mesh)} takes {prod(sizes(mesh))} of {len(devices)} devices, "
            f"and none of process {named}: start fewer processes, raise batch.sequences, or name "
            "a mesh with more devices"
        )


def mesh_config(mesh: Mesh) -> MeshConfig:
    """The sizes of a mesh."""
    return MeshConfig(**{axis: mesh.shape[axis] for axis in AXES})
