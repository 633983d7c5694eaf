"""Measured learning curves: smoothed, crossed at loss levels, and enveloped over compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.arrays import columns, labels
from scaling_jax.laws.forms import critical_batch, minimum_steps
from scaling_jax.laws.frontier import minimum_compute

# Full width in ln x of the smoothing window, a factor 1.28 in x: four points of a curve that is
# recorded forty times a decade, and a bias below 1e-4 in ln L on Kaplan's Table 3.
WINDOW = 0.25
PER_DECADE = 40  # budgets of an envelope
MIN_CURVE = 2  # points of a run that can be interpolated


def points_of_runs(run: ArrayLike, along: np.ndarray) -> dict[str, np.ndarray]:
    """Name of each run to the indices of its points, in the order of `along` (n,)."""
    names, of_run = np.unique(labels("run", run, along), return_inverse=True)
    order = np.lexsort((along, of_run))
    parts = np.split(order, np.cumsum(np.bincount(of_run))[:-1])
    return dict(zip(names.tolist(), parts, strict=True))


def smooth(x: ArrayLike, y: ArrayLike, window: float = WINDOW) -> np.ndarray:
    """A curve y (n,) smoothed by a line through ln y against ln x around each point.

    The line goes through the points within `window` / 2 in ln x on either side, so that the result
    lags neither inside the curve nor at its ends, and a power law stays what it is. A point with
    fewer than two others in its window stays as it is, and so does all with `window` = 0. Raises
    `RequestError` where x does not increase, and for values that are not positive and finite.
    """
    x, y = columns(x=x, y=y)
    if np.any(np.diff(x) <= 0):
        raise RequestError("x of a curve must increase from point to point")
    u, v = np.log(x), np.log(y)
    first = np.searchsorted(u, u - window / 2, side="left")
    last = np.searchsorted(u, u + window / 2, side="right")
    u, centre = u - u.mean(), v.mean()
    v = v - centre
    sums = np.cumsum(np.stack([u, v, u * u, u * v]), axis=1)
    sums = np.pad(sums, ((0, 0), (1, 0)))
    count = last - first
    mean_u, mean_v, uu, uv = (sums[:, last] - sums[:, first]) / count
    several = count > 2
    spread = np.where(several, uu - mean_u**2, 1.0)
    line = mean_v + (uv - mean_u * mean_v) / spread * (u - mean_u)
    return np.where(several, np.exp(line + centre), y)


def crossings(
    x: ArrayLike, y: ArrayLike, levels: ArrayLike, window: float = WINDOW
) -> pl.DataFrame:
    """Where a smoothed curve first is at or below each level: columns level, x, status.

    Between two points ln y is taken as a line in ln x. `status` is `crossed`, or says why x is
    null: `never reached`, or `below from the first point` (when it got there was not measured).
    """
    x, y = columns(x=x, y=y)
    levels = columns(levels=levels)[0]
    u, v = np.log(x), np.log(smooth(x, y, window))
    at: list[float | None] = []
    status = []
    for level in np.log(levels):
        below = np.flatnonzero(v <= level)
        if not below.size:
            at.append(None)
            status.append("never reached")
        elif below[0] == 0 and v[0] < level:
            at.append(None)
            status.append("below from the first point")
        else:
            i = int(below[0])
            share = (v[i - 1] - level) / (v[i - 1] - v[i]) if i else 1.0
            at.append(float(np.exp(u[i] - (1 - share) * (u[i] - u[i - 1]))))
            status.append("crossed")
    return pl.DataFrame({"level": levels, "x": pl.Series(at, dtype=pl.Float64), "status": status})


def sample_efficiency(
    run: ArrayLike,
    N: ArrayLike,
    step: ArrayLike,
    loss: ArrayLike,
    batch_tokens: ArrayLike,
    levels: ArrayLike,
    critical: Mapping[str, float] | None = None,
    window: float = WINDOW,
) -> pl.DataFrame:
    """Steps and tokens that each run needs to reach each loss level (nats a token).

    Columns run, N, level, S (steps), tokens = S B, S_min (steps), E_min (tokens), and status as in
    `crossings`. With `critical` {B_star (tokens), alpha_B}, S_min = S / (1 + B_crit(L) / B) and
    E_min = B_crit(L) S_min with L the level; without it both are null. Raises `RequestError`
    where N or the batch changes within a run (Kaplan et al. 2020, eq. 5.4 and figure 19).
    """
    N, step, loss, batch = columns(N=N, step=step, loss=loss, batch_tokens=batch_tokens)
    tables = []
    for name, at in points_of_runs(run, step).items():
        size = constant_in_run(name, "N", N[at])
        batch_of_run = constant_in_run(name, "batch_tokens", batch[at])
        table = crossings(step[at], loss[at], levels, window).rename({"x": "S"})
        S = table["S"]
        S_min: pl.Series | pl.Expr = pl.lit(None, pl.Float64)
        E_min = S_min
        if critical is not None:
            loss_at = table["level"].to_numpy()
            least = minimum_steps(S.to_numpy(), loss_at, batch_of_run, **critical)
            S_min = pl.Series(least).fill_nan(None)
            E_min = S_min * critical_batch(loss_at, **critical)
        tables.append(
            table.select(
                run=pl.lit(name),
                N=pl.lit(size),
                level="level",
                S="S",
                tokens=S * batch_of_run,
                S_min=S_min,
                E_min=E_min,
                status="status",
            )
        )
    return pl.concat(tables)


def constant_in_run(run: str, name: str, values: np.ndarray) -> float:
    """The one value of all a run's points (n,). Raises `RequestError` where it changes."""
    if np.ptp(values) > 1e-9 * values[0]:
        raise RequestError(
            f"{name} of run {run} changes from {values.min():.4g} to {values.max():.4g}; "
            "one value a run is needed"
        )
    return float(values[0])


