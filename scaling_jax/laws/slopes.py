"""Exponents of learning curves, one a size, and whether they are one exponent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import ArrayLike
from scipy import stats

from scaling_jax.errors import WorkError
from scaling_jax.laws.arrays import columns
from scaling_jax.laws.curves import constant_in_run, points_of_runs
from scaling_jax.laws.noise_scale import short_number
from scaling_jax.laws.regression import f_test, profile_limit, student

MIN_POINTS = 6  # of a run: three parameters, and as many to judge them by
WINDOWS_DIFFER = 2.0  # ratio of first or of last steps between runs
EXPONENTS = np.geomspace(0.02, 3.0, 600)  # steps of 0.8 %, refined by a parabola


@dataclass(frozen=True)
class Slopes:
    """Exponents of L = E + (S_c / S)^alpha for each size, with own E and S_c for each run.

    `table`, one row a size: N, n_runs, n_points, alpha, alpha_low, alpha_high (at `level`), E (mean
    over runs, nats a token), plain_slope = -d ln L / d ln S without any E, reason (why alpha is
    null). `shared_alpha` fits all sizes at once; `p_value` is the chance of exponents this unequal
    if there is one, null where it cannot be had; `unit` says what counts as an independent draw,
    `runs` or `points`.
    """

    table: pl.DataFrame
    shared_alpha: float
    p_value: float | None
    unit: str
    level: float
    flags: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain data; a number that could not be had is null."""
        return {
            "sizes": self.table.to_dicts(),
            "shared_alpha": self.shared_alpha,
            "p_value": self.p_value,
            "unit": self.unit,
            "level": self.level,
            "flags": self.flags,
        }


class _Profile(NamedTuple):
    """One run: sums of squared relative residuals over `EXPONENTS`, and the fit at the least."""

    size: float
    points: int
    squares: np.ndarray
    E: float
    residual: np.ndarray
    plain: float
    ends: tuple[float, float]


def curve_slopes(
    run: ArrayLike, N: ArrayLike, S: ArrayLike, loss: ArrayLike, level: float = 0.9
) -> Slopes:
    """The exponent of loss against steps (or tokens) of each size, and a test of their equality.

    Points (n,) with equal weight, of steps S after warm-up, evenly spaced in ln S (else the late
    ones count for most); `loss` in nats a token. E and S_c are solved for each run at each alpha
    of a grid, so that alpha alone is searched; intervals are of its profile.

    With two runs a size or more the test is an analysis of variance of the runs' own exponents.
    With fewer it is an F test within the curves, whose degrees of freedom are shortened by the
    correlation of neighbouring residuals: it cannot see what differs from run to run, and a flag
    says so. Sizes whose profile is flat have no exponent. Raises `RequestError` for values that
    are not positive and finite and for an N that changes within a run, `WorkError` with fewer than
    two sizes of six points.
    """
    N, S, loss = columns(N=N, S=S, loss=loss)
    profiles = [
        _profile(constant_in_run(name, "N", N[at]), S[at], loss[at])
        for name, at in points_of_runs(run, S).items()
        if at.size >= MIN_POINTS
    ]
    sizes = sorted({profile.size for profile in profiles})
    if len(sizes) < 2:
        raise WorkError(
            f"{len(sizes)} size{'s' * (len(sizes) != 1)} with {MIN_POINTS} points, 2 needed to "
            "compare exponents"
        )
    groups = [[p for p in profiles if p.size == size] for size in sizes]
    squares = np.stack([np.sum([p.squares for p in group], axis=0) for group in groups])
    shared = _least(squares.sum(axis=0))
    flags = _flags(profiles)
    by_runs = len(profiles) >= 2 * len(sizes)
    if by_runs:
        rows, p_value = _between_runs(groups, level)
    else:
        rows, p_value = _within_curves(groups, squares, level)
        flags.append("one run a size: the test does not see what differs from run to run")
    for row, group in zip(rows, groups, strict=True):
        row |= {
            "N": group[0].size,
            "n_runs": len(group),
            "n_points": sum(p.points for p in group),
            "plain_slope": float(np.mean([p.plain for p in group])),
        }
        if row["reason"]:
            flags.append(f"N = {group[0].size:.4g} has no exponent: {row['reason']}")
    return Slopes(
        table=pl.DataFrame(rows, schema=_SCHEMA),
        shared_alpha=shared,
        p_value=p_value,
        unit="runs" if by_runs else "points",
        level=level,
        flags=flags,
    )


_SCHEMA = {
    "N": pl.Float64,
    "n_runs": pl.Int64,
    "n_points": pl.Int64,
    **dict.fromkeys(("alpha", "alpha_low", "alpha_high", "E", "plain_slope"), pl.Float64),
    "reason": pl.String,
}


def _profile(size: float, S: np.ndarray, loss: np.ndarray) -> _Profile:
    """Relative least squares of E + a S^-alpha at each alpha of the grid, E and a at least 0."""
    x, one = np.log(S) - np.log(S).mean(), 1 / loss
    squares = (_solve(EXPONENTS, x, one)[1] ** 2).sum(axis=1)
    E, residual = _solve(np.array([_least(squares)]), x, one)
    plain = -np.polyfit(x, np.log(loss), 1)[0]
    return _Profile(
        size, S.size, squares, float(E[0]), residual[0], float(plain), (S.min(), S.max())
    )


