"""Analyses of sweeps: the critical batch from a batch sweep, the best size from isoFLOP curves."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from scaling_jax.laws.forms import critical_batch as b_crit
from scaling_jax.laws.published import published
from scaling_jax.report.figures.style import (
    FAINT,
    INK,
    LOSS,
    SizeColours,
    dress,
    legend,
    log_axis,
    number,
    size_handles,
)

if TYPE_CHECKING:
    from scaling_jax.laws.critical_batch import Ladder, Rung
    from scaling_jax.laws.hyperbola import Bounded

_WIDE = (10.0, 4.8)
_ENTRIES = 9


def critical_batch(ladder: Ladder, unit: str = "tokens") -> Figure:
    """Left: steps against examples to each loss, with the hyperbolas; right: B_crit against loss.

    `unit` is that of the ladder's batches. A loss whose hyperbola is not identified has points
    without a line, and none on the right. Bars are intervals, the line the fitted B_crit(L) where
    there is one. In tokens, the law of Kaplan et al. (2020, eq. 5.3; Fig. 18 and 10) is beside it,
    of another corpus and vocabulary, and so of other losses.
    """
    colours = SizeColours([rung.loss for rung in ladder.rungs])
    figure = Figure(figsize=_WIDE, layout="constrained")
    fronts, critical = figure.subplots(1, 2)
    for axes in (fronts, critical):
        dress(axes)
    for rung in ladder.rungs:
        _front(fronts, rung, colours(rung.loss))
        if rung.hyperbola.identified:
            at = rung.hyperbola.critical(ladder.definition, ladder.reference_batch)
            value, low, high = _bar(at)
            critical.errorbar(
                [rung.loss], [value], yerr=[[value - low], [high - value]],
                color=colours(rung.loss), marker="o",
                markersize=4.5, elinewidth=1.2, capsize=2.5,
            )  # fmt: skip
    losses = [rung.loss for rung in ladder.rungs]
    if ladder.law is None:
        said = textwrap.fill(f"No law: {ladder.reason}", 50)
    else:
        alpha, low, high = _bar(ladder.law.alpha_B)
        x = np.geomspace(min(losses), max(losses), 100)
        critical.plot(x, b_crit(x, _bar(ladder.law.B_star)[0], alpha), color=INK, linewidth=1.2)
        said = rf"$\alpha_B$ = {number(alpha)} ({number(low)} to {number(high)})"
    known = any(rung.hyperbola.identified for rung in ladder.rungs)
    handles = _front_handles(ladder)
    if known and unit == "tokens":
        handles.append(_published(critical, losses))
    for axes in (fronts, critical):
        log_axis(axes, "x", compact=True, decades=6)
        log_axis(axes, "y", compact=True)
    critical.invert_xaxis()
    if not known:
        critical.set_axis_off()
    fronts.set_xlabel("S (steps to the loss)")
    fronts.set_ylabel(f"E = B S ({unit} to the loss)")
    critical.set_xlabel(f"{LOSS}, falling to the right")
    critical.set_ylabel(rf"$B_{{crit}}$ ({unit}), {ladder.definition}")
    fronts.set_title("Steps and examples to the same loss", fontsize=10)
    critical.set_title(said, fontsize=10)
    legend(figure, [*size_handles(losses, colours, "L", _ENTRIES), *handles])
    return figure


def isoflop(budget: ArrayLike, N: ArrayLike, loss: ArrayLike, optima: pl.DataFrame) -> Figure:
    """Left: loss against N at each budget (FLOPs), with the minima; right: those against compute.

    Points (n,); `optima` is the frame of `laws.isoflop`. Budgets whose minimum was refused have
    points and no minimum. Bars are one standard deviation of ln N. Porian et al. 2024, Fig. 1.
    """
    budget, size, loss = (np.asarray(values, dtype=np.float64) for values in (budget, N, loss))
    colours = SizeColours(np.unique(budget))
    figure = Figure(figsize=_WIDE, layout="constrained")
    curves, best = figure.subplots(1, 2)
    for axes in (curves, best):
        dress(axes)
    for one in np.unique(budget):
        at = np.flatnonzero(budget == one)
        at = at[np.argsort(size[at])]
        curves.plot(size[at], loss[at], color=colours(one), marker="o", markersize=3, linewidth=0.9)
    for way, marker in (("", "o"), ("_parabola", "x")):
        found = optima.filter(pl.col(f"status{way}") == "ok")
        where = [found[name].to_numpy() for name in ("budget", f"n_opt{way}", f"loss_opt{way}")]
        shade = {"zorder": 4, "color": INK} if marker == "x" else {"zorder": 4}
        if marker == "o":
            shade |= {"facecolors": "none", "edgecolors": INK}
            low, high = _spread(found)
            best.vlines(where[0], low, high, color=FAINT, linewidth=1.2)
        curves.scatter(where[1], where[2], marker=marker, s=30, linewidths=1.1, **shade)
        best.scatter(where[0], where[1], marker=marker, s=30, linewidths=1.1, **shade)
    log_axis(curves, "x", compact=True, decades=6)
    log_axis(curves, "y", compact=True)
    if (optima["status"] == "ok").any() or (optima["status_parabola"] == "ok").any():
        log_axis(best, "x", decades=6)
        log_axis(best, "y", compact=True)
    else:
        best.set_axis_off()
    curves.set_xlabel("N (parameters)")
    curves.set_ylabel(LOSS)
    best.set_xlabel("C (FLOPs)")
    best.set_ylabel(r"$N_{opt}$ (parameters)")
    curves.set_title("Loss at each budget", fontsize=10)
    best.set_title("The size of least loss", fontsize=10)
    bare = {"color": INK, "linestyle": "", "markersize": 5}
    legend(
        figure,
        [
            *size_handles(np.unique(budget), colours, "C", _ENTRIES),
            Line2D([], [], marker="o", mfc="none", label="minimum,\ninterpolated", **bare),
            Line2D([], [], marker="x", label="minimum,\nparabola", **bare),
        ],
    )
    return figure


def _front(axes: Axes, rung: Rung, colour: tuple[float, ...]) -> None:
    found = rung.hyperbola
    axes.scatter(found.steps, found.steps * found.batch, s=14, color=[colour], zorder=3)
    if found.identified and found.S_min.value and found.E_min.value:
        batch = np.geomspace(found.batch.min() / 1.5, 1.5 * found.batch.max(), 100)
        steps = found.S_min.value + found.E_min.value / batch
        axes.plot(steps, steps * batch, color=colour, linewidth=1.2)


def _published(axes: Axes, losses: Sequence[float]) -> Line2D:
    known = published("kaplan2020.b_crit").params
    x = np.geomspace(min(losses), max(losses), 100)
    style = {"color": FAINT, "linestyle": ":", "linewidth": 1.0}
    axes.plot(x, b_crit(x, known["B_star"], known["alpha_B"]), zorder=1, **style)
    label = "Kaplan et al. 2020,\nanother corpus\nand vocabulary"
    return Line2D([], [], label=label, **style)


def _bar(estimate: Bounded) -> tuple[float, float, float]:
    """An identified estimate with its ends."""
    value, low, high = (math.nan if x is None else x for x in estimate[:1] + estimate[2:])
    return value, low, high


def _front_handles(ladder: Ladder) -> list[Line2D]:
    identified = [rung.hyperbola.identified for rung in ladder.rungs]
    handles = [Line2D([], [], color=INK, linestyle="", marker="o", markersize=4, label="measured")]
    if any(identified):
        handles.append(Line2D([], [], color=INK, linewidth=1.2, label="fitted"))
    if not all(identified):
        label = "without a line:\nB_crit is not\nidentified"
        handles.append(Line2D([], [], linestyle="", label=label))
    return handles


def _spread(optima: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """One standard deviation of ln N about the interpolated minima."""
    centre, sd = optima["n_opt"].to_numpy(), optima["sd_ln_n"].to_numpy()
    return centre * np.exp(-sd), centre * np.exp(sd)
