"""The interval of a ratio, and how much more window means vary where updates are correlated."""

from __future__ import annotations

import numpy as np
import pytest

from scaling_jax.laws.noise_spread import Spread, fieller, make_series
from tests.laws.noise_curves import BATCH, GROUPS, squared_norms, wandering

COVARIANCE = np.array([[4.0, 0.3], [0.3, 0.09]])


def spread(rng, windows, updates, correlation):
    shape = (windows, updates)
    grad_sq = 2.0 * wandering(rng, (windows * updates,), correlation).reshape(shape)
    small, big = squared_norms(rng, grad_sq, 100.0, shape, dim=1000)
    moments = np.stack([x.mean(axis=1) for x in (small, big, small**2, big**2, small * big)])
    batches = np.repeat([[BATCH / GROUPS], [BATCH]], windows, axis=1)
    step = 10_000 + updates * (np.arange(windows) + 0.5)
    return Spread(make_series(np.log(step), np.full(windows, updates), moments, batches))


def test_fieller_solves_its_own_equation():
    low, high, undetermined = fieller(30.0, 2.0, COVARIANCE, 0.9, np.inf)
    assert not undetermined and low is not None and high is not None
    assert low < 15.0 < high
    for bound in (low, high):
        sd = np.sqrt(np.array([1, -bound]) @ COVARIANCE @ np.array([1, -bound]))
        assert abs(30.0 - bound * 2.0) / sd == pytest.approx(1.6449, abs=1e-3)


def test_a_denominator_near_zero_leaves_the_upper_bound_open():
    low, high, undetermined = fieller(30.0, 0.3, COVARIANCE, 0.9, np.inf)
    assert undetermined and high is None and low is not None and low > 30
    assert fieller(30.0, -1.0, COVARIANCE, 0.9, np.inf).low is None
    assert fieller(-1.0, 0.3, COVARIANCE, 0.9, np.inf) == (0.0, None, True)


def test_a_ratio_is_not_below_zero_unless_both_may_be():
    wide = np.array([[900.0, 0.0], [0.0, 0.01]])
    assert fieller(10.0, 2.0, wide, 0.9, np.inf).low == 0.0
    low = fieller(10.0, 2.0, wide, 0.9, np.inf, signed=True).low
    assert low is not None and low < 0
    both = fieller(-30.0, -2.0, COVARIANCE, 0.9, np.inf, signed=True)
    assert both == pytest.approx(fieller(30.0, 2.0, COVARIANCE, 0.9, np.inf))
    assert fieller(30.0, 0.3, COVARIANCE, 0.9, np.inf, signed=True) == (None, None, True)


def test_estimates_are_those_of_the_two_points():
    moments = np.array([[5.0], [3.0], [26.0], [9.5], [15.4]])
    series = make_series(np.zeros(1), np.ones(1), moments, np.array([[128.0], [512.0]]))
    scale = 128 * 512 / 384
    assert series.estimate[0] == pytest.approx([2.0 * scale, (4 * 3 - 5) / 3])
    # var(small - big) and var((4 big - small) / 3) of variances 1 and 0.5 and covariance 0.4
    variances = [(1 + 0.5 - 0.8) * scale**2, (16 * 0.5 + 1 - 8 * 0.4) / 9]
    assert np.diagonal(series.covariance[0]) == pytest.approx(variances)


@pytest.mark.parametrize("correlation", [0.0, 0.8, 0.95])
def test_the_variance_counts_correlation_between_updates(correlation):
    """A window's mean of an AR(1) process varies (1 + rho) / (1 - rho) times as much."""
    rng = np.random.default_rng(1)
    found = [spread(rng, 60, 50, correlation).of_one_update(slice(20, 40)) for _ in range(60)]
    variance = np.mean([covariance[1, 1] for covariance, _ in found])  # pyright: ignore
    wander = (0.3 * 2.0) ** 2
    noise = 4 * 2.0 * 100.0 / 1000 / BATCH
    truth = noise + wander * (1 + correlation) / (1 - correlation)
    assert variance == pytest.approx(truth, rel=0.25)
    assert found[0][1] == 20 * 49


def test_too_few_updates_know_no_variance():
    short = spread(np.random.default_rng(2), 20, 1, 0.0)
    assert short.of_one_update(slice(0, 20)) == (None, 0.0)
