"""Larger models and other schedules: asked, left out, refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forecast.curve import Curve, curves_of
from scaling_jax.laws.forecast.new_runs import (
    TIMES,
    ask_larger,
    ask_schedule,
    backtest_larger,
    backtest_schedules,
    calibrate_larger,
    larger_models,
    other_schedules,
    reach_of,
)
from scaling_jax.records import load

DATA = Path(__file__).parents[3].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the real tables are not here")


def test_a_larger_model_is_forecast_where_the_law_puts_it(curves) -> None:
    def loss(size, step):
        return 1.5 + (1e6 / size) ** 0.25 + 12 * step**-0.5

    exact = [replace(curve, loss=loss(curve.size, curve.step)) for curve in curves]
    question = ask_larger(exact, 1e9, None)
    assert question.horizon == 2000.0 and not question.observed.step.size
    (found,) = larger_models([question])
    assert not isinstance(found, WorkError)
    assert found.loss == pytest.approx(loss(1e9, 2000.0), abs=0.01)
    assert found.baselines["last_size"] > found.loss
    assert reach_of(question) == pytest.approx(1e9 / (1e6 * 1.5**13))


def test_larger_runs_are_forecast_from_runs_that_much_smaller(curves) -> None:
    test = backtest_larger(curves)
    assert test.groups == [f"{times:g}" for times in TIMES]
    for outcome in test.outcomes:
        largest = max(curve.size or 0 for curve in outcome.question.finished)
        size = outcome.question.observed.size
        assert size is not None and largest <= size / float(outcome.group)
        assert outcome.observed_step is None
    assert test.summary("1.5")["median_error"] < 0.05
    scores = calibrate_larger(curves, 2.0).scores(2.0)
    assert len(scores) == len([o for o in test.outcomes if o.group == "2"])


def test_what_cannot_be_asked_of_a_larger_model(curves) -> None:
    with pytest.raises(RequestError, match="not beyond the largest"):
        ask_larger(curves, 1e6, None)
    with pytest.raises(RequestError, match="above 0"):
        ask_larger(curves, float("nan"), None)
    with pytest.raises(WorkError, match="3 smaller finished sizes, and there is 1"):
        ask_larger(curves[:1], 1e12, None)
    with pytest.raises(WorkError, match="N=COLUMN"):
        ask_larger([replace(curve, size=None) for curve in curves], 1e12, None)


def scheduled(name: str, end: float, fall: float) -> Curve:
    """Constant rate, then a linear fall to a tenth over the last share; loss falls with it."""
    step = np.arange(20.0, end + 1, 20.0)
    done = np.clip((step / end - 1 + fall) / fall, 0, 1) if fall else np.zeros(step.size)
    rate = 1e-3 * (1 - 0.9 * done)
    loss = 2 + 20 * np.cumsum(rate / 1e-3 * 20) ** -0.5 - 80 * (1e-3 - rate)
    return Curve(name, name, step, loss, lr=rate, size=1e6, schedule=name)


SCHEDULES = [("constant", 4000.0, 0.0), ("short", 2000.0, 0.4), ("long", 4000.0, 0.3)]


def test_a_new_run_of_every_model_is_asked_under_a_schedule() -> None:
    runs = [scheduled(*each) for each in SCHEDULES]
    other = [replace(run, run_id=run.run_id + "2", size=2e6, loss=run.loss - 0.1) for run in runs]
    questions = ask_schedule([*runs, *other], "wsd", None)
    assert [each.observed.run_id for each in questions] == ["wsd N=1e+06", "wsd N=2e+06"]
    assert all(each.horizon == 4000.0 for each in questions)
    found = other_schedules(questions)
    losses = [each.loss for each in found if not isinstance(each, WorkError)]
    assert len(losses) == 2 and losses[0] - losses[1] == pytest.approx(0.1, abs=0.02)
    assert all(each.baselines["power_offset"] > each.loss for each in found)  # pyright: ignore


def test_a_left_out_schedule_helps_nobody() -> None:
    runs = [scheduled(*each) for each in SCHEDULES]
    twin = replace(runs[1], run_id="twin", size=2e6)
    test = backtest_schedules([*runs, twin])
    for outcome in test.outcomes:
        helpers = {curve.run_id for curve in outcome.question.finished}
        if outcome.group == "short":
            assert helpers == {"constant", "long"}
        assert outcome.run_id not in helpers


def test_schedules_need_learning_rates_that_fall(curves) -> None:
    with pytest.raises(WorkError, match="lr=COLUMN"):
        ask_schedule(curves, "wsd", None)
    (found,) = other_schedules(ask_schedule([scheduled("constant", 4000.0, 0.0)], "wsd", None))
    assert isinstance(found, WorkError) and "falls" in str(found)


@needs_data
def test_schedules_of_one_model_of_multipowerlaw() -> None:
    """From the other schedules; the power law with an offset is off by .044 nats and more."""
    records = load(DATA / "multipowerlaw_curves.csv")
    curves, _ = curves_of(records, None, "params_label = '100M'")
    test = backtest_schedules(curves)
    row = test.summary()
    assert row["n_curves"] == 9
    assert row["median_error"] < 0.008
    assert row["baselines"]["power_offset"]["median_error"] > 0.03
    assert row["covered"] >= 8