class Grid(NamedTuple):
    """Curves of R runs read at K budgets: run names and N (R,), the rest (R, K) or (K,).

    `log_loss` is inf where a run does not reach the budget, or begins above it.
    """

    runs: list[str]
    N: np.ndarray
    budgets: np.ndarray
    log_loss: np.ndarray
    log_tokens: np.ndarray


def curves_at(
    compute: ArrayLike,
    loss: ArrayLike,
    run: ArrayLike,
    N: ArrayLike,
    tokens: ArrayLike,
    budgets: ArrayLike | None = None,
    batch_tokens: ArrayLike | None = None,
    critical: Mapping[str, float] | None = None,
    window: float = WINDOW,
) -> Grid:
    """Every run's smoothed curve at the same budgets, by lines in log-log between its own points.

    `compute` (FLOPs), `loss` (nats a token) and `tokens` are of points (n,). `budgets` are 40 a
    decade over all the points unless given. With `critical` {B_star (tokens), alpha_B} and
    `batch_tokens`, compute and tokens are first divided by 1 + B / B_crit(L), L the smoothed loss:
    what the same loss takes at B << B_crit, C_min and E_min (Kaplan et al. 2020, eq. 5.5).

    Raises `RequestError` where N changes within a run, or `batch_tokens` is missing; `WorkError`
    when no run has two points.
    """
    if critical is not None and batch_tokens is None:
        raise RequestError("C_min needs batch_tokens beside the critical batch")
    batch_tokens = 1.0 if batch_tokens is None else batch_tokens
    C, loss, N, D, batch = columns(
        compute=compute, loss=loss, N=N, tokens=tokens, batch_tokens=batch_tokens
    )
    names, sizes, curves = [], [], []
    for name, at in points_of_runs(run, C).items():
        if at.size < MIN_CURVE:
            continue
        smoothed = smooth(C[at], loss[at], window)
        spent = np.stack([C[at], D[at]])
        if critical is not None:
            spent = minimum_compute(spent, batch[at], smoothed, **critical)
        curve = np.log(np.stack([*spent, smoothed]))
        # Where the loss rises, B_crit falls with it, and C_min can run backwards.
        curves.append(curve[:, np.argsort(curve[0], kind="stable")])
        names.append(name)
        sizes.append(constant_in_run(name, "N", N[at]))
    if not curves:
        raise WorkError(f"No run has {MIN_CURVE} points: there are no learning curves here")
    if budgets is None:
        low, high = min(c[0, 0] for c in curves), max(c[0, -1] for c in curves)
        count = max(2, int(np.ceil(PER_DECADE * (high - low) / np.log(10))) + 1)
        budgets = np.exp(np.linspace(low, high, count))
    read_at = columns(budgets=np.asarray(budgets))[0]
    at = np.log(read_at)
    log_loss = [np.interp(at, c[0], c[2], left=np.inf, right=np.inf) for c in curves]
    log_tokens = [np.interp(at, c[0], c[1]) for c in curves]
    return Grid(names, np.array(sizes), read_at, np.stack(log_loss), np.stack(log_tokens))


