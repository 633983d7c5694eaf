"""The critical batch by branches: a known knee, its interval over parents, and refusals."""

from __future__ import annotations

import json
import math
from typing import Any

import polars as pl
import pytest

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.branched_batch import describe_branched_batch, measure_branched_batch
from scaling_jax.records.store import Records

BASE, BUDGET = 256, 65_536
KS = (1, 2, 4, 8, 16)


def study(lost: dict[int, float], noise: dict[str, float] | None = None, **changes: Any) -> Records:
    """Branches at step 100 that end `lost[k]` above the one of k = 1, `noise` on every parent."""
    runs, curves = [], []
    for parent, extra in (noise or {"p": 0.0}).items():
        for k, above in lost.items():
            run_id = f"{parent}-{k}"
            row = {
                "run_id": run_id,
                "study": "s",
                "status": "done",
                "parent": parent,
                "branch_step": 100,
                "batch_tokens": k * BASE,
                "lr_peak": 1e-3 * math.sqrt(k),
                "optimizer": "adam",
            }
            runs.append(row | changes.get(run_id, {}))
            loss = 2.0 + above + (extra if k > 2 else 0.0)
            for tokens, value in ((100 * BASE, 2.5), (100 * BASE + BUDGET, loss)):
                curves.append(
                    {"run_id": run_id, "step": tokens, "tokens": tokens, "val_loss": value}
                )
    return Records(pl.DataFrame(runs), pl.DataFrame(curves), "memory")


FLAT_THEN_STEEP = {1: 0.0, 2: 0.002, 4: 0.008, 8: 0.03, 16: 0.12}


def test_the_knee_is_the_largest_batch_that_loses_less_than_the_tolerance() -> None:
    found = measure_branched_batch(study(FLAT_THEN_STEEP))
    (point,) = found.points
    assert (point.k_star, point.batch, point.step, point.budget) == (4, 4 * BASE, 100, BUDGET)
    assert point.loss == 2.5 and point.reason == "" and found.flags == []
    (wider,) = measure_branched_batch(study(FLAT_THEN_STEEP), tolerance=0.05).points
    assert wider.k_star == 8


def test_a_batch_counts_only_where_all_smaller_ones_do() -> None:
    dip = {1: 0.0, 2: 0.05, 4: 0.0, 8: 0.0}
    assert measure_branched_batch(study(dip)).points[0].k_star == 1
    # Every batch is compared with the best of the smaller ones, not with the first.
    better = {1: 0.0, 2: -0.02, 4: -0.005, 8: 0.0}
    assert measure_branched_batch(study(better)).points[0].k_star == 2


def test_the_interval_over_parents_tells_the_sure_from_the_unsure() -> None:
    calm = measure_branched_batch(study(FLAT_THEN_STEEP, {"a": -1e-4, "b": 0.0, "c": 1e-4}))
    (point,) = calm.points
    assert (point.n_parents, point.low, point.high) == (3, 4 * BASE, 8 * BASE)
    wild = measure_branched_batch(study(FLAT_THEN_STEEP, {"a": -0.02, "b": 0.0, "c": 0.02}))
    (point,) = wild.points
    assert (point.k_star, point.low, point.high) == (4, 2 * BASE, 16 * BASE)
    assert "at least 512 and less than 4,096" in describe_branched_batch(wild)


def test_parents_are_compared_each_by_itself() -> None:
    # A parent that is worse everywhere, by ten times the tolerance, changes nothing.
    records = study(FLAT_THEN_STEEP, {"a": 0.0, "b": 0.0})
    worse = pl.when(pl.col("run_id").str.starts_with("b")).then(0.1).otherwise(0.0)
    curves = records.curves.with_columns(pl.col("val_loss") + worse)
    (point,) = measure_branched_batch(Records(records.runs, curves, "memory")).points
    assert (point.k_star, point.low, point.high) == (4, 4 * BASE, 8 * BASE)


def test_a_knee_beyond_what_was_tried_is_said_to_be() -> None:
    found = measure_branched_batch(study(dict.fromkeys(KS, 0.0), {"a": -1e-4, "b": 0.0, "c": 1e-4}))
    (point,) = found.points
    assert point.k_star == 16 and point.high is None and "may be larger" in point.reason
    assert "at least 4,096 and with no upper end" in describe_branched_batch(found)


def test_a_rate_that_does_not_follow_the_batch_is_flagged() -> None:
    slow: dict[str, Any] = {"p-8": {"lr_peak": 1e-3}}
    found = measure_branched_batch(study(FLAT_THEN_STEEP, **slow))
    assert "batches of 2,048 tokens" in found.flags[0]
    assert "Flag: the learning rate" in describe_branched_batch(found)
    sgd: dict[str, Any] = {f"p-{k}": {"optimizer": "sgd", "lr_peak": 1e-3 * k} for k in KS}
    assert measure_branched_batch(study(FLAT_THEN_STEEP, **sgd)).flags == []


def test_unequal_budgets_and_too_few_sizes_have_no_knee() -> None:
    records = study(FLAT_THEN_STEEP)
    late = (pl.col("run_id") == "p-2") & (pl.col("val_loss") < 2.4)
    more = pl.col("tokens") + pl.when(late).then(BUDGET).otherwise(0)
    curves = records.curves.with_columns(more)
    (point,) = measure_branched_batch(Records(records.runs, curves, "memory")).points
    assert point.k_star is None and "65,536 to 131,072 tokens" in point.reason
    (point,) = measure_branched_batch(study({1: 0.0, 2: 0.0})).points
    assert point.k_star is None and "2 batch size(s)" in point.reason
    assert "no critical batch" in describe_branched_batch(measure_branched_batch(study({1: 0.0})))


def test_only_parents_with_every_size_count() -> None:
    running = study(FLAT_THEN_STEEP, {"a": 0.0, "b": 0.0}, **{"b-8": {"status": "running"}})
    (point,) = measure_branched_batch(running).points
    assert point.n_parents == 1 and point.k_star == 4
    (flag,) = measure_branched_batch(running).flags
    assert "at step 100 1 of 2 parents are left out" in flag
    one: dict[str, Any] = {"p-8": {"status": "running"}}
    alone = study(FLAT_THEN_STEEP, **one)
    (point,) = measure_branched_batch(alone).points
    assert [size.k for size in point.sizes] == [1, 2, 4, 16]


def test_what_cannot_be_measured_is_refused() -> None:
    records = study(FLAT_THEN_STEEP)
    none = records.runs.with_columns(parent=pl.lit(None, pl.String))
    with pytest.raises(RequestError, match="no runs that branch"):
        measure_branched_batch(Records(none, records.curves, "memory"))
    with pytest.raises(RequestError, match="no runs that branch"):
        measure_branched_batch(Records(records.runs.drop("parent"), records.curves, "memory"))
    queued = records.runs.with_columns(status=pl.lit("queued"))
    with pytest.raises(WorkError, match="None of the branches"):
        measure_branched_batch(Records(queued, records.curves, "memory"))
    with pytest.raises(RequestError, match="tolerance"):
        measure_branched_batch(records, tolerance=0.0)


def test_json_holds_every_number_and_no_nan() -> None:
    doc = measure_branched_batch(study(FLAT_THEN_STEEP)).to_json()
    assert json.loads(json.dumps(doc, allow_nan=False)) == doc
    assert doc["points"][0]["sizes"][0]["lost"] is None
    assert doc["points"][0]["batch"] == 4 * BASE
