"""How far a fit could have come out elsewhere, when the points of one run share their luck."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from scaling_jax.errors import WorkError
from scaling_jax.laws.fitting import Points
from scaling_jax.laws.law import Law, float64_cpu

_ALONE = 1e-9  # what the other runs add to a direction, below which one run fixes it alone
_FEWEST_RUNS = 3  # below, every point is taken for a run
_MOST_SHARED = 1e4  # variance that a run shares, over that of its points


@dataclass(frozen=True)
class Sandwich:
    """The cluster-robust covariance (T, T) of the inner coordinates at a minimum.

    `independent` is the covariance if every point were drawn by itself, and `unit` what a rise by
    one unit of chi-square would then add to the objective. `leverage` is the largest share, over
    directions, that one run has in fixing one. `shared` is the variance that the points of one run
    have in common, over what each has alone. `by_point`: there were fewer than three runs, and
    every point was taken for one.
    """

    covariance: np.ndarray
    independent: np.ndarray
    unit: float
    leverage: float
    shared: float
    by_point: bool
    _lower: np.ndarray
    _grams: np.ndarray
    _half: np.ndarray
    _sums: np.ndarray

    def freedom(self, direction: np.ndarray) -> float:
        """Degrees of freedom of the variance along `direction` (T,) (Satterthwaite).

        The variance is a sum of squares of the runs' scores; under equal runs with a shared part
        (`shared`) it has the mean and the variance of a chi-square with these degrees of freedom.
        """
        ahead = self._half @ np.linalg.solve(self._lower, direction)
        score = np.einsum("gij,gj->gi", self._grams, ahead)
        shared = np.einsum("gi,gi->g", self._sums, ahead)
        # The matrix of products of scores is diag(alone) + wide core wide^T, never written out.
        alone = np.einsum("gi,gi->g", ahead, score) + self.shared * shared**2
        wide = np.concatenate([score, shared[:, None] * self._sums], axis=1)
        one, none = np.eye(len(direction)), np.zeros((len(direction),) * 2)
        within = self.shared * (self._sums.T @ self._sums) - one
        core = np.block([[within, -self.shared * one], [-self.shared * one, none]])
        product = core @ (wide.T @ wide)
        trace = alone.sum() + np.trace(product)
        crossed = alone @ np.einsum("gi,ij,gj->g", wide, core, wide)
        square = alone @ alone + 2 * crossed + np.trace(product @ product)
        return max(1.0, float(trace**2 / square)) if trace > 0 and square > 0 else 1.0


def sandwich(
    points: Points, theta: np.ndarray, weights: np.ndarray, cluster: np.ndarray
) -> Sandwich:
    """The covariance at the minimum theta (T,) of the points with weights (n,) > 0.

    `cluster` (n,) names the run of each point. Each run's score is divided by what its own
    leverage took away (CR2: Bell and McCaffrey 2002, Survey Methodology 28(2)), and the degrees of
    freedom are those under a variance shared by run (Imbens and Kolesar 2016, Rev. Econ. Stat.
    98(4)). Huber's objective enters through its pseudo-residuals (Huber 1981, section 7.6).
    Raises `WorkError` where the points leave a direction open.
    """
    used = weights > 0
    residual, jacobian = _residuals(points, theta)
    count, unknown = int(used.sum()), theta.size
    if count <= unknown:
        raise WorkError(f"{count} points cannot fix {unknown} parameters")
    residual, jacobian, root = residual[used], jacobian[used], np.sqrt(weights[used])
    inside, clipped = _pseudo(points, residual * np.sqrt(count / (count - unknown)), residual)
    jacobian, error = jacobian * root[:, None], clipped / inside * root
    lower = _cholesky(points, jacobian)
    white = np.linalg.solve(lower, jacobian.T).T

    number = np.unique(cluster[used], return_inverse=True)[1]
    by_point = int(number.max()) + 1 < _FEWEST_RUNS
    number = np.arange(count) if by_point else number
    order = np.argsort(number, kind="stable")
    first = np.flatnonzero(np.diff(number[order], prepend=-1))

    def by_run(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values[order], first, axis=0)

    grams = by_run(white[:, :, None] * white[:, None, :])
    sums = by_run(white * root[:, None])
    share, axes = np.linalg.eigh(grams)
    gap = 1 - share
    # A direction that one run fixes alone leaves that run no residual to correct.
    grow = np.where(gap > _ALONE, 1 / np.sqrt(np.maximum(gap, _ALONE)), 0.0)
    half = np.einsum("gij,gj,gkj->gik", axes, grow, axes)
    scores = np.einsum("gij,gj->gi", half, by_run(white * error[:, None]))
    back = np.linalg.inv(lower)
    spread = float(error @ error) / (count - unknown)
    return Sandwich(
        covariance=back.T @ (scores.T @ scores) @ back,
        independent=spread * (back.T @ back),
        unit=0.5 * inside * spread,
        leverage=float(share.max()),
        shared=_shared(root, error, by_run, sums, unknown),
        by_point=by_point,
        _lower=lower,
        _grams=grams,
        _half=half,
        _sums=sums,
    )


def _residuals(points: Points, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Residuals (n,) and the Jacobian (n, T) of the prediction, as the objective counts them."""
    on_output = points.objective.form == "squares"
    with jax.enable_x64(True), float64_cpu():
        at = jnp.asarray(theta), jnp.asarray(points.x), points.x_centre, points.y_centre
        found = _prediction(points.law, on_output, *at)
        predicted, jacobian = (np.asarray(part) for part in found)
    measured = np.exp(points.y) if on_output else points.y
    return measured - predicted, jacobian


