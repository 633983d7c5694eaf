"""The gradient noise scale B_simple = tr(Sigma)/|G|^2 from raw moments, with an interval.

McCandlish et al. (2018), eq. 2.9 and appendix A.1: two squared norms of gradients at the same
parameters, one of a small and one of a big batch, give unbiased estimates of |G|^2 and tr(Sigma).
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl
from scipy import stats

from scaling_jax.errors import WorkError
from scaling_jax.laws.request import require_level

if TYPE_CHECKING:
    from scaling_jax.records.store import Records

_MOMENTS = (
    "grad_sq_small",
    "grad_sq_big",
    "grad_sq_small_sq",
    "grad_sq_big_sq",
    "grad_sq_small_big",
    "noise_steps",
    "batch_small",
    "batch_big",
)
_SCHEMA = {
    "run_id": pl.String,
    "name": pl.String,
    "params_non_embedding": pl.Int64,
    "step_start": pl.Int64,
    "step": pl.Int64,
    "tokens": pl.Int64,
    "loss": pl.Float64,
    "grad_sq": pl.Float64,
    "tr_sigma": pl.Float64,
    "b_simple": pl.Float64,
    "b_simple_low": pl.Float64,
    "b_simple_high": pl.Float64,
    "undetermined": pl.Boolean,
    "lr": pl.Float64,
    "batch_tokens": pl.Int64,
    "noise_steps": pl.Int64,
}
# Fewer degrees of freedom than this say nothing about a variance.
_MIN_DF = 4
# A window's own variance stands under a ratio only when it rests on this many updates.
_MIN_RATIO_DF = 10
# Neighbours on each side that give the trend at a window.
_REACH = 4
# Windows that vote on how far neighbouring updates are correlated.
_NEIGHBOURS = 24


class Interval(NamedTuple):
    """Bounds of a ratio; None where there is none."""

    low: float | None
    high: float | None
    undetermined: bool


def noise_scale(records: Records, level: float = 0.9, bins_per_decade: int = 4) -> pl.DataFrame:
    """B_simple of every run in log-spaced bins of steps, as a ratio of means, nothing clamped.

    One row a run and bin. Loss is nats a token; `b_simple` and its bounds, `batch_tokens` and
    `tokens` are tokens; `tr_sigma` is the variance a token, so that |G|^2 + tr(Sigma)/B is the
    expected squared norm of a batch of B tokens. Where the interval of |G|^2 at `level` includes
    zero the row is `undetermined`: `b_simple` and the upper bound are null, and the lower bound
    stands alone. Both bounds are null where a bin has too few updates to know its variance, or
    where |G|^2 is below zero by more than chance allows.

    The interval is Fieller's, from the covariance of the two estimates a step, over the number of
    steps. That covariance is pooled within the windows of a bin, so drift across the bin does not
    count as noise. Correlation between updates is caught by the scatter of window means about the
    line (in log step) through four neighbours on each side, averaged over the windows nearest to
    the bin: where it exceeds what independent updates would give, the variance is scaled up to it.

    Raises `RequestError` for a level that is no share, `WorkError` where no run recorded noise
    moments.
    """
    require_level(level)
    rows: list[dict] = []
    windows = _windows(records)
    for _, run in windows.group_by("run_id", maintain_order=True):
        rows.extend(_run_rows(run.sort("step"), level, bins_per_decade))
    return pl.DataFrame(rows, schema=_SCHEMA)


def fieller(
    numerator: float, denominator: float, covariance: np.ndarray, level: float, df: float
) -> Interval:
    """Interval of numerator/denominator, both at least zero in truth, from their 2 x 2 covariance.

    `covariance` is of (numerator, denominator), `df` the degrees of freedom behind it. Where the
    denominator is not above zero at `level` the upper bound is open; the lower one keeps the same
    quantile, as a change of quantile at that border would cost coverage. Source: Fieller (1954).
    """
    quantile = float(stats.t.ppf((1 + level) / 2, df))
    # Ratios r with (numerator - r denominator)^2 = quantile^2 var(numerator - r denominator).
    a = denominator**2 - quantile**2 * covariance[1, 1]
    b = numerator * denominator - quantile**2 * covariance[0, 1]
    c = numerator**2 - quantile**2 * covariance[0, 0]
    root = math.sqrt(max(b * b - a * c, 0.0))
    if denominator > 0 and a > 0:
        return Interval((b - root) / a, (b + root) / a, False)
    if numerator <= 0 or c <= 0:
        return Interval(0.0, None, True)
    # The lower bound is the root that is reached first going up from zero; c / (b + root) is
    # (b - root) / a without its cancellation.
    return Interval(c / (b + root) if b + root > 0 else None, None, True)


def describe_noise(frame: pl.DataFrame) -> str:
    """The frame of `noise_scale` as aligned text, one table a model size, under 100 columns."""
    tables = []
    for (size,), table in frame.sort(
        "params_non_embedding", "name", "step", nulls_last=True
    ).group_by("params_non_embedding", maintain_order=True):
        tables.append(f"N = {short_number(size)}\n{_table(table)}")
    tables.append(
        "B_simple = tr(Sigma)/|G|^2 in tokens, with its interval; > x: |G|^2 is not above zero,\n"
        "so only a lower bound is known. Loss in nats a token, training loss of the bin."
    )
    return "\n\n".join(tables)


def short_number(value: float | None) -> str:
    """Three digits and a suffix: 1540 -> 1.54k, 24576 -> 24.6k, 3e9 -> 3G."""
    if value is None:
        return "?"
    if not math.isfinite(value):
        return "inf" if value > 0 else str(value)
    if value != 0 and not 1e-3 <= abs(value) < 1e15:
        return f"{value:.3g}"
    scaled, suffix = float(f"{value:.3g}"), ""
    for suffix_above, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(scaled) >= factor:
            scaled, suffix = scaled / factor, suffix_above
            break
    return f"{scaled:.4g}{suffix}"


def _windows(records: Records) -> pl.DataFrame:
    curves, runs = records.curves, records.runs
    if not set(_MOMENTS) <= set(curves.columns) or curves.is_empty():
        raise _no_moments(records)
    finite = pl.all_horizontal(pl.col(name).is_not_null() for name in _MOMENTS)
    finite &= pl.all_horizontal(pl.col(name).is_finite() for name in _MOMENTS[:5])
    windows = curves.filter(
        finite & (pl.col("noise_steps") > 0) & (pl.col("batch_big") > pl.col("batch_small"))
    )
    if windows.is_empty():
        raise _no_moments(records)
    described = [name for name in ("name", "params_non_embedding") if name in runs.columns]
    own = [name for name in windows.columns if name not in described]
    windows = windows.select(own).join(
        runs.select("run_id", *described), on="run_id", how="left", maintain_order="left"
    )
    absent = [name for name in (*_SCHEMA, "train_loss") if name not in windows.columns]
    return windows.with_columns(
        pl.lit(None, dtype=_SCHEMA.get(name, pl.Float64)).alias(name) for name in absent
    )


def _no_moments(records: Records) -> WorkError:
    return WorkError(
        f"no run in {records.source} recorded noise moments (grad_sq_small, grad_sq_big, ...). "
        "They are recorded where a batch is cut into groups: set batch.microbatches above 1, "
        "noise.groups above 1 or mesh.data above 1, and train again."
    )


class _Series(NamedTuple):
    """Windows of one run in order of steps; estimates are the pairs (tr Sigma, |G|^2)."""

    log_step: np.ndarray  # [window], of the geometric middle of a window's updates
    updates: np.ndarray  # [window]
    estimate: np.ndarray  # [window, 2]
    covariance: np.ndarray  # [window, 2, 2], of one update's estimates, not Bessel-corrected


def _series(run: pl.DataFrame) -> _Series:
    small, big, small_sq, big_sq, cross, updates, b_small, b_big = (
        run[name].cast(pl.Float64).to_numpy() for name in _MOMENTS
    )
    span = b_big - b_small
    # Rows tr Sigma and |G|^2, columns small and big (McCandlish et al. 2018, eq. A.2).
    transform = np.empty((len(run), 2, 2))
    transform[:, 0, 0], transform[:, 0, 1] = b_small * b_big / span, -b_small * b_big / span
    transform[:, 1, 0], transform[:, 1, 1] = -b_small / span, b_big / span
    mean = np.stack([small, big], axis=-1)
    second = np.stack([np.stack([small_sq, cross], -1), np.stack([cross, big_sq], -1)], -2)
    covariance = second - mean[:, :, None] * mean[:, None, :]
    first = run["step_start"].cast(pl.Float64).to_numpy() + 1
    return _Series(
        log_step=0.5 * np.log(first * run["step"].cast(pl.Float64).to_numpy()),
        updates=updates,
        estimate=np.einsum("wij,wj->wi", transform, mean),
        covariance=np.einsum("wij,wjk,wlk->wil", transform, covariance, transform),
    )


def _run_rows(run: pl.DataFrame, level: float, bins_per_decade: int) -> list[dict]:
    series = _series(run)
    scatter = _Scatter(series)
    number = np.floor(series.log_step / math.log(10) * bins_per_decade + 1e-9).astype(int)
    key = np.stack([number, run["batch_small"].to_numpy(), run["batch_big"].to_numpy()])
    starts = np.flatnonzero(np.any(np.diff(key, axis=1) != 0, axis=0)) + 1
    edges = [0, *starts.tolist(), len(run)]
    return [
        _bin_row(run[first:last], series, scatter, slice(first, last), level)
        for first, last in itertools.pairwise(edges)
    ]


def _bin_row(
    windows: pl.DataFrame, series: _Series, scatter: _Scatter, where: slice, level: float
) -> dict:
    updates = series.updates[where]
    total = updates.sum()
    tr_sigma, grad_sq = (updates @ series.estimate[where] / total).tolist()
    covariance, df = scatter.of_one_update(where)
    if covariance is None:
        interval = Interval(None, None, True)
    else:
        interval = fieller(tr_sigma, grad_sq, covariance / total, level, df)
    steps = (windows["step"] - windows["step_start"]).cast(pl.Float64)
    last = windows.row(-1, named=True)
    return {
        **{name: last[name] for name in ("run_id", "name", "params_non_embedding")},
        "step_start": windows["step_start"][0],
        **{name: last[name] for name in ("step", "tokens", "batch_tokens")},
        "loss": _weighted(windows["train_loss"], steps),
        "lr": _weighted(windows["lr"], steps),
        "grad_sq": grad_sq,
        "tr_sigma": tr_sigma,
        "b_simple": None if interval.undetermined else tr_sigma / grad_sq,
        "b_simple_low": interval.low,
        "b_simple_high": interval.high,
        "undetermined": interval.undetermined,
        "noise_steps": int(total),
    }


def _weighted(values: pl.Series, weights: pl.Series) -> float | None:
    known = values.is_not_null()
    if not known.any():
        return None
    return float(np.average(values.filter(known), weights=weights.filter(known)))


class _Scatter:
    """How far one update's estimates vary, from within windows and from between them."""

    def __init__(self, series: _Series) -> None:
        self.updates, self.within = series.updates, series.covariance
        self.middle, self.between = _between(series)
        three = self.middle[:, None] + np.arange(-1, 2)
        df = (self.updates - 1)[three].sum(axis=1)
        sums = self.updates[:, None] * np.diagonal(self.within, axis1=1, axis2=2)
        pooled = sums[three].sum(axis=1)
        usable = (df >= _MIN_RATIO_DF) & np.all(pooled > 0, axis=-1)
        self.compared = self.middle[usable]
        # (df - 2) / df undoes the bias of one over an estimated variance, pooled / df.
        between = np.diagonal(self.between, axis1=1, axis2=2)[usable]
        self.excess = between * (df[usable, None] - 2) / pooled[usable]

    def of_one_update(self, where: slice) -> tuple[np.ndarray | None, float]:
        """Covariance of one update's (tr Sigma, |G|^2) in the windows `where`, and its df."""
        df = float((self.updates[where] - 1).sum())
        if df < _MIN_DF:
            inside = (self.middle >= where.start) & (self.middle < where.stop)
            count = int(inside.sum())
            return (self.between[inside].mean(axis=0), count) if count >= _MIN_DF else (None, 0)
        pooled = np.einsum("w,wij->ij", self.updates[where], self.within[where]) / df
        centre = (where.start + where.stop - 1) / 2
        nearest = np.argsort(np.abs(self.compared - centre), kind="stable")[:_NEIGHBOURS]
        if len(nearest) < _MIN_DF:
            return pooled, df
        scale = np.sqrt(np.maximum(self.excess[nearest].mean(axis=0), 1.0))
        return scale[:, None] * pooled * scale[None, :], df


