"""Variable projection against a surface whose constants are known, and where it must refuse."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.surface import variable_projection

# Besiroglu et al. 2024
TRUTH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}


def surface(N: np.ndarray, D: np.ndarray, E: float, A: float, B: float, alpha: float, beta: float):
    return E + A / N**alpha + B / D**beta


def design(points: int = 240, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    N = np.exp(rng.uniform(np.log(5e7), np.log(1.6e10), points))
    return N, np.exp(rng.uniform(np.log(5e9), np.log(5e11), points))


def test_the_constants_are_recovered_without_noise() -> None:
    N, D = design()
    found = variable_projection(N, D, surface(N, D, **TRUTH))
    for name, value in TRUTH.items():
        assert found[name] == pytest.approx(value, rel=1e-5)


def test_with_noise_the_share_of_compute_is_right() -> None:
    N, D = design()
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(20):
        loss = surface(N, D, **TRUTH) * np.exp(0.003 * rng.normal(size=N.size))
        found = variable_projection(N, D, loss)
        shares.append(found["beta"] / (found["alpha"] + found["beta"]))
    assert np.mean(shares) == pytest.approx(0.5126, abs=0.003)
    assert np.std(shares) < 0.009


def test_the_minimum_is_that_of_all_five_parameters_at_once() -> None:
    N, D = design(60)
    rng = np.random.default_rng(2)
    loss = surface(N, D, **TRUTH) * np.exp(0.01 * rng.normal(size=N.size))
    found = variable_projection(N, D, loss)

    def residual(p: np.ndarray) -> np.ndarray:
        return surface(N, D, *np.exp(p)) / loss - 1

    start = np.log(list(found.values()))
    other = optimize.least_squares(residual, start, x_scale="jac", xtol=1e-14, ftol=1e-14)
    assert np.sum(residual(start) ** 2) == pytest.approx(2 * other.cost, rel=1e-8)


def test_a_start_at_the_answer_stays_there() -> None:
    N, D = design(60)
    loss = surface(N, D, **TRUTH) * np.exp(0.01 * np.random.default_rng(3).normal(size=60))
    cold = variable_projection(N, D, loss)
    warm = variable_projection(N, D, loss, start={"alpha": 0.3, "beta": 0.4})
    for name, value in cold.items():
        assert warm[name] == pytest.approx(value, rel=1e-3)


def test_a_loss_without_a_floor_has_none() -> None:
    N, D = design()
    found = variable_projection(N, D, surface(N, D, **{**TRUTH, "E": 0.0}))
    assert found["E"] == pytest.approx(0.0, abs=1e-4)
    assert found["alpha"] == pytest.approx(TRUTH["alpha"], rel=1e-4)


def test_data_that_follow_size_are_refused() -> None:
    N = np.geomspace(1e7, 1e10, 40)
    with pytest.raises(WorkError, match="D follows N"):
        variable_projection(N, 20 * N, surface(N, 20 * N, **TRUTH))


def test_a_term_that_is_not_there_is_refused() -> None:
    N, D = design()
    with pytest.raises(WorkError, match="do not identify"):
        variable_projection(N, D, 2 + 2085 / D**0.37)


def test_few_points_one_size_and_wrong_values_are_refused() -> None:
    N, D = design()
    with pytest.raises(WorkError, match="5 points"):
        variable_projection(N[:5], D[:5], D[:5])
    with pytest.raises(WorkError, match="one N"):
        variable_projection(np.full(240, 1e8), D, D)
    with pytest.raises(RequestError, match="loss"):
        variable_projection(N, D, -D)
    with pytest.raises(RequestError, match="shape"):
        variable_projection(N, D, D[:7])
