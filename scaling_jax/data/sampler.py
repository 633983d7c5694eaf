"""Batches are a function of seed and step, not a stream; nothing has to be saved to resume."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import ArrayLike

from scaling_jax.errors import RequestError

_INT32_TOKENS = 2**31


class Draw(NamedTuple):
    """Windows of `n_ctx` targets: each the `n_ctx + 1` tokens from its start.

    Where a start is -1 the first input lies before the first token, and is the separator.
    """

    starts: Any  # integers
    valid: Any  # int32, how many of the first targets count; None where all do


def windows(
    seed: jax.Array | int,
    step: jax.Array | int,
    batch: int,
    n_tokens: jax.Array | int,
    n_ctx: int,
) -> jax.Array:
    """Where the `batch` windows of `step` start: int32 [batch], uniform over the first `n_tokens`.

    A window is `n_ctx` inputs and, one further, `n_ctx` targets, so that
    0 <= start <= n_tokens - (n_ctx + 1). Pure and traceable in `seed`, `step` and `n_tokens`
    (int32), which may be lanes of a vmap; the draw does not depend on devices, lanes, or the cut
    into microbatches. Raises `RequestError` where no window fits or an int32 cannot address the
    store; of an array `n_tokens` the caller makes sure, with `require_room`.
    """
    if isinstance(n_tokens, int):
        require_room(n_tokens, n_ctx)
        _require_int32(n_tokens)
    return _draw(seed, step, batch, n_tokens, n_ctx, jnp.int32)


def host_windows(
    seeds: ArrayLike, steps: ArrayLike, batch: int, n_tokens: ArrayLike, n_ctx: int
) -> np.ndarray:
    """`windows` of every step and lane, drawn on the host: int64 [steps, lanes, batch].

    `seeds` and `n_tokens` have one entry a lane. Lanes of 2^31 tokens or more, which `windows`
    refuses, have draws of their own, of int64. Raises `RequestError` where no window fits.
    """
    n_tokens_l = np.asarray(n_tokens, np.int64)
    require_room(int(n_tokens_l.min()), n_ctx)
    wide = bool((n_tokens_l >= _INT32_TOKENS).any())
    # Of this process: the first CPU device of all belongs to process 0.
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(wide):
        drawn_from = jax.device_put(
            (
                np.asarray(seeds, np.uint32),
                np.asarray(steps, np.uint32),
                n_tokens_l.astype(np.int64 if wide else np.int32),
            ),
            cpu,
        )
        return np.asarray(_draw_all(*drawn_from, batch, n_ctx, wide), np.int64)


def validation_windows(n_tokens: int, n_ctx: int, tokens: int) -> np.ndarray:
    """Starts of one fixed, evenly spread set of windows that hold `tokens` targets: int64 [w].

    ceil(tokens / n_ctx) windows, or as many as fit with no target in two of them. The same for
    every run with that `n_ctx`. Raises `RequestError` where no window fits.
    """
    require_room(n_tokens, n_ctx)
    n_targets = n_tokens - 1
    count = min(-(-tokens // n_ctx), n_targets // n_ctx)
    return np.arange(count, dtype=np.int64) * n_targets // count


def document_of(starts: np.ndarray, n_ctx: int, doc_starts: np.ndarray) -> np.ndarray:
    """Which document each target token of each window belongs to: int64 [windows, n_ctx].

    `doc_starts` are the ascending offsets of the documents; a document's separator is its own.
    """
    targets = starts[:, None] + np.arange(1, n_ctx + 1)[None, :]
    return np.searchsorted(doc_starts, targets, side="right") - 1


def require_room(n_tokens: int, n_ctx: int) -> None:
    """Raises `RequestError` where `n_tokens` hold no window."""
    if n_tokens < n_ctx + 1:
        raise RequestError(
            f"{n_tokens} tokens hold no window of n_ctx {n_ctx} and one target more: "
            "lower model.n_ctx or take a larger corpus."
        )


def _require_int32(n_tokens: int) -> None:
    if n_tokens >= _INT32_TOKENS:
        raise RequestError(
            f"{n_tokens} tokens are more than int32 offsets can address (2^31 - 1): "
            "take a smaller corpus."
        )


def _draw(
    seed: jax.Array | int,
    step: jax.Array | int,
    batch: int,
    n_tokens: jax.Array | int,
    n_ctx: int,
    dtype: DTypeLike,
) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.random.randint(key, (batch,), 0, n_tokens - n_ctx, dtype)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _draw_all(
    seeds_l: jax.Array,
    steps_s: jax.Array,
    n_tokens_l: jax.Array,
    batch: int,
    n_ctx: int,
    wide: bool,
) -> jax.Array:
    def draw(seed: jax.Array, step: jax.Array, n_tokens: jax.Array) -> jax.Array:
        narrow = _draw(seed, step, batch, n_tokens.astype(jnp.int32), n_ctx, jnp.int32)
        if not wide:
            return narrow
        # A lane keeps its draws whatever the lanes beside it: the sizes choose, not the program.
        own = _draw(seed, step, batch, n_tokens, n_ctx, jnp.int64)
        return jnp.where(n_tokens < _INT32_TOKENS, narrow.astype(jnp.int64), own)

    lanes = jax.vmap(draw, in_axes=(0, None, 0))
    return jax.vmap(lanes, in_axes=(None, 0, None))(seeds_l, steps_s, n_tokens_l)
