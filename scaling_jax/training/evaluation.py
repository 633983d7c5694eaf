"""Loss on fixed windows of every corpus: its mean, by document for its error, and by position."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log, nan, sqrt
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec

from scaling_jax.config import EngineConfig, RunConfig
from scaling_jax.data.corpus import Corpus, Split
from scaling_jax.data.sampler import document_of, validation_windows
from scaling_jax.data.tokens import gather_rows
from scaling_jax.errors import RequestError
from scaling_jax.training.step import make_model, token_losses

ROWS_AT_ONCE = 64
NUMBERS_AT_ONCE = 2**24
SINGLE_POSITIONS = 256
POSITIONS_PER_OCTAVE = 32


class Portion(NamedTuple):
    """The windows of one corpus in an evaluation set."""

    corpus: str
    first: int  # how many windows stand before its own
    document_wt: np.ndarray  # int64 [windows, n_ctx]: document of each target, counted from 0
    n_bytes: int | None  # of text that the targets stand for; None where that is not known


class EvaluationSet(NamedTuple):
    """Windows in batches, one corpus after another; rows that fill the last batch are of none."""

    window_nbt: np.ndarray  # int32 [batches, rows, n_ctx + 1]
    portions: tuple[Portion, ...]  # validation first


def require_evaluations(config: RunConfig, corpus: Corpus) -> None:
    """Raises `RequestError` where a corpus that the run names holds no window of its context."""
    need = config.model.n_ctx + 1
    for name in config.evaluation.corpora:
        n_tokens = len(corpus.evaluations[name].tokens)
        if n_tokens < need:
            raise RequestError(
                f"evaluation.corpora {name!r} has {n_tokens} tokens, fewer than the {need} of one "
                "window; lower model.n_ctx or leave it out"
            )


def evaluation_set(config: RunConfig, corpus: Corpus, shards: int) -> EvaluationSet:
    """About `evaluation.tokens` tokens of each corpus, the same for every run of one `n_ctx`.

    The validation split, the test split where it holds a window, and the corpora that the config
    names, each spread over evenly. Rows of a batch are a multiple of `shards`.
    """
    n_ctx = config.model.n_ctx
    portions: list[Portion] = []
    windows: list[np.ndarray] = []
    for name, split in _splits(config, corpus).items():
        starts = validation_windows(len(split.tokens), n_ctx, config.evaluation.tokens)
        window_wt = gather_rows(split.tokens, starts, n_ctx + 1).astype(np.int32)
        n_bytes = None
        if corpus.token_bytes is not None:
            n_bytes = int(corpus.token_bytes[window_wt[:, 1:]].sum())
        _, document_wt = np.unique(
            document_of(starts, n_ctx, split.doc_starts), return_inverse=True
        )
        first = sum(map(len, windows))
        portions.append(Portion(name, first, document_wt.reshape(len(starts), n_ctx), n_bytes))
        windows.append(window_wt)
    rows = rows_at_once(config, sum(map(len, windows)), shards)
    window_wt = np.concatenate(windows)
    fill = -len(window_wt) % rows
    window_wt = np.pad(window_wt, ((0, fill), (0, 0)))
    return EvaluationSet(window_wt.reshape(-1, rows, n_ctx + 1), tuple(portions))


def rows_at_once(config: RunConfig, windows: int, shards: int) -> int:
    """Rows of a batch of an evaluation set of so many windows: no more than memory has room for.

    Logits or the weights of attention are what fills it: where the larger of the two has more than
    `NUMBERS_AT_ONCE`, a batch has no more rows than a microbatch of training.
    """
    model = config.model
    fit = NUMBERS_AT_ONCE // (model.n_ctx * max(model.n_vocab, model.n_head * model.n_ctx))
    trained = config.batch.sequences // config.batch.microbatches
    return shards * ceil(min(ROWS_AT_ONCE, windows, max(fit, trained)) / shards)


def make_evaluate(
    config: RunConfig, engine: EngineConfig, separator: int | None = None
) -> Callable[[Any, jax.Array], jax.Array]:
    """`evaluate(params, window_nbt)`: the loss of each target, nats, [batches, rows, n_ctx]."""
    model = make_model(config, engine, separator)

    def losses_of(params: Any, window_bt: jax.Array) -> jax.Array:
        return token_losses(model(params, window_bt[:, :-1]), window_bt[:, 1:])

    def evaluate(params: Any, window_nbt: jax.Array) -> jax.Array:
        shards = jax.sharding.get_abstract_mesh().shape["data"]

        def batch(window_bt: jax.Array) -> jax.Array:
            rows, width = window_bt.shape
            window_dbt = jax.lax.with_sharding_constraint(
                window_bt.reshape(shards, -1, width), PartitionSpec("data", "fsdp")
            )
            of_shards = jax.vmap(losses_of, in_axes=(None, 0), spmd_axis_name="data")
            return of_shards(params, window_dbt).reshape(rows, width - 1)

        return jax.lax.map(batch, window_nbt)

    return evaluate


def evaluation_entries(evaluation: EvaluationSet, losses_nbt: np.ndarray) -> dict[str, Any] | None:
    """What a row of the curve says of one run's evaluation; None where a loss is not finite.

    `val_loss` and `val_loss_se`, and the rows of the side tables `evaluations` and `positions`.
    Means are over tokens, of whatever document, and summed in float64.
    """
    losses_wt = np.asarray(losses_nbt, np.float64).reshape(-1, losses_nbt.shape[-1])
    rows: list[dict[str, Any]] = []
    for portion in evaluation.portions:
        own_wt = losses_wt[portion.first : portion.first + len(portion.document_wt)]
        if not np.isfinite(own_wt).all():
            return None
        rows.append(_corpus_row(portion, own_wt))
    validation = evaluation.portions[0]
    return {
        "val_loss": rows[0]["loss"],
        "val_loss_se": rows[0]["loss_se"],
        "evaluations": rows,
        "positions": _position_rows(validation.corpus, losses_wt[: len(validation.document_wt)]),
    }


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


def position_ends(n_ctx: int) -> np.ndarray:
    """Last position of each row of `positions`, counted from 1: int64, ascending to `n_ctx`.

    Every position up to `SINGLE_POSITIONS`, then `POSITIONS_PER_OCTAVE`.
    """
    single = np.arange(1, min(n_ctx, SINGLE_POSITIONS) + 1)
    steps = np.arange(ceil(POSITIONS_PER_OCTAVE * np.log2(max(n_ctx / SINGLE_POSITIONS, 1))))
    spaced = np.round(SINGLE_POSITIONS * 2 ** (steps / POSITIONS_PER_OCTAVE)).astype(np.int64)
    return np.unique(np.concatenate([single, spaced, [n_ctx]]))


def _splits(config: RunConfig, corpus: Corpus) -> dict[str, Split]:
    splits = {"validation": corpus.validation}
    if len(corpus.test.tokens) > config.model.n_ctx:
        splits["test"] = corpus.test
    return splits | {name: corpus.evaluations[name] for name in config.evaluation.corpora}


def _corpus_row(portion: Portion, losses_wt: np.ndarray) -> dict[str, Any]:
    documents = portion.document_wt.ravel()
    sums = np.bincount(documents, weights=losses_wt.ravel())
    mean, error = mean_and_error(sums, np.bincount(documents))
    bits = losses_wt.sum() / log(2)
    return {
        "corpus": portion.corpus,
        "loss": mean,
        "loss_se": error,
        "tokens": losses_wt.size,
        "bits_per_byte": bits / portion.n_bytes if portion.n_bytes else None,
    }


def _position_rows(corpus: str, losses_wt: np.ndarray) -> list[dict[str, Any]]:
    windows, n_ctx = losses_wt.shape
    ends = position_ends(n_ctx)
    starts = np.concatenate([[1], ends[:-1] + 1])
    tokens = windows * (ends - starts + 1)
    means = np.add.reduceat(losses_wt.sum(0), starts - 1) / tokens
    columns = (each.tolist() for each in (starts, ends, means, tokens))
    return [
        {"corpus": corpus, "position_start": start, "position": end, "loss": loss, "tokens": n}
        for start, end, loss, n in zip(*columns, strict=True)
    ]
