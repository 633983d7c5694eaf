"""Per-update measurements gathered into the rows of the `curves` table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from scaling_jax.config import RunConfig
from scaling_jax.models.counts import counts
from scaling_jax.training.noise import Cut
from scaling_jax.training.step import Measured

EVERY_STEP_UNTIL = 10
WINDOWS_PER_DECADE = 24


def log_spaced_steps(steps: int, per_decade: int, dense_until: int = EVERY_STEP_UNTIL) -> list[int]:
    """Every step up to `dense_until`, then about `per_decade` a decade, and the last."""
    n = max(0, int(np.ceil(per_decade * np.log10(max(steps, 1) / dense_until))))
    spaced = np.round(dense_until * 10 ** (np.arange(1, n) / per_decade)).astype(int)
    marks = {*range(1, dense_until + 1), *spaced.tolist(), steps}
    return sorted(step for step in marks if step <= steps)


def evaluation_steps(config: RunConfig) -> list[int]:
    """Steps after which validation loss is read: 0, then log-spaced, and the last."""
    spaced = log_spaced_steps(config.steps, config.evaluation.per_decade)
    late = [step for step in spaced if step >= EVERY_STEP_UNTIL or step in (1, config.steps)]
    return [0, *late]


class WindowRecorder:
    """Turns one run's updates into rows: means over windows that are dense early, sparse later.

    Sums are taken in float64 over the float32 values of each update.
    """

    def __init__(self, config: RunConfig, cut: Cut, unique_tokens: int):
        self._config = config
        self._cut = cut
        self._unique_tokens = unique_tokens
        self._flops = counts(config.model)
        self._ends = iter(
            sorted({*log_spaced_steps(config.steps, WINDOWS_PER_DECADE), *evaluation_steps(config)})
        )
        next(self._ends)  # step 0 closes no window
        self._end = next(self._ends)
        self._start = 0
        self._pending: list[np.ndarray] = []
        self._lr_sum = 0.0
        self.step = 0

    def initial_row(self) -> dict[str, Any]:
        """The row of step 0: nothing seen, nothing trained."""
        return self._position(0) | {"step_start": 0, "lr_sum": 0.0}

    def add(self, updates: Iterable[Measured], tokens_per_s: float, wall_s: float) -> list[dict]:
        """Rows that the next updates complete; an update that was not finite ends the last one."""
        rows = []
        for update in updates:
            if not bool(update.alive):
                return rows + self.close(tokens_per_s, wall_s)
            values = [update.loss, update.lr, update.grad_sq_small, update.grad_sq_big]
            self._pending.append(np.array(values, np.float64))
            self.step += 1
            if self.step == self._end:
                rows += self.close(tokens_per_s, wall_s)
                self._end = next(self._ends, -1)
        return rows

    def close(self, tokens_per_s: float, wall_s: float) -> list[dict]:
        """The row of the updates since the last one, if there were any."""
        if not self._pending:
            return []
        loss, lr, small, big = np.stack(self._pending, axis=1)
        self._pending = []
        self._lr_sum += lr.sum()
        row = self._position(self.step) | {
            "step_start": self._start,
            "lr": lr.mean(),
            "lr_sum": self._lr_sum,
            "train_loss": loss.mean(),
            "tokens_per_s": tokens_per_s,
            "wall_s": wall_s,
        }
        if self._config.noise.enabled and self._cut.groups > 1:
            row |= {
                "grad_sq_small": small.mean(),
                "grad_sq_big": big.mean(),
                "grad_sq_small_sq": np.square(small).mean(),
                "grad_sq_big_sq": np.square(big).mean(),
                "grad_sq_small_big": (small * big).mean(),
                "noise_steps": len(loss),
                "batch_small": self._config.batch_tokens // self._cut.groups,
                "batch_big": self._config.batch_tokens,
            }
        self._start = self.step
        return [row]

    def _position(self, step: int) -> dict[str, Any]:
        tokens = step * self._config.batch_tokens
        return {
            "step": step,
            "tokens": tokens,
            "epochs": tokens / self._unique_tokens,
            "batch_tokens": self._config.batch_tokens,
            "flops_6n": float(tokens) * self._flops.training_flops_per_token_6n,
            "flops_exact": float(tokens) * self._flops.training_flops_per_token_exact,
        }
