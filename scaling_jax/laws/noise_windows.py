"""Windows with the raw moments of the noise scale, from whatever recorded them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from scaling_jax.errors import RequestError, WorkError, counted
from scaling_jax.laws.noise_spread import Series, make_series
from scaling_jax.records.schema import AT_CHECKPOINT

if TYPE_CHECKING:
    from scaling_jax.records.store import Records

SERIES = ("source", "metric", "part")
TOTAL = ("groups", "euclidean", "total")
MOMENTS = (
    "grad_sq_small",
    "grad_sq_big",
    "grad_sq_small_sq",
    "grad_sq_big_sq",
    "grad_sq_small_big",
)
_NORMS, _SQUARES = MOMENTS[:2], MOMENTS[2:]
_BATCHES = ("batch_small", "batch_big")
_OF_THE_CURVE = {
    "tokens": pl.Int64,
    "train_loss": pl.Float64,
    "lr": pl.Float64,
    "batch_tokens": pl.Int64,
}
# Of the curve, the first that is there.
_LOSSES = ("train_loss", "loss", "val_loss")
_OF_THE_RUN = {"name": pl.String, "params_non_embedding": pl.Int64, "n_ctx": pl.Int64}
# Rows are gathered into windows of so many a decade of steps or, where that is more, of so many
# updates: enough to know a window's own variance, and few enough to see correlation between them.
_PER_DECADE, _UPDATES = 24, 20
_MOST = 500  # windows of a run, about


def noise_windows(records: Records) -> pl.DataFrame:
    """One row a run, series (`SERIES`) and window, in order of steps, nothing clamped.

    The series TOTAL is that of the curves, the others of the side table, without what was drawn
    apart from training at checkpoints. A table with neither
    `noise_steps` nor second moments has an update a row; rows of few updates are gathered into
    windows.

    Raises `WorkError` where no run recorded moments, `RequestError` for a table with some of the
    columns only, for batches whose small one is not the smaller and for squares below zero.
    """
    parts = [part for part in (_of_curves(records), _of_side_table(records)) if part is not None]
    rows = pl.concat(parts, how="vertical_relaxed") if parts else pl.DataFrame()
    if rows.is_empty():
        raise _no_moments(records)
    windows = _gathered(rows)
    runs = records.runs
    known = [name for name in _OF_THE_RUN if name in runs.columns]
    windows = windows.join(
        runs.select("run_id", *known), on="run_id", how="left", maintain_order="left"
    )
    return windows.with_columns(
        pl.lit(None, dtype=_OF_THE_RUN[name]).alias(name)
        for name in _OF_THE_RUN
        if name not in known
    )


def series_of(windows: pl.DataFrame) -> Series:
    """The windows of one run and series, in order of steps, as their estimates."""
    moments, batches = (
        np.stack([windows[name].cast(pl.Float64).to_numpy() for name in names])
        for names in (MOMENTS, _BATCHES)
    )
    return make_series(
        np.log(windows.select(_middle()).to_series().to_numpy()),
        windows["noise_steps"].cast(pl.Float64).to_numpy(),
        moments,
        batches,
    )


def _of_curves(records: Records) -> pl.DataFrame | None:
    curves = records.curves
    if not any(_holds(curves, name) for name in _NORMS):
        return None
    names = ["step", *_NORMS, *_BATCHES]
    whole = [name for name in (*_SQUARES, "noise_steps") if _holds(curves, name)]
    if whole:
        names += [*_SQUARES, "noise_steps"]
    if missing := [name for name in names if not _holds(curves, name)]:
        columns = "column" if len(missing) == 1 else "columns"
        raise RequestError(
            f"The noise scale needs the {columns} {', '.join(missing)} beside those that "
            f"{records.source} has: mean squared norms of the gradient of a small and of a big "
            "batch (grad_sq_small, grad_sq_big) of batch_small and batch_big tokens, after `step` "
            "updates; rows that are means over noise_steps updates also need the means of their "
            "squares and product (grad_sq_small_sq, grad_sq_big_sq, grad_sq_small_big)."
        )
    if not whole and records.made_ids:
        raise RequestError(
            f"{records.source} has an update a row and no run_id that says which rows are one run; "
            "add the column"
        )
    if not whole:
        small, big = (pl.col(name) for name in _NORMS)
        squares = (small**2, big**2, small * big)
        curves = curves.with_columns(
            pl.lit(1).alias("noise_steps"),
            *(square.alias(name) for name, square in zip(_SQUARES, squares, strict=True)),
        )
    named = (pl.lit(value).alias(name) for name, value in zip(SERIES, TOTAL, strict=True))
    curves = _described(curves).with_columns(named)
    return _measured(curves, records.source)


def _described(curves: pl.DataFrame) -> pl.DataFrame:
    """Windows with all that belongs beside moments, made up where a table of updates lacks it."""
    loss = next((name for name in _LOSSES if _holds(curves, name)), None)
    absent = [name for name in ("step_start", *_OF_THE_CURVE) if name not in curves.columns]
    curves = curves.with_columns(
        pl.lit(None, dtype=_OF_THE_CURVE.get(name, pl.Int64)).alias(name) for name in absent
    ).with_columns(
        *([] if loss is None else [pl.col(loss).alias("train_loss")]),
        pl.col("step_start").fill_null(pl.col("step") - pl.col("noise_steps")),
        pl.col("batch_tokens").fill_null(pl.col("batch_big")),
    )
    seen = (pl.col("step") - pl.col("step_start")) * pl.col("batch_tokens")
    before = (pl.col("step_start") * pl.col("batch_tokens")).first()
    counted_up = (before + seen.cum_sum()).over("run_id", order_by="step")
    return curves.with_columns(pl.col("tokens").fill_null(counted_up).round(0).cast(pl.Int64))


def _of_side_table(records: Records) -> pl.DataFrame | None:
    noise = records.noise.filter(pl.col("source") != AT_CHECKPOINT)
    if noise.is_empty():
        return None
    beside = records.curves.select("run_id", "step", *_OF_THE_CURVE).drop_nulls("step").sort("step")
    joined = (
        noise.sort("step")
        .join_asof(beside, on="step", by="run_id", check_sortedness=False)
        .sort("run_id", *SERIES, "step")
    )
    return _measured(joined, records.source)


def _measured(rows: pl.DataFrame, source: str) -> pl.DataFrame:
    finite = pl.all_horizontal(pl.col(name).is_finite() for name in MOMENTS)
    there = pl.all_horizontal(pl.col(name).is_not_null() for name in ("step", *_BATCHES))
    rows = rows.filter(finite & there & (pl.col("noise_steps") > 0))
    for bad, said in (
        (
            pl.col("batch_small") >= pl.col("batch_big"),
            "have a batch_small that is not below batch_big, where it is the smaller batch of the "
            "two, in tokens",
        ),
        (
            (pl.col(_NORMS[0]) < 0) | (pl.col(_NORMS[1]) < 0),
            "have a squared norm below zero",
        ),
    ):
        if count := rows.filter(bad).height:
            raise RequestError(f"{counted(count, 'row')} of {source} {said}")
    return rows.select(
        "run_id", *SERIES, "step_start", "step", *_OF_THE_CURVE, *MOMENTS, "noise_steps", *_BATCHES
    )


def _gathered(rows: pl.DataFrame) -> pl.DataFrame:
    updates, steps = pl.col("noise_steps"), (pl.col("step") - pl.col("step_start")).clip(1)
    series = ["run_id", *SERIES]
    least = pl.max_horizontal(updates.sum().over(series) / _MOST, pl.lit(_UPDATES))
    # A share of the step at first, from `turn` on a count of updates: one passes into the other.
    turn = _PER_DECADE * least / math.log(10)
    early = _PER_DECADE * pl.min_horizontal(_middle(), turn).log10() + 1e-9
    late = (_middle() - turn).clip(0) / least
    return (
        rows.sort(*series, "step", maintain_order=True)
        .with_columns(cell=(early + late).floor())
        .group_by(*series, *_BATCHES, "cell", maintain_order=True)
        .agg(
            pl.col("step_start").first(),
            pl.col("step", "tokens", "batch_tokens").last(),
            *(_mean(name, steps) for name in ("train_loss", "lr")),
            *(_mean(name, updates) for name in MOMENTS),
            updates.sum(),
        )
        .sort(*series, "step", maintain_order=True)
        .drop("cell")
    )


def _mean(name: str, weight: pl.Expr) -> pl.Expr:
    """The weighted mean of what is known, null where nothing is."""
    known = weight.filter(pl.col(name).is_not_null())
    total = (pl.col(name) * weight).sum()
    return pl.when(known.sum() > 0).then(total / known.sum()).alias(name)


def _middle() -> pl.Expr:
    """The geometric middle of a window's updates, as a step."""
    return ((pl.col("step_start") + 1) * pl.max_horizontal("step", pl.lit(1))).sqrt()


def _holds(frame: pl.DataFrame, name: str) -> bool:
    return name in frame.columns and frame[name].null_count() < frame.height


def _no_moments(records: Records) -> WorkError:
    return WorkError(
        f"no run in {records.source} recorded noise moments (grad_sq_small, grad_sq_big, ...). "
        "They are recorded where a batch is cut into groups: set batch.microbatches above 1, "
        "noise.groups above 1 or mesh.data above 1, or noise.sequences, and train again."
    )
