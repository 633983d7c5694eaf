"""The host loop: keeps the device fed, one dispatch ahead of what it reads back.

Nothing is read from the device until the next piece of work has been handed to it, so that the
device never waits for the host.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from scaling_jax.config import RunConfig
from scaling_jax.data.feed import HostFeed
from scaling_jax.records.writer import RunWriter
from scaling_jax.training.evaluation import mean_and_error
from scaling_jax.training.program import CHUNK_STEPS, Program
from scaling_jax.training.step import Measured, Numbers
from scaling_jax.training.windows import WindowRecorder, evaluation_steps

IN_FLIGHT = 2
FLUSH_S = 20.0


class Ended(NamedTuple):
    """How a run ended: one of the records' statuses, and why where it is not `done`."""

    status: str
    message: str


class Observer(Protocol):
    """Told of a cohort's progress; `losses` by run name, `tokens_per_s` of the whole cohort."""

    def __call__(self, step: int, losses: Mapping[str, float], tokens_per_s: float) -> None: ...


@dataclass
class Lane:
    """One run inside a cohort; without a writer it is trained along and not recorded."""

    name: str
    config: RunConfig
    writer: RunWriter | None
    recorder: WindowRecorder
    marks: frozenset[int]
    diverged: bool = False
    loss: float = float("nan")
    unwritten: list[dict[str, Any]] = field(default_factory=list)

    def ended(self, stop_reason: str | None) -> Ended:
        """How the run ended, `stop_reason` being why the cohort was stopped early, if it was."""
        if self.diverged:
            return Ended("diverged", f"loss or gradient not finite after step {self.recorder.step}")
        if stop_reason is not None and self.recorder.step < self.config.steps:
            return Ended("interrupted", stop_reason)
        return Ended("done", "")

    def write(self) -> None:
        """Hands the rows that are complete to the writer."""
        if self.writer is not None:
            self.writer.append(self.unwritten)
        self.unwritten = []


def train_cohort(
    cohort: Mapping[str, RunConfig],
    program: Program,
    writers: Mapping[str, RunWriter],
    stop: Callable[[], str | None],
    observe: Observer,
) -> dict[str, Ended]:
    """Trains the runs of one cohort and records those that have a writer; how each ended.

    `stop()` gives a reason to stop, or None; runs then end as `interrupted` at the next chunk.
    """
    n_tokens = len(program.corpus.train.tokens)
    lanes = [
        Lane(
            name,
            config,
            writers.get(name),
            WindowRecorder(config, program.cut, config.unique_tokens(n_tokens)),
            frozenset(evaluation_steps(config)),
        )
        for name, config in cohort.items()
    ]
    loop = _Loop(lanes, program, observe)
    reason = loop.run(stop)
    wall_s = loop.elapsed()
    ended = {}
    for lane in lanes:
        ended[lane.name] = lane.ended(reason)
        lane.write()
        if lane.writer is not None:
            lane.writer.finish(*ended[lane.name], compile_s=program.compile_s, wall_s=wall_s)
    return ended


class _Loop:
    def __init__(self, lanes: list[Lane], program: Program, observe: Observer):
        self._lanes = lanes
        self._program = program
        self._observe = observe
        self._steps = max(lane.config.steps for lane in lanes)
        self._marks = sorted(frozenset().union(*(lane.marks for lane in lanes)))
        self._began = self._last_read = self._last_flush = time.perf_counter()
        self._in_flight: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()

    def elapsed(self) -> float:
        return time.perf_counter() - self._began

    def run(self, stop: Callable[[], str | None]) -> str | None:
        configs = [lane.config for lane in self._lanes]
        with self._program.feed(configs, 0, self._steps) as feed:
            return self._steps_until(stop, self._program.place(configs), feed)

    def _steps_until(
        self, stop: Callable[[], str | None], numbers: Numbers, feed: HostFeed | None
    ) -> str | None:
        program = self._program
        state = program.init(numbers)
        for lane in self._lanes:
            lane.unwritten.append(lane.recorder.initial_row())
        self._put(self._read_evaluation, 0, program.evaluate(state))
        step, reason = 0, None
        while step < self._steps and not all(lane.diverged for lane in self._lanes):
            reason = stop()
            if reason is not None:
                break
            n = min(CHUNK_STEPS, min(m for m in self._marks if m > step) - step)
            state, window = program.chunk(state, step, n, numbers, feed)
            step += n
            self._put(self._read_chunk, n, window)
            if step in self._marks:
                self._put(self._read_evaluation, step, program.evaluate(state))
        while self._in_flight:
            self._read_oldest()
        return reason

    def _put(self, read: Callable[..., None], *args: Any) -> None:
        self._in_flight.append((read, args))
        while len(self._in_flight) > IN_FLIGHT:
            self._read_oldest()

    def _read_oldest(self) -> None:
        read, args = self._in_flight.popleft()
        read(*args)

    def _read_chunk(self, n: int, window: Measured) -> None:
        window = jax.tree.map(np.asarray, window)
        now = time.perf_counter()
        tokens_per_s = n * self._lanes[0].config.batch_tokens / (now - self._last_read)
        self._last_read = now
        for i, lane in enumerate(self._lanes):
            own = min(n, lane.config.steps - lane.recorder.step)
            if lane.diverged or own == 0:
                continue
            lane.write()
            updates = [Measured(*(leaf[i, u] for leaf in window)) for u in range(own)]
            lane.unwritten += lane.recorder.add(updates, tokens_per_s, now - self._began)
            lane.diverged = not bool(window.alive[i, own - 1])
            lane.loss = float(window.loss[i, :own].mean())
        self._observe(
            max(lane.recorder.step for lane in self._lanes),
            {lane.name: lane.loss for lane in self._lanes},
            tokens_per_s * len(self._lanes),
        )
        if now - self._last_flush > FLUSH_S:
            self._last_flush = now
            for lane in self._lanes:
                if lane.writer is not None:
                    lane.writer.flush()

    def _read_evaluation(self, step: int, loss_sums: jax.Array) -> None:
        tokens = self._program.evaluation.document_tokens
        for lane, sums in zip(self._lanes, np.asarray(loss_sums), strict=True):
            if step not in lane.marks:
                continue
            lane.diverged |= not np.isfinite(sums).all()
            if not lane.diverged:
                mean, error = mean_and_error(sums, tokens)
                assert lane.unwritten[-1]["step"] == step
                lane.unwritten[-1] |= {"val_loss": mean, "val_loss_se": error}
