"""Gradients of a batch by groups of its rows, and the moments that the noise scale is made of.

A batch of B rows is cut into `microbatches` x `width` groups. Microbatches follow one another in a
scan; the `width` groups of a microbatch are taken side by side, laid over the mesh's `data` axis.
So a group is a microbatch where `width` is 1, a data-parallel shard where `width` is the number of
shards, and a single sequence where there are B groups: one estimator serves all. The axes `fsdp`
and `tensor` lie inside a group.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from scaling_jax.config import MeshConfig, RunConfig
from scaling_jax.errors import RequestError
from scaling_jax.training.sharding import partition_specs

Params = Any
Rows = Any


class GroupedGradient(NamedTuple):
    """What one batch gave: before clipping and before any optimizer transform."""

    loss: jax.Array  # mean over the batch, nats a token
    gradient: Params  # of that mean
    grad_sq_small: jax.Array  # mean over groups of the squared norm of a group's gradient
    grad_sq_big: jax.Array  # squared norm of `gradient`; both 0 where they are not measured


class Cut(NamedTuple):
    """How a batch of rows is cut into groups."""

    microbatches: int
    width: int

    @property
    def groups(self) -> int:
        """Groups a batch."""
        return self.microbatches * self.width


class _Sums(NamedTuple):
    loss: jax.Array
    grad_sq: jax.Array
    gradient: Params


def cut_batch(config: RunConfig, mesh: MeshConfig) -> Cut:
    """The cut of a batch over a mesh.

    Raises `RequestError` where the rows do not divide into the groups asked for.
    """
    microbatches, sequences = config.batch.microbatches, config.batch.sequences
    shards, fsdp = mesh.data or 1, mesh.fsdp or 1
    asked = config.noise.groups if config.noise.enabled and config.noise.groups else 1
    width = shards * ceil(asked / (microbatches * shards))
    if sequences % (microbatches * width * fsdp):
        raise RequestError(
            f"batch.sequences {sequences} does not divide into {microbatches} microbatch(es) of "
            f"{width} group(s) on {shards} data shard(s)"
            + (f" of {fsdp} devices" if fsdp > 1 else "")
            + "; change batch.sequences or noise.groups"
        )
    return Cut(microbatches, width)


def group_rows(rows: Rows, cut: Cut) -> Rows:
    """Rows `[B, ...]` as `[microbatches, width, B / groups, ...]`, neighbours kept apart."""

    def arrange(x: jax.Array) -> jax.Array:
        k, w = cut
        return jnp.moveaxis(x.reshape(x.shape[0] // (k * w), w, k, *x.shape[1:]), (2, 1), (0, 1))

    return jax.tree.map(arrange, rows)


def grouped_gradient(
    loss_fn: Callable[[Params, Rows], jax.Array],
    params: Params,
    rows: Rows,
    cut: Cut,
    measure: bool = True,
) -> GroupedGradient:
    """The gradient of the mean of `loss_fn` over `rows`, with the norms of its groups.

    `loss_fn(params, rows)` is a mean over its rows. Must run under a mesh with axes `data`, `fsdp`
    and `tensor`.
    """
    specs = partition_specs(params, jax.sharding.get_abstract_mesh())
    rows_kw = jax.tree.map(_lay(PartitionSpec(None, "data", "fsdp")), group_rows(rows, cut))
    by_group = jax.vmap(jax.value_and_grad(loss_fn), in_axes=(None, 0), spmd_axis_name="data")

    def over_data(tree_w: Params) -> Params:
        return jax.tree.map(lambda x, spec: _lay(PartitionSpec("data", *spec))(x), tree_w, specs)

    def microbatch(sums_w: _Sums, rows_w: Rows) -> tuple[_Sums, None]:
        loss_w, grads_w = by_group(params, rows_w)
        grads_w = over_data(grads_w)
        grad_sq_w = _sq_norm(grads_w, batch_axes=1) if measure else jnp.zeros_like(loss_w)
        return jax.tree.map(jnp.add, sums_w, _Sums(loss_w, grad_sq_w, grads_w)), None

    zeros_w = jnp.zeros(cut.width, jnp.float32)
    start = _Sums(
        zeros_w,
        zeros_w,
        over_data(jax.tree.map(lambda p: jnp.zeros((cut.width, *p.shape), jnp.float32), params)),
    )
    sums_w, _ = jax.lax.scan(microbatch, start, rows_kw)
    loss, grad_sq, gradient = jax.tree.map(lambda x: x / cut.groups, _sum_groups(sums_w, specs))
    big = _sq_norm(gradient) if measure else jnp.zeros_like(grad_sq)
    return GroupedGradient(loss, gradient, grad_sq, big)


def _sum_groups(sums_w: _Sums, specs: Any) -> _Sums:
    """The sum over groups: the one place where data shards meet.

    Whole parameters are summed as one array, since on a CPU devices meet once an array.
    """
    shards = jax.sharding.get_abstract_mesh().shape["data"]
    cut_up = any(any(spec) for spec in jax.tree.leaves(specs, is_leaf=_is_spec))
    if shards == 1 or cut_up:
        return jax.tree.map(lambda x_w: x_w.sum(0), sums_w)
    leaves_w, structure = jax.tree.flatten(sums_w)
    joined_w = jnp.concatenate([x_w.reshape(x_w.shape[0], -1) for x_w in leaves_w], axis=1)
    joined = _lay(PartitionSpec())(_lay(PartitionSpec("data"))(joined_w).sum(0))
    parts = jax.lax.split(joined, [x_w[0].size for x_w in leaves_w])
    leaves = [part.reshape(x_w.shape[1:]) for part, x_w in zip(parts, leaves_w, strict=True)]
    return jax.tree.unflatten(structure, leaves)


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)


def _sq_norm(tree: Params, batch_axes: int = 0) -> jax.Array:
    """The squared norm of a tree, one for each index of the first `batch_axes` axes."""
    norms = [
        jnp.sum(jnp.square(leaf), axis=tuple(range(batch_axes, leaf.ndim)))
        for leaf in jax.tree.leaves(tree)
    ]
    return jnp.stack(norms).sum(0)


def _lay(spec: PartitionSpec) -> Callable[[jax.Array], jax.Array]:
    return lambda x: jax.lax.with_sharding_constraint(x, spec)
