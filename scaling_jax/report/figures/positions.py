"""Loss by position in the context: along it, over training, and against the size of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scaling_jax.errors import RequestError
from scaling_jax.laws.describe_positions import octave_name
from scaling_jax.laws.position_law import FIRST
from scaling_jax.laws.positions import coarser
from scaling_jax.report.figures.style import (
    INK,
    LOSS,
    SizeColours,
    legend,
    log_axis,
    new_figure,
    number,
)

if TYPE_CHECKING:
    from scaling_jax.laws.positions import Positions, RunPositions

_CONTEXTS = ("-", "--", ":", "-.")  # of the lengths of the context, longest first
_MOST_SIZES = 12
_PER_OCTAVE = 8  # means that are drawn: single positions scatter, and hide each other


def loss_by_position(found: Positions, colours: SizeColours | None = None) -> Figure:
    """Loss of the best run of each size against the position, with a + b T^-c; both logarithmic.

    A dot is the mean over an eighth of an octave at its geometric middle; thin lines join those of
    a run without a form. Kaplan et al. 2020, Fig. 20 left. Raises RequestError where no run has a
    known size.
    """
    runs = _sizes(found)
    colours = colours or SizeColours(run.N for run in runs if run.N)
    figure, axes = new_figure()
    handles = []
    for run in runs:
        colour = colours(run.N or 1)
        dots = coarser(run.bins, _PER_OCTAVE)
        middle = (dots["position_start"] * dots["position"]).cast(pl.Float64).sqrt()
        axes.plot(middle, dots["loss"], ".", color=colour, markersize=5, alpha=0.6)
        label = _size(run, runs)
        if run.law is not None and run.law.identified:
            fine = np.geomspace(FIRST, dots["position"][-1], 200)
            axes.plot(fine, run.law.predict(fine), color=colour, linewidth=1.6)
            a, b, c = (getattr(run.law, name).value for name in "abc")
            label += f"\n{a:.2f} + {b:.2f} $T^{{-{c:.2f}}}$"
        else:
            axes.plot(middle, dots["loss"], color=colour, linewidth=0.8, alpha=0.5)
        handles.append(Line2D([], [], color=colour, linewidth=2.5, label=label))
    log_axis(axes, "x", compact=True)
    log_axis(axes, "y")
    axes.set_xlabel("Position T in the context (tokens before the target)")
    axes.set_ylabel(LOSS)
    axes.set_title("Loss along the context")
    legend(figure, handles)
    return figure


def position_over_training(found: Positions, run_id: str | None = None) -> Figure:
    """Loss of one run around several positions against steps, by default of the largest size.

    Positions are octaves around powers of two. Kaplan et al. 2020, Fig. 20 right. Raises
    RequestError where the run has a single evaluation.
    """
    run = next((each for each in found.runs if each.run_id == run_id), found.runs[-1])
    table = found.octaves.filter(pl.col("run_id") == run.run_id, pl.col("step") > 0)
    if table["step"].n_unique() < 2:
        raise RequestError(f"{run.name} has one evaluation by position: no course of training.")
    colours = SizeColours(table["octave"])
    figure, axes = new_figure()
    handles = []
    for (octave,), part in table.sort("octave", "step").group_by("octave", maintain_order=True):
        colour = colours(octave)  # pyright: ignore[reportArgumentType]
        axes.plot(part["step"], part["loss"], color=colour, linewidth=1.6)
        first, last = part.select("position_start", "position").row(0)
        handles.append(
            Line2D([], [], color=colour, linewidth=2.5, label=f"T = {octave_name(first, last)}")
        )
    log_axis(axes, "x", compact=True)
    log_axis(axes, "y")
    axes.set_xlabel("Steps (optimizer updates)")
    axes.set_ylabel(LOSS)
    which = run.name if run.N is None else f"N = {number(run.N)}"
    axes.set_title(f"Loss around each position over training, {which}")
    legend(figure, handles)
    return figure


def loss_against_size(found: Positions) -> Figure:
    """Loss around fixed positions against N, of the best run of each size.

    Lengths of the context have lines of their own. Kaplan et al. 2020, Fig. 21. Raises
    RequestError where fewer than two sizes are known.
    """
    runs = _sizes(found)
    if len({run.N for run in runs}) < 2:
        raise RequestError("One size has losses by position: nothing to draw them against.")
    octaves = pl.concat([found.at_step(run) for run in runs]).sort("octave", "N")
    colours = SizeColours(octaves["octave"])
    contexts = sorted({run.n_ctx for run in runs}, key=lambda n: -(n or 0))
    figure, axes = new_figure()
    names: dict[float, str] = {}
    for (octave, n_ctx), part in octaves.group_by("octave", "n_ctx", maintain_order=True):
        power = float(octave)  # pyright: ignore[reportArgumentType]
        first, last = part.select("position_start", "position").row(0)
        if n_ctx == contexts[0] or power not in names:
            names[power] = octave_name(first, last)
        dash = _CONTEXTS[min(contexts.index(n_ctx), len(_CONTEXTS) - 1)]
        axes.plot(part["N"], part["loss"], dash, color=colours(power), linewidth=1.4, marker="o",
                  markersize=4)  # fmt: skip
    handles = [
        Line2D([], [], color=colours(power), linewidth=2.5, label=f"T = {name}")
        for power, name in sorted(names.items())
    ]
    if len(contexts) > 1:
        handles += [
            Line2D([], [], color=INK, linestyle=_CONTEXTS[min(i, len(_CONTEXTS) - 1)],
                   label=f"context {n_ctx}")
            for i, n_ctx in enumerate(contexts)
        ]  # fmt: skip
    log_axis(axes, "x", compact=True)
    log_axis(axes, "y")
    axes.set_xlabel("N (parameters without embeddings)")
    axes.set_ylabel(LOSS)
    axes.set_title("Loss around fixed positions against the size of the model")
    legend(figure, handles)
    return figure


def _sizes(found: Positions) -> list[RunPositions]:
    """The best run of each size, evenly chosen where there are many."""
    runs = found.best_of_size()
    if not runs:
        raise RequestError("No run with losses by position has a known size.")
    if len(runs) > _MOST_SIZES:
        runs = [runs[round(i)] for i in np.linspace(0, len(runs) - 1, _MOST_SIZES)]
    return runs


def _size(run: RunPositions, runs: list[RunPositions]) -> str:
    several = len({each.n_ctx for each in runs}) > 1
    return f"N = {number(run.N or 1)}" + (f", context {run.n_ctx}" if several else "")
