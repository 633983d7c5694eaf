"""Killed at any moment by any signal and started again, a study ends as if nothing had been."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from scaling_jax.records import load
from tests.processes import make_place

# As the command, but with a chunk every hundredth of a second, and a flush and a checkpoint almost
# as often, so that signals find it in all that it does.
OFTEN = """
import sys, time
import scaling_jax.training.trainer as trainer
from scaling_jax.training.program import Program
trainer.FLUSH_S = 0.05
plain = Program.chunk
def slow(*args):
    time.sleep(0.02)
    return plain(*args)
Program.chunk = slow
from scaling_jax.cli import main
sys.exit(main())
"""
STEPS = 4000
SETTINGS = ("run", "experiment.py", "--json", "--set", f"steps={STEPS}")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# What is new on the disk at the moment to be killed at.
WORDS = {
    "training": "/curve/",
    "writing": ".parquet",
    "checkpointing": "orbax-checkpoint-tmp",
    "half-way": "/1000/commit_success.txt",
}
EXIT_S = 60.0  # far more than it takes, on a machine that is busy with other things


class Killed:
    """A folder with a study, and the command on it in processes of its own."""

    def __init__(self, folder: Path, programs: Path, runs: int = 3, devices: int = 2):
        self.folder = folder
        self.place = make_place(folder, programs, devices, runs)

    def _start(self) -> subprocess.Popen[str]:
        return self.place.start(*SETTINGS, "--set", "checkpoint.every_s=0.1", code=OFTEN)

    def finish(self) -> None:
        """As the command goes through without a hurry, however it was begun."""
        done = self.place.run(*SETTINGS)
        assert done.returncode == 0, done.stderr

    def files(self) -> set[tuple[str, int]]:
        """What is on the disk, with the time of its last change."""
        found = set()
        for folder, _, names in os.walk(self.folder / "runs"):  # passes over what goes meanwhile
            for path in (os.path.join(folder, name) for name in names):
                with contextlib.suppress(FileNotFoundError):
                    found.add((path, os.stat(path).st_mtime_ns))
        return found

    def attempts(self) -> list[dict[str, Any]]:
        """The last status of every run."""
        found = [json.loads(path.read_text()) for path in self.folder.glob("runs/*/status.json")]
        assert found
        return found

    def kill(self, number: signal.Signals, moment: str, draws: random.Random) -> bool:
        """Starts the command and ends it; whether it was still at work."""
        before, process = self.files(), self._start()
        try:
            if moment == "start-up":
                time.sleep(draws.uniform(0.0, 2.0))
            else:
                while process.poll() is None and not self._writes(before, moment):
                    time.sleep(0.005)
                time.sleep(draws.uniform(0.0, 0.5 if moment == "training" else 0.03))
            process.send_signal(number)
            _, err = process.communicate(timeout=EXIT_S)
        finally:
            process.kill()
        assert "Traceback" not in err or moment == "start-up", err
        return process.returncode != 0

    def _writes(self, before: set[tuple[str, int]], moment: str) -> bool:
        """Whether the command has begun to do what it is to be killed at."""
        new = {path for path, _ in self.files() - before}
        return any(WORDS[moment] in path for path in new)

    def curves(self) -> pl.DataFrame:
        curves = load(self.folder / "runs" / "tiny").curves
        return curves.sort("run_id", "step").drop("attempt", "wall_s", "tokens_per_s")


@pytest.fixture
def make(corpus_cache: str, programs: Path, tmp_path: Path) -> Callable[..., Killed]:
    return lambda name, *size: Killed(tmp_path / name, programs, *size)


def kill_and_compare(study: Killed, whole: Killed, kills: int) -> None:
    whole.finish()
    draws = random.Random(kills)
    moments = ["training", "checkpointing", "writing", "start-up"]
    alive = [study.kill(SIGNALS[i % 3], moments[i % 4], draws) for i in range(kills)]
    assert all(alive), "the study was through before the last kill"
    study.finish()
    assert any(state["resumed_at"] for state in study.attempts())
    curves, undisturbed = study.curves(), whole.curves()
    assert curves["step"].to_list() == undisturbed["step"].to_list()  # none missing, none twice
    for column in undisturbed.columns:
        assert curves[column].equals(undisturbed[column]), column


def test_a_kill_at_each_moment_changes_nothing(make):
    kill_and_compare(make("four", 2), make("four undisturbed", 2), 4)


@pytest.mark.slow
def test_sixteen_lanes_killed_half_way_all_go_on(make):
    study, whole = make("sixteen", 16, 16), make("sixteen undisturbed", 16, 16)
    whole.finish()
    assert study.kill(signal.SIGKILL, "half-way", random.Random(0))
    study.finish()
    attempts = study.attempts()
    assert len(attempts) == 16
    (step,) = {state["resumed_at"] for state in attempts}
    assert 1000 <= step < STEPS
    assert study.curves().equals(whole.curves())


@pytest.mark.slow
def test_thirty_kills_change_nothing(make):
    kill_and_compare(make("thirty"), make("thirty undisturbed"), 30)
