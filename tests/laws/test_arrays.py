"""Checks of numbers from outside: what passes, and what is said of the rest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling_jax.errors import RequestError
from scaling_jax.laws.arrays import columns, labels, positive, require, values

BAD = [0.0, -1.0, np.nan, np.inf]


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=8))
def test_what_passes_is_positive_and_finite(given_values: list[float]) -> None:
    good = all(0 < value < np.inf for value in given_values)
    for check in (lambda: positive("N", given_values), lambda: columns(N=given_values)[0]):
        if good:
            np.testing.assert_array_equal(check(), given_values)
        else:
            with pytest.raises(RequestError, match="N not positive and finite"):
                check()


@pytest.mark.parametrize("bad", BAD)
def test_the_fault_is_counted_and_named(bad: float) -> None:
    with pytest.raises(RequestError, match=f"^C = {bad} not positive and finite$"):
        positive("C", bad)
    with pytest.raises(RequestError, match=r"^2 of 4 values of C not positive and finite$"):
        positive("C", [[1.0, bad], [bad, 2.0]])
    with pytest.raises(RequestError, match=r"^1 row of loss not positive and finite$"):
        columns(N=[1.0, 2.0], loss=[bad, 2.0])
    with pytest.raises(RequestError, match=r"^2 rows of loss not positive and finite$"):
        columns(loss=[bad, bad], N=[1.0, 2.0])
    with pytest.raises(RequestError, match=f"^alpha = {bad} not positive and finite$"):
        values({"A": 1.0, "alpha": bad}, "A", "alpha")


def test_parameters_are_those_asked_for_in_the_order_asked() -> None:
    alpha, A = values({"A": [1, 2], "alpha": 0.3, "E": 0.0}, "alpha", "A")
    assert alpha == 0.3 and A.dtype == np.float64 and A.tolist() == [1.0, 2.0]
    with pytest.raises(RequestError, match=r"^Missing parameter: B, beta$"):
        values({"A": 1.0}, "A", "B", "beta")
    require({"E": 0.0}, "E")
    with pytest.raises(RequestError, match=r"^Missing parameter: E$"):
        require({}, "E")


def test_one_number_is_repeated_and_other_lengths_are_not() -> None:
    N, batch = columns(N=[1, 2, 3], batch=7)
    assert N.tolist() == [1.0, 2.0, 3.0] and batch.tolist() == [7.0] * 3
    assert [each.shape for each in columns(batch=7, N=[1, 2])] == [(2,), (2,)]
    assert columns(batch=7)[0].shape == (1,)
    assert columns(N=[])[0].shape == (0,)
    with pytest.raises(RequestError, match=r"^loss has shape \(2,\), N \(3,\)$"):
        columns(N=[1, 2, 3], loss=[1, 2])
    with pytest.raises(RequestError, match=r"^N has shape \(1, 2\): one number a row is needed$"):
        columns(N=[[1, 2]], loss=[1, 2])


def test_labels_are_strings_one_a_row() -> None:
    assert labels("run", [1, 2], np.ones(2)).tolist() == ["1", "2"]
    with pytest.raises(RequestError, match=r"^run has shape \(2,\), not \(3,\)$"):
        labels("run", ["a", "b"], np.ones(3))
