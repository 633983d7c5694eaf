"""`plan --advise` names the next runs, `status` the ends of runs under way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from scaling_jax import cli
from scaling_jax.errors import WorkError
from scaling_jax.laws.forms import L_NS, find_law
from scaling_jax.records import store
from scaling_jax.records.store import Records

TRUTH = {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}
STEPS = {"N_c": 3e6, "S_c": 30.0, "alpha_N": 0.12, "alpha_S": 0.4}


@pytest.fixture
def table(tmp_path: Path) -> str:
    size, tokens = (
        axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 3e8, 5), np.geomspace(1e9, 2e10, 5))
    )
    loss = find_law("l_nd_chinchilla").predict(TRUTH, N=size, D=tokens)
    loss = loss * np.exp(0.003 * np.random.default_rng(0).normal(size=size.size))
    run = [f"r{k}" for k in range(size.size)]
    path = tmp_path / "runs.csv"
    pl.DataFrame({"run_id": run, "size": size, "D": tokens, "loss": loss}).write_csv(path)
    return str(path)


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = cli.main(list(argv))
    out = capsys.readouterr()
    return status, out.out, out.err


def test_the_plan_is_made_on_the_runs_and_names_the_next(
    table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("plan", "--flops", "1e21", "--advise", table, "--columns", "N=size")
    status, out, _ = said(capsys, *argv, "--json")
    doc = json.loads(out)
    assert status == 0 and doc["advice"]["target"]["N"] == pytest.approx(doc["params"])
    assert doc["advice"]["target"]["D"] == pytest.approx(doc["tokens"])
    assert doc["advice"]["runs"] and doc["advice"]["columns"]["N"] == "size"
    status, out, _ = said(capsys, *argv, "--constants", "besiroglu2024")
    assert status == 0 and "Train next, in this order" in out and "besiroglu2024" in out


def test_columns_without_runs_to_advise_on_are_a_wrong_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, out, err = said(capsys, "plan", "--flops", "1e21", "--columns", "N=size")
    assert status == 2 and out == "" and "--advise" in err


@pytest.fixture
def under_way(monkeypatch: pytest.MonkeyPatch) -> Records:
    """Runs of which one has trained a third of its steps, in the place of any folder."""
    runs, curves = [], []
    for k, size in enumerate(np.repeat(np.geomspace(3e3, 2e5, 5), 2)):
        step = np.unique(np.geomspace(10, 9000, 60).round())
        step = step[step <= (3000 if k == 5 else 9000)]
        loss = L_NS.predict(STEPS, N=size, S=step)
        loss = loss * np.exp(0.001 * np.random.default_rng(k).normal(size=step.size))
        runs.append({"run_id": f"r{k}", "name": f"run {k}", "study": "tiny", "steps": 9000,
                     "status": "running" if k == 5 else "done", "params_non_embedding": size,
                     "schedule": "constant", "warmup_steps": 5})  # fmt: skip
        curves.append(pl.DataFrame({"run_id": f"r{k}", "step": step, "val_loss": loss}))
    constant = {"lr_peak": pl.lit(0.01), "seed": pl.lit(0)}
    frame = pl.concat(curves).with_columns(
        step_start=pl.col("step"), tokens=512 * pl.col("step"), train_loss=pl.lit(None, pl.Float64)
    )
    records = Records(pl.DataFrame(runs).with_columns(**constant), frame, "tiny")
    monkeypatch.setattr(store, "load", lambda _: records)
    return records


def test_status_shows_how_a_run_under_way_will_end(
    under_way: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = said(capsys, "status", "tiny", "--json")
    doc = json.loads(out)
    assert status == 0 and len(doc["runs"]) == under_way.runs.height
    (found,) = doc["forecasts"]
    size = under_way.runs["params_non_embedding"][5]
    end = float(L_NS.predict(STEPS, N=size, S=9000.0))
    assert found["run_id"] == "r5" and found["loss"] == pytest.approx(end, rel=0.01)
    status, out, err = said(capsys, "status", "tiny", "--may-stop", "l_ns")
    header, *rows = out.splitlines()
    assert status == 0 and err == "" and header.split()[-4:] == ["forecast", "low", "high",
                                                                 "may_stop"]  # fmt: skip
    assert rows[5].split()[-1] in ("yes", "no") and rows[4].split()[-1] == "-"


def test_status_stands_where_a_forecast_fails(
    under_way: Records, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from scaling_jax.laws.forecast import monitor

    def fail(*_: object, **__: object) -> None:
        raise ValueError("odd curves")

    monkeypatch.setattr(monitor, "forecast", fail)
    status, out, err = said(capsys, "status", "tiny")
    assert status == 0 and len(out.splitlines()) == 11
    assert err == "scaling-jax: no forecast: ValueError: odd curves\n"


def test_status_stands_and_forecasts_where_the_rule_is_refused(
    under_way: Records, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from scaling_jax.laws.forecast import monitor

    def fail(*_: object, **__: object) -> None:
        raise WorkError("two sizes")

    monkeypatch.setattr(monitor, "stops_of", fail)
    status, out, err = said(capsys, "status", "tiny", "--may-stop", "l_ns")
    assert status == 0 and out.splitlines()[0].split()[-1] == "high"
    assert err == "scaling-jax: it is not known yet what may stop: two sizes\n"


def test_an_unknown_law_of_the_rule_is_a_wrong_request(
    under_way: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = said(capsys, "status", "tiny", "--may-stop", "l_nss")
    assert status == 2 and out == "" and "l_ns" in err
