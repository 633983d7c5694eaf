"""`scaling-jax forecast` and `score`: one JSON object or a text, and statuses for what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from scaling_jax import cli

STEPS = 2000


def rows(name: str, size: float, end: int, loss: float = 0.0) -> list[dict]:
    rng = np.random.default_rng(int(size))
    step = np.arange(20, end + 1, 20)
    value = 1.5 + (1e5 / size) ** 0.1 + 12 * (1 + 0.1 * rng.standard_normal()) * step**-0.5 + loss
    value = (
        value
        * np.exp(0.002 * np.random.default_rng(int(size) + 1).standard_normal(100))[: step.size]
    )
    return [
        {"run_id": name, "params": size, "steps": STEPS, "step": int(s), "loss": v}
        for s, v in zip(step, value, strict=True)
    ]


def write(path: Path, end: int = 800, change: float = 0.0) -> str:
    """Eleven finished runs and two that are at `end`."""
    table = [row for i in range(11) for row in rows(f"r{i:02d}", 1e6 * 1.5**i, STEPS)]
    table += rows("a", 3e7, end, change) + rows("b", 5e7, end)
    pl.DataFrame(table).write_csv(path)
    return str(path)


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = cli.main(list(argv))
    out = capsys.readouterr()
    return status, out.out, out.err


def test_json_is_one_object_and_nothing_else(tmp_path: Path, capsys) -> None:
    source = write(tmp_path / "t.csv")
    status, out, err = said(capsys, "forecast", source, "--json", "--backtest", "--observed", "0.5")
    doc = json.loads(out)
    assert status == 0
    assert err == ""
    assert out.count("\n") == 1
    assert [run["run_id"] for run in doc["runs"]] == ["a", "b"]
    for run in doc["runs"]:
        assert (run["observed_step"], run["horizon_step"]) == (800, 2000)
        assert run["interval"][0] < run["loss"] < run["interval"][1]
    (group,) = doc["backtest"]["run"]["groups"]
    assert group["n_curves"] == 11
    assert set(group["baselines"]) == {"last_value", "power_law", "power_offset"}


def test_text_shows_forecasts_intervals_and_the_backtest(tmp_path: Path, capsys) -> None:
    status, out, _ = said(capsys, "forecast", write(tmp_path / "t.csv"), "--backtest")
    assert status == 0
    assert "90% interval" in out and "power offset" in out and "covered" in out
    finished = write(tmp_path / "u.csv", STEPS)
    status, out, _ = said(capsys, "forecast", finished)
    assert (status, out) == (0, "No run is unfinished.\n")
    status, out, _ = said(capsys, "forecast", finished, "--json")
    assert json.loads(out) == {"runs": [], "backtest": None, "refused": [], "stops": None}


def test_a_picture_is_drawn(tmp_path: Path, capsys) -> None:
    source, picture = write(tmp_path / "t.csv"), tmp_path / "out.svg"
    assert said(capsys, "forecast", source, "--plot", str(picture))[0] == 0
    assert picture.read_text().lstrip().startswith("<?xml")
    status, _, err = said(capsys, "forecast", source, "--plot", "out.pdf")
    assert status == 2 and "out.pdf" in err
    (tmp_path / "a.png").mkdir()
    status, _, err = said(capsys, "forecast", source, "--plot", str(tmp_path / "a.png"))
    assert status == 2 and "is a folder" in err
    finished = write(tmp_path / "u.csv", STEPS)
    status, _, err = said(capsys, "forecast", finished, "--plot", str(picture))
    assert status == 2 and "--backtest draws" in err
    plot = str(tmp_path / "b.png")
    assert said(capsys, "forecast", finished, "--backtest", "--plot", plot)[0] == 0
    assert Path(plot).read_bytes().startswith(b"\x89PNG")


def test_which_runs_may_stop_is_said_by_the_law_that_is_named(tmp_path: Path, capsys) -> None:
    source = write(tmp_path / "t.csv")
    assert "may stop" not in said(capsys, "forecast", source)[1]
    status, out, err = said(capsys, "forecast", source, "--may-stop", "l_n")
    assert (status, err) == (0, "") and "may stop" in out.splitlines()[1]
    assert "moves no exponent by more than 10%" in " ".join(out.split())
    assert "These go on:" in out
    status, out, err = said(capsys, "forecast", source, "--may-stop", "l_n", "--json")
    doc = json.loads(out)
    assert (status, err) == (0, "") and set(doc["stops"]) == {"law", "rule", "exponents", "runs"}
    assert [run["run_id"] for run in doc["stops"]["runs"]] == ["a", "b"]
    for law, says in (("l_nss", "Did you mean"), ("b_crit", "no law of the loss"), ("l_nd", "D=")):
        status, out, err = said(capsys, "forecast", source, "--may-stop", law)
        assert status == 2 and out == "" and says in err


def test_a_rule_that_is_refused_is_a_sentence_and_no_failure(tmp_path: Path, capsys) -> None:
    few = ["--where", "params < 2e6 OR run_id = 'b'", "--may-stop", "l_ns"]
    source = write(tmp_path / "t.csv")
    status, out, err = said(capsys, "forecast", source, *few)
    assert (status, err) == (0, "") and "may stop is not known yet, by l_ns" in out
    status, out, err = said(capsys, "forecast", source, *few, "--json")
    assert status == 0 and json.loads(out)["stops"] is None and "not known yet" in err


def test_a_study_is_judged_by_the_law_that_it_declares(tmp_path: Path, monkeypatch, capsys) -> None:
    from scaling_jax.records import store

    monkeypatch.setattr(store, "declared_laws", lambda _: ("b_crit", "l_n", "l_ns"))
    out = said(capsys, "forecast", write(tmp_path / "t.csv"), "--json")[1]
    assert json.loads(out)["stops"]["law"] == "l_n"


def test_errors_on_another_set_stand_in_for_ones_own(tmp_path: Path, capsys) -> None:
    other = write(tmp_path / "other.csv", STEPS)
    source = write(tmp_path / "t.csv")
    alone = ["--where", "run_id = 'a'"]
    doc = json.loads(said(capsys, "forecast", source, *alone, "--json")[1])
    assert "uncalibrated" in doc["runs"][0]["flags"]
    with_other = [*alone, "--calibration", other]
    doc = json.loads(said(capsys, "forecast", source, *with_other, "--json")[1])
    assert any("another set of curves" in flag for flag in doc["runs"][0]["flags"])
    assert "uncalibrated" not in doc["runs"][0]["flags"]
    assert "12 of another set" in said(capsys, "forecast", source, *with_other)[1]
    status, _, err = said(capsys, "forecast", source, "--calibration", str(tmp_path / "no.csv"))
    assert status == 2 and "There is no" in err


def test_a_table_without_declared_ends_is_told_of_the_horizon(tmp_path: Path, capsys) -> None:
    pl.read_csv(write(tmp_path / "t.csv")).drop("steps").write_csv(tmp_path / "u.csv")
    status, out, _ = said(capsys, "forecast", str(tmp_path / "u.csv"))
    assert status == 0 and "--horizon STEPS" in out


def test_a_seal_is_pending_then_judged_and_never_written_over(tmp_path: Path, capsys) -> None:
    source, seal = write(tmp_path / "t.csv"), str(tmp_path / "a.json")
    assert said(capsys, "forecast", source, "--seal", seal)[0] == 0
    before = Path(seal).read_bytes()
    status, out, err = said(capsys, "forecast", source, "--seal", seal)
    assert status == 2 and out == "" and "never written over" in err
    assert Path(seal).read_bytes() == before
    status, out, _ = said(capsys, "score", seal, source, "--json")
    doc = json.loads(out)
    assert status == 0 and doc["summary"] is None
    assert [row["run_id"] for row in doc["pending"]] == ["a", "b"]
    later = write(tmp_path / "later.csv", STEPS)
    status, out, _ = said(capsys, "score", seal, later, "--json")
    doc = json.loads(out)
    assert status == 0 and not doc["pending"] and not doc["changed"]
    assert doc["summary"]["n"] == 2
    assert (
        doc["summary"]["median_error"] < doc["summary"]["baselines"]["last_value"]["median_error"]
    )
    text = said(capsys, "score", seal, later)[1]
    assert "2 sealed forecasts of 2 runs" in text and "covered" in text


def test_score_calls_runs_by_the_names_that_forecast_calls_them_by(tmp_path: Path, capsys) -> None:
    seal, sources = str(tmp_path / "a.json"), []
    for name, end, change in (("t", 800, 0.0), ("later", STEPS, 0.0), ("changed", STEPS, 0.01)):
        path = write(tmp_path / f"{name}.csv", end, change)
        pl.read_csv(path).with_columns(name="run " + pl.col("run_id")).write_csv(path)
        sources.append(path)
    assert "  run a " in said(capsys, "forecast", sources[0], "--seal", seal)[1]
    assert "run a" in said(capsys, "score", seal, sources[0])[1]
    judged = said(capsys, "score", seal, sources[1])[1]
    assert "  run a " in judged and "  run b " in judged
    status, text, err = said(capsys, "score", seal, sources[2])
    assert status == 1 and "run a: its losses" in text and "changed under a seal: run a" in err


def test_data_changed_under_a_seal_is_named_and_ends_with_1(tmp_path: Path, capsys) -> None:
    seal = str(tmp_path / "a.json")
    said(capsys, "forecast", write(tmp_path / "t.csv"), "--seal", seal)
    changed = write(tmp_path / "later.csv", STEPS, change=0.01)
    status, out, err = said(capsys, "score", seal, changed, "--json")
    doc = json.loads(out)
    assert status == 1 and "changed under a seal: a" in err
    assert [row["run_id"] for row in doc["judged"]] == ["b"]
    assert [row["run_id"] for row in doc["changed"]] == ["a"]
    Path(seal).write_text(Path(seal).read_text().replace('"level": 0.9', '"level": 0.5'))
    status, _, err = said(capsys, "score", seal, changed)
    assert status == 2 and "edited after it was sealed" in err


@pytest.mark.parametrize(
    ("argv", "status", "says"),
    [
        (["--horizon", "500"], 2, "every run has come to horizon 500"),
        (["--horizon", "0"], 2, "above 0"),
        (["--observed", "0.5"], 2, "give --backtest too"),
        (["--backtest", "--observed", "2"], 2, "share of a run"),
        (["--backtest", "--observed", "half"], 2, "takes numbers"),
        (["--level", "90"], 2, "level"),
        (["--columns", "loss=los"], 2, "Did you mean 'loss'"),
        (["--columns", "los=loss"], 2, "No role 'los'"),
        (["--larger", "1e3"], 2, "not beyond the largest"),
        (["--schedule", "cosine"], 1, "lr=COLUMN"),
        (["--where", "run_id = 'r00'", "--larger", "1e9"], 1, "3 smaller finished sizes"),
        (["--where", "step < 30 OR run_id = 'r00'"], 1, "a forecast needs"),
    ],
)
def test_what_is_wrong_ends_with_a_message(
    argv: list[str], status: int, says: str, tmp_path: Path, capsys
) -> None:
    got, out, err = said(capsys, "forecast", write(tmp_path / "t.csv"), *argv, "--json")
    assert got == status and says in err
    assert out == "" and err.startswith("scaling-jax: ") and err.count("\n") == 1


def test_wrong_requests_of_score(tmp_path: Path, capsys) -> None:
    source = write(tmp_path / "t.csv")
    status, _, err = said(capsys, "score", source)
    assert status == 2 and "and then the source" in err
    status, _, err = said(capsys, "score", source, source)
    assert status == 2 and "JSON" in err
    status, _, err = said(capsys, "forecast", str(tmp_path / "none.csv"))
    assert status == 2 and "There is no" in err


def test_the_accelerator_is_left_alone_and_flax_is_not_needed(tmp_path: Path) -> None:
    code = (
        f"import sys; from scaling_jax import cli; "
        f"status = cli.main(['forecast', {write(tmp_path / 't.csv')!r}, '--json']);"
        "assert 'flax' not in sys.modules; sys.exit(status)"
    )
    env = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["runs"]) == 2
