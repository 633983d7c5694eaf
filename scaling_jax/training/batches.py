"""The batches of a compiled chunk: gathered from tokens on the device, or sent by the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from scaling_jax.config import EngineConfig, RunConfig
from scaling_jax.data.epochs import WindowTable, epoch_windows
from scaling_jax.data.feed import Fed
from scaling_jax.data.sampler import Draw, windows
from scaling_jax.data.training_set import TrainingSet
from scaling_jax.training.sharding import fed_sharding, lay, lay_share, replicated, share_of
from scaling_jax.training.step import Numbers

CHUNK_STEPS = 128


class Resident(NamedTuple):
    """A training set on the device."""

    tokens: ArrayLike
    table: WindowTable | None  # of int32


class Batch(NamedTuple):
    """The rows of one step."""

    window_bt: jax.Array  # int32 [b, n_ctx + 1]
    valid_b: jax.Array | None  # int32 [b], how many targets count; None where all do


Fetch = Callable[[jax.Array], Batch]


def resident(source: TrainingSet, mesh: Mesh) -> Resident:
    """The training set laid on every device of a mesh."""
    table = source.table
    if table is not None:
        table = WindowTable(*(np.asarray(x, np.int32) for x in table))
    return lay(Resident(np.asarray(source.tokens), table), replicated(mesh))


def send(fed: Fed, mesh: Mesh, n_lanes: int, n_rows: int) -> Fed:
    """This host's rows of the batches of a chunk, filled up to `CHUNK_STEPS`."""
    laid = fed_sharding(mesh)
    share = share_of(laid, n_lanes, n_rows)

    def fill(x: np.ndarray) -> jax.Array:
        padded = np.zeros((CHUNK_STEPS, *x.shape[1:]), x.dtype)
        padded[: len(x)] = x
        return lay_share(padded, laid, share, n_lanes, n_rows)

    return jax.tree.map(fill, fed)


def abstract_fed(source: TrainingSet, config: RunConfig, n_lanes: int) -> Fed:
    """Shapes and types of what `send` sends."""
    shape = (CHUNK_STEPS, n_lanes, config.batch.sequences)
    rows = jax.ShapeDtypeStruct((*shape, source.n_ctx + 1), source.tokens.dtype)
    valid = None if source.table is None else jax.ShapeDtypeStruct(shape, jnp.int32)
    return Fed(rows, valid)  # pyright: ignore[reportArgumentType]


def make_fetch(
    config: RunConfig, engine: EngineConfig, separator: int
) -> Callable[[jax.Array, Numbers, Any], Fetch]:
    """`fetch(step0, numbers, source)(i)`: the batches of step `step0 + i`, stacked over lanes.

    `source` is `Resident` or `Fed`, as the engine says.
    """
    if engine.feed == "host":
        return lambda step0, numbers, fed: lambda i: _lay_out(fed, i)
    if config.data.order == "random":
        return lambda step0, numbers, held: lambda i: _at_random(config, step0 + i, numbers, held)
    return lambda step0, numbers, held: _in_epochs(config, separator, step0, numbers, held)


def _lay_out(fed: Any, i: jax.Array) -> Batch:
    return Batch(fed.rows[i].astype(jnp.int32), None if fed.valid is None else fed.valid[i])


def _at_random(config: RunConfig, step: jax.Array, numbers: Numbers, held: Resident) -> Batch:
    sequences, n_ctx = config.batch.sequences, config.model.n_ctx

    def batch(numbers: Numbers) -> jax.Array:
        starts_b = windows(numbers.data_seed, step, sequences, numbers.n_tokens, n_ctx)
        return gather_windows(jnp.asarray(held.tokens), starts_b, n_ctx)

    return Batch(jax.vmap(batch, spmd_axis_name="lane")(numbers), None)


def _in_epochs(
    config: RunConfig, separator: int, step0: jax.Array, numbers: Numbers, held: Resident
) -> Fetch:
    # Drawn for all the steps of a chunk at once: a permutation has many rounds, which cost about
    # the same for one window as for thousands.
    sequences, n_ctx = config.batch.sequences, config.model.n_ctx
    table, tokens = held.table, jnp.asarray(held.tokens)
    assert table is not None

    def draws(numbers: Numbers) -> Draw:
        n_windows = numbers.n_windows
        assert n_windows is not None

        def draw(step: jax.Array) -> Draw:
            return epoch_windows(
                numbers.data_seed,
                step,
                sequences,
                n_ctx,
                numbers.n_tokens,
                n_windows,
                table,
            )

        return jax.vmap(draw)(step0 + jnp.arange(CHUNK_STEPS))

    drawn = jax.vmap(draws, out_axes=1, spmd_axis_name="lane")(numbers)

    def fetch(i: jax.Array) -> Batch:
        def batch(draw: Draw) -> jax.Array:
            return gather_epoch_windows(tokens, draw, n_ctx, separator)

        draw = jax.tree.map(lambda x: x[i], drawn)
        return Batch(jax.vmap(batch, spmd_axis_name="lane")(draw), draw.valid)

    return fetch


def gather_windows(tokens: jax.Array, starts_b: jax.Array, n_ctx: int) -> jax.Array:
    """Rows of `n_ctx + 1` tokens, int32, from each start."""
    return tokens[starts_b[:, None] + jnp.arange(n_ctx + 1)[None, :]].astype(jnp.int32)


def gather_epoch_windows(tokens: jax.Array, draw: Draw, n_ctx: int, separator: int) -> jax.Array:
    """The same, of windows that may begin before the tokens and end before they are full.

    What lies before the tokens, and what does not count, is the separator.
    """
    place_t = jnp.arange(n_ctx + 1)[None, :]
    index_bt = draw.starts[:, None] + place_t
    outside_bt = (index_bt < 0) | (place_t > draw.valid[:, None])
    window_bt = tokens[jnp.clip(index_bt, 0, tokens.shape[0] - 1)].astype(jnp.int32)
    return jnp.where(outside_bt, separator, window_bt)
