"""B_simple beside the critical batch that a sweep measured directly, at the same losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from scaling_jax.errors import counted
from scaling_jax.laws.critical_batch import Ladder, Rung
from scaling_jax.laws.hyperbola import Bounded
from scaling_jax.laws.noise_law import best_rates
from scaling_jax.laws.regression import line_over, student

LEAST_RUNS = 4
_LEAST_BATCHES = 3


class NoiseRung(NamedTuple):
    """A loss level (nats a token) with both batches in tokens, and B_simple over B_crit.

    `b_simple` is B_simple at the loss. `b_mean` is its mean over the way there, which is what
    McCandlish et al. (2018, eq. 2.12 and appendix D.1) predict B_crit = E_min / S_min to be: each
    step counts by the progress 1 / (1 + B_simple / B) that it makes. Where B_simple rises it is the
    smaller one. Both are those of a run at the critical batch: the noise scale depends on the batch
    and the learning rate that it was trained at, so they are read off a line in ln B through the
    `n_runs` of the sweep that pass the level; `exponent` is how `b_simple` goes with their batch.
    None, and a `reason`, where they cannot be had.
    """

    loss: float
    N: float | None
    b_crit: Bounded
    b_simple: Bounded
    ratio: Bounded
    b_mean: Bounded
    mean_ratio: Bounded
    exponent: float | None
    n_runs: int
    reason: str


class _Passage(NamedTuple):
    """One run where it passes a loss: logarithms of batches in tokens."""

    batch: float
    b_simple: float
    b_mean: float


def noise_against_critical(
    noise: pl.DataFrame,
    ladder: Ladder,
    runs: pl.DataFrame,
    sizes: Sequence[float | None] | None = None,
    level: float = 0.9,
) -> list[NoiseRung]:
    """The identified levels of a `ladder` in tokens, with B_simple from the sweep's own runs.

    `noise` is the frame of `noise_scale`, of `runs` at the best learning rate of their batch;
    `sizes` names N of each rung, where levels of several sizes are in one ladder. Between points ln
    B_simple is a line. Intervals at `level` are Student's t over the runs; those of the ratios are
    made of both by MOVER (Zou and Donner 2008, Statistics in Medicine 27), with the ladder's level
    for B_crit.
    """
    usable = best_rates(noise, runs).filter(
        ~pl.col("undetermined") & (pl.col("b_simple") > 0) & (pl.col("loss") > 0)
    )
    sizes = sizes or [None] * len(ladder.rungs)
    return [
        _beside(rung, N, usable if N is None else usable.filter(params_non_embedding=N), level)
        for rung, N in zip(ladder.rungs, sizes, strict=True)
        if rung.hyperbola.identified
    ]


def _beside(rung: Rung, N: float | None, noise: pl.DataFrame, level: float) -> NoiseRung:
    critical = rung.hyperbola.critical("kaplan")
    runs = noise.partition_by("run_id", maintain_order=True)
    at = [each for run in runs if (each := _passage(run, rung.loss)) is not None]
    unknown = Bounded(None, None, None, None)
    found = NoiseRung(
        *(rung.loss, N, critical, unknown, unknown, unknown, unknown),
        exponent=None, n_runs=len(at), reason="",
    )  # fmt: skip
    batches = len({each.batch for each in at})
    if len(at) < LEAST_RUNS or batches < _LEAST_BATCHES:
        return found._replace(
            reason=f"{counted(len(at), 'run')} at {counted(batches, 'batch size')} with a noise "
            f"scale on both sides of the loss, {LEAST_RUNS} at {_LEAST_BATCHES} are needed"
        )
    away, b_simple, b_mean = np.array(at).T
    away = away - math.log(_ends(critical)[0])
    simple, exponent = _read_off(away, b_simple, level)
    mean, _ = _read_off(away, b_mean, level)
    return found._replace(
        b_simple=simple,
        ratio=_over(simple, critical),
        b_mean=mean,
        mean_ratio=_over(mean, critical),
        exponent=exponent,
    )


def _passage(run: pl.DataFrame, loss: float) -> _Passage | None:
    """None where no point of the run is above the loss, or none below."""
    run = run.sort("step")
    losses, scale = run["loss"].to_numpy(), np.log(run["b_simple"].to_numpy())
    below = np.flatnonzero(losses <= loss)
    if not below.size or below[0] == 0:
        return None
    i = int(below[0])
    share = math.log(losses[i - 1] / loss) / math.log(losses[i - 1] / losses[i])
    at_loss = (1 - share) * scale[i - 1] + share * scale[i]
    batch = math.log(run["batch_tokens"][i])
    # Points without an upper bound are not here: a step counts with the points around it.
    middle = np.sqrt((run["step_start"].to_numpy() + 1.0) * run["step"].to_numpy())
    end = math.exp((1 - share) * math.log(middle[i - 1]) + share * math.log(middle[i]))
    steps = np.unique(np.geomspace(1.0, end, 200))
    along = np.exp(np.interp(np.log(steps), np.log(middle), scale))
    progress = np.diff(steps, prepend=0.0) / (1 + along / math.exp(batch))
    return _Passage(batch, float(at_loss), math.log(np.average(along, weights=progress)))


def _read_off(away: np.ndarray, log_scale: np.ndarray, level: float) -> tuple[Bounded, float]:
    """The line's value at `away` 0, and its slope."""
    gain, inverse = line_over(away)
    value, slope = (gain @ log_scale).tolist()
    residual = log_scale - value - slope * away
    df = away.size - 2
    error = math.sqrt(float(residual @ residual) / df * inverse[0, 0])
    half = float(student(level, df)) * error
    ends = math.exp(value - half), math.exp(value + half)
    return Bounded(math.exp(value), error, *ends), slope


def _ends(estimate: Bounded) -> tuple[float, float, float]:
    value, _, low, high = (math.nan if each is None else each for each in estimate)
    return value, low, high


def _over(above: Bounded, below: Bounded) -> Bounded:
    """The ratio of two independent estimates, whose intervals need not be symmetric."""
    (a, a_low, a_high), (b, b_low, b_high) = (np.log(_ends(each)) for each in (above, below))
    low = a - b - math.hypot(a - a_low, b_high - b)
    high = a - b + math.hypot(a_high - a, b - b_low)
    error = math.hypot(above.se_log or 0.0, below.se_log or 0.0)
    return Bounded(math.exp(a - b), error, math.exp(low), math.exp(high))
