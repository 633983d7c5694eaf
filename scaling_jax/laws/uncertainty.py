"""Intervals from resampling whole runs: the points of one run are one draw, not many."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import stats

from scaling_jax.laws.selection import MIN_SIZES


def run_counts(rng: np.random.Generator, size_of_run: np.ndarray, resamples: int) -> np.ndarray:
    """How often each run is drawn, (resamples, runs): as many runs as there are, with replacement.

    A draw with fewer than three distinct sizes (N of each run, (runs,)) cannot hold the law and is
    drawn again; the caller sees to it that there are three.
    """
    runs = size_of_run.size
    sizes = np.unique(size_of_run, return_inverse=True)[1]
    counts = np.zeros((resamples, runs))
    left = np.arange(resamples)
    while left.size:
        drawn = rng.integers(runs, size=(left.size, runs))
        counts[left] = np.apply_along_axis(np.bincount, 1, drawn, minlength=runs)
        by_size = np.zeros((left.size, sizes.max() + 1))
        np.add.at(by_size.T, sizes, counts[left].T)
        left = left[(by_size > 0).sum(axis=1) < MIN_SIZES]
    return counts


def resample_weights(
    rng: np.random.Generator,
    run_of_point: np.ndarray,
    size_of_run: np.ndarray,
    steps: np.ndarray,
    starts: tuple[float, float],
    resamples: int,
) -> np.ndarray:
    """Weights (resamples, n) of points: whole runs drawn with replacement, from a drawn start.

    Where the window begins is a choice, and its freedom belongs in the interval: each resample
    draws its first step log-uniformly within `starts`.
    """
    counts = run_counts(rng, size_of_run, resamples)
    first = np.exp(rng.uniform(np.log(starts[0]), np.log(starts[1]), size=resamples))
    return counts[:, run_of_point] * (steps[None, :] >= first[:, None])


def tail(level: float, runs: int) -> float:
    """The share of resamples to cut at each end, for few runs smaller than (1 - level) / 2.

    Hesterberg's expanded percentile (2015, arXiv 1411.5279): Phi(-t sqrt(n / (n - 1))) with t the
    Student quantile at n - 1 degrees; plain percentiles of few runs are too narrow.
    On synthetic studies of seven runs 0.9 intervals held the truth in 68 to 82 % of the cases
    when plain and in 82 to 95 % when expanded.
    """
    quantile = stats.t.ppf((1 + level) / 2, runs - 1)
    return float(stats.norm.cdf(-quantile * np.sqrt(runs / (runs - 1))))


def intervals(
    samples: Mapping[str, np.ndarray], level: float, runs: int
) -> dict[str, tuple[float, float]]:
    """Percentile intervals at `level` of each parameter's resamples (resamples,)."""
    cut = tail(level, runs)
    bounds = {name: np.quantile(values, [cut, 1 - cut]) for name, values in samples.items()}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}


def correlation(log_params: np.ndarray) -> np.ndarray:
    """Correlation (P, P) of the parameters' logarithms over resamples (resamples, P).

    A parameter that never moves has no correlation with the others: 0, and 1 with itself.
    """
    centred = log_params - log_params.mean(axis=0)
    spread = np.sqrt((centred**2).sum(axis=0))
    unit = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)
    matrix = unit.T @ unit
    np.fill_diagonal(matrix, 1.0)
    return matrix
