"""How a study goes, shown: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from scaling_jax.executors.placement import Cohort
from scaling_jax.models.counts import counts
from scaling_jax.training.trainer import Observer

LINE_EVERY_S = 15.0

# On a narrow terminal the last losses of many lanes give way, and nothing else.
_REST = Column(ratio=1, no_wrap=True, overflow="ellipsis")


class StudyProgress:
    """A bar for the cohort that trains, or a line every quarter of a minute."""

    def __init__(self, console: Console):
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            TextColumn("{task.percentage:3.0f} %"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False, table_column=_REST),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> StudyProgress:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def cohort(self, cohort: Cohort, number: int, of: int, step: int) -> Observer:
        """Opens the bar of a cohort that goes on from `step` and returns what moves it."""
        names, steps, place = ", ".join(cohort.runs), cohort.config.steps, f"[{number}/{of}]"
        n = counts(cohort.config.model).params_non_embedding
        begun = f" from step {step:,} on" if step else ""
        self._say(f"{place} {names}: N = {n:,}, {steps:,} steps{begun}, compiling")
        if self._task is not None:
            self._bars.remove_task(self._task)
        task = self._task = self._bars.add_task(
            place, total=steps, completed=step, note="compiling"
        )
        first: tuple[float, int] | None = None  # compilation is over when a first chunk is read
        last_line = 0.0

        def observe(step: int, losses: Mapping[str, float], tokens_per_s: float) -> None:
            nonlocal first, last_line
            loss = " ".join(f"{value:.3f}" for value in losses.values())
            note = f"{tokens_per_s:,.0f} tokens/s, loss {loss} nats"
            self._bars.update(task, completed=step, note=note)
            now = time.monotonic()
            if first is None:
                first, last_line = (now, step), now
            elif now - last_line >= LINE_EVERY_S and not self._console.is_terminal:
                last_line = now
                left = (now - first[0]) / max(step - first[1], 1) * (steps - step)
                self._say(f"{place} step {step:,}/{steps:,}, {note}, {left:.0f} s left")

        return observe

    def compiled(self, seconds: float) -> None:
        """One line a shape, where there is no bar."""
        if not self._console.is_terminal:
            self._say(f"compiled in {seconds:.1f} s")

    def ended(self, name: str, status: str, message: str) -> None:
        """One line a run."""
        self._say(f"{name}: {status}" + (f" ({message})" if message else ""))

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
