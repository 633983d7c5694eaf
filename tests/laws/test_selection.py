"""Each rule of the selection takes out what it should, says why, and loses no point."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws import panel
from scaling_jax.laws.selection import PER_DECADE, Selection, select
from scaling_jax.records.store import Records


def with_runs(records: Records, which: pl.Expr, **values: object) -> Records:
    """The records with columns of the runs that match set to new values."""
    columns = {
        name: pl.when(which).then(pl.lit(value)).otherwise(pl.col(name))
        for name, value in values.items()
    }
    return replace(records, runs=records.runs.with_columns(**columns))


def rules(selection: Selection) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in selection.excluded:
        found.setdefault(row["rule"], set()).add(row["run_id"])
    return found


SMALLEST = pl.col("run_id") == "n3456-s0-lr0.01"
SECOND = pl.col("run_id") == "n6144-s0-lr0.01"


def test_every_point_is_in_the_fit_or_in_the_list(make_records) -> None:
    records = make_records(seeds=2)
    records = with_runs(records, SECOND, status="diverged")
    selection = select(records)
    out = sum(row["n_points"] for row in selection.excluded)
    assert out + selection.points.height == records.curves.height
    assert all(row["reason"] and row["name"] for row in selection.excluded)


@pytest.mark.parametrize(
    ("values", "rule", "reason"),
    [
        ({"status": "diverged"}, "not done", "diverged"),
        ({"status": "interrupted"}, "not done", "interrupted"),
        ({"status": "stopped"}, "not done", "stopped"),
        ({"schedule": "cosine"}, "schedule", "cosine"),
        ({"n_layer": 1}, "one layer", "D.7"),
        ({"batch_tokens": 1024}, "another family", "batch_tokens 1024, most sizes have 512"),
        ({"bigram_nats": 1.0}, "passes the floor late", "bigram floor"),
    ],
)
def test_a_run_is_left_out_with_its_reason(make_records, values, rule, reason) -> None:
    records = make_records()
    if "batch_tokens" in values:
        records = replace(records, curves=records.curves.drop("batch_tokens"))
    selection = select(with_runs(records, SECOND, **values))
    assert "n6144-s0-lr0.01" not in selection.points["run"]
    assert rules(selection)[rule] == {"n6144-s0-lr0.01"}
    assert any(reason in row["reason"] for row in selection.excluded if row["rule"] == rule)


def test_the_best_rate_is_of_full_length_and_of_the_mean_over_seeds(make_records) -> None:
    records = make_records(seeds=2, bracket=False)
    worse = records.runs.filter(SMALLEST).with_columns(run_id=pl.lit("worse"), lr_peak=pl.lit(0.02))
    short = worse.with_columns(run_id=pl.lit("short"), lr_peak=pl.lit(0.04))
    curve = records.curves.filter(SMALLEST)
    # Better than the mean of the two seeds at 0.01 would have to be; here it is 1 % worse.
    curves = [
        records.curves,
        curve.with_columns(run_id=pl.lit("worse"), val_loss=pl.col("val_loss") * 1.01),
        curve.with_columns(run_id=pl.lit("short"), val_loss=pl.col("val_loss") * 0.9).head(15),
    ]
    selection = select(
        Records(pl.concat([records.runs, worse, short]), pl.concat(curves), "three rates")
    )
    assert rules(selection)["learning rate"] == {"worse"}
    assert rules(selection)["bracket check"] == {"short"}
    assert set(selection.points["lr"]) == {0.01}
    assert set(selection.candidates["lr"]) == {0.01, 0.02, 0.04}


def test_each_run_enters_after_its_last_point_above_the_floor(make_records) -> None:
    records = make_records(noise=0.0)
    floor = 2.85
    selection = select(with_runs(records, pl.lit(True), bigram_nats=floor))
    for (run,), points in selection.points.group_by("run"):
        curve = records.curves.filter(pl.col("run_id") == run)
        above = curve.filter(pl.col("val_loss") >= floor)["step"].to_numpy()
        assert points["S"].to_numpy().min() > max(above.max(initial=0), 10)
        assert points["loss"].to_numpy().max() < floor
    smallest, largest = np.unique(selection.points["N"].to_numpy())[[0, -1]]
    share = selection.below_floor
    assert share is not None and share[smallest] < share[largest] <= 1.0


def test_without_a_floor_the_rule_is_not_applied(make_records) -> None:
    records = make_records()
    selection = select(replace(records, runs=records.runs.drop("bigram_nats")))
    assert selection.below_floor is None
    assert "above the floor" not in rules(selection)


def test_warm_up_is_out_and_dense_points_are_thinned(make_records) -> None:
    records = make_records(bracket=False)
    selection = select(records)
    assert selection.points["S"].to_numpy().min() > 10
    at = np.arange(1, 12_001, 10)
    dense = pl.concat(
        curve.head(1)
        .drop("step", "val_loss")
        .join(
            pl.DataFrame(
                {
                    "step": at,
                    "val_loss": np.interp(at, curve["step"].to_numpy(), curve["val_loss"]),
                }
            ),
            how="cross",
        )
        for curve in records.curves.partition_by("run_id")
    )
    thinned = select(replace(records, curves=dense)).points
    cells = (thinned["S"].log10() * PER_DECADE).floor()
    assert thinned.with_columns(cell=cells).group_by("run", "cell").len()["len"].max() == 1
    assert thinned.height < dense.height / 5


def test_a_window_mean_lies_in_the_middle_of_its_window(make_records) -> None:
    records = make_records()
    points = select(records, {"loss": "train_loss"}).points
    row = points.row(0, named=True)
    curve = records.curves.filter(
        (pl.col("run_id") == row["run"]) & (pl.col("step_start") == row["step_start"])
    )
    assert row["S"] == pytest.approx(math.sqrt((row["step_start"] + 1) * curve["step"][0]))


def test_windows_without_an_evaluation_are_no_points(make_records) -> None:
    records = make_records()
    half = records.curves.with_columns(
        val_loss=pl.when(pl.int_range(pl.len()) % 2 == 0).then("val_loss")
    )
    selection = select(replace(records, curves=half))
    assert selection.points["loss"].null_count() == 0


def test_a_run_that_never_started_is_in_the_list(make_records) -> None:
    records = make_records()
    queued = records.runs.filter(SMALLEST).with_columns(
        run_id=pl.lit("waits"), status=pl.lit("queued")
    )
    selection = select(replace(records, runs=pl.concat([records.runs, queued])))
    assert {"run_id": "waits", "n_points": 0, "rule": "not done"}.items() <= next(
        row for row in selection.excluded if row["run_id"] == "waits"
    ).items()


def test_two_sizes_are_refused_with_what_became_of_the_others(make_records) -> None:
    records = with_runs(make_records(sizes=(3456, 6144, 12288)), SECOND, status="diverged")
    with pytest.raises(WorkError, match=r"3 sizes.*2 are left.*not done"):
        select(records)


def test_less_than_half_a_decade_is_refused(make_records) -> None:
    records = with_runs(make_records(recorded=60), pl.lit(True), warmup_steps=5000)
    with pytest.raises(WorkError, match="half a decade"):
        select(records)


def test_few_steps_are_refused(make_records) -> None:
    records = make_records(bracket=False)
    few = records.curves.filter(
        pl.col("step").is_in(list({100, *records.curves["step"].unique().sort()[-2:]}))
    )
    with pytest.raises(WorkError, match=r"4 steps each, and 0 are left.*too few points"):
        select(replace(records, curves=few))


def test_wrong_columns_and_losses_are_told(make_records) -> None:
    records = make_records()
    with pytest.raises(RequestError, match=r"No role 'los'.*'loss'"):
        select(records, {"los": "val_loss"})
    with pytest.raises(RequestError, match=r"No column 'val_los' for loss.*'val_loss'"):
        select(records, {"loss": "val_los"})
    with pytest.raises(RequestError, match=r"loss=COLUMN.*'train_loss'"):
        select(replace(records, curves=records.curves.drop("val_loss")))
    for value in (float("inf"), 0.0):
        with pytest.raises(RequestError, match="1 row of val_loss"):
            select(broken_at_the_end(records, value))
    words = records.curves.with_columns(val_loss=pl.lit("two"))
    with pytest.raises(RequestError, match=r"Not numbers.*val_loss"):
        select(replace(records, curves=words))


def test_a_foreign_table_needs_only_size_steps_and_loss(make_records) -> None:
    records = make_records(bracket=False)
    foreign = records.curves.join(
        records.runs.select("run_id", model_size="params_total"), on="run_id"
    ).select("run_id", "model_size", updates="step", nats="val_loss")
    runs = foreign.select("run_id").unique(maintain_order=True)
    selection = select(
        Records(runs, foreign, "theirs.csv"), {"N": "model_size", "S": "updates", "loss": "nats"}
    )
    assert selection.points["N"].n_unique() == 7
    assert selection.table.missing("lr") == "column lr_peak missing"


def broken_at_the_end(records: Records, value: float | None) -> Records:
    """The records with another last loss of the second size."""
    end = (pl.col("step") == 12_000) & SECOND
    loss = pl.when(end).then(pl.lit(value, pl.Float64)).otherwise("val_loss")
    return replace(records, curves=records.curves.with_columns(val_loss=loss))


def test_a_loss_that_is_no_number_is_counted(make_records) -> None:
    selection = select(broken_at_the_end(make_records(), float("nan")))
    rows = [row for row in selection.excluded if row["rule"] == "incomplete"]
    assert [(row["run_id"], row["n_points"]) for row in rows] == [("n6144-s0-lr0.01", 1)]
    assert "val_loss" in rows[0]["reason"]
    lamp = panel.complete_rows(selection)
    assert lamp.ok is False and lamp.value == 1 and "val_loss" in lamp.text
    assert panel.complete_rows(select(make_records())).ok is True
