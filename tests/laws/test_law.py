"""Every law: its prediction against its formula, its limits, its inverse, its coordinates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling_jax.errors import RequestError
from scaling_jax.laws.forms import LAWS
from scaling_jax.laws.law import Term, float64_cpu, sum_of_powers


def test_there_is_a_case_for_every_law(cases) -> None:
    assert set(cases) == set(LAWS)


def test_prediction_is_the_formula(case) -> None:
    found = LAWS[case.slug].predict(case.params, **case.inputs)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, case.output, rtol=1e-12)


def test_a_law_says_what_it_is(case) -> None:
    law = LAWS[case.slug]
    assert law.slug == case.slug and "arXiv" in law.source
    assert set(law.params) == set(case.params)
    assert set(law.exponents) <= set(law.params)
    assert len(law.coordinates) == law.lower.size and set(law.coordinates) <= set(law.params)
    for name in (*law.inputs, *(set(law.params) - {"B_crit"})):
        assert name in law.formula
    starts = law.starts
    assert starts.shape[1] == law.lower.size == law.upper.size and len(starts) >= 3
    assert np.all((law.lower < starts) & (starts < law.upper))


def test_inner_coordinates_predict_the_same_from_any_centre(case) -> None:
    law = LAWS[case.slug]
    log_params = np.log([case.params[name] for name in law.params])
    x = np.log(np.stack([case.inputs[name] for name in law.inputs]))
    x0, y0 = x.mean(axis=1) + 0.7, 0.4
    theta = law.from_log_params(log_params, x0, y0)
    np.testing.assert_allclose(law.to_log_params(theta, x0, y0), log_params, rtol=1e-12)
    with jax.enable_x64(True), float64_cpu():
        y = np.asarray(law.log_predict(jnp.asarray(theta), jnp.asarray(x - x0[:, None]), x0, y0))
    np.testing.assert_allclose(np.exp(y + y0), case.output, rtol=1e-12)


@settings(max_examples=150)
@given(st.sampled_from(sorted(LAWS)), st.data())
def test_inner_coordinates_go_both_ways(slug: str, data: st.DataObject) -> None:
    law = LAWS[slug]
    theta = np.array(
        [data.draw(st.floats(*ends)) for ends in zip(law.lower, law.upper, strict=True)]
    )
    x0 = np.array([data.draw(st.floats(-5, 45)) for _ in law.inputs])
    y0 = data.draw(st.floats(-5, 20))
    log_params = law.to_log_params(theta, x0, y0)
    assert log_params.shape == (len(law.params),)
    np.testing.assert_allclose(law.from_log_params(log_params, x0, y0), theta, atol=1e-9)
    many = np.stack([theta, law.lower, law.upper])
    np.testing.assert_allclose(law.to_log_params(many, x0, y0)[0], log_params, rtol=1e-12)


@pytest.mark.parametrize("symbol", ["N", "D", "C"])
def test_single_laws_end_at_nothing_or_at_the_irreducible_loss(cases, symbol) -> None:
    plain, above = cases[f"l_{symbol.lower()}"], cases[f"l_{symbol.lower()}_offset"]
    assert LAWS[plain.slug].predict(plain.params, **{symbol: np.inf}) == 0.0
    assert LAWS[above.slug].predict(above.params, **{symbol: np.inf}) == pytest.approx(1.5)
    assert LAWS[plain.slug].predict(plain.params, **{symbol: 0.0}) == np.inf
    without = {**above.params, "E": 0.0}
    found = LAWS[above.slug].predict(without, **above.inputs)
    np.testing.assert_allclose(found, above.output - 1.5, rtol=1e-9)


def test_the_limits_of_two_inputs(cases) -> None:
    joint = cases["l_nd"].params
    N, D = 3e7, 4e9
    predict = LAWS["l_nd"].predict
    size = (joint["N_c"] / N) ** joint["alpha_N"]
    data = (joint["D_c"] / D) ** joint["alpha_D"]
    np.testing.assert_allclose(predict(joint, N=N, D=np.inf), size, rtol=1e-12)
    np.testing.assert_allclose(predict(joint, N=np.inf, D=D), data, rtol=1e-12)
    assert predict(joint, N=np.inf, D=np.inf) == 0.0
    p = cases["l_nd_chinchilla"].params
    predict = LAWS["l_nd_chinchilla"].predict
    np.testing.assert_allclose(predict(p, N=np.inf, D=np.inf), p["E"], rtol=1e-12)
    size, data = p["A"] / N ** p["alpha"], p["B"] / D ** p["beta"]
    np.testing.assert_allclose(predict(p, N=N, D=np.inf), p["E"] + size, rtol=1e-12)
    np.testing.assert_allclose(predict(p, N=np.inf, D=D), p["E"] + data, rtol=1e-12)
    pareto = cases["pareto"].params
    assert LAWS["pareto"].predict(pareto, B=np.inf) == pytest.approx(pareto["S_min"])
    steps = LAWS["pareto"].predict(pareto, B=pareto["B_crit"])
    assert steps == pytest.approx(2 * pareto["S_min"])
    small = LAWS["pareto"].predict(pareto, B=1e-3)
    assert small * 1e-3 == pytest.approx(pareto["E_min"])


def effective_data(params, epochs: float, N: float = 1e5, U: float = 1e9) -> float:
    """D' / U of a model below the size that is optimal for U."""
    loss = LAWS["data_constrained"].predict(params, N=N, D=epochs * U, U=U)
    left = loss - params["E"] - params["A"] / N ** params["alpha"]
    return float((params["B"] / left) ** (1 / params["beta"])) / U


