"""Windows with moments from studies and from tables of others."""

from __future__ import annotations

import io

import numpy as np
import polars as pl
import pytest

from scaling_jax import records as stored
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.noise_scale import noise_scale
from scaling_jax.laws.noise_windows import MOMENTS, noise_windows
from scaling_jax.records.schema import AT_CHECKPOINT
from tests.laws.noise_curves import BATCH, GROUPS, curve, records, side_rows, squared_norms

SQUARES = MOMENTS[2:]


@pytest.fixture
def rows():
    return curve(*squared_norms(np.random.default_rng(1), 2.0, 1000.0, 200), [1000, 1100, 1200])


def read(frame, tmp_path):
    """The frame as a table of somebody else's."""
    path = tmp_path / "table.csv"
    buffer = io.BytesIO()
    frame.write_csv(buffer)
    path.write_bytes(buffer.getvalue())
    return stored.load(path)


def test_windows_without_moments_are_skipped_and_their_absence_refused(rows):
    some = rows.with_columns(noise_steps=pl.Series([100, 0]))
    assert noise_windows(records(some))["noise_steps"].to_list() == [100]
    broken = rows.with_columns(grad_sq_big=pl.Series([float("nan"), 2.0]))
    assert noise_windows(records(broken))["step"].to_list() == [1200]
    none = rows.with_columns(pl.lit(None, pl.Float64).alias(name) for name in MOMENTS)
    for bare in (none, rows.drop(MOMENTS)):
        with pytest.raises(WorkError, match=r"batch\.microbatches.*noise\.groups.*mesh\.data"):
            noise_windows(records(bare))


def test_a_table_with_some_of_the_columns_is_told_which_are_missing(rows, tmp_path):
    for missing in ("grad_sq_big", "batch_small", "noise_steps", "grad_sq_small_big", "step"):
        with pytest.raises(RequestError, match=f"needs the column {missing} beside") as error:
            noise_windows(read(rows.drop(missing), tmp_path))
        assert "tokens" in str(error.value)
    with pytest.raises(RequestError, match="columns grad_sq_big, batch_big beside"):
        noise_windows(read(rows.drop("grad_sq_big", "batch_big"), tmp_path))


def test_what_is_no_square_of_a_norm_is_refused(rows):
    swapped = rows.rename({"batch_small": "batch_big", "batch_big": "batch_small"})
    with pytest.raises(RequestError, match=r"2 rows .*batch_small that is not below batch_big"):
        noise_windows(records(swapped))
    negative = rows.with_columns(grad_sq_small=pl.Series([-1.0, 3.0]))
    with pytest.raises(RequestError, match="1 row of a table have a squared norm below zero"):
        noise_windows(records(negative))


def test_a_table_of_single_updates_makes_windows(tmp_path):
    small, big = squared_norms(np.random.default_rng(2), 2.0, 1000.0, 2000)
    table = pl.DataFrame(
        {
            "step": np.arange(1, 2001),
            "grad_sq_small": small,
            "grad_sq_big": big,
            "batch_small": BATCH // GROUPS,
            "batch_big": BATCH,
            "loss": 3.0,
            "run_id": "theirs",
        }
    )
    source = read(table, tmp_path)
    with pytest.raises(RequestError, match="no run_id"):
        noise_windows(read(table.drop("run_id"), tmp_path))
    windows = noise_windows(source)
    assert windows["noise_steps"].sum() == 2000
    assert 80 < len(windows) < 150
    assert windows["step"][:5].to_list() == [1, 2, 3, 4, 5]
    late = windows.filter(pl.col("step") > 400)["noise_steps"][:-1]
    assert late.min() >= 15 and late.max() <= 25  # pyright: ignore
    assert (windows["tokens"] == windows["step"] * BATCH).all()
    frame = noise_scale(source, precision=1.0001)
    row = frame.row(0, named=True)
    assert row["b_simple_low"] < 500 < row["b_simple_high"] < 700 and row["loss"] == 3.0
    # What is gathered is what a recorder of the same windows would have written.
    edges = [0, *windows["step"]]
    whole = noise_scale(
        records(curve(small, big, edges, loss=lambda s: 0 * s + 3.0)), precision=1.0001
    )
    assert row["b_simple"] == pytest.approx(whole["b_simple"][0])
    assert row["b_simple_high"] == pytest.approx(whole["b_simple_high"][0], rel=1e-6)


def test_very_many_updates_make_no_more_windows_than_can_be_weighed():
    small, big = squared_norms(np.random.default_rng(3), 2.0, 1000.0, 60_000)
    windows = noise_windows(records(curve(small, big, range(60_001))))
    assert len(windows) < 700 and windows["noise_steps"].sum() == 60_000


def test_recorded_windows_stay_as_they_are(rows):
    edges = np.unique(np.round(10 * 10 ** (np.arange(0, 73) / 24)).astype(int))
    small, big = squared_norms(np.random.default_rng(4), 2.0, 1000.0, edges[-1] - edges[0])
    recorded = curve(small, big, edges)
    windows = noise_windows(records(recorded))
    late = recorded.filter(pl.col("step") > 400)
    assert windows.filter(pl.col("step") > 400).select(*MOMENTS).equals(late.select(*MOMENTS))


def test_side_rows_take_tokens_and_loss_from_the_curve(rows):
    side = side_rows(rows, "sequences", "euclidean", "norms")
    probe = side.with_columns(pl.lit(AT_CHECKPOINT).alias("source"))
    windows = noise_windows(records(rows, noise=pl.concat([side, probe])))
    assert set(windows["source"]) == {"groups", "sequences"}
    norms = windows.filter(part="norms")
    assert norms["tokens"].to_list() == rows["tokens"].to_list()
    assert norms["train_loss"].to_list() == pytest.approx(rows["train_loss"].to_list())
