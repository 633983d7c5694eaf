"""Curves of all sizes over their own ends, and how far from one curve they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from scaling_jax.report.figures.style import (
    FAINT,
    INK,
    SizeColours,
    dress,
    legend,
    log_axis,
    size_handles,
)

if TYPE_CHECKING:
    from scaling_jax.laws.forecast.collapse import Collapse


def collapsed_curves(found: Collapse) -> Figure:
    """The reducible loss over its own end against the share of the run, coloured by N.

    Below, the deviation over all runs beside the noise of seeds. Qiu et al. 2025, Fig. 1.
    """
    figure = Figure(figsize=(8.0, 6.0), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    colours = SizeColours(found.sizes)
    for run in found.runs:
        above.plot(found.x, run.ell, color=colours(run.N), linewidth=1.3, alpha=0.85)
    below.plot(found.x, found.deviation, color=INK, linewidth=1.8)
    handles = [
        *size_handles(found.sizes, colours, at_most=12),
        Line2D([], [], color=INK, linewidth=1.8, label="deviation"),
    ]
    if found.noise is not None:
        below.plot(found.x, found.noise, "--", color=FAINT, linewidth=1.6)
        handles.append(Line2D([], [], color=FAINT, linestyle="--", label="noise of seeds"))
    for axes in (above, below):
        dress(axes)
        log_axis(axes, "x")
    below.set_ylim(bottom=0)
    below.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    below.set_ylabel("sd / mean of the curves")
    below.set_xlabel("Share of the run")
    above.set_ylabel("$(L - L_0)$ / its own end")
    of = "fitted" if found.fitted else "given"
    above.set_title(f"Curves of {len(found.sizes)} sizes, $L_0$ = {found.floor:.3f} {of}")
    legend(figure, handles)
    return figure
