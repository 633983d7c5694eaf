from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow.parquet as pq
import pytest

from scaling_jax import cli
from scaling_jax.executors.dry_run import COLUMNS
from scaling_jax.records import load

EXPERIMENT = '''\
"""Two seeds of a tiny model."""

from scaling_jax.config import BatchConfig, EvaluationConfig, ModelConfig, RunConfig
from scaling_jax.study import Study


def run(seed):
    return RunConfig(
        model=ModelConfig(n_layer=1, d_model=8, n_head=1, n_ctx=8),
        batch=BatchConfig(sequences=8, microbatches=2),
        evaluation=EvaluationConfig(tokens=64),
        steps=60,
        seed=seed,
    )


study = Study("tiny", {f"a-name-of-some-length-{i}": run(i) for i in range(2)})
'''
NAMES = ["a-name-of-some-length-0", "a-name-of-some-length-1"]
COMMAND = "import sys; from scaling_jax.cli import main; sys.exit(main())"
# As the command, and writing several times a second, so that a test need not wait for it.
EAGER = "import scaling_jax.training.trainer as t; t.FLUSH_S = 0.2; " + COMMAND
LONG = ["run", "experiment.py", "--json", "--set", "steps=10000000"]


class Place(NamedTuple):
    """A folder with an experiment in it, and the command run there in processes of its own."""

    folder: Path
    env: dict[str, str]

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", COMMAND, *argv],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def start(self, *argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", EAGER, *argv],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }


@pytest.fixture(scope="module")
def make_place(
    corpus_cache: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Place]:
    """Places whose processes share one cache of compiled programs: that is what takes the time."""
    env = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("programs")),
        "JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }

    def make(name: str) -> Place:
        folder = tmp_path_factory.mktemp(name)
        (folder / "experiment.py").write_text(EXPERIMENT)
        return Place(folder, env)

    return make


@pytest.fixture
def place(make_place: Callable[[str], Place]) -> Place:
    return make_place("place")


