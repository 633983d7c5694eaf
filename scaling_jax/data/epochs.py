"""Every token once an epoch: windows that do not overlap, in a permutation anew each epoch.

A set of tokens is cut into stretches of `n_ctx` targets, the last of a document or of the set
shorter. Windows are numbered on through a run: number g is in epoch g // m, m being the windows of
an epoch, and there at place g % m. So that they are a function of the step, as random windows are.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike as JaxArrayLike
from numpy.typing import ArrayLike

from scaling_jax.data.permutation import MOST, permute
from scaling_jax.data.sampler import Draw
from scaling_jax.errors import RequestError

MOST_WINDOWS = 2**32
"""Windows that a run may draw: their numbers are uint32."""


class WindowTable(NamedTuple):
    """What a set of tokens is cut into, a document apart from the next one.

    A set that is cut without regard to its documents has one.
    """

    first_window: JaxArrayLike  # integer [documents]: windows before those of each
    doc_starts: JaxArrayLike  # integer [documents + 1]: the last is the end of the set


def window_table(doc_starts: np.ndarray, n_tokens: int, n_ctx: int) -> WindowTable:
    """The table of documents that begin at `doc_starts` and end with the set: of int64."""
    edges = np.append(np.asarray(doc_starts, np.int64), n_tokens)
    windows = -(-np.diff(edges) // n_ctx)
    return WindowTable(np.cumsum(windows) - windows, edges)


def windows_an_epoch(table: WindowTable, n_tokens: int, n_ctx: int) -> int:
    """Windows that the first `n_tokens` of a set are cut into; the last document may be cut off."""
    if n_tokens == 0:
        return 0
    starts = np.asarray(table.doc_starts)[:-1]
    last = int(np.searchsorted(starts, n_tokens, side="left")) - 1
    return int(np.asarray(table.first_window)[last]) + -(-(n_tokens - int(starts[last])) // n_ctx)


def require_countable(windows: int, an_epoch: int) -> None:
    """Raises `RequestError` for a run of more `windows`, or an epoch of more, than are numbered."""
    if windows > MOST_WINDOWS:
        raise RequestError(
            f"{windows:,} windows are more than the {MOST_WINDOWS:,} that are numbered in epochs: "
            "lower steps or batch.sequences, or set data.order=random"
        )
    if an_epoch > MOST:
        raise RequestError(
            f"an epoch of {an_epoch:,} windows is more than the {MOST:,} that are numbered: raise "
            "model.n_ctx, set data.unique_tokens, or data.order=random"
        )


def epoch_windows(
    seed: jax.Array | int,
    step: jax.Array,
    batch: int,
    n_ctx: int,
    n_tokens: jax.Array,
    n_windows: jax.Array,
    table: WindowTable,
) -> Draw:
    """The windows of `step`: `starts` of the type of `table`, `valid` int32, both [batch].

    `n_windows` are those of an epoch of the first `n_tokens` of the set. Pure and traceable in all
    but `batch` and `n_ctx`; `seed`, `n_tokens` and `n_windows` may be lanes of a vmap.
    """
    first_window, doc_starts = (jnp.asarray(x) for x in table)
    dtype, m = doc_starts.dtype, jnp.asarray(n_windows, jnp.uint32)
    number = step.astype(jnp.uint32) * jnp.uint32(batch) + jnp.arange(batch, dtype=jnp.uint32)
    window = permute(seed, number // m, m, number % m).astype(dtype)
    document = jnp.searchsorted(first_window, window, side="right") - 1
    start = doc_starts[document] + (window - first_window[document]) * n_ctx
    end = jnp.minimum(doc_starts[document + 1], jnp.asarray(n_tokens, dtype))
    return Draw(start - 1, jnp.minimum(end - start, n_ctx).astype(jnp.int32))


def host_epoch_windows(
    seeds: ArrayLike,
    steps: ArrayLike,
    batch: int,
    n_ctx: int,
    n_tokens: ArrayLike,
    n_windows: ArrayLike,
    table: WindowTable,
) -> Draw:
    """`epoch_windows` of every step and lane, drawn on the host, of sets of any size.

    `seeds`, `n_tokens` and `n_windows` have one entry a lane; `starts` int64 and `valid` int32 are
    [steps, lanes, batch].
    """
    wide = int(np.asarray(table.doc_starts)[-1]) >= MOST
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(wide):
        dtype = np.int64 if wide else np.int32
        drawn_from = jax.device_put(
            (
                np.asarray(seeds, np.uint32),
                np.asarray(steps, np.uint32),
                np.asarray(n_tokens, dtype),
                np.asarray(n_windows, np.uint32),
                WindowTable(*(np.asarray(x, dtype) for x in table)),
            ),
            cpu,
        )
        drawn = _draw_all(*drawn_from, batch, n_ctx)
        return Draw(np.asarray(drawn.starts, np.int64), np.asarray(drawn.valid))


@partial(jax.jit, static_argnums=(5, 6))
def _draw_all(
    seeds_l: jax.Array,
    steps_s: jax.Array,
    n_tokens_l: jax.Array,
    n_windows_l: jax.Array,
    table: WindowTable,
    batch: int,
    n_ctx: int,
) -> Draw:
    def draw(seed: jax.Array, step: jax.Array, n_tokens: jax.Array, n_windows: jax.Array) -> Draw:
        return epoch_windows(seed, step, batch, n_ctx, n_tokens, n_windows, table)

    lanes = jax.vmap(draw, in_axes=(0, None, 0, 0))
    steps = jax.vmap(lanes, in_axes=(None, 0, None, None))
    return steps(seeds_l, steps_s, n_tokens_l, n_windows_l)
