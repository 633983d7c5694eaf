"""The monitor in processes of its own: beside a run, in another terminal, and after a kill."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from etils import epath

from scaling_jax import cli
from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.forecast.seal import write_seal
from scaling_jax.records.requests import ask_to_stop
from scaling_jax.records.writer import write_study
from tests.processes import NAMES, Place, make_place, one_object
from tests.records.runs import ZERO, begun, row

# As the command, but a look every quarter of a second, and requests and rows almost as often; and
# with more patience for a child of low priority on a machine that is busy.
EAGER = """
import sys
import scaling_jax.cli_monitor as m
import scaling_jax.executors.requests as r
import scaling_jax.training.trainer as t
t.FLUSH_S, r.LOOK_S, m._LAST_LOOK_S = 0.2, 0.2, 200.0
m._CHILD = "import scaling_jax.cli_monitor as m; m.EVERY_S = 0.25; " + m._CHILD
from scaling_jax.cli import main
sys.exit(main())
"""
LONG = ["run", "experiment.py", "--set", "steps=10000000"]
WAIT_S = 240.0  # far more than it takes, on a machine that is busy with other things


@pytest.fixture
def place(programs: Path, tmp_path: Path) -> Place:
    place = make_place(tmp_path / "place", programs)
    flags = f"{place.env['XLA_FLAGS']} {os.environ['XLA_FLAGS']}"  # little optimisation
    return place._replace(env=place.env | {"XLA_FLAGS": flags})


@pytest.fixture
def finished(place: Place) -> Place:
    """With a study in it that is done."""
    out = epath.Path(place.folder / "runs")
    write_study(out, "tiny", "", [], {NAMES[0]: "aaa"})
    run = begun(out, "aaa")
    run.append([ZERO, row(20), row(40, 20)])
    run.finish("done")
    return place


@pytest.fixture
def started(place: Place) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts commands, and leaves none behind."""
    processes: list[subprocess.Popen[str]] = []

    def start(*argv: str) -> subprocess.Popen[str]:
        processes.append(place.start(*argv, code=EAGER))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


Start = Callable[..., subprocess.Popen[str]]


def until(found: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if found():
            return
        assert process.poll() is None, process.communicate(timeout=10)
        time.sleep(0.05)
    raise AssertionError("it did not come")


def rows(place: Place) -> bool:
    return len(list(place.folder.glob("runs/*/curve/*.parquet"))) >= len(NAMES)


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def logs(place: Place) -> list[Path]:
    return sorted(place.folder.glob("runs/tiny/forecasts/*.log"))


def lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


@linux
def test_beside_a_run_it_forecasts_and_ends_with_it(
    place: Place, started: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    run = started(*LONG, "--monitor", "--json")
    until(lambda: list(place.folder.glob("runs/tiny/forecasts/*.json")), run)
    (child,) = children(run.pid)
    own, its = (os.getpriority(os.PRIO_PROCESS, pid) for pid in (run.pid, child))
    assert its == min(own + 10, 19)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=WAIT_S)
    assert run.returncode == 1 and one_object(out)["runs"] == dict.fromkeys(NAMES, "interrupted")
    (line,) = [line for line in err.splitlines() if line.startswith("monitor: ")]
    assert "monitor: forecasts written: " in line
    assert line.endswith(str(logs(place)[0].relative_to(place.folder)))
    assert "Traceback" not in err and not lives(child)
    told = logs(place)[0].read_text().splitlines()
    assert "no run is finished yet: forecasts have none to learn from" in told
    assert "ended: the run has ended" in told
    assert cli.main(["status", str(place.folder / "runs")]) == 0
    said = capsys.readouterr().out
    assert os.path.join("runs", "tiny", "forecasts") + ": " in said and "the newest 20" in said


@linux
def test_a_run_that_is_killed_leaves_no_monitor(place: Place, started: Start) -> None:
    run = started(*LONG, "--monitor")
    until(lambda: logs(place), run)
    (child,) = children(run.pid)
    run.kill()
    run.wait()
    deadline = time.monotonic() + WAIT_S
    while lives(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_runs_that_are_asked_stop_and_the_command_says_how_to_undo_it(
    place: Place, started: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    run = started(*LONG)
    until(lambda: rows(place), run)
    out = epath.Path(place.folder / "runs")
    ids = [path.parent.name for path in out.glob("*/config.json")]
    for run_id in ids:
        assert ask_to_stop(out, run_id, "l_ns", "the rule", "it may")
    said, err = run.communicate(timeout=WAIT_S)
    assert run.returncode == 0, err
    *_, tally, last = said.splitlines()
    assert tally == os.path.join("runs", "tiny") + ": 2 stopped"
    assert last.startswith("2 stopped early for good; to train them to the end, remove stop.json")
    assert cli.main(["status", str(out)]) == 0
    assert f"{NAMES[0]}: l_ns: it may" in capsys.readouterr().out


def test_the_monitor_of_a_study_that_is_done_ends_at_once(
    finished: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    done = finished.run("monitor", os.path.join("runs", "tiny"), "--json")
    assert done.returncode == 0
    assert one_object(done.stdout) == {
        "folder": os.path.join("runs", "tiny"),
        "forecasts": [],
        "asked": [],
        "ended": "nothing is left to train",
        "score": None,
    }
    assert done.stderr == "ended: nothing is left to train\n"
    assert cli.main(["status", str(finished.folder / "runs"), "--json"]) == 0
    assert one_object(capsys.readouterr().out)["written"] == {}


def test_status_counts_the_forecasts_that_were_written(
    finished: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    study = finished.folder / "runs" / "tiny"
    (study / "forecasts").mkdir()
    said = {"run_id": "a", "observed_step": 1, "horizon_step": 2, "loss": 3.0, "interval": [2, 4]}
    for hour in (1, 2):
        seen: list[Curve] = []
        write_seal(study / "forecasts" / f"2026010{hour}T000000Z.json", [said], seen, 0.9, "tiny")
    (study / "forecasts" / "20260103T000000Z.log").write_text("a word\n")
    for folder in (study, finished.folder / "runs"):
        assert cli.main(["status", str(folder), "--json"]) == 0
        assert one_object(capsys.readouterr().out)["written"] == {
            str(study / "forecasts"): {"count": 2, "newest": "2026-01-02T00:00:00+00:00"}
        }
    assert cli.main(["status", str(study)]) == 0
    line = f"{study / 'forecasts'}: forecasts written: 2, the newest 2026-01-02T00:00:00+00:00"
    assert line in capsys.readouterr().out.splitlines()


def test_looks_are_a_second_apart_or_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["monitor", "runs/none", "--every", "0.5s"]) == 2
    assert "--every is a second or more, not 0.5s" in capsys.readouterr().err
