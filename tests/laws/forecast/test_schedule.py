"""Fits of schedule laws: curves of known truth, what is refused, and the real curves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.forecast.rates import make_rates
from scaling_jax.laws.forecast.schedule import falls, fit_schedule_law, fit_shape
from scaling_jax.laws.forecast.schedule_laws import ANNEALING, MULTI_POWER
from scaling_jax.laws.forecast.schedule_shapes import (
    ALPHA,
    Basis,
    Expected,
    basis,
    mean_moments,
    moments_of,
    solve_sizes,
)
from tests.laws.forecast.multipowerlaw import (
    SCHEDULES,
    SIZES,
    curve_of,
    have_multipowerlaw,
    plan_of,
)

TRUTH = {"L0": 2.5, "A": 3.0, "B": 400.0, "alpha": float(ALPHA[11]), "q": 0.6}
OF_LAW = {"multi_power": {"C": 2.07, "beta": 0.59, "gamma": 0.645}, "annealing": {"tau": 958.0}}
STEP = np.arange(400.0, 20001.0, 100.0)


def cosine(peak: float = 3e-4) -> np.ndarray:
    return peak * (0.1 + 0.9 * (1 + np.cos(np.pi * STEP / STEP[-1])) / 2)


def constant(peak: float = 3e-4) -> np.ndarray:
    return np.full(STEP.size, peak)


def wsd(peak: float = 3e-4) -> np.ndarray:
    return peak * np.clip((STEP[-1] - STEP) / 4000 + 0.05, 0.0, 1.0)


def a_curve(
    lr, law=MULTI_POWER, name="run", noise=0.0, size: float | None = 1e8, **params
) -> Curve:
    truth = TRUTH | OF_LAW[law.slug] | params
    loss = law.predict(truth, make_rates(STEP, lr), STEP)
    rng = np.random.default_rng(len(name))
    loss = loss * np.exp(noise * rng.standard_normal(loss.size))
    return Curve(run_id=name, name=name, step=STEP, loss=loss, lr=lr, size=size)


def rows(lr: np.ndarray) -> np.ndarray:
    return np.stack([STEP, lr], axis=1)


def the_basis(curve: Curve) -> Basis:
    found = basis(MULTI_POWER, curve)
    assert found is not None
    return found


@pytest.mark.parametrize("law", [MULTI_POWER, ANNEALING])
def test_another_schedule_of_known_truth(law):
    seen = [a_curve(constant(), law, "constant"), a_curve(cosine(), law, "cosine")]
    fit = fit_schedule_law(seen, law.slug)
    hidden = a_curve(wsd(), law)
    predicted = fit.predict(plan_of(hidden), STEP[::20])
    assert predicted == pytest.approx(hidden.loss[::20], abs=2e-3)
    assert sum(shape.weight for shape in fit.shapes) == pytest.approx(1.0)
    assert fit.params["q"] == 0.6 and fit.rms_log_residual < 1e-3


def test_noise_and_an_outlier_hardly_move_it():
    seen = [a_curve(constant(), noise=0.003, name="c"), a_curve(cosine(), noise=0.003, name="cos")]
    wrong = seen[0].loss.copy()
    wrong[100] *= 1.1
    fit = fit_schedule_law([replace(seen[0], loss=wrong), seen[1]])
    hidden = a_curve(wsd())
    assert fit.predict(plan_of(hidden), [20000.0])[0] == pytest.approx(hidden.loss[-1], abs=0.01)


def test_a_model_that_shares_the_shape_needs_no_fall_of_its_own():
    others = [
        [
            a_curve(lr, name=name, size=size, L0=2.5 + shift, A=3.0 - shift, B=400.0)
            for name, lr in (("constant", constant()), ("wsd", wsd()))
        ]
        for size, shift in ((1e7, 0.3), (3e7, 0.15))
    ]
    own = a_curve(wsd(), L0=2.5, A=2.85, B=400.0).until(12000)
    assert not falls(own)
    fit = fit_schedule_law([own], shared=others)
    hidden = a_curve(wsd(), L0=2.5, A=2.85, B=400.0)
    assert fit.predict(plan_of(hidden), [20000.0])[0] == pytest.approx(hidden.loss[-1], abs=0.01)


def test_rates_by_step_and_by_row_are_one():
    fit = fit_schedule_law([a_curve(constant(), name="a"), a_curve(cosine(), name="b")])
    by_step = np.interp(np.arange(1, 20001), STEP, cosine())
    by_step[:400] = by_step[400] * np.arange(1, 401) / 400
    one = fit.predict(by_step, [5000.0, 20000.0])
    other = fit.predict(rows(cosine()), [20000.0, 5000.0])[::-1]
    assert one == pytest.approx(other, abs=1e-3)


def test_what_cannot_be_fitted_is_refused():
    curve = a_curve(cosine())
    with pytest.raises(RequestError, match="No schedule law"):
        fit_schedule_law([curve], "anneal")
    with pytest.raises(RequestError, match="lr=COLUMN"):
        fit_schedule_law([replace(curve, lr=None)])
    with pytest.raises(WorkError, match="no curve falls"):
        fit_schedule_law([a_curve(constant())])
    with pytest.raises(WorkError, match="too few"):
        fit_schedule_law([curve.where(STEP < 600)])
    with pytest.raises(WorkError, match="do not fall"):
        fit_schedule_law([replace(curve, loss=curve.loss[::-1].copy())])
    with pytest.raises(RequestError, match="No curve"):
        fit_schedule_law([])
    fit = fit_schedule_law([a_curve(constant(), name="a"), curve])
    with pytest.raises(RequestError, match="up to the last"):
        fit.predict(rows(cosine()), [30000.0])
    with pytest.raises(RequestError, match="shape"):
        fit.predict(np.zeros((2, 3)), [1.0])


def test_sizes_are_those_of_least_squares():
    curves = [a_curve(constant(), noise=0.01, name="a"), a_curve(cosine(), noise=0.01, name="bb")]
    bases = [the_basis(curve) for curve in curves]
    moments = mean_moments(moments_of(each, np.ones_like(each.y)) for each in bases)
    sizes = solve_sizes(moments)
    shape, kernel = 51, 2
    x = np.concatenate(
        [
            np.stack([np.ones_like(each.y), each.power[shape], -each.gain[kernel]], axis=1)
            * np.sqrt(each.weight / 2)[:, None]
            / each.y[:, None]
            for each in bases
        ]
    )
    y = np.concatenate([np.sqrt(each.weight / 2) for each in bases])
    expected, square, _, _ = np.linalg.lstsq(x, y)
    found = [part[shape, kernel] for part in (sizes.L0, sizes.A, sizes.B)]
    assert found == pytest.approx(expected, rel=1e-5)
    assert sizes.square[shape, kernel] == pytest.approx(square[0], rel=1e-6)


def test_what_is_expected_pulls_where_the_curve_does_not_tell():
    curve = a_curve(constant(), noise=0.01)
    moments = moments_of(points := the_basis(curve), np.ones_like(points.y))
    free = solve_sizes(moments)
    ratio = np.full(free.B.shape, np.log(400.0 / 3.0))
    sizes = solve_sizes(moments, Expected(None, (ratio, 0.15)))
    usual = 6  # of the responses: that of the truth
    shape = int(np.argmin(sizes.square[:, usual]))
    pulled, own = (each.B[shape, usual] / each.A[shape, usual] for each in (sizes, free))
    assert pulled == pytest.approx(400.0 / 3.0, rel=0.2)
    assert own != pytest.approx(400.0 / 3.0, rel=0.5)


def test_losses_that_rise_have_no_fit():
    rising = replace(a_curve(cosine()), loss=np.linspace(2.0, 3.0, STEP.size))
    assert fit_shape(MULTI_POWER, (rising,), ()) is None


def two_of(size: str) -> list[Curve]:
    return [curve_of(size, "constant_24000"), curve_of(size, "cosine_24000")]


@have_multipowerlaw
def test_decay_parts_with_the_shape_of_smaller_models():
    decay = []
    for i, size in enumerate(SIZES):
        fit = fit_schedule_law(two_of(size), shared=[two_of(smaller) for smaller in SIZES[:i]])
        for schedule in SCHEDULES:
            curve = curve_of(size, schedule)
            if schedule.startswith("wsd"):
                error = np.abs(fit.predict(plan_of(curve), curve.step) - curve.loss)
                start = 8000 if schedule.startswith("wsdcon") else 20000
                decay.append(np.mean(error[curve.step >= start]))
    assert np.mean(decay) <= 0.0039


@have_multipowerlaw
def test_decay_parts_and_longer_horizons_of_the_real_curves():
    decay, longer = [], []
    for size in SIZES:
        fit = fit_schedule_law(two_of(size))
        for schedule in SCHEDULES:
            curve = curve_of(size, schedule)
            error = np.abs(fit.predict(plan_of(curve), curve.step) - curve.loss)
            if schedule.startswith("wsd"):
                start = 8000 if schedule.startswith("wsdcon") else 20000
                decay.append(np.mean(error[curve.step >= start]))
            elif schedule.endswith("72000"):
                longer.append(np.mean(error[curve.step > 24000]))
    assert np.median(decay) <= 0.0039 and np.mean(decay) <= 0.0041
    assert np.median(longer) <= 0.005 and max(longer) <= 0.009
