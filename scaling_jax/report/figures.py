"""The figures of a report, each a matplotlib Figure of its own; nothing goes through pyplot."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from scaling_jax.errors import RequestError
from scaling_jax.laws.noise_scale import short_number

if TYPE_CHECKING:
    from scaling_jax.laws.result import Fit
    from scaling_jax.records.store import Records

_SIZE = (8.0, 5.0)
_INK, _FAINT = "#222222", "#8a8a8a"
_LOSS = "Loss (nats a token)"
# Where an axis spans less than this, decades alone would leave it without labels.
_SHORT_AXIS_DECADES = 2.2
# A run with this share of the steps of its size's longest run is one of the longest.
_LONGEST = 0.9
_PLAIN_TICKS = (
    (1, 2, 5),
    (1, 1.5, 2, 3, 4, 5, 7),
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 8),
)


class SizeColours:
    """One colour for each model size N: viridis without its palest part, on log N."""

    def __init__(self, sizes: Iterable[float]) -> None:
        known = [size for size in sizes if size]
        self._low, self._high = (min(known), max(known)) if known else (1.0, 1.0)

    def __call__(self, size: float) -> tuple[float, float, float, float]:
        span = math.log(self._high / self._low)
        place = math.log(size / self._low) / span if span > 0 else 0.0
        return colormaps["viridis"](0.82 * min(max(place, 0.0), 1.0))


def size_colours(records: Records) -> SizeColours:
    """The colours of the sizes that have curves, for several figures of one study."""
    return SizeColours(_drawn_sizes(records))


def learning_curves(
    records: Records, x: Literal["step", "tokens"] = "step", colours: SizeColours | None = None
) -> Figure:
    """Loss of every run against steps or tokens: validation as lines, training faint beneath.

    Losses are nats a token. A window of training loss stands at its geometric middle.
    """
    colours = colours or size_colours(records)
    figure, axes = _figure()
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
    _log_axis(axes, "x", compact=True)
    _log_axis(axes, "y")
    axes.set_xlabel("Steps (optimizer updates)" if x == "step" else "Tokens seen")
    axes.set_ylabel(_LOSS)
    axes.set_title("Learning curves by model size")
    kinds = (
        [Line2D([], [], color=_INK, linewidth=1.6, label="validation")] if has_validation else []
    )
    kinds.append(
        Line2D(
            [],
            [],
            color=_INK,
            alpha=0.3 if has_validation else 1.0,
            linewidth=0.9,
            label="training",
        )
    )
    _legend(
        figure, [*_size_handles(_drawn_sizes(records), colours), *kinds, *_shorter_handle(records)]
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
    figure, axes = _figure()
    points = []
    for run, curve in _curves(records):
        loss = "train_loss" if curve["val_loss"].null_count() == len(curve) else "val_loss"
        curve = curve.filter(pl.col(loss).is_finite() & (pl.col(column) > 0))
        colour, style = colours(run["params_non_embedding"]), "-" if run["longest"] else "--"
        axes.plot(curve[column], curve[loss], style, color=colour, linewidth=1.2, alpha=0.8)
        points += [(c, value, colour) for c, value in curve.select(column, loss).iter_rows()]
    efficient = _frontier(points)
    compute, loss = [point[0] for point in efficient], [point[1] for point in efficient]
    axes.plot(compute, loss, color=_INK, linewidth=1.0, zorder=3)
    axes.scatter(
        compute, loss, s=20, c=[p[2] for p in efficient], edgecolors=_INK, linewidths=0.6, zorder=4
    )
    _bigram_floor(axes, records)
    _log_axis(axes, "x")
    _log_axis(axes, "y")
    convention = {
        "flops_6n": "C = 6 N · tokens, N without embeddings",
        "flops_exact": "exact count",
    }
    axes.set_xlabel(f"Compute (FLOPs; {convention.get(column, column)})")
    axes.set_ylabel(_LOSS)
    axes.set_title("Loss against compute, with the efficient frontier")
    frontier = Line2D(
        [], [], color=_INK, linewidth=1, marker="o", markersize=4.5, mfc="none", label="frontier"
    )
    _legend(
        figure,
        [*_size_handles(_drawn_sizes(records), colours), frontier, *_shorter_handle(records)],
    )
    return figure


def l_ns_fit(fit: Fit, colours: SizeColours | None = None) -> Figure:
    """Measured loss and the fitted L(N, S) against S, and below them the residuals in per cent.

    Diamonds are the largest N, which the held-out check predicts from the others; the curves are
    those of the fit to all points.
    """
    points = fit.points.sort("N", "S")
    sizes = points["N"].unique().sort().to_list()
    colours = colours or SizeColours(sizes)
    figure = Figure(figsize=_SIZE, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.6, 1])
    for size in sizes:
        own, colour = points.filter(pl.col("N") == size), colours(size)
        fitted = own.unique("S").sort("S")
        marker = {"marker": "D", "s": 20, "facecolors": "none", "edgecolors": [colour]}
        if size != sizes[-1]:
            marker = {"marker": "o", "s": 13, "color": [colour]}
        upper.plot(fitted["S"], fitted["predicted"], color=colour, linewidth=1.3)
        upper.scatter(own["S"], own["loss"], linewidths=1.0, zorder=3, **marker)
        lower.scatter(own["S"], 100 * own["log_residual"], linewidths=1.0, zorder=3, **marker)
    lower.axhline(0, color=_INK, linewidth=0.8)
    for axes in (upper, lower):
        _dress(axes)
        if fit.steps_name != "S_min":  # where S is the step itself
            axes.axvline(fit.window["step_start"], color=_FAINT, linestyle="--", linewidth=1.0)
    _log_axis(upper, "x", compact=True)
    _log_axis(upper, "y")
    upper.tick_params(labelbottom=False)
    upper.set_ylabel(_LOSS)
    lower.set_ylabel("Residual (%)")
    lower.set_xlabel(_steps_label(fit.steps_name))
    upper.set_title("L(N, S): measured points and the fitted law")
    handles = [
        *_size_handles(sizes, colours),
        Line2D([], [], color=_INK, linestyle="", marker="o", markersize=4, label="measured"),
        Line2D(
            [], [], color=_INK, linestyle="", marker="D", mfc="none", markersize=4.5,
            label="largest N: predicted\nfrom the others in\nthe held-out check",
        ),
        Line2D([], [], color=_INK, linewidth=1.3, label="fitted law"),
        Line2D(
            [], [], color=_FAINT, linestyle="--", linewidth=1.0,
            label=f"window from\nstep {fit.window['step_start']:,.0f}",
        ),
    ]  # fmt: skip
    _legend(figure, handles)
    return figure


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
        & (last.over("run_id") >= _LONGEST * last.over("params_non_embedding"))
    )
    figure, axes = _figure()
    for (size,), run in drawn.group_by("params_non_embedding", maintain_order=True):
        _noise_bars(axes, run, colours(size))
        bound = run.filter(pl.col("undetermined") & (pl.col("b_simple_low") > 0))
        axes.scatter(bound["loss"], bound["b_simple_low"], marker="^", s=34, color=[colours(size)])
    batches = drawn["batch_tokens"].drop_nulls().unique().sort().to_list()
    for batch in batches:
        _level_line(axes, batch, f"batch, {batch:,} tokens", "right")
    axes.set_ylim(*_noise_limits(drawn, batches))
    _log_axis(axes, "x")
    _log_axis(axes, "y", compact=True)
    axes.invert_xaxis()
    axes.set_xlabel("Training loss (nats a token), falling to the right")
    axes.set_ylabel(r"Noise scale $B_{simple}$ = tr Σ / |G|² (tokens)")
    axes.set_title("Gradient noise scale against loss")
    handles = _size_handles(drawn["params_non_embedding"], colours)
    handles.append(Line2D([], [], color=_INK, marker="o", markersize=4.5, label="with interval"))
    if drawn["undetermined"].any():
        handles.append(
            Line2D([], [], color=_INK, linestyle="", marker="^", label="lower bound only")
        )
    _legend(figure, handles)
    return figure


def render(figure: Figure, kind: Literal["svg", "png"]) -> bytes:
    """The figure as a file's bytes, the same for the same figure: no date, no random ids."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "scaling_jax"}):
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
    return buffer.getvalue()


