"""Each rule that turns rows into points: what it keeps, what it leaves out, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws import gather as module
from scaling_jax.laws import panel
from scaling_jax.laws.forms import LAWS
from scaling_jax.laws.gather import RULES, gather
from scaling_jax.laws.selection import PER_DECADE, Selection
from scaling_jax.records.store import Records

EVERY = [("a", 6.0), ("a", 4.5), ("a", 4.0), ("b", 5.0), ("b", 3.5), ("b", 3.0)]
STEPS = (0, 10, 100, 1000)
RUNS = {"a": (1e6, [9.0, 6.0, 4.0, 4.5]), "b": (1e7, [9.0, 5.0, 3.5, 3.0])}


def curves(**more: Any) -> pl.DataFrame:
    """Two runs, step 0 first; the loss of `a` rises again at its end."""
    rows = [
        {"run_id": run, "params": N, "step": step, "tokens": 512 * step,
         "flops": 6 * N * 512 * step, "loss": loss,
         "unique_tokens": 10_000 if run == "a" else 40_000}
        for run, (N, losses) in RUNS.items()
        for step, loss in zip(STEPS, losses, strict=True)
    ]  # fmt: skip
    return pl.DataFrame(rows).with_columns(**more)


def kept(selection: Selection) -> list[tuple[str, float]]:
    points = selection.points.sort("run", "loss", descending=[False, True])
    return list(zip(points["run"], points["loss"], strict=True))


def left_out(selection: Selection) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in selection.excluded:
        assert row["reason"] and row["name"] == row["run_id"]
        counts[row["rule"]] = counts.get(row["rule"], 0) + row["n_points"]
    return counts


@pytest.mark.parametrize("slug", ["l_n", "l_d", "l_nd", "l_c", "l_nd_chinchilla"])
def test_the_last_loss_of_a_run_that_was_stopped_is_no_end(read, slug: str) -> None:
    status = pl.when(run_id="b").then(pl.lit("stopped")).otherwise(pl.lit("done"))
    selection = gather(read(curves(status=status)), LAWS[slug])
    assert set(selection.points["run"]) == {"a"}
    assert "status stopped" in {row["reason"] for row in selection.excluded}


@pytest.mark.parametrize(
    ("slug", "points", "rules"),
    [
        ("l_n", [("a", 4.5), ("b", 3.0)], {"before the end": 6}),
        ("l_n_offset", [("a", 4.5), ("b", 3.0)], {"before the end": 6}),
        ("l_d", [("a", 4.0), ("b", 3.0)], {"not the lowest": 6}),
        ("l_nd", [("a", 4.0), ("b", 3.0)], {"not the lowest": 6}),
        # In order of compute: a 6.0, (a 4.0 and b 5.0 at one compute), (a 4.5, b 3.5), b 3.0.
        ("l_c", [("a", 6.0), ("a", 4.0), ("b", 3.5), ("b", 3.0)],
         {"initialisation": 2, "not on the frontier": 2}),
        ("l_nd_chinchilla", EVERY,
         {"initialisation": 2}),
        ("data_constrained", [row for row in EVERY if row != ("a", 4.5)],
         {"initialisation": 2, "after the lowest": 1}),
    ],
)  # fmt: skip
def test_each_law_has_its_rule(read, slug: str, points, rules) -> None:
    selection = gather(read(curves()), LAWS[slug])
    assert kept(selection) == points
    assert left_out(selection) == rules
    assert sum(rules.values()) + len(points) == 8


def test_every_law_has_a_rule() -> None:
    assert set(RULES) | {"l_ns"} == {slug.removesuffix("_offset") for slug in LAWS}


def test_overfitting_is_of_the_unique_tokens(read) -> None:
    for slug in ("l_d", "l_nd"):
        selection = gather(read(curves()), LAWS[slug])
        assert selection.table.sources["D"] == "unique_tokens"
        assert sorted(selection.points["D"]) == [10_000, 40_000]
    assert gather(read(curves()), LAWS["l_nd_chinchilla"]).table.sources["D"] == "tokens"


def test_the_lowest_loss_is_found_without_steps_too(read) -> None:
    table = curves().filter(pl.col("step") > 0).drop("step", "flops")
    selection = gather(read(table), LAWS["l_nd"])
    assert kept(selection) == [("a", 4.0), ("b", 3.0)]


def test_without_run_ids_the_lowest_is_of_every_amount_of_data(read) -> None:
    N, D = (axis.ravel() for axis in np.meshgrid([1e6, 1e7], [1e8, 1e9, 1e10]))
    selection = gather(read(params=N, tokens=D, loss=9 - np.log10(N * D) / 3), LAWS["l_nd"])
    assert selection.points.height == 6 and selection.excluded == []


def test_of_a_decaying_schedule_the_end_alone_is_a_measurement(read) -> None:
    schedule = pl.when(pl.col("run_id") == "a").then(pl.lit("cosine")).otherwise(pl.lit("constant"))
    selection = gather(read(curves(schedule=schedule)), LAWS["l_nd_chinchilla"])
    assert kept(selection) == [("a", 4.5), ("b", 5.0), ("b", 3.5), ("b", 3.0)]
    assert left_out(selection) == {"initialisation": 2, "before the end": 2}
    reason = next(row["reason"] for row in selection.excluded if row["rule"] == "before the end")
    assert "cosine" in reason


def test_warm_up_is_left_out(read) -> None:
    selection = gather(read(curves(warmup_steps=10)), LAWS["l_nd_chinchilla"])
    assert kept(selection) == [("a", 4.5), ("a", 4.0), ("b", 3.5), ("b", 3.0)]
    assert left_out(selection) == {"initialisation": 2, "warm-up": 2}


@pytest.mark.parametrize(
    ("column", "rule"),
    [
        ({"n_layer": [1, 2]}, "one layer"),
        ({"status": ["diverged", "done"]}, "not done"),
        ({"optimizer": ["lion", "adamw"]}, "another family"),
        ({"arch": ["lstm", "transformer"]}, "another family"),
    ],
)
def test_runs_of_another_kind_are_left_out(read, column: dict[str, list], rule: str) -> None:
    ((name, (first, rest)),) = column.items()
    more = curves().with_columns(run_id=pl.col("run_id") + "2")  # so that most sizes agree
    table = pl.concat([curves(), more.with_columns(params=pl.col("params") * 3)]).with_columns(
        pl.when(pl.col("run_id") == "a").then(pl.lit(first)).otherwise(pl.lit(rest)).alias(name)
    )
    selection = gather(read(table), LAWS["l_n"])
    assert kept(selection) == [("a2", 4.5), ("b", 3.0), ("b2", 3.0)]
    assert left_out(selection)[rule] == 4


def test_a_family_is_counted_in_runs_where_there_is_no_size(read) -> None:
    D = np.geomspace(1e7, 1e10, 5)
    optimizer = ["adamw", "adamw", "lion", "adamw", "adamw"]
    selection = gather(read(tokens=D, loss=5 - D * 1e-10, optimizer=optimizer), LAWS["l_d"])
    assert selection.points.height == 4
    assert left_out(selection) == {"another family": 1}


def test_the_worse_learning_rate_is_left_out(read) -> None:
    worse = curves().with_columns(
        run_id=pl.col("run_id") + "2", loss=pl.col("loss") + 0.1, lr_peak=0.02
    )
    table = pl.concat([curves(lr_peak=0.01), worse.select(curves(lr_peak=0.01).columns)])
    selection = gather(read(table), LAWS["l_n"])
    assert kept(selection) == [("a", 4.5), ("b", 3.0)]
    assert left_out(selection)["learning rate"] == 8


def test_rows_outside_a_condition_are_listed(read) -> None:
    selection = gather(read(curves()), LAWS["l_n"], where="params > 2e6")
    assert kept(selection) == [("b", 3.0)]
    assert left_out(selection) == {"where": 4, "before the end": 3}
    assert selection.excluded[0]["reason"] == "not params > 2e6"


@pytest.mark.parametrize("value", [float("nan"), None])
def test_rows_without_a_number_are_counted_and_listed(read, value: float | None) -> None:
    gone = (pl.col("run_id") == "b") & (pl.col("step") >= 100)
    loss = pl.when(gone).then(pl.lit(value, pl.Float64)).otherwise("loss")
    selection = gather(read(curves(loss=loss)), LAWS["l_n"])
    assert kept(selection) == [("a", 4.5), ("b", 5.0)]
    assert left_out(selection)["incomplete"] == 2
    row = next(row for row in selection.excluded if row["rule"] == "incomplete")
    assert (row["run_id"], row["n_points"]) == ("b", 2) and "loss" in row["reason"]


@pytest.mark.parametrize(
    ("column", "value", "slug", "message"),
    [
        ("loss", 0.0, "l_n", r"8 rows of loss \(loss\) not positive and finite, as in 0"),
        ("loss", -2.0, "l_n", r"8 rows of loss \(loss\) not positive"),
        (
            "loss",
            float("inf"),
            "l_n",
            r"8 rows of loss \(loss\) not positive and finite, as in inf",
        ),
        ("params", 0.7, "l_n", r"8 rows of params \(N\) below 1 or infinite, as in 0\.7.*unit"),
        ("unique_tokens", 0.25, "l_d", r"8 rows of unique_tokens \(D\) below 1 or infinite"),
        ("flops", 1e-9, "l_c", r"8 rows of flops \(C\) below 1 or infinite"),
        ("weight", -1.0, "l_n", r"8 rows of weight"),
    ],
)
def test_values_that_cannot_be_right_are_refused(read, column, value, slug, message) -> None:
    with pytest.raises(RequestError, match=message):
        gather(read(curves(**{column: pl.lit(value)})), LAWS[slug])


def test_rows_that_a_diverged_run_lost_are_no_fault_of_the_table(read) -> None:
    lost = pl.when(run_id="a", step=1000).then(None).otherwise("loss")
    status = pl.when(run_id="a").then(pl.lit("diverged")).otherwise(pl.lit("done"))
    selection = gather(read(curves(loss=lost, status=status)), LAWS["l_nd_chinchilla"])
    assert left_out(selection) == {"not done": 3, "initialisation": 2}
    assert panel.complete_rows(selection).ok is True


def test_a_row_without_a_weight_is_incomplete(read) -> None:
    weight = pl.when(pl.col("step") == 1000).then(None).otherwise(pl.col("step") + 1.0)
    selection = gather(read(curves(weight=weight)), LAWS["l_n"])
    assert kept(selection) == [("a", 4.0), ("b", 3.5)]
    assert left_out(selection)["incomplete"] == 2


def test_two_rows_of_one_run_at_one_place_are_refused(read) -> None:
    again = curves().filter((pl.col("run_id") == "b") & (pl.col("step") == 100))
    table = pl.concat([curves(), again.with_columns(loss=pl.lit(3.6))])
    with pytest.raises(RequestError, match=r"run_id 'b' has 2 rows at .*step = 100.*\(1 such"):
        gather(read(table), LAWS["l_n"])
    without = read(table.drop("run_id"))  # then the rows of a size are one run, by guess
    assert gather(without, LAWS["l_nd_chinchilla"]).points.height == 7


def test_duplicates_are_told_where_a_step_is_missing(read) -> None:
    step = pl.when(pl.col("run_id") == "a").then(None).otherwise("step")
    same = curves(step=step, tokens=5120, flops=None)
    with pytest.raises(RequestError, match=r"run_id 'a' has 4 rows at params = 1e\+06"):
        gather(read(same), LAWS["l_n"])


def test_a_missing_column_is_told_with_the_nearest(read) -> None:
    with pytest.raises(RequestError, match=r"'tokens' for D .*D=COLUMN.* Did you mean 'token'"):
        gather(read(params=[1, 2], token=[3, 4], loss=[3.0, 2.0]), LAWS["l_nd_chinchilla"])


def test_a_large_table_is_thinned_to_the_last_of_every_cell(read, monkeypatch) -> None:
    steps = np.arange(1, 3001)
    records = read(run_id="a", params=1e6, step=steps, tokens=steps * 512, loss=9 / steps**0.1)
    assert gather(records, LAWS["l_nd_chinchilla"]).points.height == 3000
    monkeypatch.setattr(module, "MOST_POINTS", 2999)
    selection = gather(records, LAWS["l_nd_chinchilla"])
    cells = (selection.points["S"].log10() * PER_DECADE).floor()
    assert cells.n_unique() == selection.points.height < 100
    assert selection.points["S"].max() == 3000
    assert left_out(selection) == {"thinned": 3000 - selection.points.height}


def test_runs_of_a_study_without_a_loss_are_listed(make_records) -> None:
    records = make_records(bracket=False)
    waits = records.runs.head(1).with_columns(run_id=pl.lit("waits"), status=pl.lit("queued"))
    both: Records = replace(records, runs=pl.concat([records.runs, waits]))
    selection = gather(both, LAWS["l_n"])
    assert selection.points.height == 7
    row = next(row for row in selection.excluded if row["run_id"] == "waits")
    assert (row["rule"], row["n_points"]) == ("not done", 0)


def test_rows_of_weight_zero_are_listed_as_left_out(read) -> None:
    weight = pl.when(pl.col("step") == 1000).then(0.0).otherwise(1.0)
    selection = gather(read(curves(weight=weight)), LAWS["l_nd_chinchilla"])
    assert left_out(selection) == {"initialisation": 2, "weight": 2}


def test_where_nothing_is_left_the_reasons_are_told(read) -> None:
    with pytest.raises(WorkError, match=r"No row is left for l_n\. Left out: 2 runs: incomplete"):
        gather(read(curves(loss=pl.lit(float("nan")))), LAWS["l_n"])


def test_a_sweep_of_several_loss_levels_is_no_one_pareto_front(read) -> None:
    sweep = pl.DataFrame(
        {"B": [1e3, 1e4] * 2, "S": [9e3, 2e3, 8e3, 1e3], "L": [3.0, 3.0, 4.0, 4.0]}
    )
    with pytest.raises(RequestError, match="one loss level, and L has 2: --where keeps one"):
        gather(read(sweep), LAWS["pareto"])
    assert gather(read(sweep), LAWS["pareto"], where="L = 3").points.height == 2


def stopping(test: list[float], **more: Any) -> pl.DataFrame:
    """The two runs with their losses as validation losses, and those of the test split."""
    return curves(loss_test=pl.Series(test), **more).rename({"loss": "val_loss"})


TESTED = [9.1, 6.1, 4.2, 4.1, 9.1, 5.1, 3.6, 3.2]


@pytest.mark.parametrize("slug", ["l_d", "l_nd"])
def test_an_early_stopped_loss_is_the_test_loss_where_the_validation_loss_is_lowest(
    read, slug: str
) -> None:
    """Not the lowest test loss, which is 4.1, nor the validation loss that chose the step, 4.0."""
    selection = gather(read(stopping(TESTED)), LAWS[slug])
    assert kept(selection) == [("a", 4.2), ("b", 3.2)]
    assert selection.rule == "loss_test of every run at its lowest val_loss (early stopping)"
    assert selection.table.sources["loss"] == "loss_test"


def test_without_a_test_loss_of_every_evaluation_the_minimum_itself_is_taken_and_said(read) -> None:
    tested = stopping(TESTED).with_columns(
        loss_test=pl.when(run_id="b", step=100).then(None).otherwise("loss_test")
    )
    for table in (tested, tested.drop("loss_test")):
        selection = gather(read(table), LAWS["l_nd"])
        assert kept_of(selection, "loss") == [("a", 4.0), ("b", 3.0)]
        assert selection.rule == (
            "val_loss of every run at its lowest val_loss (early stopping), chosen on the losses "
            "that it is read off, and so a little too low"
        )


def test_a_loss_that_is_named_is_read_off_at_the_lowest_validation_loss_too(read) -> None:
    table = stopping(TESTED).with_columns(loss_books=pl.col("loss_test") + 1)
    selection = gather(read(table), LAWS["l_nd"], {"loss": "loss_books"})
    assert kept_of(selection, "loss") == [("a", 5.2), ("b", 4.2)]
    assert selection.rule.startswith("loss_books of every run at its lowest val_loss")
    itself = gather(read(table), LAWS["l_nd"], {"loss": "val_loss"})
    assert kept_of(itself, "loss") == [("a", 4.0), ("b", 3.0)]


def kept_of(selection: Selection, column: str) -> list[tuple[str, float]]:
    return list(selection.points.sort("run").select("run", column).iter_rows())


def test_repeated_data_end_at_the_lowest_validation_loss(read) -> None:
    selection = gather(read(stopping(TESTED)), LAWS["data_constrained"])
    assert kept(selection) == [("a", 6.1), ("a", 4.2), ("b", 5.1), ("b", 3.6), ("b", 3.2)]
    assert selection.rule == (
        "every row up to the lowest val_loss of each run (early stopping), with loss_test read off"
    )
    cosine = gather(read(stopping(TESTED, schedule=pl.lit("cosine"))), LAWS["data_constrained"])
    assert kept(cosine) == [("a", 4.2), ("b", 3.2)]


def test_other_laws_read_the_validation_loss(read) -> None:
    assert kept_of(gather(read(stopping(TESTED)), LAWS["l_n"]), "loss") == [("a", 4.5), ("b", 3.0)]


def test_runs_that_still_fall_at_their_end_are_flagged(read) -> None:
    (lamp,) = panel.stopped(gather(read(stopping(TESTED)), LAWS["l_nd"]).points)
    assert (lamp.value, lamp.ok) == (1, False)
    assert "1 of 2 runs" in lamp.text and "(b)" in lamp.text and "not reached" in lamp.text
    rises = stopping(TESTED).with_columns(
        val_loss=pl.when(run_id="b", step=1000).then(3.6).otherwise("val_loss")
    )
    (lamp,) = panel.stopped(gather(read(rises), LAWS["l_nd"]).points)
    assert lamp.ok is True
    once = stopping(TESTED).filter(pl.col("step") == 1000)
    selection = gather(read(once), LAWS["l_nd"])
    (lamp,) = panel.stopped(selection.points)
    assert lamp.ok is None and selection.rule == "the lowest loss of every run"
    assert panel.stopped(gather(read(stopping(TESTED)), LAWS["l_n"]).points) == []


def test_the_rate_of_an_early_stopped_run_is_chosen_on_its_lowest_validation_loss(read) -> None:
    """The slower rate ends lower, since it has not overfitted yet; its minimum is higher."""
    slow = curves(lr_peak=pl.lit(0.001), run_id=pl.col("run_id") + "2").with_columns(
        loss=pl.when(pl.col("run_id") == "a2", pl.col("step") == 1000).then(4.2)
        .when(pl.col("run_id") == "a2").then(pl.col("loss") + 1).otherwise(pl.col("loss") + 1)
    )  # fmt: skip
    fast = curves(lr_peak=pl.lit(0.01))
    selection = gather(read(pl.concat([fast, slow.select(fast.columns)])), LAWS["l_nd"])
    assert kept(selection) == [("a", 4.0), ("b", 3.0)]


def test_runs_that_differ_in_seeds_alone_are_replicates(read) -> None:
    """Other subsets of the same size and other orders of the data count as other seeds do."""
    again = {
        "subset": {"subset_seed": 1, "data_seed": 0, "seed": 0},
        "order": {"subset_seed": 0, "data_seed": 1, "seed": 0},
        "weights": {"subset_seed": 0, "data_seed": 0, "seed": 1},
    }
    first = stopping(TESTED, lr_peak=pl.lit(0.01), subset_seed=0, data_seed=0, seed=0)
    tables = [first] + [
        first.with_columns(run_id=pl.col("run_id") + name, **seeds)
        .with_columns(loss_test=pl.col("loss_test") * (1 + 0.001 * i))
        .select(first.columns)
        for i, (name, seeds) in enumerate(again.items(), 1)
    ]
    selection = gather(read(pl.concat(tables)), LAWS["l_nd"])
    assert selection.points.height == 8
    lamp = panel.replicates(selection.points, ("N", "D"), "loss")
    assert lamp.value == pytest.approx(np.std([0, 0.001, 0.002, 0.003], ddof=1), rel=0.01)
