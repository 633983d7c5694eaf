"""Batches of a corpus that stays on the host, gathered ahead by threads."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

import grain
import numpy as np

from scaling_jax.data.sampler import Draw, require_room
from scaling_jax.data.training_set import TrainingSet
from scaling_jax.errors import RequestError

# One drawing of windows costs about the same for one step as for a hundred. Several threads wait
# for the disk at once.
_BLOCK_STEPS = 128
_BLOCK_BYTES = 8 * 2**20
_READ = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)


class Fed(NamedTuple):
    """Batches of some steps."""

    rows: np.ndarray
    """[steps, lanes, batch, n_ctx + 1], of the type of the tokens."""
    valid: np.ndarray | None
    """int32 [steps, lanes, batch], how many targets count; None where all do."""

    def part(self, steps: slice) -> Fed:
        """Some of the steps."""
        return Fed(self.rows[steps], None if self.valid is None else self.valid[steps])


class HostFeed:
    """The batches of steps `start_step` to `stop_step`, in order, for every lane.

    Lane l draws from the first `n_tokens[l]` tokens of `source` by `seeds[l]`. The tokens may be
    mapped from disk and of any integer type. Threads run until `close`.
    With `own`, only these lanes and rows of each batch are gathered.
    Raises `RequestError` where a lane's subset holds no window or is larger than there are tokens.
    """

    def __init__(
        self,
        source: TrainingSet,
        seeds: Sequence[int],
        n_tokens: Sequence[int],
        batch: int,
        start_step: int,
        stop_step: int,
        own: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        tokens, n_ctx = source.tokens, source.n_ctx
        for n in n_tokens:
            if source.table is None:
                require_room(n, n_ctx)
            if n > len(tokens):
                raise RequestError(
                    f"A subset of {n} tokens of a corpus of {len(tokens)}: "
                    "take a smaller subset or a larger corpus."
                )
        self._source = source
        self._lanes = (list(seeds), list(n_tokens))
        self._batch = batch
        self._step, self._stop_step = start_step, stop_step
        self._own = (np.arange(len(seeds)), np.arange(batch)) if own is None else own
        shape = (0, *map(len, self._own), n_ctx + 1)
        valid = None if source.table is None else np.empty(shape[:3], np.int32)
        self._block = Fed(np.empty(shape, tokens.dtype), valid)
        step_bytes = math.prod(shape[1:]) * tokens.dtype.itemsize
        self._block_steps = min(max(_BLOCK_BYTES // step_bytes, 1), _BLOCK_STEPS)
        self._closed = False
        self._workers: set[threading.Thread] = set()
        firsts = grain.MapDataset.range(start_step, stop_step, self._block_steps)
        self._blocks = iter(firsts.map(self._gather).to_iter_dataset(_READ))
        self._blocks.start_prefetch()

    def take(self, n: int) -> Fed:
        """The batches of the next `n` steps.

        Raises `ValueError` past `stop_step` and when closed, and what went wrong in a thread, which
        closes the feed.
        """
        self._require_open()
        if self._step + n > self._stop_step:
            raise ValueError(
                f"The feed stops at step {self._stop_step}: "
                f"no {n} steps are left at step {self._step}."
            )
        parts, missing = [self._block.part(slice(0))], n
        while missing:
            if not len(self._block.rows):
                self._block = self._next_block()
            parts.append(self._block.part(slice(missing)))
            self._block = self._block.part(slice(missing, None))
            missing -= len(parts[-1].rows)
        self._step += n
        rows = np.concatenate([part.rows for part in parts])
        valid = [part.valid for part in parts if part.valid is not None]
        return Fed(rows, np.concatenate(valid) if valid else None)

    def close(self) -> None:
        """Ends the threads and waits for those that gather; one about to finds it closed."""
        self._closed = True
        self._blocks.close()
        for worker in list(self._workers):
            worker.join()

    def __enter__(self) -> HostFeed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _next_block(self) -> Fed:
        try:
            return next(self._blocks)
        except BaseException:
            # Grain would pass over the block that failed and go on with the next.
            self.close()
            raise

    def _gather(self, first: int) -> Fed:
        # In this order: a worker that `close` does not see is one that sees `close`.
        self._workers.add(threading.current_thread())
        self._require_open()
        seeds, n_tokens = self._lanes
        # Always whole blocks, the last one too: another number of steps would compile anew.
        steps = first + np.arange(self._block_steps)
        drawn = self._source.draws(seeds, steps, self._batch, n_tokens)
        needed = slice(self._stop_step - first)
        lanes, rows = self._own
        starts, valid = (
            x if x is None else x[needed][:, lanes][:, :, rows] for x in (drawn.starts, drawn.valid)
        )
        return Fed(self._source.rows(Draw(starts, valid)), valid)

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError("The feed is closed.")
