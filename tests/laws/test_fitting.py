"""The solver against known parameters, against scipy, and where it must refuse."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.fitting import (
    Objective,
    find_objective,
    fit_points,
    make_points,
    minima,
    solve,
)
from scaling_jax.laws.forms import L_NS, LAWS, critical_batch, minimum_steps
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


# Relative spread of N_c, S_c, alpha_N, alpha_S. At 1 % the exponent of steps is biased, because
# S_min is computed from the noisy loss.
@pytest.mark.parametrize(
    ("noise", "spread", "bias"),
    [
        (0.002, (0.017, 0.0023, 0.0008, 0.0045), 0.002),
        (0.01, (0.1, 0.01, 0.005, 0.027), 0.01),
    ],
)
def test_table_3_is_recovered_with_noise(noise: float, spread, bias: float) -> None:
    rng = np.random.default_rng(1)
    repeats = 20
    fits = [fit_kaplan(np.exp(noise * rng.normal(size=360))) for _ in range(repeats)]
    for name, expected in zip(("N_c", "S_c", "alpha_N", "alpha_S"), spread, strict=True):
        ratio = np.array([fit[name] for fit in fits]) / TABLE3[name] - 1
        assert abs(ratio.mean()) < bias + 3 * expected / repeats**0.5
        assert 0.5 * expected < ratio.std() < 1.6 * expected


def toy(noise: float, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    N, S = np.meshgrid(np.geomspace(1e3, 1e5, 6), np.geomspace(100, 1e4, 12))
    truth = {"N_c": 3e6, "S_c": 30.0, "alpha_N": 0.12, "alpha_S": 0.4}
    inputs = {"N": N.ravel(), "S": S.ravel()}
    loss = L_NS.predict(truth, **inputs)
    return inputs, loss * np.exp(noise * np.random.default_rng(seed).normal(size=loss.size))


def test_the_objective_is_the_sum_of_huber_and_scipy_finds_no_lower_one() -> None:
    inputs, loss = toy(0.02)
    delta = 0.01
    found = fit_points(L_NS, inputs, loss, Objective("huber", delta))

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
    squares = fit_points(L_NS, inputs, loss, Objective("log_squares")).params
    assert robust["alpha_S"] == pytest.approx(clean["alpha_S"], rel=0.03)
    assert abs(squares["alpha_S"] / clean["alpha_S"] - 1) > 0.06


def test_every_law_is_recovered_without_noise(case) -> None:
    found = fit_points(LAWS[case.slug], case.inputs, case.output)
    assert found.params == pytest.approx(case.params, rel=1e-5)
    assert found.rms_log_residual < 1e-6


def scatter(case, noise: float, repeats: int, seed: int = 0) -> np.ndarray:
    """Log parameters (repeats, P) of fits to the case with log noise, less the true ones."""
    law, rng = LAWS[case.slug], np.random.default_rng(seed)
    away = []
    for _ in range(repeats):
        noisy = case.output * np.exp(noise * rng.normal(size=case.output.size))
        found = fit_points(law, case.inputs, noisy, Objective("log_squares")).params
        away.append([np.log(found[name] / case.params[name]) for name in law.params])
    return np.array(away)


@pytest.mark.parametrize(
    ("noise", "spread"),
    [(0.005, (0.15, 0.19, 0.008, 0.016)), (0.01, (0.28, 0.42, 0.016, 0.034))],
)
def test_table_2_is_recovered_with_noise(cases, noise: float, spread: tuple[float, ...]) -> None:
    away = scatter(cases["l_nd"], noise, 40)
    assert LAWS["l_nd"].params == ("N_c", "D_c", "alpha_N", "alpha_D")
    # Standard deviations of 40 repeats are known to a ninth.
    np.testing.assert_allclose(away.std(axis=0) / spread, 1.0, atol=0.4)
    assert np.all(np.abs(away.mean(axis=0)) < 4 * np.array(spread) / 40**0.5)


def test_the_chinchilla_split_of_compute_is_found_through_noise(cases) -> None:
    case = cases["l_nd_chinchilla"]
    law = LAWS[case.slug]
    assert law.delta == 1e-3 and case.output.size == 240
    split = law.derived["a_opt"]
    assert split(case.params) == pytest.approx(0.5126, abs=5e-5)
    found = []
    for seed in range(30):
        noise = 0.003 * np.random.default_rng(seed).normal(size=240)
        found.append(split(fit_points(law, case.inputs, case.output * np.exp(noise)).params))
    assert np.mean(found) == pytest.approx(0.5126, abs=2e-3)
    assert np.std(found) < 0.004


def chinchilla(inputs, E, A, B, alpha, beta):
    return E + A / inputs[0] ** alpha + B / inputs[1] ** beta


def noisy_chinchilla(cases) -> tuple[dict[str, np.ndarray], np.ndarray, list[float]]:
    case = cases["l_nd_chinchilla"]
    noise = 0.01 * np.random.default_rng(3).normal(size=case.output.size)
    return case.inputs, case.output * np.exp(noise), list(case.params.values())


def test_squares_are_those_of_scipy(cases) -> None:
    inputs, loss, truth = noisy_chinchilla(cases)
    found = fit_points(LAWS["l_nd_chinchilla"], inputs, loss, Objective("squares"))
    x = np.stack([inputs["N"], inputs["D"]])
    theirs, _ = optimize.curve_fit(
        chinchilla, x, loss, p0=truth, ftol=1e-14, xtol=1e-14, gtol=1e-14, maxfev=20_000
    )
    np.testing.assert_allclose(list(found.params.values()), theirs, rtol=1e-4)
    unit = np.exp(np.mean(np.log(loss)))
    squares = 0.5 * np.sum((chinchilla(x, *found.params.values()) - loss) ** 2) / unit**2
    assert found.objective == pytest.approx(squares, rel=1e-9)


@pytest.mark.parametrize("form", ["log_squares", "huber"])
def test_log_residuals_are_those_of_scipy(cases, form: str) -> None:
    inputs, loss, truth = noisy_chinchilla(cases)
    law = LAWS["l_nd_chinchilla"]
    found = fit_points(law, inputs, loss, find_objective(law, form))
    x = np.stack([inputs["N"], inputs["D"]])

    def residual(log_params: np.ndarray) -> np.ndarray:
        return np.log(chinchilla(x, *np.exp(log_params)) / loss)

    theirs = optimize.least_squares(
        residual, np.log(truth), x_scale="jac", ftol=1e-15, xtol=1e-15, gtol=1e-15,
        **({} if form == "log_squares" else {"loss": "huber", "f_scale": 1e-3}),
    )  # fmt: skip
    # SciPy's cost is half the sum of its rho, as is this one's.
    assert found.objective == pytest.approx(theirs.cost, rel=1e-6)
    assert found.objective <= theirs.cost * (1 + 1e-9)
    np.testing.assert_allclose(np.log(list(found.params.values())), theirs.x, atol=2e-3)


def test_the_sum_is_minimised_and_not_the_mean() -> None:
    inputs, loss = toy(0.01)
    once = fit_points(L_NS, inputs, loss)
    twice = fit_points(L_NS, {k: np.tile(v, 2) for k, v in inputs.items()}, np.tile(loss, 2))
    assert twice.objective == pytest.approx(2 * once.objective, rel=1e-9)
    assert twice.params == pytest.approx(once.params, rel=1e-5)
    assert twice.rms_log_residual == pytest.approx(once.rms_log_residual, rel=1e-6)


def test_the_unit_of_the_output_does_not_matter_to_squares(cases) -> None:
    case = cases["pareto"]
    noisy = case.output * np.exp(0.03 * np.random.default_rng(0).normal(size=11))
    one, other = (
        fit_points(LAWS["pareto"], case.inputs, unit * noisy, Objective("squares"))
        for unit in (1.0, 1e-6)
    )
    assert other.objective == pytest.approx(one.objective, rel=1e-9)
    assert other.params["S_min"] == pytest.approx(1e-6 * one.params["S_min"], rel=1e-6)


def test_a_hyperbola_is_found_through_noise(cases) -> None:
    case = cases["pareto"]
    for seed in range(5):
        noise = 0.03 * np.random.default_rng(seed).normal(size=11)
        found = fit_points(LAWS["pareto"], case.inputs, case.output * np.exp(noise)).params
        assert found == pytest.approx(case.params, rel=0.1)
        assert found["B_crit"] == pytest.approx(found["E_min"] / found["S_min"], rel=1e-9)


def test_objectives_are_found_by_name() -> None:
    chinchilla = LAWS["l_nd_chinchilla"]
    assert find_objective(L_NS) == find_objective(L_NS, "huber") == Objective("huber", 0.01)
    assert find_objective(chinchilla) == Objective("huber", 1e-3)
    assert find_objective(LAWS["pareto"]) == Objective("log_squares")
    assert find_objective(LAWS["pareto"], "huber") == Objective("huber", 0.01)
    assert find_objective(LAWS["pareto"], delta=0.1) == Objective("huber", 0.1)
    assert find_objective(L_NS, "huber", 0.1) == Objective("huber", 0.1)
    assert find_objective(L_NS, "squares") == Objective("squares")
    with pytest.raises(RequestError, match=r"No objective 'hubr'\. Did you mean 'huber'"):
        find_objective(L_NS, "hubr")
    with pytest.raises(RequestError, match="squares has none"):
        find_objective(L_NS, "squares", 0.1)
    for delta in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(RequestError, match="delta is a positive width"):
            find_objective(L_NS, "huber", delta)


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
