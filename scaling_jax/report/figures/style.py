"""What every figure shares: axes, colours of the sizes, legends, and the bytes of a file."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from scaling_jax.laws.noise_scale import short_number

SIZE = (8.0, 5.0)
INK, FAINT = "#222222", "#8a8a8a"
PLAIN = "#31688e"  # where nothing varies that a colour could tell
LOSS = "Loss (nats a token)"
# Where an axis spans less than this, decades alone would leave it without labels.
_SHORT_AXIS_DECADES = 2.2
# Numbers outside are written as powers of ten.
_TINY, _HUGE = 1e-3, 1e15
# A run with this share of the steps of its size's longest run is one of the longest.
LONGEST = 0.9
_PLAIN_TICKS = (
    (1, 2, 5),
    (1, 1.5, 2, 3, 4, 5, 7),
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 8),
)


class SizeColours:
    """One colour for each model size N, or another positive quantity that sets lines apart.

    Viridis without its palest part, on the logarithm.
    """

    def __init__(self, sizes: Iterable[float]) -> None:
        known = [size for size in sizes if size]
        self._low, self._high = (min(known), max(known)) if known else (1.0, 1.0)

    def __call__(self, size: float) -> tuple[float, float, float, float]:
        span = math.log(self._high / self._low)
        place = math.log(size / self._low) / span if span > 0 else 0.0
        return colormaps["viridis"](0.82 * min(max(place, 0.0), 1.0))


def new_figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    dress(axes)
    return figure, axes


def dress(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color="#e3e3e3", linewidth=0.7)
    axes.set_axisbelow(True)


def log_axis(axes: Axes, name: Literal["x", "y"], compact: bool = False, decades: int = 12) -> None:
    """Log scale with a label on every decade, or on plain numbers where there are few decades.

    `compact` labels are short numbers such as 20k; no more than `decades` have a label.
    """
    axis = axes.xaxis if name == "x" else axes.yaxis
    (axes.set_xscale if name == "x" else axes.set_yscale)("log")
    low, high = sorted(axis.get_view_interval())
    axis.set_minor_formatter(NullFormatter())
    if math.log10(high / low) >= _SHORT_AXIS_DECADES:
        axis.set_major_locator(LogLocator(base=10, numticks=decades))
        axis.set_minor_locator(LogLocator(base=10, subs=tuple(range(2, 10)), numticks=decades))
        if compact and low >= _TINY and high < _HUGE:
            axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        return
    axis.set_major_locator(FixedLocator(_plain_ticks(low, high)))
    axis.set_minor_locator(FixedLocator([]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain_label(value, compact)))


def _plain_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in _PLAIN_TICKS:
        ticks = [s * 10.0**p for p in powers for s in steps if low <= s * 10.0**p <= high]
        if len(ticks) >= 5:
            return ticks
    if len(ticks) >= 4:
        return ticks
    even = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [tick for tick in even if low <= tick <= high]


def _plain_label(value: float, compact: bool) -> str:
    plain = not compact and _TINY <= value < _HUGE
    return f"{value:g}" if plain else number(value)


def number(value: float) -> str:
    """Three digits: with a suffix such as 20k, or as a power of ten where it is very far from 1."""
    if value == 0 or not math.isfinite(value) or _TINY <= abs(value) < _HUGE:
        return short_number(value)
    power = math.floor(math.log10(abs(value)) + 1e-9)
    digits = f"{value / 10.0**power:.3g}"
    return rf"$10^{{{power}}}$" if digits == "1" else rf"${digits} \times 10^{{{power}}}$"


def level_line(axes: Axes, level: float, text: str, side: Literal["left", "right"]) -> None:
    axes.axhline(level, color=INK, linestyle=":", linewidth=1.2)
    axes.annotate(
        text, (0.005 if side == "left" else 0.995, level), xycoords=("axes fraction", "data"),
        xytext=(0, -4), textcoords="offset points", ha=side, va="top", fontsize=9, color=INK,
        zorder=5, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
    )  # fmt: skip


def size_handles(
    sizes: Iterable[float], colours: SizeColours, name: str = "N", at_most: int = 24
) -> list[Line2D]:
    """A legend line for each distinct size; of more than `at_most`, evenly chosen ones."""
    distinct = sorted(set(sizes))
    if len(distinct) > at_most:
        distinct = [distinct[round(i)] for i in np.linspace(0, len(distinct) - 1, at_most)]
    return [
        Line2D([], [], color=colours(size), linewidth=2.5, label=f"{name} = {number(size)}")
        for size in distinct
    ]


def legend(figure: Figure, handles: Sequence[Artist]) -> None:
    figure.legend(handles=list(handles), loc="outside right upper", frameon=False, fontsize=9)


def render(figure: Figure, kind: Literal["svg", "png"]) -> bytes:
    """The figure as a file's bytes, the same for the same figure: no date, no random ids."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "scaling_jax"}):
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
    return buffer.getvalue()
