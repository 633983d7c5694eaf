"""Every lamp can be green, red, and dark where it cannot be measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from scaling_jax.laws import panel
from scaling_jax.laws.selection import select
from scaling_jax.laws.slopes import curve_slopes


def test_rate_is_bracketed_only_between_two_worse_neighbours(make_records) -> None:
    records = make_records()
    assert panel.lr_bracketed(select(records)).ok is True
    unmeasured = panel.lr_bracketed(select(make_records(bracket=False)))
    assert unmeasured.ok is False and unmeasured.value == 0 and "none lower" in unmeasured.text
    better = pl.col("run_id").str.ends_with("s0-lr0.02")
    curves = records.curves.with_columns(
        val_loss=pl.when(better).then(pl.col("val_loss") * 0.9).otherwise("val_loss")
    )
    edge = panel.lr_bracketed(select(replace(records, curves=curves)))
    assert edge.ok is False and edge.value == 2
    runs = records.runs.with_columns(
        status=pl.when(better).then(pl.lit("diverged")).otherwise("status")
    )
    diverged = panel.lr_bracketed(select(replace(records, runs=runs, curves=curves)))
    assert diverged.ok is True and "0.02 diverges" in diverged.text
    dark = panel.lr_bracketed(select(replace(records, runs=records.runs.drop("lr_peak"))))
    assert dark.ok is None and "column lr_peak missing" in dark.text


def noise(scale: float | None, low: float | None) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "run_id": ["a", "a"],
            "step_start": [0, 500],
            "step": [500, 1000],
            "batch_tokens": [512, 512],
            "b_simple": [1e6, scale],
            "b_simple_low": [1e6, low],
        },
        schema_overrides={"b_simple": pl.Float64, "b_simple_low": pl.Float64},
    )


def test_batch_against_the_noise_at_the_end() -> None:
    points = pl.DataFrame({"run": ["a", "a"], "S": [600.0, 1000.0]})
    assert panel.batch_vs_noise(points, noise(1000.0, 800.0)).ok is True
    assert panel.batch_vs_noise(points, noise(5000.0, 800.0)).ok is False
    bound = panel.batch_vs_noise(points, noise(None, 5000.0))
    assert bound.ok is False and "at least" in bound.text
    assert panel.batch_vs_noise(points, noise(None, None).tail(1)).ok is None
    assert panel.batch_vs_noise(points, "no moments").text == "not measurable: no moments"


def test_epochs(make_records) -> None:
    records = make_records()
    selection = select(records)
    assert panel.epochs(selection).ok is True
    again = records.curves.with_columns(epochs=pl.col("epochs") * 3)
    assert panel.epochs(select(replace(records, curves=again))).ok is False
    derived = panel.epochs(select(replace(records, curves=records.curves.drop("epochs"))))
    assert derived.value == pytest.approx(0.6144)
    bare = replace(records, curves=records.curves.drop("epochs", "tokens"))
    assert panel.epochs(select(bare)).ok is None


def test_floor(make_records) -> None:
    records = make_records(recorded=60)
    assert panel.below_floor(select(records)).ok is True
    floor = records.curves.filter(pl.col("run_id") == "n3456-s0-lr0.01", pl.col("step") > 4000)
    late = records.runs.with_columns(bigram_nats=pl.lit(floor["val_loss"].max()))
    assert panel.below_floor(select(replace(records, runs=late))).ok is False
    none = replace(records, runs=records.runs.drop("bigram_nats"))
    assert "column bigram_nats missing" in panel.below_floor(select(none)).text


@pytest.mark.parametrize(("sizes", "last", "ok"), [(7, 1e4, True), (3, 250.0, False)])
def test_spans(sizes: int, last: float, ok: bool) -> None:
    grid = [(100.0 * 2**i, s) for i in range(sizes) for s in (100.0, last)]
    points = pl.DataFrame(grid, schema=["N", "S"], orient="row").with_columns(run=pl.col("N"))
    assert [lamp.ok for lamp in panel.spans(points)] == [ok] * 3


def test_residual_and_held_out() -> None:
    assert panel.rms_residual(0.019).ok is True
    assert panel.rms_residual(0.021).ok is False
    good = panel.HeldOut(worst=0.049, median=0.01, final=0.02, n_points=9)
    assert panel.held_out("largest_N", "N", good).ok is True
    assert panel.held_out("largest_N", "N", good._replace(worst=0.051)).ok is False
    assert panel.held_out("largest_N", "N", None).ok is None


def test_shift_and_rivals() -> None:
    here, there = {"N_c": 1.0, "alpha_N": 0.2}, {"N_c": 9.0, "alpha_N": 0.24}
    exponents = ("alpha_N",)
    assert panel.shift("x", "moved", here, [there], "", exponents).ok is True
    further = {"N_c": 1.0, "alpha_N": 0.1}
    moved = panel.shift("x", "moved", here, [there, further], "", exponents)
    assert moved.ok is False and moved.value == pytest.approx(0.5)
    assert panel.shift("x", "moved", here, [], "one convention", exponents).ok is None
    rival = {"objective": 1.1, "params": there}
    assert panel.single_minimum(1.0, []).ok is True
    assert panel.single_minimum(1.0, [rival]).ok is False
    assert panel.single_minimum(0.5, [rival]).ok is True


@pytest.mark.parametrize(("spread", "ok"), [(1.005, True), (1.05, False), (None, None)])
def test_seed_noise(spread: float | None, ok: bool | None) -> None:
    losses = [2.0] if spread is None else [2.0, 2.0 * spread]
    points = pl.DataFrame({"run": list("ab")[: len(losses)], "loss": losses}).with_columns(
        N=pl.lit(100.0), S=pl.lit(10.0)
    )
    assert panel.seed_noise(points).ok is ok


def slopes(alphas: list[float], seeds: int = 3, noise: float = 0.001):
    rng = np.random.default_rng(0)
    steps = np.geomspace(100, 1e4, 24)
    rows = [
        (f"{i}-{seed}", 10.0 ** (i + 3), step, 2 + (100 / step) ** alpha * np.exp(own))
        for i, alpha in enumerate(alphas)
        for seed in range(seeds)
        for own in [noise * rng.normal()]
        for step in steps
    ]
    run, size, step, loss = (list(column) for column in zip(*rows, strict=True))
    loss = np.array(loss) * np.exp(noise * rng.normal(size=len(loss)))
    return curve_slopes(run, size, step, loss)


def test_slopes_are_one_or_not() -> None:
    one = panel.equal_slopes(slopes([0.5, 0.5, 0.5]))
    assert one.ok is True and one.value is not None and one.threshold == 0.01
    assert "at N = 1000, 0." in one.text and "at N = 1e+05" in one.text and "p = " in one.text
    other = panel.equal_slopes(slopes([0.4, 0.45, 0.6]))
    assert other.ok is False and other.text.startswith("alpha of E + (S_c / S)^alpha is 0.39")
    assert "0.59" in other.text and "0.44" not in other.text and "by runs" in other.text
    untested = panel.equal_slopes(replace(slopes([0.5, 0.5]), p_value=None))
    assert untested.ok is None and untested.value is None and "not measurable" in untested.text
    assert panel.equal_slopes("1 size").text == "not measurable: 1 size"
