"""The gradient noise scale B_simple = tr(Sigma)/|G|^2 from raw moments, with an interval.

McCandlish et al. (2018), eq. 2.9 and appendix A.1: two squared norms of gradients at the same
parameters, one of a small and one of a big batch, give unbiased estimates of |G|^2 and tr(Sigma).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
from scipy import optimize

from scaling_jax.errors import RequestError
from scaling_jax.laws.noise_spread import Interval, Series, Spread, fieller
from scaling_jax.laws.noise_windows import SERIES, TOTAL, noise_windows, series_of
from scaling_jax.laws.request import require_level

if TYPE_CHECKING:
    from scaling_jax.records.store import Records

# Either way. A point ends where it is known so well.
PRECISION = 1.25
# A point ends, however little is known by then, where the loss has moved by this factor: where
# B_simple goes as L^-5 it moves by 1.6 and its mean over the point by half of that.
LOSS_MOVE = 1.1
_SCHEMA = {
    "run_id": pl.String,
    "name": pl.String,
    "params_non_embedding": pl.Int64,
    "n_ctx": pl.Int64,
    **dict.fromkeys(SERIES, pl.String),
    "main": pl.Boolean,
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
    "ended_by": pl.String,
    "lr": pl.Float64,
    "batch_tokens": pl.Int64,
    "noise_steps": pl.Int64,
}
# What a point has from its last window.
_OF_LAST = (
    "run_id", "name", "params_non_embedding", "n_ctx", *SERIES, "step", "tokens", "batch_tokens",
)  # fmt: skip
# The series that places the points, the first that a run has.
_LEADING = (TOTAL, ("sequences", "euclidean", "total"))


def noise_scale(records: Records, level: float = 0.9, precision: float = PRECISION) -> pl.DataFrame:
    """B_simple of every run along its training, as a ratio of means, nothing clamped.

    One row a run and point. A point is as many windows of the run as make its interval no wider
    than a factor `precision` either way, and no more than the training loss takes to move by a
    factor 1.1; `ended_by` says which of the two ended it, or that the batch changed or the run
    ended. Loss is nats a token, of the point; `b_simple` and its bounds, `batch_tokens` and
    `tokens` (after the point) are tokens; `tr_sigma` is the variance a token, so that
    |G|^2 + tr(Sigma)/B is the expected squared norm of a batch of B tokens. Where the interval of
    |G|^2 at `level` includes zero the row is `undetermined`: `b_simple` and the upper bound are
    null, and the lower bound stands alone. Both bounds are null where a point has too few updates
    to know its variance, or where |G|^2 is below zero by more than chance allows.

    `source` and `part` say what was measured: groups of the batch in total, or single sequences
    where a run recorded these alone. The interval is Fieller's, from the covariance of the two
    estimates a step, over the number of steps. That covariance is pooled within windows, so drift
    along the point does not count as noise; where the windows say that updates are correlated it is
    larger (`noise_spread.Spread`).

    Raises `RequestError` for a level that is no share, a precision of 1 or less and for tables that
    `noise_windows` refuses, `WorkError` where no run recorded noise moments.
    """
    return noise_series(records, level, precision).filter("main")


def noise_series(
    records: Records, level: float = 0.9, precision: float = PRECISION
) -> pl.DataFrame:
    """All that was recorded, as `noise_scale`: each source, metric and part at the same points.

    The rows of `noise_scale` are `main` and place the points; the others may be wide there. Of the
    metric `adam` B_simple is tr(P Sigma) / G^T P G with the metric P of Adam's update.
    """
    require_level(level)
    if not (math.isfinite(precision) and precision > 1):
        raise RequestError(f"precision is a factor above 1, not {precision:g}")
    rows: list[dict] = []
    for run in noise_windows(records).partition_by("run_id", maintain_order=True):
        rows.extend(_run_rows(run, level, precision))
    return pl.DataFrame(rows, schema=_SCHEMA)


class _Point(NamedTuple):
    where: slice  # of windows
    interval: Interval
    ended_by: str | None


class _Windows:
    """The windows of one run and series."""

    def __init__(self, table: pl.DataFrame, level: float) -> None:
        self.table, self.level = table, level
        self.series: Series = series_of(table)
        self.spread = Spread(self.series)
        self._rows = table.to_dicts()
        self._steps = (table["step"] - table["step_start"]).clip(1).to_numpy()
        self._curve = {name: table[name].cast(pl.Float64).fill_null(math.nan).to_numpy()
                       for name in ("train_loss", "lr")}  # fmt: skip

    def means(self, where: slice) -> tuple[float, float]:
        """tr Sigma and |G|^2 over the windows."""
        updates = self.series.updates[where]
        tr_sigma, grad_sq = (updates @ self.series.estimate[where] / updates.sum()).tolist()
        return tr_sigma, grad_sq

    def interval(self, where: slice) -> Interval:
        covariance, df = self.spread.of_one_update(where)
        if covariance is None:
            return Interval(None, None, True)
        total = self.series.updates[where].sum()
        return fieller(*self.means(where), covariance / total, self.level, df)

    def row(self, point: _Point) -> dict:
        """The row of a point, all but which run and series it is of."""
        interval, rows = point.interval, self._rows[point.where]
        tr_sigma, grad_sq = self.means(point.where)
        loss, lr = (self._mean(name, point.where) for name in ("train_loss", "lr"))
        return {
            **{name: rows[-1][name] for name in _OF_LAST},
            "step_start": rows[0]["step_start"],
            "loss": loss,
            "lr": lr,
            "grad_sq": grad_sq,
            "tr_sigma": tr_sigma,
            "b_simple": None if interval.undetermined else tr_sigma / grad_sq,
            "b_simple_low": interval.low,
            "b_simple_high": interval.high,
            "undetermined": interval.undetermined,
            "ended_by": point.ended_by,
            "noise_steps": sum(row["noise_steps"] for row in rows),
        }

    def _mean(self, name: str, where: slice) -> float | None:
        """Over the steps at which it is known."""
        values = self._curve[name][where]
        known = np.isfinite(values)
        if not known.any():
            return None
        return float(np.average(values[known], weights=self._steps[where][known]))


def _run_rows(run: pl.DataFrame, level: float, precision: float) -> list[dict]:
    parts = {tuple(part.row(0, named=True)[name] for name in SERIES): _Windows(part, level)
             for part in run.partition_by(SERIES, maintain_order=True)}  # fmt: skip
    leading = next((key for key in _LEADING if key in parts), next(iter(parts)))
    points = _points(parts[leading], precision)
    rows = [parts[leading].row(point) | {"main": True} for point in points]
    for key, windows in parts.items():
        if key != leading:
            rows += [row | {"main": False} for row in _at_points(windows, rows[: len(points)])]
    return rows


def _at_points(windows: _Windows, points: list[dict]) -> list[dict]:
    """Rows of another series, over its windows that end inside each point."""
    ends, rows = windows.table["step"].to_numpy(), []
    for point in points:
        first, last = np.searchsorted(ends, [point["step_start"], point["step"]], side="right")
        if last > first:
            where = slice(int(first), int(last))
            at = _Point(where, windows.interval(where), point["ended_by"])
            rows.append(windows.row(at))
    return rows


def _points(windows: _Windows, precision: float) -> list[_Point]:
    batches = windows.table.select("batch_small", "batch_big").to_numpy()
    changes = np.flatnonzero(np.any(np.diff(batches, axis=0) != 0, axis=1)) + 1
    edges = [0, *changes.tolist(), len(batches)]
    loss = _falling(windows.table["train_loss"], windows.series.updates)
    points = []
    for first, stop in itertools.pairwise(edges):
        own = _of_one_batch(windows, loss, first, stop, precision)
        if own[-1].ended_by is None:
            own[-1] = own[-1]._replace(ended_by="end" if stop == edges[-1] else "batch")
        points += own
    return points


def _of_one_batch(
    windows: _Windows, loss: np.ndarray, first: int, stop: int, precision: float
) -> list[_Point]:
    """The points of windows first .. stop - 1; the last is not `ended_by` anything of its own."""
    points: list[_Point] = []
    while first < stop:
        point = _grown(windows, loss, first, stop, precision)
        if point.ended_by is None and points:
            # What is left over has no windows to become precise with but those before it.
            whole = slice(points[-1].where.start, stop)
            if loss[whole.start] - loss[stop - 1] <= math.log(LOSS_MOVE):
                points.pop()
                point = _Point(whole, windows.interval(whole), None)
        points.append(point)
        first = point.where.stop
    return points


def _grown(windows: _Windows, loss: np.ndarray, first: int, stop: int, precision: float) -> _Point:
    """The point from window `first` on; not `ended_by` anything where it reaches `stop`."""
    where, interval = slice(first, first), Interval(None, None, True)
    for end in range(first + 1, stop + 1):
        if loss[first] - loss[end - 1] > math.log(LOSS_MOVE):
            return _Point(where, interval, "loss")
        where = slice(first, end)
        interval = windows.interval(where)
        if _is_precise(windows.means(where), interval, precision):
            return _Point(where, interval, "precise")
    return _Point(where, interval, None)


def _is_precise(means: tuple[float, float], interval: Interval, precision: float) -> bool:
    low, high, undetermined = interval
    if undetermined or low is None or high is None:
        return False
    ratio = means[0] / means[1]
    return low * precision >= ratio and high <= precision * ratio


def _falling(loss: pl.Series, updates: np.ndarray) -> np.ndarray:
    """ln of the loss without the noise of batches: the nearest sequence that never rises.

    All zero where no loss is known.
    """
    known = loss.fill_null(strategy="forward").fill_null(strategy="backward").fill_null(1.0)
    log_loss = np.log(known.to_numpy())
    return optimize.isotonic_regression(log_loss, weights=updates, increasing=False).x


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


def noise_interval(row: Mapping[str, Any]) -> str:
    """The interval of one row of `noise_scale` in words: `410 .. 620`, `> 300` or `unknown`."""
    return interval_words(row["b_simple_low"], row["b_simple_high"])


def interval_words(low: float | None, high: float | None) -> str:
    """Two bounds in words, either of which may be open."""
    if low is None:
        return "unknown" if high is None else f"< {short_number(high)}"
    return (
        f"> {short_number(low)}" if high is None else f"{short_number(low)} .. {short_number(high)}"
    )
