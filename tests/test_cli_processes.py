"""The command in processes of its own: what it prints, how it ends, and that it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest

from scaling_jax import cli
from scaling_jax.records import load
from tests.processes import EXPERIMENT, NAMES, Place, assert_one_message, make_place, one_object

LONG = ["run", "experiment.py", "--json", "--set", "steps=10000000"]


@pytest.fixture
def place(programs: Path, tmp_path: Path) -> Place:
    return make_place(tmp_path / "place", programs)


class Finished(NamedTuple):
    place: Place
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def finished(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    place = make_place(tmp_path_factory.mktemp("finished"), programs)
    return Finished(place, place.run("run", "experiment.py", "--json"))


def test_a_mesh_that_does_not_fit_is_refused_and_leaves_nothing(place: Place) -> None:
    # with as many devices as the command itself makes of this machine's cores
    plain = place._replace(env={k: v for k, v in place.env.items() if k != "XLA_FLAGS"})
    done = plain.run("run", "experiment.py", "--set", "mesh.data=64")
    assert done.returncode == 2
    assert_one_message(
        done.stdout,
        done.stderr,
        "run 'a-name",
        "the mesh asks for data 64 = 64 device(s) and there are ",
        "the nearest product that fits is",
    )
    assert list(place.files()) == ["experiment.py"]


def test_a_run_prints_one_object_and_tells_of_itself_on_stderr(finished: Finished) -> None:
    place, done = finished
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert one_object(done.stdout) == {
        "study": "tiny",
        "folder": os.path.join("runs", "tiny"),
        "runs": dict.fromkeys(NAMES, "done"),
    }
    assert "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("a-name")] == [
        f"{name}: done" for name in NAMES
    ]
    records = load(place.folder / "runs")
    assert (
        records.curves.group_by("run_id").len()["len"].to_list() == [len(records.curves) // 2] * 2
    )
    assert records.curves["step"].max() == 60


def test_a_second_call_trains_nothing(finished: Finished) -> None:
    place, first = finished
    before, began = place.files(), time.monotonic()
    again = place.run("run", "experiment.py", "--json")
    assert time.monotonic() - began < 20.0
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert again.stderr == ""
    assert place.files() == before


def test_a_dry_run_describes_every_run_and_writes_nothing(place: Place) -> None:
    done = place.run("run", "experiment.py", "--dry-run", "--json", "--set", "steps=100")
    assert done.returncode == 0, done.stderr
    doc = one_object(done.stdout)
    assert [row["name"] for row in doc["runs"]] == NAMES
    for row in doc["runs"]:
        assert (row["N"], row["tokens"]) == (768, 100 * 64)
        assert row["flops_exact"] > 6 * 768 * 100 * 64
        assert row["seconds"] > 0
        assert 0 < row["GiB"] < 1
        assert row["mesh"].startswith(("1 device", "lane=", "data="))
    assert doc["seconds"] == pytest.approx(sum(row["seconds"] for row in doc["runs"]))
    assert list(place.files()) == ["experiment.py"]


def test_status_shows_every_run(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    for source in ("runs", "runs/tiny"):
        assert cli.main(["status", str(finished.place.folder / source), "--json"]) == 0
        runs = one_object(capsys.readouterr().out)["runs"]
        assert [run["name"] for run in runs] == NAMES
        for run in runs:
            assert (run["status"], run["step"], run["steps"]) == ("done", 60, 60)
            assert 0 < run["val_loss"] < 7
    assert cli.main(["status", str(finished.place.folder / "runs")]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert "params_non_embedding" in header.split()
    assert [row.split()[1:3] for row in rows] == [[name, "done"] for name in NAMES]


def test_noise_shows_every_run(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(finished.place.folder / "runs" / "tiny")
    assert cli.main(["noise", source, "--json", "--level", "0.5"]) == 0
    doc = one_object(capsys.readouterr().out)
    assert doc["level"] == 0.5
    assert {run["name"] for run in doc["runs"]} == set(NAMES)
    for run in doc["runs"]:
        assert sum(point["noise_steps"] for point in run["points"]) == 60
    assert cli.main(["noise", source]) == 0
    assert "N = 768" in capsys.readouterr().out


def test_a_fit_of_too_little_is_refused(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(finished.place.folder / "runs" / "tiny")
    assert cli.main(["fit", source]) == 1
    out, err = capsys.readouterr()
    assert_one_message(out, err)
    assert cli.main(["fit", source, "--json"]) == 1
    out, again = capsys.readouterr()
    refused = one_object(out)
    assert again == err == f"scaling-jax: {refused['refused']}\n"
    assert (refused["law"], refused["flags"]) == ("l_ns", ["refused"])


def test_a_report_is_written_into_the_study(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    study = finished.place.folder / "runs" / "tiny"
    assert cli.main(["report", str(study), "--json"]) == 1  # the fit of so small a study is refused
    doc = one_object(capsys.readouterr().out)
    page = Path(doc["report"])
    assert page == study / "report" / "index.html"
    assert "tiny" in page.read_text()
    assert "3 sizes" in doc["refused"]


def wait_for_rows(place: Place, process: subprocess.Popen[str], attempt: int = 1) -> None:
    """Until every run has recorded training in this attempt."""
    deadline = time.monotonic() + 240.0
    while time.monotonic() < deadline and process.poll() is None:
        if len(list(place.folder.glob(f"runs/*/curve/{attempt:03d}-*.parquet"))) >= len(NAMES):
            return
        time.sleep(0.05)
    raise AssertionError(f"no rows: {process.communicate(timeout=10)}")


def end(process: subprocess.Popen[str], number: signal.Signals) -> tuple[str, str]:
    """What the process printed, ended by the signal within a bounded time."""
    process.send_signal(number)
    began = time.monotonic()
    printed = process.communicate(timeout=60)
    assert time.monotonic() - began < 20.0
    return printed


def assert_all_whole(place: Place) -> None:
    """Every table can be read, and nothing half-written is left."""
    files = [path for path in (place.folder / "runs").rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix == ".tmp"]
    tables = [path for path in files if path.suffix == ".parquet"]
    assert len(tables) >= len(NAMES)
    for path in tables:
        assert pq.read_table(path).num_rows > 0
    for path in files:
        if path.suffix == ".json":
            one_object(path.read_text())


def states(place: Place) -> list[dict[str, Any]]:
    found = [one_object(path.read_text()) for path in place.folder.glob("runs/*/status.json")]
    assert len(found) == len(NAMES)
    return found


@pytest.fixture
def started(place: Place) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts long runs, and leaves none behind."""
    processes: list[subprocess.Popen[str]] = []

    def start(*argv: str) -> subprocess.Popen[str]:
        processes.append(place.start(*argv))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