def _between(series: _Series) -> tuple[np.ndarray, np.ndarray]:
    """Every window with two neighbours, and the covariance of one update its residual implies."""
    count = len(series.updates)
    middle = np.arange(1, count - 1)
    offsets = np.array([*range(-_REACH, 0), *range(1, _REACH + 1)])
    other = middle[:, None] + offsets
    inside = (other >= 0) & (other < count)
    other = np.clip(other, 0, count - 1)
    updates = np.where(inside, series.updates[other], 0.0)
    x = series.log_step[other] - series.log_step[middle][:, None]
    # Weights of the least-squares line through the neighbours, read off at the window itself.
    s0, s1, s2 = (np.sum(updates * x**power, axis=1)[:, None] for power in range(3))
    weight = updates * (s2 - s1 * x) / (s0 * s2 - s1**2)
    residual = series.estimate[middle] - np.einsum("wo,woi->wi", weight, series.estimate[other])
    variance = 1 / series.updates[middle] + np.sum(weight**2 / series.updates[other], axis=1)
    return middle, residual[:, :, None] * residual[:, None, :] / variance[:, None, None]


def _table(table: pl.DataFrame) -> str:
    several = table["run_id"].n_unique() > 1
    head = [*(["run"] if several else []), "steps", "tokens", "loss", "tr Sigma", "|G|^2"]
    rows = [[*head, "B_simple", "interval", "batch"]]
    for row in table.iter_rows(named=True):
        loss = "?" if row["loss"] is None else f"{row['loss']:.3f}"
        rows.append(
            [
                *([(row["name"] or row["run_id"])[:20]] if several else []),
                f"{row['step_start'] + 1}-{row['step']}",
                short_number(row["tokens"]),
                loss,
                f"{row['tr_sigma']:.3g}",
                f"{row['grad_sq']:.3g}",
                "-" if row["undetermined"] else short_number(row["b_simple"]),
                noise_interval(row),
                short_number(row["batch_tokens"]),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def noise_interval(row: dict) -> str:
    """The interval of one row of `noise_scale` in words: `410 .. 620`, `> 300` or `unknown`."""
    low, high = row["b_simple_low"], row["b_simple_high"]
    if low is None:
        return "unknown"
    return (
        f"> {short_number(low)}" if high is None else f"{short_number(low)} .. {short_number(high)}"
    )
