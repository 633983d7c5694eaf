"""Figures of forecasts: what is drawn where, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from scaling_jax.errors import RequestError
from scaling_jax.laws.forecast.new_runs import backtest_larger
from scaling_jax.laws.forecast.run import Forecasts, RunForecast
from scaling_jax.report.figures import forecast as figures
from scaling_jax.report.figures import render
from scaling_jax.report.figures.style import new_figure


@pytest.fixture(scope="module")
def found(curves, test) -> Forecasts:
    outcome, ends = test.outcomes[-1], test.intervals[-1]
    seen = outcome.question.observed
    run = RunForecast(seen.run_id, seen.end, 2000.0, outcome.prediction, ends)
    new = run._replace(run_id="N=1e+12", observed_step=None)
    request: Any = SimpleNamespace(level=0.9)
    return Forecasts(request, (run,), (new,), None, (*curves[:-1], seen), (), ())


def points(axes) -> list[tuple[float, float]]:
    return [
        tuple(np.asarray(line.get_xydata())[0])
        for line in axes.get_lines()
        if np.size(line.get_xdata()) == 1
    ]


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_forecasts_show_what_was_seen_the_end_and_its_interval(found) -> None:
    figure = figures.forecasts(found)
    axes = figure.axes[0]
    run = found.runs[0]
    assert points(axes).count((2000.0, run.prediction.loss)) >= 2  # of the run and the new run
    ends = [np.asarray(path.vertices) for bars in axes.collections for path in bars.get_paths()]
    assert any(np.allclose(sorted(each[:, 1]), run.interval[:2]) for each in ends)
    seen = [line for line in axes.get_lines() if np.size(line.get_xdata()) == 50]
    assert len(seen) == 1
    assert {"r21", "N=1e+12", "forecast", "21 others"} == set(legend(figure))
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
    figure, axes = new_figure()
    figures.held_out(axes, curves[10], own)
    assert len(own) == 3
    assert {(o.observed_step, o.prediction.loss) for o, _ in own} <= set(points(axes))
    (cross,) = [each for each in axes.collections if isinstance(each, PathCollection)]
    (place,) = np.asarray(cross.get_offsets())
    np.testing.assert_allclose(place, (2000.0, curves[10].final_loss))
    assert sum("off by" in text for text in legend(figure)) == 3


def test_many_runs_have_the_colour_of_their_size_and_no_name(curves, test, found) -> None:
    ends = [(o, i) for o, i in zip(test.outcomes, test.intervals, strict=True) if o.group == "0.5"]
    runs = tuple(
        RunForecast(o.run_id, 1000.0, 2000.0, o.prediction, i, curves[k].size)
        for k, (o, i) in enumerate(ends)
    )
    many = replace(found, runs=runs, new_runs=(), curves=tuple(c.until(1000.0) for c in curves))
    figure = figures.forecasts(many)
    axes = figure.axes[0]
    assert legend(figure) == ["22 runs, seen", "forecast"]
    lines = [line for line in axes.get_lines() if np.size(line.get_xdata()) == 50]
    assert len({line.get_color() for line in lines}) == 22
    (bar,) = axes.child_axes
    assert bar.get_ylabel() == "N, parameters"
    assert bar.get_ylim() == pytest.approx((1e6, 1e6 * 1.5**21))
    # Their intervals are beside each other, and none is left of the end.
    steps = sorted({x for x, _ in points(axes)})
    assert len(steps) == 22 and steps[0] == 2000.0 and steps[-1] < 2400.0
    alike = replace(many, runs=tuple(run._replace(size=None) for run in runs))
    assert not figures.forecasts(alike).axes[0].child_axes


def test_everything_that_was_asked_has_a_panel(curves, test, found) -> None:
    def titles(figure) -> list[str]:
        return [axes.get_title() for axes in figure.axes if axes.get_title()]

    assert len(titles(figures.everything(found))) == 1
    whole = replace(found, backtests={"run": test}, curves=tuple(curves))
    assert titles(figures.everything(whole)) == [
        "Final losses, forecast with 90% intervals",
        "r21: its end, forecast on the way",
        "Backtest on 22 finished runs: median errors",
        "Calibration: intervals from the smaller runs, on the larger",
    ]
    larger = backtest_larger(curves)
    both = replace(whole, runs=(), new_runs=(), backtests={"run": test, "larger": larger})
    assert titles(figures.everything(both))[-1] == "Backtest: larger models from the smaller"
    none = replace(found, runs=(), new_runs=())
    with pytest.raises(RequestError, match="--backtest"):
        figures.everything(none)
    nothing = replace(test, outcomes=(), intervals=())
    with pytest.raises(RequestError, match="nothing to draw"):
        figures.everything(replace(none, backtests={"run": nothing}))


def test_the_same_figure_is_the_same_bytes(found) -> None:
    assert render(figures.forecasts(found), "svg") == render(figures.forecasts(found), "svg")
