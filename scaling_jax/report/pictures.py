"""What the page of a study shows, with the words beneath, and why the rest cannot be drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.columns import flat_table
from scaling_jax.laws.curves import Grid, curves_at, lower_envelope, sample_efficiency
from scaling_jax.report import figures
from scaling_jax.report.figures.style import LONGEST
from scaling_jax.report.pictures_beside import pictures_beside

if TYPE_CHECKING:
    from scaling_jax.laws.critical_batch import Ladder
    from scaling_jax.laws.noise_report import NoiseReport
    from scaling_jax.laws.result import Fit
    from scaling_jax.records.store import Records
    from scaling_jax.report.beside import Beside

_NUMBERS = ("N", "S", "D", "C", "B", "loss")
_LEVELS = 7  # of loss, to which steps and tokens are counted
_LEAST_SPAN = 1.1  # of those losses, highest over lowest: in less, noise decides


@dataclass(frozen=True)
class Picture:
    """A figure with its title and caption; `stem` is the name of its files."""

    stem: str
    title: str
    caption: str
    figure: Figure


# The caption, and the figure above it.
Drawn = tuple[str, Figure]


def pictures_of(
    records: Records,
    fit: Fit | None,
    noise: NoiseReport | None,
    beside: Beside | None = None,
) -> tuple[list[Picture], list[str]]:
    """The pictures in the order of the page, and a sentence on each that could not be drawn.

    `fit` is None where the law was refused, `noise` None where no moments were recorded; `beside`
    has the losses by position and on other corpora, None of it where nothing was recorded. A study
    without a curve of known size has no pictures of curves, and nothing is said of them.
    """
    sized = records.runs.filter(pl.col("params_non_embedding") > 0)["run_id"]
    drawable = bool(records.curves["run_id"].is_in(sized.implode()).any())
    colours = figures.size_colours(records) if drawable else None
    attempts: list[tuple[str, str, Callable[[], Drawn]]] = []
    if drawable:
        attempts += [
            (
                "learning_curves_steps",
                "Learning curves against steps",
                lambda: _against_steps(records, colours),
            ),
            (
                "learning_curves_tokens",
                "Learning curves against tokens",
                lambda: _against_tokens(records, colours),
            ),
            (
                "loss_against_compute",
                "Loss against compute",
                lambda: _against_compute(records, colours),
            ),
        ]
    if fit is not None:
        attempts.append(("l_ns_fit", "The fit", lambda: _fit_picture(fit, colours)))
    if drawable:
        attempts += [
            ("envelope", "The best loss at each compute", lambda: _envelope(records, fit, colours)),
            (
                "sample_efficiency",
                "Steps and tokens to the same loss",
                lambda: _sample_efficiency(records, fit),
            ),
        ]
    if fit is not None:
        attempts.append(("curve_slopes", "Exponents of single sizes", lambda: _slopes(fit)))
    if noise is not None:
        attempts.append(
            ("noise_against_loss", "Gradient noise scale", lambda: _noise_picture(noise, colours))
        )
        attempts += _of_noise(records, noise)
    if beside is not None:
        attempts += pictures_beside(beside, colours)
    pictures, not_drawn = [], []
    for stem, title, draw in attempts:
        try:
            pictures.append(Picture(stem, title, *draw()))
        except (RequestError, WorkError) as error:
            not_drawn.append(f"{title}: {error}")
    return pictures, not_drawn


def _against_steps(records: Records, colours: figures.SizeColours | None) -> Drawn:
    return (
        "Validation loss as lines, training loss faint behind them. A larger N is lower at "
        "the same step. Above the dotted line a model knows less than pairs of tokens tell.",
        figures.learning_curves(records, "step", colours),
    )


def _against_tokens(records: Records, colours: figures.SizeColours | None) -> Drawn:
    return (
        "The same curves against the tokens seen; equal to the picture above but for the "
        "axis where all runs have one batch size.",
        figures.learning_curves(records, "tokens", colours),
    )


def _against_compute(records: Records, colours: figures.SizeColours | None) -> Drawn:
    return (
        "Every run as a line; circles are the points that no point of less compute beats, in "
        "the colour of their size. Going right, the frontier should pass from small N to "
        "large; where the largest N holds the end alone, it says nothing about larger ones.",
        figures.loss_against_compute(records, colours=colours),
    )


def _fit_picture(fit: Fit, colours: figures.SizeColours | None) -> Drawn:
    return (
        "Dots are measured losses inside the window, lines the fitted law. Residuals "
        "(measured over predicted) should scatter about zero without a bend along S or a "
        "level that goes with N. Diamonds are the largest N, which the held-out check "
        "predicts from the others.",
        figures.l_ns_fit(fit, colours),
    )


def _noise_picture(noise: NoiseReport, colours: figures.SizeColours | None) -> Drawn:
    return (
        "The simple noise scale rises as loss falls, and depends on N mostly through the "
        "loss. Where it lies above the dotted batch size, a larger batch would have "
        "needed fewer steps. Triangles are lower bounds, where |G|² is not above zero; "
        "bars may be cut at the frame. Of each size only the longest runs are drawn. Dashed: the "
        "law of the loss, where the points carry one.",
        figures.noise_against_loss(noise.main, colours, noise.law),
    )


def _of_noise(records: Records, noise: NoiseReport) -> list[tuple[str, str, Callable[[], Drawn]]]:
    """What only some studies measure: parts, the critical batch directly, a batch that changes."""
    attempts: list[tuple[str, str, Callable[[], Drawn]]] = []
    if noise.ratios:
        attempts.append(("noise_parts", "Noise scale by part", lambda: _parts_picture(noise)))
    ladder = noise.ladder
    if ladder is not None and any(rung.hyperbola.identified for rung in ladder.rungs):
        attempts.append(
            ("critical_both_ways", "Critical batch, in two ways",
             lambda: _both_ways(ladder, noise))
        )  # fmt: skip
    batches = pl.col("batch_tokens").drop_nulls().n_unique()
    if (records.curves.group_by("run_id").agg(batches)["batch_tokens"] > 1).any():
        attempts.append(
            ("batch_over_training", "The batch over training",
             lambda: _batch_picture(records, noise))
        )  # fmt: skip
    return attempts


def _parts_picture(noise: NoiseReport) -> Drawn:
    return (
        "The noise scale of single kinds of parameters, of single sequences and under other "
        "metrics, at the same points; right, over that of the total. Where the LayerNorms keep one "
        "ratio they are enough to tell the total. Ratios with intervals are of all points, the "
        "undetermined ones too, which are not drawn.",
        figures.noise_parts(noise.points, noise.ratios),
    )


def _both_ways(ladder: Ladder, noise: NoiseReport) -> Drawn:
    return (
        "Circles: E_min / S_min of the batch sweep, of the whole way to each loss. Squares: the "
        "noise scale at the loss, of a run at the critical batch; diamonds: its mean over the way, "
        "which is what it predicts the circles to be. Dotted laws are of other corpora and "
        "vocabularies.",
        figures.critical_both_ways(ladder, noise.critical, noise.main),
    )


def _batch_picture(records: Records, noise: NoiseReport) -> Drawn:
    return (
        "The batch of the runs that changed it, with their noise scale, and the learning rate "
        "below: a rate that falls raises the noise scale by itself.",
        figures.batch_over_training(records, noise.main),
    )


def _envelope(records: Records, fit: Fit | None, colours: figures.SizeColours | None) -> Drawn:
    points = _measured(records)
    critical = None if fit is None else fit.critical_batch
    grid = _grid(points, None)
    if lower_envelope(grid)["edge"].all():
        raise WorkError(
            "at every compute the best size is the smallest or the largest with a curve there, "
            "so that a better one may lie beyond"
        )
    words = (
        "Dashed: the same in C_min, what each loss takes at a batch far below the critical one."
        if critical
        else "C is at the batch of the study, and not C_min, which needs B_crit(L)."
    )
    return (
        "Smoothed validation curves of every run and the least loss among them. Hollow points are "
        "won by the smallest or the largest size with a curve there: a size beyond might be "
        f"better, and the exponent leaves them out. {words}",
        figures.envelope(grid, _grid(points, critical) if critical else None, colours),
    )


def _grid(points: pl.DataFrame, critical: dict[str, float] | None) -> Grid:
    compute, loss, run, N, D, B = (points[name] for name in ("C", "loss", "run", "N", "D", "B"))
    return curves_at(compute, loss, run, N, D, batch_tokens=B, critical=critical)


def _sample_efficiency(records: Records, fit: Fit | None) -> Drawn:
    points = _measured(records)
    if fit is not None:  # of each size the runs at its best learning rate
        points = points.filter(pl.col("run").is_in(fit.points["run_id"].unique().to_list()))
    else:
        last = pl.col("S").max()
        points = points.filter(last.over("run") >= LONGEST * last.over("N"))
    critical = None if fit is None else fit.critical_batch
    run, N, S, loss, B = (points[name] for name in ("run", "N", "S", "loss", "B"))
    levels = _ladder(points, records.runs["bigram_nats"])
    table = sample_efficiency(run, N, S, loss, B, levels, critical)
    words = (
        "Converted to a batch far above and far below the critical one."
        if critical
        else "Counted at the batch of the study, and not S_min and E_min, which need B_crit(L)."
    )
    return (
        "What each size takes to each loss of a ladder, from smoothed validation curves. A larger "
        "N needs fewer steps and fewer tokens; a line ends at the smallest size that got there. "
        + words,
        figures.sample_efficiency(table),
    )


def _ladder(points: pl.DataFrame, floors: pl.Series) -> np.ndarray:
    """Losses that every run has above it at first, and two sizes below it at last.

    No level lies above the loss of a bigram model, where one is known.
    """
    of_size = points.group_by("N").agg(least=pl.col("loss").min())["least"].sort()
    if of_size.len() < 2:
        raise WorkError(f"{of_size.len()} of the sizes to compare have a curve, and 2 are needed")
    first = points.group_by("run").agg(pl.col("loss").max())["loss"]
    top = float(min([*first, *floors.drop_nulls()]))
    bottom = float(of_size[1])
    if top < _LEAST_SPAN * bottom:
        raise WorkError(
            f"every run passes {top:.4g} nats and only one size gets below {bottom:.4g}, which is "
            "too short a way to compare sizes on"
        )
    ladder = np.geomspace(top, bottom, _LEVELS + 2)[1:-1]
    return np.unique([float(f"{level:.3g}") for level in ladder])


def _slopes(fit: Fit) -> Drawn:
    if fit.slopes is None:
        why = [lamp.text for lamp in fit.lamps if lamp.name == "equal_slopes"]
        raise WorkError(why[0] if why else "the fit has none")
    notes = "".join(f" Note: {flag}." for flag in fit.slopes["flags"])
    return (
        "The law gives all sizes one exponent of S. Left, the exponent of each size by itself, "
        "with a floor E of its own; a small p says that they are not one. Right, the mean slope "
        "of each curve in logarithms, which a floor makes flatter." + notes,
        figures.curve_slopes(fit.slopes),
    )


def _measured(records: Records) -> pl.DataFrame:
    """Every evaluation whose size, step, tokens, compute and batch are known, by role."""
    points = flat_table(records, required=("run", *_NUMBERS)).points
    known = pl.all_horizontal(pl.col(name).is_finite() & (pl.col(name) > 0) for name in _NUMBERS)
    points = points.filter(known)
    if points.is_empty():
        raise WorkError("no loss is recorded with its size, step, tokens, compute and batch")
    return points