class Finished(NamedTuple):
    place: Place
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def finished(make_place: Callable[[str], Place]) -> Finished:
    place = make_place("finished")
    return Finished(place, place.run("run", "experiment.py", "--json"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, which holds an experiment and nothing else."""
    (tmp_path / "experiment.py").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def one_object(text: str) -> dict[str, Any]:
    doc = json.loads(text)
    assert isinstance(doc, dict)
    return doc


def call(*argv: str) -> int:
    """Exit status of the command, called in this process."""
    try:
        return cli.main(list(argv))
    except SystemExit as ended:  # what the parser of the command line does
        return ended.code if isinstance(ended.code, int) else 1


def assert_one_message(out: str, err: str, *words: str) -> None:
    assert out == ""
    assert "Traceback" not in err
    assert err.startswith("scaling-jax: ")
    assert err.count("\n") == 1
    assert err.count("scaling-jax: ") == 1
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["run", "nope.py"], ["No experiment file nope.py"]),
        (["run", "nothing.py"], ["nothing.py declares no study"]),
        (["run", "broken.py"], ["broken.py line 1: SyntaxError"]),
        (["run", "experiment.py", "--set", "step=60"], ["'step'", "Did you mean 'steps'?"]),
        (["run", "experiment.py", "--set", "mesh.dta=2"], ["Did you mean 'mesh.data'?"]),
        (["run", "experiment.py", "--set", "model.zzz=2"], ["No config field 'model.zzz'."]),
        (["run", "experiment.py", "--set", "steps"], ["--set takes KEY=VALUE, not 'steps'"]),
        (["run", "experiment.py", "--set", "=60"], ["--set takes KEY=VALUE, not '=60'"]),
        (["run", "experiment.py", "--set", "steps=many"], ["steps: ", "integer", "'many'"]),
        (["run", "experiment.py", "--set", "steps=-1"], ["steps: ", "greater than 0"]),
        (["run", "experiment.py", "--set", "model=big"], ["'model' is a group of fields"]),
        (["run", "experiment.py", "--set", "model.n_head=3"], ["n_head 3 does not divide"]),
        (
            ["run", "experiment.py", "--set", "batch.microbatches=3"],
            ["batch.sequences 8 is not divisible by batch.microbatches 3"],
        ),
        (["run", "experiment.py", "--set", "seed=1"], ["are the same run"]),
        (["run", "experiment.py", "--budget", "2"], ["--budget takes a time as in 90s", "'2'"]),
        (["run", "experiment.py", "--set", "data.source=web"], ["data.source", "'embedded'"]),
        (["status", "nope"], ["There is no nope"]),
        (["status", "empty"], ["empty holds neither study.json nor studies"]),
        (["noise", "empty"], ["empty holds neither study.json nor studies"]),
        (["fit", "empty"], ["empty holds neither study.json nor studies"]),
        (["report", "empty"], ["empty holds neither study.json nor studies"]),
        (["noise", "cut.parquet"], ["cut.parquet is cut, or no Parquet table"]),
        (["fit", "cut.parquet", "--json"], ["cut.parquet is cut, or no Parquet table"]),
        (["report", "cut.parquet"], ["cut.parquet is cut, or no Parquet table"]),
        (["fit", "cut.csv"], ["cut.csv is cut"]),
        (["fit", "experiment.py"], ["a table ends in .csv or .parquet"]),
    ],
    ids=" ".join,
)
def test_a_wrong_request_is_refused_in_one_message_and_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], argv: list[str], words: list[str]
) -> None:
    (here / "empty").mkdir()
    (here / "nothing.py").write_text("runs = {}\n")
    (here / "broken.py").write_text("study = Study(\n")
    (here / "cut.csv").write_text("run_id,step,train_loss\na,1,5.0\na,2\n")
    pl.DataFrame({"step": range(100)}).write_parquet(here / "whole.parquet")
    (here / "cut.parquet").write_bytes((here / "whole.parquet").read_bytes()[:200])
    before = sorted(here.rglob("*"))
    assert call(*argv) == 2
    out, err = capsys.readouterr()
    assert_one_message(out, err, *words)
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["runn", "experiment.py"], ["runn", "run"]),
        (["run", "experiment.py", "--outt", "x"], ["--outt", "--out"]),
        (["run"], ["EXPERIMENT.py"]),
        ([], ["run", "status", "fit", "noise", "report"]),
        (["fit", "x.csv", "--level", "high"], ["--level", "high"]),
    ],
    ids=["command", "option", "no experiment", "no command", "type"],
)
def test_what_the_command_line_does_not_know_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], argv: list[str], words: list[str]
) -> None:
    assert call(*argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert err.count("For full helptext") == 1  # one message, which ends with where to read more
    for word in words:
        assert word in err
    assert [path.name for path in here.iterdir()] == ["experiment.py"]


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


def test_a_dry_run_is_printed_as_a_table_that_is_not_cut(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scaling_jax.executors.startup.start_jax", lambda: None)
    monkeypatch.setattr("scaling_jax.executors.dry_run._seconds_a_token", lambda *_: 1e-3)
    assert call("run", "experiment.py", "--dry-run") == 0
    out = capsys.readouterr().out
    header, *rows, total = out.splitlines()
    assert tuple(header.split()) == COLUMNS
    assert [row.split()[1] for row in rows] == NAMES
    assert all(row.split()[2:6] == ["768", "4,992", "60", "3,840"] for row in rows)
    assert total == "about 8 s of training, compilation apart"
    assert [path.name for path in here.iterdir()] == ["experiment.py"]


def test_status_shows_every_run(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    for source in ("runs", "runs/tiny"):
        assert call("status", str(finished.place.folder / source), "--json") == 0
        runs = one_object(capsys.readouterr().out)["runs"]
        assert [run["name"] for run in runs] == NAMES
        for run in runs:
            assert (run["status"], run["step"], run["steps"]) == ("done", 60, 60)
            assert 0 < run["val_loss"] < 7
    assert call("status", str(finished.place.folder / "runs")) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert "params_non_embedding" in header.split()
    assert [row.split()[1:3] for row in rows] == [[name, "done"] for name in NAMES]


def test_noise_shows_every_run(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(finished.place.folder / "runs" / "tiny")
    assert call("noise", source, "--json", "--level", "0.5") == 0
    doc = one_object(capsys.readouterr().out)
    assert doc["level"] == 0.5
    assert {run["name"] for run in doc["runs"]} == set(NAMES)
    for run in doc["runs"]:
        assert sum(point["noise_steps"] for point in run["points"]) == 60
    assert call("noise", source) == 0
    assert "N = 768" in capsys.readouterr().out


def test_a_fit_of_too_little_is_refused(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(finished.place.folder / "runs" / "tiny")
    assert call("fit", source) == 1
    out, err = capsys.readouterr()
    assert_one_message(out, err)
    assert call("fit", source, "--json") == 1
    out, again = capsys.readouterr()
    refused = one_object(out)
    assert again == err == f"scaling-jax: {refused['refused']}\n"
    assert (refused["law"], refused["flags"]) == ("l_ns", ["refused"])


def test_a_report_is_written_into_the_study(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    study = finished.place.folder / "runs" / "tiny"
    assert call("report", str(study), "--json") == 1  # the fit of so small a study is refused
    doc = one_object(capsys.readouterr().out)
    page = Path(doc["report"])
    assert page == study / "report" / "index.html"
    assert "tiny" in page.read_text()
    assert "3 sizes" in doc["refused"]


@pytest.mark.parametrize(
    ("ended", "status"),
    [
        ({"a": "done", "b": "done"}, 0),
        ({"a": "done", "b": "diverged"}, 1),
        ({"a": "failed", "b": "done"}, 1),
    ],
)
def test_the_exit_status_says_whether_every_run_is_done(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    ended: dict[str, str],
    status: int,
) -> None:
    monkeypatch.setattr("scaling_jax.executors.startup.start_jax", lambda: None)
    monkeypatch.setattr("scaling_jax.executors.local.run_study", lambda *_: ended)
    assert call("run", "experiment.py", "--json", "--out", "elsewhere") == status
    assert one_object(capsys.readouterr().out)["runs"] == ended
    assert call("run", "experiment.py") == status
    assert capsys.readouterr().out.startswith(os.path.join("runs", "tiny") + ": ")


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
