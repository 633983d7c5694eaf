"""Each source, metric and kind of parameter against what places the points of `noise_scale`."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import stats

from scaling_jax.laws.noise_windows import SERIES
from scaling_jax.laws.regression import jackknife, student

_LEAST_POINTS = 3
_AT = ["run_id", "step_start", "step"]
_OF_MAIN = ("tr_sigma", "grad_sq", "b_simple", "undetermined")


class NoiseRatio(NamedTuple):
    """B_simple of one series over that of the main one, as one number over all points of a run.

    With t and g for the tr Sigma and |G|^2 of the series and T and G for those of the main one,
    `ratio` is sum(t G) over sum(T g), each point by its updates over T^2: linear in what is noisy,
    so that it needs no point to be determined and leaves none out. Its interval comes from leaving
    out one point at a time (jackknife, Student's t), over several runs one run at a time; None
    where there are too few of them, or where a sum is not above zero. `rank_correlation` is
    Spearman's over the `n_points` at which both are determined, out of `n_all`; `run_id` is None
    over all runs. `agrees`: the interval holds 1.
    """

    run_id: str | None
    name: str | None
    source: str
    metric: str
    part: str
    ratio: float | None
    low: float | None
    high: float | None
    rank_correlation: float | None
    n_points: int
    n_all: int

    @property
    def agrees(self) -> bool | None:
        """Whether the two may be one number, None where that is not known."""
        return None if self.low is None or self.high is None else self.low <= 1 <= self.high


def noise_ratios(series: pl.DataFrame, level: float = 0.9) -> list[NoiseRatio]:
    """The ratios of `noise_series`, series by series: of all runs, where there are several, and
    of each.

    What places the points (`main`) is the total from groups of the batch, so that the ratio of the
    part `norms` is that of the estimate from LayerNorms alone (Gray et al. 2024, arXiv 2411.00999).
    """
    main = series.filter("main").select(*_AT, pl.col(*_OF_MAIN).name.prefix("main_"))
    beside = (
        series.filter(~pl.col("main"))
        .sort(*SERIES, "name", "run_id", maintain_order=True)
        .join(main, on=_AT, how="inner", maintain_order="left")
    )
    found = []
    for (source, metric, part), rows in beside.group_by(SERIES, maintain_order=True):
        runs = rows.partition_by("run_id", maintain_order=True)
        for own in [rows, *runs] if len(runs) > 1 else runs:
            found.append(_ratio(own, (str(source), str(metric), str(part)), level))
    return found


def _ratio(rows: pl.DataFrame, series: tuple[str, str, str], level: float) -> NoiseRatio:
    several = rows["run_id"].n_unique() > 1
    which = (None, None) if several else (rows["run_id"][0], rows["name"][0])
    known = rows.filter(~pl.col("undetermined") & ~pl.col("main_undetermined"))
    rank = _rank_correlation(known["b_simple"].to_numpy(), known["main_b_simple"].to_numpy())
    unit = rows["run_id"].to_numpy() if several else np.arange(rows.height)
    low, ratio, high = _over_units(rows, unit, level)
    return NoiseRatio(*which, *series, ratio, low, high, rank, known.height, rows.height)


def _over_units(
    rows: pl.DataFrame, unit: np.ndarray, level: float
) -> tuple[float | None, float | None, float | None]:
    """The ratio between its bounds."""
    t, g, T, G, updates = (
        rows[name].cast(pl.Float64).to_numpy()
        for name in ("tr_sigma", "grad_sq", "main_tr_sigma", "main_grad_sq", "noise_steps")
    )
    if rows.height < _LEAST_POINTS or not np.all(T > 0):
        return None, None, None
    terms = updates / T**2 * np.stack([t * G, T * g])  # [above and below, point]
    _, number = np.unique(unit, return_inverse=True)
    by_unit = np.stack([np.bincount(number, weights=each) for each in terms])
    above, below = by_unit.sum(axis=1)
    if above <= 0 or below <= 0:
        return None, None, None
    ratio, count = float(above / below), by_unit.shape[1]
    without = by_unit.sum(axis=1, keepdims=True) - by_unit
    if count < 2 or not np.all(without > 0):
        return None, ratio, None
    logs = np.log(without[0] / without[1])
    half = float(student(level, count - 1)) * math.sqrt(jackknife(logs[None])[0, 0])
    return float(ratio * np.exp(-half)), ratio, float(ratio * np.exp(half))


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    ranks = stats.rankdata(x), stats.rankdata(y)
    if len(x) < _LEAST_POINTS or min(np.ptp(rank) for rank in ranks) == 0:
        return None
    return float(np.corrcoef(*ranks)[0, 1])
