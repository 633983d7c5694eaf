"""The backtest: no look ahead, who may help, intervals from the others, coverage, real curves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scaling_jax.errors import RequestError
from scaling_jax.laws.forecast.backtest import ask, backtest_runs, coverage
from scaling_jax.laws.forecast.curve import Curve, curves_of
from scaling_jax.records import load

DATA = Path(__file__).parents[3].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the real tables are not here")


@pytest.fixture(scope="module")
def test(curves):
    return backtest_runs(curves)


def changed(curve: Curve, after: float) -> Curve:
    return replace(curve, loss=np.where(curve.step > after, curve.loss + 0.3, curve.loss))


def test_every_share_has_every_finished_run_with_errors_and_baselines(curves, test) -> None:
    assert test.groups == ["0.1", "0.25", "0.5"]
    for group in test.groups:
        row = test.summary(group)
        assert row["n"] == row["n_curves"] == len(curves)
        assert set(row["baselines"]) == {"last_value", "power_law", "power_offset"}
        assert row["median_error"] < row["baselines"]["last_value"]["median_error"]
        assert row["median_error"] <= row["p90_error"]
    errors = [test.summary(group)["median_error"] for group in test.groups]
    assert errors[2] < errors[0]


def test_a_forecast_sees_nothing_of_its_own_future(curves, test) -> None:
    """The end of one run moves by .3 nats: its own forecast and interval stay as they are."""
    one = len(curves) - 1
    other = backtest_runs([*curves[:one], changed(curves[one], 0.5 * curves[one].end)])
    for before, ends, after, new in zip(
        test.outcomes, test.intervals, other.outcomes, other.intervals, strict=True
    ):
        if before.run_id == curves[one].run_id:
            assert after.prediction == before.prediction
            assert new == ends
            assert after.measured == pytest.approx(before.measured + 0.3)


def test_smaller_and_equal_runs_help_and_branches_do_not(curves) -> None:
    run = curves[5]
    branch = replace(run, run_id="branch", loss=np.where(run.step > 1500, run.loss - 0.1, run.loss))
    asked = ask("", run, 500.0, [*curves, branch])
    assert [each.run_id for each in asked.question.finished] == [f"r{i:02d}" for i in range(5)]
    unsized = [replace(each, size=None) for each in curves]
    asked = ask("", unsized[5], 500.0, unsized)
    assert len(asked.question.finished) == len(curves) - 1
    assert asked.question.observed.end == 500.0 and asked.ratio == 4.0


def test_errors_on_branches_are_not_behind_an_interval(curves) -> None:
    branch = replace(
        curves[5], run_id="branch", loss=curves[5].loss - 0.1 * (curves[5].step > 1500)
    )
    found = backtest_runs([*curves[:6], branch], [0.5])
    behind = {o.run_id: i.n_curves for o, i in zip(found.outcomes, found.intervals, strict=True)}
    assert behind == {**{f"r{i:02d}": 6 for i in range(5)}, "r05": 5, "branch": 5}


def test_intervals_cover_what_they_say_within_one_set(test) -> None:
    for group in test.groups:
        row = test.summary(group)
        assert row["calibrated"] == row["n"]
        assert row["coverage"] >= 0.85
        assert coverage(test, 0.5, group) is not None
    inside = coverage(test, 0.5)
    assert inside is not None and 0.3 <= inside[0] / inside[1] <= 0.7
    assert coverage(test, 0.99, "0.5") is None


def test_few_runs_are_uncalibrated_and_still_have_an_interval(curves) -> None:
    few = backtest_runs(curves[:4])
    assert few.outcomes and not any(ends.calibrated for ends in few.intervals)
    for outcome, ends in zip(few.outcomes, few.intervals, strict=True):
        assert ends.low < outcome.prediction.loss < ends.high
    flags = [row["flags"] for row in few.to_json()["cases"]]
    assert all("uncalibrated" in each for each in flags)


def test_another_sets_scores_are_widened(curves, test) -> None:
    by_other = backtest_runs(curves[:6], calibration=test.calibration)
    assert all(ends.calibrated for ends in by_other.intervals)
    assert [ends.n_curves for ends in by_other.intervals] == [13] * len(by_other.intervals)


def test_short_runs_are_not_judged(curves) -> None:
    short = replace(curves[1].where(curves[1].step % 800 == 0), run_id="short")
    test = backtest_runs([*curves, short], observed=[0.5])
    (refused,) = test.refused
    assert refused["run_id"] == "short" and "a forecast needs" in refused["reason"]
    few = replace(curves[0].where(curves[0].step % 400 == 0), run_id="few", size=1.0)
    test = backtest_runs([*curves, few], observed=[0.5])
    (refused,) = test.refused
    assert refused["run_id"] == "few" and "without finished runs like it" in refused["reason"]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 10.0, float("nan")])
def test_shares_that_are_none_are_refused(curves, share: float) -> None:
    with pytest.raises(RequestError, match="share of a run between 0 and 1"):
        backtest_runs(curves, observed=[share])


@needs_data
def test_gemstones_within_the_set() -> None:
    """Known errors of the task: power law with an offset .027, .0084, .0038 nats; last value."""
    records = load(DATA / "gemstones.csv")
    curves, _ = curves_of(
        records, {"N": "params_incl_head_single_embed"}, "subset = 'hot_100b+_477'"
    )
    test = backtest_runs(curves)
    for group, limit, offset, last in (
        ("0.1", 0.009, 0.027, 0.133),
        ("0.25", 0.005, 0.0084, 0.065),
        ("0.5", 0.0027, 0.0038, 0.029),
    ):
        row = test.summary(group)
        assert row["n_curves"] == 22
        assert row["median_error"] <= limit
        assert row["baselines"]["power_offset"]["median_error"] == pytest.approx(offset, rel=0.15)
        assert row["baselines"]["last_value"]["median_error"] == pytest.approx(last, rel=0.05)
        assert 0.82 <= row["coverage"] <= 0.97
        assert row["p90_error"] <= row["baselines"]["power_offset"]["p90_error"]


@needs_data
def test_coverage_when_calibrated_on_the_other_set() -> None:
    gemstones, _ = curves_of(load(DATA / "gemstones.csv"), None, "subset = 'hot_100b+_477'")
    other, _ = curves_of(load(DATA / "multipowerlaw_curves.csv"))
    of_other = backtest_runs(other).calibration
    assert backtest_runs(gemstones, calibration=of_other).summary()["coverage"] >= 0.8
    of_gemstones = backtest_runs(gemstones).calibration
    assert backtest_runs(other, calibration=of_gemstones).summary()["coverage"] >= 0.8
