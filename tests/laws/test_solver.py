"""The solver itself: many problems at once, padding, bounds, and problems that have no answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scaling_jax.laws.fitting import Points, make_points
from scaling_jax.laws.forms import L_NS, LAWS
from scaling_jax.laws.restrict import restrict
from scaling_jax.laws.solver import Found, solve_starts

DELTA = 0.01


@pytest.fixture(scope="module")
def points(cases) -> Points:
    case = cases["l_ns"]
    noise = 0.01 * np.random.default_rng(0).normal(size=case.output.size)
    return make_points(L_NS, case.inputs, case.output * np.exp(noise))


def centre(points: Points) -> tuple[np.ndarray, float]:
    return points.x_centre, points.y_centre


def solved(points: Points, weights: np.ndarray, starts: np.ndarray | None = None) -> Found:
    starts = L_NS.starts if starts is None else starts
    return solve_starts(L_NS, False, DELTA, points.x, points.y, centre(points), weights, starts)


def objective(points: Points, theta: np.ndarray, weights: np.ndarray) -> float:
    size = np.abs(points.residuals(theta))
    return float(weights @ np.where(size <= DELTA, size**2 / 2, DELTA * (size - DELTA / 2)))


def test_every_start_is_answered_in_its_place(points) -> None:
    weights = np.random.default_rng(1).integers(0, 3, size=(30, points.y.size)).astype(float)
    found = solved(points, weights)  # more pairs than there are lanes
    assert found.theta.shape == (30, len(L_NS.starts), 4)
    assert found.objective.shape == found.converged.shape == (30, len(L_NS.starts))
    assert found.converged.all()
    for row in (0, 13, 29):
        for start in (0, len(L_NS.starts) - 1):
            value = objective(points, found.theta[row, start], weights[row])
            assert found.objective[row, start] == pytest.approx(value, rel=1e-9)
    alone = solved(points, weights[13:14])
    np.testing.assert_allclose(alone.theta[0], found.theta[13], atol=1e-7)


def test_each_problem_may_have_its_own_starts(points) -> None:
    weights = np.ones((3, points.y.size))
    weights[1, ::2] = 0
    own = np.stack([L_NS.starts[[k]] for k in (0, 3, 7)])
    found = solved(points, weights, own)
    assert found.theta.shape == (3, 1, 4)
    shared = solved(points, weights)
    for row in range(3):
        nearest = np.abs(shared.objective[row] - found.objective[row, 0]).min()
        assert nearest <= 1e-9 * found.objective[row, 0]


def test_a_solution_is_a_minimum(points) -> None:
    weights = np.ones(points.y.size)
    found = solved(points, weights[None])
    best = found.theta[0, found.objective[0].argmin()]
    lowest = objective(points, best, weights)
    rng = np.random.default_rng(2)
    for size in (1e-4, 1e-3, 1e-2, 0.1):
        for direction in rng.normal(size=(20, 4)):
            assert objective(points, best + size * direction, weights) > lowest


def test_started_at_the_solution_it_stays(points) -> None:
    weights = np.ones((1, points.y.size))
    found = solved(points, weights)
    best = found.theta[0, found.objective[0].argmin()]
    again = solved(points, weights, best[None])
    np.testing.assert_allclose(again.theta[0, 0], best, atol=1e-7)


@pytest.mark.parametrize("count", [5, 100, 256, 257])
def test_padding_changes_nothing(points, count: int) -> None:
    rows = np.arange(count) % points.y.size
    few = solve_starts(
        L_NS,
        False,
        DELTA,
        points.x[:, rows],
        points.y[rows],
        centre(points),
        np.ones((1, count)),
        L_NS.starts,
    )
    weights = np.bincount(rows, minlength=points.y.size).astype(float)
    whole = solved(points, weights[None])
    assert few.objective[0].min() == pytest.approx(whole.objective[0].min(), rel=1e-9)


def test_a_start_outside_comes_back_inside_the_bounds(points) -> None:
    flat = np.zeros_like(points.y)  # nothing depends on anything: exponents run to their bounds
    found = solve_starts(
        L_NS, False, DELTA, points.x, flat, centre(points), np.ones((1, flat.size)), L_NS.starts
    )
    assert np.all(found.theta >= L_NS.lower) and np.all(found.theta <= L_NS.upper)
    best = found.theta[0, found.objective[0].argmin()]
    assert np.any(np.isclose(best, L_NS.lower) | np.isclose(best, L_NS.upper))


def test_a_problem_without_weights_ends(points) -> None:
    weights = np.ones((2, points.y.size))
    weights[0] = 0
    found = solved(points, weights)
    assert np.all(found.objective[0] == 0) and np.isfinite(found.theta).all()
    assert found.objective[1].min() > 0


def test_an_infinite_width_is_least_squares(points) -> None:
    weights = np.ones((1, points.y.size))
    wide, infinite = (
        solve_starts(L_NS, False, delta, points.x, points.y, centre(points), weights, L_NS.starts)
        for delta in (1e3, np.inf)
    )
    assert wide.objective.min() == pytest.approx(infinite.objective.min(), rel=1e-9)
    best = infinite.theta[0, infinite.objective[0].argmin()]
    squares = 0.5 * np.sum(points.residuals(best) ** 2)
    assert infinite.objective.min() == pytest.approx(squares, rel=1e-9)


@pytest.mark.parametrize("delta", [1e-3, 1e-2])
def test_starts_far_outside_the_huber_width_come_home(cases, delta: float) -> None:
    case = cases["l_n"]
    law = restrict(LAWS["l_n"], {"alpha_N": case.params["alpha_N"]})
    law = replace(law, lower=np.array([-700.0]), upper=np.array([700.0]))
    noise = 0.01 * np.random.default_rng(0).normal(size=case.output.size)
    points = make_points(law, case.inputs, case.output * np.exp(noise))
    # Beyond the width the objective is a cone: no curvature says how far its bottom is.
    starts = law.starts[0] + np.linspace(-20, 40, 13)[:, None]
    found = solve_starts(
        law, False, delta, points.x, points.y, centre(points), np.ones((1, 24)), starts
    )
    assert found.converged.all()
    np.testing.assert_allclose(found.objective, found.objective.min(), rtol=1e-9)
    log_scale = points.log_params(found.theta)[..., 0]
    assert log_scale == pytest.approx(np.log(case.params["N_c"]), abs=0.1)
