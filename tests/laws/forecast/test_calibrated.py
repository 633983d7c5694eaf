"""Which held-out errors stand behind an interval: the table's own, or another set's, widened."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from scaling_jax.errors import RequestError
from scaling_jax.laws.forecast import calibrated as module
from scaling_jax.laws.forecast.calibrated import HeldOut, OtherSet, calibrate, other_set
from scaling_jax.laws.forecast.calibration import OTHER_SET
from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.forecast.describe import describe_forecasts
from scaling_jax.laws.forecast.predict import Question
from scaling_jax.laws.forecast.run import forecast
from scaling_jax.records import Records
from scaling_jax.records.store import load


def asked(curve: Curve, finished: list[Curve]) -> Question:
    return Question(curve.until(500.0), 2000.0, finished, None)


def table(curves: list[Curve], path, cut: tuple[str, ...] = (), **names: str) -> Records:
    rows = [
        {"run_id": c.run_id, "step": int(s), "loss": v, "params": c.size, "steps": 2000}
        for c in curves
        for s, v in zip(c.step, c.loss, strict=True)
        if c.run_id not in cut or s <= 500
    ]
    pl.DataFrame(rows).rename(names).write_csv(path)
    return load(path)


def test_a_set_with_enough_runs_keeps_its_own_errors(curves) -> None:
    question = asked(curves[-1], curves[:-1])
    other = OtherSet("other", tuple(curves))
    with_other = HeldOut(curves[:-1], other, 0.9).of_ends([question])(question)
    alone = HeldOut(curves[:-1], None, 0.9).of_ends([question])(question)
    np.testing.assert_array_equal(with_other.values, alone.values)
    assert with_other.another is None and with_other.notes == ()


def test_a_set_with_too_few_has_those_of_the_other_widened(curves) -> None:
    question = asked(replace(curves[0], run_id="mine"), [])
    scores = HeldOut([], OtherSet("other", tuple(curves)), 0.9).of_ends([question])(question)
    own = calibrate(curves, [4.0], most=0)
    assert scores.another == "other" and "another set" in scores.notes[0]
    np.testing.assert_allclose(np.sort(scores.values), np.sort(OTHER_SET * own.score))
    # The same run in both tables tells nothing new of itself.
    itself = asked(curves[0], [])
    of_itself = HeldOut([], OtherSet("other", tuple(curves)), 0.9).of_ends([itself])(itself)
    assert len(of_itself.values) == len(curves) - 1


def test_another_set_with_too_few_is_said_to_have_too_few(curves) -> None:
    question = asked(replace(curves[0], run_id="mine"), [])
    scores = HeldOut([], OtherSet("other", tuple(curves[:4])), 0.9).of_ends([question])(question)
    assert scores.another is None and len(scores.values) == 0
    assert scores.notes == ("4 finished runs of other tell of errors this far: too few",)


def test_held_out_runs_have_no_more_help_than_there_is(curves, monkeypatch) -> None:
    seen: list[int] = []
    whole = module.ask

    def counted(group, curve, step, finished):
        seen.append(len(finished))
        return whole(group, curve, step, finished)

    monkeypatch.setattr(module, "ask", counted)
    calibrate(curves, [4.0], most=2)
    assert max(seen) == 2 and min(seen) == 0  # the smallest has no smaller


def test_forecasts_of_a_single_run_take_errors_from_elsewhere(curves, tmp_path) -> None:
    mine = table([replace(curves[0], run_id="mine")], tmp_path / "mine.csv", ("mine",), loss="nats")
    other = table(curves, tmp_path / "other.csv")
    columns = {"loss": "nats"}
    (alone,) = forecast(mine, columns).runs
    assert "uncalibrated" in alone.flags
    found = forecast(mine, columns, calibration=other)
    (run,) = found.runs
    assert run.another == str(tmp_path / "other.csv") and run.interval.calibrated
    assert run.interval.n_curves == len(curves)
    assert any("another set of curves" in flag for flag in run.to_json()["flags"])
    text = describe_forecasts(found)
    assert f"{len(curves)} of another set" in text and "widened" in text


def test_a_backtest_of_few_runs_is_judged_by_the_other_set(curves, tmp_path) -> None:
    mine = table(curves[:3], tmp_path / "mine.csv")
    other = table([replace(c, run_id=f"o{c.run_id}") for c in curves], tmp_path / "other.csv")
    found = forecast(mine, backtest=True, observed=[0.5], calibration=other)
    assert found.another_tests == str(tmp_path / "other.csv")
    assert found.backtests is not None
    assert all(ends.n_curves > 9 and ends.calibrated for ends in found.backtests["run"].intervals)
    assert "the errors on the curves of another set" in describe_forecasts(found).replace("\n", " ")
    enough = forecast(other, backtest=True, observed=[0.5], calibration=mine)
    assert enough.another_tests is None


def test_a_source_without_a_finished_run_cannot_calibrate(curves, tmp_path) -> None:
    cut = table([curves[0]], tmp_path / "cut.csv", (curves[0].run_id,))
    with pytest.raises(RequestError, match="no finished run whose errors"):
        other_set(cut, None)
