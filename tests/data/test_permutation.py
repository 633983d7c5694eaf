from __future__ import annotations

from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling_jax.data.permutation import MOST, host_permutation, permute

SEEDS = st.integers(0, 2**31 - 1)
EPOCHS = st.integers(0, 2**32 - 1)


@jax.jit
def permuted(seed: jax.Array, epoch: jax.Array, m: jax.Array, places: jax.Array) -> jax.Array:
    return permute(seed, jnp.full(places.shape, epoch), m, places)


def places_of(seed: int, epoch: int, m: int, places: np.ndarray) -> np.ndarray:
    numbers = (jnp.uint32(x) for x in (seed, epoch, m))
    return np.asarray(permuted(*numbers, jnp.asarray(places, jnp.uint32)))


@settings(max_examples=40)
@given(SEEDS, EPOCHS, st.integers(1, 300))
def test_every_place_comes_once(seed, epoch, m):
    # Places that are none are cut off: one size compiles once.
    found = places_of(seed, epoch, m, np.arange(300) % m)[:m]
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(np.sort(found), np.arange(m))


def test_every_place_of_many_comes_once():
    m = 100_003
    found = places_of(3, 9, m, np.arange(m)).astype(np.int64)
    np.testing.assert_array_equal(np.sort(found), np.arange(m))
    # neighbours are none afterwards, and places are not near where they were
    assert (np.abs(np.diff(found)) == 1).sum() < 12
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(found, np.arange(m))[0, 1]) < 0.02


def test_the_largest_domain_is_not_left():
    places = np.linspace(0, MOST - 1, 300).astype(np.uint32)
    found = places_of(1, 2, MOST, places)
    assert len(np.unique(found)) == 300
    assert found.max() < MOST
    counts = np.bincount(found.astype(np.int64) * 10 // MOST, minlength=10)
    assert np.sum((counts - 30) ** 2 / 30) < 27.9


@settings(max_examples=4)
@given(SEEDS, st.lists(st.integers(1, 2**31), min_size=3, max_size=3))
def test_the_same_eagerly_compiled_in_lanes_and_one_by_one(seed, sizes):
    places = np.arange(4) % min(sizes)
    seeds, m = jnp.arange(3, dtype=jnp.uint32) + jnp.uint32(seed), jnp.asarray(sizes, jnp.uint32)
    epochs = jnp.arange(4, dtype=jnp.uint32)
    lanes = jax.vmap(lambda s, m: permute(s, epochs, m, jnp.asarray(places, jnp.uint32)))(seeds, m)
    alone = [
        [places_of(int(s), epoch, n, np.full(1, place))[0] for epoch, place in enumerate(places)]
        for s, n in zip(seeds, sizes, strict=True)
    ]
    np.testing.assert_array_equal(lanes, alone)


@pytest.mark.parametrize(("m", "most"), [(2, 10.8), (3, 20.5), (4, 49.7), (5, 173.6)])
def test_permutations_are_uniform_over_seeds_and_apart_between_epochs(m, most):
    # chi-squared at p = 0.001 with m! - 1 degrees of freedom
    n, places = 30_000, jnp.arange(m, dtype=jnp.uint32)

    @jax.jit
    @jax.vmap
    def two(seed: jax.Array) -> jax.Array:
        each = [permute(seed, jnp.full(m, e, jnp.uint32), jnp.uint32(m), places) for e in (0, 1)]
        return jnp.stack(each)

    first, second = np.moveaxis(np.asarray(two(jnp.arange(n, dtype=jnp.uint32))), 1, 0)
    between = np.take_along_axis(second, np.argsort(first, axis=1), axis=1)
    for drawn in (first, second, between):
        counts = np.unique(drawn @ m ** np.arange(m), return_counts=True)[1]
        assert len(counts) == factorial(m)
        expected = n / factorial(m)
        assert np.sum((counts - expected) ** 2 / expected) < most


def test_a_whole_permutation_of_the_host():
    found = host_permutation(7, 1000)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(np.sort(found), np.arange(1000))
    np.testing.assert_array_equal(found, host_permutation(7, 1000))
    assert (found != host_permutation(8, 1000)).sum() > 980
    assert (found != places_of(7, 0, 1000, np.arange(1000))).sum() > 980
    assert len(host_permutation(7, 0)) == 0
