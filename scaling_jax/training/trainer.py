"""The host loop: keeps the device fed, one dispatch ahead of what it reads back.

Nothing is read from the device until the next piece of work has been handed to it, so that the
device never waits for the host.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from scaling_jax.config import RunConfig
from scaling_jax.data.feed import HostFeed
from scaling_jax.hosts.agreement import agreed
from scaling_jax.records.writer import RunWriter
from scaling_jax.training.batch_size import BatchState, decide, next_decision, observe, start
from scaling_jax.training.checkpoints import Restored
from scaling_jax.training.evaluation import evaluation_entries
from scaling_jax.training.program import CHUNK_STEPS, Program
from scaling_jax.training.saving import Checkpoints
from scaling_jax.training.step import Measured, Numbers, TrainState
from scaling_jax.training.windows import WindowRecorder, evaluation_steps

IN_FLIGHT = 2
FLUSH_S = 20.0
# A chunk takes no longer than this, so that a cohort that is told to stop soon does.
CHUNK_S = 2.0


class Ended(NamedTuple):
    """How a run ended: one of the records' statuses, and why where it is not `done`."""

    status: str
    message: str


class Halt(NamedTuple):
    """Why a cohort ends before its last step: the status of the runs that had not ended, and the
    reason of each by its name."""

    status: str
    reasons: Mapping[str, str]


class Observer(Protocol):
    """Told of a cohort's progress; `losses` by run name, `tokens_per_s` of the whole cohort."""

    def __call__(self, step: int, losses: Mapping[str, float], tokens_per_s: float) -> None: ...


class Asked(Protocol):
    """Told which runs of a cohort go on after `step` updates, says why each is to stop for good;
    None where they go on. All hosts get the same."""

    def __call__(self, going: Sequence[str], step: int) -> Mapping[str, str] | None: ...


@dataclass
class Lane:
    """One run inside a cohort; without a writer it is trained along and not recorded."""

    name: str
    config: RunConfig
    writer: RunWriter | None
    recorder: WindowRecorder
    marks: frozenset[int]
    batch: BatchState
    diverged: bool = False
    loss: float = float("nan")
    unwritten: list[dict[str, Any]] = field(default_factory=list)

    @property
    def goes_on(self) -> bool:
        """Whether the run has not ended by itself, as far as it was read."""
        return not self.diverged and self.recorder.step < self.config.steps

    def ended(self, halt: Halt | None) -> Ended:
        """How the run ended, `halt` being why the cohort was stopped early, if it was."""
        if self.diverged:
            return Ended("diverged", f"loss or gradient not finite after step {self.recorder.step}")
        if halt is not None and self.goes_on:
            return Ended(halt.status, halt.reasons.get(self.name, ""))
        return Ended("done", "")

    def state(self) -> dict[str, Any]:
        """What the lane is to go on from, as plain data that JSON keeps exactly."""
        return {
            "recorder": self.recorder.state(),
            "batch": self.batch._asdict(),
            "diverged": self.diverged,
        }

    def restore(self, state: Mapping[str, Any], program: Program) -> None:
        """Goes on from `state()`, `program` being that of its batch."""
        self.batch = BatchState(**state["batch"])
        self.recorder.begin_batch(program.sequences, program.cut)
        self.recorder.restore(state["recorder"])
        self.marks = self._later(self.recorder.step)
        self.diverged = state["diverged"]

    def branch(self, state: Mapping[str, Any], program: Program) -> None:
        """Begins where another run stood in `state()`, `program` being that of its own batch."""
        self.recorder.begin_batch(program.sequences, program.cut)
        self.recorder.branch(state["recorder"])
        self.marks = frozenset({self.recorder.step}) | self._later(self.recorder.step)
        self.unwritten.append(self.recorder.initial_row())

    def _later(self, step: int) -> frozenset[int]:
        return frozenset(mark for mark in self.marks if mark > step)

    def write(self) -> None:
        """Hands the rows that are complete to the writer."""
        if self.writer is not None:
            self.writer.append(self.unwritten)
        self.unwritten = []


