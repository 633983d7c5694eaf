"""The gradient noise scale of any training loop in JAX: two pure functions that keep no state.

Take the gradients of K equal batches at the same parameters, each of the mean loss of its batch, as
microbatches or data shards give them, before clipping and before any optimizer. `noise_moments`
gives their two squared norms. Average each of the two over many updates, and only then ask
`two_point` for |G|^2 and tr(Sigma), and take their ratio: a mean of ratios of single updates is
biased, and what is clamped hides that it cannot be used. One update, of 4 batches of 8 examples:

    >>> import jax, jax.numpy as jnp
    >>> def loss(params, x):
    ...     return 0.5 * jnp.square(x - params["w"][None]).sum(-1).mean()
    >>> def update(key, params):
    ...     x_kbd = 1.0 + jax.random.normal(key, (4, 8, 3))  # 4 batches of 8 examples
    ...     grads = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, x_kbd)
    ...     return noise_moments(grads)

The mean of its moments over 2,000 updates, and what they say of tr(Sigma) = 3 and |G|^2 = 3:

    >>> keys = jax.random.split(jax.random.key(0), 2000)
    >>> moments = jax.jit(jax.vmap(update, in_axes=(0, None)))(keys, {"w": jnp.zeros(3)})
    >>> small, big = moments.grad_sq_small.mean(), moments.grad_sq_big.mean()
    >>> grad_sq, tr_sigma = two_point(small, big, batch_small=8, batch_big=32)
    >>> print(f"B_simple = {tr_sigma / grad_sq:.1f} examples")
    B_simple = 1.0 examples
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scaling_jax.errors import RequestError


class NoiseMoments(NamedTuple):
    """Squared norms of one update, float32."""

    grad_sq_small: jax.Array  # mean over the K batches of the squared norm of each one's gradient
    grad_sq_big: jax.Array  # squared norm of the mean of the K gradients


class NoiseEstimate(NamedTuple):
    """Unbiased where both norms are means over updates; either may be below zero by chance."""

    grad_sq: Any  # |G|^2, of the gradient without noise
    tr_sigma: Any  # trace of the covariance of one example's gradient


def noise_moments(per_batch_grads: Any) -> NoiseMoments:
    """The two squared norms of K equal batches' gradients, summed in float32.

    Every leaf of `per_batch_grads` is [K, ...], row k of the gradient of the mean loss of batch k.
    To be called inside `jax.jit` or out of it. Raises `RequestError` where the leaves do not share
    a leading axis of two batches or more.
    """
    leaves_k = [jnp.asarray(leaf, jnp.float32) for leaf in jax.tree.leaves(per_batch_grads)]
    batches = {leaf.shape[:1] for leaf in leaves_k}
    if len(batches) != 1 or next(iter(batches)) in ((), (0,), (1,)):
        raise RequestError(
            "noise_moments needs leaves that share a leading axis of two batches or more; theirs "
            f"are {sorted(batches)}"
        )
    small = sum(jnp.square(leaf).sum() / leaf.shape[0] for leaf in leaves_k)
    big = sum(jnp.square(leaf.mean(0)).sum() for leaf in leaves_k)
    return NoiseMoments(jnp.asarray(small), jnp.asarray(big))


def two_point(
    grad_sq_small: Any, grad_sq_big: Any, batch_small: Any, batch_big: Any
) -> NoiseEstimate:
    """|G|^2 and tr(Sigma) from squared norms at two batch sizes, `batch_small < batch_big`.

    Numbers or arrays, of NumPy or of JAX. `tr_sigma` is the variance of one of what the batches
    count, so that |G|^2 + tr(Sigma)/B is the expected squared norm of a batch of B, and
    tr(Sigma)/|G|^2 is B_simple in the same unit: tokens where the batches are tokens. Linear in the
    norms, so that the estimate of their means is the mean of their estimates. Nothing is clamped.
    Source: McCandlish et al. (2018), eq. A.2.
    """
    span = batch_big - batch_small
    return NoiseEstimate(
        grad_sq=(batch_big * grad_sq_big - batch_small * grad_sq_small) / span,
        tr_sigma=(grad_sq_small - grad_sq_big) * batch_small * batch_big / span,
    )
