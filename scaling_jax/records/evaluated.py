"""What follows from the side table of evaluations: columns of the curve, and each run's best."""

from __future__ import annotations

import polars as pl

from scaling_jax.records.schema import TEST, VALIDATION
from scaling_jax.records.superseded import WINDOW


def with_other_corpora(curves: pl.DataFrame, evaluations: pl.DataFrame) -> pl.DataFrame:
    """The curves with loss_<corpus> and loss_<corpus>_se of every corpus but the validation split.

    The test split's first, then by name; null where a window was not evaluated on a corpus.
    """
    corpora = evaluations["corpus"].unique().drop_nulls().to_list()
    for corpus in sorted(set(corpora) - {VALIDATION}, key=lambda name: (name != TEST, name)):
        columns = {"loss": f"loss_{corpus}", "loss_se": f"loss_{corpus}_se"}
        own = evaluations.filter(corpus=corpus).select(*WINDOW, *columns).rename(columns)
        curves = curves.join(own, on=WINDOW, how="left", maintain_order="left")
    return curves


def with_best(runs: pl.DataFrame, curves: pl.DataFrame) -> pl.DataFrame:
    """The runs with the step of each one's lowest validation loss, the first where there are two.

    `best_test_loss` is what the test split has there, null where it was not evaluated.
    """
    test = pl.col("loss_test") if "loss_test" in curves.columns else pl.lit(None, pl.Float64)
    best = (
        curves.filter(pl.col("val_loss").is_not_nan())
        .sort("val_loss", "step")
        .group_by("run_id", maintain_order=True)
        .agg(
            best_step=pl.col("step").first(),
            best_val_loss=pl.col("val_loss").first(),
            best_test_loss=test.first(),
        )
    )
    columns = runs.columns
    kept = runs.drop(best.columns[1:])
    return kept.join(best, on="run_id", how="left", maintain_order="left").select(columns)
