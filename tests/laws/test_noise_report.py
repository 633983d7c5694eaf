"""All that the records say of the noise scale: one object, plain data and a text."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import polars as pl
import pytest

from scaling_jax.laws.describe_noise import describe_noise
from scaling_jax.laws.noise_report import NoiseReport, measure_noise
from scaling_jax.laws.noise_scale import noise_interval
from scaling_jax.records.schema import AT_CHECKPOINT
from tests.laws.noise_curves import N_CTX, curve, records, side_rows, squared_norms

SIZES = {"a": 1540, "b": 24_576, "c": 24_576}


@pytest.fixture(scope="module")
def source():
    """Three runs, one whose gradient is lost in noise, with parts, a source and a checkpoint."""
    rng = np.random.default_rng(1)
    edges = range(1000, 3001, 100)
    curves, side = [], []
    for run_id, grad_sq in (("a", 2.0), ("b", 1.0), ("c", 0.001)):
        total = curve(*squared_norms(rng, grad_sq, 1000.0, 2000), edges, run_id)
        norms = curve(*squared_norms(rng, grad_sq / 20, 70.0, 2000), edges, run_id)
        single = curve(*squared_norms(rng, grad_sq, 1000.0, 2000, groups=8), edges, run_id, 8)
        curves.append(total)
        side.append(side_rows(norms, "groups", "euclidean", "norms"))
        side.append(side_rows(single, "sequences", "euclidean", "total"))
    probe = side_rows(curves[0][-1:], AT_CHECKPOINT, "hessian", "total")
    return records(curves, SIZES, pl.concat([*side, probe]))


@pytest.fixture(scope="module")
def report(source):
    return measure_noise(source)


def test_plain_data_has_every_run_and_point(report: NoiseReport):
    doc = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert [run["run_id"] for run in doc["runs"]] == ["a", "b", "c"]
    assert [run["params_non_embedding"] for run in doc["runs"]] == list(SIZES.values())
    assert sum(len(run["points"]) for run in doc["runs"]) == len(report.main)
    assert (doc["level"], doc["precision"], doc["loss_move"]) == (0.9, 1.25, 1.1)
    for run in doc["runs"]:
        for point in run["points"]:
            low, high = point["interval"]
            assert point["tokens"] > 0 and 1 < point["loss"] < 3
            assert (high is None) is (point["noise_scale_tokens"] is None)
            assert point["determined"] is (high is not None)
            if point["determined"]:
                assert low < point["noise_scale_tokens"] < high
                sequences = point["noise_scale_tokens"] / N_CTX
                assert point["noise_scale_sequences"] == pytest.approx(sequences)
        parts = {(part["source"], part["part"]): part["points"] for part in run["parts"]}
        assert set(parts) == {("groups", "norms"), ("sequences", "total")}
        assert all(len(points) == len(run["points"]) for points in parts.values())
    assert not any(point["determined"] for point in doc["runs"][2]["points"])
    assert [row["metric"] for row in doc["checkpoints"]] == ["hessian"]
    ratio = next(row for row in doc["ratios"] if (row["run_id"], row["part"]) == ("a", "norms"))
    assert ratio["low"] < 1.4 < ratio["high"] and ratio["agrees"] is False


def test_people_read_tables_under_a_hundred_columns(report: NoiseReport):
    text = describe_noise(report)
    assert max(map(len, text.splitlines())) < 100
    for said in (
        "N = 1.54k", "N = 24.6k", "run-b", "> ", "undetermined", "90% intervals", "precise",
        "a factor 1.25 either way", "move by a factor 1.1", "all runs", "agrees", "rank corr.",
        "LayerNorms alone", "At checkpoints:",
    ):  # fmt: skip
        assert said in " ".join(text.split()), said
    assert text.count("groups  euclidean  norms") == 4  # all runs, and each
    open_above = report.main.filter("undetermined").row(0, named=True)
    assert noise_interval(open_above).startswith("> ")
    assert noise_interval({"b_simple_low": None, "b_simple_high": None}) == "unknown"


def test_of_many_runs_people_read_what_holds_over_all(report: NoiseReport):
    more = [
        each._replace(run_id=name) for each in report.ratios if each.run_id == "a" for name in "de"
    ]
    text = describe_noise(dataclasses.replace(report, ratios=[*report.ratios, *more]))
    assert text.count("groups  euclidean  norms") == 1
    assert len(report.to_json()["ratios"]) == 8


def test_a_law_and_its_refusal_are_said(report: NoiseReport):
    assert report.law.law is None
    assert f"No law B_simple = B_star / L^(1 / alpha_B): {report.law.reason}" in " ".join(
        describe_noise(report).split()
    )
    assert report.to_json()["law"] is None and report.to_json()["reason"] == report.law.reason


def sweep():
    """Five batch sizes; a step at B takes 1 / (1 + b / B) of the way that an endless one takes.

    With b = 2e6 / L^5 and B_simple = 2 b, where b is.
    """
    rng = np.random.default_rng(2)
    loss_of = np.geomspace(6.0, 2.5, 400)
    curves = []
    for i, batch in enumerate((128, 512, 2048, 8192, 32_768)):
        critical = 2e6 / loss_of**5
        steps = np.cumsum(4 * (1 + critical / batch)) + 10
        last = int(steps[-1])
        loss = np.interp(np.arange(1, last + 1), steps, loss_of)
        grad_sq = 1000.0 / (2 * 2e6 / loss**5)
        small, big = squared_norms(rng, grad_sq, 1000.0, last, dim=1000, batch=batch)
        edges = np.unique(np.round(np.geomspace(1, last, 90)).astype(int))
        edges = np.concatenate([[0], edges])
        rows = curve(small, big, edges, str(i), batch=batch, loss=lambda s, loss=loss: loss[s - 1])
        curves.append(rows.with_columns(val_loss=pl.col("train_loss")))
    return records(curves, batch_tokens=[128, 512, 2048, 8192, 32_768])


def test_a_sweep_is_compared_with_its_own_critical_batch():
    found = measure_noise(sweep())
    assert found.ladder is not None and found.critical_reason == ""
    assert len(found.critical) >= 3
    way = np.geomspace(6.0, 2.5, 400)
    *rungs, last = found.critical
    for rung in rungs:
        # E_min / S_min is the mean of b over the way to the loss, where b itself is higher.
        mean = np.mean(2e6 / way[way >= rung.loss] ** 5)
        assert rung.b_crit.value == pytest.approx(mean, rel=0.05)
        assert rung.b_simple.value == pytest.approx(4e6 / rung.loss**5, rel=0.15)
        assert rung.ratio.value == pytest.approx(4e6 / rung.loss**5 / mean, rel=0.15)
        assert rung.mean_ratio.value == pytest.approx(2.0, rel=0.25)
    assert last.ratio.value is None and "1 run at 1 batch size with" in last.reason
    text = describe_noise(found)
    assert (
        "over B_crit" in text
        and "No ratio at 2.501 nats: 1 run" in text
        and max(map(len, text.splitlines())) < 100
    )
    assert found.law.law is not None
    assert found.law.law.alpha_B.value == pytest.approx(0.2, rel=0.15)
    assert "alpha_B" in text and "jackknife over 5 runs" in " ".join(text.split())
    doc = found.to_json()
    assert doc["law"]["alpha_B"]["value"] and doc["critical"][0]["ratio"]["value"]


def test_a_sweep_without_a_ladder_says_why():
    few = sweep()
    flat = few.curves.with_columns(val_loss=pl.lit(3.0))
    found = measure_noise(records(flat, batch_tokens=[128, 512, 2048, 8192, 32_768]))
    assert found.critical == [] and found.critical_reason
    assert "No critical batch to compare with" in describe_noise(found)