def _steps_label(steps_name: str) -> str:
    if steps_name == "S_min":
        return r"$S_{min}$ (steps, converted to a batch far above the critical one)"
    return "S (steps at fixed batch)"


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    _dress(axes)
    return figure, axes


def _dress(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color="#e3e3e3", linewidth=0.7)
    axes.set_axisbelow(True)


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
            >= _LONGEST * pl.col("last_step").max().over("params_non_embedding")
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


def _level_line(axes: Axes, level: float, text: str, side: Literal["left", "right"]) -> None:
    axes.axhline(level, color=_INK, linestyle=":", linewidth=1.2)
    axes.annotate(
        text, (0.005 if side == "left" else 0.995, level), xycoords=("axes fraction", "data"),
        xytext=(0, -4), textcoords="offset points", ha=side, va="top", fontsize=9, color=_INK,
        zorder=5, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
    )  # fmt: skip


def _bigram_floor(axes: Axes, records: Records) -> None:
    for floor in records.runs["bigram_nats"].drop_nulls().unique().sort():
        _level_line(axes, floor, f"bigram model, {floor:.2f}", "left")


def _log_axis(axes: Axes, name: Literal["x", "y"], compact: bool = False) -> None:
    """Log scale with a label on every decade, or on plain numbers where there are few decades."""
    axis = axes.xaxis if name == "x" else axes.yaxis
    (axes.set_xscale if name == "x" else axes.set_yscale)("log")
    low, high = sorted(axis.get_view_interval())
    decades = math.log10(high / low)
    axis.set_minor_formatter(NullFormatter())
    if decades >= _SHORT_AXIS_DECADES:
        axis.set_major_locator(LogLocator(base=10, numticks=12))
        axis.set_minor_locator(LogLocator(base=10, subs=tuple(range(2, 10)), numticks=12))
        if compact:
            axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        return
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in _PLAIN_TICKS:
        ticks = [s * 10.0**p for p in powers for s in steps if low <= s * 10.0**p <= high]
        if len(ticks) >= 5:
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(FixedLocator([]))
    plain = short_number if compact else "{:g}".format
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))


def _size_handles(sizes: Iterable[float], colours: SizeColours) -> list[Line2D]:
    return [
        Line2D([], [], color=colours(size), linewidth=2.5, label=f"N = {short_number(size)}")
        for size in sorted(set(sizes))
    ]


def _shorter_handle(records: Records) -> list[Line2D]:
    if all(run["longest"] for run, _ in _curves(records)):
        return []
    return [Line2D([], [], color=_INK, linestyle="--", linewidth=1.2, label="shorter run")]


def _legend(figure: Figure, handles: list[Line2D]) -> None:
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
