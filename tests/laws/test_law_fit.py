"""Every law from a table to a fit: a study's own columns, foreign ones, and what stands beside."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from scaling_jax import laws
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws import Fit
from scaling_jax.records.schema import CURVE_COLUMNS, RUN_COLUMNS
from scaling_jax.records.store import Records

NOISE = 0.003
BATCH = 512
KEYS = {"law", "params", "intervals", "level", "n_points", "n_runs", "objective",
        "rms_log_residual", "held_out", "flags", "excluded"}  # fmt: skip
HELD_OUT = {"largest_N", "largest_C", "later_half"}
STUDIES: dict[str, dict[str, Any]] = {
    "l_n": {},
    "l_d": {},
    "l_c": {"where": "flops_6n > 9.9e13"},  # half-trained models alone reach less
    "l_nd": {},
    "l_nd_chinchilla": {},
    "data_constrained": {"fix": ("E", "A", "B", "alpha", "beta")},  # the second of two stages
}
TYPES = {str: pl.String, int: pl.Int64, float: pl.Float64, bool: pl.Boolean}


def noisy(case, seed: int = 0) -> np.ndarray:
    return case.output * np.exp(NOISE * np.random.default_rng(seed).normal(size=case.output.size))


def table(rows: list[dict[str, Any]], columns: dict[str, type]) -> pl.DataFrame:
    schema = {name: TYPES[kind] for name, kind in columns.items()}
    return pl.DataFrame([{name: row.get(name) for name in columns} for row in rows], schema=schema)


def study(case) -> Records:
    """One run a point, with the columns of a study: initialisation, half way, and the end.

    Half way the loss lies above the law's, so that a fit that takes the wrong row is far off.
    """
    runs, curves = [], []
    for i, loss in enumerate(noisy(case)):
        at = {name: float(column[i]) for name, column in case.inputs.items()}
        N = round(at.get("N", 1e6))
        tokens = at.get("D", at["C"] / (6 * N) if "C" in at else 1e10)
        unique = round(at.get("U", tokens))
        run = {"run_id": f"run-{i:03d}", "study": "made", "name": f"point {i}", "status": "done",
               "seed": 0, "n_layer": 2, "params_non_embedding": N, "unique_tokens": unique,
               "params_total": round(1.1 * N), "batch_tokens": BATCH, "schedule": "cosine",
               "steps": round(tokens / BATCH), "warmup_steps": 10}  # fmt: skip
        runs.append(run)
        for share, value in ((0.0, 11.0), (0.5, 2 * loss), (1.0, loss)):
            curves.append(
                {"run_id": run["run_id"], "attempt": 1, "step": round(share * tokens / BATCH),
                 "tokens": round(share * tokens), "batch_tokens": BATCH, "val_loss": value,
                 "flops_6n": 6.0 * N * share * tokens}
            )  # fmt: skip
    return Records(table(runs, RUN_COLUMNS), table(curves, CURVE_COLUMNS), "runs/made")


@pytest.fixture(scope="module")
def fits(cases) -> dict[str, Fit]:
    found = {}
    for slug, options in STUDIES.items():
        fix = {name: cases[slug].params[name] for name in options.get("fix", ())}
        found[slug] = laws.fit(study(cases[slug]), slug, **{**options, "fix": fix})
    return found


@pytest.mark.parametrize("slug", list(STUDIES))
def test_a_law_comes_out_of_the_study_that_was_made_from_it(cases, fits, slug: str) -> None:
    case, fit = cases[slug], fits[slug]
    count = case.output.size
    assert (fit.law, fit.n_points, fit.n_runs, fit.level) == (slug, count, count, 0.9)
    assert fit.rms_log_residual == pytest.approx(NOISE, rel=0.25)
    law = laws.LAWS[slug]
    for name in set(law.params) - set(fit.fixed):
        low, high = fit.intervals[name]
        assert low < fit.params[name] < high
        assert low / (high / low) < case.params[name] < high * (high / low)
    for name in law.exponents:
        assert fit.params[name] == pytest.approx(case.params[name], rel=0.05)


@pytest.mark.parametrize("slug", list(STUDIES))
def test_json_is_plain_and_has_what_was_promised(fits, slug: str) -> None:
    fit = fits[slug]
    text = json.dumps(fit.to_json(), allow_nan=False)
    doc = json.loads(text)
    assert doc.keys() >= KEYS
    assert doc["held_out"].keys() >= HELD_OUT
    assert doc["params"].keys() == doc["intervals"].keys() == set(laws.LAWS[slug].params)
    assert all(len(ends) == 2 for ends in doc["intervals"].values())
    assert doc["flags"] == [lamp["name"] for lamp in doc["lamps"] if lamp["ok"] is False]
    assert "NaN" not in text and "Infinity" not in text


@pytest.mark.parametrize("slug", list(STUDIES))
def test_points_carry_their_prediction_in_the_units_of_the_table(fits, slug: str) -> None:
    fit = fits[slug]
    inputs = {name: fit.points[name].to_numpy() for name in laws.LAWS[slug].inputs}
    np.testing.assert_allclose(fit.points["predicted"], fit.predict(**inputs), rtol=1e-9)
    log_ratio = np.log(fit.points["loss"] / fit.points["predicted"])
    np.testing.assert_allclose(fit.points["log_residual"], log_ratio, atol=1e-12)
    for name, column in inputs.items():
        assert fit.ranges[name] == pytest.approx((column.min(), column.max()), rel=1e-12)


@pytest.mark.parametrize("slug", list(STUDIES))
def test_every_row_is_in_the_fit_or_in_the_list(fits, slug: str) -> None:
    fit = fits[slug]
    assert fit.n_points + sum(row["n_points"] for row in fit.excluded) == 3 * fit.n_runs
    assert {"run_id", "name", "rule", "reason", "n_points"} == set(fit.excluded[0])


@pytest.mark.parametrize("slug", list(STUDIES))
def test_the_description_fits_a_terminal(fits, slug: str) -> None:
    text = laws.describe(fits[slug])
    assert max(map(len, text.splitlines())) < 100
    for name in (*laws.LAWS[slug].params, "Validity panel", "Left out:", "held out: largest_"):
        assert name in text


def test_both_conventions_of_N(cases, fits) -> None:
    for slug in ("l_n", "l_nd", "l_nd_chinchilla"):
        fit, other = fits[slug], fits[slug].other
        assert other is not None and other.other is None
        assert (fit.convention, other.convention) == ("params_non_embedding", "params_total")
        lamp = next(lamp for lamp in fit.lamps if lamp.name == "convention_shift")
        assert lamp.ok is True and lamp.value < 1e-3
        if slug == "l_n":  # every size is 1.1 times as large
            assert other.params["N_c"] / fit.params["N_c"] == pytest.approx(1.1, rel=1e-4)
    assert fits["l_d"].other is None and fits["l_d"].convention == ""
    total = laws.fit(study(cases["l_n"]), "l_n", {"N": "params_total"})
    assert total.params["N_c"] == pytest.approx(1.1 * fits["l_n"].params["N_c"], rel=1e-4)
    assert total.other is not None
    assert total.other.params == pytest.approx(fits["l_n"].params, rel=1e-6)


def test_held_out_errors_are_of_the_axes_that_a_law_has(fits) -> None:
    def measured(slug: str) -> set[str]:
        return {name for name, error in fits[slug].held_out.items() if error is not None}

    assert measured("l_n") == {"largest_N", "largest_C"}
    assert measured("l_d") == {"largest_D"}
    assert measured("l_c") == {"largest_C"}
    assert measured("l_nd_chinchilla") == {"largest_N", "largest_C"}
    for fit in fits.values():
        assert all(error is None or error < 0.03 for error in fit.held_out.values())


def test_a_law_that_bends_at_its_end_is_flagged(cases, read) -> None:
    case = cases["l_n"]
    bent = noisy(case) * np.where(case.inputs["N"] >= 4e8, 1.1, 1.0)
    fit = laws.fit(read(params=case.inputs["N"], loss=bent), "l_n")
    worst = fit.held_out["largest_N"]
    assert worst is not None and worst > 0.05 and "largest_N" in fit.flags


def test_the_split_of_compute_stands_beside_the_chinchilla_form(fits) -> None:
    fit = fits["l_nd_chinchilla"]
    value, low, high = fit.derived["a_opt"]
    assert low < value < high
    assert value == pytest.approx(fit.params["beta"] / (fit.params["beta"] + fit.params["alpha"]))
    assert fits["data_constrained"].derived["a_opt"] == pytest.approx((0.5, 0.5, 0.5))
    assert fits["l_nd"].derived == {}


FOREIGN = {
    "l_n": {"N": "size"},
    "l_d_offset": {"D": "seen"},
    "l_c_offset": {"C": "spent"},
    "l_nd_chinchilla": {"N": "size", "D": "seen"},
    "b_crit": {"L": "level", "B_crit": "critical"},
    "pareto": {"B": "batch", "S": "updates"},
}


@pytest.mark.parametrize("slug", list(FOREIGN))
def test_a_foreign_table_needs_its_columns_named(cases, read, slug: str) -> None:
    case, names = cases[slug], FOREIGN[slug]
    output = {"pareto": "S"}.get(slug, laws.LAWS[slug].output)
    columns = {"loss": "nats"} | names if output == "loss" else names
    measured = {names[role]: column for role, column in case.inputs.items()}
    fit = laws.fit(read({**measured, columns[output]: noisy(case)}), slug, columns)
    assert fit.params == pytest.approx(case.params, rel=0.3)
    assert {role: fit.columns[role] for role in columns} == columns
    assert fit.n_runs == fit.n_points == case.output.size and fit.other is None
    assert json.dumps(fit.to_json(), allow_nan=False)
    assert laws.LAWS[slug].formula[:20] in laws.describe(fit)
    with pytest.raises(RequestError, match=f"{output}=COLUMN|for {output} in"):
        laws.fit(read({**measured, "zzz": noisy(case)}), slug, names | {output: "zzy"})


def test_the_hyperbola_has_its_own_units(cases, read) -> None:
    case = cases["pareto"]
    fit = laws.fit(read(batch_tokens=case.inputs["B"], steps_to_loss=noisy(case)), "pareto",
                   {"S": "steps_to_loss"})  # fmt: skip
    assert fit.params["B_crit"] == pytest.approx(fit.params["E_min"] / fit.params["S_min"])
    assert set(fit.held_out.values()) == {None}
    assert "steps" in laws.describe(fit)
    assert "half the sum" in fit.objective_form


def test_held_parameters_are_said_and_have_no_width(cases, read) -> None:
    case = cases["l_nd_chinchilla"]
    records = read(params=case.inputs["N"], tokens=case.inputs["D"], loss=noisy(case))
    fit = laws.fit(records, case.slug, fix={"E": 1.8}, tie={"beta": "alpha"})
    assert fit.fixed == {"E": 1.8, "beta": "alpha"}
    assert fit.params["E"] == pytest.approx(1.8) and fit.params["beta"] == fit.params["alpha"]
    assert fit.intervals["E"] == pytest.approx((1.8, 1.8))
    assert fit.intervals["beta"] == fit.intervals["alpha"]
    assert fit.derived["a_opt"] == pytest.approx((0.5, 0.5, 0.5))
    assert "Held: E = 1.8, beta = alpha." in laws.describe(fit)
    assert json.loads(json.dumps(fit.to_json(), allow_nan=False))["fixed"] == fit.fixed


def test_an_offset_of_zero_is_printed_as_zero(cases, read) -> None:
    case = cases["l_n"]
    fit = laws.fit(read(params=case.inputs["N"], loss=noisy(case)), "l_n_offset", fix={"E": 0.0})
    assert fit.params["E"] == 0.0 and fit.intervals["E"] == (0.0, 0.0)
    assert json.loads(json.dumps(fit.to_json(), allow_nan=False))["params"]["E"] == 0.0
    plain = laws.fit(read(params=case.inputs["N"], loss=noisy(case)), "l_n")
    assert fit.params["alpha_N"] == pytest.approx(plain.params["alpha_N"], rel=1e-4)


def test_weights_count_as_repetitions_of_the_points(cases, read) -> None:
    case = cases["l_n"]
    N, loss = case.inputs["N"], noisy(case)
    often = np.where(np.arange(N.size) % 3 == 0, 3, 1)
    weighted = laws.fit(read(params=N, loss=loss, weight=often), "l_n")
    run = [f"r{i}" for i in range(N.size)]
    rows = np.repeat(np.arange(N.size), often)
    again = pl.DataFrame({"run": np.array(run)[rows], "params": N[rows], "loss": loss[rows]})
    repeated = laws.fit(read(again), "l_n", {"run": "run"})
    assert weighted.params == pytest.approx(repeated.params, rel=1e-5)
    assert weighted.objective == pytest.approx(repeated.objective, rel=1e-9)
    assert weighted.rms_log_residual == pytest.approx(repeated.rms_log_residual, rel=1e-6)
    assert laws.fit(read(params=N, loss=loss), "l_n").params != pytest.approx(
        weighted.params, rel=1e-5
    )


def test_incomplete_rows_light_a_lamp(cases, read) -> None:
    case = cases["l_n"]
    loss = noisy(case)
    loss[[3, 7]] = np.nan
    fit = laws.fit(read(params=case.inputs["N"], loss=loss), "l_n")
    assert fit.n_points == 22 and "complete_rows" in fit.flags
    rows = [row for row in fit.excluded if row["rule"] == "incomplete"]
    assert sum(row["n_points"] for row in rows) == 2
    assert "incomplete: 2 points" in laws.describe(fit)


def test_designs_that_cannot_say_are_refused(cases, read) -> None:
    N = np.geomspace(1e7, 1e10, 12)
    loss = cases["l_nd_chinchilla"].formula(N=N, D=20 * N, **cases["l_nd_chinchilla"].params)
    with pytest.raises(WorkError, match=r"D = 20 N.*more and on fewer tokens"):
        laws.fit(read(params=N, tokens=20 * N, loss=loss), "l_nd_chinchilla")
    with pytest.raises(WorkError, match="2 points cannot fix the 2 parameters of l_n"):
        laws.fit(read(params=N[:2], loss=loss[:2]), "l_n")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"law": "l_nd_chincilla"}, "Did you mean 'l_nd_chinchilla'"),
        ({"law": "l_ns", "fix": {"N_c": 1e13}}, "no parameter of it is fixed"),
        ({"law": "l_n", "critical_batch": {"B_star": 2e8, "alpha_B": 0.2}}, "l_n has no S"),
        ({"law": "l_n", "resamples": 99}, "100 or more"),
        ({"law": "l_n", "level": 1.0}, "between 0 and 1"),
        ({"law": "l_n", "fix": {"N_d": 1.0}}, "Did you mean 'N_c'"),
        ({"law": "l_n", "where": "loss > 99"}, "leaves no row"),
    ],
)
def test_a_wrong_request_is_told(cases, read, request_: dict[str, Any], message: str) -> None:
    case = cases["l_n"]
    records = read(params=case.inputs["N"], loss=case.output)
    with pytest.raises(RequestError, match=message):
        laws.fit(records, **request_)


def test_a_bootstrap_is_of_whole_runs_and_reproducible(cases) -> None:
    records = study(cases["l_n"])
    one, again, other = (laws.fit(records, "l_n", resamples=200, seed=seed) for seed in (0, 0, 1))
    assert one.intervals == again.intervals != other.intervals
    assert "200 resamples of 24 whole runs" in one.interval_method
    default = laws.fit(records, "l_n")
    assert "Student's t" in default.interval_method
    assert one.params == default.params
    wide = laws.fit(records, "l_n", level=0.99)
    for name, (low, high) in default.intervals.items():
        assert wide.intervals[name][0] < low < high < wide.intervals[name][1]


def test_where_is_applied_before_anything_else(cases) -> None:
    records = study(cases["l_n"])
    fit = laws.fit(records, "l_n", where="params_non_embedding > 1e6")
    assert fit.ranges["N"][0] > 1e6
    assert any(row["rule"] == "where" for row in fit.excluded)
    alone = laws.fit(
        replace(records, runs=records.runs.filter(pl.col("params_non_embedding") > 1e6),
                curves=records.curves.filter(pl.col("run_id").is_in(fit.points["run_id"]))),
        "l_n",
    )  # fmt: skip
    assert fit.params == alone.params