def train_cohort(
    cohort: Mapping[str, RunConfig],
    program: Program,
    writers: Mapping[str, RunWriter],
    checkpoints: Checkpoints,
    restored: Restored | None,
    stop: Callable[[], str | None],
    asked: Asked,
    observe: Observer,
) -> dict[str, Ended]:
    """Trains the runs of one cohort and records those that have a writer; how each ended.

    Goes on from `restored`, which is used up, or begins at step 0. `stop()` gives a reason to stop,
    or None; runs then end as `interrupted` at the next chunk, with a checkpoint there. So they do
    as `stopped`, each for its own reason, where all are `asked` to.
    """
    n_tokens = len(program.corpus.train.tokens)
    lanes = [
        Lane(
            name,
            config,
            writers.get(name),
            WindowRecorder(
                config,
                program.cut,
                program.source.tokens_an_epoch(config.unique_tokens(n_tokens)),
            ),
            frozenset(evaluation_steps(config)),
            start(config),
        )
        for name, config in cohort.items()
    ]
    loop = _Loop(lanes, program, checkpoints, stop, asked, observe)
    halt = loop.run(restored)
    wall_s = loop.elapsed()
    ended = {}
    for lane in lanes:
        ended[lane.name] = lane.ended(halt)
        if lane.writer is not None:
            lane.writer.finish(*ended[lane.name], compile_s=program.compile_s, wall_s=wall_s)
    return ended


