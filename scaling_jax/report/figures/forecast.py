"""Forecasts of learning curves: what was seen, how it will end, and what a backtest says of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.typing import ColorType

from scaling_jax.errors import RequestError
from scaling_jax.laws.forecast.curve import IN_TOKENS
from scaling_jax.report.figures import backtest as tests
from scaling_jax.report.figures.backtest import AHEAD, beside
from scaling_jax.report.figures.style import (
    FAINT,
    INK,
    LOSS,
    SizeColours,
    dress,
    log_axis,
    new_figure,
    number,
)

if TYPE_CHECKING:
    from scaling_jax.laws.forecast.backtest import Backtest, Outcome
    from scaling_jax.laws.forecast.calibration import Interval
    from scaling_jax.laws.forecast.curve import Curve
    from scaling_jax.laws.forecast.run import Forecasts, RunForecast

_MOST_NAMED = 10  # runs; of more the size has a colour, and none has a name
_SPREAD = 1.15
_PANEL = (8.0, 4.6)


def forecasts(found: Forecasts) -> Figure:
    """Loss against steps of every run with a forecast: what was seen, the end, its interval.

    Finished runs are faint beneath. Losses are nats a token. Raises RequestError where there is no
    forecast to draw.
    """
    figure, axes = new_figure()
    _forecasts(axes, found)
    return figure


def everything(found: Forecasts) -> Figure:
    """The forecasts, where there are any, and what each backtest says, a panel each.

    Raises RequestError where there is nothing of either.
    """
    drawn: list[Callable[[Axes], None]] = []
    if found.runs or found.new_runs:
        drawn.append(lambda axes: _forecasts(axes, found))
    for task, test in (found.backtests or {}).items():
        drawn += _of_runs(found, test) if task == "run" else [tests.groups_on(test)]
    if not drawn:
        raise RequestError(
            "No run has a forecast: there is nothing to draw. --backtest draws how forecasts of "
            "finished runs went"
        )
    columns = min(2, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    figure = Figure(figsize=(columns * _PANEL[0], rows * _PANEL[1]), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)  # pyright: ignore
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, draw in zip(places, drawn, strict=False):
        dress(axes)
        draw(axes)
    for axes in places[len(drawn) :]:
        axes.set_axis_off()
    return figure


def _of_runs(found: Forecasts, test: Backtest) -> list[Callable[[Axes], None]]:
    """Of a backtest of ends: the largest run, errors beside the baselines, and calibration."""
    if not test.outcomes:
        return []
    by_id = {curve.run_id: curve for curve in found.curves}
    tested = {outcome.run_id for outcome in test.outcomes}
    largest = max((by_id[run] for run in sorted(tested)), key=lambda curve: curve.size or 0.0)
    own = [
        (outcome, ends)
        for outcome, ends in zip(test.outcomes, test.intervals, strict=True)
        if outcome.run_id == largest.run_id
    ]
    drawn = [lambda axes: held_out(axes, largest, own), tests.errors_on(test)]
    return [*drawn, tests.calibration_on(test)] if tests.has_calibration(test) else drawn


def _forecasts(axes: Axes, found: Forecasts) -> None:
    every = [*found.runs, *found.new_runs]
    if not every:
        raise RequestError("No run has a forecast; there is nothing to draw.")
    by_id = {curve.run_id: curve for curve in found.curves}
    ahead = {run.run_id for run in every}
    finished = [curve for curve in found.curves if curve.run_id not in ahead]
    for curve in finished:
        axes.plot(curve.step, curve.loss, color=FAINT, alpha=0.4, linewidth=0.8)
    many = len(every) > _MOST_NAMED
    colours = _colours(axes, every) if many else _one_each(every)
    handles = []
    for run, colour, place in zip(every, colours, _places(every, many), strict=True):
        curve = by_id.get(run.run_id)
        _end(axes, place, run.prediction.loss, run.interval, colour, small=many)
        if curve is not None:
            axes.plot(curve.step, curve.loss, color=colour, linewidth=0.9 if many else 1.6)
            ends = (curve.end, place), (curve.loss[-1], run.prediction.loss)
            axes.plot(*ends, ":", color=colour, linewidth=1.0)
        if not many:
            name = run.run_id if curve is None else curve.name
            handles.append(Line2D([], [], color=colour, linewidth=2, label=name))
    seen = [by_id[run.run_id] for run in every if run.run_id in by_id]
    _losses(axes, [*finished, *seen], [end for run in every for end in run.interval[:2]])
    axes.set_title(f"Final losses, forecast with {found.level:.0%} intervals")
    if many:
        handles.append(Line2D([], [], color=INK, linewidth=1, label=f"{len(every)} runs, seen"))
    handles.append(
        Line2D([], [], color=INK, marker="o", linestyle=":", markersize=5, label="forecast")
    )
    if finished:
        handles.append(Line2D([], [], color=FAINT, linewidth=1, label=f"{len(finished)} others"))
    if many:
        axes.legend(handles=handles, loc="upper right", frameon=False, fontsize=9)
    else:
        beside(axes, handles)


def _places(every: Sequence[RunForecast], many: bool) -> list[float]:
    """The steps to draw ends at: those of many that end together are beside each other by size."""
    places = {}
    for step in {run.horizon_step for run in every}:
        same = [i for i, run in enumerate(every) if run.horizon_step == step]
        same.sort(key=lambda i: every[i].size or 0.0)
        for k, i in enumerate(same):
            places[i] = step * (_SPREAD ** (k / len(same)) if many else 1.0)
    return [places[i] for i in range(len(every))]


def _one_each(every: Sequence[RunForecast]) -> list[ColorType]:
    colours = SizeColours(range(1, len(every) + 1))
    return [colours(i + 1) for i in range(len(every))]


def _colours(axes: Axes, every: Sequence[RunForecast]) -> list[ColorType]:
    """The colour of each run's size, with a bar that says which; one colour without sizes."""
    sizes = [run.size for run in every]
    known = [size for size in sizes if size]
    if len(set(known)) < 2:
        return [AHEAD] * len(every)
    colours = SizeColours(known)
    shades = ListedColormap(colormaps["viridis"](np.linspace(0, 0.82, 256)))
    scale = ScalarMappable(LogNorm(min(known), max(known)), shades)
    place = axes.inset_axes((1.02, 0.0, 0.03, 1.0))
    axes.figure.colorbar(scale, cax=place, label="N, parameters")
    place.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    place.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    place.yaxis.set_minor_locator(NullLocator())
    return [colours(size) if size else FAINT for size in sizes]


