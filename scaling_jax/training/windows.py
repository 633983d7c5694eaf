"""Per-update measurements gathered into the rows of the `curves` table."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from scaling_jax.config import RunConfig
from scaling_jax.models.counts import counts
from scaling_jax.training.noise import TOTAL, Cut, Measure, noise_measures
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


_MOMENTS = (
    "grad_sq_small",
    "grad_sq_big",
    "grad_sq_small_sq",
    "grad_sq_big_sq",
    "grad_sq_small_big",
)


class _Window:
    """Sums over the updates since the last row, in float64 over float32 values of each update."""

    def __init__(self, measures: int):
        self.loss = self.lr = 0.0
        self.noise_steps = np.zeros(measures, np.int64)
        self.moments = np.zeros((len(_MOMENTS), measures))

    def add(self, update: Measured, counted: np.ndarray) -> None:
        self.loss += float(update.loss)
        self.lr += float(update.lr)
        small, big = (np.asarray(x, np.float64) for x in (update.grad_sq_small, update.grad_sq_big))
        moments = np.array([small, big, small * small, big * big, small * big])
        self.moments += np.where(counted, moments, 0.0)
        self.noise_steps += counted


class WindowRecorder:
    """Turns one run's updates into rows: means over windows that are dense early, sparse later.

    `tokens` and `step` are those of the updates added so far. `state` and `restore` carry the
    recorder, an open window included, from one process to another.
    """

    def __init__(self, config: RunConfig, cut: Cut, epoch_tokens: int):
        self._config = config
        self._epoch_tokens = epoch_tokens
        self._flops = counts(config.model)
        marks = {*log_spaced_steps(config.steps, WINDOWS_PER_DECADE), *evaluation_steps(config)}
        self._ends = sorted(marks)
        self._start = 0
        self._lr_sum = 0.0
        self._rate: tuple[float | None, float | None] = (None, None)
        self.step = 0
        self.tokens = 0
        self._take(config.batch.sequences, cut)

    def initial_row(self) -> dict[str, Any]:
        """The row of the step where the run begins: nothing trained yet."""
        return self._position() | {"step_start": self.step, "lr_sum": self._lr_sum}

    def branch(self, state: Mapping[str, Any]) -> None:
        """Begins where another run's `state()` stands, with a window of its own."""
        self.step = self._start = state["step"]
        self.tokens = state["tokens"]
        self._lr_sum = state["lr_sum"] + state["window_lr"]

    def begin_batch(self, sequences: int, cut: Cut) -> list[dict]:
        """From the next update on, batches of `sequences` rows in another cut.

        Gives the row of the window that was open, if one was, with the rates of the last `add`.
        """
        rows = self.close(*self._rate)
        self._take(sequences, cut)
        return rows

    def add(self, updates: Iterable[Measured], tokens_per_s: float, wall_s: float) -> list[dict]:
        """Rows that the next updates complete; an update that was not finite ends the last one."""
        self._rate = (tokens_per_s, wall_s)
        rows = []
        for update in updates:
            if not bool(update.alive):
                return rows + self.close(tokens_per_s, wall_s)
            self._window.add(update, self._counted())
            self.step += 1
            self.tokens += self._batch_tokens
            if self.step == self._end():
                rows += self.close(tokens_per_s, wall_s)
        return rows

    def close(self, tokens_per_s: float | None, wall_s: float | None) -> list[dict]:
        """The row of the updates since the last one, if there were any."""
        window, updates = self._window, self.step - self._start
        if not updates:
            return []
        self._lr_sum += window.lr
        row = self._position() | {
            "step_start": self._start,
            "lr": window.lr / updates,
            "lr_sum": self._lr_sum,
            "train_loss": window.loss / updates,
            "tokens_per_s": tokens_per_s,
            "wall_s": wall_s,
        }
        for measure, moments in self._moments():
            if measure == TOTAL:
                row |= moments
            else:
                row.setdefault("noise", []).append(measure._asdict() | moments)
        self._start = self.step
        self._window = _Window(len(self._measures))
        return [row]

    def state(self) -> dict[str, Any]:
        """All that later rows depend on, as plain data that JSON keeps exactly."""
        return {
            "step": self.step,
            "step_start": self._start,
            "tokens": self.tokens,
            "sequences": self._sequences,
            "lr_sum": self._lr_sum,
            "window_loss": self._window.loss,
            "window_lr": self._window.lr,
            "groups": self._groups,
            "measures": [list(measure) for measure in self._measures],
            "noise_steps": self._window.noise_steps.tolist(),
            "moments": self._window.moments.tolist(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state()`.

        Where the batch is cut into other groups now, as on another number of devices, the open
        window keeps no moments of the groups before: what it records of its noise is of the updates
        from here on, and `noise_steps` counts those.
        """
        self.step, self._start = state["step"], state["step_start"]
        self.tokens, self._lr_sum = state["tokens"], state["lr_sum"]
        self._sequences = state["sequences"]
        self._window = _Window(len(self._measures))
        self._window.loss, self._window.lr = state["window_loss"], state["window_lr"]
        measures = [list(measure) for measure in self._measures]
        if (state["groups"], state["measures"]) == (self._groups, measures):
            self._window.noise_steps = np.array(state["noise_steps"], np.int64)
            self._window.moments = np.array(state["moments"], np.float64)

    def _take(self, sequences: int, cut: Cut) -> None:
        self._sequences, self._groups = sequences, cut.groups
        self._measures = noise_measures(self._config, cut)
        self._of_adam = np.array([measure.metric == "adam" for measure in self._measures], bool)
        self._window = _Window(len(self._measures))

    def _counted(self) -> np.ndarray:
        """Which measures count in the next update: Adam has no metric before its first."""
        return ~self._of_adam | (self.step > 0)

    def _moments(self) -> Iterator[tuple[Measure, dict[str, Any]]]:
        """What the window holds of each measure that counted in one of its updates."""
        rows = {"groups": self._sequences // self._groups, "sequences": 1}
        n_ctx = self._config.model.n_ctx
        for i, measure in enumerate(self._measures):
            updates = int(self._window.noise_steps[i])
            if updates:
                means = (self._window.moments[:, i] / updates).tolist()
                yield (
                    measure,
                    dict(zip(_MOMENTS, means, strict=True))
                    | {
                        "noise_steps": updates,
                        "batch_small": rows[measure.source] * n_ctx,
                        "batch_big": self._batch_tokens,
                    },
                )

    @property
    def _batch_tokens(self) -> int:
        return self._sequences * self._config.model.n_ctx

    def _end(self) -> int | None:
        """The end of the open window."""
        index = bisect_right(self._ends, self._start)
        return self._ends[index] if index < len(self._ends) else None

    def _position(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "tokens": self.tokens,
            "epochs": self.tokens / self._epoch_tokens,
            "batch_tokens": self._batch_tokens,
            "flops_6n": float(self.tokens) * self._flops.training_flops_per_token_6n,
            "flops_exact": float(self.tokens) * self._flops.training_flops_per_token_exact,
        }