def _solve(alpha: np.ndarray, x: np.ndarray, one: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E (alphas,) and relative residuals (alphas, n); `one` is the reciprocal of the loss (n,)."""
    power = np.exp(-alpha[:, None] * x) * one
    pp, po, oo = (power**2).sum(axis=1), power @ one, one @ one
    p1, o1 = power.sum(axis=1), one.sum()
    E = np.maximum((o1 * pp - p1 * po) / (oo * pp - po**2), 0.0)
    a = (p1 - E * po) / pp
    # A curve that rises has its least at a = 0, a level: alpha is then not there to be found.
    E, a = np.where(a < 0, o1 / oo, E), np.maximum(a, 0.0)
    return E, 1 - E[:, None] * one - a[:, None] * power


def _least(squares: np.ndarray) -> float:
    """The exponent at the least of a profile over the grid, by a parabola through three points."""
    i = int(np.clip(np.argmin(squares), 1, squares.size - 2))
    left, middle, right = squares[i - 1 : i + 2]
    bend = left - 2 * middle + right
    shift = 0.5 * (left - right) / bend if bend > 0 else 0.0
    step = np.log(EXPONENTS[1] / EXPONENTS[0])
    return float(EXPONENTS[i] * np.exp(np.clip(shift, -1, 1) * step))


def _flags(profiles: list[_Profile]) -> list[str]:
    first, last = np.array([p.ends for p in profiles]).T
    flags = []
    if np.any(np.array([np.ptp(np.log(first)), np.ptp(np.log(last))]) > np.log(WINDOWS_DIFFER)):
        flags.append(
            f"the runs cover different steps (from {_between(first)}, until {_between(last)}): "
            "exponents may differ for that alone"
        )
    return flags


def _between(steps: np.ndarray) -> str:
    return f"{short_number(steps.min())} to {short_number(steps.max())}"


def _between_runs(groups: list[list[_Profile]], level: float) -> tuple[list[dict], float | None]:
    """Means of the runs' own ln alpha, with the spread within sizes pooled over them."""
    rows: list[dict[str, Any]] = []
    logs = []
    for group in groups:
        ends = [p for p in group if np.argmin(p.squares) in (0, EXPONENTS.size - 1)]
        if ends:
            rows.append({"reason": _FLAT})
            continue
        own = np.log([_least(p.squares) for p in group])
        logs.append(own)
        rows.append({"alpha": float(np.exp(own.mean())), "reason": None})
        rows[-1]["E"] = float(np.mean([p.E for p in group]))
    degrees = sum(own.size - 1 for own in logs)
    if not degrees:
        return rows, None
    variance = sum(float(np.sum((own - own.mean()) ** 2)) for own in logs) / degrees
    reach = student(level, degrees) * np.sqrt(variance)
    for row, group in zip(rows, groups, strict=True):
        if row["reason"] is None:
            half = reach / np.sqrt(len(group))
            row |= {
                "alpha_low": float(row["alpha"] * np.exp(-half)),
                "alpha_high": float(row["alpha"] * np.exp(half)),
            }
    if len(logs) < 2 or variance == 0:
        return rows, None
    return rows, float(stats.f_oneway(*logs).pvalue)


_FLAT = "its profile is flat: E takes up what alpha gives"


def _within_curves(
    groups: list[list[_Profile]], squares: np.ndarray, level: float
) -> tuple[list[dict], float | None]:
    """Profiles of the sums of squares, points counted for what their correlation leaves of them."""
    worth = _worth([p.residual for group in groups for p in group])
    rows: list[dict[str, Any]] = []
    for group, profile in zip(groups, squares, strict=True):
        degrees = max(1.0, worth * sum(p.points for p in group) - 2 * len(group) - 1)
        held = profile <= profile_limit(profile.min(), level, degrees)
        if held[0] or held[-1]:
            rows.append({"reason": _FLAT})
            continue
        inside = np.flatnonzero(held)
        rows.append(
            {
                "alpha": _least(profile),
                "alpha_low": float(EXPONENTS[inside[0] - 1]),
                "alpha_high": float(EXPONENTS[inside[-1] + 1]),
                "E": float(np.mean([p.E for p in group])),
                "reason": None,
            }
        )
    known = [i for i, row in enumerate(rows) if row["reason"] is None]
    if len(known) < 2:
        return rows, None
    own, one = squares[known].min(axis=1).sum(), squares[known].sum(axis=0).min()
    runs = [p for i in known for p in groups[i]]
    degrees = max(1.0, worth * sum(p.points for p in runs) - 2 * len(runs) - len(known))
    if own == 0:
        return rows, None
    return rows, f_test(one, own, (len(known) - 1, degrees))[1]


def _worth(residuals: list[np.ndarray]) -> float:
    """Independent points in one point, (1 - rho) / (1 + rho) with rho of neighbouring residuals.

    A form that does not fit leaves long waves, and so few independent points.
    """
    points, fitted = sum(r.size for r in residuals), 3 * len(residuals)
    rho = float(np.mean([(r[1:] @ r[:-1]) / (r @ r) for r in residuals if r @ r > 0] or [0.0]))
    # What a fit takes out of the residuals lowers their correlation by about fitted / points.
    rho = min(max(0.0, (rho * points + fitted) / (points - fitted)), 0.99)
    return (1 - rho) / (1 + rho)
