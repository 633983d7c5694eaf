"""Gradients of a batch by groups of its rows, and the moments that the noise scale is made of.

A batch of B rows is cut into `microbatches` x `width` groups. Microbatches follow one another in a
scan; the `width` groups of a microbatch are taken side by side, laid over the mesh's `data` axis.
So a group is a microbatch where `width` is 1, a data-parallel shard where `width` is the number of
shards, and a single sequence where there are B groups: one estimator serves all. The axes `fsdp`
and `tensor` lie inside a group.

Single sequences are a source of their own where the model takes their norms in its backward pass,
at whatever groups there are. Rows are drawn independently and with replacement from the tokens that
a run may see, so that they are independent however few documents those hold, and the noise is that
of these tokens. Where a run goes through epochs, they are drawn without replacement: the noise of B
of an epoch's m rows is smaller by (m - B)/(m - 1), and a row counts by the targets that it has.
Dropout draws a mask a row, whose variance is part of the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import ceil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from scaling_jax.config import MeshConfig, OptimizerConfig, RunConfig
from scaling_jax.errors import RequestError
from scaling_jax.models.kinds import KINDS, kind_of
from scaling_jax.training.sharding import partition_specs

Params = Any
Rows = Any
Probes = Mapping[str, jax.Array]


class Measure(NamedTuple):
    """What a pair of squared norms is of; the columns of the noise table that name it."""

    source: str
    """What the small norm is of: `groups` of rows, or single `sequences`."""
    metric: str
    """`euclidean` for |g|^2, `adam` for g^T P g with P of `adam_metric`."""
    part: str
    """`total`, or one of `KINDS`."""


TOTAL = Measure("groups", "euclidean", "total")
"""The measure that the curves hold; all others are in the noise table."""


class GroupedGradient(NamedTuple):
    """What one batch gave: before clipping and before any optimizer transform."""

    loss: jax.Array  # mean over the batch, nats a token
    gradient: Params  # of that mean
    grad_sq_small: jax.Array  # [measures], mean over groups or sequences of one's squared norm
    grad_sq_big: jax.Array  # [measures], squared norm of `gradient`


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
    grad_sq: tuple[jax.Array, ...]  # one a measure
    gradient: Params


def noise_measures(config: RunConfig, cut: Cut) -> tuple[Measure, ...]:
    """What a run records of its gradient noise, in the order of the arrays of its moments.

    `TOTAL` comes first where there is more than one group; with one, single sequences alone can
    be measured.
    """
    noise = config.noise
    if not noise.enabled:
        return ()
    kinds = tuple(kind for kind in KINDS if kind != "head" or not config.model.tied_embeddings)
    measures = []
    if cut.groups > 1:
        metrics = ("euclidean", "adam") if noise.preconditioned else ("euclidean",)
        parts = ("total", *kinds) if noise.parts else ("total",)
        measures += [Measure("groups", metric, part) for metric in metrics for part in parts]
    of_sequences = {"none": (), "norms": ("norms",), "all": ("total", *kinds)}[noise.sequences]
    measures += [Measure("sequences", "euclidean", part) for part in of_sequences]
    return tuple(measures)


def cut_batch(config: RunConfig, mesh: MeshConfig) -> Cut:
    """The cut of a batch over a mesh.

    Raises `RequestError` where the rows do not divide into the groups asked for, and where what is
    to be measured of groups finds but one.
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
    cut = Cut(microbatches, width)
    if cut.groups == 1 and config.noise.enabled:
        for name in ("parts", "preconditioned"):
            if getattr(config.noise, name):
                raise RequestError(
                    f"noise.{name} needs more than one group, and the batch is one microbatch on "
                    "one data shard: set noise.groups=2 or more, or batch.microbatches"
                )
    return cut


