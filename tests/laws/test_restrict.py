"""Parameters held at a value or at each other: the law that is left, and what cannot be held."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

from scaling_jax.errors import RequestError
from scaling_jax.laws.fitting import Objective, fit_points, make_points, solve
from scaling_jax.laws.forms import LAWS
from scaling_jax.laws.restrict import restrict
from scaling_jax.laws.sandwich import sandwich
from scaling_jax.laws.uncertainty import spread

CHINCHILLA = LAWS["l_nd_chinchilla"]


def test_nothing_held_is_the_law_itself() -> None:
    assert restrict(CHINCHILLA) is CHINCHILLA
    assert restrict(CHINCHILLA, {}, {}) is CHINCHILLA


def test_equal_restrictions_are_one_object_that_is_compiled_once() -> None:
    one = restrict(CHINCHILLA, {"E": 1.8, "A": 400}, None)
    assert restrict(CHINCHILLA, {"A": 400, "E": 1.8}, {}) is one
    assert restrict(CHINCHILLA, {"A": 401, "E": 1.8}) is not one


def test_fixed_and_tied_parameters_come_back_as_they_were_held(cases) -> None:
    case = cases["l_nd_chinchilla"]
    tied = {**case.params, "beta": case.params["alpha"]}
    loss = case.formula(**tied, **case.inputs)
    law = restrict(CHINCHILLA, {"E": tied["E"]}, {"beta": "alpha"})
    assert law.lower.size == law.upper.size == 3
    found = fit_points(law, case.inputs, loss).params
    assert found["beta"] == found["alpha"]
    assert found["E"] == pytest.approx(tied["E"], rel=1e-12)
    assert found == pytest.approx(tied, rel=1e-5)


def test_without_an_offset_the_law_is_the_one_without_it(cases) -> None:
    case = cases["l_n"]
    noisy = case.output * np.exp(0.01 * np.random.default_rng(0).normal(size=case.output.size))
    held = fit_points(restrict(LAWS["l_n_offset"], {"E": 0.0}), case.inputs, noisy)
    plain = fit_points(LAWS["l_n"], case.inputs, noisy)
    assert held.params["E"] == 0.0
    assert held.params["alpha_N"] == pytest.approx(plain.params["alpha_N"], rel=1e-5)
    assert held.objective == pytest.approx(plain.objective, rel=1e-9)


def test_a_held_fit_is_the_one_that_scipy_finds(cases) -> None:
    case = cases["l_nd_chinchilla"]
    loss = case.output * np.exp(0.01 * np.random.default_rng(1).normal(size=240))
    law = restrict(CHINCHILLA, {"E": 1.7}, {"beta": "alpha"})
    found = fit_points(law, case.inputs, loss, Objective("log_squares"))
    N, D = case.inputs["N"], case.inputs["D"]

    def residual(p: np.ndarray) -> np.ndarray:
        A, B, alpha = np.exp(p)
        return np.log((1.7 + A / N**alpha + B / D**alpha) / loss)

    theirs = optimize.least_squares(
        residual, np.log([480, 2000, 0.35]), x_scale="jac", ftol=1e-15, xtol=1e-15, gtol=1e-15
    )
    assert found.objective == pytest.approx(theirs.cost, rel=1e-9)
    ours = [np.log(found.params[name]) for name in ("A", "B", "alpha")]
    np.testing.assert_allclose(ours, theirs.x, atol=1e-4)


@pytest.mark.parametrize("name", ["N_c", "S_c", "alpha_N", "alpha_S"])
def test_any_single_parameter_can_be_held(cases, name: str) -> None:
    law = restrict(LAWS["l_ns"], {name: cases["l_ns"].params[name]})
    log_params = np.log([cases["l_ns"].params[n] for n in law.params])
    theta = law.from_log_params(log_params, np.zeros(2), 0.0)
    assert theta.shape == (3,)
    np.testing.assert_allclose(law.to_log_params(theta, np.zeros(2), 0.0), log_params)
    many = np.stack([theta, theta + 0.1])
    assert law.to_log_params(many, np.zeros(2), 0.0).shape == (2, 4)
    assert law.starts.shape[1] == 3 and len(law.starts) >= 4
    assert np.all((law.lower <= law.starts) & (law.starts <= law.upper))


def test_the_chinchilla_part_of_a_longer_law_can_be_held(cases) -> None:
    params = cases["data_constrained"].params
    part = {name: params[name] for name in ("E", "A", "B", "alpha", "beta")}
    case = cases["data_constrained"]
    law = restrict(LAWS["data_constrained"], part)
    assert fit_points(law, case.inputs, case.output).params == pytest.approx(params, rel=1e-5)


@pytest.mark.parametrize(
    ("slug", "fix", "tie", "message"),
    [
        ("l_nd_chinchilla", {"alpa": 0.3}, {}, "no parameter 'alpa'. Did you mean 'alpha'"),
        ("l_nd_chinchilla", {}, {"bet": "alpha"}, "no parameter 'bet'. Did you mean 'beta'"),
        ("l_nd_chinchilla", {}, {"beta": "alph"}, "no parameter 'alph'. Did you mean 'alpha'"),
        ("l_nd_chinchilla", {"alpha": 0.0}, {}, "alpha cannot be fixed at 0.0: it is positive"),
        ("l_nd_chinchilla", {"E": -1.0}, {}, "E cannot be fixed at -1.0"),
        ("l_nd_chinchilla", {"A": np.inf}, {}, "A cannot be fixed at inf"),
        ("l_nd_chinchilla", {"A": np.nan}, {}, "A cannot be fixed at nan"),
        ("l_nd_chinchilla", {}, {"beta": "beta"}, "beta is tied to beta"),
        ("l_nd_chinchilla", {"alpha": 0.3}, {"beta": "alpha"}, "which is fixed or tied itself"),
        ("l_nd_chinchilla", {"beta": 0.3}, {"beta": "alpha"}, "which is fixed or tied itself"),
        ("l_nd_chinchilla", {}, {"beta": "alpha", "alpha": "E"}, "fixed or tied itself"),
        ("l_n", {"N_c": 1e13, "alpha_N": 0.07}, {}, "No parameter of l_n is left to fit"),
        ("l_nd_chinchilla", {}, {"beta": "A"}, "beta is an exponent and A is a scale"),
        ("l_nd_chinchilla", {}, {"A": "E"}, "A is a scale and E is an offset"),
        ("pareto", {"S_min": 1e3}, {}, "not free of each other"),
    ],
)
def test_what_cannot_be_held_is_told(slug: str, fix, tie, message: str) -> None:
    with pytest.raises(RequestError, match=message.replace(".", r"\.")):
        restrict(LAWS[slug], fix, tie)


@pytest.mark.parametrize(
    ("slug", "fix", "tie"),
    [
        ("l_nd_chinchilla", {}, {"beta": "alpha"}),
        ("l_nd_chinchilla", {"E": 1.8172}, {}),
        ("l_nd_chinchilla", {"A": 482.01}, {}),
        ("l_nd_chinchilla", {"E": 0.0}, {"beta": "alpha"}),
        ("data_constrained", {}, {"beta": "alpha"}),
    ],
)
def test_draws_of_a_held_law_stay_where_the_points_are(cases, slug: str, fix, tie) -> None:
    """A scale and its exponent move together: the loss that their draws give is known well."""
    case, rows = cases[slug], slice(None, None, 5)
    params = {**case.params, **fix, **{name: case.params[other] for name, other in tie.items()}}
    inputs = {name: column[rows] for name, column in case.inputs.items()}
    loss = case.formula(**params, **inputs)
    loss = loss * np.exp(0.03 * np.random.default_rng(2).normal(size=loss.size))
    law = restrict(LAWS[slug], fix, tie)
    points = make_points(law, inputs, loss, Objective("log_squares"))
    weights, run = np.ones(loss.size), np.arange(loss.size)
    theta = solve(points, weights[None]).theta[0]
    draws = np.exp(spread(points, theta, weights, run, run).draws)
    at = {name: np.exp(np.log(column).mean()) for name, column in inputs.items()}
    of_draws = case.formula(**dict(zip(law.params, draws.T, strict=True)), **at)
    width = np.diff(np.log(np.quantile(of_draws, [0.05, 0.95])))[0]
    covariance = sandwich(points, theta, weights, run).covariance

    def log_loss(inner: np.ndarray) -> float:
        named = dict(zip(law.params, np.exp(points.log_params(inner)), strict=True))
        return float(np.log(case.formula(**named, **at)))

    slopes = np.array(optimize.approx_fprime(theta, log_loss, 1e-6))
    linear = 2 * 1.645 * np.sqrt(slopes @ covariance @ slopes)
    assert width == pytest.approx(linear, rel=0.35)
