"""Figures of forecasts: what is drawn where, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from scaling_jax.errors import RequestError
from scaling_jax.laws.forecast.backtest import backtest_runs
from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.forecast.run import Forecasts, RunForecast
from scaling_jax.report.figures import forecast as figures
from scaling_jax.report.figures import render


@pytest.fixture(scope="module")
def curves() -> list[Curve]:
    rng = np.random.default_rng(0)
    step = np.arange(20.0, 2001.0, 20.0)
    return [
        Curve(
            f"r{i:02d}", f"r{i:02d}", step,
            (2 - 0.03 * i + 12 * (1 + 0.1 * rng.standard_normal()) * step**-0.5)
            * np.exp(0.002 * rng.standard_normal(step.size)),
            size=1e6 * 1.5**i,
        )
        for i in range(22)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def test(curves):
    return backtest_runs(curves)


@pytest.fixture(scope="module")
def found(curves, test) -> Forecasts:
    outcome, ends = test.outcomes[-1], test.intervals[-1]
    seen = outcome.question.observed
    run = RunForecast(seen.run_id, seen.end, 2000.0, outcome.prediction, ends)
    new = run._replace(run_id="N=1e+12", observed_step=None)
    return Forecasts((run,), (new,), None, 0.9, (*curves[:-1], seen), (), (), "table.csv")


def points(axes) -> list[tuple[float, float]]:
    return [
        tuple(np.asarray(line.get_xydata())[0])
        for line in axes.get_lines()
        if np.size(line.get_xdata()) == 1
    ]


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_forecasts_show_what_was_seen_the_end_and_its_interval(found) -> None:
    figure = figures.forecasts(found)
    axes = figure.axes[0]
    run = found.runs[0]
    assert points(axes).count((2000.0, run.prediction.loss)) >= 2  # of the run and the new run
    ends = [np.asarray(path.vertices) for bars in axes.collections for path in bars.get_paths()]
    assert any(np.allclose(sorted(each[:, 1]), run.interval[:2]) for each in ends)
    seen = [line for line in axes.get_lines() if np.size(line.get_xdata()) == 50]
    assert len(seen) == 1
    assert {"r21", "N=1e+12", "forecast", "finished"} == set(legend(figure))
    assert "nats a token" in axes.get_ylabel() and "90%" in axes.get_title()
    assert axes.get_ylim()[0] < run.interval.low
    with pytest.raises(RequestError, match="nothing to draw"):
        figures.forecasts(replace(found, runs=(), new_runs=()))


def test_a_held_out_curve_has_its_forecasts_and_its_measured_end(curves, test) -> None:
    own = [
        (outcome, ends)
        for outcome, ends in zip(test.outcomes, test.intervals, strict=True)
        if outcome.run_id == "r10"
    ]
    figure = figures.held_out_curve(curves[10], own)
    axes = figure.axes[0]
    assert len(own) == 3
    losses = [y for _, y in points(axes)]
    assert all(outcome.prediction.loss in losses for outcome, _ in own)
    (cross,) = [each for each in axes.collections if isinstance(each, PathCollection)]
    (place,) = np.asarray(cross.get_offsets())
    np.testing.assert_allclose(place, (2000.0, curves[10].final_loss))
    assert sum("off by" in text for text in legend(figure)) == 3


def test_errors_fall_beside_the_baselines(test) -> None:
    figure = figures.backtest_errors(test)
    axes = figure.axes[0]
    medians = [test.summary(group)["median_error"] for group in test.groups]
    lines = [np.asarray(line.get_ydata()) for line in axes.get_lines()]
    assert any(line.shape == (3,) and np.allclose(line, medians) for line in lines)
    assert len(lines) == 4
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert {"last value", "power law", "power law plus constant"} <= set(legend(figure))
    with pytest.raises(RequestError, match="share seen"):
        figures.backtest_errors(replace(test, task="larger"))


def test_calibration_is_judged_on_the_larger_runs(test) -> None:
    figure = figures.calibration(test)
    assert legend(figure)[0] == "all: 33 judged" and len(legend(figure)) == 4
    for line in figure.axes[0].get_lines():
        shares = np.asarray(line.get_ydata())
        assert np.all(np.diff(shares) >= 0)
        assert shares.min() >= 0 and shares.max() <= 1
    few = replace(test, outcomes=test.outcomes[:2], intervals=test.intervals[:2])
    few = replace(few, calibration=replace(test.calibration, run_ids=("x",) * 66))
    with pytest.raises(RequestError, match="Too few"):
        figures.calibration(replace(few, outcomes=()))


def test_the_same_figure_is_the_same_bytes(found) -> None:
    assert render(figures.forecasts(found), "svg") == render(figures.forecasts(found), "svg")
