"""B_simple as a function of the loss, B_star / L^(1 / alpha_B), over one run or over many."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from scaling_jax.errors import WorkError, counted
from scaling_jax.laws.critical_batch import BatchLaw, batch_law, power_line
from scaling_jax.laws.regression import jackknife, student

# Over a shorter range of losses B_simple moves by less than it does from one point to the next.
LEAST_RANGE = 1.2
LEAST_POINTS = 4
# Of fewer runs each left out in turn, Student's t says next to nothing.
_LEAST_RUNS = 4
_ROUNDS = 4  # of weights and line, which then no longer move each other
# A learning rate that falls below this share of its highest raises B_simple by itself.
_SAME_RATE = 0.5
# A run with this share of the steps of its size's and batch's longest run is no check of a rate.
_LONGEST = 0.9


class SizeEffect(NamedTuple):
    """B_simple at equal loss as N^exponent; `factor` is of the largest over the smallest N.

    Each is followed by its interval.
    """

    exponent: float
    exponent_low: float
    exponent_high: float
    factor: float
    factor_low: float
    factor_high: float
    N: tuple[int, int]


@dataclass(frozen=True)
class NoiseLaw:
    """`law` through the points, or None and the `reason`; likewise `size`, whether N matters.

    `points`: run_id, N, loss (nats a token), b_simple and its bounds (tokens), se_log of ln
    b_simple. `excluded`: {rule, n_points, n_runs}. `flags` are sentences.
    """

    law: BatchLaw | None
    reason: str
    size: SizeEffect | None
    size_reason: str
    points: pl.DataFrame
    excluded: list[dict[str, Any]]
    flags: list[str]


def fit_noise_law(noise: pl.DataFrame, runs: pl.DataFrame, level: float = 0.9) -> NoiseLaw:
    """The law through the points of `noise_scale`, and whether B_simple depends on N beside it.

    Left out are points without an upper bound, those that begin in the warm-up or lie above the
    bigram floor, where the columns `warmup_steps` and `bigram_nats` of `runs` say so, and runs that
    are not at the best learning rate of their size and batch: B_simple rises as the rate falls
    (McCandlish et al. 2018, appendix C). The regression of ln B_simple on ln L weighs points by
    their intervals, as they would be on the line. Its interval comes from leaving out one run at a
    time (jackknife, Student's t), of fewer than four runs one point at a time, which a flag says.
    Refused, with `reason`, where fewer than four points are left, the loss moves by less than a
    factor 1.2, B_simple does not rise as the loss falls or the interval of its exponent reaches
    zero.

    Source: Kaplan et al. (2020), eq. 5.3, of B_crit; McCandlish et al. (2018), Fig. 8.
    """
    points, excluded = _points(noise, runs, level)
    flags = _flags(points)
    law, size, reason, size_reason = None, None, "", ""
    try:
        law = _through(points, level)
    except WorkError as error:
        reason = str(error)
    try:
        size = _size_effect(points, level)
    except WorkError as error:
        size_reason = str(error)
    if law is not None and law.bent and law.chi2 is not None:
        flags.append(
            f"the points scatter {math.sqrt(law.chi2 / law.df):.2g} times as far as their "
            "intervals say: noise of the loss, or no power law of it"
        )
    return NoiseLaw(law, reason, size, size_reason, points, excluded, flags)


def best_rates(noise: pl.DataFrame, runs: pl.DataFrame) -> pl.DataFrame:
    """The rows of runs at the learning rate of lowest final loss of their N and first batch."""
    if "lr_peak" not in runs.columns or runs["lr_peak"].null_count() == runs.height:
        return noise
    shape = ["params_non_embedding", "batch"]
    ends = (
        noise.sort("step")
        .group_by("run_id", "params_non_embedding", maintain_order=True)
        .agg(
            pl.col("batch_tokens").first().alias("batch"),
            pl.col("step").last(),
            pl.col("loss").drop_nulls().last(),
        )
        .join(runs.select("run_id", "lr_peak"), on="run_id", how="left")
        .filter(pl.col("step") >= _LONGEST * pl.col("step").max().over(shape))
        .with_columns(final=pl.col("loss").mean().over(*shape, "lr_peak"))
    )
    least = pl.col("final").min().over(shape)
    best = ends.filter((pl.col("final") == least) | least.is_null())
    return noise.filter(pl.col("run_id").is_in(best["run_id"].implode()))


def _points(
    noise: pl.DataFrame, runs: pl.DataFrame, level: float
) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
    excluded = []

    def keep(rows: pl.DataFrame, kept: pl.DataFrame, rule: str) -> pl.DataFrame:
        gone = rows.join(kept, on=["run_id", "step"], how="anti")
        if gone.height:
            count = {"n_points": gone.height, "n_runs": gone["run_id"].n_unique()}
            excluded.append({"rule": rule, **count})
        return kept

    rows = keep(noise, best_rates(noise, runs), "another learning rate is better")
    for column, rule, inside in (
        ("warmup_steps", "warm-up", pl.col("step_start") >= pl.col("warmup_steps")),
        ("bigram_nats", "above the bigram floor", pl.col("loss") < pl.col("bigram_nats")),
    ):
        if column in runs.columns:
            known = rows.join(runs.select("run_id", column), on="run_id", how="left")
            rows = keep(rows, known.filter(inside.fill_null(True)).drop(column), rule)
    determined = rows.filter(
        ~pl.col("undetermined") & (pl.col("b_simple_low") > 0) & (pl.col("loss") > 0)
    )
    rows = keep(rows, determined, "undetermined")
    # At a known variance, as the weights are relative.
    width = 2 * float(student(level, math.inf))
    points = rows.select(
        "run_id",
        pl.col("params_non_embedding").alias("N"),
        "loss",
        "b_simple",
        "b_simple_low",
        "b_simple_high",
        "lr",
        se_log=((pl.col("b_simple_high") / pl.col("b_simple_low")).log() / width).clip(1e-6),
    )
    return points, excluded


def _flags(points: pl.DataFrame) -> list[str]:
    flags = []
    count = points["run_id"].n_unique()
    if 0 < count < _LEAST_RUNS:
        flags.append(
            f"{counted(count, 'run')}: the intervals leave out what another seed would change"
        )
    rates = points.group_by("run_id").agg((pl.col("lr").min() / pl.col("lr").max()).alias("share"))
    if falling := rates.filter(pl.col("share") < _SAME_RATE).height:
        flags.append(
            f"the learning rate falls within {counted(falling, 'run')}: B_simple rises with that, "
            "and not only as the loss falls"
        )
    return flags


def _through(points: pl.DataFrame, level: float) -> BatchLaw:
    if points.height < LEAST_POINTS:
        raise WorkError(
            f"{counted(points.height, 'point')} with an interval left, {LEAST_POINTS} needed"
        )
    loss, batch, se = (points[name].to_numpy() for name in ("loss", "b_simple", "se_log"))
    if loss.max() < LEAST_RANGE * loss.min():
        raise WorkError(
            f"the loss moves from {loss.max():.4g} to {loss.min():.4g} nats, too short a range for "
            f"an exponent (a factor {LEAST_RANGE} is needed)"
        )
    design = np.stack([np.ones_like(loss), np.log(loss)], axis=1)
    weight = _weights(design, np.log(batch), se)
    line = power_line(loss, batch, weight**-0.5, level)
    run = points["run_id"].to_numpy()
    by_run = np.unique(run).size >= _LEAST_RUNS
    unit = run if by_run else np.arange(run.size)
    covariance = jackknife(_without_each(design, np.log(batch), weight, unit))
    df = _degrees(design, weight, unit)
    quantile = float(student(level, df))
    half = quantile * math.sqrt(covariance[1, 1])
    if line.exponent + half >= 0:
        raise WorkError(
            f"B_simple goes as L^{line.exponent:.3g} with an interval from "
            f"{line.exponent - half:.3g} to {line.exponent + half:.3g}: it is not known to rise as "
            "the loss falls"
        )
    line = line._replace(covariance=covariance, quantile=quantile)
    of = "runs" if by_run else "points"
    method = f"jackknife over {np.unique(unit).size} {of}, t with {df:.3g} degrees"
    return batch_law(line, "noise scale", level, method)


def _size_effect(points: pl.DataFrame, level: float) -> SizeEffect:
    sized = points.filter(pl.col("N") > 0)
    sizes = sized["N"].unique().sort().to_list()
    if len(sizes) < 2:
        raise WorkError(f"{counted(len(sizes), 'size')} N with points of the law, 2 needed")
    run = sized["run_id"].to_numpy()
    count = np.unique(run).size
    if count <= _LEAST_RUNS:
        raise WorkError(
            f"{counted(count, 'run')} with points of the law, {_LEAST_RUNS + 1} needed to tell "
            "what N does from what a seed does"
        )
    loss, N, batch, se = (sized[name].to_numpy() for name in ("loss", "N", "b_simple", "se_log"))
    design = np.stack([np.ones_like(loss), np.log(loss), np.log(N / sizes[0])], axis=1)
    log_batch = np.log(batch)
    weight = _weights(design, log_batch, se)
    exponent = float(_solve(design, log_batch, weight)[2])
    covariance = jackknife(_without_each(design, log_batch, weight, run))
    half = float(student(level, _degrees(design, weight, run))) * math.sqrt(covariance[2, 2])
    ends = exponent, exponent - half, exponent + half
    span = math.log(sizes[-1] / sizes[0])
    factors = (math.exp(min(end * span, 700.0)) for end in ends)
    return SizeEffect(*ends, *factors, N=(sizes[0], sizes[-1]))


def _weights(design: np.ndarray, log_batch: np.ndarray, se: np.ndarray) -> np.ndarray:
    """One over the variance of ln B_simple that a point would have on the line.

    Its own interval is narrow where |G|^2 came out high by chance, and B_simple low: weighing by
    that would pull the line down.
    """
    weight = np.ones_like(se)
    for _ in range(_ROUNDS):
        line = design @ _solve(design, log_batch, weight)
        weight = (se * np.exp(line - log_batch)) ** -2.0
    return weight


def _degrees(design: np.ndarray, weight: np.ndarray, unit: np.ndarray) -> float:
    """Degrees of freedom of a jackknife of the last coefficient (Satterthwaite).

    As many as units less coefficients where each unit adds as much to its variance.
    """
    root = np.sqrt(weight)
    gain = np.linalg.pinv(design * root[:, None])[-1]
    _, number = np.unique(unit, return_inverse=True)
    added = np.bincount(number, weights=gain**2)
    equal = added.sum() ** 2 / (added**2).sum()
    return float(max(1.0, equal * (1 - design.shape[1] / added.size)))


def _without_each(
    design: np.ndarray, y: np.ndarray, weight: np.ndarray, unit: np.ndarray
) -> np.ndarray:
    """Coefficients (k, units) of weighted least squares without each unit in turn."""
    return np.stack([_solve(design, y, weight * (unit != one)) for one in np.unique(unit)], axis=1)


def _solve(design: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Coefficients (k,) of weighted least squares; `WorkError` where they are not fixed."""
    root = np.sqrt(weight)[:, None]
    found, _, rank, _ = np.linalg.lstsq(design * root, y * root[:, 0], rcond=1e-10)
    if rank < design.shape[1]:
        raise WorkError("one run alone fixes how B_simple goes with N or with the loss")
    return found