@pytest.mark.parametrize(
    ("epochs", "worth", "digit"),
    [(0.5, 0.5, 1e-6), (1, 1, 1e-6), (4, 3.73, 5e-3), (16, 10.58, 5e-3), (np.inf, 16.39, 5e-3)],
)
def test_repeated_data_are_worth_less(cases, epochs, worth, digit) -> None:
    assert effective_data(cases["data_constrained"].params, epochs) == pytest.approx(
        worth, abs=digit
    )


def test_a_size_beyond_what_the_data_carry_is_worth_less(cases) -> None:
    p = cases["data_constrained"].params
    U = 1e8
    U_N = 0.051 * U  # Muennighoff et al. 2023
    loss = LAWS["data_constrained"].predict(p, N=np.inf, D=U, U=U)
    left = loss - p["E"] - p["B"] / U ** p["beta"]
    assert (p["A"] / left) ** (1 / p["alpha"]) / U_N == pytest.approx(6.309743, rel=0.01)


def test_the_inverse_gives_the_first_input_back(case) -> None:
    law = LAWS[case.slug]
    last = {name: float(column[-1]) for name, column in case.inputs.items()}
    output = float(law.predict(case.params, **last))
    first, *others = law.inputs
    found = law.invert(case.params, output, **{name: last[name] for name in others})
    assert found == pytest.approx(last[first], rel=1e-9)


def test_the_inverse_says_what_cannot_be_reached(cases) -> None:
    law, p = LAWS["l_nd_chinchilla"], cases["l_nd_chinchilla"].params
    floor = p["E"] + p["B"] / 1e10 ** p["beta"]
    assert law.invert(p, floor * 0.999, D=1e10) == np.inf
    assert np.isfinite(law.invert(p, floor * 1.001, D=1e10))
    assert LAWS["l_n"].invert(cases["l_n"].params, 1e30) == 0.0
    for output in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(RequestError, match="no inverse"):
            law.invert(p, output, D=1e10)
    with pytest.raises(RequestError, match="needs the input D"):
        law.invert(p, 3.0)


def test_wrong_names_are_told(case) -> None:
    law = LAWS[case.slug]
    with pytest.raises(RequestError, match=rf"{case.slug} has no parameter 'gamma'"):
        law.predict({**case.params, "gamma": 1.0}, **case.inputs)
    with pytest.raises(RequestError, match=f"needs the parameter {law.params[0]}"):
        law.predict({n: case.params[n] for n in law.params[1:]}, **case.inputs)
    with pytest.raises(RequestError, match="has no input 'tokens'"):
        law.predict(case.params, **case.inputs, tokens=1.0)


def test_a_new_law_is_one_entry() -> None:
    law = sum_of_powers(
        "three",
        (Term("N", "N_c", "alpha_N"), Term("D", "B", "beta", ratio=False),
         Term("S", "S_c", "alpha_S")),
        "L = E + (N_c / N)^alpha_N + B / D^beta + (S_c / S)^alpha_S",
        "this test",
        offset="E",
        powers=((0.1, 0.3), (0.1, 0.3), (0.5,)),
    )  # fmt: skip
    assert law.params == ("N_c", "B", "S_c", "alpha_N", "beta", "alpha_S", "E")
    params = {"E": 1.2, "N_c": 1e9, "B": 300.0, "S_c": 40.0,
              "alpha_N": 0.2, "beta": 0.3, "alpha_S": 0.7}  # fmt: skip
    N, D, S = np.geomspace(1e6, 1e9, 5), 2e9, np.array([100.0, 1e4, 1e5, 1e6, np.inf])
    expected = 1.2 + (1e9 / N) ** 0.2 + 300 / D**0.3 + (40 / S) ** 0.7
    np.testing.assert_allclose(law.predict(params, N=N, D=D, S=S), expected, rtol=1e-12)
    assert len(law.starts) == 2 * 2 * 4
