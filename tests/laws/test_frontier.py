"""The compute-efficient frontier: closed forms against search, and what Kaplan et al. print."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws import frontier
from scaling_jax.laws.forms import LAWS, critical_batch, minimum_steps
from scaling_jax.laws.frontier import PF_DAY
from scaling_jax.laws.published import published

KAPLAN = published("kaplan2020").params
TABLE2 = published("kaplan2020.table2").params
TABLE6 = published("kaplan2020.table6").params
B_CRIT = {"B_star": KAPLAN["B_star"], "alpha_B": KAPLAN["alpha_B"]}
# C_min in PF-days, L, N, S_min, B_crit: papers.md section 7.1, by numerical minimisation.
FRONTIER = np.array(
    [
        [1e-6, 5.5472, 4.942e4, 5.089e3, 5.726e4],
        [1e-3, 3.8611, 5.464e6, 8.198e3, 3.215e5],
        [1.0, 2.6876, 6.042e8, 1.321e4, 1.805e6],
        [1e3, 1.8707, 6.680e10, 2.127e4, 1.013e7],
    ]
)
LAWS_OF_FRONTIER = st.fixed_dictionaries(
    {
        "N_c": st.floats(12, 15).map(lambda x: 10**x),
        "S_c": st.floats(2.5, 4).map(lambda x: 10**x),
        "alpha_N": st.floats(0.05, 0.2),
        "alpha_S": st.floats(0.4, 0.9),
        "B_star": st.floats(7, 9).map(lambda x: 10**x),
        "alpha_B": st.floats(0.15, 0.35),
    }
)


def test_known_frontier() -> None:
    found = frontier.efficient(FRONTIER[:, 0] * PF_DAY, KAPLAN)
    for i, field in enumerate(("loss", "N", "S_min", "B_crit"), start=1):
        np.testing.assert_allclose(getattr(found, field), FRONTIER[:, i], rtol=5.1e-4)
    converged = (KAPLAN["N_c"] / found.N) ** KAPLAN["alpha_N"]
    np.testing.assert_allclose(found.loss / converged, 1.10132, rtol=1e-5)
    np.testing.assert_allclose(
        6 * found.N * found.B_crit * found.S_min, FRONTIER[:, 0] * PF_DAY, rtol=1e-10
    )
    np.testing.assert_allclose(found.D_min, found.B_crit * found.S_min, rtol=1e-15)


def test_known_exponents_and_scale() -> None:
    p = frontier.exponents(KAPLAN)
    assert p["alpha_C"] == pytest.approx(0.052453, abs=5e-7)
    assert p["p_N"] + p["p_B"] + p["p_S"] == pytest.approx(1.0, abs=1e-14)
    assert p["p_N"] + p["p_D"] == pytest.approx(1.0, abs=1e-14)
    known = {"p_N": 0.681, "p_B": 0.250, "p_S": 0.069, "p_D": 0.319}
    for name, value in known.items():
        assert p[name] == pytest.approx(value, abs=5e-4)
    with_076 = frontier.exponents({**KAPLAN, "alpha_N": 0.076})
    assert with_076["alpha_C"] == pytest.approx(0.0520, abs=5e-5)
    assert with_076["p_N"] == pytest.approx(0.684, abs=1e-3)
    assert frontier.scale_C(KAPLAN) / PF_DAY == pytest.approx(1.5331e8, rel=5e-5)


def test_with_table_5s_critical_batch() -> None:
    other = {**KAPLAN, "B_star": 2.1e8}
    assert frontier.scale_C(other) / PF_DAY == pytest.approx(1.6098e8, rel=5e-5)
    found = frontier.efficient(PF_DAY, other)
    assert found.loss == pytest.approx(2.6944, abs=5e-5)
    assert pytest.approx(5.844e8, rel=2e-4) == found.N


def test_closed_form_is_the_minimum_on_kaplans_constants() -> None:
    C = np.geomspace(1e-7, 1e4, 12) * PF_DAY
    for closed, numeric in zip(
        frontier.efficient(C, KAPLAN), frontier.efficient_numeric(C, KAPLAN), strict=True
    ):
        np.testing.assert_allclose(numeric, closed, rtol=1e-6)


@settings(max_examples=30)
@given(params=LAWS_OF_FRONTIER, days=st.floats(-6, 4).map(lambda x: 10**x))
def test_closed_form_is_the_minimum_on_any_constants(params, days: float) -> None:
    closed = frontier.efficient(days * PF_DAY, params)
    assume(closed.N > 10 and closed.D_min > 10)
    numeric = frontier.efficient_numeric(days * PF_DAY, params)
    for one, other in zip(closed, numeric, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_numeric_minimum_against_scipy() -> None:
    def at(x: float) -> float:
        return float(frontier.loss_at_compute(np.exp(x), PF_DAY, KAPLAN))

    best: Any = optimize.minimize_scalar(at, bracket=(15.0, 20.0, 25.0), tol=1e-10)
    found = frontier.efficient_numeric(PF_DAY, KAPLAN)
    assert np.log(found.N) == pytest.approx(best.x, abs=1e-5)
    assert pytest.approx(6.042e8, rel=1e-4) == found.N


def test_numeric_minimum_refuses_an_edge() -> None:
    with pytest.raises(RequestError, match="below 6 FLOPs"):
        frontier.efficient_numeric(5.0, KAPLAN)
    with pytest.raises(WorkError, match="not between one parameter and one token"):
        frontier.efficient_numeric(1e6, KAPLAN)


def test_draws_of_a_fit_broadcast() -> None:
    draws = {name: np.array([value, 1.01 * value]) for name, value in KAPLAN.items()}
    found = frontier.efficient(PF_DAY, draws)
    second = frontier.efficient(PF_DAY, {name: 1.01 * value for name, value in KAPLAN.items()})
    for field, one in zip(found, second, strict=True):
        assert field.shape == (2,) and field[1] == pytest.approx(one, rel=1e-13)
    numeric = frontier.efficient_numeric(PF_DAY, draws)
    np.testing.assert_allclose(numeric.N, found.N, rtol=1e-5)


@given(
    params=LAWS_OF_FRONTIER,
    N=st.floats(2, 11).map(lambda x: 10**x),
    S=st.floats(0, 7).map(lambda x: 10**x),
    B=st.floats(1, 10).map(lambda x: 10**x),
)
def test_loss_at_a_fixed_batch_against_bracketing(params, N: float, S: float, B: float) -> None:
    law = {"B_star": params["B_star"], "alpha_B": params["alpha_B"]}
    l_ns = {name: params[name] for name in ("N_c", "S_c", "alpha_N", "alpha_S")}

    def excess(x: float) -> float:
        steps = minimum_steps(S, np.exp(x), B, **law)
        size = (params["N_c"] / N) ** params["alpha_N"]
        return float(size + (params["S_c"] / steps) ** params["alpha_S"] - np.exp(x))

    found = float(frontier.loss_at(N, S, B, params))
    root: Any = optimize.brentq(excess, -20.0, 40.0, xtol=1e-13)
    assert found == pytest.approx(np.exp(root), rel=1e-10)
    steps = minimum_steps(S, found, B, **law)
    assert LAWS["l_ns"].predict(l_ns, N=N, S=steps) == pytest.approx(found, rel=1e-9)


def test_compute_by_either_correction_is_the_same() -> None:
    N = np.array([1e6, 1e8, 1e10])[:, None]
    S = np.geomspace(1e3, 1e6, 5)
    B = 2.0**19
    loss = frontier.loss_at(N, S, B, KAPLAN)
    steps = minimum_steps(S, loss, B, **B_CRIT)
    identity = 6 * N * critical_batch(loss, **B_CRIT) * steps
    C_min = frontier.minimum_compute(6 * N * B * S, B, loss, **B_CRIT)
    np.testing.assert_allclose(C_min, identity, rtol=1e-12)
    np.testing.assert_allclose(frontier.loss_at_compute(N, C_min, KAPLAN), loss, rtol=1e-12)


def test_at_the_critical_batch_half_the_compute_is_needed() -> None:
    batch = critical_batch(3.0, **B_CRIT)
    assert frontier.minimum_compute(2e20, batch, 3.0, **B_CRIT) == pytest.approx(1e20)
    assert frontier.minimum_compute(1e20, 1.0, 3.0, **B_CRIT) == pytest.approx(1e20, rel=2e-6)


def test_frontier_of_runs_at_one_batch_is_steeper() -> None:
    params, B = {**KAPLAN, "B_star": 2.1e8}, 2.0**19
    C = np.geomspace(1e-5, 1.0, 40)[:, None] * PF_DAY
    N = np.geomspace(1e3, 1e11, 4001)
    loss = frontier.loss_at(N, C / (6 * N * B), B, params)
    best = N[loss.argmin(axis=1)]
    early = C[:, 0] <= 1e-3 * PF_DAY

    def slope(y: np.ndarray, which: np.ndarray | slice = slice(None)) -> float:
        return np.polyfit(np.log(C[which, 0]), np.log(y[which]), 1)[0]

    assert slope(best) == pytest.approx(0.80, abs=0.01)
    assert slope(best, early) == pytest.approx(0.85, abs=0.01)
    assert slope(best, ~early) == pytest.approx(0.77, abs=0.01)
    assert slope(loss.min(axis=1)) == pytest.approx(-0.0617, abs=5e-4)


def test_table_6() -> None:
    found = frontier.table6(PF_DAY, TABLE6)
    assert found.loss == pytest.approx(2.658, abs=5e-4)
    assert (found.N, found.S_min, found.B_crit) == (1.3e9, 5.4e3, 2.0e6)
    assert 6 * found.N * found.D_min / PF_DAY == pytest.approx(0.975, abs=5e-4)
    more = frontier.table6(10 * PF_DAY, TABLE6)
    assert pytest.approx(10**0.73) == more.N / found.N
    assert more.loss / found.loss == pytest.approx(10**-0.05)
    analytic = frontier.efficient(PF_DAY, KAPLAN)
    assert pytest.approx(2.2, abs=0.06) == found.N / analytic.N
    assert analytic.S_min / found.S_min == pytest.approx(2.4, abs=0.06)


@pytest.mark.parametrize(
    ("ratio", "cost", "steps"),
    [
        (0.5, 1.393, None), (0.6, 1.165, None), (1.0, 1.0, 1.0), (2.2, 1.204, 0.547),
        (3.0, 1.384, 0.461), (10.0, 2.839, 0.284), (0.658, 1.1, None), (1.715, 1.1, None),
    ],
)  # fmt: skip
def test_known_cost_of_another_size(ratio: float, cost: float, steps: float | None) -> None:
    assert frontier.excess_compute(ratio, KAPLAN) == pytest.approx(cost, abs=6e-4)
    if steps is not None:
        assert frontier.relative_steps(ratio, KAPLAN) == pytest.approx(steps, abs=6e-4)


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.9, 1.5, 10.0])
def test_cost_of_another_size_against_the_implicit_law(ratio: float) -> None:
    best = frontier.efficient(PF_DAY, KAPLAN)

    def excess(x: float) -> float:
        at = frontier.loss_at_compute(ratio * best.N, np.exp(x) * PF_DAY, KAPLAN)
        return float(at - best.loss)

    root: Any = optimize.brentq(excess, -1.0, 15.0, xtol=1e-12)
    expected = np.exp(root)
    assert frontier.excess_compute(ratio, KAPLAN) == pytest.approx(expected, rel=1e-8)
    assert frontier.relative_steps(ratio, KAPLAN) == pytest.approx(expected / ratio, rel=1e-8)


def test_a_size_too_small_never_reaches_the_loss() -> None:
    least = float(frontier.smallest_ratio(KAPLAN))
    assert least == pytest.approx(0.2856, abs=5e-5)
    for cost in (frontier.excess_compute, frontier.relative_steps):
        found = cost([0.1, 0.99 * least, 1.01 * least], KAPLAN)
        assert np.isinf(found[:2]).all() and np.isfinite(found[2])
    best = frontier.efficient(PF_DAY, KAPLAN)
    converged = (KAPLAN["N_c"] / (least * best.N)) ** KAPLAN["alpha_N"]
    assert converged == pytest.approx(best.loss, rel=1e-12)


def test_efficient_against_near_convergence() -> None:
    found = frontier.near_convergence(0.10, 0.02, {"alpha_N": 0.076, "alpha_S": 0.76})
    np.testing.assert_allclose(found, [2.70, 0.1329, 0.359], rtol=1.1e-3)
    exact = frontier.near_convergence(KAPLAN["alpha_N"] / KAPLAN["alpha_S"], 0.02, KAPLAN)
    np.testing.assert_allclose(exact, [2.708, 0.1308, 0.3542], rtol=5e-4)
    np.testing.assert_allclose(exact, [2.7, 1 / 7.7, 0.35], rtol=0.03)
    assert pytest.approx(exact.N * exact.S, rel=1e-14) == exact.C


def test_early_stopping_bound() -> None:
    gap = np.array([1.0, 0.1, 0.02])
    found = frontier.early_stopping_bound(3.0 + gap, 3.0, 2.1e3, 0.76)
    np.testing.assert_allclose(found, [2.1e3, 4.35e4, 3.61e5], rtol=2e-3)
    with pytest.raises(WorkError, match="No bound on 2 of 3"):
        frontier.early_stopping_bound([3.1, 3.0, 2.9], 3.0, 2.1e3, 0.76)


def test_required_data() -> None:
    assert frontier.required_data(1.0, TABLE2) == pytest.approx(5.52e3, rel=1e-3)
    N = np.geomspace(1e5, 1e11, 7)
    D = frontier.required_data(N, TABLE2)
    np.testing.assert_allclose(np.diff(np.log(D)) / np.diff(np.log(N)), 0.738, atol=5e-4)
    assert frontier.required_data(1e9, TABLE2) == pytest.approx(2.4e10, rel=0.01)
    np.testing.assert_allclose(frontier.overfitting(N, D, TABLE2), 0.02, rtol=1e-10)


def test_overfitting_is_that_of_the_joint_law() -> None:
    N, D = np.meshgrid(np.geomspace(1e4, 1e10, 4), np.geomspace(1e7, 1e11, 5))
    law = LAWS["l_nd"]
    direct = law.predict(TABLE2, N=N, D=D) / law.predict(TABLE2, N=N, D=np.inf) - 1
    np.testing.assert_allclose(frontier.overfitting(N, D, TABLE2), direct, rtol=1e-6)
    twice = frontier.overfitting(2 * N, D * 2 ** (0.076 / 0.103), TABLE2)
    np.testing.assert_allclose(twice, frontier.overfitting(N, D, TABLE2), rtol=1e-10)


def test_needed_data_grow_faster_than_those_trained_on() -> None:
    need, supply = frontier.data_growth(TABLE2, TABLE6)
    assert need == pytest.approx(0.54, abs=5e-3) and supply == 0.27
    other = frontier.data_growth(TABLE2, {**TABLE6, **published("kaplan2020.eq6_7").params})
    assert other.supply == 0.26 and other.need == need


@pytest.mark.parametrize(
    ("data", "C", "N", "D", "loss"),
    [
        ({}, 1.12e4, 1.17e12, 2.5e11, 1.668),
        (published("kaplan2020.eq6_7").params, 1.06e5, 6.1e12, 8.1e11, 1.490),
        ({"D_e": 4e10, "p_D": 0.27}, 1.67e5, 8.5e12, 1.03e12, 1.457),
    ],
)
def test_known_contradictions(data, C: float, N: float, D: float, loss: float) -> None:
    l_c, l_d = (published(f"kaplan2020.table5.{name}").params for name in ("l_c_min", "l_d"))
    found = frontier.contradiction(l_c, l_d, {**TABLE6, **data})
    assert found.C_min / PF_DAY == pytest.approx(C, rel=5e-3)
    assert pytest.approx(N, rel=0.01) == found.N
    assert pytest.approx(D, rel=0.01) == found.D
    assert found.loss == pytest.approx(loss, abs=5e-4)
    assert LAWS["l_d"].predict(l_d, D=found.D) == pytest.approx(found.loss, rel=1e-10)
    assert LAWS["l_c"].predict(l_c, C=found.C_min) == pytest.approx(found.loss, rel=1e-10)


def test_there_is_no_contradiction_where_data_allow_more_than_compute_gives() -> None:
    l_d = published("kaplan2020.table5.l_d").params
    slow = {"C_c": 3.1e8 * PF_DAY, "alpha_C": np.array([0.02, 0.05])}
    found = frontier.contradiction(slow, l_d, TABLE6)
    assert np.isinf([found.C_min[0], found.N[0], found.D[0]]).all() and found.loss[0] == 0.0
    assert found.C_min[1] / PF_DAY == pytest.approx(1.12e4, rel=5e-3)


def test_rounding_alone_leaves_the_contradiction_open_by_a_factor() -> None:
    found = frontier.contradiction_by_rounding(4000, seed=1)
    low, middle, high = np.quantile(found.C_min / PF_DAY, [0.05, 0.5, 0.95])
    assert middle == pytest.approx(1.12e4, rel=0.1)
    assert 2 < middle / low < 4 and 2 < high / middle < 4
    assert pytest.approx(found.N) == frontier.contradiction_by_rounding(4000, seed=1).N


def test_a_billion_times_the_compute() -> None:
    found = frontier.decompose(1e9, TABLE6)
    assert found["N"] == pytest.approx(3.7e6, rel=0.01)
    assert found["B"] == pytest.approx(145, rel=0.01)
    assert found["S"] == pytest.approx(1.86, rel=0.01)
    assert found["N"] * found["B"] * found["S"] == pytest.approx(1e9, rel=1e-10)
    analytic = frontier.decompose(10.0, frontier.exponents(KAPLAN))
    ten, one = (frontier.efficient(days * PF_DAY, KAPLAN) for days in (10.0, 1.0))
    assert analytic["N"] == pytest.approx(ten.N / one.N)
    assert analytic["S"] == pytest.approx(ten.S_min / one.S_min)
    assert analytic["D"] == pytest.approx(ten.D_min / one.D_min)


def test_wrong_requests() -> None:
    with pytest.raises(RequestError, match="Missing parameter: B_star"):
        frontier.efficient(1e20, published("kaplan2020.table3").params)
    with pytest.raises(RequestError, match="C_min = nan not positive"):
        frontier.efficient(np.nan, KAPLAN)
    with pytest.raises(RequestError, match="1 of 2 values of N "):
        frontier.loss_at([1e6, 0.0], 1e3, 1e5, KAPLAN)
    with pytest.raises(RequestError, match="alpha_N = 0"):
        frontier.exponents({**KAPLAN, "alpha_N": 0.0})
