"""Batches of a corpus that stays on the host, gathered ahead by threads."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from types import TracebackType

import grain
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from scaling_jax.data.sampler import host_windows, require_room
from scaling_jax.errors import RequestError

# One drawing of windows costs about the same for one step as for a hundred. Several threads wait
# for the disk at once.
_BLOCK_STEPS = 128
_BLOCK_BYTES = 8 * 2**20
_READ = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)


class HostFeed:
    """The batches of steps `start_step` to `stop_step`, in order, for every lane.

    Lane l draws from the first `n_tokens[l]` of `tokens` by `seeds[l]`, what `windows` draws.
    `tokens` may be mapped from disk and of any integer type. Threads run until `close`.
    With `own`, only these lanes and rows of each batch are gathered.
    Raises `RequestError` where a lane's subset holds no window or is larger than `tokens`.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        seeds: Sequence[int],
        n_tokens: Sequence[int],
        batch: int,
        n_ctx: int,
        start_step: int,
        stop_step: int,
        own: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        for n in n_tokens:
            require_room(n, n_ctx)
            if n > len(tokens):
                raise RequestError(
                    f"A subset of {n} tokens of a corpus of {len(tokens)}: "
                    "take a smaller subset or a larger corpus."
                )
        self._rows = sliding_window_view(tokens, n_ctx + 1)
        self._draw = (list(seeds), batch, list(n_tokens), n_ctx)
        self._step, self._stop_step = start_step, stop_step
        self._own = (np.arange(len(seeds)), np.arange(batch)) if own is None else own
        shape = (0, *map(len, self._own), n_ctx + 1)
        self._block = np.empty(shape, tokens.dtype)
        step_bytes = math.prod(shape[1:]) * tokens.dtype.itemsize
        self._block_steps = min(max(_BLOCK_BYTES // step_bytes, 1), _BLOCK_STEPS)
        self._closed = False
        self._workers: set[threading.Thread] = set()
        firsts = grain.MapDataset.range(start_step, stop_step, self._block_steps)
        self._blocks = iter(firsts.map(self._gather).to_iter_dataset(_READ))
        self._blocks.start_prefetch()

    def take(self, n: int) -> np.ndarray:
        """The batches of the next `n` steps: [n, lanes, batch, n_ctx + 1] of the type of `tokens`.

        Raises `ValueError` past `stop_step` and when closed, and what went wrong in a thread, which
        closes the feed.
        """
        self._require_open()
        if self._step + n > self._stop_step:
            raise ValueError(
                f"The feed stops at step {self._stop_step}: "
                f"no {n} steps are left at step {self._step}."
            )
        taken = np.empty((n, *self._block.shape[1:]), self._block.dtype)
        filled = 0
        while filled < n:
            if not len(self._block):
                self._block = self._next_block()
            part = self._block[: n - filled]
            taken[filled : filled + len(part)] = part
            self._block = self._block[len(part) :]
            filled += len(part)
        self._step += n
        return taken

    def close(self) -> None:
        """Ends the threads and waits for them."""
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

    def _next_block(self) -> np.ndarray:
        try:
            return next(self._blocks)
        except BaseException:
            # Grain would pass over the block that failed and go on with the next.
            self.close()
            raise

    def _gather(self, first: int) -> np.ndarray:
        # In this order: a worker that `close` does not see is one that sees `close`.
        self._workers.add(threading.current_thread())
        self._require_open()
        seeds, batch, n_tokens, n_ctx = self._draw
        # Always whole blocks, the last one too: another number of steps would compile anew.
        steps = first + np.arange(self._block_steps)
        starts_slb = host_windows(seeds, steps, batch, n_tokens, n_ctx)
        lanes, rows = self._own
        return self._rows[starts_slb[: self._stop_step - first][:, lanes][:, :, rows]]

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError("The feed is closed.")
