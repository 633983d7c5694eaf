from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest

from scaling_jax import cli
from scaling_jax.executors.dry_run import COLUMNS, SecondsAToken
from tests.processes import EXPERIMENT, NAMES, assert_one_message, one_object


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, which holds an experiment and nothing else."""
    (tmp_path / "experiment.py").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    # JAX has looked for its devices long ago.
    monkeypatch.setattr("scaling_jax.executors.startup.start_jax", lambda: None)
    return tmp_path


def call(*argv: str) -> int:
    """Exit status of the command, called in this process."""
    try:
        return cli.main(list(argv))
    except SystemExit as ended:  # what the parser of the command line does
        return ended.code if isinstance(ended.code, int) else 1


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
        (
            ["run", "experiment.py", "--set", "data.source=web"],
            ["No file or folder web. Known beside paths: embedded"],
        ),
        (["run", "experiment.py", "--stop-for", "l_nss"], ["l_nss", "l_ns"]),
        (["run", "experiment.py", "--stop-for", "b_crit"], ["b_crit is no law of the loss"]),
        (["status", "nope"], ["There is no nope"]),
        (["monitor", "nope"], ["There is no nope"]),
        (["monitor", "empty"], ["empty is not the folder of one study"]),
        (["monitor", "cut.csv"], ["cut.csv is not the folder of one study"]),
        (["monitor", "nope", "--every", "soon"], ["--every takes a time as in 90s", "'soon'"]),
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


def test_a_dry_run_is_printed_as_a_table_that_is_not_cut(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = SecondsAToken(1e-3, 0.0)
    monkeypatch.setattr("scaling_jax.executors.dry_run._seconds_a_token", lambda *_: timed)
    assert call("run", "experiment.py", "--dry-run") == 0
    out = capsys.readouterr().out
    header, *rows, total = out.splitlines()
    assert tuple(header.split()) == COLUMNS
    assert [row.split()[1] for row in rows] == NAMES
    assert all(row.split()[2:6] == ["768", "4,992", "60", "3,840"] for row in rows)
    assert total == "about 8 s of training, compilation apart"
    assert [path.name for path in here.iterdir()] == ["experiment.py"]


@pytest.mark.parametrize(
    ("ended", "status"),
    [
        ({"a": "done", "b": "done"}, 0),
        ({"a": "done", "b": "diverged"}, 1),
        ({"a": "failed", "b": "done"}, 1),
        ({"a": "stopped", "b": "done"}, 0),
        ({"a": "stopped", "b": "interrupted"}, 1),
    ],
)
def test_the_exit_status_says_whether_every_run_is_done(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    ended: dict[str, str],
    status: int,
) -> None:
    monkeypatch.setattr("scaling_jax.executors.local.run_study", lambda *_: ended)
    assert call("run", "experiment.py", "--json", "--out", "elsewhere") == status
    assert one_object(capsys.readouterr().out)["runs"] == ended
    assert call("run", "experiment.py") == status
    assert capsys.readouterr().out.startswith(os.path.join("runs", "tiny") + ": ")
