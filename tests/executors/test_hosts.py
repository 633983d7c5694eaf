"""Several processes train one study as one process does, and none outlives another's end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import polars as pl
import pytest

from scaling_jax.records import load
from tests.hosts.threads import free_port

EXPERIMENT = '''\
"""A cohort with a lane a process, and a run that is spread over them."""

from scaling_jax.config import BatchConfig, EvaluationConfig, ModelConfig, RunConfig
from scaling_jax.study import Study


def run(seed):
    return RunConfig(
        model=ModelConfig(n_layer=1, d_model=8, n_head=1, n_ctx=8),
        batch=BatchConfig(sequences=8),
        evaluation=EvaluationConfig(tokens=64),
        steps=20,
        seed=seed,
    )


study = Study("many", {f"seed{i}": run(i) for i in range(N_RUNS)})
'''
# As the command, but sooner to give up, and, where it is to be disturbed, in short chunks.
COMMAND = """
import sys, time
import scaling_jax.hosts.channel as channel
import scaling_jax.hosts.checks as checks
channel.BEAT_S, checks._SEEN_S = 0.5, 0.2
from scaling_jax.cli import main
from tests.quick_compile import compiling_quickly
exec(sys.argv[1])
with compiling_quickly():
    status = main(["run", "experiment.py", "--json", *sys.argv[2:]])
sys.exit(status)
"""
SLOW = """
from scaling_jax.training.program import Program
plain = Program.chunk
def slow(self, state, step0, n, *rest):
    time.sleep(0.05)
    return plain(self, state, step0, n, *rest)
Program.chunk = slow
import scaling_jax.training.trainer as trainer
trainer.CHUNK_STEPS = 2
"""
LONG = ("--set", "steps=4000", "--set", "checkpoint.every_s=0.5")
EXIT_S = 300.0  # far more than it takes, on a machine that is busy with other things


class Ended(NamedTuple):
    code: int
    err: str


class Hosts:
    """A folder with a study, and the command on it in processes with one device each."""

    def __init__(self, folder: Path, programs: Path, runs: int):
        self.folder = folder
        self.env = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(programs),
            "JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        folder.mkdir()
        (folder / "experiment.py").write_text(EXPERIMENT.replace("N_RUNS", str(runs)))

    def start(
        self,
        count: int,
        *flags: str,
        before: str = "",
        own: Mapping[int, str] = MappingProxyType({}),
    ) -> list[subprocess.Popen[str]]:
        """The command on `count` hosts; `before` is run in each first, and `own` in some."""
        port = free_port()
        return [
            self._process(
                before + own.get(i, ""), "--hosts", f"localhost:{port},{i}/{count}", *flags
            )
            for i in range(count)
        ]

    def run(self, count: int, *flags: str) -> None:
        """The command on `count` hosts, or with one process of 2 devices for 0, to its good end."""
        processes = self.start(count, *flags) if count else [self._process("", *flags, devices=2)]
        all_ended = end(processes)
        assert all(ended.code == 0 for ended in all_ended), all_ended

    def _process(self, before: str, *flags: str, devices: int = 1) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, before, *flags],
            cwd=self.folder,
            env=self.env | {"JAX_NUM_CPU_DEVICES": str(devices)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, pattern: str, processes: Sequence[subprocess.Popen[str]]) -> None:
        """Until there is such a file, while all processes live."""
        while not list(self.folder.glob(pattern)):
            assert all(process.poll() is None for process in processes), end(processes)
            time.sleep(0.02)

    def attempts(self) -> list[dict[str, Any]]:
        """The last status of every run."""
        return [json.loads(path.read_text()) for path in self.folder.glob("runs/*/status.json")]

    def curves(self) -> pl.DataFrame:
        curves = load(self.folder / "runs" / "many").curves
        return curves.sort("run_id", "step").drop("attempt", "wall_s", "tokens_per_s")


def end(processes: Sequence[subprocess.Popen[str]]) -> list[Ended]:
    """How each ended; none is left behind."""
    try:
        said = [process.communicate(timeout=EXIT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Ended(each.returncode, err) for each, (_, err) in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def make(corpus_cache: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Hosts]:
    """Studies of some runs, whose processes share one cache of compiled programs."""
    folder, programs = tmp_path_factory.mktemp("hosts"), tmp_path_factory.mktemp("programs")
    return lambda name, runs: Hosts(folder / name, programs, runs)


def same(curves: pl.DataFrame, whole: pl.DataFrame) -> None:
    assert curves["step"].to_list() == whole["step"].to_list()  # none missing, none twice
    for column in whole.columns:
        assert curves[column].equals(whole[column]), column


def test_two_hosts_train_as_one_does(make):
    two, one = make("two", 1), make("one", 1)
    two.run(2)
    one.run(0)
    assert [run["environment"]["mesh"] for run in two.attempts()] == ["data=2"]
    same(two.curves(), one.curves())


def test_a_signal_to_one_host_stops_all_at_one_checkpoint(make):
    study = make("stopped", 1)
    hosts = study.start(2, *LONG, before=SLOW)
    study.wait_for("runs/cohorts/*/*/commit_success.txt", hosts)
    hosts[1].send_signal(signal.SIGTERM)
    for ended in end(hosts):
        assert ended.code == 1, ended.err
        assert "stopped by SIGTERM on process 1; the same command goes on" in ended.err
    (attempt,) = study.attempts()
    assert attempt["status"] == "interrupted"
    assert (next(study.folder.glob("runs/cohorts/*")) / str(attempt["step"])).is_dir()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_that_is_killed_ends_the_other_with_a_word(make, victim):
    study = make(f"killed{victim}", 1)
    hosts = study.start(2, *LONG, before=SLOW)
    study.wait_for("runs/*/curve", hosts)
    hosts[victim].kill()
    ended = end(hosts)[1 - victim]
    assert f"process {victim} (pid {hosts[victim].pid} on" in ended.err
    assert "has ended without a word; the same command on all hosts goes on" in ended.err
    assert ended.code == 1
    assert "Traceback" not in ended.err
