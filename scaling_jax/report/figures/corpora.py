"""Loss on several corpora: against the size of the model, and against the training corpus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scaling_jax.errors import RequestError
from scaling_jax.laws.corpora import END, corpus_name
from scaling_jax.report.figures.style import FAINT, INK, LOSS, dress, legend, log_axis

if TYPE_CHECKING:
    from scaling_jax.laws.corpora import Corpus, Transfer

_MARKERS = "osD^vPX<>h"


def transfer_corpora(found: Transfer) -> Figure:
    """Left loss against N by corpus, right loss on each corpus against that on the training one.

    Markers are ends of runs, left those with the lowest training loss of each size; dashed is the
    best run of the largest N during training, thin lines the fits. Kaplan et al. 2020, Fig. 8.
    Without sizes the left panel is not there. Raises RequestError where no corpus has a line.
    """
    corpora = [each for each in found.corpora if each.line is not None]
    if not corpora:
        raise RequestError("No other corpus has a line: there is nothing to draw.")
    corpora.sort(key=lambda each: -float(_ends(each)["other"].mean()))  # pyright: ignore[reportArgumentType]
    sized = any(each.points["N"].is_not_null().any() for each in corpora)
    figure = Figure(figsize=(11.5 if sized else 8.0, 5.4), layout="constrained")
    panels = figure.subplots(1, 2 if sized else 1, squeeze=False)[0]
    right = panels[-1]
    for axes in panels:
        dress(axes)
    if sized:
        _against_size(panels[0], corpora)
    _against_training(right, corpora)
    right.set_xlabel(f"Loss on the training corpus ({corpus_name(found.column)}, nats a token)")
    right.set_ylabel("Loss on the other corpus (nats a token)")
    right.set_title("Against the loss on the training corpus", fontsize=11)
    handles = [
        Line2D([], [], color=_colour(i), marker=_marker(i), markersize=5, label=each.name)
        for i, each in enumerate(corpora)
    ]
    if sized:
        handles.append(
            Line2D([], [], color=INK, marker="*", markersize=8, label=corpus_name(found.column))
        )
    handles += [
        Line2D([], [], color=INK, linewidth=0.8, label="fitted"),
        Line2D([], [], color=FAINT, linewidth=0.9, linestyle=":", label="equal loss"),
    ]
    if any(each.points["phase"].null_count() == 0 for each in corpora):
        handles.append(Line2D([], [], color=INK, linestyle="--", linewidth=1.2,
                              label="during training,\nbest of the\nlargest N"))  # fmt: skip
    legend(figure, handles)
    return figure


def _against_size(axes: Axes, corpora: list[Corpus]) -> None:
    for i, each in enumerate(corpora):
        best = _best(each)
        axes.plot(best["N"], best["other"], color=_colour(i), marker=_marker(i), markersize=5,
                  linewidth=1.3)  # fmt: skip
    best = max((_best(each) for each in corpora), key=lambda table: table.height)
    axes.plot(best["N"], best["loss"], color=INK, marker="*", markersize=8, linewidth=1.6)
    log_axis(axes, "x", compact=True)
    log_axis(axes, "y")
    axes.set_xlabel("N (parameters)")
    axes.set_ylabel(LOSS)
    axes.set_title("Against the size of the model", fontsize=11)


def _against_training(axes: Axes, corpora: list[Corpus]) -> None:
    ends = [_ends(each) for each in corpora]
    least = min(float(table["loss"].min()) for table in ends)  # pyright: ignore[reportArgumentType]
    for i, (each, table) in enumerate(zip(corpora, ends, strict=True)):
        axes.plot(table["loss"], table["other"], color=_colour(i), marker=_marker(i), linestyle="",
                  markersize=5, zorder=3)  # fmt: skip
        course = _course(each)
        axes.plot(course["loss"], course["other"], "--", color=_colour(i), linewidth=1.2)
        assert each.line is not None
        reach = np.array([least, max(table["loss"].max(), course["loss"].max() or 0.0)])  # pyright: ignore[reportArgumentType]
        axes.plot(reach, each.line.predict(reach), color=_colour(i), linewidth=0.8, alpha=0.7)
    span = np.array(axes.get_xlim())
    axes.plot(span, span, color=FAINT, linewidth=0.9, linestyle=":")
    axes.set_xlim(*span)


def _ends(each: Corpus) -> pl.DataFrame:
    points = each.points
    return points if points["phase"].null_count() else points.filter(pl.col("phase") == END)


def _best(each: Corpus) -> pl.DataFrame:
    """Of each known size the end with the lowest training loss."""
    known = _ends(each).drop_nulls("N")
    return known.sort("loss").group_by("N", maintain_order=True).first().sort("N")


def _course(each: Corpus) -> pl.DataFrame:
    """All points of the best run of the largest size, or of the best run where none is known."""
    if each.points["phase"].null_count():
        return each.points.clear()
    ends = _ends(each).sort(pl.col("N").fill_null(0), "loss", descending=[True, False])
    return each.points.filter(pl.col("run") == ends["run"][0])


def _colour(i: int) -> tuple[float, float, float, float]:
    return colormaps["tab10"](i % 10)


def _marker(i: int) -> str:
    return _MARKERS[i % len(_MARKERS)]
