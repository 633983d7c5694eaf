from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from scaling_jax.config import MeshConfig
from scaling_jax.training.digests import digests
from scaling_jax.training.mesh import make_mesh


def digest(x: jax.Array) -> int:
    return digests({"x": x})["x"]


def mixed(word: int) -> int:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        word = ((word ^ (word >> shift)) * factor) % 2**32
    return word ^ (word >> 16)


def by_hand(words: np.ndarray) -> int:
    return sum(mixed(int(w) ^ mixed(i)) for i, w in enumerate(words.ravel())) % 2**32


@pytest.mark.parametrize("shape", [(), (7,), (3, 0), (2, 3, 5)])
@pytest.mark.parametrize(
    ("dtype", "word"),
    [
        (np.float32, np.uint32),
        (jnp.bfloat16, np.uint16),
        (np.int32, np.uint32),
        (np.uint8, np.uint8),
        (np.bool_, np.uint8),
    ],
)
def test_a_digest_is_what_it_says(shape, dtype, word):
    draws = np.random.default_rng(0).integers(0, 2, shape) - 0.5
    x = np.asarray(draws * 3, np.float32).astype(dtype)
    assert digest(jnp.asarray(x)) == by_hand(x.view(word))


def test_numbers_of_64_bits_are_two_words():
    with jax.enable_x64(True):
        x = np.arange(6).reshape(2, 3) / 7
        assert digest(jnp.asarray(x)) == by_hand(x.view(np.uint32))


@pytest.mark.parametrize(
    ("axes", "spec"),
    [
        ({"lane": 2, "fsdp": 4}, ("lane", "fsdp")),
        ({"data": 8}, (None, "data")),
        ({"lane": 2, "data": 2, "tensor": 2}, ("tensor", ("data", "lane"))),
        ({"fsdp": 2, "data": 4}, ()),
    ],
)
def test_it_is_the_same_however_the_array_is_laid(axes, spec):
    x = jnp.asarray(np.random.default_rng(1).standard_normal((4, 16, 3)), jnp.float32)
    laid = NamedSharding(make_mesh(MeshConfig(**axes)), PartitionSpec(*spec))
    assert digest(jax.device_put(x, laid)) == digest(x)


def test_every_flipped_bit_shows():
    x = np.random.default_rng(2).standard_normal(8).astype(np.float32)
    plain = digest(jnp.asarray(x))
    for byte in range(x.nbytes):
        for bit in range(8):
            changed = x.copy()
            changed.view(np.uint8)[byte] ^= 1 << bit
            assert digest(jnp.asarray(changed)) != plain


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1.0, 2.0, 3.0], [2.0, 1.0, 3.0]),  # exchanged
        ([1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]),  # of which the sum of words times places is the same
        ([0.0, 0.0], [-0.0, 0.0]),
        ([0.0, 0.0], [0.0, 0.0, 0.0]),
        ([float("nan")], [float("inf")]),
    ],
)
def test_places_and_signs_count(one, other):
    assert digest(jnp.asarray(one)) != digest(jnp.asarray(other))
