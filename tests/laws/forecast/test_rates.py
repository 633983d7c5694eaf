"""The learning rate as pieces: integrals and falls against sums over every step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling_jax.errors import RequestError
from scaling_jax.laws.forecast.rates import PIECES, drops, make_rates, progress


def test_progress_of_power_one_is_the_sum_of_the_rates():
    rates = make_rates([100, 200, 1000], [3e-4, 3e-4, 1e-4])
    # A triangle of warm-up, a rectangle, and a trapezium.
    assert progress(rates, [100, 200, 1000], 1.0) == pytest.approx(
        [50 * 3e-4, 150 * 3e-4, 150 * 3e-4 + 800 * 2e-4]
    )


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.floats(1e-5, 1e-3), min_size=2, max_size=8),
    st.floats(0.3, 1.0),
)
def test_progress_is_the_integral_of_the_power(values, power):
    step = 100.0 * np.arange(1, len(values) + 1)
    rates = make_rates(step, values)
    fine = np.linspace(0, step[-1], 200_001)
    middle = (fine[1:] + fine[:-1]) / 2
    brute = np.sum(rates.at(middle) ** power) * (fine[1] - fine[0])
    assert progress(rates, step[-1:], power)[0] == pytest.approx(brute, rel=1e-4)


def test_warm_up_of_known_length_ends_before_the_first_row():
    rates = make_rates([100.0, 200.0], [1e-3, 1e-3], warmup_steps=20)
    assert rates.at([10.0, 20.0, 60.0]) == pytest.approx([5e-4, 1e-3, 1e-3])
    without = make_rates([100.0, 200.0], [1e-3, 1e-3], warmup_steps=0)
    assert without.at([1.0]) == pytest.approx([1e-3])


def test_falls_add_up_to_what_the_rate_is():
    step = np.arange(1.0, 501.0)
    lr = 1e-3 * (1 + np.cos(np.pi * step / 500)) / 2
    changes = drops(make_rates(step, lr), step[::7])
    assert changes.fall.shape[1] <= PIECES + 2
    assert -changes.fall.sum(axis=1) == pytest.approx(lr[::7], rel=1e-9)
    assert np.all(changes.area >= 0) and np.all(changes.age >= 0)
    # A fall that has not begun is none.
    assert changes.fall[0, -1] == 0


def test_a_constant_rate_has_its_warm_up_alone():
    changes = drops(make_rates([10.0, 1000.0], [1e-3, 1e-3]), np.array([10.0, 500.0]))
    assert changes.fall.tolist() == [[-1e-3], [-1e-3]]
    # A rate that does not rise to its first value begins there: it was 0 before the first step.
    changes = drops(make_rates([0.0, 1000.0], [1e-3, 1e-3]), np.array([10.0]))
    assert changes.fall.tolist() == [[-1e-3]]
    assert changes.area[0, 0] == pytest.approx(10 * 1e-3)


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        ([1.0, 2.0], [1e-3]),
        ([2.0, 1.0], [1e-3, 1e-3]),
        ([1.0, 2.0], [1e-3, -1e-3]),
        ([1.0, 2.0], [0.0, 0.0]),
        ([1.0, 2.0], [1e-3, np.nan]),
        ([], []),
    ],
)
def test_what_is_no_learning_rate_is_refused(step, lr):
    with pytest.raises(RequestError):
        make_rates(step, lr)
