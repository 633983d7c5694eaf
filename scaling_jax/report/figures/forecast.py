"""Forecasts of learning curves: what they say, how wrong they were, and what intervals cover."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scaling_jax.errors import RequestError
from scaling_jax.report.figures.style import (
    FAINT,
    INK,
    LOSS,
    PLAIN,
    SizeColours,
    legend,
    log_axis,
    new_figure,
)

if TYPE_CHECKING:
    from scaling_jax.laws.forecast.backtest import Backtest, Outcome
    from scaling_jax.laws.forecast.calibration import Interval
    from scaling_jax.laws.forecast.curve import Curve
    from scaling_jax.laws.forecast.run import Forecasts

_AHEAD = "#c2571a"
_BASELINES: dict[str, tuple[str, Literal["-", "--", "-.", ":"], str]] = {
    "last_value": (FAINT, ":", "last value"),
    "power_law": ("#6a51a3", "-.", "power law"),
    "power_offset": (PLAIN, "--", "power law plus constant"),
}
_LEVELS = np.linspace(0.05, 0.95, 19)


def forecasts(found: Forecasts) -> Figure:
    """Loss against steps of every run with a forecast: what was seen, the end, its interval.

    Finished runs are faint beneath. Losses are nats a token. Raises RequestError where there is no
    forecast to draw.
    """
    every = [*found.runs, *found.new_runs]
    if not every:
        raise RequestError("No run has a forecast; there is nothing to draw.")
    figure, axes = new_figure()
    by_id = {curve.run_id: curve for curve in found.curves}
    ahead = {run.run_id for run in every}
    colours = SizeColours(range(1, len(every) + 1))
    for curve in found.curves:
        if curve.run_id not in ahead:
            axes.plot(curve.step, curve.loss, color=FAINT, alpha=0.5, linewidth=0.8)
    drawn = [curve for curve in found.curves if curve.run_id not in ahead]
    handles = []
    for i, run in enumerate(every):
        colour = colours(i + 1)
        _end(axes, run.horizon_step, run.prediction.loss, run.interval, colour)
        if (curve := by_id.get(run.run_id)) is not None:
            drawn.append(curve)
            axes.plot(curve.step, curve.loss, color=colour, linewidth=1.6)
            ends = (curve.end, run.horizon_step), (curve.loss[-1], run.prediction.loss)
            axes.plot(*ends, ":", color=colour, linewidth=1.0)
        if i < 20:
            handles.append(Line2D([], [], color=colour, linewidth=2, label=run.run_id))
    _losses(axes, drawn, [run.prediction.loss for run in every])
    axes.set_title(f"Final losses, forecast with {found.level:.0%} intervals")
    mark = Line2D([], [], color=INK, marker="o", linestyle=":", markersize=5, label="forecast")
    shown = any(curve.run_id not in ahead for curve in drawn)
    finished = [Line2D([], [], color=FAINT, linewidth=1, label="finished")] if shown else []
    legend(figure, [*handles, mark, *finished])
    return figure


def held_out_curve(curve: Curve, outcomes: Sequence[tuple[Outcome, Interval]]) -> Figure:
    """One finished curve with the forecasts of its end made on the way, beside what came.

    `outcomes` are those of this curve in a backtest; the vertical lines are where each was made.
    """
    figure, axes = new_figure()
    axes.plot(curve.step, curve.loss, color=FAINT, linewidth=1.0)
    colours = SizeColours(range(1, len(outcomes) + 1))
    handles = []
    for i, (outcome, ends) in enumerate(outcomes):
        colour = colours(i + 1)
        seen = outcome.question.observed
        axes.axvline(seen.end, color=colour, linewidth=0.9, linestyle="--")
        place = outcome.question.horizon * 1.02**i  # side by side, not one over the other
        _end(axes, place, outcome.prediction.loss, ends, colour)
        said = f"seen {seen.end / outcome.question.horizon:.0%}: off by {outcome.error:.2g}"
        handles.append(Line2D([], [], color=colour, marker="o", label=said))
    axes.scatter([curve.end], [curve.final_loss], marker="x", s=60, color=INK, zorder=6)
    _losses(axes, [curve], [outcome.prediction.loss for outcome, _ in outcomes])
    axes.set_title(f"Forecasts of the end of {curve.name}")
    truth = Line2D([], [], color=INK, marker="x", linestyle="", markersize=8, label="measured end")
    whole = Line2D([], [], color=FAINT, label="measured curve")
    legend(figure, [*handles, truth, whole])
    return figure


def backtest_errors(test: Backtest) -> Figure:
    """Median error of the final loss against the share of the run seen, with the baselines.

    The band goes from the 10th to the 90th percentile of the forecast's errors; nats a token.
    Raises RequestError for a backtest of another task and for one without outcomes.
    """
    if test.task != "run" or not test.outcomes:
        raise RequestError("Only a backtest of runs has errors against the share seen.")
    figure, axes = new_figure()
    groups = sorted(test.groups, key=float)
    shares = np.array([float(group) for group in groups])
    errors = [[o.error for o in test.outcomes if o.group == group] for group in groups]
    low, middle, high = (
        np.array([max(float(np.quantile(of, q)), 1e-6) for of in errors]) for q in (0.1, 0.5, 0.9)
    )
    axes.fill_between(shares, low, high, color=_AHEAD, alpha=0.18, linewidth=0)
    axes.plot(shares, middle, "o-", color=_AHEAD, linewidth=2)
    handles = [Line2D([], [], color=_AHEAD, marker="o", label="forecast, 10 to 90 %")]
    summaries = [test.summary(group)["baselines"] for group in groups]
    for name, (colour, dash, words) in _BASELINES.items():
        if all(name in of for of in summaries):
            medians = [max(of[name]["median_error"], 1e-6) for of in summaries]
            axes.plot(shares, medians, color=colour, linestyle=dash, marker=".")
            handles.append(Line2D([], [], color=colour, linestyle=dash, label=words))
    log_axis(axes, "x")
    log_axis(axes, "y")
    curves = len({outcome.run_id for outcome in test.outcomes})
    axes.set_xlabel("Share of the run that was seen")
    axes.set_ylabel("Error of the final loss (nats a token)")
    axes.set_title(f"Backtest on {curves} finished runs: median errors")
    legend(figure, handles)
    return figure


def calibration(test: Backtest) -> Figure:
    """The share of measured ends inside intervals of each level, against the level.

    The errors on the smaller runs make the intervals of the larger ones. On the line is right,
    below it too narrow. Raises RequestError where there are too few curves.
    """
    from scaling_jax.laws.forecast.backtest import coverage

    figure, axes = new_figure()
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1.0, linestyle=":")
    colours = SizeColours(range(1, len(test.groups) + 1))
    handles = []
    lines = [(None, INK, 2.2), *((g, colours(i + 1), 1.2) for i, g in enumerate(test.groups))]
    for group, colour, width in lines:
        found = [(level, coverage(test, level, group)) for level in _LEVELS]
        known = [(level, *of) for level, of in found if of is not None]
        if not known:
            continue
        level, covered, count = (np.array(column) for column in zip(*known, strict=True))
        axes.plot(level, covered / count, "o-", color=colour, markersize=4, linewidth=width)
        said = f"{'all' if group is None else group}: {int(count[0])} judged"
        handles.append(Line2D([], [], color=colour, marker="o", linewidth=width, label=said))
    if not handles:
        raise RequestError("Too few curves for a calibration; there is nothing to draw.")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("Level of the interval")
    axes.set_ylabel("Share of the measured ends inside")
    axes.set_title("Calibration: intervals from the smaller runs, on the larger")
    legend(figure, handles)
    return figure


def _end(axes: Axes, step: float, loss: float, ends: Interval, colour: object) -> None:
    axes.errorbar(
        [step], [loss], yerr=[[loss - ends.low], [ends.high - loss]], color=colour,  # pyright: ignore
        marker="o", markersize=5, capsize=3, elinewidth=1.5, zorder=5,
    )  # fmt: skip


def _losses(axes: Axes, curves: Sequence[Curve], ahead: Sequence[float]) -> None:
    """Axes that show the later part of the curves, and not the fall of their first steps."""
    start = min(math.sqrt(c.step[0] * c.end) for c in curves)
    tops = [float(np.interp(math.sqrt(c.step[0] * c.end), c.step, c.loss)) for c in curves]
    lows = [*ahead, *(float(c.loss.min()) for c in curves)]
    low, high = min(lows), max([*tops, *ahead])
    room = 0.06 * (high - low) if high > low else 0.05 * low
    axes.set_ylim(low - room, high + room)
    axes.set_xlim(start / 1.5, None)
    log_axis(axes, "x", compact=True)
    axes.set_xlabel("Steps (optimizer updates)")
    axes.set_ylabel(LOSS)
