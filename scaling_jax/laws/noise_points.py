"""The noise scale at checkpoints, where each point rests on draws of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from scaling_jax.errors import WorkError
from scaling_jax.laws.noise_spread import Interval, fieller, make_series
from scaling_jax.laws.request import require_level
from scaling_jax.records.schema import AT_CHECKPOINT

if TYPE_CHECKING:
    from scaling_jax.records.store import Records

_MOMENTS = (
    "grad_sq_small",
    "grad_sq_big",
    "grad_sq_small_sq",
    "grad_sq_big_sq",
    "grad_sq_small_big",
)
_SCHEMA = {
    "run_id": pl.String,
    "name": pl.String,
    "params_non_embedding": pl.Int64,
    "n_ctx": pl.Int64,
    "step": pl.Int64,
    "tokens": pl.Int64,
    "loss": pl.Float64,
    "metric": pl.String,
    "grad_sq": pl.Float64,
    "tr_sigma": pl.Float64,
    "b_simple": pl.Float64,
    "b_simple_low": pl.Float64,
    "b_simple_high": pl.Float64,
    "undetermined": pl.Boolean,
    "draws": pl.Int64,
    "batch_small": pl.Int64,
    "batch_big": pl.Int64,
}
_METRICS = ("euclidean", "hessian", "gauss_newton")
# Fewer degrees of freedom than this say nothing about a variance.
_MIN_DF = 4


def noise_points(records: Records, level: float = 0.9) -> pl.DataFrame:
    """tr(P Sigma) / G^T P G at each checkpoint that was measured, nothing clamped.

    One row a run, step and metric P: `hessian` for B_noise of McCandlish et al. (2018), eq. 2.8,
    `gauss_newton` for its positive variant and `euclidean` for B_simple, from the same draws.
    `grad_sq` is G^T P G and `tr_sigma` is tr(P Sigma) a token; `b_simple` is their ratio, in tokens
    as the batches are. `loss` is the last training loss recorded by then, nats a token. The
    interval is Fieller's, from the covariance of the draws, which are independent: bounds are null
    of fewer than 5. `b_simple` is null where G^T P G cannot be told from zero at `level`; of the
    Hessian it may be below zero.

    Raises `RequestError` for a level that is no share, `WorkError` where nothing was measured.
    """
    require_level(level)
    table = records.noise.filter(source=AT_CHECKPOINT, part="total")
    if table.is_empty():
        raise WorkError(
            f"no checkpoint in {records.source} was measured; scaling-jax curvature measures them"
        )
    batches = ("batch_small", "batch_big")
    series = make_series(
        np.zeros(len(table)),
        table["noise_steps"].cast(pl.Float64).to_numpy(),
        np.stack([table[name].to_numpy() for name in _MOMENTS]),
        np.stack([table[name].cast(pl.Float64).to_numpy() for name in batches]),
    )
    rows = []
    for place, estimate, covariance in zip(
        _placed(table, records).rows(named=True), series.estimate, series.covariance, strict=True
    ):
        trace, form = estimate.tolist()
        interval, df = Interval(None, None, True), place["draws"] - 1
        if df >= _MIN_DF:
            signed = place["metric"] == "hessian"
            interval = fieller(trace, form, covariance / df, level, df, signed)
        found = {
            "grad_sq": form,
            "tr_sigma": trace,
            "b_simple": None if interval.undetermined else trace / form,
            "b_simple_low": interval.low,
            "b_simple_high": interval.high,
            "undetermined": interval.undetermined,
        }
        rows.append(place | found)
    order = {metric: i for i, metric in enumerate(_METRICS)}
    frame = pl.DataFrame(rows, schema=_SCHEMA)
    return frame.sort("name", "step", pl.col("metric").replace_strict(order))


def _placed(table: pl.DataFrame, records: Records) -> pl.DataFrame:
    """The measures in their order, with what is known of their runs and of the curves by then."""
    curve = records.curves.select("run_id", "step", "tokens", "batch_tokens", "train_loss")
    curve = curve.drop_nulls("step").sort("step")
    of_run = records.runs.select("run_id", "name", "params_non_embedding", "n_ctx")
    placed = table.with_row_index("row").join(of_run, on="run_id", how="left").sort("step")
    placed = placed.join_asof(
        curve.with_columns(
            pl.col("step").alias("seen_at"), pl.col("train_loss").forward_fill().over("run_id")
        ),
        on="step",
        by="run_id",
        check_sortedness=False,
    )
    since = pl.col("step") - pl.col("seen_at")
    return placed.sort("row").select(
        "run_id",
        "name",
        "params_non_embedding",
        "n_ctx",
        "step",
        pl.col("tokens") + since * pl.col("batch_tokens"),
        pl.col("train_loss").alias("loss"),
        "metric",
        pl.col("noise_steps").alias("draws"),
        "batch_small",
        "batch_big",
    )
