"""What measurements say of losses elsewhere, when the law's form is itself a little wrong."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats
from scipy.linalg import solve_triangular

from scaling_jax.laws.fitting import Points

# Sizes of the errors, each as likely before, that the points choose from by restricted likelihood:
# standard deviation of the form's own error (log output), distance in log inputs over which it
# changes, and noise. The largest of the form's was chosen by the interval score of seven targets of
# Porian et al.'s RefinedWeb runs at constant rate: with .04 intervals of 90 % held half to three
# quarters of the measured losses.
_FORM = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
_REACH = (1.0, 2.0, 4.0, 8.0)
_NOISE = (0.0015, 0.003, 0.006, 0.012, 0.024)
_GRID = np.array(list(itertools.product(_FORM, _REACH, _NOISE)))
_UNLIKELY = 0.01  # of the most likely: sizes that are less likely than that are left out
_WIDEST = 10.0  # prior standard deviation of a coordinate, which is a logarithm


class Posterior(NamedTuple):
    """Log output at m places, centred as the points are, for each of G sizes of the errors.

    `weight` (G,) is their probability; given one of them the output is normal with `mean` (G, m)
    and `covariance` (G, m, m), of which `of_form` (G, m) would be left on the diagonal if the
    parameters were known, and `noise` (G,) is the variance of one more measurement around it.
    """

    weight: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    noise: np.ndarray
    of_form: np.ndarray

    def middle(self, place: int) -> float:
        """Expected log output at a place."""
        return float(self.weight @ self.mean[:, place])

    def share_of_form(self, place: int) -> float:
        """The share of the variance at a place that is the form's own error."""
        return float(self.weight @ self.of_form[:, place] / self._variance(place))

    def half_width(self, place: int, level: float, freedom: int) -> float:
        """Of the interval around `middle` that holds the output with probability `level`.

        Normal tails are widened to those of Student's t with `freedom` degrees.
        """
        away = self.mean[:, place] - self.middle(place)
        spread = np.sqrt(self.covariance[:, place, place])

        def missing(half: float) -> float:
            within = stats.t.cdf((half - away) / spread, freedom)
            within -= stats.t.cdf((-half - away) / spread, freedom)
            return level - float(self.weight @ within)

        most = float(stats.t.ppf((1 + level) / 2, freedom)) * spread + np.abs(away)
        found = optimize.root_scalar(missing, bracket=(0.0, 1.01 * most.max()), xtol=1e-12)
        return float(found.root)

    def _variance(self, place: int) -> float:
        return float(self.weight @ self.covariance[:, place, place])


def posterior(points: Points, theta: np.ndarray, used: np.ndarray, x: np.ndarray) -> Posterior:
    """The law linearised at theta (T,), plus a smooth error of its form, given the points `used`.

    `used` are indices of points, `x` (inputs, m) places as centred log inputs. log y = law + form
    error + noise; the form error is a Gaussian process in the log inputs with a squared exponential
    kernel (Kennedy and O'Hagan 2001, J. R. Stat. Soc. B 63(3)). Its size and reach and the noise
    are not known: those that the points make likely are kept apart, for an average of them takes
    few points for noisier than they are. Without the form's error an interval far from the data is
    as narrow as if the form were true there.
    """
    places = np.concatenate([points.x[:, used], x], axis=1)
    predicted, slopes = linearise(points, theta, places)
    error = points.y[used] - predicted[: used.size]
    apart = ((places[:, :, None] - places[:, None, :]) ** 2).sum(axis=0)
    weight = _weights(apart[: used.size, : used.size], error, slopes[: used.size])
    kept = weight >= _UNLIKELY * weight.max()
    given = [_given(sizes, apart, error, slopes) for sizes in _GRID[kept]]
    moved, covariance, of_form = (np.stack(part) for part in zip(*given, strict=True))
    return Posterior(
        weight=weight[kept] / weight[kept].sum(),
        mean=predicted[used.size :] + moved,
        covariance=covariance,
        noise=_GRID[kept, 2] ** 2,
        of_form=of_form,
    )


