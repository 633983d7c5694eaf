"""The Pareto front of steps against tokens in a batch sweep: one hyperbola a loss level.

McCandlish et al. (2018), eq. 2.11 and appendix A.3; Kaplan et al. (2020), eq. 5.1 and 5.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from scaling_jax.errors import RequestError, WorkError, nearest
from scaling_jax.laws.arrays import columns
from scaling_jax.laws.regression import profile_limit

DEFINITIONS = {
    "kaplan": "B_crit = E_min / S_min, where a run takes twice the fewest steps and twice the "
    "fewest tokens (Kaplan et al. 2020, eq. 5.2)",
    "zhang": "the largest batch whose steps stay within 1.2 times linear scaling from a reference "
    "batch B_0: 1.2 B_0 + 0.2 E_min / S_min (Zhang et al. 2024, arXiv 2410.21676)",
}
# Both arms of a hyperbola are in sight where an end of the sweep is this close to its minimum.
ARM = 1.5
OVERHEAD = 0.2
LEAST = 3  # points, batch sizes or levels: one more than the parameters
# Grid of ln(B_crit / B) for the profile. Beyond its ends, e^-12 from the limit, nothing changes.
_REACH, _GRID_STEP = 12.0, 0.05
_FINE = 1001
_ITERATIONS = 60


class Bounded(NamedTuple):
    """A positive number, the standard error of its logarithm, and an interval.

    None stands for what the data do not fix: a value, or the bound on an open side.
    """

    value: float | None
    se_log: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Hyperbola:
    """S = S_min (1 + B_crit / B), E = B S, through the steps of a batch sweep to one loss.

    `S_min` in steps, `B_crit` in the unit of `batch` (tokens or sequences), `E_min` in that unit
    too; a side that the sweep does not reach has no value and at most a bound. `identified`: both
    sides are fixed; else `reason` says why not. `both_arms`: the largest batch is within 1.5 S_min
    and the smallest within 1.5 E_min. `excluded`: {rule, reason, batch, n_points}.
    """

    S_min: Bounded
    E_min: Bounded
    B_crit: Bounded
    level: float
    rms_log_residual: float
    batch: np.ndarray
    steps: np.ndarray
    identified: bool
    both_arms: bool
    reason: str
    excluded: list[dict[str, Any]] = field(default_factory=list)

    def critical(self, definition: str = "kaplan", reference_batch: float = 0.0) -> Bounded:
        """The critical batch by a definition of `DEFINITIONS`, in the unit of `batch`.

        `reference_batch` is the B_0 of "zhang": 256 sequences in the paper, 0 to count from E_min.
        Raises `RequestError` for an unknown definition or a negative batch, `WorkError` where
        the critical batch is not identified.
        """
        known_definition(definition)
        if not 0 <= reference_batch < math.inf:
            raise RequestError(f"A reference batch of {reference_batch:g} is not a batch size")
        value, se_log, low, high = self.B_crit
        if value is None or se_log is None or low is None or high is None:
            raise WorkError(f"No critical batch size: {self.reason}")
        if definition == "kaplan":
            return self.B_crit
        start = (1 + OVERHEAD) * reference_batch
        batch = start + OVERHEAD * value
        ends = (start + OVERHEAD * low, start + OVERHEAD * high)
        return Bounded(batch, se_log * OVERHEAD * value / batch, *ends)


def fit_hyperbola(
    batch: ArrayLike,
    steps: ArrayLike,
    weights: ArrayLike | None = None,
    at_edge: ArrayLike | None = None,
    level: float = 0.9,
) -> Hyperbola:
    """The Pareto front of one loss level, by least squares in ln S.

    `batch` (n,) in tokens or sequences, `steps` (n,) to reach the loss, `weights` (n,) relative
    (one over the variance of ln S), `at_edge` (n,) true where the best learning rate is an end of
    its grid: those batch sizes are left out. Intervals at `level` are profile likelihoods with the
    F quantile of n - 2 degrees of freedom. Where an interval is open, or B_crit lies outside the
    swept batch sizes, the side beyond the sweep is not identified.

    Raises `RequestError` for values that are not positive and finite, `WorkError` for fewer than
    three batch sizes. Source: Kaplan et al. (2020), eq. 5.1; McCandlish et al. (2018), eq. 2.11.
    """
    B, S, w = columns(batch=batch, steps=steps, weights=1.0 if weights is None else weights)
    swept = np.unique(B).size
    keep, excluded = np.ones(B.size, dtype=bool), []
    if at_edge is not None:
        keep = ~np.broadcast_to(np.asarray(at_edge, dtype=bool), B.shape)
        excluded = [
            _edge(size, n) for size, n in zip(*np.unique(B[~keep], return_counts=True), strict=True)
        ]
    B, S, w = B[keep], S[keep], w[keep]
    sizes = np.unique(B).size
    if sizes < LEAST:
        left = f" ({swept - sizes} left out)" if excluded else ""
        raise WorkError(f"{sizes} batch sizes{left} cannot fix a hyperbola: at least {LEAST}")
    b, y = np.log(B), np.log(S)
    c = float(solve_hyperbola(b, y[None], w[None])[0])
    rss, log_steps = (float(part[0]) for part in _profile(b, y, w, np.array([c])))
    variance = rss / (B.size - 2)
    ends = _ends(b, y, w, c, profile_limit(rss, level, B.size - 2))
    share = 1 / (1 + np.exp(b - c))  # d ln S / d ln E_min
    jacobian = np.sqrt(w)[:, None] * np.stack([1 - share, share], axis=1)
    spread = np.diag(variance * np.linalg.pinv(jacobian.T @ jacobian))
    apart = float(w @ (share - np.average(share, weights=w)) ** 2)
    se = (*np.sqrt(spread).tolist(), math.sqrt(variance / apart) if apart > 0 else None)
    estimates = [
        Bounded(math.exp(at), se_log, *ends_of)
        for at, se_log, ends_of in zip((log_steps, log_steps + c, c), se, ends, strict=True)
    ]
    S_min, E_min, B_crit = estimates
    above = B_crit.high is None or c >= b.max()
    below = B_crit.low is None or c <= b.min()
    if above:
        S_min, B_crit = _only(S_min, high=True), _only(B_crit, low=True)
    if below:
        E_min, B_crit = _only(E_min, high=True), _only(B_crit, high=not above)
    return Hyperbola(
        *(S_min, E_min, B_crit),
        level=level,
        rms_log_residual=math.sqrt(rss / w.sum()),
        batch=B,
        steps=S,
        identified=not (above or below),
        both_arms=bool(1 + math.exp(c) / B.max() < ARM and 1 + B.min() / math.exp(c) < ARM),
        reason=_reason(above, below, float(B.min()), float(B.max())),
        excluded=excluded,
    )


def _profile(b: np.ndarray, y: np.ndarray, w: np.ndarray, c: np.ndarray) -> tuple:
    """Weighted squares (..., k) left at each ln B_crit (k,), and the ln S_min (..., k) that fits.

    Given B_crit the model is ln S = ln S_min + log1p(B_crit / B), linear in ln S_min, so that one
    line over B_crit holds the whole surface. b (n,) ln B; y (..., n) ln S; w (..., n).
    """
    rest = y[..., None, :] - np.logaddexp(0.0, c[:, None] - b)
    total = w.sum(axis=-1)[..., None]
    log_steps = np.sum(w[..., None, :] * rest, axis=-1) / total
    rss = np.sum(w[..., None, :] * (rest - log_steps[..., None]) ** 2, axis=-1)
    return rss, log_steps


def _grid(b: np.ndarray) -> np.ndarray:
    return np.arange(b.min() - _REACH, b.max() + _REACH, _GRID_STEP)


def solve_hyperbola(b: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    """ln B_crit (m,) of m problems y, w (m, n): the best of a grid, then Gauss-Newton."""
    grid = _grid(b)
    c = grid[np.argmin(_profile(b, y, w, grid)[0], axis=-1)]
    total = w.sum(axis=1, keepdims=True)
    for _ in range(_ITERATIONS):
        lift = c[:, None] - b
        rest = y - np.logaddexp(0.0, lift)
        slope = 1 / (1 + np.exp(-lift))
        rest = rest - np.sum(w * rest, axis=1, keepdims=True) / total
        slope = slope - np.sum(w * slope, axis=1, keepdims=True) / total
        size = np.sum(w * slope**2, axis=1)
        step = np.divide(np.sum(w * slope * rest, axis=1), size, out=np.zeros_like(c),
                         where=size > 1e-20)  # fmt: skip
        c = np.clip(c + np.clip(step, -_GRID_STEP, _GRID_STEP), grid[0], grid[-1])
        if np.all(np.abs(step) < 1e-13):
            break
    return c


def _ends(b: np.ndarray, y: np.ndarray, w: np.ndarray, c: float, limit: float) -> tuple:
    """(low, high) of S_min, E_min and B_crit: where the profile is below `limit`; None is open."""

    def excess(at: float) -> float:
        return float(_profile(b, y, w, np.array([at]))[0][0]) - limit

    def outermost(points: np.ndarray) -> float | None:
        inside = _profile(b, y, w, points)[0] <= limit
        inside[-1] = True
        first = int(np.argmax(inside))
        if first == 0:
            return None
        return float(optimize.root_scalar(excess, bracket=(points[first - 1], points[first])).root)

    grid = _grid(b)
    low = outermost(np.append(grid[grid < c], c))
    high = outermost(np.append(grid[grid > c][::-1], c))
    fine = np.linspace(grid[0] if low is None else low, grid[-1] if high is None else high, _FINE)
    rss, log_steps = _profile(b, y, w, fine)
    reach = np.sqrt(np.maximum(limit - rss, 0.0) / w.sum())
    S_low, S_high = np.min(log_steps - reach), np.max(log_steps + reach)
    E_low, E_high = np.min(log_steps + fine - reach), np.max(log_steps + fine + reach)
    return (
        (None if high is None else math.exp(S_low), math.exp(S_high)),
        (None if low is None else math.exp(E_low), math.exp(E_high)),
        (None if low is None else math.exp(low), None if high is None else math.exp(high)),
    )


def _only(estimate: Bounded, low: bool = False, high: bool = False) -> Bounded:
    return Bounded(None, None, estimate.low if low else None, estimate.high if high else None)


def _reason(above: bool, below: bool, smallest: float, largest: float) -> str:
    parts = []
    if above:
        parts.append(
            f"as far as the sweep can tell, steps still fall as 1 / B at its largest batch "
            f"({largest:.4g}): S_min is not identified, larger batches are needed"
        )
    if below:
        parts.append(
            f"as far as the sweep can tell, steps no longer depend on B at its smallest batch "
            f"({smallest:.4g}): E_min is not identified, smaller batches are needed"
        )
    return "; ".join(parts)


def _edge(size: float, n_points: int) -> dict[str, Any]:
    return {
        "rule": "learning_rate_edge",
        "reason": f"the best learning rate at batch {size:.4g} is an end of its grid",
        "batch": float(size),
        "n_points": int(n_points),
    }


def known_definition(definition: str) -> None:
    """`RequestError`, with the nearest known one, unless it is a key of `DEFINITIONS`."""
    if definition not in DEFINITIONS:
        raise RequestError(
            f"No definition {definition!r} of the critical batch.{nearest(definition, DEFINITIONS)}"
        )
