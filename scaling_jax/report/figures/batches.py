"""Batch sizes: the critical one measured in two ways, and the one that a policy chose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scaling_jax.errors import RequestError
from scaling_jax.laws.forms import critical_batch
from scaling_jax.laws.published import published
from scaling_jax.report.figures.style import (
    FAINT,
    INK,
    LOSS,
    dress,
    legend,
    log_axis,
    new_figure,
    number,
)

if TYPE_CHECKING:
    from scaling_jax.laws.critical_batch import Ladder
    from scaling_jax.laws.hyperbola import Bounded
    from scaling_jax.laws.noise_critical import NoiseRung
    from scaling_jax.records.store import Records

_DIRECT, _NOISE, _MEAN = INK, "#b5482f", "#31688e"
# Measured elsewhere, on other corpora and vocabularies, and so at other losses.
_PUBLISHED = {
    "kaplan2020.b_crit": ("Kaplan et al. 2020", ":"),
    "shehper.b_crit": ("the same law,\non OpenWebText", (0, (1, 3))),
}
_MOST_RUNS = 8
_ASIDE = 1.008


def critical_both_ways(
    ladder: Ladder, beside: Sequence[NoiseRung], noise: pl.DataFrame | None = None
) -> Figure:
    """The critical batch (tokens) against the loss, by the sweep itself and by the noise scale.

    `ladder` is of a sweep in tokens, `beside` of `noise_against_critical`. Bars are intervals.
    Circles are E_min / S_min with the fitted B_crit(L); squares are B_simple at the loss; diamonds
    are its mean over the way there, which is what it predicts the circles to be (McCandlish et al.
    2018, eq. 2.12). Points of `noise` (`noise_scale`), where given, are faint behind them. Dotted
    are laws of others (Kaplan et al. 2020, eq. 5.3). Raises RequestError where no level of the
    ladder is identified.
    """
    known = [rung for rung in ladder.rungs if rung.hyperbola.identified]
    if not known:
        raise RequestError("No level of the sweep has a critical batch: there is nothing to draw.")
    figure, axes = new_figure()
    if noise is not None:
        faint = noise.filter(~pl.col("undetermined") & (pl.col("b_simple") > 0))
        axes.scatter(faint["loss"], faint["b_simple"], s=9, color=_NOISE, alpha=0.25, linewidths=0)
    _bars(axes, [(each.loss, each.hyperbola.critical("kaplan")) for each in known], _DIRECT, "o")
    # A little aside, so that no bar hides another.
    _bars(axes, [(each.loss * _ASIDE, each.b_simple) for each in beside], _NOISE, "s")
    _bars(axes, [(each.loss / _ASIDE, each.b_mean) for each in beside], _MEAN, "D")
    losses = [rung.loss for rung in known]
    x = np.geomspace(min(losses), max(losses), 100)
    handles = [_mark(_DIRECT, "o", "measured directly,\n$E_{min} / S_{min}$")]
    law = ladder.law
    if law is not None and ladder.definition == "kaplan":
        star, alpha = (each.value or math.nan for each in (law.B_star, law.alpha_B))
        axes.plot(x, critical_batch(x, star, alpha), color=_DIRECT, linewidth=1.3)
        said = rf"$\alpha_B$ = {number(alpha)}" + _ends(law.alpha_B)
        handles.append(Line2D([], [], color=_DIRECT, linewidth=1.3, label=f"its law,\n{said}"))
    if any(each.b_simple.value is not None for each in beside):
        handles += [
            _mark(_NOISE, "s", "noise scale\nat the loss"),
            _mark(_MEAN, "D", "its mean over\nthe way there"),
        ]
    if noise is not None:
        handles.append(
            Line2D([], [], color=_NOISE, alpha=0.4, linestyle="", marker="o", markersize=3,
                   label="noise scale\nof every run")
        )  # fmt: skip
    for name, (label, dots) in _PUBLISHED.items():
        params = published(name).params
        style = {"color": FAINT, "linestyle": dots, "linewidth": 1.3}
        axes.plot(x, critical_batch(x, params["B_star"], params["alpha_B"]), zorder=1, **style)
        handles.append(Line2D([], [], label=label, **style))
    log_axis(axes, "x")
    log_axis(axes, "y", compact=True)
    axes.invert_xaxis()
    axes.set_xlabel(f"{LOSS}, falling to the right")
    axes.set_ylabel("Batch (tokens)")
    axes.set_title("The critical batch, measured in two ways")
    legend(figure, handles)
    return figure


def batch_over_training(records: Records, noise: pl.DataFrame | None = None) -> Figure:
    """The batch of every run whose batch changed, against tokens; below, its learning rate.

    Points are the noise scale of the same runs with intervals, triangles its lower bounds, from
    the frame `noise` of `noise_scale`. Raises RequestError where no batch changed.
    """
    curves = records.curves.filter(pl.col("batch_tokens") > 0).sort("run_id", "step")
    sizes = curves.group_by("run_id", maintain_order=True).agg(pl.col("batch_tokens").n_unique())
    changed = sizes.filter(pl.col("batch_tokens") > 1)["run_id"].to_list()[:_MOST_RUNS]
    if not changed:
        raise RequestError("No run changed its batch; there is nothing to draw.")
    figure = Figure(figsize=(8.0, 6.0), layout="constrained")
    batch, rate = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    for axes in (batch, rate):
        dress(axes)
    names = dict(records.runs.select("run_id", "name").iter_rows())
    handles = []
    for i, run_id in enumerate(changed):
        colour = colormaps["viridis"](0.82 * i / max(len(changed) - 1, 1))
        curve = curves.filter((pl.col("run_id") == run_id) & (pl.col("step") > 0))
        batch.step(curve["tokens"], curve["batch_tokens"], where="pre", color=colour, linewidth=1.8)
        rate.step(curve["tokens"], curve["lr"], where="pre", color=colour, linewidth=1.4)
        handles.append(Line2D([], [], color=colour, linewidth=1.8, label=names.get(run_id, run_id)))
        if noise is not None:
            _scale_over_tokens(batch, noise.filter(run_id=run_id), colour)
    handles.append(Line2D([], [], color=INK, linewidth=1.8, label="batch"))
    if noise is not None:
        handles.append(_mark(INK, "o", "noise scale"))
        if noise.filter(pl.col("run_id").is_in(changed))["undetermined"].any():
            handles.append(_mark(INK, "^", "its lower bound"))
    log_axis(batch, "x", compact=True)
    for axes in (batch, rate):
        log_axis(axes, "y", compact=axes is batch)
    batch.set_ylabel("Batch and noise scale (tokens)")
    rate.set_ylabel("Learning rate")
    rate.set_xlabel("Tokens seen")
    batch.set_title("The batch over training")
    legend(figure, handles)
    return figure


def _scale_over_tokens(axes: Axes, run: pl.DataFrame, colour: tuple[float, ...]) -> None:
    known = run.filter(~pl.col("undetermined") & (pl.col("b_simple_low") > 0))
    centre, low, high = (known[f"b_simple{end}"].to_numpy() for end in ("", "_low", "_high"))
    axes.errorbar(
        known["tokens"], centre, yerr=[centre - low, high - centre], color=colour, linestyle="",
        marker="o", markersize=3.5, elinewidth=0.9, capsize=2, alpha=0.7,
    )  # fmt: skip
    bound = run.filter(pl.col("undetermined") & (pl.col("b_simple_low") > 0))
    axes.scatter(
        bound["tokens"], bound["b_simple_low"], marker="^", s=20, color=[colour], alpha=0.7
    )


def _bars(axes: Axes, points: list[tuple[float, Bounded]], colour: str, marker: str) -> None:
    for loss, (value, _, low, high) in points:
        if value is None:
            continue
        below = 0.0 if low is None else value - low
        above = 0.0 if high is None else high - value
        axes.errorbar(
            [loss], [value], yerr=[[below], [above]], color=colour, marker=marker, markersize=5,
            elinewidth=1.2, capsize=2.5, zorder=3,
        )  # fmt: skip


def _mark(colour: str, marker: str, label: str) -> Line2D:
    return Line2D([], [], color=colour, linestyle="", marker=marker, markersize=5, label=label)


def _ends(estimate: Bounded) -> str:
    low, high = estimate.low, estimate.high
    return "" if low is None or high is None else f"\n({number(low)} to {number(high)})"