def lower_envelope(grid: Grid) -> pl.DataFrame:
    """The best run at each budget: columns compute, loss, run, N, D, n_sizes, edge.

    D is in tokens; `n_sizes` of different N have a point on either side of the budget, and `edge`
    is true where the best of them is the smallest or the largest, so that the optimum may lie
    beyond. Budgets that no run covers are left out.
    """
    covered = np.isfinite(grid.log_loss)
    best = np.argmin(grid.log_loss, axis=0)
    at = np.arange(grid.budgets.size)
    size = grid.N[:, None]
    smallest = np.where(covered, size, np.inf).min(axis=0)
    largest = np.where(covered, size, 0.0).max(axis=0)
    kinds = np.unique(grid.N)
    n_sizes = np.sum([(covered & (size == kind)).any(axis=0) for kind in kinds], axis=0)
    return pl.DataFrame(
        {
            "compute": grid.budgets,
            "loss": np.exp(grid.log_loss[best, at]),
            "run": [grid.runs[i] for i in best],
            "N": grid.N[best],
            "D": np.exp(grid.log_tokens[best, at]),
            "n_sizes": n_sizes,
            "edge": (grid.N[best] == smallest) | (grid.N[best] == largest),
        }
    ).filter(pl.col("n_sizes") > 0)


def envelope_law(table: pl.DataFrame) -> dict[str, float]:
    """{alpha_C, C_c (FLOPs)} of L = (C_c / C)^alpha_C through an envelope, edges left out.

    Raises `WorkError` with fewer than three budgets inside (Kaplan et al. 2020, figures 1 and 13).
    """
    inside = table.filter(~pl.col("edge"))
    if inside.height < 3:
        raise WorkError(f"{inside.height} budgets of the envelope are inside its sizes, 3 needed")
    x, y = np.log(inside["compute"].to_numpy()), np.log(inside["loss"].to_numpy())
    slope = float(np.polyfit(x - x.mean(), y, 1)[0])
    return {"alpha_C": -slope, "C_c": float(np.exp(x.mean() - y.mean() / slope))}


def lower_hull(compute: ArrayLike, loss: ArrayLike) -> np.ndarray:
    """Indices of the points on the lower convex hull of ln loss over ln compute, down to the least.

    A hull is not an envelope: it keeps only the vertices that a straight edge from below touches,
    each counted once, where the envelope has a winner at every budget. Where the envelope is
    convex the two agree; noise and steps between sizes make them differ.
    """
    C, loss = columns(compute=compute, loss=loss)
    x, y = np.log(C), np.log(loss)
    hull: list[int] = []
    for i in np.lexsort((y, x)):
        while len(hull) > 1 and _turns_down(x, y, hull[-2], hull[-1], i):
            hull.pop()
        if not hull or x[i] > x[hull[-1]]:
            hull.append(int(i))
    found = np.array(hull)
    return found[: int(np.argmin(y[found])) + 1]


def _turns_down(x: np.ndarray, y: np.ndarray, a: int, b: int, c: int) -> bool:
    return (x[b] - x[a]) * (y[c] - y[a]) <= (y[b] - y[a]) * (x[c] - x[a])