class _Loop:
    def __init__(
        self,
        lanes: list[Lane],
        program: Program,
        checkpoints: Checkpoints,
        stop: Callable[[], str | None],
        asked: Asked,
        observe: Observer,
    ):
        self._lanes = lanes
        self._first = self._program = program
        self._checkpoints = checkpoints
        self._stop = stop
        self._asked = asked
        self._observe = observe
        # All lanes have one batch at a time: a run that chooses its own is alone.
        self._longest = max((lane.config for lane in lanes), key=lambda config: config.steps)
        self._steps = self._longest.steps
        self._marks = frozenset().union(*(lane.marks for lane in lanes))
        self._every_s = lanes[0].config.checkpoint.every_s
        self._began = self._last_read = self._last_flush = self._last_save = time.perf_counter()
        self._step_s = 0.0  # seconds an update took in the last chunk
        self._in_flight: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()

    def elapsed(self) -> float:
        return time.perf_counter() - self._began

    def run(self, restored: Restored | None) -> Halt | None:
        if restored is None:
            step, state = 0, self._begin()
        else:
            step, state = restored.step, restored.state
            self._step_s = CHUNK_S  # not known yet: one update at a time until it is
            self._take_up(restored)
        halt = None
        while halt is None and self._goes_on(step):
            self._program = self._at_batch(self._lanes[0].batch.sequences)
            configs = [lane.config.at_batch(self._program.sequences) for lane in self._lanes]
            numbers = self._program.place(configs)
            self._last_read = time.perf_counter()
            with self._program.feed(configs, step, self._steps) as feed:
                step, state, halt = self._at_one_batch(step, state, numbers, feed)
        self._save(step, state)
        if halt is None:
            self._checkpoints.finish(step)
        self._checkpoints.wait()
        return halt

    def _begin(self) -> TrainState:
        program = self._first
        state = program.init(program.place([lane.config for lane in self._lanes]))
        for lane in self._lanes:
            lane.unwritten.append(lane.recorder.initial_row())
        self._put(self._read_evaluation, 0, program.evaluate(state))
        return state

    def _take_up(self, restored: Restored) -> None:
        for lane, known, begins in zip(self._lanes, restored.lanes, restored.begins, strict=True):
            if begins:
                lane.branch(known, self._at_batch(lane.batch.sequences))
            else:
                lane.restore(known, self._at_batch(known["batch"]["sequences"]))
        if any(restored.begins):
            self._put(self._read_evaluation, restored.step, self._first.evaluate(restored.state))

    def _at_batch(self, sequences: int) -> Program:
        return self._first.at_batch([lane.config.at_batch(sequences) for lane in self._lanes])

    def _goes_on(self, step: int) -> bool:
        return step < self._steps and not all(lane.diverged for lane in self._lanes)

    def _at_one_batch(
        self, step: int, state: TrainState, numbers: Numbers, feed: HostFeed | None
    ) -> tuple[int, TrainState, Halt | None]:
        """Trains until there is a reason to stop, another batch, or an end."""
        program, halt = self._program, None
        while self._goes_on(step):
            halt = self._halt(step)
            if halt is not None or self._takes_another_batch(step):
                break
            n = agreed("the length of a chunk", self._chunk_length(step))
            state, window = program.chunk(state, step, n, numbers, feed)
            step += n
            self._put(self._read_chunk, n, window)
            if step in self._marks:
                self._put(self._read_evaluation, step, program.evaluate(state))
            due = agreed("a checkpoint by time", self._is_due())
            if step in self._checkpoints.kept or due:
                self._save(step, state)
        return step, state, halt

    def _halt(self, step: int) -> Halt | None:
        going = [lane.name for lane in self._lanes if lane.goes_on]
        reason = self._stop()
        if reason is not None:
            return Halt("interrupted", dict.fromkeys(going, reason))
        reasons = self._asked(going, step)
        return None if reasons is None else Halt("stopped", reasons)

    def _takes_another_batch(self, step: int) -> bool:
        """Decides the batch from `step` on, if that is a step to do so, on all that was measured.

        To decide again, as a run does that goes on from `step`, gives the same.
        """
        if next_decision(self._longest, step - 1) != step:
            return False
        self._read_all()
        for lane in self._lanes:
            lane.batch = decide(lane.config, lane.batch, step)
        sequences = self._lanes[0].batch.sequences
        if sequences == self._program.sequences:
            return False
        cut = self._at_batch(sequences).cut
        for lane in self._lanes:
            lane.unwritten += lane.recorder.begin_batch(sequences, cut)
        return True

    def _chunk_length(self, step: int) -> int:
        """Updates up to the next mark or decision, and no more than fit into `CHUNK_S`."""
        mark = min(mark for mark in self._marks | self._checkpoints.kept if mark > step)
        ahead = min(mark, next_decision(self._longest, step)) - step
        in_time = int(CHUNK_S / self._step_s) if self._step_s else CHUNK_STEPS
        return min(CHUNK_STEPS, ahead, max(1, in_time))

    def _is_due(self) -> bool:
        overdue = time.perf_counter() - self._last_save >= self._every_s
        return overdue and not self._checkpoints.busy

    def _save(self, step: int, state: TrainState) -> None:
        """A checkpoint of `step`, once the rows before it are on the disk."""
        self._read_all()
        for lane in self._lanes:
            lane.write()
        self._flush()
        if step > 0:
            self._checkpoints.save(step, state, [lane.state() for lane in self._lanes])
        self._last_save = self._last_read = time.perf_counter()

    def _flush(self) -> None:
        for lane in self._lanes:
            if lane.writer is not None:
                lane.writer.flush()
        self._last_flush = time.perf_counter()

    def _put(self, read: Callable[..., None], *args: Any) -> None:
        self._in_flight.append((read, args))
        while len(self._in_flight) > IN_FLIGHT:
            self._read_oldest()

    def _read_all(self) -> None:
        while self._in_flight:
            self._read_oldest()

    def _read_oldest(self) -> None:
        read, args = self._in_flight.popleft()
        read(*args)

    def _read_chunk(self, n: int, window: Measured) -> None:
        window = jax.tree.map(np.asarray, window)
        now = time.perf_counter()
        self._step_s = (now - self._last_read) / n
        tokens_per_s = self._program.sequences * self._longest.model.n_ctx / self._step_s
        self._last_read = now
        for i, lane in enumerate(self._lanes):
            own = min(n, lane.config.steps - lane.recorder.step)
            if lane.diverged or own == 0:
                continue
            lane.write()
            updates = [Measured(*(leaf[i, u] for leaf in window)) for u in range(own)]
            lane.unwritten += lane.recorder.add(updates, tokens_per_s, now - self._began)
            if lane.config.batch.policy.name == "noise_scale":
                small, big = window.grad_sq_small[i, :own, 0], window.grad_sq_big[i, :own, 0]
                lane.batch = observe(lane.batch, small, big, self._program.cut.groups)
            lane.diverged = not bool(window.alive[i, own - 1])
            lane.loss = float(window.loss[i, :own].mean())
        self._observe(
            max(lane.recorder.step for lane in self._lanes),
            {lane.name: lane.loss for lane in self._lanes},
            tokens_per_s * len(self._lanes),
        )
        if now - self._last_flush > FLUSH_S:
            self._flush()

    def _read_evaluation(self, step: int, losses_lnbt: jax.Array) -> None:
        for lane, losses_nbt in zip(self._lanes, np.asarray(losses_lnbt), strict=True):
            if step not in lane.marks or lane.diverged:
                continue
            entries = evaluation_entries(self._program.evaluation, losses_nbt)
            if entries is None:
                lane.diverged = True
            else:
                assert lane.unwritten[-1]["step"] == step
                lane.unwritten[-1] |= entries
