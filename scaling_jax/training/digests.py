"""A digest of an array's bits that does not depend on how the array is laid over devices."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def digests(leaves: Mapping[str, jax.Array]) -> dict[str, int]:
    """One number below 2^32 for each array, of every bit and its place.

    The array is read as 32-bit words; each is mixed with its index by a bijection, and the sum is
    taken mod 2^32, so that its order, and with it any sharding, does not matter. A change of one
    word always shows, any other with probability 1 - 2^-32.
    """
    found = jax.device_get(_digests(dict(leaves)))
    return {name: int(value) for name, value in found.items()}


@jax.jit
def _digests(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _digest(leaf) for name, leaf in leaves.items()}


def _digest(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    # No reshape: it would gather what is sharded.
    index, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        index = index + along * np.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return _mix(words ^ _mix(index)).sum(dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3, a bijection of 32-bit words that moves every bit."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
