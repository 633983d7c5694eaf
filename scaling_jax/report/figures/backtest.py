"""What a backtest of forecasts says: errors beside the baselines, and what intervals cover."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scaling_jax.errors import RequestError, counted
from scaling_jax.report.figures.style import (
    FAINT,
    INK,
    PLAIN,
    SizeColours,
    log_axis,
    new_figure,
)

if TYPE_CHECKING:
    from scaling_jax.laws.forecast.backtest import Backtest

AHEAD = "#c2571a"
_BASELINES: dict[str, tuple[str, Literal["-", "--", "-.", ":"], str]] = {
    "last_value": (FAINT, ":", "last value"),
    "power_law": ("#6a51a3", "-.", "power law"),
    "power_offset": (PLAIN, "--", "power law plus constant"),
    "last_size": (FAINT, ":", "largest smaller model's loss"),
    "power_in_size": ("#6a51a3", "-.", "power law in N"),
}
_LEVELS = np.linspace(0.05, 0.95, 19)
_LEAST = 1e-6  # nats: an error below has a place on a logarithmic axis too
_ERROR = "Error of the final loss (nats a token)"
_TASKS = {
    "larger": ("Larger models from the smaller", "N over the largest N seen"),
    "schedule": ("Runs of one schedule from those of the others", "Schedule held out"),
}


def backtest_errors(test: Backtest) -> Figure:
    """Median error of the final loss against the share of the run seen, with the baselines.

    The band goes from the 10th to the 90th percentile of the forecast's errors; nats a token.
    Raises RequestError for a backtest of another task and for one without outcomes.
    """
    figure, axes = new_figure()
    errors_on(test)(axes)
    return figure


def calibration(test: Backtest) -> Figure:
    """The share of measured ends inside intervals of each level, against the level.

    The errors on the smaller runs make the intervals of the larger ones. On the line is right,
    below it too narrow. Raises RequestError where there are too few curves.
    """
    figure, axes = new_figure()
    calibration_on(test)(axes)
    return figure


def has_calibration(test: Backtest) -> bool:
    """Whether there are enough curves for `calibration`."""
    return any(_covered(test, None))


def errors_on(test: Backtest) -> Callable[[Axes], None]:
    """What draws `backtest_errors` on axes."""
    if test.task != "run" or not test.outcomes:
        raise RequestError("Only a backtest of runs has errors against the share seen.")
    return lambda axes: _errors(axes, test)


def calibration_on(test: Backtest) -> Callable[[Axes], None]:
    """What draws `calibration` on axes."""
    if not has_calibration(test):
        raise RequestError("Too few curves for a calibration; there is nothing to draw.")
    return lambda axes: _calibration(axes, test)


def groups_on(test: Backtest) -> Callable[[Axes], None]:
    """What draws the errors of every group of new runs, beside the baselines, on axes."""
    if test.task == "run" or not test.outcomes:
        raise RequestError("Only a backtest of new runs has errors by size or schedule.")
    return lambda axes: _groups(axes, test)


def beside(axes: Axes, handles: Sequence[Artist]) -> None:
    """A legend at the right of the axes."""
    axes.legend(
        handles=list(handles), loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False,
        fontsize=9,
    )  # fmt: skip


def _errors(axes: Axes, test: Backtest) -> None:
    groups = sorted(test.groups, key=float)
    shares = np.array([float(group) for group in groups])
    low, middle, high = _quantiles(test, groups)
    axes.fill_between(shares, low, high, color=AHEAD, alpha=0.18, linewidth=0)
    if len(groups) == 1:  # a band of no width
        axes.vlines(shares, low, high, color=AHEAD, linewidth=2)
    axes.plot(shares, middle, "o-", color=AHEAD, linewidth=2)
    handles = [Line2D([], [], color=AHEAD, marker="o", label="forecast, 10 to 90 %")]
    for name, (colour, dash, words) in _BASELINES.items():
        known = _medians(test, groups, name)
        if not np.isnan(known).any():
            axes.plot(shares, known, color=colour, linestyle=dash, marker=".")
            handles.append(Line2D([], [], color=colour, linestyle=dash, label=words))
    axes.set_xscale("log")
    axes.set_xticks(shares, [f"{share:.3g}" for share in shares])
    axes.set_xticks([], minor=True)
    log_axis(axes, "y")
    curves = len({outcome.run_id for outcome in test.outcomes})
    axes.set_xlabel("Share of the run that was seen")
    axes.set_ylabel(_ERROR)
    axes.set_title(f"Backtest on {curves} finished runs: median errors")
    beside(axes, handles)


def _groups(axes: Axes, test: Backtest) -> None:
    groups = test.groups
    place = np.arange(len(groups), dtype=float)
    low, middle, high = _quantiles(test, groups)
    axes.errorbar(
        middle, place, xerr=[middle - low, high - middle], fmt="o", color=AHEAD, capsize=3,
        markersize=7, zorder=5,
    )  # fmt: skip
    handles = [Line2D([], [], color=AHEAD, marker="o", label="forecast, 10 to 90 %")]
    for name, (colour, _, words) in _BASELINES.items():
        known = _medians(test, groups, name)
        if not np.isnan(known).all():
            axes.plot(known, place, "|", color=colour, markersize=16, markeredgewidth=2.5)
            handles.append(Line2D([], [], color=colour, linewidth=2.5, label=words))
    title, label = _TASKS[test.task]
    counts = [test.summary(group)["n_curves"] for group in groups]
    axes.set_yticks(
        place, [f"{g} ({counted(n, 'run')})" for g, n in zip(groups, counts, strict=True)]
    )
    axes.set_ylim(len(groups) - 0.4, -0.6)
    log_axis(axes, "x")
    axes.set_xlabel(_ERROR)
    axes.set_ylabel(label)
    axes.set_title(f"Backtest: {title[0].lower()}{title[1:]}")
    beside(axes, handles)


def _calibration(axes: Axes, test: Backtest) -> None:
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1.0, linestyle=":")
    colours = SizeColours(range(1, len(test.groups) + 1))
    handles = []
    lines = [(None, INK, 2.2), *((g, colours(i + 1), 1.2) for i, g in enumerate(test.groups))]
    for group, colour, width in lines:
        known = _covered(test, group)
        if not known:
            continue
        level, covered, count = (np.array(column) for column in zip(*known, strict=True))
        axes.plot(level, covered / count, "o-", color=colour, markersize=4, linewidth=width)
        said = "all" if group is None else f"{float(group):.0%} seen"
        said += f": {int(count[0])} forecasts judged"
        handles.append(Line2D([], [], color=colour, marker="o", linewidth=width, label=said))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("Level of the interval")
    axes.set_ylabel("Share of the measured ends inside")
    axes.set_title("Calibration: intervals from the smaller runs, on the larger")
    beside(axes, handles)


def _covered(test: Backtest, group: str | None) -> list[tuple[float, int, int]]:
    """(level, covered, of how many) at every level that enough curves stand behind."""
    from scaling_jax.laws.forecast.backtest import coverage

    found = [(float(level), coverage(test, float(level), group)) for level in _LEVELS]
    return [(level, *of) for level, of in found if of is not None]


def _quantiles(test: Backtest, groups: Sequence[str]) -> tuple[np.ndarray, ...]:
    """The 10th, 50th and 90th percentile of the errors of every group."""
    errors = [[o.error for o in test.outcomes if o.group == group] for group in groups]
    return tuple(
        np.array([max(float(np.quantile(of, q)), _LEAST) for of in errors]) for q in (0.1, 0.5, 0.9)
    )


def _medians(test: Backtest, groups: Sequence[str], name: str) -> np.ndarray:
    """The median error of a baseline in every group, NaN where it has none."""
    found = [test.summary(group)["baselines"].get(name) for group in groups]
    return np.array([np.nan if of is None else max(of["median_error"], _LEAST) for of in found])
