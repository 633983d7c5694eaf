"""Learning curves: loss against steps, tokens and compute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scaling_jax.errors import RequestError
from scaling_jax.report.figures.style import (
    INK,
    LONGEST,
    LOSS,
    SizeColours,
    legend,
    level_line,
    log_axis,
    new_figure,
    size_handles,
)

if TYPE_CHECKING:
    from scaling_jax.records.store import Records


def size_colours(records: Records) -> SizeColours:
    """The colours of the sizes that have curves, for several figures of one study."""
    return SizeColours(_drawn_sizes(records))


def learning_curves(
    records: Records, x: Literal["step", "tokens"] = "step", colours: SizeColours | None = None
) -> Figure:
    """Loss of every run against steps or tokens: validation as lines, training faint beneath.

    Losses are nats a token. A window of training loss stands at its geometric middle. Raises
    RequestError where there is nothing on that axis.
    """
    colours = colours or size_colours(records)
    if records.curves.filter(pl.col(x) > 0).is_empty():
        raise RequestError(f"The curves have no {x}; there is nothing to draw against it.")
    figure, axes = new_figure()
    has_validation = False
    for run, curve in _curves(records):
        colour, style = colours(run["params_non_embedding"]), "-" if run["longest"] else "--"
        middle = ((pl.col("step_start") + 1) * pl.col("step")).sqrt()
        train = curve.filter(pl.col("train_loss").is_finite()).with_columns(
            at=middle if x == "step" else pl.col("tokens") * middle / pl.col("step")
        )
        evaluated = curve.filter(pl.col("val_loss").is_finite() & (pl.col("step") > 0))
        alone = evaluated.is_empty()
        axes.plot(
            train["at"],
            train["train_loss"],
            style,
            color=colour,
            alpha=1.0 if alone else 0.25,
            linewidth=1.4 if alone else 0.8,
        )
        axes.plot(evaluated[x], evaluated["val_loss"], style, color=colour, linewidth=1.6)
        has_validation |= not alone
    _bigram_floor(axes, records)
    log_axis(axes, "x", compact=True)
    log_axis(axes, "y")
    axes.set_xlabel("Steps (optimizer updates)" if x == "step" else "Tokens seen")
    axes.set_ylabel(LOSS)
    axes.set_title("Learning curves by model size")
    kinds = [Line2D([], [], color=INK, linewidth=1.6, label="validation")] if has_validation else []
    kinds.append(
        Line2D(
            [],
            [],
            color=INK,
            alpha=0.3 if has_validation else 1.0,
            linewidth=0.9,
            label="training",
        )
    )
    legend(
        figure, [*size_handles(_drawn_sizes(records), colours), *kinds, *_shorter_handle(records)]
    )
    return figure


def loss_against_compute(
    records: Records, column: str = "flops_6n", colours: SizeColours | None = None
) -> Figure:
    """Loss against the compute column (FLOPs), with the frontier: points that nothing beats.

    Loss is the validation loss where it was measured, else the training loss, nats a token.
    Raises RequestError for a compute column that is not recorded.
    """
    if column not in records.curves.columns or records.curves[column].null_count() == len(
        records.curves
    ):
        raise RequestError(f"The curves have no {column}; compute is flops_6n or flops_exact.")
    colours = colours or size_colours(records)
    figure, axes = new_figure()
    points = []
    for run, curve in _curves(records):
        loss = "train_loss" if curve["val_loss"].null_count() == len(curve) else "val_loss"
        curve = curve.filter(pl.col(loss).is_finite() & (pl.col(column) > 0))
        colour, style = colours(run["params_non_embedding"]), "-" if run["longest"] else "--"
        axes.plot(curve[column], curve[loss], style, color=colour, linewidth=1.2, alpha=0.8)
        points += [(c, value, colour) for c, value in curve.select(column, loss).iter_rows()]
    efficient = _frontier(points)
    compute, loss = [point[0] for point in efficient], [point[1] for point in efficient]
    axes.plot(compute, loss, color=INK, linewidth=1.0, zorder=3)
    axes.scatter(
        compute, loss, s=20, c=[p[2] for p in efficient], edgecolors=INK, linewidths=0.6, zorder=4
    )
    _bigram_floor(axes, records)
    log_axis(axes, "x")
    log_axis(axes, "y")
    convention = {
        "flops_6n": "C = 6 N · tokens, N without embeddings",
        "flops_exact": "exact count",
    }
    axes.set_xlabel(f"Compute (FLOPs; {convention.get(column, column)})")
    axes.set_ylabel(LOSS)
    axes.set_title("Loss against compute, with the efficient frontier")
    frontier = Line2D(
        [], [], color=INK, linewidth=1, marker="o", markersize=4.5, mfc="none", label="frontier"
    )
    legend(
        figure,
        [*size_handles(_drawn_sizes(records), colours), frontier, *_shorter_handle(records)],
    )
    return figure


def _curves(records: Records) -> list[tuple[dict, pl.DataFrame]]:
    """Runs with a size and a curve, smallest first, each marked where it is its size's longest.

    Raises RequestError where there is none.
    """
    last = records.curves.group_by("run_id").agg(last_step=pl.col("step").max())
    runs = (
        records.runs.filter(pl.col("params_non_embedding") > 0)
        .join(last, on="run_id")
        .with_columns(
            longest=pl.col("last_step")
            >= LONGEST * pl.col("last_step").max().over("params_non_embedding")
        )
        .sort("params_non_embedding", "run_id")
    )
    if runs.is_empty():
        raise RequestError(
            f"{records.source} has no curve of a run whose params_non_embedding is known; "
            "there is nothing to draw."
        )
    return [
        (run, records.curves.filter(pl.col("run_id") == run["run_id"]).sort("step"))
        for run in runs.iter_rows(named=True)
    ]


def _drawn_sizes(records: Records) -> list[int]:
    return [run["params_non_embedding"] for run, _ in _curves(records)]


def _frontier(points: list[tuple]) -> list[tuple]:
    """The points with a lower loss than every point of less compute."""
    efficient: list[tuple] = []
    for point in sorted(points, key=lambda point: point[:2]):
        if not efficient or point[1] < efficient[-1][1]:
            efficient.append(point)
    return efficient


def _bigram_floor(axes: Axes, records: Records) -> None:
    for floor in records.runs["bigram_nats"].drop_nulls().unique().sort():
        level_line(axes, floor, f"bigram model, {floor:.2f}", "left")


def _shorter_handle(records: Records) -> list[Line2D]:
    if all(run["longest"] for run, _ in _curves(records)):
        return []
    return [Line2D([], [], color=INK, linestyle="--", linewidth=1.2, label="shorter run")]
