"""`tools/quickstart` against a stand-in for the command that only notes how it is called."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

COMMAND = f"""#!{sys.executable}
import os, signal, sys, time

def say(line):
    with open(os.environ["CALLS"], "a") as file:
        file.write(line + "\\n")

def stop(*_):
    say("stopped")
    sys.exit(130)

signal.signal(signal.SIGTERM, stop)
say(" ".join(sys.argv[1:]))
if sys.argv[1] == "run":
    time.sleep(float(os.environ.get("RUN_TAKES", 0)))
sys.exit(int(os.environ.get(sys.argv[1].upper() + "_STATUS", 0)))
"""


@dataclass
class Tree:
    root: Path

    @property
    def calls(self) -> list[str]:
        log = self.root / "calls"
        text = log.read_text() if log.exists() else ""
        return [line.replace(f"{self.root}/", "") for line in text.splitlines()]

    def start(self, *args: str, **env: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [self.root / "tools" / "quickstart", *args],
            env={**os.environ, "CALLS": str(self.root / "calls"), **env},
            cwd="/",
        )

    def quickstart(self, *args: str, **env: str) -> int:
        return self.start(*args, **env).wait(timeout=30)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    root = tmp_path / "tree"
    (root / "tools").mkdir(parents=True)
    (root / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(REPOSITORY / "tools" / "quickstart", root / "tools")
    for path, text in {
        root / "tools" / "setup": "#!/bin/sh\n",
        root / ".venv" / "bin" / "scaling-jax": COMMAND,
    }.items():
        path.write_text(text)
        path.chmod(0o755)
    return Tree(root)


FIT_AND_REPORT = ["report runs/quickstart"]


def test_trains_fits_and_reports(tree: Tree) -> None:
    assert tree.quickstart("--set", "steps=60") == 0
    run = "run experiments/quickstart.py --out runs --set steps=60"
    assert tree.calls == [run, *FIT_AND_REPORT]


def test_a_diverged_run_is_still_fitted_and_told(tree: Tree) -> None:
    assert tree.quickstart(RUN_STATUS="1") == 1
    assert tree.calls[1:] == FIT_AND_REPORT


def test_a_refused_fit_is_still_reported_and_told(tree: Tree) -> None:
    assert tree.quickstart(REPORT_STATUS="1") == 1
    assert tree.calls[1:] == FIT_AND_REPORT


def test_a_wrong_request_ends_it(tree: Tree) -> None:
    assert tree.quickstart("--set", "stesp=60", RUN_STATUS="2") == 2
    assert len(tree.calls) == 1


@pytest.mark.parametrize("args", [["--out", "elsewhere"], ["--out=elsewhere"]])
def test_fits_where_it_trained(tree: Tree, args: list[str]) -> None:
    assert tree.quickstart(*args) == 0
    run = " ".join(["run experiments/quickstart.py", *args])
    assert tree.calls == [run, "report elsewhere/quickstart"]


@pytest.mark.parametrize("word", ["--dry-run", "--help"])
def test_fits_nothing_when_nothing_is_trained(tree: Tree, word: str) -> None:
    assert tree.quickstart(word) == 0
    assert len(tree.calls) == 1


@pytest.fixture
def _interrupts_are_heard() -> Iterator[None]:
    # A shell's background job ignores them, and so would all that it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interrupts_are_heard")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_study(tree: Tree, sent: signal.Signals) -> None:
    process = tree.start(RUN_TAKES="20")
    until = time.monotonic() + 10
    while not tree.calls and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(sent)
    assert process.wait(timeout=10) == 130
    assert tree.calls[1:] == ["stopped"]
