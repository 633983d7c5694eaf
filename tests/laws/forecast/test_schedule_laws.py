"""Schedule laws against sums over every step, and against the authors' numbers on their file."""

from __future__ import annotations

import numpy as np
import pytest

from scaling_jax.errors import RequestError
from scaling_jax.laws.forecast.rates import make_rates
from scaling_jax.laws.forecast.schedule import rates_from
from scaling_jax.laws.forecast.schedule_laws import ANNEALING, MULTI_POWER, find_schedule_law
from tests.laws.forecast.multipowerlaw import (
    SCHEDULES,
    SIZES,
    curve_of,
    have_multipowerlaw,
    plan_of,
)

# Luo et al. 2025, README of their repository.
PUBLISHED = {
    "25M": (3.040, 0.525, 0.508, 363.788, 2.066, 0.583, 0.641),
    "100M": (2.651, 0.601, 0.453, 437.946, 2.132, 0.598, 0.655),
    "400M": (2.375, 0.654, 0.429, 523.425, 2.025, 0.594, 0.635),
}
NAMES = ("L0", "A", "alpha", "B", "C", "beta", "gamma")


def params_of(size: str) -> dict[str, float]:
    return dict(zip(NAMES, PUBLISHED[size], strict=True)) | {"q": 1.0}


def cosine(steps: int, warm_up: int, low: float = 0.1) -> np.ndarray:
    t = np.arange(1, steps + 1)
    after = np.clip((t - warm_up) / (steps - warm_up), 0, 1)
    return 3e-4 * np.minimum(t / warm_up, low + (1 - low) * (1 + np.cos(np.pi * after)) / 2)


def test_multi_power_is_the_sum_over_every_step():
    lr, warm_up, steps = cosine(6000, 500), 500, np.array([2000, 4500, 6000])
    p = params_of("100M")
    total, before = np.cumsum(lr), np.concatenate([[0.0], lr[:-1]])
    brute = []
    for step in steps:
        k = slice(warm_up, step)  # the warm-up itself is one rise, at its end
        gap = total[step - 1] - np.concatenate([[0.0], total])[k]
        fall = before[k] - lr[k]
        response = 1 - (1 + p["C"] * lr[k] ** -p["gamma"] * gap) ** -p["beta"]
        rise = total[step - 1] - total[warm_up - 1] / 2
        rise = 1 - (1 + p["C"] * lr[warm_up - 1] ** -p["gamma"] * rise) ** -p["beta"]
        gained = np.sum(fall * response) - lr[warm_up - 1] * rise
        brute.append(p["L0"] + p["A"] * total[step - 1] ** -p["alpha"] - p["B"] * gained)
    rates = make_rates(np.arange(1, 6001), lr)
    assert MULTI_POWER.predict(p, rates, steps) == pytest.approx(brute, abs=2e-4)


def test_annealing_is_the_momentum_summed_over_every_step():
    lr, warm_up, steps = cosine(6000, 500), 500, np.array([2000, 4500, 6000])
    p = {"L0": 2.6, "A": 0.6, "alpha": 0.45, "q": 1.0, "B": 400.0, "tau": 800.0}
    decay = np.exp(-1 / p["tau"])
    momentum = area = 0.0
    areas = np.zeros(6000)
    for step in range(1, 6000):  # Tissue et al.: S2 sums a momentum of the rate's falls
        fall = lr[step - 1] - lr[step] if step >= warm_up else 0.0
        momentum = decay * momentum + fall
        area += momentum
        areas[step] = area * (1 - decay)
    brute = p["L0"] + p["A"] * np.cumsum(lr)[steps - 1] ** -p["alpha"] - p["B"] * areas[steps - 1]
    rates = make_rates(np.arange(1, 6001), lr)
    assert ANNEALING.predict(p, rates, steps) == pytest.approx(brute, abs=2e-4)


def test_a_rate_that_falls_to_zero_has_a_finite_loss():
    rates = make_rates([100.0, 1000.0, 2000.0], [1e-3, 1e-3, 0.0])
    loss = MULTI_POWER.predict(params_of("25M"), rates, np.array([1500.0, 2000.0]))
    assert np.all(np.isfinite(loss)) and loss[1] < loss[0]


@have_multipowerlaw
def test_published_parameters_give_the_published_errors():
    errors, ends = [], []
    for size in SIZES:
        for schedule in SCHEDULES:
            curve = curve_of(size, schedule)
            rates = rates_from(plan_of(curve))
            error = MULTI_POWER.predict(params_of(size), rates, curve.step) - curve.loss
            errors.append(np.mean(np.abs(error)))
            ends.append(error[-1])
    # .0014-.0085 (mean .0049) and -.024..+.017 where the warm-up counts as one step.
    assert np.mean(errors) == pytest.approx(0.0049, abs=0.0006)
    assert max(errors) < 0.010
    assert (min(ends), max(ends)) == pytest.approx((-0.024, 0.017), abs=0.002)


def test_unknown_law_and_missing_parameters():
    with pytest.raises(RequestError, match="multi_power"):
        find_schedule_law("multi_powr")
    with pytest.raises(RequestError, match="tau"):
        ANNEALING.predict({"L0": 1, "A": 1, "B": 1, "alpha": 1, "q": 1}, make_rates([1], [1]), [1])
