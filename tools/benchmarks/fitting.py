"""Measure `fit`: the Chinchilla fit and its bootstrap against SciPy, and large tables."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.optimize import minimize

from scaling_jax import laws, records
from scaling_jax.laws.fitting import Points, make_points
from scaling_jax.laws.forms import L_ND_CHINCHILLA, L_NS
from scaling_jax.laws.published import published
from scaling_jax.laws.solver import solve_starts
from tools.benchmarks.tables import Table
from tools.benchmarks.timing import Effort, ratio

POINTS = 240
NOISE = 0.003
RESAMPLES = 4000
BEST_STARTS = 8
ROUNDS = 15
SCIPY_SOLVES = 40  # a round
RUNS, STEPS = 200, 5000  # 1e6 rows
# The starts of Hoffmann et al. 2022, D.3: exponents, ln E, ln A and ln B. An exponent of 0 is
# started from the least one that the law allows.
_GRID = (np.linspace(0.005, 2, 5), np.linspace(-1, 1, 5), np.linspace(0, 25, 6))


def fitting(effort: Effort) -> Iterator[Table]:
    """E + A / N^alpha + B / D^beta with Huber's loss, and 1e6 rows of learning curves."""
    yield _against_scipy(effort)
    yield _large_table(effort)


def _against_scipy(effort: Effort) -> Table:
    points, n, d, loss = _surface()
    resamples = 100 if effort.quick else RESAMPLES
    grid = _grid_starts(points)[:: 100 if effort.quick else 1]
    whole = np.ones((1, POINTS))
    rng = np.random.default_rng(1)
    weights = rng.multinomial(POINTS, np.full(POINTS, 1 / POINTS), size=resamples).astype(float)
    _solve(points, weights[:200], grid[:8])  # compiled before it is timed
    began = time.perf_counter()
    first = _solve(points, whole, grid)
    order = np.argsort(first.objective[0])
    starts = first.theta[0][order][:BEST_STARTS]
    boot = _solve(points, weights, starts)
    seconds = time.perf_counter() - began
    solves = grid.shape[0] + resamples * BEST_STARTS
    ours, theirs, gaps = [], [], []
    for index in range(effort.rounds(ROUNDS)):
        rows = rng.integers(resamples, size=SCIPY_SOLVES)
        began = time.perf_counter()
        found = [
            _scipy(n, d, loss, weights[row], points.log_params(starts[row % BEST_STARTS]))
            for row in rows
        ]
        theirs.append(SCIPY_SOLVES / (time.perf_counter() - began))
        part = weights[(index * 500) % resamples :][:500]
        began = time.perf_counter()
        _solve(points, part, starts)
        ours.append(len(part) * BEST_STARTS / (time.perf_counter() - began))
        gaps += [f / boot.objective[row].min() - 1 for f, row in zip(found, rows, strict=True)]
    lower = np.array(gaps)
    return Table(
        f"The Chinchilla fit: {POINTS} points, {grid.shape[0]:,} starts once, then {resamples:,} "
        f"resamples from {BEST_STARTS} starts each",
        {
            "solves": "",
            "all of them": "s",
            "ours": "solves/s",
            "SciPy BFGS": "solves/s",
            "ratio": "95 %",
            "all starts at one minimum": "share",
            "SciPy above ours, least": "relative",
            "SciPy above ours, median": "relative",
        },
        [
            {
                "solves": solves,
                "all of them": seconds,
                "ours": float(np.median(ours)),
                "SciPy BFGS": float(np.median(theirs)),
                "ratio": ratio(np.array(ours), np.array(theirs)),
                "all starts at one minimum": float(
                    np.mean(boot.objective.max(1) <= boot.objective.min(1) * (1 + 1e-6))
                ),
                "SciPy above ours, least": float(lower.min()),
                "SciPy above ours, median": float(np.median(lower)),
            }
        ],
        f"Medians of {effort.rounds(ROUNDS)} rounds; SciPy solves {SCIPY_SOLVES} resamples a round "
        "with an analytic gradient.",
    )


