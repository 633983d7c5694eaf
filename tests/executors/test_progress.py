from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from scaling_jax.config import EngineConfig, MeshConfig, ModelConfig, RunConfig
from scaling_jax.executors import progress
from scaling_jax.executors.placement import Cohort
from scaling_jax.executors.progress import StudyProgress
from scaling_jax.training.memory import Memory


def cohort(*names: str, steps: int = 2000) -> Cohort:
    model = ModelConfig(n_layer=1, d_model=8, n_head=1, n_ctx=8)
    runs = {name: RunConfig(model=model, steps=steps, seed=i) for i, name in enumerate(names)}
    return Cohort(runs, MeshConfig(lane=1, data=1), EngineConfig(), Memory(0, 0, 0, 0, 0))


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def wait_for(word: str, text: io.StringIO) -> None:
    """Bars are drawn by a thread, ten times a second."""
    deadline = time.monotonic() + 10.0
    while word not in text.getvalue() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert word in text.getvalue()


def test_lines_where_there_is_no_terminal(clock: Clock):
    text = io.StringIO()
    with StudyProgress(Console(file=text)) as shown:
        observe = shown.cohort(cohort("s0", "s1"), 2, 3, 0)
        clock.now += 60.0  # of compilation, which says nothing of the time left
        observe(100, {"s0": 5.25, "s1": 5.5}, 1234.5)
        clock.now += progress.LINE_EVERY_S
        observe(500, {"s0": 4.25, "s1": 4.5}, 65432.1)
        clock.now += progress.LINE_EVERY_S / 2
        observe(1000, {"s0": 3.25, "s1": 3.5}, 65432.1)
        shown.ended("s0", "done", "")
        shown.ended("s1", "diverged", "not finite in update 7")
    assert text.getvalue().splitlines() == [
        "[2/3] s0, s1: N = 768, 2,000 steps, compiling",
        "[2/3] step 500/2,000, 65,432 tokens/s, loss 4.250 4.500 nats, 56 s left",
        "s0: done",
        "s1: diverged (not finite in update 7)",
    ]


def test_bars_on_a_terminal(clock: Clock):
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80, color_system=None)
    with StudyProgress(console) as shown:
        observe = shown.cohort(cohort("d8-seed0", "d8-seed1"), 1, 2, 0)
        observe(100, {"d8-seed0": 5.25, "d8-seed1": 5.5}, 1234.5)
        clock.now += progress.LINE_EVERY_S
        observe(500, {"d8-seed0": 4.25, "d8-seed1": 4.5}, 65432.1)
        wait_for("25 %", text)
        shown.ended("d8-seed0", "done", "")
        shown.cohort(cohort("later"), 2, 2, 700)
        wait_for("[2/2]", text)
    told = text.getvalue()
    assert "[1/2] d8-seed0, d8-seed1: N = 768, 2,000 steps, compiling" in told
    assert "[2/2] later: N = 768, 2,000 steps from step 700 on, compiling" in told
    assert re.search(r"\[1/2\] ━.* 25 % [-\d:]+ 65,432 tokens/s, loss 4.250 4.500 nats", told)
    assert "step 500" not in told  # a bar moves; it writes no lines
    assert "[1/2]" not in told.split("[2/2] ━")[-1]


def test_a_bar_of_many_lanes_keeps_its_rate_and_time_left():
    text = io.StringIO()
    names = [f"seed{i}" for i in range(8)]
    with StudyProgress(
        Console(file=text, force_terminal=True, width=80, color_system=None)
    ) as bars:
        bars.cohort(cohort(*names), 11, 12, 0)(500, dict.fromkeys(names, 4.25), 6543210.1)
        wait_for("25 %", text)
    assert re.search(r"\[11/12\] ━.* 25 % [-\d:]+ 6,543,210 tokens/s, loss 4.250", text.getvalue())


def test_a_line_longer_than_the_page_stays_one_line():
    text = io.StringIO()
    names = [f"a-long-name-of-a-run-{i}" for i in range(8)]
    with StudyProgress(Console(file=text, width=40)) as shown:
        shown.cohort(cohort(*names), 1, 1, 0)
    assert text.getvalue().count("\n") == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_a_name_is_not_read_as_markup(terminal: bool):
    text = io.StringIO()
    with StudyProgress(Console(file=text, force_terminal=terminal, width=100)) as shown:
        observe = shown.cohort(cohort("lr[/half][red]"), 1, 1, 0)
        observe(1, {"lr[/half][red]": 5.0}, 1.0)
        shown.ended("lr[/half][red]", "failed", "[/bold]")
    assert "[1/1] lr[/half][red]: N = 768" in text.getvalue()
    assert "lr[/half][red]: failed ([/bold])" in text.getvalue()


def test_a_cohort_that_diverges_in_its_first_update_is_shown(clock: Clock):
    text = io.StringIO()
    with StudyProgress(Console(file=text)) as shown:
        observe = shown.cohort(cohort("wild"), 1, 1, 0)
        for _ in range(2):  # the second was in flight when the first was read
            observe(0, {"wild": float("nan")}, 10.0)
            clock.now += progress.LINE_EVERY_S
    assert "step 0/2,000, 10 tokens/s, loss nan nats" in text.getvalue()