def linearise(points: Points, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The law's centred log output (m,) at places x (inputs, m), and its slopes (m, T)."""
    there = replace(points, x=x, y=np.zeros(x.shape[1]))
    steps = 1e-6 * np.eye(theta.size)
    rise = [there.residuals(theta - step) - there.residuals(theta + step) for step in steps]
    return -there.residuals(theta), np.stack(rise, axis=1) / 2e-6


def measured_more(found: Posterior, which: np.ndarray) -> Posterior:
    """The posterior after measurements at the places `which` whose outcome is as expected."""
    across = found.covariance[:, which]
    inner = across[:, :, which] + found.noise[:, None, None] * np.eye(len(which))
    left = found.covariance - across.swapaxes(1, 2) @ np.linalg.solve(inner, across)
    return found._replace(covariance=left)


def gains(found: Posterior, target: int, blocks: np.ndarray) -> np.ndarray:
    """ln of how much the target's variance falls with the places (K, m) of each candidate run."""
    inner = found.covariance[:, blocks[:, :, None], blocks[:, None, :]]
    inner = inner + found.noise[:, None, None, None] * np.eye(blocks.shape[1])
    across = found.covariance[:, target, blocks]
    known = np.einsum("gkm,gkm->gk", across, np.linalg.solve(inner, across[..., None])[..., 0])
    variance = found.weight @ found.covariance[:, target, target]
    return -np.log1p(-np.minimum(found.weight @ known / variance, 1 - 1e-12))


def _given(
    sizes: np.ndarray, apart: np.ndarray, error: np.ndarray, slopes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How far the mean moves (m,), the covariance (m, m) and the form's part of its diagonal."""
    form, reach, noise = sizes
    count, unknown = error.size, slopes.shape[1]
    kernel = form**2 * np.exp(-apart / (2 * reach**2))
    lower = np.linalg.cholesky(kernel[:count, :count] + noise**2 * np.eye(count))
    wide = np.column_stack([slopes[:count], error, kernel[:count, count:]])
    white = solve_triangular(lower, wide, lower=True)
    jacobian, residual, cross = np.split(white, [unknown, unknown + 1], axis=1)
    of_params = np.linalg.inv(jacobian.T @ jacobian + np.eye(unknown) / _WIDEST**2)
    ahead = slopes[count:] - cross.T @ jacobian
    of_form = kernel[count:, count:] - cross.T @ cross
    moved = cross.T @ residual + ahead @ of_params @ (jacobian.T @ residual)
    return moved[:, 0], of_form + ahead @ of_params @ ahead.T, np.diagonal(of_form)


def _weights(apart: np.ndarray, error: np.ndarray, jacobian: np.ndarray) -> np.ndarray:
    """Posterior probability of every row of the grid, each as likely before."""
    unknown = jacobian.shape[1]
    logarithm = np.empty(len(_GRID))
    for reach in np.unique(_GRID[:, 1]):
        rows = _GRID[:, 1] == reach
        values, vectors = np.linalg.eigh(np.exp(-apart / (2 * reach**2)))
        variance = _GRID[rows, :1] ** 2 * values + _GRID[rows, 2:] ** 2
        along = vectors.T @ np.column_stack([jacobian, error])
        square = np.einsum("gn,ni,nj->gij", 1 / variance, along, along)
        inner = square[:, :-1, :-1] + np.eye(unknown) / _WIDEST**2
        score = square[:, :-1, -1]
        explained = np.einsum("gi,gi->g", score, np.linalg.solve(inner, score[..., None])[..., 0])
        logarithm[rows] = -0.5 * (
            np.log(variance).sum(axis=1)
            + np.linalg.slogdet(inner)[1]
            + (square[:, -1, -1] - explained)
        )
    weight = np.exp(logarithm - logarithm.max())
    return weight / weight.sum()
