"""What advised runs cost against a grid, for the same certainty of the target."""

from __future__ import annotations

from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scaling_jax.laws.forecast.replay import Replay
from scaling_jax.report.figures.style import FAINT, INK, PLAIN, legend, log_axis, new_figure

_KINDS: tuple[tuple[str, str, str, Literal["-", "--", ":"]], ...] = (
    ("advice", "advised", PLAIN, "-"),
    ("uniform", "a grid, in random order", INK, "--"),
    ("spread", "each far from those before", FAINT, ":"),
)


def replayed_advice(found: Replay) -> Figure:
    """Half-width of the target's interval against the FLOPs that reached it, of every order.

    Filled dots: the measured loss of the target lies inside the interval. Lines are medians.
    """
    figure, axes = new_figure()
    handles = []
    for name, label, colour, line in _KINDS:
        medians = []
        for place, half in enumerate(found.half_widths):
            reached = [each for order in getattr(found, name) if (each := order[place])]
            if not reached:
                continue
            medians.append((float(np.median([each.flops for each in reached])), half))
            for each in reached:
                inside = abs(each.error) <= each.half_width
                axes.plot(
                    each.flops, half, "o", markersize=4.5, markeredgecolor=colour,
                    markerfacecolor=colour if inside else "white", alpha=0.8,
                )  # fmt: skip
        if medians:
            axes.plot(*zip(*medians, strict=True), color=colour, linestyle=line, linewidth=1.6)
        handles.append(Line2D([], [], color=colour, linestyle=line, label=label))
    outside = Line2D([], [], color=INK, linestyle="", marker="o", markerfacecolor="white")
    outside.set_label("truth outside the interval")
    handles.append(outside)
    log_axis(axes, "x")
    log_axis(axes, "y")
    axes.set_xlabel("FLOPs of the runs, over those of the target")
    axes.set_ylabel("Half-width of the target's interval (log loss)")
    legend(figure, handles)
    return figure
