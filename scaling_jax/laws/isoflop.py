"""The best size at one budget of compute: isoFLOP minima by interpolation and by a parabola."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import ArrayLike
from scipy.interpolate import Akima1DInterpolator

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.arrays import columns

MIN_SIZES = 4  # a minimum inside, and a slope of its own on either side
LEAST_INSIDE = 0.75  # share of redraws whose minimum must lie inside the sizes
# Of the sd that pure noise gives, which puts the minimum at any inner size: above this share of it
# the curve is not seen.
HIDDEN = 0.9
# The argmin between two sizes is the interpolation's as much as the data's: Porian et al. let no
# sd of ln N* be below a third of the spacing of ln N.
SPACING_SHARE = 1 / 3
_GRID = 128  # points an interval on which a minimum is looked for
_MEDIAN_OF_SQUARE = 0.4549  # of a standard normal variable


def isoflop(
    budget: ArrayLike,
    N: ArrayLike,
    loss: ArrayLike,
    D: ArrayLike | None = None,
    noise: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> pl.DataFrame:
    """The size with the least loss at each budget (FLOPs), two ways, one row a budget.

    Points (n,) are grouped by exactly equal `budget`; several of one N are averaged in ln loss.
    By interpolation: the minimum of an Akima spline of ln loss over ln N; then, `resamples` times,
    with losses redrawn at `noise` (the sd of ln loss; from `noise_level` when None), which gives
    the median and the sd of ln N*. By parabola: the vertex of loss over ln N through all sizes.

    Columns budget, n_sizes, noise, n_opt, d_opt (tokens; between the points' D, or budget / 6N
    without), loss_opt, n_median, sd_ln_n, status, reason, and n_opt_parabola, d_opt_parabola,
    loss_opt_parabola, status_parabola, reason_parabola. Where status is `refused` the numbers are
    null and the reason says why: too few sizes, or a minimum at their edge or beyond.

    Source: Porian et al. 2024 (arXiv 2406.19146), section 3; Hoffmann et al. 2022, approach 2.
    Raises `RequestError` for values that are not positive and finite.
    """
    C, N, loss = columns(budget=budget, N=N, loss=loss)
    D = C / (6 * N) if D is None else columns(D=D, budget=C)[0]
    if noise is None:
        noise = noise_level(C, N, loss)
    elif not noise >= 0:
        raise RequestError(f"noise is {noise}; it is the standard deviation of ln loss")
    if resamples < 1:
        raise RequestError(f"resamples is {resamples}; a spread needs some")
    rng = np.random.default_rng(seed)
    rows = []
    for one in np.unique(C):
        at = one == C
        x, y, d = _by_size(np.log(N[at]), np.log(loss[at]), np.log(D[at]))
        row = {"budget": one, "n_sizes": x.size, "noise": noise}
        if x.size < MIN_SIZES:
            reason = f"{x.size} size{'s' * (x.size > 1)}, {MIN_SIZES} needed"
            row |= {"reason": reason, "reason_parabola": reason}
        else:
            row |= _interpolated(x, y, d, rng.normal(scale=noise, size=(x.size, resamples)))
            row |= _parabola(x, np.exp(y), d)
        rows.append(row)
    return pl.DataFrame(rows, schema=_SCHEMA).with_columns(
        pl.when(pl.col(f"reason{way}").is_null())
        .then(pl.lit("ok"))
        .otherwise(pl.lit("refused"))
        .alias(f"status{way}")
        for way in ("", "_parabola")
    )


_SCHEMA = {
    **dict.fromkeys(("budget",), pl.Float64),
    "n_sizes": pl.Int64,
    **dict.fromkeys(("noise", "n_opt", "d_opt", "loss_opt", "n_median", "sd_ln_n"), pl.Float64),
    **dict.fromkeys(("status", "reason"), pl.String),
    **dict.fromkeys(("n_opt_parabola", "d_opt_parabola", "loss_opt_parabola"), pl.Float64),
    **dict.fromkeys(("status_parabola", "reason_parabola"), pl.String),
}


def noise_level(budget: ArrayLike, N: ArrayLike, loss: ArrayLike) -> float:
    """The sd of ln loss around a smooth isoFLOP curve, pooled over the budgets.

    Each four neighbouring sizes give one residual, the part of ln loss that no parabola in ln N
    through them can have; the median of their squares is taken, so that a few wild points far
    from the minimum do not count. Raises `WorkError` when no budget has four sizes.
    """
    C, N, loss = columns(budget=budget, N=N, loss=loss)
    squares = []
    for one in np.unique(C):
        x, y = _by_size(np.log(N[one == C]), np.log(loss[one == C]))
        for i in range(x.size - MIN_SIZES + 1):
            four = x[i : i + 4]
            gaps = four[:, None] - four[None, :]
            np.fill_diagonal(gaps, 1.0)
            contrast = 1 / gaps.prod(axis=1)
            squares.append((contrast @ y[i : i + 4]) ** 2 / (contrast @ contrast))
    if not squares:
        raise WorkError(f"No budget has {MIN_SIZES} sizes: name the noise of ln loss")
    return float(np.sqrt(np.median(squares) / _MEDIAN_OF_SQUARE))


def _by_size(x: np.ndarray, *values: np.ndarray) -> list[np.ndarray]:
    """Distinct ln N in order, and the means of the values at each."""
    sizes, of_size = np.unique(x, return_inverse=True)
    counts = np.bincount(of_size)
    return [sizes, *(np.bincount(of_size, weights=value) / counts for value in values)]


def _interpolated(x: np.ndarray, y: np.ndarray, d: np.ndarray, noise: np.ndarray) -> dict:
    share = np.arange(_GRID * (x.size - 1) + 1) / _GRID
    fine = np.interp(share, np.arange(x.size), x)
    found = _argmin(x, y[:, None], fine)[0]
    if found in (0, fine.size - 1):
        side = "smallest" if found == 0 else "largest"
        return {"reason": f"the least loss is at the {side} size: the minimum may lie beyond"}
    redrawn = _argmin(x, y[:, None] + noise, fine)
    inside = redrawn[(redrawn > 0) & (redrawn < fine.size - 1)]
    kept = inside.size / max(redrawn.size, 1)
    if kept < LEAST_INSIDE:
        return {
            "reason": f"noise moves the minimum to the smallest or the largest size in "
            f"{1 - kept:.0%} of redraws"
        }
    spacing = (x[-1] - x[0]) / (x.size - 1)
    spread = float(np.std(fine[inside]))
    if spread > HIDDEN * spacing * np.sqrt(((x.size - 2) ** 2 - 1) / 12):
        return {"reason": f"noise of {noise.std():.2g} in ln loss hides the minimum"}
    return {
        "n_opt": float(np.exp(fine[found])),
        "d_opt": float(np.exp(np.interp(fine[found], x, d))),
        "loss_opt": float(np.exp(Akima1DInterpolator(x, y)(fine[found]))),
        "n_median": float(np.exp(np.median(fine[inside]))),
        "sd_ln_n": float(max(spread, SPACING_SHARE * spacing) / kept),
    }


def _argmin(x: np.ndarray, y: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """Where on the fine grid the splines through y (sizes, curves) are least, (curves,)."""
    return np.argmin(Akima1DInterpolator(x, y, axis=0)(fine), axis=0)


def _parabola(x: np.ndarray, loss: np.ndarray, d: np.ndarray) -> dict:
    centre, width = x.mean(), np.ptp(x) / 2
    curvature, slope, constant = np.polyfit((x - centre) / width, loss, 2)
    if curvature <= 0:
        return {"reason_parabola": "the parabola has no minimum: its curvature is not positive"}
    vertex = -slope / (2 * curvature)
    at = centre + width * vertex
    if not x[0] < at < x[-1]:
        side = "below the smallest" if at <= x[0] else "above the largest"
        return {"reason_parabola": f"the vertex lies {side} size"}
    return {
        "n_opt_parabola": float(np.exp(at)),
        "d_opt_parabola": float(np.exp(np.interp(at, x, d))),
        "loss_opt_parabola": float(constant - curvature * vertex**2),
    }
