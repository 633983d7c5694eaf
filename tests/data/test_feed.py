from __future__ import annotations

import functools
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling_jax.data import feed as feed_module
from scaling_jax.data import training_set as training_set_module
from scaling_jax.data.epochs import WindowTable, epoch_windows, window_table, windows_an_epoch
from scaling_jax.data.feed import HostFeed
from scaling_jax.data.sampler import Draw, host_windows, windows
from scaling_jax.data.tokens import ShardedTokens, TokenArray
from scaling_jax.data.training_set import TrainingSet
from scaling_jax.errors import RequestError
from scaling_jax.training.batches import gather_epoch_windows

SEEDS = [3, 2**31 - 1, 3]
N_TOKENS = [5000, 70_000, 11]
BATCH, N_CTX = 4, 10
SEPARATOR = 7


def store(dtype: type[np.integer] = np.uint16, size: int = 70_000) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, size, endpoint=True)
    return values.astype(dtype)


def open_feed(
    tokens: TokenArray, start_step: int, stop_step: int, table: WindowTable | None = None
) -> HostFeed:
    source = TrainingSet(tokens, N_CTX, SEPARATOR, table)
    return HostFeed(source, SEEDS, N_TOKENS, BATCH, start_step, stop_step)


@functools.cache
def device_starts() -> jax.Array:
    """Of steps 0 to 1200: [steps, lanes, batch]."""

    def draw(step: jax.Array, seed: jax.Array, n_tokens: jax.Array) -> jax.Array:
        return windows(seed, step, BATCH, n_tokens, N_CTX)

    lanes = jax.vmap(draw, in_axes=(None, 0, 0))
    return jax.jit(jax.vmap(lanes, in_axes=(0, None, None)))(
        jnp.arange(1200), jnp.asarray(SEEDS), jnp.asarray(N_TOKENS)
    )


def on_device(tokens: np.ndarray, start_step: int, stop_step: int) -> np.ndarray:
    """What a program with the store on its device gathers."""
    starts = device_starts()[start_step:stop_step, ..., None]
    return np.asarray(jnp.asarray(tokens)[starts + jnp.arange(N_CTX + 1)[None, None, None, :]])


def left_after(before: set[threading.Thread]) -> set[threading.Thread]:
    """The threads that do not end; one that had not begun to gather ends a moment after `close`."""
    for late in set(threading.enumerate()) - before:
        late.join(10)
    return set(threading.enumerate()) - before


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert left_after(before) == set()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint32])
def test_batches_are_those_of_a_store_on_the_device(dtype):
    tokens = store(dtype)
    with open_feed(tokens, 77, 377) as feed:
        fed = [feed.take(n) for n in (1, 128, 3, 100, 68)]
    assert all(each.valid is None for each in fed)
    chunks = [each.rows for each in fed]
    assert [len(chunk) for chunk in chunks] == [1, 128, 3, 100, 68]
    batches = np.concatenate(chunks)
    assert batches.dtype == dtype
    assert len(np.unique(batches)) > 200
    np.testing.assert_array_equal(batches, on_device(tokens, 77, 377))


@settings(max_examples=15)
@given(st.integers(0, 300), st.lists(st.integers(0, 128), min_size=1, max_size=6))
def test_any_start_and_any_chunks(start_step, chunks):
    tokens, stop_step = store(), start_step + sum(chunks)
    with open_feed(tokens, start_step, stop_step) as feed:
        batches = np.concatenate([feed.take(n).rows for n in chunks])
    starts = np.asarray(device_starts())[start_step:stop_step, ..., None]
    np.testing.assert_array_equal(batches, tokens[starts + np.arange(N_CTX + 1)])


@functools.partial(jax.jit, static_argnums=3)
def epochs_on_device(
    tokens: jax.Array, table: WindowTable, n_windows: jax.Array, steps: int
) -> tuple[jax.Array, jax.Array]:
    def batch(step: jax.Array, seed: jax.Array, n: jax.Array, m: jax.Array) -> Draw:
        return epoch_windows(seed, step, BATCH, N_CTX, n, m, table)

    lanes = jax.vmap(batch, in_axes=(None, 0, 0, 0))
    drawn = jax.vmap(lanes, in_axes=(0, None, None, None))(
        jnp.arange(steps), jnp.asarray(SEEDS, jnp.uint32), jnp.asarray(N_TOKENS), n_windows
    )
    flat = jax.tree.map(lambda x: x.reshape(-1), drawn)
    rows = gather_epoch_windows(tokens, flat, N_CTX, SEPARATOR)
    return rows.reshape(steps, len(SEEDS), BATCH, N_CTX + 1), drawn.valid


