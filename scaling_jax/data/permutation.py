"""A seeded permutation of 0..m-1 that is computed at any place of it, with nothing kept.

Swap-or-not (Hoang, Morris, Rogaway 2012, fig. 1): each round pairs x with k - x mod m for a drawn
k, and a bit drawn for the pair says whether the two change places. It serves any m and walks no
cycles, so that lanes of different m take the same time.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

MOST = 2**31
"""The largest m."""

# A round halves what a place tells of where it came from; 2^-32 is a uint32's own resolution.
_ROUNDS = 32
_GOLDEN = 0x9E3779B9


def permute(
    seed: jax.Array | int, epoch: jax.Array, m: jax.Array | int, index: jax.Array
) -> jax.Array:
    """What stands at `index` of the permutation of 0..m-1 of `seed` and `epoch`: uint32.

    `epoch` and `index` have one shape; all are uint32, and `seed` and `m` may be lanes of a vmap.
    The permutations of two seeds, or of two epochs, have nothing to do with each other. The caller
    makes sure that 0 <= index < m <= `MOST`.
    """
    seed, m = jnp.asarray(seed, jnp.uint32), jnp.asarray(m, jnp.uint32)
    pairs = _hash(_hash(seed ^ jnp.uint32(0x243F6A88)) + epoch)
    swaps = _hash(_hash(seed ^ jnp.uint32(0x85A308D3)) ^ (epoch * jnp.uint32(_GOLDEN)))

    def swap_or_not(i: jax.Array, x: jax.Array) -> jax.Array:
        counter = (i.astype(jnp.uint32) + 1) * jnp.uint32(_GOLDEN)
        k = _hash(pairs + counter) % m
        other = jnp.where(k >= x, k - x, k + (m - x))
        bit = _hash(jnp.maximum(x, other) ^ _hash(swaps + counter)) >> 31
        return jnp.where(bit == 1, other, x)

    return jax.lax.fori_loop(0, _ROUNDS, swap_or_not, index)


def _hash(x: jax.Array) -> jax.Array:
    # `lowbias32` of Wellons (2018): every bit of x decides about half of the bits of its hash.
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def host_permutation(seed: int, m: int) -> np.ndarray:
    """The whole permutation of 0..m-1 of `seed`, drawn on the host: int64 [m].

    It is none of those that `permute` gives for an epoch that a run reaches.
    """
    # Of this process: the first CPU device of all belongs to process 0.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        places = jnp.arange(m, dtype=jnp.uint32)
        apart = jnp.full(m, 2**32 - 1, jnp.uint32)
        return np.asarray(_permute(jnp.uint32(seed), apart, jnp.uint32(m), places), np.int64)


_permute = jax.jit(permute)
