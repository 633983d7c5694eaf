"""The gradient noise scale: against the loss, and by what it was measured of."""

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
from matplotlib.typing import ColorType

from scaling_jax.laws.forms import critical_batch
from scaling_jax.report.figures.style import (
    INK,
    LONGEST,
    SizeColours,
    dress,
    legend,
    level_line,
    log_axis,
    new_figure,
    number,
    size_handles,
)

if TYPE_CHECKING:
    from scaling_jax.laws.noise_law import NoiseLaw
    from scaling_jax.laws.noise_parts import NoiseRatio

FALLING = "Training loss (nats a token), falling to the right"
_SCALE = r"Noise scale $B_{simple}$ = tr Σ / |G|² (tokens)"
_WIDE = (11.0, 4.8)


def noise_against_loss(
    frame: pl.DataFrame, colours: SizeColours | None = None, law: NoiseLaw | None = None
) -> Figure:
    """B_simple (tokens) against training loss (nats a token) by N; training runs left to right.

    Bars are intervals. Triangles are lower bounds where |G|^2 is not above zero. `frame` is that
    of `laws.noise_scale`; of each size the runs are drawn that went on longest. The dashed line is
    the `law`, where there is one, over the losses that it was fitted to.
    """
    colours = colours or SizeColours(frame["params_non_embedding"].drop_nulls())
    drawn = _longest(frame)
    figure, axes = new_figure()
    for (size,), run in drawn.group_by("params_non_embedding", maintain_order=True):
        _noise_bars(axes, run, colours(size))
        bound = run.filter(pl.col("undetermined") & (pl.col("b_simple_low") > 0))
        axes.scatter(bound["loss"], bound["b_simple_low"], marker="^", s=34, color=[colours(size)])
    batches = drawn["batch_tokens"].drop_nulls().unique().sort().to_list()
    for batch in batches:
        level_line(axes, batch, f"batch, {batch:,} tokens", "right")
    handles = size_handles(drawn["params_non_embedding"], colours)
    handles.append(Line2D([], [], color=INK, marker="o", markersize=4.5, label="with interval"))
    if drawn["undetermined"].any():
        handles.append(
            Line2D([], [], color=INK, linestyle="", marker="^", label="lower bound only")
        )
    if law is not None:
        handles += _law_line(axes, law)
    axes.set_ylim(*_noise_limits(drawn, batches))
    log_axis(axes, "x")
    log_axis(axes, "y", compact=True)
    axes.invert_xaxis()
    axes.set_xlabel(FALLING)
    axes.set_ylabel(_SCALE)
    axes.set_title("Gradient noise scale against loss")
    legend(figure, handles)
    return figure


def noise_parts(series: pl.DataFrame, ratios: Sequence[NoiseRatio] = ()) -> Figure:
    """B_simple by source, metric and kind of parameter; left in tokens, right over the total.

    `series` is the frame of `noise_series`, of each size the runs that went on longest; only points
    that are determined are drawn. `ratios` are those of `noise_ratios`: lines, and in the legend
    with their intervals. Gray et al. (2024, arXiv 2411.00999) find one ratio for the
    LayerNorms all along training.
    """
    drawn = _longest(series).filter(~pl.col("undetermined") & (pl.col("b_simple") > 0))
    at = ["run_id", "step_start", "step"]
    main = drawn.filter("main")
    beside = drawn.filter(~pl.col("main")).join(
        main.select(*at, of=pl.col("b_simple")), on=at, how="inner", maintain_order="left"
    )
    names = list(dict.fromkeys(map(_name, beside.iter_rows(named=True))))
    figure = Figure(figsize=_WIDE, layout="constrained")
    tokens, over = figure.subplots(1, 2)
    for axes in (tokens, over):
        dress(axes)
    dots = {"s": 12, "alpha": 0.55, "linewidths": 0}
    tokens.scatter(main["loss"], main["b_simple"], color=INK, zorder=3, **dots)
    over.axhline(1.0, color=INK, linewidth=1.0)
    handles = [_dot(INK, _name(main.row(0, named=True)))]
    means = {_name(each._asdict()): each for each in reversed(ratios)}
    for i, name in enumerate(names):
        colour = colormaps["turbo"](0.08 + 0.84 * i / max(len(names) - 1, 1))
        rows = beside.filter(
            pl.Series([_name(row) == name for row in beside.iter_rows(named=True)])
        )
        tokens.scatter(rows["loss"], rows["b_simple"], color=colour, **dots)
        over.scatter(rows["loss"], rows["b_simple"] / rows["of"], color=colour, **dots)
        mean = means.get(name)
        handles.append(_dot(colour, name))
        if mean is not None and mean.ratio is not None:
            over.axhline(mean.ratio, color=colour, linewidth=1.6)
            handles[-1].set_label(f"{name}\n{_with_interval(mean)}")
    for axes in (tokens, over):
        log_axis(axes, "x")
        log_axis(axes, "y", compact=True)
        axes.invert_xaxis()
        axes.set_xlabel(FALLING)
    tokens.set_ylabel(_SCALE)
    over.set_ylabel(r"$B_{simple}$ over that of the total")
    tokens.set_title("Noise scale by what it is measured of", fontsize=10)
    over.set_title("Over the total; lines are the ratio of all points", fontsize=10)
    legend(figure, handles)
    return figure