def group_rows(rows: Rows, cut: Cut) -> Rows:
    """Rows `[B, ...]` as `[microbatches, width, B / groups, ...]`, neighbours kept apart."""

    def arrange(x: jax.Array) -> jax.Array:
        k, w = cut
        return jnp.moveaxis(x.reshape(x.shape[0] // (k * w), w, k, *x.shape[1:]), (2, 1), (0, 1))

    return jax.tree.map(arrange, rows)


def adam_metric(config: OptimizerConfig, opt_state: optax.OptState) -> Params:
    """P = 1/(sqrt(v_hat) + eps), the diagonal by which Adam's next update weighs a gradient.

    From the second moments as they stand, before the update, so that P is independent of the
    gradients that it weighs. P is 0 where v is: of a parameter that had no gradient yet there is
    no metric, and 1/eps would outweigh all others. So all of it is 0 before the first update.
    """
    leaves = jax.tree.leaves(opt_state, is_leaf=_is_adam)
    adam = next(leaf for leaf in leaves if _is_adam(leaf))
    correction = 1 - jnp.float32(config.beta2) ** adam.count.astype(jnp.float32)

    def weight(v: jax.Array) -> jax.Array:
        return jnp.where(v > 0, 1 / (jnp.sqrt(v / correction) + config.eps), 0.0)

    return jax.tree.map(weight, adam.nu)


def _is_adam(x: Any) -> bool:
    return isinstance(x, optax.ScaleByAdamState)


def grouped_gradient(
    loss_fn: Callable[[Params, Rows, Probes], jax.Array],
    params: Params,
    rows: Rows,
    cut: Cut,
    measures: tuple[Measure, ...] = (),
    metric: Params = None,
) -> GroupedGradient:
    """The gradient of the mean of `loss_fn` over `rows`, with the norms that `measures` names.

    `loss_fn(params, rows, probes)` is a mean over its rows; `probes` maps the kinds whose norms
    are to be taken a sequence to zeros [rows], as the models take them. `metric` is that of the
    measures `adam`, a tree like `params`. Must run under a mesh with axes `data`, `fsdp` and
    `tensor`.
    """
    specs = partition_specs(params, jax.sharding.get_abstract_mesh())
    rows_kw = jax.tree.map(_lay(PartitionSpec(None, "data", "fsdp")), group_rows(rows, cut))
    rows_a_group = jax.tree.leaves(rows_kw)[0].shape[2]
    probes = {kind: jnp.zeros(rows_a_group, jnp.float32) for kind in _probed(params, measures)}
    by_group = jax.vmap(
        jax.value_and_grad(loss_fn, argnums=(0, 2)), in_axes=(None, 0, None), spmd_axis_name="data"
    )

    def over_data(tree_w: Params) -> Params:
        return jax.tree.map(lambda x, spec: _lay(PartitionSpec("data", *spec))(x), tree_w, specs)

    def microbatch(sums_w: _Sums, rows_w: Rows) -> tuple[_Sums, None]:
        loss_w, (grads_w, sq_norms_wb) = by_group(params, rows_w, probes)
        grads_w = over_data(grads_w)
        of_groups = _norms(grads_w, measures, metric, batch_axes=1)
        # The loss is a mean over r rows: a row's own gradient is r times what it adds.
        of_rows = {kind: rows_a_group * x_wb.sum(1) for kind, x_wb in sq_norms_wb.items()}
        grad_sq_w = tuple(
            norm_w if measure.source == "groups" else _part(of_rows.items(), measure.part)
            for measure, norm_w in zip(measures, of_groups, strict=True)
        )
        return jax.tree.map(jnp.add, sums_w, _Sums(loss_w, grad_sq_w, grads_w)), None

    zeros_w = jnp.zeros(cut.width, jnp.float32)
    start = _Sums(
        zeros_w,
        (zeros_w,) * len(measures),
        over_data(jax.tree.map(lambda p: jnp.zeros((cut.width, *p.shape), jnp.float32), params)),
    )
    sums_w, _ = jax.lax.scan(microbatch, start, rows_kw)
    loss, grad_sq, gradient = jax.tree.map(lambda x: x / cut.groups, _sum_groups(sums_w, specs))
    big = _norms(gradient, measures, metric)
    return GroupedGradient(loss, gradient, _stack(grad_sq), _stack(big))


def sq_norm(tree: Params) -> jax.Array:
    """The squared norm of a tree of parameters."""
    return _part(_leaf_norms(tree, None, 0), "total")


def _probed(params: Params, measures: tuple[Measure, ...]) -> list[str]:
    """The kinds that single sequences are measured in, in one order in every process."""
    parts = {measure.part for measure in measures if measure.source == "sequences"}
    if "total" in parts:
        parts = {kind_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    return sorted(parts)


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


def _norms(
    tree: Params, measures: tuple[Measure, ...], metric: Params, batch_axes: int = 0
) -> tuple[jax.Array, ...]:
    """The squared norm of a tree by each measure, for each index of the first `batch_axes` axes."""
    weights = {"euclidean": None, "adam": metric}
    leaves = {
        name: _leaf_norms(tree, weights[name], batch_axes)
        for name in dict.fromkeys(measure.metric for measure in measures)
    }
    return tuple(_part(leaves[measure.metric], measure.part) for measure in measures)


def _leaf_norms(tree: Params, weights: Params, batch_axes: int) -> list[tuple[str, jax.Array]]:
    """The kind and the squared norm of each leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    squares = [jnp.square(leaf) for _, leaf in leaves]
    if weights is not None:
        squares = [
            jnp.expand_dims(weight, tuple(range(batch_axes))) * square
            for weight, square in zip(jax.tree.leaves(weights), squares, strict=True)
        ]
    return [
        (kind_of(path), jnp.sum(square, axis=tuple(range(batch_axes, square.ndim))))
        for (path, _), square in zip(leaves, squares, strict=True)
    ]


def _part(norms: Iterable[tuple[str, jax.Array]], part: str) -> jax.Array:
    return jnp.stack([norm for kind, norm in norms if part in ("total", kind)]).sum(0)


def _stack(norms: tuple[jax.Array, ...]) -> jax.Array:
    return jnp.stack(norms) if norms else jnp.zeros(0, jnp.float32)


def _lay(spec: PartitionSpec) -> Callable[[jax.Array], jax.Array]:
    return lambda x: jax.lax.with_sharding_constraint(x, spec)