@functools.partial(jax.jit, static_argnums=(0, 1))
def _prediction(
    law: Law, on_output: bool, theta: jax.Array, x: jax.Array, x0: jax.Array, y0: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def model(theta: jax.Array) -> jax.Array:
        predicted = law.log_predict(theta, x, x0, y0)
        return jnp.exp(predicted) if on_output else predicted

    return model(theta), jax.jacfwd(model)(theta)


def _pseudo(
    points: Points, spread_out: np.ndarray, residual: np.ndarray
) -> tuple[float, np.ndarray]:
    """The share of points whose residual counts by its square, and the residuals as they count.

    The share is taken from a kernel density (Silverman's width) of the residuals as they were
    before the fit drew them in: with a narrow Huber width and few points the fit passes through as
    many points as it has parameters, and the plain share would count those.
    """
    if points.objective.form != "huber":
        return 1.0, residual
    delta = points.objective.delta
    middle = 1.4826 * float(np.median(np.abs(spread_out)))
    width = 0.9 * min(float(np.sqrt(np.mean(spread_out**2))), middle) * spread_out.size**-0.2
    if width <= delta * 1e-6:
        return float(np.mean(np.abs(residual) <= delta)), np.clip(residual, -delta, delta)
    above, below = (delta - spread_out) / width, (-delta - spread_out) / width
    inside = float(np.mean(stats.norm.cdf(above) - stats.norm.cdf(below)))
    return max(inside, 1 / residual.size), np.clip(residual, -delta, delta)


def _cholesky(points: Points, jacobian: np.ndarray) -> np.ndarray:
    size = np.linalg.norm(jacobian, axis=0)
    if np.all(size > 0):
        try:
            gram = (jacobian / size).T @ (jacobian / size)
            return size[:, None] * np.linalg.cholesky(gram)
        except np.linalg.LinAlgError:
            pass
    raise WorkError(
        f"The points do not identify {points.law.slug}: a parameter moves no prediction"
    )


def _shared(root, error, by_run, sums: np.ndarray, unknown: int) -> float:
    """By moments: the variance that the residuals of a run share over that of the rest."""
    mass = by_run(root**2)
    if mass.size in (1, root.size):
        return 0.0
    inner = sums.T @ sums
    crossed = float(mass.sum() - np.trace(inner))
    squared = float(mass @ mass - 2 * mass @ np.einsum("gi,gi->g", sums, sums) + (inner**2).sum())
    found = [error @ error, (by_run(root * error) ** 2).sum()]
    moments = [[root.size - unknown, crossed], [crossed, squared]]
    alone, together = np.linalg.lstsq(np.array(moments), np.array(found), rcond=None)[0]
    if alone <= 0:
        return _MOST_SHARED
    return float(np.clip(together / alone, 0.0, _MOST_SHARED))
