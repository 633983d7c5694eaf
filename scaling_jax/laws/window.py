"""Where L(N, S) holds: the first step of the window and the smallest size, by a stated rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from scaling_jax.errors import RequestError
from scaling_jax.laws.fitting import Objective, Points, make_points, solve
from scaling_jax.laws.forms import L_NS, minimum_steps
from scaling_jax.laws.panel import ENOUGH
from scaling_jax.laws.selection import Selection

# The widest window whose residuals are no more than this is taken: at a constant learning rate two
# seeds and two evaluations of one run differ by about one per cent.
WINDOW_RMS = 0.014
WINDOW_RULE = (
    f"the earliest start at which the rms log residual is at most {WINDOW_RMS:.1%}, among starts "
    "that leave every run half a decade of steps or its whole curve below the floor; where there "
    f"is none, without the smallest sizes, one by one, down to {ENOUGH}; the latest start "
    "and all sizes where that fails too"
)
_STARTS_PER_OCTAVE = 4
_JITTER = 2**0.5


@dataclass(frozen=True)
class Measured:
    """The selected points (n,) as arrays, and the size of each run (runs,)."""

    frame: pl.DataFrame
    step: np.ndarray
    steps: np.ndarray  # what the law calls S: the step, or S_min
    loss: np.ndarray
    run: np.ndarray
    size: np.ndarray
    end: np.ndarray  # the last step of the point's run
    size_of_run: np.ndarray


@dataclass(frozen=True)
class Holding:
    """The points that the form is fitted to; `wider`: with the last size that was left out."""

    data: Measured
    points: Points
    window: Window
    wider: Holding | None


@dataclass(frozen=True)
class Window:
    """The first step, the starts beside it, and the starts that were allowed."""

    start: float
    beside: tuple[float, float]
    allowed: tuple[float, float]
    met: bool


def where_it_holds(
    selection: Selection,
    critical_batch: Mapping[str, float] | None,
    objective: Objective | None = None,
) -> Holding:
    """The window and the sizes by `WINDOW_RULE`; sizes left out are dropped from the selection."""
    sizes = sorted(selection.points["N"].unique().to_list())
    tried: list[Holding] = []
    for smallest in sizes[: max(1, len(sizes) - ENOUGH + 1)]:
        data = _data(selection, pl.col("N") >= smallest, critical_batch)
        points = make_points(L_NS, {"N": data.size, "S": data.steps}, data.loss, objective)
        window = _choose_window(points, data, selection.starts)
        tried.append(Holding(data, points, window, tried[-1] if tried else None))
        if window.met:
            selection.drop(
                pl.col("N") < smallest,
                "the form does not hold yet",
                pl.format(f"with N = {{}} no window has rms {WINDOW_RMS:.1%}", _whole("N")),
            )
            return tried[-1]
    return tried[0]


def _data(
    selection: Selection, which: pl.Expr, critical_batch: Mapping[str, float] | None
) -> Measured:
    frame = selection.points.filter(which)
    step, loss = frame["S"].to_numpy(), frame["loss"].to_numpy()
    steps = step
    if critical_batch is not None:
        if why := selection.table.missing("batch_tokens"):
            raise RequestError(f"S_min needs the batch in tokens: {why}")
        steps = minimum_steps(step, loss, frame["batch_tokens"].to_numpy(), **critical_batch)
    runs, run = np.unique(frame["run"].to_numpy(), return_inverse=True)
    size = frame["N"].to_numpy()
    size_of_run, end = np.zeros(runs.size), np.zeros(runs.size)
    size_of_run[run] = size
    np.maximum.at(end, run, step)
    return Measured(frame, step, steps, loss, run, size, end[run], size_of_run)


def _choose_window(points: Points, data: Measured, allowed: tuple[float, float]) -> Window:
    first, last = allowed
    count = int(np.floor(_STARTS_PER_OCTAVE * np.log2(last / first))) + 1
    grid = last * 2.0 ** (-np.arange(count)[::-1] / _STARTS_PER_OCTAVE)
    grid = np.unique(np.concatenate([[first], grid]))
    weights = (data.step >= grid[:, None]).astype(float)
    ends = solve(points, weights[[0, -1]])
    found = solve(points, weights, starts=ends.theta)
    start, met = grid[-1], False
    for i, theta in enumerate(found.theta):
        residual = points.residuals(theta)
        rms = np.sqrt(np.average(residual**2, weights=weights[i]))
        if rms <= WINDOW_RMS and found.converged[i] and not found.at_bound[i]:
            start, met = grid[i], True
            break
    beside = np.clip([start / _JITTER, start * _JITTER], first, last)
    return Window(float(start), (float(beside[0]), float(beside[1])), allowed, met)


def _whole(column: str) -> pl.Expr:
    return pl.col(column).round(0).cast(pl.Int64)
