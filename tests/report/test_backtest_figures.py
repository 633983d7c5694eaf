"""Figures of backtests: errors beside the baselines, and what intervals cover."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scaling_jax.errors import RequestError
from scaling_jax.laws.forecast.backtest import backtest_runs
from scaling_jax.laws.forecast.new_runs import backtest_larger
from scaling_jax.report.figures import backtest as figures
from scaling_jax.report.figures.style import new_figure


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


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
    assert legend(figure)[0] == "all: 33 forecasts judged" and len(legend(figure)) == 4
    for line in figure.axes[0].get_lines():
        shares = np.asarray(line.get_ydata())
        assert np.all(np.diff(shares) >= 0)
        assert shares.min() >= 0 and shares.max() <= 1
    few = replace(test, outcomes=test.outcomes[:2], intervals=test.intervals[:2])
    few = replace(few, calibration=replace(test.calibration, run_ids=("x",) * 66))
    with pytest.raises(RequestError, match="Too few"):
        figures.calibration(replace(few, outcomes=()))


def test_new_runs_are_drawn_group_by_group(curves) -> None:
    test = backtest_larger(curves)
    figure, axes = new_figure()
    figures.groups_on(test)(axes)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert [label.split(" ")[0] for label in labels] == test.groups
    medians = [test.summary(group)["median_error"] for group in test.groups]
    lines = [np.asarray(line.get_xdata()) for line in axes.get_lines()]
    assert any(line.shape == (3,) and np.allclose(line, medians) for line in lines)
    assert {"power law in N", "largest smaller model's loss"} <= set(legend(figure))
    with pytest.raises(RequestError, match="new runs"):
        figures.groups_on(backtest_runs(curves[:3]))
