"""What measurements say of losses elsewhere, when the law's form is itself a little wrong."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from scaling_jax.laws.fitting import Points

# Grids that the points choose from, by their restricted likelihood: standard deviation of the
# form's own error (log output), distance in log inputs over which it changes, and noise.
_FORM = (0.005, 0.01, 0.02, 0.04)
_REACH = (1.0, 2.0, 4.0, 8.0)
_NOISE = (0.0015, 0.003, 0.006, 0.012, 0.024)
_GRID = np.array(list(itertools.product(_FORM, _REACH, _NOISE)))
_WIDEST = 10.0  # prior standard deviation of a coordinate, which is a logarithm


class Posterior(NamedTuple):
    """Log output at m places: `mean` (m,) and `covariance` (m, m), centred as the points are.

    `noise` is the variance of one more measurement around the truth. `of_form` (m,) is the share of
    each variance that would be left if the parameters were known.
    """

    mean: np.ndarray
    covariance: np.ndarray
    noise: float
    of_form: np.ndarray


def posterior(points: Points, theta: np.ndarray, used: np.ndarray, x: np.ndarray) -> Posterior:
    """The law linearised at theta (T,), plus a smooth error of its form, given the points `used`.

    `used` are indices of points, `x` (inputs, m) places as centred log inputs. log y = law + form
    error + noise; the form error is a Gaussian process in the log inputs with a squared exponential
    kernel (Kennedy and O'Hagan 2001, J. R. Stat. Soc. B 63(3)), whose size and reach are averaged
    over a grid by restricted likelihood. Without it an interval far from the data is as narrow as
    if the form were true there.
    """
    seen = points.x[:, used]
    predicted, slopes = linearise(points, theta, np.concatenate([seen, x], axis=1))
    count = used.size
    error, jacobian = points.y[used] - predicted[:count], slopes[:count]
    places = np.concatenate([seen, x], axis=1)
    apart = ((places[:, :, None] - places[:, None, :]) ** 2).sum(axis=0)
    weight = _weights(apart[:count, :count], error, jacobian)
    kernel = np.zeros_like(apart)
    for reach in _REACH:
        of_reach = _GRID[:, 1] == reach
        variance = weight[of_reach] @ _GRID[of_reach, 0] ** 2
        kernel += variance * np.exp(-apart / (2 * reach**2))
    noise = float(weight @ _GRID[:, 2] ** 2)
    lower = np.linalg.cholesky(kernel[:count, :count] + noise * np.eye(count))
    white, residual = np.linalg.solve(lower, jacobian), np.linalg.solve(lower, error)
    cross = np.linalg.solve(lower, kernel[:count, count:])
    of_params = np.linalg.inv(white.T @ white + np.eye(theta.size) / _WIDEST**2)
    ahead = slopes[count:] - cross.T @ white
    of_form = kernel[count:, count:] - cross.T @ cross
    covariance = of_form + ahead @ of_params @ ahead.T
    mean = predicted[count:] + cross.T @ residual + ahead @ of_params @ (white.T @ residual)
    share = np.diagonal(of_form) / np.diagonal(covariance)
    return Posterior(mean, covariance, noise, share)


def linearise(points: Points, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The law's centred log output (m,) at places x (inputs, m), and its slopes (m, T)."""
    there = replace(points, x=x, y=np.zeros(x.shape[1]))
    steps = 1e-6 * np.eye(theta.size)
    rise = [there.residuals(theta - step) - there.residuals(theta + step) for step in steps]
    return -there.residuals(theta), np.stack(rise, axis=1) / 2e-6


def measured_more(found: Posterior, which: np.ndarray) -> Posterior:
    """The posterior after measurements at the places `which` whose outcome is as expected."""
    block = found.covariance[:, which]
    inner = block[which] + found.noise * np.eye(len(which))
    left = found.covariance - block @ np.linalg.solve(inner, block.T)
    return found._replace(covariance=left)


def gains(found: Posterior, target: int, blocks: np.ndarray) -> np.ndarray:
    """ln of how much the target's variance falls with the places (K, m) of each candidate run."""
    inner = found.covariance[blocks[:, :, None], blocks[:, None, :]]
    inner = inner + found.noise * np.eye(blocks.shape[1])
    across = found.covariance[target, blocks]
    known = np.einsum("km,km->k", across, np.linalg.solve(inner, across[..., None])[..., 0])
    return -np.log1p(-np.minimum(known / found.covariance[target, target], 1 - 1e-12))


def _weights(apart: np.ndarray, error: np.ndarray, jacobian: np.ndarray) -> np.ndarray:
    """Posterior probability of every row of the grid, each as likely before."""
    count, unknown = jacobian.shape
    form, reach, noise = (column[:, None, None] for column in _GRID.T)
    spread = form**2 * np.exp(-apart / (2 * reach**2)) + noise**2 * np.eye(count)
    lower = np.linalg.cholesky(spread)
    wide = np.broadcast_to(np.column_stack([jacobian, error]), (len(_GRID), count, unknown + 1))
    white = np.linalg.solve(lower, wide)
    slopes, residual = white[..., :-1], white[..., -1]
    inner = np.einsum("kni,knj->kij", slopes, slopes) + np.eye(unknown) / _WIDEST**2
    score = np.einsum("kni,kn->ki", slopes, residual)
    explained = np.einsum("ki,ki->k", score, np.linalg.solve(inner, score[..., None])[..., 0])
    logarithm = (
        -np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(axis=1)
        - 0.5 * np.linalg.slogdet(inner)[1]
        - 0.5 * ((residual**2).sum(axis=1) - explained)
    )
    weight = np.exp(logarithm - logarithm.max())
    return weight / weight.sum()
