"""One law through one set of points: parameters, intervals, rivals, and errors on hidden points."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import polars as pl

from scaling_jax.errors import WorkError
from scaling_jax.laws import uncertainty
from scaling_jax.laws.fitting import Points, minima, require_identified, solve
from scaling_jax.laws.panel import HeldOut
from scaling_jax.laws.uncertainty import Spread

# Of the largest compute: what is as large is hidden from the fit that predicts it.
LARGEST_SHARE = 0.5
_MAX_EXPONENT_SPAN = 10.0  # of an interval, high over low


class Estimate(NamedTuple):
    """`theta` (T,), its objective and log residuals (n,), its `spread`, and the other minima."""

    theta: np.ndarray
    objective: float
    residual: np.ndarray
    spread: Spread
    rivals: list[dict[str, Any]]


def estimate(
    points: Points,
    weights: np.ndarray,
    run: np.ndarray,
    size: np.ndarray,
    level: float,
    resamples: int,
    seed: int,
    beside: np.ndarray | None = None,
) -> Estimate:
    """The lowest minimum for weights (n,), with intervals from the runs (n,) as units.

    `size` (n,) tells apart what a resample must have several of; `beside` (2, n) are weights at
    both ends of a choice, as of a window. Raises `WorkError` where the points do not identify the
    law or one of its exponents.
    """
    found = minima(points, weights)
    if not len(found.theta):
        found = solve(points, weights[None, :])
    require_identified(points, found)
    theta = found.theta[0]
    spread = uncertainty.spread(
        *(points, theta, weights, run, size),
        level=level,
        resamples=resamples,
        rng=np.random.default_rng(seed),
        beside=beside,
        near=found.theta[1:3],
    )
    _require_exponents(points, spread, level)
    return Estimate(
        theta=theta,
        objective=float(found.objective[0]),
        residual=points.residuals(theta),
        spread=spread,
        rivals=[
            {"params": named(points, rival), "objective": float(value)}
            for rival, value in zip(found.theta[1:], found.objective[1:], strict=True)
        ],
    )


def drawn(spread: Spread) -> np.ndarray:
    """Joint draws (R, P) of the parameters; inf where a wide tail leaves float64."""
    with np.errstate(over="ignore"):
        return np.exp(spread.draws)


def named(points: Points, theta: np.ndarray) -> dict[str, float]:
    """The law's parameters at inner coordinates (T,)."""
    values = np.exp(points.log_params(theta)).tolist()
    return dict(zip(points.law.params, values, strict=True))


def ranges_of(values: pl.Series | np.ndarray) -> tuple[float, float]:
    """Least and most."""
    return float(values.min()), float(values.max())  # pyright: ignore


def held_out(
    points: Points,
    weights: np.ndarray,
    hidden: np.ndarray,
    end: np.ndarray | None = None,
) -> HeldOut | None:
    """Errors of the `hidden` points (n,) from a fit to the others, None where it fails.

    Points without weight (n,) are on neither side. `end` (n,) marks the last points of their runs;
    without it every point is one.
    """
    used = weights > 0
    seen, hidden = used & ~hidden, used & hidden
    if not hidden.any() or seen.sum() <= len(points.law.lower):
        return None
    if any(np.ptp(row) > 0 and np.ptp(row[seen]) == 0 for row in points.x):
        return None  # nothing was seen of how the law falls along that input
    solution = solve(points, (weights * seen)[None, :])
    if not solution.converged[0] or solution.at_bound[0]:
        return None
    error = np.abs(np.expm1(-points.residuals(solution.theta[0])))
    last = hidden if end is None else hidden & end
    return HeldOut(
        worst=float(error[hidden].max()),
        median=float(np.median(error[hidden])),
        final=float(error[last].max()) if last.any() else float(error[hidden].max()),
        n_points=int(hidden.sum()),
    )


def _require_exponents(points: Points, spread: Spread, level: float) -> None:
    # A law without exponents is its scales.
    for name in points.law.exponents or points.law.params:
        low, high = spread.intervals[name]
        if high > _MAX_EXPONENT_SPAN * low:
            axes = " and of ".join(points.law.inputs)
            raise WorkError(
                f"{name} is not identified: its {level:.0%} interval runs from {low:.3g} to "
                f"{high:.3g}. A wider range of {axes}, or more runs, are needed"
            )
