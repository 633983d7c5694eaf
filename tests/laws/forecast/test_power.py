"""Power laws of one curve against curves that are power laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from scaling_jax.laws.forecast.power import (
    offsets,
    power_law,
    power_offset,
    power_offset_by_hindcast,
)

STEPS = np.arange(100.0, 10_001.0, 100.0)
shapes = {
    "E": st.floats(0.5, 3.0),
    "A": st.floats(0.3, 3.0),  # at the first step
    "alpha": st.floats(0.15, 1.5),
}


@settings(max_examples=50, deadline=None)
@given(**shapes)
def test_offset_without_noise(E: float, A: float, alpha: float) -> None:
    def truth(step):
        return E + A * (np.asarray(step) / 100) ** -alpha

    loss = truth(STEPS)
    for form in (power_offset, power_offset_by_hindcast):
        assert form(STEPS, loss, 50_000) == pytest.approx(float(truth(50_000)), abs=2e-3 * A)


@given(**shapes)
@settings(max_examples=30, deadline=None)
def test_power_law_without_noise(E: float, A: float, alpha: float) -> None:
    found = power_law(STEPS, A * STEPS**-alpha, 1e5)
    assert found == pytest.approx(A * 1e5**-alpha, rel=1e-9)
    assert E > 0


def test_offsets_are_the_least_squares_of_every_window() -> None:
    rng = np.random.default_rng(0)
    loss = 2 + 3 * (STEPS / 100) ** -0.6 + 0.01 * rng.standard_normal(STEPS.size)
    first, last = np.array([0, 10, 30]), np.array([100, 60, 100])
    fits = offsets(STEPS, loss, first, last)

    def form(step, E, A, alpha):
        return E + A * (step / 1e4) ** -alpha

    for window, (begin, end) in enumerate(zip(first, last, strict=True)):
        part = slice(begin, end)
        best, _ = curve_fit(form, STEPS[part], loss[part], p0=(2, 0.2, 0.6))
        assert fits.at(3e4)[window] == pytest.approx(form(3e4, *best), abs=3e-4)
        assert fits.alpha[window] == pytest.approx(best[2], rel=0.02)


def test_burn_in_is_found() -> None:
    # A transient of the first steps bends the whole fit; the fit that begins later is without it.
    loss = 2 + 3 * (STEPS / 100) ** -0.5 + 3 * np.exp(-STEPS / 300)
    truth = 2 + 3 * 500**-0.5
    error = {
        form: abs(form(STEPS, loss, 50_000) - truth)
        for form in (power_offset, power_offset_by_hindcast)
    }
    assert error[power_offset_by_hindcast] < 0.6 * error[power_offset]
    assert error[power_offset_by_hindcast] < 0.01


def test_the_prior_holds_few_points() -> None:
    rng = np.random.default_rng(1)
    step = np.arange(5000.0, 10_001, 500)
    truth = 2 + 3 * 500**-0.5
    window = np.array([0]), np.array([step.size])
    errors = {True: [], False: []}
    for _ in range(100):
        loss = 2 + 3 * (step / 100) ** -0.5 + 0.004 * rng.standard_normal(step.size)
        for prior, found in errors.items():
            found.append(offsets(step, loss, *window, prior=prior).at(50_000)[0] - truth)
    free, held = np.nanmean(np.square(errors[False])), np.nanmean(np.square(errors[True]))
    assert held < 0.5 * free


def test_what_cannot_be_fitted_is_none() -> None:
    rising = np.linspace(2.0, 3.0, STEPS.size)
    assert power_offset(STEPS, rising, 2e4) is None
    assert power_offset_by_hindcast(STEPS, rising, 2e4) is None
    few = STEPS[:3]
    assert power_offset(few, 1 / few, 2e4) is None
    assert power_offset_by_hindcast(few, 1 / few, 2e4) is None
    assert power_law(STEPS[:2], 1 / STEPS[:2], 2e4) is None


def test_many_points_are_averaged() -> None:
    step = np.arange(1.0, 20_001.0)
    loss = 2 + 3 * (step / 100) ** -0.5
    truth = 2 + 3 * 1000**-0.5
    for form in (power_offset, power_offset_by_hindcast):
        assert form(step, loss, 1e5) == pytest.approx(truth, abs=3e-3)
