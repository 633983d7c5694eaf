"""Gradients and the curvature that they meet: what B_noise = tr(H Sigma) / G^T H G is made of.

The noise scale with the Hessian H (McCandlish et al. 2018, eq. 2.8) has the two points of the
simple one, with g^T H g in the place of |g|^2: E[g^T H g] = G^T H G + tr(H Sigma)/B for the
gradient g of a batch of B. H is that of the mean loss of rows which are independent of the rows of
g; were they the same, the noise of both would be correlated.

Only forms v^T H v are needed, and such a form is the second derivative of the loss along v: it is
carried forward beside the loss, with no backward pass and nothing kept for one. Along the way it
comes in two parts, the curvature of the loss in the logits, which is Gauss-Newton's form and never
below zero, and that of the logits in the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from scaling_jax.training.step import token_losses

Params = Any
Rows = Any
Forms = Mapping[str, jax.Array]


class CurvatureMoments(NamedTuple):
    """What one draw of rows gave at fixed parameters; forms by metric, scalars in float32."""

    loss: jax.Array  # mean over the rows of the gradients
    small: Forms  # mean over groups of the form of a group's gradient
    big: Forms  # form of the mean gradient


def curvature_moments(
    loss_fn: Callable[[Params, Rows], jax.Array],
    forms_fn: Callable[[Params, Params, Rows], Forms],
    params: Params,
    gradient_rows: Rows,
    curvature_rows: Rows,
) -> CurvatureMoments:
    """Forms of the gradients of K groups, and of their mean, in the curvature on other rows.

    `loss_fn(params, rows)` is a mean over its rows and `forms_fn(params, v, rows)` gives forms of v
    that are means over theirs; |v|^2 is added to them as `euclidean`. The leaves of `gradient_rows`
    are [groups, microbatches, rows, ...], those of `curvature_rows` [microbatches, rows, ...].
    Groups and microbatches follow one another, so that however many there are, memory holds a few
    trees like `params` and what one microbatch needs. Under a mesh with axes `data` and `fsdp`, the
    rows of a microbatch are laid over both, which must divide them.
    """
    gradient_of = jax.value_and_grad(_over_shards(loss_fn))
    forms_of = _over_shards(forms_fn)

    def forms(v: Params) -> Forms:
        found = _mean(lambda rows: forms_of(params, v, rows), curvature_rows)
        return {"euclidean": _sq_norm(v), **found}

    def group(rows: Rows) -> tuple[jax.Array, Params, Forms]:
        loss, gradient = _mean(lambda rows: gradient_of(params, rows), rows)
        return loss, gradient, forms(gradient)

    loss, gradient, small = _mean(group, gradient_rows)
    return CurvatureMoments(loss, small, forms(gradient))


def cross_entropy_loss(
    predict: Callable[[Params, Rows], tuple[jax.Array, jax.Array]],
) -> Callable[[Params, Rows], jax.Array]:
    """`loss(params, rows)`, nats a token, of `predict(params, rows) -> logits_btv, targets_bt`."""
    return lambda params, rows: token_losses(*predict(params, rows)).mean()


def cross_entropy_forms(
    predict: Callable[[Params, Rows], tuple[jax.Array, jax.Array]],
) -> Callable[[Params, Params, Rows], Forms]:
    """`forms(params, v, rows)` of the same loss: `hessian` and `gauss_newton`.

    With logits z(t) along params + t v and p their softmax, Gauss-Newton's form is the variance of
    z' under p, and the Hessian's adds the mean of z'' under p less z'' at the target. `predict`
    has to be differentiable forwards, which what defines its own backward pass is not.
    """

    def forms(params: Params, v: Params, rows: Rows) -> Forms:
        def first(p: Params) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            z, dz, targets = jax.jvp(lambda q: predict(q, rows), (p,), (v,), has_aux=True)
            return (z, dz), targets

        (z, dz), (_, ddz), targets = jax.jvp(first, (params,), (v,), has_aux=True)
        z, dz, ddz = (x.astype(jnp.float32) for x in (z, dz, ddz))
        p = jax.nn.softmax(z, axis=-1)
        centred = dz - (p * dz).sum(-1, keepdims=True)
        gauss_newton = (p * jnp.square(centred)).sum(-1).mean()
        at_target = jnp.take_along_axis(ddz, targets[..., None], axis=-1)[..., 0]
        residual = ((p * ddz).sum(-1) - at_target).mean()
        return {"hessian": gauss_newton + residual, "gauss_newton": gauss_newton}

    return forms


def _over_shards(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The mean of `fn(*trees, rows)` over shards of the rows, side by side along `data`."""

    def mean(*args: Any) -> Any:
        *trees, rows = args
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return fn(*args)

        def cut(x: jax.Array) -> jax.Array:
            x = x.reshape(mesh.shape["data"], -1, *x.shape[1:])
            return jax.lax.with_sharding_constraint(x, PartitionSpec("data", "fsdp"))

        by_shard = jax.vmap(fn, (*(None for _ in trees), 0), spmd_axis_name="data")
        return jax.tree.map(lambda x: x.mean(0), by_shard(*trees, jax.tree.map(cut, rows)))

    return mean


def _mean(fn: Callable[[Rows], Any], rows_n: Rows) -> Any:
    """The mean of `fn` over the first axis of `rows_n`, one at a time, summed in float32."""
    abstract = jax.eval_shape(lambda rows_n: fn(jax.tree.map(lambda x: x[0], rows_n)), rows_n)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), abstract)

    def add(sums: Any, rows: Rows) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, fn(rows)), None

    sums, _ = jax.lax.scan(add, zeros, rows_n)
    n = jax.tree.leaves(rows_n)[0].shape[0]
    return jax.tree.map(lambda x: x / n, sums)


def _sq_norm(tree: Params) -> jax.Array:
    return jnp.stack([jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)]).sum()