def _noise_bars(axes: Axes, rows: pl.DataFrame, colour: ColorType) -> None:
    """The determined points of each run with their intervals, against the loss."""
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


def _law_line(axes: Axes, found: NoiseLaw) -> list[Line2D]:
    """The law over the losses of its points, and its entry in the legend; nothing without one."""
    if found.law is None or found.law.B_star.value is None or found.law.alpha_B.value is None:
        return []
    _, _, low, high = found.law.alpha_B
    losses = found.points["loss"]
    x = np.geomspace(float(losses.min()), float(losses.max()), 100)  # pyright: ignore
    star, alpha = found.law.B_star.value, found.law.alpha_B.value
    style = {"color": INK, "linestyle": "--", "linewidth": 1.4, "zorder": 4}
    axes.plot(x, critical_batch(x, star, alpha), **style)
    ends = "" if low is None or high is None else f"\n({number(low)} to {number(high)})"
    label = r"$B_\ast / L^{1/\alpha_B}$," + "\n" + rf"$\alpha_B$ = {number(alpha)}{ends}"
    if found.law.bent:
        label += "\npoints scatter more\nthan their bars"
    return [Line2D([], [], label=label, **style)]


def _longest(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows with a loss and a size, of the runs of each size that went on longest."""
    last = pl.col("step").max()
    return frame.filter(
        (pl.col("loss") > 0)
        & (pl.col("params_non_embedding") > 0)
        & (last.over("run_id") >= LONGEST * last.over("params_non_embedding"))
    )


def _dot(colour: ColorType, label: str) -> Line2D:
    return Line2D([], [], color=colour, linestyle="", marker="o", markersize=4.5, label=label)


def _name(row: dict) -> str:
    """What a series is, in the words of the legend."""
    said = row["part"].replace("_", " ")
    if row["metric"] != "euclidean":
        said += f", metric of {row['metric'].capitalize()}"
    return said + (", single sequences" if row["source"] == "sequences" else "")


def _with_interval(mean: NoiseRatio) -> str:
    if mean.low is None or mean.high is None or mean.ratio is None:
        return f"{number(mean.ratio or math.nan)}"
    return f"{number(mean.ratio)} ({number(mean.low)} to {number(mean.high)})"


def _noise_limits(rows: pl.DataFrame, batches: list[int]) -> tuple[float, float]:
    """Limits that show every estimate and bound; a nearly open interval is cut at the frame."""
    shown = pl.concat([rows["b_simple"], rows.filter("undetermined")["b_simple_low"]])
    values = [*shown.filter(shown > 0), *batches]
    return (min(values) / 3, max(values) * 8) if values else (1.0, 10.0)
