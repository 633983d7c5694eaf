"""What the runs of a cohort are trained on, and the windows of it that each step draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from scaling_jax.config import RunConfig
from scaling_jax.data.corpus import Corpus
from scaling_jax.data.epochs import (
    WindowTable,
    host_epoch_windows,
    window_table,
    windows_an_epoch,
)
from scaling_jax.data.sampler import Draw, host_windows, require_room
from scaling_jax.data.subsets import require_tokens, subset, subset_doc_starts
from scaling_jax.data.tokens import TokenArray, gather_rows


@dataclass(frozen=True)
class TrainingSet:
    """Tokens of which each run draws from the first so many, in windows of `n_ctx` targets."""

    tokens: TokenArray
    n_ctx: int
    separator: int
    table: WindowTable | None
    """What an epoch goes through, of int64; None where windows are drawn at random."""

    def windows_an_epoch(self, n_tokens: int) -> int | None:
        """Windows of an epoch of the first `n_tokens`; None where there are no epochs."""
        if self.table is None:
            return None
        return windows_an_epoch(self.table, n_tokens, self.n_ctx)

    def tokens_an_epoch(self, n_tokens: int) -> int:
        """Targets of an epoch of the first `n_tokens`, with those that do not count."""
        windows = self.windows_an_epoch(n_tokens)
        return n_tokens if windows is None else windows * self.n_ctx

    def draws(
        self, seeds: ArrayLike, steps: ArrayLike, batch: int, n_tokens: Sequence[int]
    ) -> Draw:
        """The windows of every step and lane, [steps, lanes, batch], drawn on the host.

        Raises `RequestError` where no random window fits.
        """
        if self.table is None:
            return Draw(host_windows(seeds, steps, batch, n_tokens, self.n_ctx), None)
        an_epoch = [windows_an_epoch(self.table, n, self.n_ctx) for n in n_tokens]
        return host_epoch_windows(seeds, steps, batch, self.n_ctx, n_tokens, an_epoch, self.table)

    def rows(self, draw: Draw) -> np.ndarray:
        """The tokens of drawn windows: [..., n_ctx + 1] of the type of `tokens`.

        What lies before the set, and what does not count, is the separator.
        """
        if draw.valid is None:
            return gather_rows(self.tokens, draw.starts, self.n_ctx + 1)
        rows = gather_rows(self.tokens, draw.starts, self.n_ctx + 1, outside=self.separator)
        rows[np.arange(self.n_ctx + 1) > draw.valid[..., None]] = self.separator
        return rows


def training_set(configs: Sequence[RunConfig], corpus: Corpus) -> TrainingSet:
    """The tokens that runs of one program draw from: a subset as large as the largest of theirs.

    Raises `RequestError` where a run asks for more tokens than there are, or for too few of them.
    """
    config, n_tokens = configs[0], largest_set(configs, corpus)
    split = corpus.train
    if config.data.unique_tokens is not None:
        split = subset(split, config.data.subset_seed, n_tokens)
    if config.data.order == "random":
        for each in configs:
            require_room(each.unique_tokens(n_tokens), config.model.n_ctx)
    table = _table(config, split.doc_starts, n_tokens)
    return TrainingSet(split.tokens, config.model.n_ctx, corpus.separator, table)


def largest_set(configs: Sequence[RunConfig], corpus: Corpus) -> int:
    """Tokens of the set that serves all of the runs."""
    return max(config.unique_tokens(len(corpus.train.tokens)) for config in configs)


def targets_an_epoch(config: RunConfig, corpus: Corpus) -> tuple[int, int]:
    """Targets that a run goes through in an epoch, and how many of them count.

    Without the tokens themselves. Both are the tokens of its set where windows are random.
    """
    n_tokens = config.unique_tokens(len(corpus.train.tokens))
    require_tokens(corpus.train, n_tokens)
    doc_starts = corpus.train.doc_starts
    if config.data.unique_tokens is not None and config.data.order == "documents":
        doc_starts = subset_doc_starts(corpus.train, config.data.subset_seed, n_tokens)
    table = _table(config, doc_starts, n_tokens)
    if table is None:
        return n_tokens, n_tokens
    return windows_an_epoch(table, n_tokens, config.model.n_ctx) * config.model.n_ctx, n_tokens


def _table(config: RunConfig, doc_starts: np.ndarray, n_tokens: int) -> WindowTable | None:
    if config.data.order == "random":
        return None
    if config.data.order == "epochs":
        doc_starts = np.zeros(1, np.int64)
    return window_table(doc_starts, n_tokens, config.model.n_ctx)
