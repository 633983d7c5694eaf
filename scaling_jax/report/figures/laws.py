"""Fitted laws beside what was measured, with the residuals below."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from scaling_jax.errors import RequestError
from scaling_jax.laws import frontier
from scaling_jax.laws.forms import LAWS
from scaling_jax.report.figures.style import (
    FAINT,
    INK,
    LOSS,
    PLAIN,
    SIZE,
    SizeColours,
    dress,
    legend,
    log_axis,
    new_figure,
    number,
    size_handles,
)

if TYPE_CHECKING:
    from scaling_jax.laws.profile import Profile
    from scaling_jax.laws.result import Fit

_OUTPUTS = {"loss": LOSS, "B_crit": "Critical batch (tokens)", "S": "S (steps to the loss)"}
_INPUTS = {
    "C": "C (FLOPs)",
    "D": "D (tokens)",
    "L": f"{LOSS}, falling to the right",
    "B": "B (batch, tokens)",
}
_CONVENTIONS = {
    "params_non_embedding": "parameters without embeddings",
    "params_total": "all parameters",
}
# A line for each value up to so many; more are drawn as bands, each about one line.
_MOST_LINES, _BANDS, _MOST_ENTRIES = 24, 8, 9
# An SVG with more points than this holds them as one picture, lest a browser choke on it.
_MOST_VECTOR_POINTS = 3000


def law_fit(fit: Fit, colours: SizeColours | None = None) -> Figure:
    """What was measured and the fitted law, and below them the residuals in per cent.

    Against the law's first input (`l_ns`: against S). A second input has the colour, and the law
    is a line at each of its values, or at eight of them where it has more than 24. Lines of
    `data_constrained` are for tokens that are all new; squares are points whose tokens were
    repeated. Diamonds are the largest N (largest C where the law has no N), which the held-out
    check predicts from the others. The title has the exponents with their intervals.
    """
    if fit.law == "l_ns":
        return l_ns_fit(fit, colours)
    figure, (upper, lower), handles = _beside_residuals(fit, colours)
    if fit.law == "pareto":
        handles += _pareto_marks(upper, fit)
    _finish_axes(upper, lower)
    axis, _ = _axis_and_colour(fit.law)
    if axis == "L":
        upper.invert_xaxis()
    lower.set_xlabel(_size_label(fit.convention) if axis == "N" else _INPUTS[axis])
    upper.set_ylabel(_OUTPUTS[LAWS[fit.law].output])
    legend(figure, handles)
    return figure


def l_ns_fit(fit: Fit, colours: SizeColours | None = None) -> Figure:
    """Measured loss and the fitted L(N, S) against S, and below them the residuals in per cent.

    Diamonds are the largest N, which the held-out check predicts from the others; the curves are
    those of the fit to all points.
    """
    figure, (upper, lower), handles = _beside_residuals(fit, colours)
    if fit.window is not None and fit.steps_name != "S_min":  # where S is the step itself
        start = fit.window["step_start"]
        for axes in (upper, lower):
            axes.axvline(start, color=FAINT, linestyle="--", linewidth=1.0)
        handles.append(
            Line2D(
                [], [], color=FAINT, linestyle="--", linewidth=1.0,
                label=f"window from\nstep {start:,.0f}",
            )
        )  # fmt: skip
    _finish_axes(upper, lower)
    upper.set_ylabel(LOSS)
    lower.set_xlabel(_steps_label(fit.steps_name))
    legend(figure, handles)
    return figure


def overfitting(fit: Fit) -> Figure:
    """Loss above that of endless data, L(N, D) / L(N, inf) - 1, against N^(alpha_N/alpha_D) / D.

    With the curve of the fitted `l_nd`, on which all points would lie (Kaplan et al. 2020, eq.
    4.3 and Fig. 9 right). L(N, inf) is the law's. Raises RequestError for another law.
    """
    if fit.law != "l_nd":
        raise RequestError(f"Overfitting is drawn from a fit of l_nd, not of {fit.law}.")
    figure, axes = new_figure()
    ratio = fit.params["alpha_N"] / fit.params["alpha_D"]
    n, d, loss = (fit.points[name].to_numpy() for name in ("N", "D", "loss"))
    x = n**ratio / d
    delta = loss / fit.predict(N=n, D=math.inf) - 1
    colours = SizeColours(d)
    line = np.geomspace(x.min(), x.max(), 200)
    # At any N, as it depends on N and D through x alone.
    curve = frontier.overfitting(n[0], n[0] ** ratio / line, fit.params)
    axes.plot(line, 100 * curve, color=INK, linewidth=1.3)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.scatter(
        x, 100 * delta, s=16, color=_colours_of(d, colours), zorder=3,
        rasterized=len(x) > _MOST_VECTOR_POINTS,
    )  # fmt: skip
    log_axis(axes, "x")
    axes.set_xlabel(rf"$N^{{{ratio:.3f}}} / D$   (exponent $\alpha_N / \alpha_D$)")
    axes.set_ylabel("Loss above that of endless data (%)")
    axes.set_title("Overfitting: measured points and the fitted law")
    levels = _levels(d)
    legend(
        figure,
        [
            *size_handles(levels, colours, "D", _MOST_ENTRIES),
            Line2D([], [], color=INK, linestyle="", marker="o", markersize=4, label="measured"),
            Line2D([], [], color=INK, linewidth=1.3, label="fitted law"),
        ],
    )
    return figure


def profile(found: Profile, estimate: float) -> Figure:
    """How much worse the fit is with one parameter held at each value, and the interval by it.

    The interval (shaded) is where the excess, a squared Student t, is below the threshold. An end
    that is open is shaded to the frame: the data do not hold the parameter on that side.
    """
    figure, axes = new_figure()
    low, high = found.interval
    ends = (found.value[0] if low is None else low, found.value[-1] if high is None else high)
    axes.axvspan(*ends, color=PLAIN, alpha=0.12, linewidth=0)
    axes.axhline(found.threshold, color=FAINT, linestyle="--", linewidth=1.0)
    axes.axvline(estimate, color=INK, linewidth=1.0)
    axes.plot(found.value, found.excess, color=PLAIN, marker="o", markersize=3)
    axes.set_xlim(found.value[0], found.value[-1])
    axes.set_ylim(-0.1 * found.threshold, 2.5 * found.threshold)
    log_axis(axes, "x", compact=True)
    axes.set_xlabel(math_name(found.name))
    axes.set_ylabel("Excess of the objective (squared t)")
    axes.set_title(f"Profile of {math_name(found.name)}")
    said = f"{_end(low)} to\n{_end(high)}"
    legend(
        figure,
        [
            Line2D([], [], color=PLAIN, marker="o", markersize=3, linewidth=1.5, label="profile"),
            Line2D([], [], color=INK, linewidth=1.0, label=f"estimate\n{number(estimate)}"),
            Line2D([], [], color=FAINT, linestyle="--", linewidth=1.0, label="threshold"),
            Patch(color=PLAIN, alpha=0.12, linewidth=0, label=f"interval\n{said}"),
        ],
    )
    return figure


def _end(value: float | None) -> str:
    return "open" if value is None else number(value)


def _beside_residuals(
    fit: Fit, colours: SizeColours | None
) -> tuple[Figure, tuple[Axes, Axes], list[Line2D]]:
    """The two panels with points and lines, and the handles of their legend."""
    axis, colour = _axis_and_colour(fit.law)
    figure = Figure(figsize=SIZE, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.6, 1])
    held_out = _held_out(fit)
    points = fit.points.with_columns(
        held_out=pl.lit(False) if held_out is None else pl.col(held_out) == pl.col(held_out).max(),
        repeated=pl.col("D") > 1.001 * pl.col("U") if "U" in fit.points.columns else pl.lit(False),
    )
    handles, picture = [], len(points) > _MOST_VECTOR_POINTS
    if colour is None:
        _line(upper, fit, points, {}, INK)
        _scatter(upper, lower, points, axis, [PLAIN], picture)
    else:
        colours = colours or SizeColours(points[colour].unique())
        levels = _levels(points[colour].to_numpy())
        level = np.abs(np.log(points[colour].to_numpy()[:, None] / levels)).argmin(axis=1)
        for i, value in enumerate(levels):
            own = points.filter(level == i)
            if own.is_empty():
                continue
            _line(upper, fit, own, {colour: value}, colours(value))
            _scatter(upper, lower, own, axis, _colours_of(own[colour].to_numpy(), colours), picture)
        handles += size_handles(levels[np.unique(level)], colours, colour, _MOST_ENTRIES)
    lower.axhline(0, color=INK, linewidth=0.8)
    lower.set_ylabel("Residual (%)")
    upper.set_title(_title(fit), fontsize=10)
    return figure, (upper, lower), handles + _kind_handles(points, held_out)


def _axis_and_colour(law: str) -> tuple[str, str | None]:
    """The input along x, and the one that has a colour and a line for each of its values."""
    first, *more = LAWS[law].inputs
    if law == "l_ns":  # a run goes through S at one N
        return more[0], first
    return first, more[0] if more else None


def _line(axes: Axes, fit: Fit, points: pl.DataFrame, others: dict, colour) -> None:
    """The law over the x range of these points."""
    axis, _ = _axis_and_colour(fit.law)
    measured = points[axis].to_numpy()
    low, high = measured.min(), measured.max()
    if low == high:  # a level measured at one x still shows where the law passes
        low, high = low / 1.15, high * 1.15
    x = np.geomspace(low, high, 100)
    if "U" in LAWS[fit.law].inputs:
        others = {**others, "U": others["D"]}
    axes.plot(x, fit.predict(**{axis: x}, **others), color=colour, linewidth=1.3)


def _scatter(
    upper: Axes, lower: Axes, points: pl.DataFrame, axis: str, colours: list, picture: bool
) -> None:
    for held_out, repeated in ((False, False), (False, True), (True, False), (True, True)):
        chosen = (points["held_out"] == held_out) & (points["repeated"] == repeated)
        if not chosen.any():
            continue
        own = points.filter(chosen)
        shade = colours if len(colours) == 1 else np.asarray(colours)[chosen.to_numpy()]
        marker = {"marker": "s" if repeated else "o", "s": 13, "color": shade}
        if held_out:
            marker = {"marker": "D", "s": 20, "facecolors": "none", "edgecolors": shade}
        kind = {"linewidths": 1.0, "zorder": 3, "rasterized": picture, **marker}
        upper.scatter(own[axis], own["loss"], **kind)
        lower.scatter(own[axis], 100 * own["log_residual"], **kind)


def _held_out(fit: Fit) -> str | None:
    """The input whose largest value the held-out check predicts from the rest."""
    for name in ("N", "C"):
        if name in fit.points.columns and fit.held_out.get(f"largest_{name}") is not None:
            return name
    return None


def _levels(values: np.ndarray) -> np.ndarray:
    distinct = np.unique(values)
    if len(distinct) <= _MOST_LINES:
        return distinct
    levels = np.geomspace(distinct[0], distinct[-1], _BANDS)
    return np.array([float(f"{level:.2g}") for level in levels])


def _colours_of(values: np.ndarray, colours: SizeColours) -> list:
    """A colour for each value; one alone where the values are all the same."""
    distinct, place = np.unique(values, return_inverse=True)
    shades = [colours(value) for value in distinct]
    return shades if len(shades) == 1 else [shades[i] for i in place]


def _kind_handles(points: pl.DataFrame, held_out: str | None) -> list[Line2D]:
    bare = {"color": INK, "linestyle": "", "markersize": 4}
    handles = [Line2D([], [], marker="o", label="measured", **bare)]
    if points["repeated"].any():
        handles.append(Line2D([], [], marker="s", label="tokens repeated", **bare))
    if held_out is not None:
        handles.append(
            Line2D(
                [], [], marker="D", mfc="none", **bare,
                label=f"largest {held_out}: predicted\nfrom the others in\nthe held-out check",
            )
        )  # fmt: skip
    label = "fitted law,\nall tokens new" if "U" in points.columns else "fitted law"
    return [*handles, Line2D([], [], color=INK, linewidth=1.3, label=label)]


def _pareto_marks(axes: Axes, fit: Fit) -> list[Line2D]:
    batch, steps = fit.params["B_crit"], fit.params["S_min"]
    axes.axhline(steps, color=FAINT, linestyle="--", linewidth=1.0)
    axes.axvline(batch, color=FAINT, linestyle=":", linewidth=1.4)
    return [
        Line2D([], [], color=FAINT, linestyle="--", linewidth=1.0, label=r"$S_{min}$"),
        Line2D([], [], color=FAINT, linestyle=":", linewidth=1.4, label=r"$B_{crit}$"),
    ]


def _finish_axes(upper: Axes, lower: Axes) -> None:
    for axes in (upper, lower):
        dress(axes)
    log_axis(upper, "x", compact=True)
    log_axis(upper, "y", compact=True)
    upper.tick_params(labelbottom=False)


def _title(fit: Fit) -> str:
    """What is drawn, then the telling parameters with their intervals, then the red lamps."""
    law = LAWS[fit.law]
    symbol = "L" if law.output == "loss" else math_name(law.output)
    lines = [f"{symbol}({', '.join(law.inputs)}): measured points and the fitted law"]
    telling = [*law.exponents, *([law.offset] if law.offset else [])]
    telling += [name for name in law.params if name.startswith("R_")]
    known = {
        name: (fit.params[name], *fit.intervals.get(name, ())) for name in telling or law.params
    }
    said = []
    for name, (value, *ends) in (known | fit.derived).items():
        interval = f" ({number(ends[0])} to {number(ends[1])})" if ends else ""
        if name in fit.fixed or (ends and ends[0] == ends[1]):  # or made of what is held
            interval = " (held)"
        said.append(f"{math_name(name)} = {number(value)}{interval}")
    lines[0] += f" ({fit.level:.0%} intervals)"
    lines += [",   ".join(said[i : i + 2]) for i in range(0, len(said), 2)]
    if fit.flags:
        lines += textwrap.wrap("Flags: " + ", ".join(fit.flags), 80)
    return "\n".join(lines)


def math_name(name: str) -> str:
    """The name of a parameter as it is set in print: alpha_N as a Greek letter with its index."""
    letter, *indices = name.split("_")
    star = "*" if "star" in indices else ""
    index = ",".join(part for part in indices if part != "star")
    greek = {"alpha": r"\alpha", "beta": r"\beta"}.get(letter, letter)
    return f"${greek}" + (f"_{{{index}}}" if index else "") + (f"^{star}" if star else "") + "$"


def _size_label(convention: str) -> str:
    return f"N ({_CONVENTIONS.get(convention, convention or 'parameters')})"


def _steps_label(steps_name: str) -> str:
    if steps_name == "S_min":
        return r"$S_{min}$ (steps, converted to a batch far above the critical one)"
    return "S (steps at fixed batch)"
