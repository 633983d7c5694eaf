"""How compute divides between N and D at the optimum: Chinchilla's approaches 1, 2, 3 and 3b."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from scaling_jax.errors import WorkError
from scaling_jax.laws.arrays import columns, positive
from scaling_jax.laws.chinchilla import exponents, optimal
from scaling_jax.laws.curves import Grid, lower_envelope, points_of_runs
from scaling_jax.laws.published import PF_DAY
from scaling_jax.laws.regression import line_over, student
from scaling_jax.laws.surface import variable_projection
from scaling_jax.laws.uncertainty import tail

LINES = ("p_N", "N_e", "p_D", "D_e")
MIN_MINIMA = 3
MIN_SIZES = 3  # different N among the winners of an envelope
FEW_MINIMA = 20  # below this the interval is Student's, from here a bootstrap over minima
SUM_TOLERANCE = 0.05  # of p_N + p_D around 1, which C = 6 N D makes exact
_EDGE = "the best size is at the edge of those with a curve there: the optimum may lie beyond"
_LEAST_HELD = 0.5  # share of resamples that must carry the fit


@dataclass(frozen=True)
class Allocation:
    """N_opt = N_e C^p_N and D_opt = D_e C^p_D with C in PF-days of 8.64e19 FLOPs (N_e at 1 PF-day).

    `intervals` (name to (low, high) at `level`) is empty where none could be had, which a flag
    says. `minima` has one row a budget used: compute (FLOPs), N, D (tokens), sd_ln_n (null where
    unknown); `excluded` lists the budgets left out: {low, high, n_budgets, reason}, in FLOPs.
    `params` are of the surface E + A / N^alpha + B / D^beta in approaches 3 and 3b.
    """

    method: str
    p_N: float
    N_e: float
    p_D: float
    D_e: float
    intervals: dict[str, tuple[float, float]]
    level: float
    minima: pl.DataFrame
    flags: list[str] = field(default_factory=list)
    excluded: list[dict[str, Any]] = field(default_factory=list)
    params: dict[str, float] = field(default_factory=dict)

    def optimal(self, compute: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """N_opt and D_opt (tokens) at `compute` FLOPs."""
        days = positive("compute", compute) / PF_DAY
        return self.N_e * days**self.p_N, self.D_e * days**self.p_D

    def to_json(self) -> dict[str, Any]:
        """Plain data; a number that could not be had is null."""
        return {
            "method": self.method,
            **{name: getattr(self, name) for name in LINES},
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "level": self.level,
            "params": self.params,
            "minima": self.minima.to_dicts(),
            "flags": self.flags,
            "excluded": self.excluded,
        }


def compare(*allocations: Allocation) -> pl.DataFrame:
    """One row a method: p_N, N_e, p_D, D_e with their intervals (name_low, name_high), flags."""
    rows = []
    for each in allocations:
        row: dict[str, Any] = {"method": each.method}
        for name in LINES:
            low, high = each.intervals.get(name, (None, None))
            row |= {name: getattr(each, name), f"{name}_low": low, f"{name}_high": high}
        rows.append(row | {"flags": "; ".join(each.flags)})
    return pl.DataFrame(rows)


def fit_minima(
    compute: ArrayLike,
    N: ArrayLike,
    D: ArrayLike,
    sd_ln_n: ArrayLike | None = None,
    method: str = "minima",
    level: float = 0.9,
    resamples: int = 1000,
    seed: int = 0,
    excluded: list[dict[str, Any]] | None = None,
) -> Allocation:
    """Lines through ln N and ln D of minima against ln compute (FLOPs), weighted by 1 / sd^2.

    ln D has the weights of ln N, since D = C / 6N. Intervals are Student's with the scatter around
    the line below 20 minima, a bootstrap over minima from there on. Raises `WorkError` below
    three different budgets.
    """
    C, N, D = columns(compute=compute, N=N, D=D)
    sd = None if sd_ln_n is None else columns(sd_ln_n=sd_ln_n, compute=C)[0]
    x, y = np.log(C / PF_DAY), np.log(np.stack([N, D], axis=1))
    weight = np.ones(x.size) if sd is None else sd**-2.0
    _require_budgets(x, excluded or [])
    lines = _lines(x, y, weight)
    if x.size < FEW_MINIMA:
        intervals = _student(x, y, weight, lines, level)
    else:
        rng = np.random.default_rng(seed)
        drawn = (rng.integers(x.size, size=x.size) for _ in range(resamples))
        draws = [_lines(x[i], y[i], weight[i]) for i in drawn if np.unique(x[i]).size > 1]
        intervals = _percentiles(draws, (1 - level) / 2)
    known = [None] * C.size if sd is None else sd
    minima = pl.DataFrame({"compute": C, "N": N, "D": D}).with_columns(
        pl.Series("sd_ln_n", known, dtype=pl.Float64)
    )
    return _allocation(method, lines, intervals, level, minima, excluded or [])


def _require_budgets(x: np.ndarray, excluded: list[dict[str, Any]]) -> None:
    if (count := np.unique(x).size) < MIN_MINIMA:
        why = "; ".join(dict.fromkeys(row["reason"] for row in excluded))
        raise WorkError(
            f"{count} budget{'s' * (count != 1)} with a minimum, {MIN_MINIMA} needed for N_opt(C)"
            + (f". Left out: {why}" if why else "")
        )


def _lines(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """p_N, ln N_e, p_D, ln D_e of weighted lines through y (n, 2) over x (n,)."""
    return (line_over(x, weight).gain @ y)[::-1].T.ravel()


def _student(
    x: np.ndarray, y: np.ndarray, weight: np.ndarray, lines: np.ndarray, level: float
) -> dict[str, tuple[float, float]]:
    slope, level_at = lines.reshape(2, 2).T
    variance = weight @ (y - level_at - slope * x[:, None]) ** 2 / (x.size - 2)
    share = np.diagonal(line_over(x, weight).inverse)[::-1]
    reach = student(level, x.size - 2) * np.sqrt(np.outer(variance, share)).ravel()
    return _named(lines - reach, lines + reach)


def _percentiles(draws: list[np.ndarray], cut: float) -> dict[str, tuple[float, float]]:
    low, high = np.quantile(np.stack(draws), [cut, 1 - cut], axis=0)
    return _named(low, high)


def _named(low: np.ndarray, high: np.ndarray) -> dict[str, tuple[float, float]]:
    """Intervals by name, out of the ends of p_N, ln N_e, p_D, ln D_e."""
    is_log = np.array([False, True, False, True])
    low, high = (np.where(is_log, np.exp(np.where(is_log, v, 0)), v) for v in (low, high))
    ends = zip(low.tolist(), high.tolist(), strict=True)
    return dict(zip(LINES, ends, strict=True))


def _allocation(
    method: str,
    lines: np.ndarray,
    intervals: dict[str, tuple[float, float]],
    level: float,
    minima: pl.DataFrame,
    excluded: list[dict[str, Any]],
    params: dict[str, float] | None = None,
    flags: list[str] | None = None,
) -> Allocation:
    p_N, ln_N_e, p_D, ln_D_e = (float(v) for v in lines)
    flags = list(flags or [])
    if abs(p_N + p_D - 1) > SUM_TOLERANCE:
        flags.append(f"p_N + p_D = {p_N + p_D:.3f}, not 1: C is not 6 N D of these N and D")
    if not intervals:
        flags.append("no interval")
    return Allocation(
        method=method,
        p_N=p_N,
        N_e=float(np.exp(ln_N_e)),
        p_D=p_D,
        D_e=float(np.exp(ln_D_e)),
        intervals=intervals,
        level=level,
        minima=minima,
        flags=flags,
        excluded=excluded,
        params=params or {},
    )


def approach_1(grid: Grid, level: float = 0.9, resamples: int = 500, seed: int = 0) -> Allocation:
    """From the lower envelope of learning curves (`curves.curves_at`), its edges left out.

    Intervals from the spread over draws of whole runs, with Student's factor: the budgets of an
    envelope share their runs and count for no more than these. Raises `WorkError` when fewer than
    three sizes win inside the range of sizes (Hoffmann et al. 2022, approach 1; Kaplan et al. 2020,
    figures 1 and 14).
    """
    table = lower_envelope(grid)
    stretches = table.with_columns(pl.col("edge").rle_id().alias("stretch")).filter("edge")
    excluded = (
        stretches.group_by("stretch", maintain_order=True)
        .agg(
            pl.col("compute").min().alias("low"),
            pl.col("compute").max().alias("high"),
            pl.len().alias("n_budgets"),
            pl.lit(_EDGE).alias("reason"),
        )
        .drop("stretch")
        .to_dicts()
    )
    fitted = _envelope_lines(grid)
    if fitted is None:
        count = table.filter(~pl.col("edge"))["N"].n_unique()
        raise WorkError(
            f"{count} size{'s' * (count != 1)} inside the range of sizes win at some budget, "
            f"{MIN_SIZES} needed: more sizes, or longer runs of the large ones"
        )
    rng = np.random.default_rng(seed)
    runs = len(grid.runs)
    drawn = (np.unique(rng.integers(runs, size=runs)) for _ in range(resamples))
    held = [line for i in drawn if (line := _envelope_lines(_runs_of(grid, i))) is not None]
    intervals = {}
    if len(held) >= max(2, _LEAST_HELD * resamples):
        # An envelope of fewer runs is another envelope: its spread is used, its centre is not.
        reach = student(level, runs - 1) * np.std(held, axis=0, ddof=1)
        intervals = _named(fitted - reach, fitted + reach)
    minima = table.filter(~pl.col("edge")).select(
        "compute", "N", "D", pl.lit(None, pl.Float64).alias("sd_ln_n")
    )
    return _allocation("1: envelope", fitted, intervals, level, minima, excluded)


def _runs_of(grid: Grid, i: np.ndarray) -> Grid:
    names = [grid.runs[j] for j in i]
    return Grid(names, grid.N[i], grid.budgets, grid.log_loss[i], grid.log_tokens[i])


def _envelope_lines(grid: Grid) -> np.ndarray | None:
    inside = lower_envelope(grid).filter(~pl.col("edge"))
    if inside["N"].n_unique() < MIN_SIZES:
        return None
    x = np.log(inside["compute"].to_numpy() / PF_DAY)
    y = np.log(inside.select("N", "D").to_numpy())
    return _lines(x, y, np.ones(x.size))


def approach_2(
    minima: pl.DataFrame, parabola: bool = False, level: float = 0.9, seed: int = 0
) -> Allocation:
    """From isoFLOP minima (`isoflop.isoflop`): Akima's, weighted by 1 / sd^2, or the parabola's.

    Minima that were refused are in `excluded` with their reasons; intervals as in `fit_minima`.
    Raises `WorkError` when fewer than three are left (Hoffmann et al. 2022, approach 2; Porian et
    al. 2024, section 3).
    """
    way = "_parabola" if parabola else ""
    method = "2: isoFLOP, parabola" if parabola else "2: isoFLOP, Akima"
    kept = minima.filter(pl.col(f"status{way}") == "ok")
    excluded = [
        {"low": budget, "high": budget, "n_budgets": 1, "reason": reason}
        for budget, status, reason in minima.select(
            "budget", f"status{way}", f"reason{way}"
        ).iter_rows()
        if status != "ok"
    ]
    C, N, D = (kept[name].to_numpy() for name in ("budget", f"n_opt{way}", f"d_opt{way}"))
    sd = None if parabola else kept["sd_ln_n"].to_numpy()
    return fit_minima(C, N, D, sd, method, level, seed=seed, excluded=excluded)


def approach_3(
    params: Mapping[str, ArrayLike],
    draws: Mapping[str, ArrayLike] | None = None,
    level: float = 0.9,
) -> Allocation:
    """The closed form of L = E + A / N^alpha + B / D^beta: p_N = beta / (alpha + beta).

    `params` {E, A, B, alpha, beta} of any fit, `draws` the same of its resamples, for the
    intervals. Raises `RequestError` for a parameter that is missing or not positive (Hoffmann et
    al. 2022, eq. 4).
    """
    lines = _surface_lines(params)
    intervals = {}
    if draws is not None:
        intervals = _percentiles(list(_surface_lines(draws).T), (1 - level) / 2)
    kept = {name: float(np.asarray(value)) for name, value in params.items()}
    return _allocation("3: surface", lines, intervals, level, _no_minima(), [], kept)


def _surface_lines(params: Mapping[str, ArrayLike]) -> np.ndarray:
    powers, at_one = exponents(params), optimal(PF_DAY, params)
    return np.stack([powers["a"], np.log(at_one.N), powers["b"], np.log(at_one.D)])


def _no_minima() -> pl.DataFrame:
    return pl.DataFrame(schema=dict.fromkeys(("compute", "N", "D", "sd_ln_n"), pl.Float64))


def approach_3b(
    N: ArrayLike,
    D: ArrayLike,
    loss: ArrayLike,
    run: ArrayLike | None = None,
    level: float = 0.9,
    resamples: int = 200,
    seed: int = 0,
) -> Allocation:
    """The closed form of the surface that `variable_projection` fits.

    Intervals from resampling whole runs, single points without `run`. Raises `RequestError` and
    `WorkError` as `variable_projection`.
    """
    N, D, loss = columns(N=N, D=D, loss=loss)
    params = variable_projection(N, D, loss)
    names = np.arange(N.size) if run is None else run
    groups = list(points_of_runs(names, N).values())
    rng = np.random.default_rng(seed)
    held = []
    for _ in range(resamples):
        at = np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])
        with contextlib.suppress(WorkError):
            held.append(_surface_lines(variable_projection(N[at], D[at], loss[at], start=params)))
    intervals = {}
    if len(held) >= _LEAST_HELD * resamples:
        intervals = _percentiles(held, tail(level, len(groups)))
    flags = ["E = 0: the loss shows no floor"] if params["E"] == 0 else []
    return _allocation(
        "3b: surface by variable projection",
        _surface_lines(params), intervals, level, _no_minima(), [], params, flags,
    )  # fmt: skip
