"""Robust least squares of a law on log losses: many problems and many starts in one program."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forms import Law, float64_cpu

# Residuals of small language models around a good law are about 1 %: a point inside that counts
# by its square, one further out by its distance, so that a single bad evaluation moves nothing.
DELTA = 0.01

_LANES = 64  # problem-start pairs a call; one size, so that every call is the same program
_LEAST_POINTS = 256  # points are padded to this times a power of two, for the same reason
_ITERATIONS = 200
# The gain that a full step still promises, as a share of the objective: 1e-12 leaves a parameter
# within 1e-4 of its standard error. The absolute term is rounding, for data without noise.
_DECREMENT = 1e-12
_DECREMENT_FLOOR = 1e-25
_TINY = 1e-30  # keeps a problem without weights from dividing by zero
_AT_BOUND = 1e-3  # in inner coordinates, as is the next
_SAME_MINIMUM = 0.01  # two minima closer than 1 % in every inner coordinate are one


class Solutions(NamedTuple):
    """The best start of each of R problems: theta (R, P), the other fields (R,)."""

    theta: np.ndarray
    objective: np.ndarray
    converged: np.ndarray
    at_bound: np.ndarray


@dataclass(frozen=True)
class Points:
    """Centred log inputs x (inputs, n) and log losses y (n,), with their centres."""

    law: Law
    x: np.ndarray
    y: np.ndarray
    x_centre: np.ndarray
    y_centre: float

    def log_params(self, theta: np.ndarray) -> np.ndarray:
        """Logs of the law's parameters (..., P) at inner coordinates theta (..., P)."""
        return self.law.to_log_params(theta, self.x_centre, self.y_centre)

    def residuals(self, theta: np.ndarray) -> np.ndarray:
        """Observed less predicted log loss (n,) at theta (P,)."""
        with jax.enable_x64(True), float64_cpu():
            predicted = self.law.log_predict(jnp.asarray(theta), jnp.asarray(self.x))
            return self.y - np.asarray(predicted)


class PointFit(NamedTuple):
    """Parameters, the sum of Huber losses, the rms of the log residuals, and the residuals (n,)."""

    params: dict[str, float]
    objective: float
    rms_log_residual: float
    log_residual: np.ndarray


def make_points(law: Law, inputs: Mapping[str, ArrayLike], loss: ArrayLike) -> Points:
    """Logs of positive inputs (n,) and losses (n,), centred on their means.

    Raises `RequestError` for a missing input, unequal lengths, and values that are not positive
    and finite.
    """
    if missing := [name for name in law.inputs if name not in inputs]:
        raise RequestError(f"{law.slug} needs the input {', '.join(missing)}")
    columns = {name: np.asarray(inputs[name], dtype=np.float64) for name in law.inputs}
    columns["loss"] = np.asarray(loss, dtype=np.float64)
    for name, column in columns.items():
        if column.shape != columns["loss"].shape or column.ndim != 1:
            raise RequestError(f"{name} has shape {column.shape}, loss {columns['loss'].shape}")
        if bad := int(np.sum(~(np.isfinite(column) & (column > 0)))):
            rows = "row" if bad == 1 else "rows"
            raise RequestError(f"{bad} {rows} of {name} not positive and finite")
    if columns["loss"].size <= len(law.params):
        raise WorkError(
            f"{columns['loss'].size} points cannot fix the {len(law.params)} parameters of "
            f"{law.slug}"
        )
    x = np.log(np.stack([columns[name] for name in law.inputs]))
    y = np.log(columns["loss"])
    centre = x.mean(axis=1)
    return Points(law, x - centre[:, None], y - y.mean(), centre, float(y.mean()))


