"""The covariance over runs against its definition, written out with matrices of all points."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import linalg, stats

from scaling_jax.errors import WorkError
from scaling_jax.laws.fitting import Objective, Points, make_points, solve
from scaling_jax.laws.forms import L_NS, find_law
from scaling_jax.laws.sandwich import sandwich

TRUTH = {"N_c": 3e6, "S_c": 30.0, "alpha_N": 0.12, "alpha_S": 0.4}
SIZE = np.geomspace(3e3, 2e5, 6)
RUN = np.repeat(np.arange(6), [9, 12, 12, 10, 12, 8])  # not all of one length


def noisy(objective: Objective | None = None, noise: float = 0.004, seed: int = 0) -> Points:
    rng = np.random.default_rng(seed)
    step = np.concatenate([np.geomspace(100, 1e4, count) for count in np.bincount(RUN)])
    inputs = {"N": SIZE[RUN], "S": step}
    shared = noise * rng.normal(size=6)[RUN] + noise * rng.normal(size=RUN.size)
    return make_points(L_NS, inputs, L_NS.predict(TRUTH, **inputs) * np.exp(shared), objective)


def fitted(points: Points, weights: np.ndarray | None = None) -> np.ndarray:
    weights = np.ones(points.y.size) if weights is None else weights
    return solve(points, weights[None]).theta[0]


def jacobian(points: Points, theta: np.ndarray) -> np.ndarray:
    steps = 1e-6 * np.eye(theta.size)
    return np.stack(
        [(points.residuals(theta - s) - points.residuals(theta + s)) / 2e-6 for s in steps], axis=1
    )


def inverse_root(matrix: np.ndarray) -> np.ndarray:
    return np.real(linalg.inv(linalg.sqrtm(matrix)))


def test_covariance_and_freedom_are_cr2_and_satterthwaites_written_out() -> None:
    points = noisy(Objective("log_squares"))
    theta = fitted(points)
    found = sandwich(points, theta, np.ones(RUN.size), RUN)

    j, r = jacobian(points, theta), points.residuals(theta)
    bread = np.linalg.inv(j.T @ j)
    hat = j @ bread @ j.T
    left_over = np.eye(RUN.size) - hat
    meat = np.zeros((4, 4))
    working = np.eye(RUN.size) + found.shared * (RUN[:, None] == RUN[None, :])
    rows, leverages = [], []
    direction = np.array([0.3, -1.0, 0.5, 2.0])
    for run in range(6):
        own = np.flatnonzero(run == RUN)
        adjust = inverse_root(left_over[np.ix_(own, own)])
        leverages.append(linalg.eigvalsh(hat[np.ix_(own, own)]).max())
        score = j[own].T @ adjust @ r[own]
        meat += np.outer(score, score)
        rows.append(left_over[own].T @ adjust @ j[own] @ bread @ direction)
    np.testing.assert_allclose(found.covariance, bread @ meat @ bread, rtol=1e-5)
    products = np.array(rows) @ working @ np.array(rows).T
    freedom = np.trace(products) ** 2 / np.sum(products**2)
    assert found.freedom(direction) == pytest.approx(freedom, rel=1e-5)

    spread = r @ r / (RUN.size - 4)
    np.testing.assert_allclose(found.independent, spread * bread, rtol=1e-5)
    assert found.unit == pytest.approx(spread / 2)
    assert found.leverage == pytest.approx(max(leverages), rel=1e-5)


def test_shared_variance_is_found_where_there_is_some() -> None:
    step = np.tile(np.geomspace(100, 1e4, 20), 60)
    run = np.repeat(np.arange(60), 20)
    inputs = {"N": np.geomspace(3e3, 2e5, 60)[run], "S": step}
    rng = np.random.default_rng(1)
    found = []
    for ratio in (0.0, 1.0, 4.0):
        noise = np.sqrt(ratio) * rng.normal(size=60)[run] + rng.normal(size=run.size)
        points = make_points(L_NS, inputs, L_NS.predict(TRUTH, **inputs) * np.exp(0.002 * noise))
        found.append(sandwich(points, fitted(points), np.ones(run.size), run).shared)
    assert found == pytest.approx([0.0, 1.0, 4.0], rel=0.35, abs=0.05)


def test_points_without_weight_are_not_there() -> None:
    points = noisy()
    weights = (RUN != 2).astype(float)
    theta = fitted(points, weights)
    found = sandwich(points, theta, weights, RUN)
    kept = replace(points, x=points.x[:, RUN != 2], y=points.y[RUN != 2])
    other = sandwich(kept, theta, np.ones(kept.y.size), RUN[RUN != 2])
    np.testing.assert_allclose(found.covariance, other.covariance, rtol=1e-10)
    assert found.freedom(np.eye(4)[2]) == pytest.approx(other.freedom(np.eye(4)[2]))


def test_a_wide_huber_is_least_squares() -> None:
    points = noisy(Objective("log_squares"))
    theta, ones = fitted(points), np.ones(RUN.size)
    wide = sandwich(replace(points, objective=Objective("huber", 10.0)), theta, ones, RUN)
    reference = sandwich(points, theta, ones, RUN)
    np.testing.assert_allclose(wide.covariance, reference.covariance, rtol=1e-9)
    assert wide.unit == pytest.approx(reference.unit)


def test_squares_of_the_output_with_runs_of_one_point_are_hc2() -> None:
    points = noisy(Objective("squares"))
    theta = fitted(points)
    found = sandwich(points, theta, np.ones(RUN.size), np.arange(RUN.size))
    predicted = np.exp(points.y - points.residuals(theta))
    j, r = jacobian(points, theta) * predicted[:, None], np.exp(points.y) - predicted
    bread = np.linalg.inv(j.T @ j)
    leverage = np.einsum("ni,ij,nj->n", j, bread, j)
    meat = j.T @ (j * (r**2 / (1 - leverage))[:, None])
    np.testing.assert_allclose(found.covariance, bread @ meat @ bread, rtol=1e-5)
    assert found.shared == 0.0


@pytest.mark.parametrize("delta", [1e-3, 5e-3, 2e-2])
def test_standard_error_of_a_huber_fit_is_the_asymptotic_one(delta: float) -> None:
    law = find_law("l_n")
    size, noise, alpha = np.geomspace(1e6, 1e9, 200), 0.01, 0.08
    rng = np.random.default_rng(2)
    errors = []
    for _ in range(20):
        loss = law.predict({"N_c": 1e13, "alpha_N": alpha}, N=size)
        loss = loss * np.exp(noise * rng.normal(size=size.size))
        points = make_points(law, {"N": size}, loss, Objective("huber", delta))
        theta = solve(points, np.ones((1, size.size)), starts=points.law.starts[:1]).theta[0]
        found = sandwich(points, theta, np.ones(size.size), np.arange(size.size))
        errors.append(np.sqrt(found.covariance[0, 0]))
    # Huber 1981, eq. 7.6.5, for normal noise: E psi^2 / (E psi')^2 over the squares of ln N.
    cut = delta / noise
    inside = stats.chi2.cdf(cut**2, 1)
    square = stats.chi2.cdf(cut**2, 3) + cut**2 * (1 - inside)
    exact = noise * np.sqrt(square) / inside / np.log(size).std() / np.sqrt(size.size) / alpha
    assert np.median(errors) == pytest.approx(exact, rel=0.1)


def test_refuses_what_leaves_a_direction_open() -> None:
    points = noisy()
    theta = fitted(points)
    few = np.zeros(RUN.size)
    few[:4] = 1.0
    with pytest.raises(WorkError, match="4 points cannot fix 4"):
        sandwich(points, theta, few, RUN)
    one_size = replace(points, x=np.stack([np.zeros(RUN.size), points.x[1]]))
    with pytest.raises(WorkError, match="do not identify"):
        sandwich(one_size, theta, np.ones(RUN.size), RUN)
