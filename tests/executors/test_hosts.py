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

import numpy as np
import polars as pl
import pytest
from etils import epath

from scaling_jax.records import load
from scaling_jax.records.requests import ask_to_stop
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
# A signal to this process, once it has trained so far.
STOP_AT = """
import os, signal
slowly = Program.chunk
def stopping(self, state, step0, n, *rest):
    if step0 + n >= {}:
        os.kill(os.getpid(), signal.SIGTERM)
    return slowly(self, state, step0, n, *rest)
Program.chunk = stopping
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

    def run(self, count: int, *flags: str, devices: int = 2) -> None:
        """The command on `count` hosts, for 0 one process with some devices, to its good end."""
        alone = [] if count else [self._process("", *flags, devices=devices)]
        processes = alone or self.start(count, *flags)
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


def near(curves: pl.DataFrame, whole: pl.DataFrame) -> None:
    assert curves["step"].to_list() == whole["step"].to_list()
    for column in ("train_loss", "val_loss"):
        losses = (frame[column].drop_nulls().to_numpy() for frame in (curves, whole))
        np.testing.assert_allclose(*losses, rtol=1e-5)


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
    # What the last row tells of may be behind the checkpoint by a window that is still open.
    committed = [path.parent for path in study.folder.glob("runs/cohorts/*/*/commit_success.txt")]
    assert max(int(path.name) for path in committed) >= attempt["step"] > 0


def test_a_run_that_is_asked_to_stop_ends_on_all_hosts_at_one_checkpoint(make):
    study = make("asked", 1)
    often = "import scaling_jax.executors.requests as r; r.LOOK_S = 0.2\n"
    hosts = study.start(2, *LONG, before=SLOW + often)
    study.wait_for("runs/cohorts/*/*/commit_success.txt", hosts)
    (run_id,) = (path.parent.name for path in study.folder.glob("runs/*/config.json"))
    ask_to_stop(epath.Path(study.folder / "runs"), run_id, "l_ns", "the rule", "it may")
    for ended in end(hosts):
        assert ended.code == 0, ended.err
    (attempt,) = study.attempts()
    assert (attempt["status"], attempt["message"]) == ("stopped", "l_ns: it may")
    study.run(2, *LONG)  # and is not trained again
    assert study.attempts() == [attempt]


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


# What one host is, or meets, that the others are not or do not.
FAULTS = {
    "study": (
        "sys.argv += ['--set', 'seed=7']",
        2,
        "the hosts differ in the study (process 0: many",
    ),
    "code": (
        "checks._PACKAGES = ('jax',)",
        2,
        "the hosts differ in packages (process 0: python",
    ),
    "folder": ("sys.argv += ['--out', 'mine']", 2, "another folder on process 1 than on process 0"),
}


@pytest.mark.parametrize("fault", ["study", "code", "folder"])
def test_hosts_that_differ_are_told_on_each_of_them(make, fault):
    own, code, message = FAULTS[fault]
    study = make(f"differs in {fault}", 1)
    for ended in end(study.start(2, own={1: own})):
        assert ended.code == code, ended.err
        assert message in ended.err
        assert "Traceback" not in ended.err
    assert not study.attempts()


FULL_DISK = """
from scaling_jax.errors import WorkError
from scaling_jax.records.writer import RunWriter
whole = RunWriter.flush
def full(self):
    if self._step > 4 and self._status["status"] == "running":
        raise WorkError("Could not write: the disk is full.")
    whole(self)
RunWriter.flush = full
import scaling_jax.training.trainer as trainer
trainer.FLUSH_S = 0.0
import scaling_jax.hosts.agreement as agreement
agreement.FAILED_S = 1.0
"""


def test_a_failure_on_one_host_is_recorded_and_ends_all(make):
    study = make("full", 1)
    hosts = study.start(2, *LONG, before=SLOW, own={0: FULL_DISK})
    first, second = end(hosts)
    assert first.code == second.code == 1
    assert first.err.rstrip().endswith("scaling-jax: Could not write: the disk is full.")
    assert "scaling-jax: process 0 (" in second.err
    assert "): Could not write: the disk is full." in second.err
    (attempt,) = study.attempts()
    assert attempt["status"] == "failed"
    assert attempt["message"] == "Could not write: the disk is full."


@pytest.mark.slow
def test_a_host_that_falls_silent_ends_the_other_in_the_time_stated(make):
    study = make("silent", 1)
    short = "channel.DEAD_S = 20.0"
    hosts = study.start(2, *LONG, before=SLOW + short)
    study.wait_for("runs/*/curve", hosts)
    hosts[1].send_signal(signal.SIGSTOP)
    _, err = hosts[0].communicate(timeout=EXIT_S)
    hosts[1].kill()
    end(hosts[1:])
    assert hosts[0].returncode == 1
    assert "has not been heard of for 20 s; the same command on all hosts goes on" in err


@pytest.mark.slow
def test_four_hosts_train_as_one_with_four_devices(make):
    four, one = make("four", 5), make("one of four", 5)
    four.run(4)
    one.run(0, devices=4)
    assert {run["environment"]["mesh"] for run in four.attempts()} == {"lane=4", "data=4"}
    near(four.curves(), one.curves())  # sums over four devices are taken in another order


@pytest.mark.slow
@pytest.mark.parametrize("order", ["random", "epochs"])
def test_batches_from_the_host_are_those_of_one_process(make, order):
    flags = ("--set", "engine.feed=host", "--set", "batch.microbatches=2")
    flags += ("--set", f"data.order={order}")
    two, one = make(f"fed {order}", 3), make(f"fed {order} one", 3)
    two.run(2, *flags)
    one.run(0, *flags)
    same(two.curves(), one.curves())


@pytest.mark.slow
def test_a_study_goes_on_with_another_number_of_hosts(make):
    """Two processes, one process with one device, two again: stopped at a checkpoint each time."""
    moved, whole = make("moved", 3), make("whole", 3)
    flags = ("--set", "steps=60", "--set", "checkpoint.every_s=0.5")
    whole.run(2, *flags)
    for hosts, at in ((2, 10), (1, 30)):
        processes = moved.start(hosts, *flags, before=SLOW + STOP_AT.format(at))
        assert all(ended.code == 1 for ended in end(processes))
        steps = [run["step"] for run in moved.attempts() if run["status"] == "interrupted"]
        assert at - 5 < max(steps) < at + 10  # of the last row: a window may be open
    moved.run(2, *flags)
    near(moved.curves(), whole.curves())


@pytest.mark.slow
def test_hosts_pass_over_a_damaged_checkpoint_together(make):
    study, whole = make("damaged", 1), make("undamaged", 1)
    flags = ("--set", "steps=60", "--set", "checkpoint.every_s=0.5")
    whole.run(2, *flags)
    assert all(
        ended.code for ended in end(study.start(2, *flags, before=SLOW + STOP_AT.format(30)))
    )
    steps = [path.parent for path in study.folder.glob("runs/cohorts/*/*/commit_success.txt")]
    newest, before = sorted(steps, key=lambda path: -int(path.name))[:2]
    for path in newest.glob("state/**/d/*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    writer, other = end(study.start(2, *flags))
    assert writer.code == other.code == 0, (writer, other)
    assert f"checkpoint {newest} is damaged" in writer.err
    assert "going on without it" not in other.err
    assert study.attempts()[0]["resumed_at"] == int(before.name)
    same(study.curves(), whole.curves())
