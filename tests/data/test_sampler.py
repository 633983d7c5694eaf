from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling_jax.data.sampler import (
    document_of,
    host_windows,
    require_room,
    validation_windows,
    windows,
)
from scaling_jax.errors import RequestError

SEEDS = st.integers(0, 2**31 - 1)
STEPS = st.integers(0, 2**31 - 1)


@settings(max_examples=25, deadline=None)
@given(SEEDS, STEPS, st.integers(1, 40), st.integers(0, 60))
def test_every_window_lies_inside(seed, step, n_ctx, spare):
    n_tokens = n_ctx + 1 + spare
    starts = np.asarray(windows(seed, step, 16, n_tokens, n_ctx))
    assert starts.dtype == np.int32
    assert starts.min() >= 0
    assert starts.max() + n_ctx + 1 <= n_tokens


@settings(max_examples=10, deadline=None)
@given(SEEDS, STEPS)
def test_the_same_eagerly_compiled_and_traced(seed, step):
    eager = windows(seed, step, 8, 10_000, 64)
    compiled = jax.jit(windows, static_argnums=(2, 3, 4))(
        jnp.int32(seed), jnp.int32(step), 8, 10_000, 64
    )
    np.testing.assert_array_equal(eager, compiled)


def test_lanes_draw_what_they_draw_alone():
    seeds, step = jnp.arange(5, dtype=jnp.int32), jnp.int32(7)

    def draw(seed: jax.Array, step: jax.Array) -> jax.Array:
        return windows(seed, step, 16, 1_000_000, 128)

    lanes = np.asarray(jax.jit(jax.vmap(draw, in_axes=(0, None)))(seeds, step))
    alone = np.stack([draw(seed, step) for seed in seeds])
    np.testing.assert_array_equal(lanes, alone)
    assert len(np.unique(lanes)) > 70


@jax.jit
def draw_subsets(seed: jax.Array, step: jax.Array, n_tokens_l: jax.Array) -> jax.Array:
    return jax.vmap(lambda n_tokens: windows(seed, step, 16, n_tokens, 64))(n_tokens_l)


@settings(max_examples=25)
@given(SEEDS, STEPS, st.lists(st.integers(65, 2**31 - 1), min_size=3, max_size=3))
def test_subsets_may_be_lanes(seed, step, n_tokens):
    lanes = draw_subsets(jnp.uint32(seed), jnp.int32(step), jnp.asarray(n_tokens, jnp.int32))
    assert lanes.dtype == jnp.int32
    alone = np.stack([windows(seed, step, 16, n, 64) for n in n_tokens])
    np.testing.assert_array_equal(lanes, alone)


@settings(max_examples=25)
@given(
    st.lists(SEEDS, min_size=2, max_size=2),
    st.lists(STEPS, min_size=3, max_size=3),
    st.lists(st.integers(65, 2**31 - 1), min_size=2, max_size=2),
)
def test_the_host_draws_what_the_device_draws(seeds, steps, n_tokens):
    starts = host_windows(seeds, steps, 8, n_tokens, 64)
    assert starts.dtype == np.int64
    lanes = list(zip(seeds, n_tokens, strict=True))
    alone = [[windows(seed, step, 8, n, 64) for seed, n in lanes] for step in steps]
    np.testing.assert_array_equal(starts, np.asarray(alone))


