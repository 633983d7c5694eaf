"""The solver against known parameters, against scipy, and where it must refuse."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.fitting import fit_points, make_points, minima, solve
from scaling_jax.laws.forms import L_NS, critical_batch, minimum_steps
from scaling_jax.laws.published import published

TABLE3 = published("kaplan2020.table3").params
B_CRIT = published("kaplan2020.b_crit").params
BATCH = 2.0**19


def kaplan_curves() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N, S, L at fixed batch: L stands on both sides, since S_min depends on it; bisection."""
    N, S = np.meshgrid(np.geomspace(1e5, 1e9, 9), np.geomspace(3e3, 2.5e5, 40), indexing="ij")
    N, S = N.ravel(), S.ravel()

    def excess(loss: np.ndarray) -> np.ndarray:
        factor = 1 + critical_batch(loss, **B_CRIT) / BATCH
        size = (TABLE3["N_c"] / N) ** TABLE3["alpha_N"]
        return size + (TABLE3["S_c"] * factor / S) ** TABLE3["alpha_S"] - loss

    low, high = np.full(N.shape, 0.5), np.full(N.shape, 50.0)
    for _ in range(80):
        middle = (low + high) / 2
        above = excess(middle) > 0
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return N, S, low


def fit_kaplan(loss_factor: np.ndarray | float = 1.0) -> dict[str, float]:
    N, S, loss = kaplan_curves()
    loss = loss * loss_factor
    return fit_points(L_NS, {"N": N, "S": minimum_steps(S, loss, BATCH, **B_CRIT)}, loss).params


def test_table_3_is_recovered_without_noise() -> None:
    found = fit_kaplan()
    for name, value in TABLE3.items():
        assert found[name] == pytest.approx(value, rel=1e-4)


def test_without_the_batch_correction_the_exponent_of_steps_is_another() -> None:
    N, S, loss = kaplan_curves()
    found = fit_points(L_NS, {"N": N, "S": S}, loss).params
    assert abs(found["alpha_S"] / TABLE3["alpha_S"] - 1) > 0.1


def test_table_3_is_recovered_with_noise() -> None:
    rng = np.random.default_rng(1)
    fits = [fit_kaplan(np.exp(0.002 * rng.normal(size=360))) for _ in range(8)]
    spread = {"alpha_N": 0.0008, "alpha_S": 0.0045, "N_c": 0.017, "S_c": 0.0023}
    for name, value in TABLE3.items():
        ratio = np.array([fit[name] for fit in fits]) / value - 1
        assert abs(ratio.mean()) < 0.002 + 3 * spread[name] / 8**0.5
        assert ratio.std() < 2 * spread[name]


def toy(noise: float, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    N, S = np.meshgrid(np.geomspace(1e3, 1e5, 6), np.geomspace(100, 1e4, 12))
    truth = {"N_c": 3e6, "S_c": 30.0, "alpha_N": 0.12, "alpha_S": 0.4}
    inputs = {"N": N.ravel(), "S": S.ravel()}
    loss = L_NS.predict(truth, **inputs)
    return inputs, loss * np.exp(noise * np.random.default_rng(seed).normal(size=loss.size))


def test_the_objective_is_the_sum_of_huber_and_scipy_finds_no_lower_one() -> None:
    inputs, loss = toy(0.02)
    delta = 0.01
    found = fit_points(L_NS, inputs, loss, delta=delta)

    def objective(log_params: np.ndarray) -> float:
        N_c, S_c, alpha_N, alpha_S = np.exp(log_params)
        law = (N_c / inputs["N"]) ** alpha_N + (S_c / inputs["S"]) ** alpha_S
        size = np.abs(np.log(loss / law))
        return float(
            np.sum(np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))) / delta**2
        )

    at = np.log(list(found.params.values()))
    assert found.objective == pytest.approx(objective(at) * delta**2, rel=1e-9)
    other = optimize.minimize(objective, at + 0.01, method="Nelder-Mead",
                              options={"maxiter": 600, "xatol": 1e-8, "fatol": 1e-10})  # fmt: skip
    assert other.fun >= objective(at) * (1 - 1e-9)
    np.testing.assert_allclose(
        found.rms_log_residual, np.sqrt(np.mean(found.log_residual**2)), rtol=1e-12
    )


def test_one_outlier_moves_nothing() -> None:
    inputs, loss = toy(0.003)
    clean = fit_points(L_NS, inputs, loss).params
    loss[20] *= 1.5
    robust = fit_points(L_NS, inputs, loss).params
    squares = fit_points(L_NS, inputs, loss, delta=10.0).params
    assert robust["alpha_S"] == pytest.approx(clean["alpha_S"], rel=0.03)
    assert abs(squares["alpha_S"] / clean["alpha_S"] - 1) > 0.06


def test_weights_are_repetitions_and_zero_leaves_out() -> None:
    inputs, loss = toy(0.01)
    points = make_points(L_NS, inputs, loss)
    weights = np.ones((2, loss.size))
    weights[0, :10], weights[1, 5] = 0, 3
    found = points.log_params(solve(points, weights).theta)
    for row in range(2):
        rows = np.repeat(np.arange(loss.size), weights[row].astype(int))
        alone = fit_points(L_NS, {k: v[rows] for k, v in inputs.items()}, loss[rows])
        np.testing.assert_allclose(np.exp(found[row]), list(alone.params.values()), rtol=1e-4)


def test_both_minima_are_found_where_a_constant_can_hide_in_either_term() -> None:
    N, S = np.meshgrid(np.geomspace(1e3, 1e5, 7), np.geomspace(1e3, 1e5, 7))
    loss = 4.0 + (1e4 / N.ravel()) ** 0.3 + (1e4 / S.ravel()) ** 0.3
    points = make_points(L_NS, {"N": N.ravel(), "S": S.ravel()}, loss)
    found = minima(points, np.ones(loss.size))
    assert len(found.theta) == 2
    np.testing.assert_allclose(found.objective[0], found.objective[1], rtol=1e-8)
    np.testing.assert_allclose(found.theta[0], found.theta[1][[1, 0, 3, 2]], rtol=1e-3)


def test_a_loss_that_does_not_depend_on_size_is_refused() -> None:
    inputs, _ = toy(0.0)
    with pytest.raises(WorkError, match="do not identify"):
        fit_points(L_NS, inputs, 3.0 * inputs["S"] ** -0.2)


def test_bad_points_are_told() -> None:
    inputs, loss = toy(0.01)
    loss[[3, 4]] = 0.0, np.nan
    with pytest.raises(RequestError, match="2 rows of loss not positive and finite"):
        fit_points(L_NS, inputs, loss)
    with pytest.raises(RequestError, match="needs the input S"):
        fit_points(L_NS, {"N": inputs["N"]}, loss)
    with pytest.raises(RequestError, match="shape"):
        fit_points(L_NS, {**inputs, "S": inputs["S"][:5]}, np.ones(72))
    with pytest.raises(WorkError, match="4 points cannot fix the 4 parameters"):
        fit_points(L_NS, {k: v[:4] for k, v in inputs.items()}, np.ones(4))