def held_out(axes: Axes, curve: Curve, outcomes: Sequence[tuple[Outcome, Interval]]) -> None:
    """One finished curve with the forecasts of its end made on the way, beside what came.

    `outcomes` are those of this curve in a backtest, each drawn at the step where it was made.
    """
    axes.plot(curve.step, curve.loss, color=FAINT, linewidth=1.0)
    axes.axhline(curve.final_loss, color=INK, linewidth=0.9, linestyle=":")
    colours = SizeColours(range(1, len(outcomes) + 1))
    handles = []
    for i, (outcome, ends) in enumerate(outcomes):
        colour = colours(i + 1)
        seen = outcome.question.observed.end
        _end(axes, seen, outcome.prediction.loss, ends, colour)
        said = f"seen {seen / outcome.question.horizon:.0%}: off by {outcome.error:.2g}"
        handles.append(Line2D([], [], color=colour, marker="o", label=said))
    axes.scatter([curve.end], [curve.final_loss], marker="x", s=60, color=INK, zorder=6)
    first = min((outcome.question.observed.end for outcome, _ in outcomes), default=math.inf)
    _losses(axes, [curve], [end for _, ends in outcomes for end in ends[:2]], first)
    axes.set_title(f"{curve.name}: its end, forecast on the way")
    truth = Line2D([], [], color=INK, marker="x", linestyle=":", markersize=8, label="measured end")
    whole = Line2D([], [], color=FAINT, label="measured curve")
    beside(axes, [*handles, truth, whole])


def _end(
    axes: Axes, step: float, loss: float, ends: Interval, colour: ColorType, small: bool = False
) -> None:
    axes.errorbar(
        [step], [loss], yerr=[[loss - ends.low], [ends.high - loss]], color=colour,
        marker="o", markersize=3 if small else 5, capsize=2 if small else 3,
        elinewidth=1.0 if small else 1.5, zorder=5,
    )  # fmt: skip


def _losses(
    axes: Axes, curves: Sequence[Curve], ahead: Sequence[float], first: float = math.inf
) -> None:
    """Axes that show the later part of the curves, from the `first` step or before, and not the
    fall of their first steps."""
    start = min(first, *(math.sqrt(c.step[0] * c.end) for c in curves))
    tops = [float(np.interp(math.sqrt(c.step[0] * c.end), c.step, c.loss)) for c in curves]
    lows = [*ahead, *(float(c.loss.min()) for c in curves)]
    low, high = min(lows), max([*tops, *ahead])
    room = 0.06 * (high - low) if high > low else 0.05 * low
    axes.set_ylim(low - room, high + room)
    axes.set_xlim(start / 1.5, None)
    log_axis(axes, "x", compact=True)
    tokens = any(IN_TOKENS in curve.flags for curve in curves)
    axes.set_xlabel("Tokens seen" if tokens else "Steps (optimizer updates)")
    axes.set_ylabel(LOSS)
