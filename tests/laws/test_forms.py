"""L(N, S) and the batch-size correction against values that papers print or algebra gives."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from scaling_jax.errors import RequestError
from scaling_jax.laws.forms import L_NS, critical_batch, find_law, minimum_steps
from scaling_jax.laws.published import PUBLISHED, published

TABLE3 = {"N_c": 6.5e13, "S_c": 2.1e3, "alpha_N": 0.077, "alpha_S": 0.76}


def test_prediction_is_the_formula_in_float64() -> None:
    N, S = np.array([[1e5], [1e9]]), np.array([3e3, 2.5e5, 1e7])
    expected = (6.5e13 / N) ** 0.077 + (2.1e3 / S) ** 0.76
    found = L_NS.predict(TABLE3, N=N, S=S)
    assert found.dtype == np.float64 and found.shape == (2, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_limits_are_the_single_laws() -> None:
    np.testing.assert_allclose(
        L_NS.predict(TABLE3, N=1e8, S=np.inf), (6.5e13 / 1e8) ** 0.077, rtol=1e-13
    )
    np.testing.assert_allclose(
        L_NS.predict(TABLE3, N=np.inf, S=1e5), (2.1e3 / 1e5) ** 0.76, rtol=1e-13
    )
    assert L_NS.predict(TABLE3, N=np.inf, S=np.inf) == 0.0


def test_inner_coordinates_go_both_ways() -> None:
    log_params = np.log([TABLE3[name] for name in L_NS.params])
    centre = np.array([14.0, 9.0])
    theta = L_NS.from_log_params(log_params, centre, 1.2)
    np.testing.assert_allclose(L_NS.to_log_params(theta, centre, 1.2), log_params, rtol=1e-13)


def test_float64_does_not_leak() -> None:
    L_NS.predict(TABLE3, N=1e8, S=1e5)
    assert not jax.config.read("jax_enable_x64")


def test_wrong_names_are_told() -> None:
    with pytest.raises(RequestError, match=r"no parameter 'S_d'. Did you mean 'S_c'"):
        L_NS.predict({**TABLE3, "S_d": 1.0}, N=1.0, S=1.0)
    with pytest.raises(RequestError, match="needs the input S"):
        L_NS.predict(TABLE3, N=1.0)
    with pytest.raises(RequestError, match=r"No law 'l_nss'. Did you mean 'l_ns'"):
        find_law("l_nss")
    with pytest.raises(RequestError, match=r"kaplan2020\.table3"):
        published("kaplan2020.table")


def test_critical_batch_doubles_for_13_percent_and_has_the_printed_values() -> None:
    for loss, tokens in ((4.0, 2.7e5), (3.0, 1.07e6), (2.0, 7.4e6)):
        np.testing.assert_allclose(critical_batch(loss, 2e8, 0.21), tokens, rtol=0.02)
    ratio = critical_batch(0.87, 2e8, 0.21) / critical_batch(1.0, 2e8, 0.21)
    np.testing.assert_allclose(ratio, 1.94, rtol=0.01)


def test_at_the_critical_batch_steps_are_twice_the_minimum() -> None:
    batch = critical_batch(3.0, 2.1e8, 0.21)
    np.testing.assert_allclose(minimum_steps(1000.0, 3.0, batch, 2.1e8, 0.21), 500.0)
    np.testing.assert_allclose(minimum_steps(1000.0, 3.0, 1e12, 2.1e8, 0.21), 1000.0, rtol=1e-5)


def test_published_sets_are_named_and_sourced() -> None:
    assert published("kaplan2020.table3").params == TABLE3
    assert published("kaplan2020.b_crit").params == {"B_star": 2.1e8, "alpha_B": 0.21}
    assert all(name == c.name and "arXiv" in c.source for name, c in PUBLISHED.items())