def _surface() -> tuple[Points, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    n = np.exp(rng.uniform(np.log(6e7), np.log(1.6e10), POINTS))
    d = n * np.exp(rng.uniform(np.log(2), np.log(200), POINTS))
    truth = published("besiroglu2024").params
    loss = L_ND_CHINCHILLA.predict(truth, N=n, D=d) * np.exp(NOISE * rng.normal(size=POINTS))
    return make_points(L_ND_CHINCHILLA, {"N": n, "D": d}, loss), n, d, loss


def _grid_starts(points: Points) -> np.ndarray:
    exponents, offsets, factors = _GRID
    grid = itertools.product(offsets, factors, factors, np.log(exponents), np.log(exponents))
    law = points.law
    inner = law.from_log_params(np.array(list(grid)), points.x_centre, points.y_centre)
    return np.clip(inner, law.lower, law.upper)


def _solve(points: Points, weights: np.ndarray, starts: np.ndarray) -> Any:
    objective = points.objective
    return solve_starts(
        *(points.law, False, objective.delta, points.x, points.y),
        (points.x_centre, points.y_centre), weights, starts,
    )  # fmt: skip


def _scipy(
    n: np.ndarray, d: np.ndarray, loss: np.ndarray, weights: np.ndarray, log_params: np.ndarray
) -> float:
    """The objective that BFGS reaches on (ln E, ln A, ln B, alpha, beta), from `log_params`."""
    log_n, log_d, log_loss = np.log(n), np.log(d), np.log(loss)
    delta = L_ND_CHINCHILLA.delta

    def objective(p: np.ndarray) -> tuple[float, np.ndarray]:
        terms = np.stack([np.full_like(log_n, p[0]), p[1] - p[3] * log_n, p[2] - p[4] * log_d])
        top = terms.max(axis=0)
        shares = np.exp(terms - top)
        total = shares.sum(axis=0)
        shares /= total
        residual = top + np.log(total) - log_loss
        size = np.abs(residual)
        inside = size <= delta
        value = np.where(inside, 0.5 * residual**2, delta * (size - 0.5 * delta))
        slope = weights * np.where(inside, residual, delta * np.sign(residual))
        by_term = shares @ slope
        gradient = np.array([*by_term, -(slope * shares[1]) @ log_n, -(slope * shares[2]) @ log_d])
        return float(weights @ value), gradient

    start = np.concatenate([log_params[:3], np.exp(log_params[3:])])
    return float(minimize(objective, start, jac=True, method="BFGS").fun)


def _large_table(effort: Effort) -> Table:
    steps = 100 if effort.quick else STEPS
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "curves.parquet"
        _write_curves(path, steps)
        for law in ("l_ns", "l_nd_chinchilla"):
            columns = {"N": "params", "S": "step", "D": "tokens", "loss": f"loss_{law}"}
            times = []
            for _ in range(3):
                began = time.perf_counter()
                table = records.load(str(path))
                loaded = time.perf_counter() - began
                fit = laws.fit(table, law=law, columns=columns)
                times.append((loaded, time.perf_counter() - began - loaded))
            load, fitted = np.median(np.array(times), axis=0)
            rows.append(
                {"law": law, "rows": RUNS * steps, "points": fit.n_points,
                 "load": float(load), "fit": float(fitted)}
            )  # fmt: skip
    return Table(
        "Learning curves in a Parquet file, loaded and fitted",
        {"law": "", "rows": "", "points": "", "load": "s", "fit": "s"},
        rows,
        "Medians of 3 in one process: the first compiles, the others do not.",
    )


def _write_curves(path: Path, steps: int) -> None:
    rng = np.random.default_rng(0)
    size = np.repeat(np.geomspace(1e5, 1e9, RUNS).round(), steps)
    step = np.tile(np.arange(1, steps + 1) * 20, RUNS)
    truth = {"N_c": 6.5e13, "S_c": 2.1e3, "alpha_N": 0.077, "alpha_S": 0.76}
    noise = np.exp(0.003 * rng.normal(size=size.size))
    surface = published("besiroglu2024").params
    pl.DataFrame(
        {
            "run_id": np.repeat([f"run-{i}" for i in range(RUNS)], steps),
            "params": size.astype(int),
            "step": step,
            "tokens": step * 2**19,
            "loss_l_ns": L_NS.predict(truth, N=size, S=step) * noise,
            "loss_l_nd_chinchilla": L_ND_CHINCHILLA.predict(surface, N=size, D=step * 2.0**19)
            * noise,
        }
    ).write_parquet(path)
