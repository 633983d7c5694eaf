"""Gradients of a batch by groups of its rows, and the moments that the noise scale is made of.

A batch of B rows is cut into `microbatches` x `width` groups. Microbatches follow one another in a
scan; the `width` groups of a microbatch are taken side by side, laid over the mesh's `data` axis.
So a group is a microbatch where `width` is 1, a data-parallel shard where `width` is the number of
shards, and a single sequence where there are B groups: one estimator serves all.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from scaling_jax.config import RunConfig
from scaling_jax.errors import RequestError

Params = Any
Rows = Any


class GroupedGradient(NamedTuple):
    """What one batch gave: before clipping and before any optimizer transform."""

    loss: jax.Array  # mean over the batch, nats a token
    gradient: Params  # of that mean
    grad_sq_small: jax.Array  # mean over groups of the squared norm of a group's gradient
    grad_sq_big: jax.Array  # squared norm of `gradient`


class Cut(NamedTuple):
    """How a batch of rows is cut into groups."""

    microbatches: int
    width: int

    @property
    def groups(self) -> int:
        """Groups a batch."""
        return self.microbatches * self.width


def cut_batch(config: RunConfig, shards: int) -> Cut:
    """The cut of a batch over `shards` data-parallel shards.

    Raises `RequestError` where the rows do not divide into the groups asked for.
    """
    microbatches, sequences = config.batch.microbatches, config.batch.sequences
    asked = config.noise.groups if config.noise.enabled and config.noise.groups else 1
    width = shards * ceil(asked / (microbatches * shards))
    if sequences % (microbatches * width):
        raise RequestError(
            f"batch.sequences {sequences} does not divide into {microbatches} microbatch(es) of "
            f"{width} group(s) on {shards} data shard(s); change batch.sequences or noise.groups"
        )
    return Cut(microbatches, width)


def group_rows(rows: Rows, cut: Cut) -> Rows:
    """Rows `[B, ...]` as `[microbatches, width, B / groups, ...]`, neighbours kept apart."""

    def arrange(x: jax.Array) -> jax.Array:
        k, w = cut
        return jnp.moveaxis(x.reshape(x.shape[0] // (k * w), w, k, *x.shape[1:]), (2, 1), (0, 1))

    return jax.tree.map(arrange, rows)


def grouped_gradient(
    loss_fn: Callable[[Params, Rows], jax.Array], params: Params, rows: Rows, cut: Cut
) -> GroupedGradient:
    """The gradient of the mean of `loss_fn` over `rows`, with the norms of its groups.

    `loss_fn(params, rows)` is a mean over its rows. Must run under a mesh with an axis `data`.
    """
    rows_kw = jax.tree.map(_shard(1), group_rows(rows, cut))
    by_group = jax.vmap(jax.value_and_grad(loss_fn), in_axes=(None, 0), spmd_axis_name="data")

    def microbatch(carry: Any, rows_w: Rows) -> tuple[Any, None]:
        loss, grad_sq, gradient_w = carry
        loss_w, grads_w = by_group(params, rows_w)
        grads_w = jax.tree.map(_shard(0), grads_w)
        added = jax.tree.map(jnp.add, gradient_w, grads_w)
        return (loss + loss_w.sum(), grad_sq + _sq_norm(grads_w), added), None

    zeros_w = jax.tree.map(
        lambda p: _shard(0)(jnp.zeros((cut.width, *p.shape), jnp.float32)), params
    )
    start = (jnp.float32(0.0), jnp.float32(0.0), zeros_w)
    (loss, grad_sq, gradient_w), _ = jax.lax.scan(microbatch, start, rows_kw)
    gradient = jax.tree.map(lambda g: g.sum(0) / cut.groups, gradient_w)
    return GroupedGradient(loss / cut.groups, gradient, grad_sq / cut.groups, _sq_norm(gradient))


def _sq_norm(tree: Params) -> jax.Array:
    return sum((jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)), jnp.float32(0.0))


def _shard(axis: int) -> Callable[[jax.Array], jax.Array]:
    spec = PartitionSpec(*(None,) * axis, "data")
    return lambda x: jax.lax.with_sharding_constraint(x, spec)
