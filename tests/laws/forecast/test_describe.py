"""Forecasts in words: what stands behind an interval, which runs may stop, and no list too long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scaling_jax.laws.forecast.backtest import backtest_runs
from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.forecast.describe import (
    by_reason,
    coverage_of,
    describe_backtest,
    describe_forecasts,
    forecast_rows,
    named,
    rule_of,
)
from scaling_jax.laws.forecast.run import Forecasts, Request, RunForecast
from scaling_jax.laws.forecast.stop import _STOPPED, Stops, Verdict

EXPONENTS = {"alpha_N": (0.2, 0.1, 0.3)}


@pytest.fixture(scope="module")
def found(curves) -> Forecasts:
    """Two unfinished runs, the larger one first, under names that are not their ids."""
    test = backtest_runs(curves, [0.5])
    by_id = {o.run_id: (o, i) for o, i in zip(test.outcomes, test.intervals, strict=True)}
    runs = tuple(
        RunForecast(
            name, 1000.0, 2000.0, by_id[name][0].prediction, by_id[name][1], by_id[name][0].question
            .observed.size,
        )
        for name in ("r13", "r02")
    )  # fmt: skip
    named = tuple(replace(curve, name=f"run {curve.run_id[1:]}") for curve in curves)
    request = Request(None, None, None, None, None, None, 0.9)  # pyright: ignore[reportArgumentType]
    return Forecasts(request, runs, (), {"run": test}, named, (), ())


def stops(*verdicts: Verdict) -> Stops:
    return Stops("l_n", "a run may be stopped where ...", EXPONENTS, verdicts)


def test_runs_stand_in_the_order_of_their_sizes_by_their_names(found) -> None:
    heads, *rows = forecast_rows(found, None)
    assert "may stop" not in heads
    assert [row[0] for row in rows] == ["run 02", "run 13"]
    assert rows[0][heads.index("at step")] == "1,000"


def test_which_may_stop_and_why_the_others_go_on(found) -> None:
    judged = stops(
        Verdict("r13", False, {"alpha_N": 0.3}, "alpha_N would move by up to 30.0%"),
        Verdict("r02", True, {"alpha_N": 0.01}, "alpha_N would move by at most 1.0%"),
    )
    heads, *rows = forecast_rows(found, judged)
    assert [row[heads.index("may stop")] for row in rows] == ["yes", "no"]
    text = describe_forecasts(found, judged)
    assert "May stop, for l_n (alpha_N 0.2 (0.1 to 0.3)): 1 of 2 runs may be stopped" in text
    assert "These go on:\n  run 13: alpha_N would move by up to 30.0%" in text
    assert "at most 1.0%" not in text
    why = "Which runs may stop is not known yet, by l_n: too few"
    assert why in describe_forecasts(found, None, why)


def test_a_run_that_was_stopped_is_no_run_that_may_be(found) -> None:
    gone = Verdict("r02", True, None, _STOPPED)
    judged = stops(Verdict("r13", False, None, "other"), gone)
    assert "0 of 1 run may be stopped, beside 1 that was" in rule_of(judged)
    status = tuple(
        replace(c, status="stopped" if c.run_id == "r02" else None) for c in found.curves
    )
    heads, *rows = forecast_rows(replace(found, curves=status), judged)
    assert [row[heads.index("may stop")] for row in rows] == ["stopped", "no"]


def test_a_reason_is_said_once_and_many_are_counted() -> None:
    rows = [{"run_id": f"r{k}", "reason": "late"} for k in range(5)]
    assert by_reason(rows) == ["r0, r1, r2 and 2 more: late"]
    rows = [{"run_id": f"r{k}", "reason": f"reason {k}"} for k in range(20)]
    said = by_reason(rows)
    assert len(said) == 9 and said[-1] == "12 runs more, for other reasons; --json has them all"


def test_a_reason_that_names_its_run_is_one_for_all() -> None:
    rows = [{"run_id": run, "reason": f"Run the {run} has no points yet"} for run in "ab"]
    named_rows = named(rows, {"a": "the a", "b": "the b"})
    assert by_reason(named_rows) == ["the a, the b: has no points yet"]


def test_parts_of_few_steps_are_said(found) -> None:
    epochs = found.runs[0]._replace(observed_step=0.25, horizon_step=0.5)
    heads, row, *_ = forecast_rows(replace(found, runs=(epochs,)), None)
    assert row[heads.index("at step")] == "0.25" and row[heads.index("to step")] == "0.5"


def test_a_backtest_says_what_its_intervals_rest_on(curves) -> None:
    test = backtest_runs(curves, [0.5])
    assert coverage_of(test) == "Covered: by 90% intervals from the errors on the other curves"
    assert "another set, other.csv, widened" in coverage_of(test, "other.csv")
    few = backtest_runs(curves[:3], [0.5])
    assert "3 of 3 had too few of them" in coverage_of(few)
    none: list[Curve] = []
    assert describe_backtest(backtest_runs(none)) == [
        "No run is finished: there is nothing to test such forecasts on."
    ]
