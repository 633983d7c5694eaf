"""Batches are a function of seed and step, not a stream; nothing has to be saved to resume."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from scaling_jax.errors import RequestError


def windows(
    seed: jax.Array | int, step: jax.Array | int, batch: int, n_tokens: int, n_ctx: int
) -> jax.Array:
    """Where the `batch` windows of `step` start: int32 [batch], uniform over the token store.

    A window is `n_ctx` inputs and, one further, `n_ctx` targets, so that
    0 <= start <= n_tokens - (n_ctx + 1). Pure and traceable in `seed` and `step`, which may be
    lanes of a vmap; the draw does not depend on devices, lanes, or the cut into microbatches.
    Raises `RequestError` where no window fits or an int32 cannot address the store.
    """
    _require_room(n_tokens, n_ctx)
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.random.randint(key, (batch,), 0, n_tokens - n_ctx, jnp.int32)


def validation_windows(n_tokens: int, n_ctx: int, tokens: int) -> np.ndarray:
    """Starts of one fixed, evenly spread set of windows that hold `tokens` targets: int64 [w].

    ceil(tokens / n_ctx) windows, or as many as fit with no target in two of them. The same for
    every run with that `n_ctx`. Raises `RequestError` as `windows` does.
    """
    _require_room(n_tokens, n_ctx)
    n_targets = n_tokens - 1
    count = min(-(-tokens // n_ctx), n_targets // n_ctx)
    return np.arange(count, dtype=np.int64) * n_targets // count


def document_of(starts: np.ndarray, n_ctx: int, doc_starts: np.ndarray) -> np.ndarray:
    """Which document each target token of each window belongs to: int64 [windows, n_ctx].

    `doc_starts` are the ascending offsets of the documents; a document's separator is its own.
    """
    targets = starts[:, None] + np.arange(1, n_ctx + 1)[None, :]
    return np.searchsorted(doc_starts, targets, side="right") - 1


def _require_room(n_tokens: int, n_ctx: int) -> None:
    if n_tokens < n_ctx + 1:
        raise RequestError(
            f"{n_tokens} tokens hold no window of n_ctx {n_ctx} and one target more: "
            "lower model.n_ctx or take a larger corpus."
        )
    if n_tokens >= 2**31:
        raise RequestError(
            f"{n_tokens} tokens are more than int32 offsets can address (2^31 - 1): "
            "take a smaller corpus."
        )