def fit_points(
    law: Law, inputs: Mapping[str, ArrayLike], loss: ArrayLike, delta: float = DELTA
) -> PointFit:
    """The law through points of equal weight: minimises the sum of Huber(log residual; delta).

    The sum and not the mean: a mean of many small residuals meets a solver's tolerance early.
    Raises `RequestError` as `make_points`, `WorkError` when no start converges or the minimum
    lies on a bound, where the data do not fix a parameter.
    """
    points = make_points(law, inputs, loss)
    solution = solve(points, np.ones((1, points.y.size)), delta=delta)
    require_identified(points, solution)
    residual = points.residuals(solution.theta[0])
    values = np.exp(points.log_params(solution.theta[0]))
    return PointFit(
        params=dict(zip(law.params, values.tolist(), strict=True)),
        objective=float(solution.objective[0]),
        rms_log_residual=float(np.sqrt(np.mean(residual**2))),
        log_residual=residual,
    )


def require_identified(points: Points, solution: Solutions) -> None:
    """Raises `WorkError` when the first problem did not converge or lies on a bound."""
    if not solution.converged[0]:
        raise WorkError(
            f"The fit of {points.law.slug} did not converge from any start: a parameter runs away, "
            "and the points do not identify the law"
        )
    if solution.at_bound[0]:
        values = np.exp(points.log_params(solution.theta[0]))
        found = ", ".join(f"{k} {v:.3g}" for k, v in zip(points.law.params, values, strict=True))
        raise WorkError(
            f"The points do not identify {points.law.slug}: the best fit lies on the bound of a "
            f"parameter ({found}). Wider ranges of {' and of '.join(points.law.inputs)} are needed"
        )


def solve(
    points: Points, weights: np.ndarray, starts: np.ndarray | None = None, delta: float = DELTA
) -> Solutions:
    """Solve R problems that share the points and differ in weights (R, n); zero leaves one out.

    Every problem is started from every row of `starts` (K, P), by default the law's own, and its
    lowest minimum is kept. `converged` says that the start of that minimum met the tolerance.
    """
    theta, objective, converged = _solve_starts(points, weights, starts, delta)
    # A start that stopped on the way must not win over a finished one by rounding.
    rank = np.where(converged, objective, objective * (1 + 1e-9) + 1e-20)
    best = np.argmin(np.where(np.isfinite(rank), rank, np.inf), axis=1)
    rows = np.arange(len(weights))
    theta = theta[rows, best]
    law = points.law
    return Solutions(theta, objective[rows, best], converged[rows, best], _at_bound(law, theta))


def minima(points: Points, weights: np.ndarray, delta: float = DELTA) -> Solutions:
    """The distinct minima that the law's starts find for weights (n,), the lowest first."""
    law = points.law
    theta, objective, converged = (
        found[0] for found in _solve_starts(points, weights[None, :], None, delta)
    )
    kept: list[int] = []
    for i in np.argsort(objective):
        new = all(np.max(np.abs(theta[i] - theta[j])) > _SAME_MINIMUM for j in kept)
        if converged[i] and new:
            kept.append(int(i))
    theta = theta[kept]
    return Solutions(theta, objective[kept], converged[kept], _at_bound(law, theta))


def _at_bound(law: Law, theta: np.ndarray) -> np.ndarray:
    near = (theta <= law.lower + _AT_BOUND) | (theta >= law.upper - _AT_BOUND)
    return np.any(near, axis=-1)


