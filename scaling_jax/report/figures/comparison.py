"""Forms of the loss in one variable, and the loss on another corpus against the training one."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from scaling_jax.laws.comparison import UNDECIDED
from scaling_jax.report.figures.style import (
    FAINT,
    INK,
    LOSS,
    PLAIN,
    SIZE,
    dress,
    legend,
    log_axis,
    new_figure,
)

if TYPE_CHECKING:
    from scaling_jax.laws.comparison import Comparison
    from scaling_jax.laws.transfer import TransferLine

_STYLES: dict[str, tuple[str, Literal["-", "--", ":"], str]] = {
    "power_law": ("#31688e", "-", "power law"),
    "power_law_offset": ("#c2571a", "--", "power law\nplus constant"),
    "logarithm": ("#6a51a3", ":", "logarithm"),
}
_UNITS = {"N": "N (parameters)", "D": "D (tokens)", "C": "C (FLOPs)"}


def form_comparison(comparison: Comparison, x: ArrayLike, loss: ArrayLike) -> Figure:
    """Measured loss (n,) against one variable x (n,) with each fitted form; residuals below.

    Diamonds are the largest values, which each form predicted from the others; the lines are the
    fits to all points. The legend has the rms error of those predictions. Kaplan et al. 2020,
    Fig. 23.
    """
    x, loss = np.asarray(x, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    figure = Figure(figsize=SIZE, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.6, 1])
    dress(upper)
    dress(lower)
    ahead = x >= comparison.held_out_values.min() * (1 - 1e-9)
    fine = np.geomspace(x.min(), x.max(), 200)
    handles = []
    for name, form in comparison.forms.items():
        colour, dash, words = _STYLES[name]
        upper.plot(fine, comparison.predict(name, fine), color=colour, linestyle=dash, zorder=2)
        residual = 100 * (loss / comparison.predict(name, x) - 1)
        for rows, marker in ((~ahead, "o"), (ahead, "D")):
            lower.scatter(x[rows], residual[rows], s=16, marker=marker, color=colour, zorder=3)
        error = "no prediction" if form.held_out is None else f"{form.held_out:.2%} held out"
        if form.at_bound:
            error = "constant is 0"
        label = f"{words}\n({error})"
        handles.append(Line2D([], [], color=colour, linestyle=dash, linewidth=2, label=label))
    for rows, marker, label in ((~ahead, "o", "measured"), (ahead, "D", "measured,\nheld out")):
        upper.scatter(x[rows], loss[rows], s=22, marker=marker, color=INK, zorder=4)
        handles.append(
            Line2D([], [], linestyle="", marker=marker, color=INK, markersize=5, label=label)
        )
    log_axis(upper, "x", compact=True)
    log_axis(upper, "y")
    lower.axhline(0, color=INK, linewidth=0.8)
    lower.set_ylabel("Residual (%)")
    lower.set_xlabel(_UNITS.get(comparison.variable, comparison.variable))
    upper.set_ylabel(LOSS)
    chosen = comparison.chosen
    words = chosen if chosen == UNDECIDED else " ".join(_STYLES[chosen][2].split())
    upper.set_title(f"Form that predicts the largest best: {words}", fontsize=10)
    legend(figure, handles)
    return figure


def transfer(
    line: TransferLine,
    loss_train: ArrayLike,
    loss_other: ArrayLike,
    phase: ArrayLike | None = None,
    corpus: str = "the other corpus",
) -> Figure:
    """Loss on `corpus` (n,) against loss on the training corpus (n,), with the fitted line.

    `phase` (n,) sets its two labels apart: circles for the one with more points, diamonds for the
    other. The thin line is equal loss. Kaplan et al. 2020, Fig. 8 right.
    """
    x, y = (np.asarray(values, dtype=np.float64) for values in (loss_train, loss_other))
    label = np.full(x.size, "measured") if phase is None else np.asarray(phase).astype(str)
    names, count = np.unique(label, return_counts=True)
    figure, axes = new_figure()
    handles = []
    for order, i in enumerate(np.argsort(-count, kind="stable")):
        marker, colour = (("o", PLAIN), ("D", "#c2571a"))[min(order, 1)]
        rows = label == names[i]
        axes.scatter(x[rows], y[rows], s=(14, 30)[min(order, 1)], marker=marker, color=colour,
                     alpha=0.8, zorder=3 + order)  # fmt: skip
        handles.append(
            Line2D([], [], linestyle="", marker=marker, color=colour, label=str(names[i]))
        )
    ends = np.array([x.min(), x.max()])
    axes.plot(ends, line.predict(ends), color=INK, linewidth=1.4)
    axes.plot(ends, ends, color=FAINT, linewidth=0.9, linestyle=":")
    axes.set_xlabel("Loss on the training corpus (nats a token)")
    axes.set_ylabel(f"Loss on {corpus} (nats a token)")
    slope, gap = line.slope, line.gap
    said = (
        f"slope {slope.value:.4g} ({slope.low:.4g} to {slope.high:.4g}), gap at "
        f"{line.centre:.3g} nats {gap.value:.3g} ({gap.low:.3g} to {gap.high:.3g})"
    )
    test = line.phase_test
    if test is not None and test.p_value is not None:
        said += f"\none line for both phases: p = {test.p_value:.2g}"
    elif test is not None:
        said += "\n" + textwrap.fill(f"phases not tested: {test.reason}", 80)
    axes.set_title(said, fontsize=10)
    handles += [
        Line2D([], [], color=INK, linewidth=1.4, label="fitted"),
        Line2D([], [], color=FAINT, linewidth=0.9, linestyle=":", label="equal loss"),
    ]
    legend(figure, handles)
    return figure
