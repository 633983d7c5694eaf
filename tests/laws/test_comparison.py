"""Three forms of the loss in one variable: each is known by its predictions, or nothing is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from scaling_jax import laws
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.comparison import UNDECIDED, Form, compare_forms
from scaling_jax.records.store import Records

N = np.geomspace(1e4, 1e9, 12)
TRUTHS = {
    "power_law": (8.8e13 / N) ** 0.076,
    "power_law_offset": 1.7 + (1e7 / N) ** 0.34,
    "logarithm": 10.5 - 0.37 * np.log(N),
}
PARAMS = {
    "power_law": {"N_c": 8.8e13, "alpha_N": 0.076},
    "power_law_offset": {"E": 1.7, "N_c": 1e7, "alpha_N": 0.34},
    "logarithm": {"a": 10.5, "b": 0.37},
}


def noisy(truth: str, noise: float, seed: int) -> np.ndarray:
    return TRUTHS[truth] * np.exp(noise * np.random.default_rng(seed).normal(size=N.size))


def error(form: Form) -> float:
    assert form.held_out is not None
    return form.held_out


@pytest.mark.parametrize("truth", TRUTHS)
def test_the_form_and_its_constants_come_back_without_noise(truth: str) -> None:
    found = compare_forms(N, TRUTHS[truth])
    assert found.chosen == truth and found.contenders == (truth,)
    form = found.forms[truth]
    assert form.params == pytest.approx(PARAMS[truth], rel=1e-8)
    assert form.rms_log_residual < 1e-9
    assert form.held_out == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_allclose(found.predict(truth, N), TRUTHS[truth], rtol=1e-9)
    np.testing.assert_allclose(found.held_out_values, N[-3:])


def test_aic_and_held_out_error_tell_power_law_from_logarithm_both_ways() -> None:
    for seed in range(20):
        power = compare_forms(N, noisy("power_law", 0.01, seed)).forms
        straight = compare_forms(N, noisy("logarithm", 0.01, seed)).forms
        assert power["logarithm"].aic - power["power_law"].aic > 10
        assert straight["logarithm"].aic - straight["power_law"].aic < -10
        assert error(power["logarithm"]) > 3 * error(power["power_law"])
        assert error(straight["logarithm"]) < error(straight["power_law"]) / 2


@pytest.mark.parametrize("noise", [0.002, 0.01])
def test_noise_seldom_chooses_the_wrong_form(noise: float) -> None:
    for truth in TRUTHS:
        chosen = Counter(compare_forms(N, noisy(truth, noise, seed)).chosen for seed in range(25))
        assert chosen[truth] + chosen[UNDECIDED] >= 24
        assert chosen[truth] >= 9


def test_what_noise_covers_is_left_undecided() -> None:
    flat = 3.0 * (N / N[0]) ** -0.005
    found = compare_forms(N, flat * np.exp(0.01 * np.random.default_rng(1).normal(size=N.size)))
    assert found.chosen == UNDECIDED and len(found.contenders) >= 2
    assert "noise" in found.reason and "largest N" in found.reason


def test_a_constant_that_adds_nothing_is_told_and_does_not_compete() -> None:
    found = compare_forms(N, noisy("logarithm", 0.002, 1))
    offset, plain = found.forms["power_law_offset"], found.forms["power_law"]
    assert offset.at_bound and offset.params["E"] == 0.0
    assert offset.params == {"E": 0.0, **plain.params}
    assert offset.aic == plain.aic and "power_law_offset" not in found.contenders


def test_scipy_finds_no_better_fit() -> None:
    loss = noisy("power_law_offset", 0.02, 3)
    found = compare_forms(N, loss)
    for name, form in found.forms.items():
        start = np.array([value for value in form.params.values() if value is not None])

        def squares(theta: np.ndarray, name: str = name) -> float:
            if name == "logarithm":
                model = theta[0] - theta[1] * np.log(N)
            else:
                model = (theta[-2] / N) ** theta[-1] + (theta[0] if theta.size == 3 else 0.0)
            if np.any(~(model > 0)):
                return 1e9
            return float(np.mean((np.log(loss) - np.log(model)) ** 2))

        at = form.rms_log_residual**2
        assert squares(start) == pytest.approx(at, rel=1e-9)
        other = optimize.minimize(squares, start * 1.001, method="Nelder-Mead")
        assert other.fun > at * (1 - 1e-9)


def test_a_line_that_crosses_zero_predicts_nothing() -> None:
    found = compare_forms(N, TRUTHS["power_law_offset"])
    line = found.forms["logarithm"]
    assert line.held_out is None and line.noise is None
    assert "logarithm" not in found.contenders


@settings(max_examples=25, deadline=None)
@given(st.floats(-6, 6), st.floats(0.5, 3.0), st.integers(0, 10_000))
def test_units_change_the_constants_and_nothing_else(shift: float, scale: float, seed: int) -> None:
    loss = noisy("power_law", 0.01, seed)
    found, other = compare_forms(N, loss), compare_forms(N * 10**shift, loss * scale, "D")
    assert found.chosen == other.chosen
    assert other.forms["power_law"].params["alpha_D"] == pytest.approx(
        found.forms["power_law"].params["alpha_N"]
    )
    for name, form in found.forms.items():
        assert other.forms[name].aic == pytest.approx(form.aic, abs=1e-3)


def test_bad_tables_are_refused() -> None:
    loss = TRUTHS["power_law"]
    assert compare_forms(N[:5], loss[:5]).held_out_values.size == 1
    with pytest.raises(WorkError, match="4 distinct N cannot tell forms apart: at least 5"):
        compare_forms(np.repeat(N[:4], 3), np.repeat(loss[:4], 3))
    with pytest.raises(WorkError, match="does not fall as C grows"):
        compare_forms(N, loss[::-1], "C")
    with pytest.raises(RequestError, match="1 row of D not positive and finite"):
        compare_forms(np.where(N < 2e4, -1.0, N), loss, "D")
    with pytest.raises(RequestError, match="N has shape"):
        compare_forms(N[:5], loss)


def test_a_scale_beyond_floats_is_null_and_not_infinite() -> None:
    found = compare_forms(N, 5.0 * (N / N[0]) ** -1e-4)
    assert found.forms["power_law"].params["N_c"] is None
    with pytest.raises(WorkError, match="N_c is too large for a number"):
        found.predict("power_law", N)


def test_forms_stand_beside_the_fit_of_a_law_in_one_variable(read: Callable[..., Records]) -> None:
    size = np.geomspace(1e6, 1e9, 12)
    table = read(params=size, loss=1.5 + (1e8 / size) ** 0.3)
    for law in ("l_n", "l_n_offset"):
        fit = laws.fit(table, law=law)
        assert fit.forms is not None
        assert fit.forms == compare_forms(size, table.curves["loss"], "N").to_json()
        assert fit.forms["chosen"] == "power_law_offset"
        doc = json.loads(json.dumps(fit.to_json(), allow_nan=False))
        assert doc["forms"] == fit.forms
        assert "Form of N: power law offset; rms error at the largest N" in laws.describe(fit)
    few = laws.fit(read(params=size[:4], loss=(1e8 / size[:4]) ** 0.3), law="l_n")
    assert few.forms is None and few.to_json()["forms"] is None
    assert "Form of" not in laws.describe(few)
