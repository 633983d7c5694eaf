"""The posterior of a law with an error of its form, against matrices written out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scaling_jax.laws.fitting import Objective, Points, make_points, solve
from scaling_jax.laws.forecast import posterior as module
from scaling_jax.laws.forecast.posterior import (
    Posterior,
    gains,
    linearise,
    measured_more,
    posterior,
)
from scaling_jax.laws.forms import find_law

LAW = find_law("l_nd_chinchilla")
TRUTH = {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}
SIZE, TOKENS = (
    axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 5))
)


def noisy(noise: float = 0.004, bend: float = 0.0, seed: int = 0) -> Points:
    """Losses with noise and, where `bend`, a term that the form does not have."""
    loss = LAW.predict(TRUTH, N=SIZE, D=TOKENS)
    wrong = bend * np.log(SIZE / 1e8) * np.log(TOKENS / 1e10) / 10
    scatter = noise * np.random.default_rng(seed).normal(size=SIZE.size)
    inputs = {"N": SIZE, "D": TOKENS}
    return make_points(LAW, inputs, loss * np.exp(scatter + wrong), Objective("log_squares"))


def fitted(points: Points, used: np.ndarray) -> np.ndarray:
    weights = np.zeros((1, points.y.size))
    weights[0, used] = 1.0
    return solve(points, weights).theta[0]


def place(points: Points, size: float, tokens: float) -> np.ndarray:
    return (np.log([size, tokens]) - points.x_centre)[:, None]


def test_slopes_are_those_of_the_prediction() -> None:
    points = noisy()
    theta = fitted(points, np.arange(25))
    value, slopes = linearise(points, theta, points.x)
    np.testing.assert_allclose(value, points.y - points.residuals(theta), rtol=1e-12)
    params = dict(zip(LAW.params, np.exp(points.log_params(theta)), strict=True))
    reducible = params["B"] / TOKENS ** params["beta"]
    share = reducible / LAW.predict(params, N=SIZE, D=TOKENS)
    where = LAW.coordinates.index("B")  # its coordinate is the log of the term at the centre
    np.testing.assert_allclose(slopes[:, where], share, rtol=1e-6)


def test_is_generalised_least_squares_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    form, reach, noise = 0.01, 2.0, 0.004
    monkeypatch.setattr(module, "_GRID", np.array([[form, reach, noise]]))
    monkeypatch.setattr(module, "_WIDEST", 0.3)  # what is written out loses digits of a wide prior
    points, used = noisy(bend=0.03), np.arange(0, 25, 2)
    theta = fitted(points, used)
    x = np.concatenate([points.x[:, 1::2], place(points, 4e9, 4e11)], axis=1)
    found = posterior(points, theta, used, x)

    everything = np.concatenate([points.x[:, used], x], axis=1)
    apart = ((everything[:, :, None] - everything[:, None, :]) ** 2).sum(axis=0)
    value, slopes = linearise(points, theta, everything)
    prior = form**2 * np.exp(-apart / (2 * reach**2)) + 0.09 * slopes @ slopes.T
    n = used.size
    inner = np.linalg.inv(prior[:n, :n] + noise**2 * np.eye(n))
    across = prior[n:, :n] @ inner
    expected = prior[n:, n:] - across @ prior[:n, n:]
    np.testing.assert_allclose(found.covariance[0], expected, atol=1e-9)
    mean = value[n:] + across @ (points.y[used] - value[:n])
    np.testing.assert_allclose(found.mean[0], mean, atol=1e-8)
    assert found.noise == pytest.approx(noise**2) and found.weight == 1.0


def test_gain_of_a_candidate_is_that_of_measuring_it() -> None:
    points, used = noisy(), np.arange(0, 25, 2)
    x = np.concatenate([points.x[:, 1::2], place(points, 4e9, 4e11)], axis=1)
    found = posterior(points, fitted(points, used), used, x)
    blocks = np.array([[0, 1], [4, 5], [10, 11]])
    for block, gain in zip(blocks, gains(found, -1, blocks), strict=True):
        after = measured_more(found, block)
        left = [each.weight @ each.covariance[:, -1, -1] for each in (found, after)]
        assert gain == pytest.approx(np.log(left[0] / left[1]))
        ordered = measured_more(measured_more(found, block[:1]), block[1:])
        np.testing.assert_allclose(after.covariance, ordered.covariance, atol=1e-12)


def test_a_form_that_bends_away_is_known_less_well_and_predicted_better() -> None:
    target = (3e9, 3e11)
    halves, errors, plain = [], [], []
    for bend in (0.0, 0.04):
        points = noisy(noise=0.002, bend=bend)
        theta = fitted(points, np.arange(25))
        found = posterior(points, theta, np.arange(25), place(points, *target))
        wrong = bend * np.log(target[0] / 1e8) * np.log(target[1] / 1e10) / 10
        truth = np.log(LAW.predict(TRUTH, N=target[0], D=target[1])) + wrong - points.y_centre
        halves.append(found.half_width(0, 0.68, 20))
        errors.append(abs(found.middle(0) - truth))
        plain.append(abs(float(linearise(points, theta, place(points, *target))[0][0] - truth)))
    assert halves[1] > 1.5 * halves[0]
    assert errors[1] < plain[1] and errors[1] < 2 * halves[1]


def test_an_interval_holds_what_is_drawn_as_often_as_it_says() -> None:
    weight, spread = np.array([0.7, 0.2, 0.1]), np.array([1.0, 2.0, 5.0])
    mean = np.array([[0.5], [-1.0], [2.0]])
    found = Posterior(weight, mean, spread[:, None, None] ** 2, np.ones(3), np.zeros((3, 1)))
    rng = np.random.default_rng(0)
    size = rng.choice(3, size=400_000, p=weight)
    drawn = mean[size, 0] + spread[size] * rng.standard_t(7, size=size.size)
    half = found.half_width(0, 0.9, 7)
    assert found.middle(0) == pytest.approx(0.35)
    assert np.mean(np.abs(drawn - 0.35) <= half) == pytest.approx(0.9, abs=0.002)
    alone = found._replace(weight=np.array([1.0, 0.0, 0.0]))
    assert alone.half_width(0, 0.9, 7) == pytest.approx(stats.t.ppf(0.95, 7), rel=1e-9)


def test_sizes_that_the_points_rule_out_are_left_out() -> None:
    used = np.arange(25)
    found = {}
    for noise in (0.001, 0.02):
        points = noisy(noise)
        found[noise] = posterior(points, fitted(points, used), used, place(points, 3e9, 3e11))
        assert found[noise].weight.sum() == pytest.approx(1.0)
        assert found[noise].weight.size < len(module._GRID)
    assert found[0.001].noise.max() < found[0.02].noise.min()
