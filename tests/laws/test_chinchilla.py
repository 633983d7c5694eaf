"""E + A/N^alpha + B/D^beta: the frontier against search, and against what papers compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from scaling_jax.errors import RequestError
from scaling_jax.laws import chinchilla
from scaling_jax.laws.forms import LAWS
from scaling_jax.laws.published import published

HOFFMANN = published("hoffmann2022").params
ROUNDED = published("hoffmann2022.rounded").params
BESIROGLU = published("besiroglu2024").params
MUENNIGHOFF = published("muennighoff2023").params
OMEGA = published("pearce2024").params["omega"]
SHORT = ("E", "A", "B", "alpha", "beta")


def loss(N: float, D: float, p: dict[str, float]) -> float:
    return p["E"] + p["A"] / N ** p["alpha"] + p["B"] / D ** p["beta"]


@pytest.mark.parametrize(
    ("params", "C", "N", "D", "per_parameter"),
    [
        (HOFFMANN, 5.76e23, 4.03e10, 2.38e12, 59.1),
        (ROUNDED, 5.76e23, 3.22e10, None, 92.6),
        (BESIROGLU, 5.76e23, 7.22e10, 1.33e12, 18.4),
        (HOFFMANN, 1e21, None, None, 34.0),
        (BESIROGLU, 1e21, 2.78e9, None, 21.6),
    ],
)
def test_known_allocations(params, C, N, D, per_parameter) -> None:
    found = chinchilla.optimal(C, params)
    assert pytest.approx(per_parameter, rel=2e-3) == found.D / found.N
    assert N is None or pytest.approx(N, rel=2e-3) == found.N
    assert D is None or pytest.approx(D, rel=2e-3) == found.D
    assert pytest.approx(C, rel=1e-12) == 6 * found.N * found.D


def test_known_loss_and_exponents() -> None:
    assert chinchilla.optimal(1e21, BESIROGLU).loss == pytest.approx(2.3055, abs=5e-5)
    found = chinchilla.exponents(BESIROGLU)
    assert found["a"] == pytest.approx(0.5126, abs=5e-5)
    assert found["b"] == pytest.approx(0.4874, abs=5e-5)
    assert chinchilla.exponents(HOFFMANN)["a"] == pytest.approx(0.46, abs=0.005)


@given(
    C=st.floats(15, 26).map(lambda x: 10**x),
    alpha=st.floats(0.15, 0.8),
    beta=st.floats(0.15, 0.8),
    A=st.floats(10, 1e4),
    B=st.floats(10, 1e4),
)
def test_optimum_against_search(C: float, alpha: float, beta: float, A: float, B: float) -> None:
    p = {"E": 1.7, "A": A, "B": B, "alpha": alpha, "beta": beta}
    found = chinchilla.optimal(C, p)

    def excess(x: float) -> float:  # without E, which would drown the minimum in rounding
        return loss(np.exp(x), C / (6 * np.exp(x)), {**p, "E": 0.0})

    x = np.log(found.N) + np.array([-3.0, 0.1, 3.0])
    best: Any = optimize.minimize_scalar(excess, bracket=tuple(x), tol=1e-9)
    assert best.x == pytest.approx(np.log(found.N), abs=1e-4)
    assert best.fun + 1.7 == pytest.approx(found.loss, rel=1e-10)


def test_draws_of_a_fit_broadcast() -> None:
    draws = {name: np.array([BESIROGLU[name], HOFFMANN[name]]) for name in SHORT}
    found = chinchilla.optimal(1e21, draws)
    single = [chinchilla.optimal(1e21, p) for p in (BESIROGLU, HOFFMANN)]
    for i, field in enumerate(found):
        np.testing.assert_allclose(field, [one[i] for one in single], rtol=1e-14)


@pytest.mark.parametrize("params", [HOFFMANN, BESIROGLU])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.9, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("C", [1e19, 1e24])
def test_cost_of_another_size_against_the_law(params, ratio: float, C: float) -> None:
    N, D, target = chinchilla.optimal(C, params)
    D_other: Any = optimize.brentq(
        lambda x: loss(ratio * float(N), np.exp(x), params) - target, np.log(D) - 5, np.log(D) + 30
    )
    expected = ratio * np.exp(D_other) / D
    assert chinchilla.excess_compute(ratio, params) == pytest.approx(expected, rel=1e-8)


def test_a_size_too_small_never_reaches_the_loss() -> None:
    least = float(chinchilla.smallest_ratio(BESIROGLU))
    N, _, target = chinchilla.optimal(1e21, BESIROGLU)
    assert loss(least * float(N), np.inf, BESIROGLU) == pytest.approx(target, rel=1e-12)
    cost = chinchilla.excess_compute([0.5 * least, 0.999 * least, 1.001 * least, 1.0], BESIROGLU)
    assert np.isinf(cost[:2]).all()
    assert cost[2] > 100 and cost[3] == 1.0
    assert np.isinf(chinchilla.excess_compute(0.5, {**BESIROGLU, "alpha": 1e6}))


def test_local_exponents_of_the_non_embedding_frontier() -> None:
    N = [1e3, 1e5, 1e6, 1e7, 1e8, 1e9, 1e11]
    known = [0.763, 0.830, 0.963, 0.853, 0.613, 0.535, 0.514]
    np.testing.assert_allclose(chinchilla.local_exponent(N, BESIROGLU, OMEGA), known, atol=5.1e-4)
    grid = np.geomspace(1e5, 1e8, 3001)
    curve = chinchilla.local_exponent(grid, BESIROGLU, OMEGA)
    assert curve.max() == pytest.approx(0.98, abs=5e-3)
    assert grid[curve.argmax()] == pytest.approx(1.9e6, rel=0.03)


def test_local_exponent_has_its_limits_and_is_the_slope_of_the_frontier() -> None:
    a, b = BESIROGLU["alpha"], BESIROGLU["beta"]
    small, large = chinchilla.local_exponent([1e-9, 1e30], BESIROGLU, OMEGA)
    assert small == pytest.approx(b / (a / 3 + b), rel=1e-6)
    assert large == pytest.approx(b / (a + b), rel=1e-6)
    for N in (1e4, 2e6, 1e9):
        around = N * np.exp([-1e-4, 1e-4])
        C = chinchilla.frontier_non_embedding(around, BESIROGLU, OMEGA).C
        slope = 2e-4 / np.log(C[1] / C[0])
        assert chinchilla.local_exponent(N, BESIROGLU, OMEGA) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("N", [1e4, 2e6, 1e9])
def test_non_embedding_frontier_against_search(N: float) -> None:
    point = chinchilla.frontier_non_embedding(N, BESIROGLU, OMEGA)

    def at(x: float) -> float:
        total = float(chinchilla.total_parameters(np.exp(x), OMEGA))
        return loss(total, float(point.C) / (6 * np.exp(x)), {**BESIROGLU, "E": 0.0})

    best: Any = optimize.minimize_scalar(at, bracket=(np.log(N) - 1, np.log(N) + 0.9), tol=1e-9)
    assert best.x == pytest.approx(np.log(N), abs=1e-4)
    assert best.fun + BESIROGLU["E"] == pytest.approx(point.loss, rel=1e-10)


def test_without_embeddings_the_frontier_is_hoffmanns() -> None:
    N, D, best = chinchilla.optimal(1e21, HOFFMANN)
    point = chinchilla.frontier_non_embedding(N, HOFFMANN, 0.0)
    np.testing.assert_allclose(
        [point.C, point.D, point.loss], np.array([1e21, D, best]), rtol=1e-10
    )


@pytest.mark.parametrize(("params", "exponent"), [(BESIROGLU, 0.781), (HOFFMANN, 0.739)])
def test_fitted_exponent_over_kaplans_range(params, exponent: float) -> None:
    sizes, budgets = np.logspace(2.9, 9.2, 20), np.logspace(12.95, 20.7, 100)
    recorded = chinchilla.fitted_exponent(params, OMEGA, sizes, budgets, np.logspace(6, 25, 1000))
    assert recorded == pytest.approx(exponent, abs=5e-4)
    finer = chinchilla.fitted_exponent(params, OMEGA, sizes, budgets, np.logspace(6, 25, 20_000))
    assert finer == pytest.approx(exponent, abs=7e-3)


def test_fitted_exponent_of_fine_curves_is_that_of_the_frontier() -> None:
    budgets = np.logspace(13, 20, 60)
    found = chinchilla.fitted_exponent(
        BESIROGLU, OMEGA, np.logspace(2, 11, 2000), budgets, np.logspace(6, 25, 20_000)
    )
    frontier = chinchilla.frontier_non_embedding(np.logspace(2, 11, 4000), BESIROGLU, OMEGA)
    log_N = np.interp(np.log(budgets), np.log(frontier.C), np.log(frontier.N))
    assert found == pytest.approx(np.polyfit(np.log(budgets), log_N, 1)[0], abs=1e-3)


def test_what_repeated_tokens_are_worth() -> None:
    R = MUENNIGHOFF["R_D_star"]
    worth = chinchilla.effective([1.0, 4.0, 16.0, 40.0, 1e6], 1.0, R)
    np.testing.assert_allclose(worth, [1.0, 3.73, 10.58, 15.17, 16.39], atol=5.1e-3)
    assert worth[1] / 4 == pytest.approx(0.93, abs=5e-3)
    assert chinchilla.effective(0.5, 1.0, R) == 0.5
    slope = (chinchilla.effective(1 + 1e-6, 1.0, R) - 1.0) / 1e-6
    assert slope == pytest.approx(1.0, rel=1e-5)


def test_size_for_data() -> None:
    U = 1e9
    assert chinchilla.size_for_data(U, MUENNIGHOFF) == pytest.approx(0.051 * U, rel=2e-3)
    N, D, _ = chinchilla.optimal(1e22, HOFFMANN)
    assert chinchilla.size_for_data(D, HOFFMANN) == pytest.approx(N, rel=1e-12)


def test_effective_amounts_give_the_data_constrained_law() -> None:
    N, D, U = 3e9, 4e10, 5e9
    size = chinchilla.effective(
        N, chinchilla.size_for_data(U, MUENNIGHOFF), MUENNIGHOFF["R_N_star"]
    )
    tokens = chinchilla.effective(D, U, MUENNIGHOFF["R_D_star"])
    expected = LAWS["data_constrained"].predict(MUENNIGHOFF, N=N, D=D, U=U)
    assert loss(float(size), float(tokens), MUENNIGHOFF) == pytest.approx(expected, rel=1e-12)


def test_wrong_requests() -> None:
    with pytest.raises(RequestError, match="Missing parameter: alpha"):
        chinchilla.optimal(1e21, {"E": 1.0, "A": 1.0, "B": 1.0, "beta": 0.3})
    with pytest.raises(RequestError, match="Missing parameter: E"):
        chinchilla.optimal(1e21, {name: BESIROGLU[name] for name in SHORT[1:]})
    with pytest.raises(RequestError, match="C = -1"):
        chinchilla.optimal(-1.0, BESIROGLU)
    with pytest.raises(RequestError, match="1 of 2 values of N_ratio"):
        chinchilla.excess_compute([1.0, 0.0], BESIROGLU)
    with pytest.raises(RequestError, match="omega = -1"):
        chinchilla.local_exponent(1e6, BESIROGLU, -1.0)
