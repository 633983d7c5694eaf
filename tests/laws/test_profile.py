"""Profiles: a parabola gives the interval of the covariance, a flat one has an open end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import optimize, stats

from scaling_jax.errors import RequestError
from scaling_jax.laws.fitting import Objective, Points, make_points, solve
from scaling_jax.laws.forms import L_NS, find_law
from scaling_jax.laws.profile import profile
from scaling_jax.laws.restrict import restrict
from scaling_jax.laws.sandwich import sandwich
from scaling_jax.laws.uncertainty import spread

DATA = Path(__file__).parents[2].parent / "shared" / "data"
TRUTH = {"N_c": 3e6, "S_c": 30.0, "alpha_N": 0.12, "alpha_S": 0.4}
RUN = np.repeat(np.arange(12), 10)
INPUTS = {
    "N": np.geomspace(3456, 172_032, 12)[RUN],
    "S": np.tile(np.geomspace(100, 12_000, 10), 12),
}


def noisy(noise: float, objective: Objective | None = None) -> Points:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=12)[RUN] + rng.normal(size=RUN.size)
    loss = L_NS.predict(TRUTH, **INPUTS) * np.exp(noise * shared)
    return make_points(L_NS, INPUTS, loss, objective)


def fitted(points: Points) -> tuple[np.ndarray, np.ndarray]:
    weights = np.ones(points.y.size)
    return solve(points, weights[None]).theta[0], weights


def test_small_noise_gives_the_interval_of_the_covariance() -> None:
    points = noisy(2e-4)
    theta, weights = fitted(points)
    found = spread(points, theta, weights, RUN, INPUTS["N"])
    for name in ("alpha_N", "alpha_S"):
        each = profile(points, theta, weights, RUN, name)
        assert not each.is_flat
        assert each.interval == pytest.approx(found.intervals[name], rel=2e-4)
    # The log of N_c is no coordinate of the fit; its degrees of freedom lie between theirs.
    scale = profile(points, theta, weights, RUN, "N_c").interval
    assert scale == pytest.approx(found.intervals["N_c"], rel=0.01)


def test_excess_is_what_holding_the_parameter_costs() -> None:
    points = noisy(5e-3, Objective("log_squares"))
    theta, weights = fitted(points)
    found = profile(points, theta, weights, RUN, "alpha_N", level=0.95)
    robust = sandwich(points, theta, weights, RUN)
    freedom = robust.freedom(np.eye(4)[0])
    assert found.threshold == pytest.approx(stats.t.ppf(0.975, freedom) ** 2, rel=1e-4)
    assert (np.diff(found.value) > 0).all() and found.excess.min() == 0.0
    assert found.excess[0] > found.threshold and found.excess[-1] > found.threshold
    values = np.log(found.value)
    at = int(np.argmax(values > theta[0] + 1e-9))

    def held(rest: np.ndarray) -> np.ndarray:
        return points.residuals(np.concatenate([values[at : at + 1], rest]))

    squares = 2 * optimize.least_squares(held, theta[1:], xtol=1e-12, ftol=1e-12).cost
    least = np.sum(points.residuals(theta) ** 2)
    rise = (squares - least) / (least / (RUN.size - 4))
    apart = robust.independent[0, 0] / robust.covariance[0, 0]
    assert found.excess[at] == pytest.approx(rise * apart, rel=1e-4)


def test_more_shared_noise_makes_the_profile_of_alpha_N_lower() -> None:
    points = noisy(3e-3)
    theta, weights = fitted(points)
    by_run = profile(points, theta, weights, RUN, "alpha_N").interval
    by_point = profile(points, theta, weights, np.arange(RUN.size), "alpha_N").interval
    assert by_run[0] and by_run[1] and by_point[0] and by_point[1]
    assert by_run[1] - by_run[0] > 1.5 * (by_point[1] - by_point[0])


def test_one_run_is_taken_by_points() -> None:
    points = noisy(3e-3)
    theta, weights = fitted(points)
    one = profile(points, theta, weights, np.zeros(RUN.size), "alpha_N")
    by_point = profile(points, theta, weights, np.arange(RUN.size), "alpha_N")
    assert one.interval == pytest.approx(by_point.interval)


def test_an_offset_that_may_be_zero_is_open_below() -> None:
    law = find_law("l_n_offset")
    size = np.geomspace(1e6, 1e9, 24)
    noise = np.exp(0.03 * np.random.default_rng(1).normal(size=24))
    points = make_points(
        law, {"N": size}, law.predict({"E": 0.3, "N_c": 1e13, "alpha_N": 0.09}, N=size) * noise
    )
    theta, weights = fitted(points)
    found = profile(points, theta, weights, np.arange(24), "E")
    assert found.is_flat and found.interval[0] is None and found.interval[1] is not None
    assert found.value[0] < 0.01 and found.excess[0] < found.threshold


def test_refuses_names_without_a_profile() -> None:
    points = noisy(3e-3)
    theta, weights = fitted(points)
    with pytest.raises(RequestError, match="no parameter 'alpha_n'"):
        profile(points, theta, weights, RUN, "alpha_n")
    law = restrict(L_NS, fix={"alpha_N": 0.12})
    held = make_points(law, INPUTS, np.exp(points.y + points.y_centre))
    theta, weights = fitted(held)
    with pytest.raises(RequestError, match="alpha_N is fixed"):
        profile(held, theta, weights, RUN, "alpha_N")
    batch = np.geomspace(4, 4096, 11)
    law = find_law("pareto")
    points = make_points(law, {"B": batch}, 500 + 64000 / batch)
    theta, weights = fitted(points)
    with pytest.raises(RequestError, match="B_crit of pareto cannot be held"):
        profile(points, theta, weights, np.arange(11), "B_crit")


@pytest.mark.skipif(not DATA.exists(), reason="the real tables are not beside the checkout")
def test_the_worth_of_repeated_tokens_is_flat_in_muennighoffs_runs() -> None:
    rows = pl.read_csv(DATA / "datablations_c4.csv").filter(pl.col("in_cell25"))
    # The part of Chinchilla's form that the notebook held, as the logs that it prints.
    log = {"A": 6.255414, "B": 7.3049974, "E": 0.6254804}
    fix = {name: float(np.exp(value)) for name, value in log.items()}
    law = restrict(find_law("data_constrained"), {**fix, "alpha": 0.3526596, "beta": 0.3526596})
    points = make_points(
        law,
        {"N": rows["params"], "D": rows["tokens"], "U": rows["unique_tokens"]},
        rows["val_loss"],
    )
    weights = np.ones(rows.height)
    solution = solve(points, weights[None])
    assert rows.height == 182 and solution.objective[0] <= 0.0158260
    run = np.arange(rows.height)
    found = profile(points, solution.theta[0], weights, run, "R_D_star")
    assert found.is_flat and found.interval[1] is None
    assert found.interval[0] is not None and 3 < found.interval[0] < 15.387756
    other = profile(points, solution.theta[0], weights, run, "R_N_star").interval
    assert other[0] and other[1] and other[0] < 5.309743 < other[1]
