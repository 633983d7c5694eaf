"""Measurements of others, fitted as their papers did: the numbers that they printed come out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from scaling_jax import laws
from scaling_jax.laws import LAWS, Fit, Objective, published
from scaling_jax.laws.fitting import make_points
from scaling_jax.records import load
from scaling_jax.records.store import Records

DATA = Path(__file__).parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the tables are not beside the checkout")


@pytest.fixture(scope="module")
def gemstones() -> Records:
    return load(DATA / "gemstones.csv")


@pytest.fixture(scope="module")
def gadre() -> Records:
    return load(DATA / "gadre_overtraining.csv")


@pytest.fixture(scope="module")
def datablations() -> Records:
    return load(DATA / "datablations_c4.csv")


def log_terms(fit: Fit) -> list[float]:
    return [float(np.log(fit.params[name])) for name in ("A", "B", "E")]


def gemstones_fit(records: Records, more: str = "") -> Fit:
    return laws.fit(
        records,
        "l_nd_chinchilla",
        {"N": "params_incl_head_single_embed", "D": "tokens", "loss": "loss"},
        where="subset = 'hot_100b+_477' AND step % 2385 = 0" + more,
    )


def test_gemstones_up_to_100b_tokens(gemstones) -> None:
    fit = gemstones_fit(gemstones, " AND tokens <= 1.005e11")
    assert (fit.n_points, fit.n_runs) == (220, 22)
    # McLeish et al. 2025 (arXiv 2502.06857), `hot` at delta = 1e-3.
    assert fit.params["alpha"] == pytest.approx(0.29287, abs=1e-3)
    assert fit.params["beta"] == pytest.approx(0.71287, abs=1e-3)
    assert fit.objective == pytest.approx(0.0019816, abs=5e-8)
    np.testing.assert_allclose(log_terms(fit), [5.3617, 15.4185, 0.7623], atol=1e-3)
    for name, value in {"alpha": 0.29287, "beta": 0.71287}.items():
        assert fit.intervals[name][0] < value < fit.intervals[name][1]


def test_gemstones_at_any_length(gemstones) -> None:
    fit = gemstones_fit(gemstones)
    assert fit.params["alpha"] == pytest.approx(0.25911, abs=1e-3)
    assert fit.params["beta"] == pytest.approx(0.59727, abs=1e-3)
    np.testing.assert_allclose(log_terms(fit), [4.9008, 12.851, 0.66816], atol=1e-3)
    # Curves of 22 runs are 22 draws, however many points they have.
    assert fit.n_runs == 22 and fit.n_points == 770


def five_points(corpus: str) -> str:
    return (
        f"train_dataset = '{corpus}' AND (params_total < 5e8 AND chinchilla_multiplier = 1 "
        "OR params_total < 2e7 AND chinchilla_multiplier = 16)"
    )


@pytest.mark.parametrize(
    ("corpus", "printed"),
    [
        ("c4_original", "1.51 141 190 0.121"),
        ("rpj", "1.84 212 367 0.136"),
        ("rw_original", "1.73 157 246 0.127"),
    ],
)
def test_five_runs_of_gadre(gadre, corpus: str, printed: str) -> None:
    fit = laws.fit(
        gadre,
        "l_nd_chinchilla",
        {"N": "params_total", "loss": "loss_c4_val"},
        where=five_points(corpus),
        objective=Objective("squares"),
        tie={"beta": "alpha"},
    )
    # Gadre et al. 2024 (arXiv 2403.08540): E + (a M^eta + b M^-eta) C^-eta, M = D/N, C = 6 N D.
    eta = fit.params["alpha"] / 2
    a, b = fit.params["A"] * 6**eta, fit.params["B"] * 6**eta
    assert f"{fit.params['E']:.2f} {a:.0f} {b:.0f} {eta:.3f}" == printed
    assert fit.n_points == fit.n_runs == 5 and "interval_coverage" in fit.flags


def test_gadre_predicts_a_larger_run(gadre) -> None:
    fit = laws.fit(
        gadre,
        "l_nd_chinchilla",
        {"N": "params_total", "loss": "loss_c4_val"},
        where=five_points("rpj"),
        objective=Objective("squares"),
        tie={"beta": "alpha"},
    )
    larger = gadre.runs.filter(
        (pl.col("train_dataset") == "rpj") & (pl.col("params_total") > 6e9)
    ).join(gadre.curves.select("run_id", "tokens"), on="run_id")
    assert larger.height == 1
    found = fit.predict(N=larger["params_total"].to_numpy(), D=larger["tokens"].to_numpy())
    error = found / larger["loss_c4_val"].to_numpy() - 1
    assert abs(error[0]) == pytest.approx(0.0073, abs=5e-5)


MUENNIGHOFF = published("muennighoff2023").params
CHINCHILLA_PART = {name: MUENNIGHOFF[name] for name in ("E", "A", "B", "alpha", "beta")}


def test_repeated_data_are_flat_in_R_D_star(datablations) -> None:
    fit = laws.fit(
        datablations,
        "data_constrained",
        {"loss": "val_loss"},
        where="in_cell25",
        fix=CHINCHILLA_PART,
    )
    assert fit.columns["U"] == "unique_tokens" and fit.n_points == 182
    assert fit.objective <= 0.0158260
    # The published optimum is a local one, and the surface between the two is flat.
    assert fit.objective < 0.01581 and fit.params["R_D_star"] > 50
    assert {"profiles", "single_minimum"} <= set(fit.flags)
    lamp = next(lamp for lamp in fit.lamps if lamp.name == "profiles")
    assert "R_D_star is open upwards" in lamp.text
    low, high = fit.intervals["R_D_star"]
    assert low < MUENNIGHOFF["R_D_star"] < high


def test_the_published_point_has_the_published_objective(datablations) -> None:
    runs = datablations.runs.select("run_id", N="params", U="unique_tokens")
    wide = datablations.curves.filter("in_cell25").join(runs, on="run_id")
    law = LAWS["data_constrained"]
    inputs = {"N": wide["N"], "D": wide["tokens"], "U": wide["U"]}
    points = make_points(law, inputs, wide["val_loss"])
    log_params = np.log([MUENNIGHOFF[name] for name in law.params])
    theta = law.from_log_params(log_params, points.x_centre, points.y_centre)
    size, delta = np.abs(points.residuals(theta)), 1e-3
    huber = np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))
    assert law.delta == delta and size.size == 182
    assert huber.sum() == pytest.approx(0.015825935, abs=1e-8)