def _solve_starts(
    points: Points, weights: np.ndarray, starts: np.ndarray | None, delta: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """theta (R, K, P), objective (R, K), converged (R, K)."""
    law = points.law
    starts = law.starts if starts is None else starts
    problems, pad = len(weights), _padding(points.y.size)
    x = np.pad(points.x, ((0, 0), (0, pad)))
    y = np.pad(points.y, (0, pad))
    weights = np.pad(np.asarray(weights, dtype=np.float64), ((0, 0), (0, pad)))
    # Lanes of one start lie together: they need about as many iterations as each other.
    lane_problem = np.tile(np.arange(problems), len(starts))
    lane_theta = np.repeat(starts, problems, axis=0)
    found = []
    with jax.enable_x64(True), float64_cpu():
        for first in range(0, lane_problem.size, _LANES):
            lanes = np.arange(first, first + _LANES) % lane_problem.size
            found.append(
                _solve_lanes(
                    law, x, y, weights[lane_problem[lanes]], lane_theta[lanes], np.float64(delta)
                )
            )
        found = jax.device_get(found)
    theta, objective, converged = (
        np.concatenate(parts)[: lane_problem.size].reshape(
            len(starts), problems, *parts[0].shape[1:]
        )
        for parts in zip(*found, strict=True)
    )
    return theta.swapaxes(0, 1), objective.T, converged.T


def _padding(count: int) -> int:
    padded = _LEAST_POINTS
    while padded < count:
        padded *= 2
    return padded - count


class _State(NamedTuple):
    """`theta` is the best so far, `trial` where the next look is taken."""

    theta: jax.Array
    objective: jax.Array
    gradient: jax.Array
    curvature: jax.Array
    trial: jax.Array
    damping: jax.Array
    converged: jax.Array
    iteration: jax.Array


@functools.partial(jax.jit, static_argnums=0)
def _solve_lanes(law, x, y, weights, theta, delta):
    lane = functools.partial(_solve_lane, law)
    return jax.vmap(lane, in_axes=(None, None, 0, 0, None))(x, y, weights, theta, delta)


def _solve_lane(law, x, y, weights, theta, delta):
    lower, upper = jnp.asarray(law.lower), jnp.asarray(law.upper)
    identity = jnp.eye(theta.shape[0], dtype=theta.dtype)
    total = jnp.sum(weights)

    def local_model(theta):
        residual = y - law.log_predict(theta, x)
        jacobian = jax.jacfwd(law.log_predict)(theta, x)
        size = jnp.abs(residual)
        robust = weights * jnp.minimum(1.0, delta / jnp.maximum(size, delta))
        huber = jnp.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))
        weighted = jacobian * robust[:, None]
        return jnp.sum(weights * huber), -(weighted.T @ residual), weighted.T @ jacobian

    def steps_from(theta, gradient, curvature, dampings):
        """Steps (len(dampings), P), with what rests on a bound and pushes outwards held there."""
        held = ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0))
        free = jnp.where(held, 0.0, 1.0)
        gradient = gradient * free
        scale = jnp.diagonal(curvature) * free + _TINY
        ridge = dampings[:, None] * scale[None, :] + (_TINY + 1.0 - free)[None, :]
        matrix = (curvature * free[:, None] * free[None, :])[None] + identity[None] * ridge[:, None]
        right = jnp.broadcast_to(gradient[None, :, None], (2, gradient.shape[0], 1))
        return -jnp.linalg.solve(matrix, right)[..., 0]

    def advance(state):
        objective, gradient, curvature = local_model(state.trial)
        better = objective <= state.objective
        theta, objective, gradient, curvature = jax.tree.map(
            functools.partial(jnp.where, better),
            (state.trial, objective, gradient, curvature),
            (state.theta, state.objective, state.gradient, state.curvature),
        )
        damping = jnp.clip(state.damping * jnp.where(better, 0.2, 5.0), 1e-12, 1e12)
        dampings = jnp.stack([damping, jnp.asarray(1e-12)])
        steps = steps_from(theta, gradient, curvature, dampings)
        allowed = jnp.clip(theta + steps[1], lower, upper) - theta
        gain = -jnp.sum(allowed * (gradient + 0.5 * (curvature @ allowed)))
        return _State(
            theta,
            objective,
            gradient,
            curvature,
            trial=jnp.clip(theta + steps[0], lower, upper),
            damping=damping,
            converged=jnp.abs(gain) <= _DECREMENT * objective + _DECREMENT_FLOOR * total,
            iteration=state.iteration + 1,
        )

    # The first look is at the start itself, so that the model of the loss is compiled once.
    first = _State(
        theta,
        objective=jnp.asarray(jnp.inf),
        gradient=jnp.zeros_like(theta),
        curvature=identity,
        trial=theta,
        damping=jnp.asarray(5e-2),
        converged=jnp.asarray(False),
        iteration=jnp.asarray(0),
    )
    last = jax.lax.while_loop(
        lambda state: ~state.converged & (state.iteration < _ITERATIONS), advance, first
    )
    return last.theta, last.objective, last.converged
