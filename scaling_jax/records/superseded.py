"""One row a step, however often a run was begun."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

WINDOW = ["run_id", "attempt", "step_start", "step"]
_NEXT = "where the next attempt begins"


def one_row_a_step(curves: pl.DataFrame) -> pl.DataFrame:
    """Drop what a later attempt went over again: its rows begin after `step_start` of its first."""
    begins = (
        curves.drop_nulls(["attempt", "step", "step_start"])
        .sort("run_id", "attempt", "step")
        .group_by("run_id", "attempt", maintain_order=True)
        .agg(pl.col("step_start").first().alias(_NEXT))
        .with_columns(pl.col(_NEXT).cum_min(reverse=True).shift(-1).over("run_id"))
    )
    kept = curves.join(begins, on=["run_id", "attempt"], how="left", maintain_order="left").filter(
        pl.col(_NEXT).is_null() | pl.col("step").is_null() | (pl.col("step") <= pl.col(_NEXT))
    )
    # an attempt from the start repeats the evaluation at step 0, which is after no update
    latest = pl.col("attempt") == pl.col("attempt").max().over("run_id", "step")
    return kept.filter(pl.col("step").is_null() | latest).drop(_NEXT)


def of_kept_windows(side: pl.DataFrame, keys: Iterable[str], curves: pl.DataFrame) -> pl.DataFrame:
    """The rows of a side table whose windows are among `curves`, one for each of `keys`."""
    return side.unique([*WINDOW, *keys], keep="last", maintain_order=True).join(
        curves.select(WINDOW), on=WINDOW, how="semi", maintain_order="left"
    )
