"""Tables that do not say which run a row is of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from scaling_jax import records
from scaling_jax.errors import RequestError
from scaling_jax.laws.forecast.curve import curves_of
from scaling_jax.laws.forecast.run import forecast
from scaling_jax.laws.forecast.unnamed import with_runs

STEP = np.arange(10, 510, 10)


def table(path: Path, **columns: pl.Expr | int) -> records.Records:
    frame = pl.DataFrame({"step": STEP, "loss": 2 + 3 * STEP**-0.5})
    frame.with_columns(**columns).write_csv(path)
    return records.load(path)


def test_rows_without_sizes_are_one_curve(tmp_path: Path) -> None:
    (curve,), excluded = curves_of(table(tmp_path / "one.csv"))
    assert curve.step.tolist() == STEP.tolist() and not excluded
    found = forecast(table(tmp_path / "one.csv"), horizon=5000)
    assert abs(found.runs[0].prediction.loss - (2 + 3 * 5000**-0.5)) < 1e-3


def test_rows_of_one_size_are_one_curve_whatever_its_column_is_called(tmp_path: Path) -> None:
    two = table(tmp_path / "two.csv", width=pl.when(pl.col("step") % 20 == 0).then(8).otherwise(4))
    curves, _ = curves_of(two, {"N": "width"})
    assert [(curve.run_id, curve.size, curve.step.size) for curve in curves] == [
        ("width=4", 4.0, 25),
        ("width=8", 8.0, 25),
    ]


def test_what_a_run_was_declared_with_goes_along(tmp_path: Path) -> None:
    found = with_runs(table(tmp_path / "declared.csv", steps=5000, schedule=pl.lit("cosine")))
    assert found.runs.select("run_id", "steps", "schedule").rows() == [("run", 5000, "cosine")]


def test_runs_that_a_table_names_stay(tmp_path: Path) -> None:
    named = table(tmp_path / "named.csv", run_id=pl.lit("a"))
    mapped = table(tmp_path / "mapped.csv", trial=pl.lit("b"))
    assert with_runs(named) is named
    (curve,), _ = curves_of(mapped, {"run": "trial"})
    assert (curve.run_id, curve.name) == ("b", "b")
    own = table(tmp_path / "own.csv", trial=pl.lit("b"), name=pl.lit("mine"))
    assert curves_of(own, {"run": "trial"})[0][0].name == "mine"


def test_rows_of_one_seed_and_several_sizes_are_several_curves(tmp_path: Path) -> None:
    both = {"seed": pl.lit(3), "N": pl.when(pl.col("step") % 20 == 0).then(8e6).otherwise(4)}
    found = table(tmp_path / "seeds.csv", **both)
    curves, _ = curves_of(found)
    assert [(c.name, c.size, c.step.size) for c in curves] == [
        ("run-0001 N=4", 4.0, 25),
        ("run-0001 N=8000000", 8e6, 25),
    ]
    again = with_runs(with_runs(found))
    assert sorted(again.runs["run_id"]) == [c.run_id for c in curves]


def test_curves_that_only_another_column_tells_apart_ask_for_it(tmp_path: Path) -> None:
    two = pl.concat([pl.DataFrame({"step": STEP, "loss": c + 3 * STEP**-0.5}) for c in (2.0, 2.1)])
    two.write_csv(tmp_path / "two.csv")
    with pytest.raises(RequestError, match="run=COLUMN"):
        curves_of(records.load(tmp_path / "two.csv"))
