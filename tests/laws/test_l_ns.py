"""L(N, S) from records end to end: recovery, held-out errors, window, refusals, output."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from scaling_jax import laws
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forms import L_NS, critical_batch
from scaling_jax.records.store import Records


@pytest.fixture(scope="module")
def records(make_records) -> Records:
    return make_records(seeds=2)


@pytest.fixture(scope="module")
def fit(records) -> laws.Fit:
    return laws.fit(records, resamples=100)


def test_the_truth_is_recovered_inside_the_intervals(fit, truth) -> None:
    for name, value in truth.items():
        low, high = fit.intervals[name]
        assert low < fit.params[name] < high
        assert 0.9 * low < value < 1.1 * high
    assert fit.params["alpha_N"] == pytest.approx(truth["alpha_N"], rel=0.02)
    assert fit.params["alpha_S"] == pytest.approx(truth["alpha_S"], rel=0.02)
    assert fit.rms_log_residual == pytest.approx(0.003, rel=0.15)
    assert fit.n_runs == 14 and fit.n_points == fit.points.height
    assert fit.held_out["largest_N"] < 0.02 and fit.held_out["later_half"] < 0.02


def test_points_carry_their_prediction(fit) -> None:
    points = fit.points
    predicted = fit.predict(N=points["N"].to_numpy(), S=points["S"].to_numpy())
    np.testing.assert_allclose(points["predicted"], predicted, rtol=1e-9)
    np.testing.assert_allclose(
        points["log_residual"], np.log(points["loss"] / points["predicted"]), atol=1e-9
    )


def test_the_other_convention_is_fitted_to_the_same_points(fit) -> None:
    assert (fit.convention, fit.other.convention) == ("params_non_embedding", "params_total")
    assert fit.other.n_points == fit.n_points
    assert fit.other.params["alpha_N"] > 1.1 * fit.params["alpha_N"]
    assert set(fit.points["N"]) != set(fit.other.points["N"])
    assert "convention_shift" in fit.flags


def test_json_is_plain_and_whole(fit) -> None:
    doc = json.loads(json.dumps(fit.to_json(), allow_nan=False))
    wanted = {"law", "params", "intervals", "level", "n_points", "n_runs", "objective",
              "rms_log_residual", "held_out", "flags", "excluded"}  # fmt: skip
    assert wanted <= set(doc)
    assert set(doc["held_out"]) == {"largest_N", "largest_C", "later_half"}
    assert set(doc["params"]) == set(doc["intervals"]) == {"N_c", "S_c", "alpha_N", "alpha_S"}
    assert doc["flags"] == [lamp["name"] for lamp in doc["lamps"] if lamp["ok"] is False]
    assert doc["excluded"] and doc["law"] == "l_ns" and "0.01" in doc["objective_form"]


def test_without_resamples_intervals_rest_on_the_covariance_over_runs(records, fit, truth) -> None:
    default = laws.fit(records)
    assert "Student's t" in default.interval_method and "14 whole runs" in default.interval_method
    assert default.params == fit.params and default.resamples == 0
    for name, value in truth.items():
        low, high = default.intervals[name]
        assert low < default.params[name] < high
        assert 0.9 * low < value < 1.1 * high
    assert laws.fit(records, seed=0).intervals == default.intervals


def test_rows_without_a_loss_light_a_lamp(records) -> None:
    gone = (pl.col("run_id") == "n6144-s0-lr0.01") & (pl.col("step") > 6000)
    loss = pl.when(gone).then(float("nan")).otherwise("val_loss")
    fit = laws.fit(replace(records, curves=records.curves.with_columns(val_loss=loss)))
    assert "complete_rows" in fit.flags
    rows = [row for row in fit.excluded if row["rule"] == "incomplete"]
    assert [row["run_id"] for row in rows] == ["n6144-s0-lr0.01"] and rows[0]["n_points"] >= 1


def test_the_same_seed_gives_the_same_intervals(records, fit) -> None:
    again, another = (laws.fit(records, resamples=100, seed=seed) for seed in (0, 1))
    assert again.intervals == fit.intervals != another.intervals
    assert again.params == fit.params == another.params


def test_the_description_fits_a_terminal_and_says_everything(fit) -> None:
    text = laws.describe(fit)
    assert max(map(len, text.splitlines())) < 100
    for part in ("steps at fixed batch", "params_total", "[ok] ", "[RED] convention_shift", "[--] ",
                 "bracket check", "Window: from step", "largest_N"):  # fmt: skip
        assert part in text
    for lamp in fit.lamps:
        assert lamp.name in text


# Both terms fall by as much inside the narrowest window, so that a bent law is still identified.
STRONG = {"N_c": 1e5, "S_c": 1e4, "alpha_N": 0.2, "alpha_S": 0.3}


def strong(make_records, **options) -> Records:
    records = make_records(params=STRONG, seeds=2, **options)
    return replace(records, runs=records.runs.drop("bigram_nats"))


def scaled(records: Records, which: pl.Expr, factor: float) -> Records:
    loss = pl.when(which).then(pl.col("val_loss") * factor).otherwise("val_loss")
    return replace(records, curves=records.curves.with_columns(val_loss=loss))


def lifted_start(records: Records) -> Records:
    """Early steps of every other size off the law."""
    odd = pl.col("run_id").str.contains("n6144|n27648|n98304")
    factor = pl.when(odd).then(1 + 0.3 * (-pl.col("step") / 300).exp()).otherwise(1.0)
    return replace(
        records, curves=records.curves.with_columns(val_loss=pl.col("val_loss") * factor)
    )


def window(fit: laws.Fit) -> dict[str, Any]:
    assert fit.window is not None
    return fit.window


def test_the_window_starts_where_the_law_begins_to_hold(records, fit) -> None:
    assert window(fit)["criterion_met"] and window(fit)["step_start"] < 30
    late = laws.fit(lifted_start(records), resamples=100)
    assert 200 < window(late)["step_start"] < 3000
    assert late.rms_log_residual <= 0.015
    assert late.points["step"].min() >= window(late)["step_start"]
    low, high = window(late)["resampled"]
    assert high / low == pytest.approx(2.0)
    assert any(row["rule"] == "before the window" for row in late.excluded)


def test_where_no_window_is_good_enough_the_latest_is_taken(make_records) -> None:
    fit = laws.fit(strong(make_records, noise=0.03), resamples=100)
    assert not window(fit)["criterion_met"]
    assert window(fit)["step_start"] == pytest.approx(window(fit)["allowed"][1])
    assert {"rms_residual", "window"} <= set(fit.flags)
    said = " ".join(laws.describe(fit).split())
    assert "no window does: the latest start, with all sizes" in said


def worst(fit: laws.Fit, name: str) -> float:
    error = fit.held_out[name]
    assert error is not None
    return error


def test_held_out_errors_find_a_wrong_form(make_records) -> None:
    records = strong(make_records)
    right = laws.fit(records, resamples=100)
    assert max(worst(right, "largest_N"), worst(right, "later_half")) < 0.02
    largest = pl.col("run_id").str.contains("n172032")
    fit = laws.fit(scaled(records, largest, 1.08), resamples=100)
    assert worst(fit, "largest_N") > 0.05 and "largest_N" in fit.flags
    fit = laws.fit(scaled(records, pl.col("step") > 6000, 1.06), resamples=100)
    assert worst(fit, "later_half") > 0.05 and "later_half" in fit.flags


def test_the_noise_lamp_reads_the_recorded_moments(make_records) -> None:
    records = make_records()
    small, big = 1 + 1000 / 128, 1 + 1000 / 512  # |G|^2 = 1, tr Sigma = 1000 a token
    moments = records.curves.with_columns(
        grad_sq_small=pl.lit(small),
        grad_sq_big=pl.lit(big),
        grad_sq_small_sq=pl.lit(1.01 * small**2),
        grad_sq_big_sq=pl.lit(1.01 * big**2),
        grad_sq_small_big=pl.lit(1.01 * small * big),
        noise_steps=pl.col("step") - pl.col("step_start"),
        batch_small=pl.lit(128),
        batch_big=pl.lit(512),
    )
    fit = laws.fit(replace(records, curves=moments), resamples=100)
    lamp = next(lamp for lamp in fit.lamps if lamp.name == "batch_vs_noise")
    assert lamp.ok is True and lamp.value == pytest.approx(1000 / 512, rel=1e-6)


def at_batch(records: Records, truth: dict[str, float], constants: dict[str, float]) -> Records:
    """Curves over S_min stretched to the steps that a batch of 512 tokens takes."""
    wide = records.curves.join(records.runs.select("run_id", N="params_non_embedding"), on="run_id")
    loss = L_NS.predict(truth, N=wide["N"].to_numpy(), S=wide["step"].to_numpy())
    steps = wide["step"] * (1 + critical_batch(loss, **constants) / 512)
    return replace(records, curves=wide.with_columns(step=pl.Series(steps), val_loss=loss))


def test_with_a_critical_batch_steps_become_minimum_steps(make_records, truth) -> None:
    constants = {"B_star": 2e5, "alpha_B": 0.25}
    records = at_batch(make_records(bracket=False), truth, constants)
    fit = laws.fit(records, critical_batch=constants, resamples=100)
    assert fit.steps_name == "S_min"
    for name, value in truth.items():
        assert fit.params[name] == pytest.approx(value, rel=1e-4)
    raw = laws.fit(records, resamples=100)
    assert raw.steps_name == "steps at fixed batch"
    assert abs(raw.params["alpha_S"] / truth["alpha_S"] - 1) > 0.05


def test_a_foreign_table_goes_through_with_dark_lamps(make_records, truth) -> None:
    records = make_records(bracket=False)
    theirs = records.curves.join(
        records.runs.select("run_id", size="params_non_embedding"), on="run_id"
    ).select("run_id", "size", updates="step", nats="val_loss")
    runs = theirs.select("run_id").unique(maintain_order=True)
    columns = {"N": "size", "S": "updates", "loss": "nats"}
    fit = laws.fit(Records(runs, theirs, "theirs.csv"), columns=columns, resamples=100)
    assert fit.params["alpha_N"] == pytest.approx(truth["alpha_N"], rel=0.05)
    dark = {lamp.name for lamp in fit.lamps if lamp.ok is None}
    assert {"lr_bracketed", "batch_vs_noise", "epochs", "below_floor", "convention_shift"} <= dark
    assert fit.other is None and fit.convention == "size"
    with pytest.raises(RequestError, match=r"S_min needs the batch.*column batch_tokens missing"):
        laws.fit(
            Records(runs, theirs, "theirs.csv"),
            columns=columns,
            critical_batch={"B_star": 2e8, "alpha_B": 0.21},
        )


def test_an_exponent_that_the_runs_do_not_fix_is_refused(make_records) -> None:
    flat = {"N_c": 3e6, "S_c": 30.0, "alpha_N": 1e-4, "alpha_S": 0.4}
    with pytest.raises(WorkError, match="identif"):
        laws.fit(make_records(params=flat, run_noise=0.01, bracket=False), resamples=100)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"law": "l_nss"}, "Did you mean 'l_ns'"),
        ({"level": 90}, "between 0 and 1"),
        ({"resamples": 5}, "100 or more"),
        ({"critical_batch": {"B_sta": 1.0, "alpha_B": 0.2}}, "B_star"),
        ({"critical_batch": {"B_star": 2e8}}, "needs B_star"),
        ({"critical_batch": {"B_star": -1.0, "alpha_B": 0.2}}, "positive"),
        ({"columns": {"N": "params_totl"}}, "Did you mean 'params_total'"),
    ],
)
def test_a_wrong_request_is_told(records, request_, message) -> None:
    with pytest.raises(RequestError, match=message):
        laws.fit(records, **request_)


def test_slopes_of_the_curves_stand_beside_the_fit(make_records) -> None:
    fit = laws.fit(make_records(seeds=2, recorded=60, noise=0.001))
    lamp = next(lamp for lamp in fit.lamps if lamp.name == "equal_slopes")
    assert fit.slopes is not None and lamp.value == fit.slopes["p_value"]
    sizes = fit.slopes["sizes"]
    assert [row["N"] for row in sizes] == sorted(fit.points["N"].unique())
    # Of the window's points alone.
    assert sum(row["n_points"] for row in sizes) == fit.n_points
    assert fit.to_json()["slopes"] == fit.slopes and fit.forms is None
    short = laws.fit(make_records(recorded=7))
    dark = next(lamp for lamp in short.lamps if lamp.name == "equal_slopes")
    assert short.slopes is None and dark.ok is None and "2 needed" in dark.text
