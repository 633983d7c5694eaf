"""Loss on one fixed set of validation windows, with an error that knows of documents."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, nan, sqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from scaling_jax.config import EngineConfig, RunConfig
from scaling_jax.data.corpus import Split
from scaling_jax.data.sampler import document_of, validation_windows
from scaling_jax.training.step import make_model, token_losses

ROWS_AT_ONCE = 64


class EvaluationSet(NamedTuple):
    """Windows in batches; rows that only fill the last batch count for nothing."""

    window_nbt: np.ndarray  # int32 [batches, rows, n_ctx + 1]
    document_nbt: np.ndarray  # int32 [batches, rows, n_ctx]: document of each target token
    counts_nb: np.ndarray  # float32 [batches, rows]: 1, or 0 for a filling row
    document_tokens: np.ndarray  # int64 [documents]: target tokens of each


def evaluation_set(split: Split, n_ctx: int, tokens: int, shards: int) -> EvaluationSet:
    """About `tokens` tokens spread evenly over a split, the same for every run of that `n_ctx`."""
    starts = validation_windows(len(split.tokens), n_ctx, tokens)
    documents = document_of(starts, n_ctx, split.doc_starts)
    touched, documents = np.unique(documents, return_inverse=True)
    documents = documents.reshape(len(starts), n_ctx)
    rows = shards * ceil(min(ROWS_AT_ONCE, len(starts)) / shards)
    batches = ceil(len(starts) / rows)
    window_nbt = np.zeros((batches * rows, n_ctx + 1), np.int32)
    window_nbt[: len(starts)] = np.asarray(split.tokens)[
        starts[:, None] + np.arange(n_ctx + 1)[None, :]
    ]
    document_nbt = np.zeros((batches * rows, n_ctx), np.int32)
    document_nbt[: len(starts)] = documents
    counts_nb = np.zeros(batches * rows, np.float32)
    counts_nb[: len(starts)] = 1.0
    return EvaluationSet(
        window_nbt.reshape(batches, rows, n_ctx + 1),
        document_nbt.reshape(batches, rows, n_ctx),
        counts_nb.reshape(batches, rows),
        np.bincount(documents.ravel(), minlength=len(touched)),
    )


def make_evaluate(
    config: RunConfig, engine: EngineConfig, n_documents: int
) -> Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]:
    """`evaluate(params, window_nbt, document_nbt, counts_nb)`: loss summed by document, nats."""
    model = make_model(config, engine)

    def evaluate(
        params: Any, window_nbt: jax.Array, document_nbt: jax.Array, counts_nb: jax.Array
    ) -> jax.Array:
        shards = jax.sharding.get_abstract_mesh().shape["data"]

        def losses_of(window_bt: jax.Array) -> jax.Array:
            return token_losses(model(params, window_bt[:, :-1]), window_bt[:, 1:])

        def batch(sums: jax.Array, rows: Any) -> tuple[jax.Array, None]:
            window_bt, document_bt, counts_b = rows
            window_dbt = jax.lax.with_sharding_constraint(
                window_bt.reshape(shards, -1, window_bt.shape[1]), PartitionSpec("data", "fsdp")
            )
            losses_dbt = jax.vmap(losses_of, spmd_axis_name="data")(window_dbt)
            losses_bt = losses_dbt.reshape(document_bt.shape)
            losses_bt = jnp.where(counts_b[:, None] > 0, losses_bt, 0.0)
            added = jax.ops.segment_sum(losses_bt.ravel(), document_bt.ravel(), n_documents)
            return sums + added, None

        start = jnp.zeros(n_documents, jnp.float32)
        sums, _ = jax.lax.scan(batch, start, (window_nbt, document_nbt, counts_nb))
        return sums

    return evaluate


def mean_and_error(loss_sums: np.ndarray, tokens: np.ndarray) -> tuple[float, float]:
    """Mean loss a token and its standard error with documents as clusters (a ratio estimator).

    The error is NaN for fewer than two documents.
    """
    sums, n = np.asarray(loss_sums, np.float64), len(tokens)
    mean = sums.sum() / tokens.sum()
    if n < 2:
        return float(mean), nan
    spread = np.square(sums - mean * tokens).sum()
    return float(mean), sqrt(n / (n - 1) * spread) / float(tokens.sum())
