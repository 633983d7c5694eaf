"""The gradient noise scale."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scaling_jax.report.figures.style import (
    INK,
    LONGEST,
    SizeColours,
    legend,
    level_line,
    log_axis,
    new_figure,
    size_handles,
)


def noise_against_loss(frame: pl.DataFrame, colours: SizeColours | None = None) -> Figure:
    """B_simple (tokens) against training loss (nats a token) by N; training runs left to right.

    Bars are intervals. Triangles are lower bounds where |G|^2 is not above zero. `frame` is that
    of `laws.noise_scale`; of each size the runs are drawn that went on longest.
    """
    colours = colours or SizeColours(frame["params_non_embedding"].drop_nulls())
    last = pl.col("step").max()
    drawn = frame.filter(
        (pl.col("loss") > 0)
        & (pl.col("params_non_embedding") > 0)
        & (last.over("run_id") >= LONGEST * last.over("params_non_embedding"))
    )
    figure, axes = new_figure()
    for (size,), run in drawn.group_by("params_non_embedding", maintain_order=True):
        _noise_bars(axes, run, colours(size))
        bound = run.filter(pl.col("undetermined") & (pl.col("b_simple_low") > 0))
        axes.scatter(bound["loss"], bound["b_simple_low"], marker="^", s=34, color=[colours(size)])
    batches = drawn["batch_tokens"].drop_nulls().unique().sort().to_list()
    for batch in batches:
        level_line(axes, batch, f"batch, {batch:,} tokens", "right")
    axes.set_ylim(*_noise_limits(drawn, batches))
    log_axis(axes, "x")
    log_axis(axes, "y", compact=True)
    axes.invert_xaxis()
    axes.set_xlabel("Training loss (nats a token), falling to the right")
    axes.set_ylabel(r"Noise scale $B_{simple}$ = tr Σ / |G|² (tokens)")
    axes.set_title("Gradient noise scale against loss")
    handles = size_handles(drawn["params_non_embedding"], colours)
    handles.append(Line2D([], [], color=INK, marker="o", markersize=4.5, label="with interval"))
    if drawn["undetermined"].any():
        handles.append(
            Line2D([], [], color=INK, linestyle="", marker="^", label="lower bound only")
        )
    legend(figure, handles)
    return figure


def _noise_bars(axes: Axes, rows: pl.DataFrame, colour: tuple[float, ...]) -> None:
    for _, run in rows.group_by("run_id", maintain_order=True):
        known = ~pl.col("undetermined") & (pl.col("b_simple_low") > 0)
        # A gap where the scale is undetermined, so that no line bridges it.
        run = run.with_columns(
            pl.when(known).then(pl.col(name)).otherwise(math.nan).alias(name)
            for name in ("b_simple_low", "b_simple", "b_simple_high")
        )
        low, centre, high = (
            run[name].to_numpy() for name in ("b_simple_low", "b_simple", "b_simple_high")
        )
        axes.errorbar(
            run["loss"], centre, yerr=np.stack([centre - low, high - centre]), color=colour,
            marker="o", markersize=4.5, linewidth=0.8, elinewidth=1.2, capsize=2.5,
        )  # fmt: skip


def _noise_limits(rows: pl.DataFrame, batches: list[int]) -> tuple[float, float]:
    """Limits that show every estimate and bound; a nearly open interval is cut at the frame."""
    shown = pl.concat([rows["b_simple"], rows.filter("undetermined")["b_simple_low"]])
    values = [*shown.filter(shown > 0), *batches]
    return (min(values) / 3, max(values) * 8) if values else (1.0, 10.0)
