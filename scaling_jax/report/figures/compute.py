"""Compute-optimal analysis of measured curves: N_opt(C), envelopes, sample efficiency, slopes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scaling_jax.errors import RequestError
from scaling_jax.laws.curves import envelope_law, lower_envelope
from scaling_jax.report.figures.style import (
    FAINT,
    INK,
    LOSS,
    PLAIN,
    SizeColours,
    dress,
    legend,
    log_axis,
    new_figure,
    number,
    size_handles,
)

if TYPE_CHECKING:
    from scaling_jax.laws.allocation import Allocation
    from scaling_jax.laws.curves import Grid

_WIDE = (10.0, 4.8)
_ENTRIES = 9
_METHODS = ("#31688e", "#b5651d", "#3b7d4f", "#8e3163", "#6b6b00")


def allocations(found: Sequence[Allocation], compute: tuple[float, float] | None = None) -> Figure:
    """N_opt and D_opt against compute (FLOPs) by each approach, with its minima and exponents.

    Lines run over `compute`, by default over the minima. The band is the interval of the exponent,
    turned about the middle of the minima; approaches without minima have a line only. Raises
    `RequestError` where there is nothing to draw over.
    """
    if compute is None:
        measured = np.concatenate([each.minima["compute"].to_numpy() for each in found])
        if not measured.size:
            raise RequestError("No approach has minima: say over which compute to draw")
        compute = (measured.min(), measured.max())
    x = np.geomspace(*compute, 100)
    figure = Figure(figsize=_WIDE, layout="constrained")
    panels = figure.subplots(1, 2)
    handles = []
    for each, colour in zip(found, itertools.cycle(_METHODS), strict=False):
        for axes, name, power, line in zip(
            panels, ("N", "D"), ("p_N", "p_D"), each.optimal(x), strict=True
        ):
            axes.plot(x, line, color=colour, linewidth=1.5, zorder=3)
            if not each.minima.height:
                continue
            at, value = each.minima["compute"].to_numpy(), each.minima[name].to_numpy()
            many = at.size > 60
            axes.scatter(at, value, s=4 if many else 22, facecolors="none", edgecolors=colour,
                         linewidths=0.5 if many else 1.0, zorder=2)  # fmt: skip
            if power in each.intervals:
                turned = (x / np.exp(np.mean(np.log(at)))) ** (
                    np.array(each.intervals[power])[:, None] - getattr(each, power)
                )
                axes.fill_between(x, *(line * turned), color=colour, alpha=0.12, linewidth=0)
        handles.append(Line2D([], [], color=colour, linewidth=2, label=_said(each)))
    for axes, label in zip(panels, ("N", "D"), strict=True):
        dress(axes)
        log_axis(axes, "x", decades=6)
        log_axis(axes, "y", compact=True, decades=9)
        axes.set_xlabel("C (FLOPs)")
        unit = "parameters" if label == "N" else "tokens"
        axes.set_ylabel(rf"${label}_{{opt}}$ ({unit})")
    figure.suptitle("How compute divides between size and data")
    legend(figure, handles)
    return figure


def _said(each: Allocation) -> str:
    text = f"{each.method}\n" + rf"$p_N$ = {each.p_N:.3f}"
    if "p_N" in each.intervals:
        low, high = each.intervals["p_N"]
        text += f" ({low:.3f} to {high:.3f})"
    return text


def envelope(
    grid: Grid, adjusted: Grid | None = None, colours: SizeColours | None = None
) -> Figure:
    """Smoothed learning curves against compute (FLOPs) with their lower envelope and its law.

    `adjusted` is the grid of the same curves in C_min: its envelope is dashed. Hollow points are
    won by the smallest or the largest size there is, and enter no law (Kaplan et al. 2020, Fig. 1
    and 13).
    """
    figure, axes = new_figure()
    colours = colours or SizeColours(grid.N)
    for size, log_loss in sorted(zip(grid.N, grid.log_loss, strict=True), key=lambda one: one[0]):
        axes.plot(grid.budgets, np.exp(np.where(np.isfinite(log_loss), log_loss, np.nan)),
                  color=colours(size), linewidth=0.9, alpha=0.7)  # fmt: skip
    handles = size_handles(grid.N, colours, at_most=_ENTRIES)
    handles.append(_envelope(axes, grid, "-", "C"))
    if adjusted is not None:
        handles.append(_envelope(axes, adjusted, "--", r"C_{min}"))
    log_axis(axes, "x")
    log_axis(axes, "y", compact=True)
    axes.set_xlabel("Compute (FLOPs)")
    axes.set_ylabel(LOSS)
    axes.set_title("The best loss at each compute")
    legend(figure, handles)
    return figure


def _envelope(axes: Axes, grid: Grid, style: Literal["-", "--"], name: str) -> Line2D:
    table = lower_envelope(grid)
    edge = table.filter("edge")
    axes.scatter(edge["compute"], edge["loss"], s=9, facecolors="none", edgecolors=FAINT,
                 linewidths=0.7, zorder=3)  # fmt: skip
    inside = table.select(pl.when(~pl.col("edge")).then("loss")).to_series()
    axes.plot(table["compute"], inside.fill_null(np.nan), style, color=INK, linewidth=1.3, zorder=4)
    label = f"envelope, ${name}$"
    if inside.count() > 2:
        label += "\n" + rf"$L \propto {name}^{{-{envelope_law(table)['alpha_C']:.4f}}}$"
    return Line2D([], [], linestyle=style, color=INK, linewidth=1.3, label=label)


def sample_efficiency(table: pl.DataFrame) -> Figure:
    """Steps and tokens to reach each loss against N; `table` as of `laws.sample_efficiency`.

    S_min and E_min where the critical batch was given, else S and tokens at the batch of the runs
    (Kaplan et al. 2020, Fig. 19). Points are runs, lines go through their geometric means. Raises
    `RequestError` when no level was crossed.
    """
    crossed = table.filter(pl.col("status") == "crossed").sort("N")
    if crossed.is_empty():
        raise RequestError("No run crosses any of the loss levels; there is nothing to draw.")
    least = crossed["S_min"].null_count() == 0
    names = ("S_min", "E_min") if least else ("S", "tokens")
    labels = (
        (r"$S_{min}$ (steps to the loss, B $\gg B_{crit}$)",
         r"$E_{min}$ (tokens to the loss, B $\ll B_{crit}$)")
        if least
        else ("S (steps to the loss)", "D (tokens to the loss)")
    )  # fmt: skip
    levels = crossed["level"].unique().sort().to_list()
    colours = SizeColours(levels)
    figure = Figure(figsize=_WIDE, layout="constrained")
    for axes, name, label in zip(figure.subplots(1, 2), names, labels, strict=True):
        dress(axes)
        for level in levels:
            one = crossed.filter(pl.col("level") == level)
            mean = one.group_by("N", maintain_order=True).agg(pl.col(name).log().mean().exp())
            axes.plot(mean["N"], mean[name], color=colours(level), linewidth=1.1)
            axes.plot(one["N"], one[name], "o", color=colours(level), markersize=3.5)
        log_axis(axes, "x", compact=True, decades=6)
        log_axis(axes, "y", compact=True)
        axes.set_xlabel("N (parameters)")
        axes.set_ylabel(label)
    figure.suptitle("Steps and tokens to the same loss, by size")
    legend(figure, size_handles(levels, colours, "L", _ENTRIES))
    return figure


def curve_slopes(slopes: Mapping[str, Any]) -> Figure:
    """The exponent of the learning curves of each size with its interval, and the shared one.

    `slopes` as of `Fit.slopes`: `laws.slopes.Slopes` as plain data. Right: the slope of ln L
    against ln S itself, without any E, which mixes floor and exponent.
    """
    figure = Figure(figsize=_WIDE, layout="constrained")
    own, plain = figure.subplots(1, 2, sharex=True)
    every = pl.DataFrame(slopes["sizes"], infer_schema_length=None)
    table = every.drop_nulls("alpha").cast({"alpha_low": pl.Float64, "alpha_high": pl.Float64})
    for axes in (own, plain):
        dress(axes)
    value = table["alpha"].to_numpy()
    ends = table.select("alpha_low", "alpha_high").to_numpy().T
    reach = np.where(np.isfinite(ends), np.abs(ends - value), 0.0)
    own.errorbar(table["N"], value, yerr=reach, fmt="o", color=PLAIN, markersize=4.5,
                 elinewidth=1.2, capsize=2.5)  # fmt: skip
    shared, p_value = slopes["shared_alpha"], slopes["p_value"]
    own.axhline(shared, color=INK, linestyle="--", linewidth=1.1)
    plain.plot(every["N"], every["plain_slope"], "o", color=PLAIN, markersize=4.5)
    chance = "no test" if p_value is None else f"one exponent: p = {number(p_value)}"
    own.set_title(rf"$\alpha$ of $E + (S_c / S)^{{\alpha}}$; {chance}", fontsize=10)
    plain.set_title("slope of ln L against ln S, without E", fontsize=10)
    for axes in (own, plain):
        log_axis(axes, "x", compact=True, decades=6)
        axes.set_xlabel("N (parameters)")
    own.set_ylabel(rf"$\alpha$, {slopes['level']:.0%} intervals")
    plain.set_ylabel(r"$-d \ln L / d \ln S$")
    figure.suptitle(f"Exponents of the learning curves, by {slopes['unit']}")
    legend(
        figure,
        [
            Line2D([], [], color=PLAIN, marker="o", linestyle="", label="of one size"),
            Line2D([], [], color=INK, linestyle="--",
                   label=f"of all, {shared:.3f}"),
        ],
    )  # fmt: skip
    return figure
