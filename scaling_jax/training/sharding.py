"""Which mesh axes each array of a training state is laid over."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# By the last name in a parameter's path. Matrices are cut along d_model under `fsdp`, and along
# heads, d_ff or the vocabulary under `tensor`; what is one number a feature has a copy everywhere.
_AXES: dict[str, tuple[str | None, ...]] = {
    "embedding": ("tensor", "fsdp"),
    "position": (None, "fsdp"),
    "qkv": ("fsdp", "tensor", None, None),
    "out": ("tensor", None, "fsdp"),
    "up": ("fsdp", "tensor"),
    "down": ("tensor", "fsdp"),
    "head": ("fsdp", "tensor"),
}
_STACKED = "blocks"  # parameters under this name have a leading axis of layers


def partition_specs(tree: Any, mesh: Mesh | jax.sharding.AbstractMesh) -> Any:
    """A `PartitionSpec` for every array of a state, by its path: parameters, moments and the rest.

    An axis is left out where it does not divide the array, and all of them where an array has
    another rank than its parameter, as the factors of Adafactor have.
    """
    return jax.tree_util.tree_map_with_path(lambda path, x: _spec(path, x.shape, mesh), tree)


def over_lanes(mesh: Mesh) -> NamedSharding:
    """The first axis of each array over `lane`, a copy along the others."""
    return NamedSharding(mesh, PartitionSpec("lane"))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def readable(mesh: Mesh) -> NamedSharding:
    """For arrays stacked over lanes that every process reads whole: over lanes if it can."""
    on_lanes = over_lanes(mesh)
    return on_lanes if on_lanes.is_fully_addressable else replicated(mesh)


def lay(tree: Any, sharding: NamedSharding) -> Any:
    """Host arrays, the same in every process, laid on the mesh; each process sends its parts."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, lambda part: x[part]),
        jax.tree.map(np.asarray, tree),
    )


class Share(NamedTuple):
    """What a process sends of an array `[steps, lanes, rows, ...]`."""

    lanes: np.ndarray
    rows: np.ndarray


def fed_sharding(mesh: Mesh) -> NamedSharding:
    """Of batches from the host, `[steps, lanes, rows, ...]`.

    Between several hosts the rows are cut as the devices are, so that each reads its own; the
    program then hands them to the groups that they belong to.
    """
    spec = PartitionSpec(None, "lane")
    one_host = NamedSharding(mesh, spec).is_fully_addressable
    return NamedSharding(mesh, spec if one_host else PartitionSpec(None, "lane", ("data", "fsdp")))


def share_of(sharding: NamedSharding, n_lanes: int, n_rows: int) -> Share:
    """The lanes and rows that this process sends, ascending."""
    parts = sharding.addressable_devices_indices_map((1, n_lanes, n_rows)).values()
    lanes = {i for part in parts if part for i in range(n_lanes)[part[1]]}
    rows = {i for part in parts if part for i in range(n_rows)[part[2]]}
    return Share(np.array(sorted(lanes)), np.array(sorted(rows)))


def lay_share(
    x: np.ndarray, sharding: NamedSharding, share: Share, n_lanes: int, n_rows: int
) -> jax.Array:
    """What this process has of `[steps, n_lanes, n_rows, ...]`, laid with what the others have."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)

    def part(index: Any) -> np.ndarray:
        lanes = np.searchsorted(share.lanes, range(n_lanes)[index[1]])
        rows = np.searchsorted(share.rows, range(n_rows)[index[2]])
        return x[index[0]][:, lanes][:, :, rows]

    shape = (len(x), n_lanes, n_rows, *x.shape[3:])
    return jax.make_array_from_callback(shape, sharding, part)


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """The shardings of a state stacked over lanes."""
    one_lane = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state)
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, PartitionSpec("lane", *spec)),
        partition_specs(one_lane, mesh),
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )


def _spec(
    path: tuple[Any, ...], shape: tuple[int, ...], mesh: Mesh | jax.sharding.AbstractMesh
) -> PartitionSpec:
    names = [getattr(entry, "key", getattr(entry, "name", None)) for entry in path]
    axes = next((_AXES[name] for name in reversed(names) if name in _AXES), ())
    if axes and _STACKED in names:
        axes = (None, *axes)
    if len(axes) != len(shape):
        return PartitionSpec()
    return PartitionSpec(
        *(
            axis if axis is not None and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(axes, shape, strict=True)
        )
    )