Start = Callable[..., subprocess.Popen[str]]


def test_one_process_writes_and_stops_when_asked(place: Place, started: Start) -> None:
    first = started(*LONG)
    wait_for_rows(place, first)

    second = place.run(*LONG)
    assert second.returncode == 2
    assert_one_message(second.stdout, second.stderr, f"pid {first.pid} on ", "--out")
    assert first.poll() is None
    assert {state["status"] for state in states(place)} == {"running"}

    out, err = end(first, signal.SIGTERM)
    assert first.returncode == 1
    assert one_object(out)["runs"] == dict.fromkeys(NAMES, "interrupted")
    assert err.splitlines()[-1] == (
        "scaling-jax: stopped by SIGTERM; the same command goes on with what is not finished"
    )
    assert "Traceback" not in err
    for state in states(place):
        assert (state["status"], state["attempt"]) == ("interrupted", 1)
        assert state["message"] == "stopped by SIGTERM"
        assert state["step"] > 0
    assert_all_whole(place)


def test_a_budget_stops_at_a_checkpoint(place: Place) -> None:
    done = place.run(*LONG, "--budget", "0.1s")
    assert done.returncode == 1
    assert set(one_object(done.stdout)["runs"].values()) <= {"interrupted", "queued"}
    assert done.stderr.splitlines()[-1] == (
        "scaling-jax: stopped at the end of the budget; the same command goes on with what is not "
        "finished"
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_same_command_goes_on(place: Place, started: Start, number: signal.Signals) -> None:
    first = started(*LONG)
    wait_for_rows(place, first)
    end(first, number)
    assert first.returncode == (-number if number == signal.SIGKILL else 1)

    told = one_object(place.run("status", "runs", "--json").stdout)["runs"]
    left = "stale" if number == signal.SIGKILL else "interrupted"
    assert [(run["name"], run["status"]) for run in told] == [(n, left) for n in NAMES]
    assert all(run["step"] > 0 for run in told)

    second = started(*LONG)
    wait_for_rows(place, second, attempt=2)
    running = one_object(place.run("status", "runs", "--json").stdout)["runs"]
    assert {run["status"] for run in running} == {"running"}
    end(second, signal.SIGINT)
    assert second.returncode == 1
    assert {state["attempt"] for state in states(place)} == {2}
    assert_all_whole(place)
    curves = load(place.folder / "runs").curves
    assert curves.select("run_id", "step").is_unique().all()


@pytest.mark.slow
def test_a_run_that_diverges_ends_in_exit_status_1_and_the_others_are_done(place: Place) -> None:
    text = EXPERIMENT.replace("ModelConfig, RunConfig", "ModelConfig, OptimizerConfig, RunConfig")
    text = text.replace("seed=seed,", 'optimizer=OptimizerConfig(name="sgd", lr_peak=seed),')
    text = text.replace(
        '{f"a-name-of-some-length-{i}": run(i) for i in range(2)}',
        '{"calm": run(0.1), "wild": run(1e30), "later": run(0.1).model_copy(update={"steps": 30})}',
    )
    (place.folder / "experiment.py").write_text(text)
    for _ in range(2):
        done = place.run("run", "experiment.py", "--json")
        assert done.returncode == 1, done.stderr
        ends = {"calm": "done", "wild": "diverged", "later": "done"}
        assert one_object(done.stdout)["runs"] == ends
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_same_command_in_two_folders_gives_bitwise_equal_curves(
    finished: Finished, place: Place
) -> None:
    fresh = place._replace(env=place.env | {"JAX_ENABLE_COMPILATION_CACHE": "false"})
    assert fresh.run("run", "experiment.py", "--json").returncode == 0
    first, again = (load(p.folder / "runs").curves for p in (finished.place, fresh))
    assert len(first) == len(again) > 0
    for column in ("run_id", "step", "train_loss", "val_loss", "grad_sq_small", "grad_sq_big"):
        assert first[column].equals(again[column]), column