@pytest.mark.parametrize("in_documents", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_epochs_are_those_of_a_store_on_the_device(in_documents, sharded):
    whole = store()
    tokens = ShardedTokens([whole[:333], whole[333:5001], whole[5001:]], whole.dtype)
    cuts = np.sort(np.random.default_rng(1).choice(np.arange(1, 70_000), 4000, replace=False))
    doc_starts = np.append(0, cuts) if in_documents else np.zeros(1, np.int64)
    table = window_table(doc_starts, 70_000, N_CTX)
    with open_feed(tokens if sharded else whole, 0, 300, table) as feed:
        fed = [feed.take(n) for n in (1, 128, 171)]
    n_windows = [windows_an_epoch(table, n, N_CTX) for n in N_TOKENS]
    rows, valid = epochs_on_device(
        jnp.asarray(whole),
        WindowTable(*(jnp.asarray(x, jnp.int32) for x in table)),
        jnp.asarray(n_windows, jnp.uint32),
        300,
    )
    np.testing.assert_array_equal(np.concatenate([each.rows for each in fed]), rows)
    counted = [each.valid for each in fed if each.valid is not None]
    np.testing.assert_array_equal(np.concatenate(counted), valid)
    assert (np.asarray(valid) < N_CTX).any() and fed[0].rows.dtype == np.uint16
    # the smallest subset, of 11 tokens, by hand
    first = np.asarray(rows)[:, 2].reshape(-1, N_CTX + 1)
    begins = first[first[:, 1] == whole[0]]
    assert len(begins) and (begins[:, 0] == SEPARATOR).all()
    if not in_documents:
        last = first[first[:, 1] == whole[10]]
        assert (last[:, 0] == whole[9]).all() and (last[:, 2:] == SEPARATOR).all()


def test_large_batches_come_in_blocks_of_a_step(monkeypatch):
    tokens = store()
    monkeypatch.setattr(feed_module, "_BLOCK_BYTES", 1)
    with open_feed(tokens, 5, 35) as feed:
        batches = np.concatenate([feed.take(n).rows for n in (4, 26)])
    np.testing.assert_array_equal(batches, on_device(tokens, 5, 35))


def test_a_store_mapped_from_disk(tmp_path):
    np.save(tmp_path / "tokens.npy", store())
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    with open_feed(mapped, 0, 20) as feed:
        batches = feed.take(20).rows
    assert type(batches) is np.ndarray
    np.testing.assert_array_equal(batches, on_device(store(), 0, 20))


def test_what_was_taken_is_the_callers():
    tokens = store()
    with open_feed(tokens, 0, 20) as feed:
        feed.take(10).rows[:] = 0
        np.testing.assert_array_equal(feed.take(10).rows, on_device(tokens, 10, 20))
    np.testing.assert_array_equal(tokens, store())


def test_the_stop_is_a_stop():
    with open_feed(store(), 100, 110) as feed:
        feed.take(4)
        with pytest.raises(ValueError, match="stops at step 110: no 7 steps are left at step 104"):
            feed.take(7)
        assert len(feed.take(6).rows) == 6
        assert len(feed.take(0).rows) == 0
        with pytest.raises(ValueError, match="stops at step 110"):
            feed.take(1)


def test_a_feed_of_no_steps():
    with open_feed(store(), 100, 100) as feed:
        assert feed.take(0).rows.shape == (0, len(SEEDS), BATCH, N_CTX + 1)


@pytest.mark.parametrize("taken", [0, 1, 200])
def test_closing_early_ends_the_threads(taken):
    before = set(threading.enumerate())
    feed = open_feed(store(), 0, 100_000)
    feed.take(taken)
    assert set(threading.enumerate()) > before
    feed.close()
    assert left_after(before) == set()
    feed.close()
    with pytest.raises(ValueError, match="closed"):
        feed.take(1)


def test_closing_waits_for_the_blocks_at_work_and_for_no_other(monkeypatch):
    begun, ended = [], []

    def slow(seeds, steps, *args):
        begun.append(steps[0])
        time.sleep(0.1)
        ended.append(steps[0])
        return host_windows(seeds, steps, *args)

    monkeypatch.setattr(training_set_module, "host_windows", slow)
    monkeypatch.setattr(
        feed_module, "_READ", feed_module.grain.ReadOptions(num_threads=1, prefetch_buffer_size=50)
    )
    feed = open_feed(store(), 0, 100_000)
    feed.take(1)
    feed.close()
    assert sorted(begun) == sorted(ended)
    assert 1 <= len(ended) < 5


def test_what_went_wrong_in_a_thread_reaches_the_caller(monkeypatch):
    def broken(seeds, steps, *args):
        if steps[0] >= 128:
            raise OSError("the disk is gone")
        return host_windows(seeds, steps, *args)

    monkeypatch.setattr(training_set_module, "host_windows", broken)
    before = set(threading.enumerate())
    tokens = store()
    feed = open_feed(tokens, 0, 1000)
    np.testing.assert_array_equal(feed.take(100).rows, on_device(tokens, 0, 100))
    with pytest.raises(OSError, match="the disk is gone"):
        feed.take(100)
    assert left_after(before) == set()
    with pytest.raises(ValueError, match="closed"):
        feed.take(1)


def test_impossible_subsets_are_refused():
    with pytest.raises(RequestError, match="subset of 70000 tokens of a corpus of 69999"):
        open_feed(store(size=69_999), 0, 10)
    source = TrainingSet(store(), N_CTX, SEPARATOR, None)
    with pytest.raises(RequestError, match="10 tokens hold no window of n_ctx 10"):
        HostFeed(source, SEEDS, [5000, 70_000, 10], BATCH, 0, 10)