def test_big_stores_are_drawn_from_whole_and_evenly():
    n_tokens, n_ctx = [2**31, 2**33 + 7], 2**20
    starts = host_windows([0, 1], np.arange(200), 64, n_tokens, n_ctx)
    assert starts.dtype == np.int64
    assert (starts >= 0).all()
    for lane, n in enumerate(n_tokens):
        drawn = starts[:, lane].ravel()
        assert drawn.max() + n_ctx + 1 <= n
        assert len(np.unique(drawn)) > 0.999 * drawn.size
        counts = np.bincount(drawn * 10 // (n - n_ctx), minlength=10)
        expected = drawn.size / 10
        assert np.sum((counts - expected) ** 2 / expected) < 27.9
    assert (starts[:, 1] >= 2**32).sum() > 0.4 * starts[:, 1].size


def test_big_stores_are_drawn_from_by_seed_and_step_alone():
    n_tokens, steps = np.array([2**33, 2**31 - 1, 2**31]), np.arange(6)
    together = host_windows([3, 4, 5], steps, 8, n_tokens, 64)
    assert jnp.arange(3).dtype == jnp.int32
    np.testing.assert_array_equal(together, host_windows([3, 4, 5], steps, 8, n_tokens, 64))
    moved = host_windows([5, 3, 4], np.roll(steps, 2), 8, np.roll(n_tokens, 1), 64)
    np.testing.assert_array_equal(moved, np.roll(together, (2, 1), axis=(0, 1)))
    halves = [host_windows([3], half, 8, n_tokens[:1], 64) for half in (steps[:3], steps[3:])]
    np.testing.assert_array_equal(np.concatenate(halves), together[:, :1])
    narrow = np.stack([windows(4, step, 8, 2**31 - 1, 64) for step in range(6)])
    np.testing.assert_array_equal(together[:, 1], narrow)
    assert len(np.unique(together)) == together.size


def test_a_batch_over_devices_is_the_batch_on_one():
    mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def draw(seed: jax.Array) -> jax.Array:
        return windows(seed, 3, 16, 1_000_000, 128)

    spread = jax.jit(draw, out_shardings=sharding)(jnp.int32(1))
    np.testing.assert_array_equal(spread, draw(jnp.int32(1)))


def test_starts_are_uniform():
    n_starts, steps = 10, 2000

    def draw(step: jax.Array) -> jax.Array:
        return windows(0, step, 8, n_starts + 4, 4)

    starts = np.asarray(jax.jit(jax.vmap(draw))(jnp.arange(steps, dtype=jnp.int32)))
    counts = np.bincount(starts.ravel(), minlength=n_starts)
    assert len(counts) == n_starts
    expected = starts.size / n_starts
    assert np.sum((counts - expected) ** 2 / expected) < 27.9  # chi-squared, 9 degrees, p = 0.001


def test_seed_and_step_are_apart():
    draws = [windows(seed, step, 8, 10**9, 8) for seed in range(3) for step in range(3)]
    assert len({tuple(np.asarray(starts)) for starts in draws}) == 9


@given(st.integers(1, 50), st.integers(0, 3000), st.integers(1, 5000))
def test_validation_windows_are_apart_and_as_many_as_fit(n_ctx, spare, tokens):
    n_tokens = n_ctx + 1 + spare
    starts = validation_windows(n_tokens, n_ctx, tokens)
    assert len(starts) == min(-(-tokens // n_ctx), (n_tokens - 1) // n_ctx)
    assert starts[0] == 0
    assert starts[-1] + n_ctx + 1 <= n_tokens
    gaps = np.diff(starts)
    assert (gaps >= n_ctx).all()
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


def test_documents_of_targets():
    doc_starts = np.array([0, 3, 4, 9])
    # targets are one beyond the inputs: 1 2 3 and 3 4 5 and 8 9 10
    np.testing.assert_array_equal(
        document_of(np.array([0, 2, 7]), 3, doc_starts), [[0, 0, 1], [1, 2, 2], [2, 3, 3]]
    )


@pytest.mark.parametrize("n_tokens", [0, 64, 2**31])
def test_impossible_stores_are_refused(n_tokens):
    with pytest.raises(RequestError, match=f"{n_tokens} tokens"):
        windows(0, 0, 4, n_tokens, 64)


@pytest.mark.parametrize("n_tokens", [0, 64])
def test_a_split_without_a_window_has_no_validation(n_tokens):
    with pytest.raises(RequestError, match=f"{n_tokens} tokens"):
        validation_windows(n_tokens, 64, 1000)


def test_a_validation_split_may_be_larger_than_an_int32_tells():
    starts = validation_windows(2**40, 64, 1000)
    assert len(starts) == 16 and starts[-1] > 2**39


def test_a_subset_without_a_window_is_refused():
    require_room(65, 64)
    with pytest.raises(RequestError, match="64 tokens hold no window of n_ctx 64"):
        require_room(64, 64)
    with pytest.raises(RequestError, match="64 tokens hold no window of n_ctx 64"):
        host_windows([0, 0], [0], 4, [2**33, 64], 64)
