"""Forecasts of a table: which runs are asked, what they rest on, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forecast.calibrated import calibrate
from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.forecast.describe import describe_forecasts
from scaling_jax.laws.forecast.run import forecast
from scaling_jax.records import Records
from scaling_jax.records.schema import CURVE_COLUMNS, RUN_COLUMNS
from scaling_jax.records.store import load


def table(curves: list[Curve], path) -> Records:
    """A CSV of the curves, with their declared steps, sizes and status."""
    rows = [
        {
            "run_id": curve.run_id, "step": int(step), "loss": loss, "N": curve.size,
            "steps": None if curve.horizon is None else int(curve.horizon), "status": curve.status,
        }
        for curve in curves
        for step, loss in zip(curve.step, curve.loss, strict=True)
    ]  # fmt: skip
    pl.DataFrame(rows).write_csv(path)
    return load(path)


def finished(curves: list[Curve]) -> list[Curve]:
    return [replace(curve, status="done") for curve in curves]


def running(curve: Curve, step: float, **changes) -> Curve:
    return replace(curve.until(step), status="running", **changes)


def test_every_unfinished_run_has_a_forecast_near_its_end(curves, tmp_path) -> None:
    cut = [running(curves[3], 600.0), running(curves[12], 1000.0)]
    others = [each for i, each in enumerate(finished(curves)) if i not in (3, 12)]
    found = forecast(table([*others, *cut], tmp_path / "t.csv"))
    assert [run.run_id for run in found.runs] == ["r03", "r12"]
    assert found.backtests is None
    for run, whole in zip(found.runs, (curves[3], curves[12]), strict=True):
        assert run.horizon_step == 2000.0
        assert abs(run.prediction.loss - whole.final_loss) < 0.02
        assert run.interval.low < run.prediction.loss < run.interval.high
        assert run.interval.calibrated and run.interval.n_curves == 12
    doc = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert set(doc["runs"][0]) == {
        "run_id", "observed_step", "horizon_step", "loss", "interval", "method", "flags"
    }  # fmt: skip
    assert doc["backtest"] is None
    assert "r03" in describe_forecasts(found)


def test_the_backtest_comes_with_the_finished_runs_alone(curves, tmp_path) -> None:
    cut = running(curves[0], 600.0)
    records = table([*finished(curves[1:]), cut], tmp_path / "t.csv")
    found = forecast(records, backtest=True, observed=[0.5])
    assert found.backtests is not None and list(found.backtests) == ["run", "larger"]
    (group,) = found.to_json()["backtest"]["run"]["groups"]
    assert group["n_curves"] == 13 and group["baselines"]["last_value"]["n"] == 13
    text = describe_forecasts(found)
    assert "power offset" in text
    assert f"{group['covered']} of 13" in text


def test_a_horizon_is_asked_of_the_runs_that_have_not_reached_it(curves, tmp_path) -> None:
    short = curves[5].until(900.0)
    records = table([replace(each, horizon=None) for each in (*curves[:5], short)],
                    tmp_path / "t.csv")  # fmt: skip
    found = forecast(records, horizon=2000.0)
    assert [run.run_id for run in found.runs] == ["r05"]
    assert abs(found.runs[0].prediction.loss - curves[5].final_loss) < 0.03
    assert not found.runs[0].interval.calibrated
    assert "uncalibrated" in found.runs[0].flags
    with pytest.raises(RequestError, match="every run has come to horizon"):
        forecast(records, horizon=500.0)
    with pytest.raises(RequestError, match="above 0"):
        forecast(records, horizon=-1.0)


def test_runs_that_cannot_be_forecast_are_named_with_the_reason(curves, tmp_path) -> None:
    cut = [
        running(curves[0], 20.0),
        replace(curves[1].until(800.0), status="diverged"),
        running(curves[2], 800.0, horizon=None),
        running(curves[3], 800.0),
    ]
    found = forecast(table([*finished(curves[4:]), *cut], tmp_path / "t.csv"))
    assert [run.run_id for run in found.runs] == ["r03"]
    reasons = {row["run_id"]: row["reason"] for row in found.refused}
    assert "1 point" in reasons["r00"]
    assert "diverged at step 800" in reasons["r01"]
    assert "--horizon" in reasons["r02"]
    assert "--horizon" in describe_forecasts(found)
    with pytest.raises(WorkError, match="r01: diverged"):
        forecast(table([*finished(curves[4:]), cut[1]], tmp_path / "u.csv"))


def test_a_larger_model_is_one_more_run_and_not_an_unfinished_one(curves, tmp_path) -> None:
    found = forecast(table(finished(curves), tmp_path / "t.csv"), larger=5e8)
    assert not found.runs and [run.run_id for run in found.new_runs] == ["N=5e+08"]
    (row,) = found.to_json()["runs"]
    assert row["observed_step"] is None and row["horizon_step"] == 2000.0
    (sealed,) = found.to_seal()
    assert sealed["size"] == 5e8 and set(sealed["baselines"]) == {"last_size", "power_in_size"}
    with pytest.raises(WorkError, match="3 smaller finished sizes"):
        forecast(table(finished(curves[:1]), tmp_path / "u.csv"), larger=5e8)


def test_finished_runs_are_asked_as_far_as_the_unfinished_ones_are(curves) -> None:
    known = calibrate(curves, [4.2, 4.25, 2.0])
    assert set(known.run_ids) == {curve.run_id for curve in curves}
    assert len(set(np.round(known.ratio, 6))) == 2
    assert known.ratio.max() >= 4.25
    assert len(known.scores(4.2)) == len(curves)


def study(schedule: str, end: int) -> Records:
    """Runs of a study folder under a declared schedule; the last is at `end` of 2,000 steps."""
    runs, curves = [], []
    for i, last in enumerate([2000] * 5 + [end]):
        step = np.arange(20, 2001, 20)
        rate = 1e-3 * (0.5 * (1 + np.cos(np.pi * step / 2000)) if schedule == "cosine" else 1.0)
        rate = np.broadcast_to(rate, step.shape)
        loss = 2 - 0.05 * i + 20 * np.cumsum(rate / 1e-3 * 20) ** -0.5 - 100 * (1e-3 - rate)
        runs.append({
            "run_id": f"r{i}", "name": f"r{i}", "status": "done" if last == 2000 else "running",
            "params_non_embedding": 10**6 * (i + 1), "steps": 2000, "schedule": schedule,
            "lr_peak": 1e-3, "warmup_steps": 0, "final_fraction": 0.0, "decay_fraction": 0.2,
            "batch_tokens": 512,
        })  # fmt: skip
        curves += [
            {"run_id": f"r{i}", "step_start": int(s) - 20, "step": int(s), "lr": r, "val_loss": v}
            for s, r, v in zip(step, rate, loss, strict=True)
            if s <= last
        ]
    kinds = {str: pl.String, int: pl.Int64, float: pl.Float64, bool: pl.Boolean}

    def frame(rows, columns):
        schema = {name: kinds[kind] for name, kind in columns.items()}
        return pl.DataFrame([{name: row.get(name) for name in columns} for row in rows], schema)

    return Records(frame(runs, RUN_COLUMNS), frame(curves, CURVE_COLUMNS), "study")


def test_the_declared_schedule_is_the_plan_of_an_unfinished_run() -> None:
    """At 40 % of a cosine to 0 most of the fall is ahead; the finished runs fell by .1 nats."""
    (run,) = forecast(study("cosine", 800)).runs
    whole = 2 - 0.25 + 20 * np.sum(
        [20 * 0.5 * (1 + np.cos(np.pi * s / 2000)) for s in range(20, 2001, 20)]
    ) ** -0.5 - 0.1  # fmt: skip
    assert run.prediction.loss == pytest.approx(whole, abs=0.02)
    assert "multi_power" in run.prediction.method


def test_another_schedule_is_asked_of_running_and_of_new_runs() -> None:
    found = forecast(study("cosine", 800), schedule="constant")
    assert [run.run_id for run in found.runs] == ["r5"]
    assert len(found.new_runs) == 5 and found.new_runs[0].run_id == "constant N=1e+06"
    covered = 400 + 1000 / np.pi * np.sin(0.4 * np.pi) + 1200  # steps at the peak
    assert found.runs[0].prediction.loss == pytest.approx(1.75 + 20 * covered**-0.5, abs=0.01)
    sooner = forecast(study("cosine", 800), schedule="constant", horizon=500)
    assert not sooner.runs and len(sooner.new_runs) == 5


def test_helpers_that_stop_short_are_cut_in_the_calibration_too(monkeypatch) -> None:
    from scaling_jax.laws.forecast import calibrated as module

    step = np.geomspace(10, 1e4, 40).round()
    curves = [
        Curve(f"r{i}", f"r{i}", step, 2 + 8 * step**-0.3 + 1e-3 * i, None, None, 1e5 * (i + 1),
              None, "done", None, None)
        for i in range(3)
    ]  # fmt: skip
    seen = []
    monkeypatch.setattr(
        module, "ask", lambda group, curve, at, helpers: seen.append((curve.end, helpers))
    )
    monkeypatch.setattr(module, "outcomes_of", lambda asked: ([], []))
    monkeypatch.setattr(module, "calibration_of", lambda outcomes: None)
    module.calibrate(curves, [4.0], reach=0.25)
    assert seen and all(
        other.end <= 0.25 * end and other.step.size for end, helpers in seen for other in helpers
    )
    seen.clear()
    module.calibrate(curves, [4.0])
    assert all(other.end == end for end, helpers in seen for other in helpers)
