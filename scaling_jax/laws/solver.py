"""A damped Gauss-Newton for robust fits: many problems and many starts in one compiled program."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaling_jax.laws.law import float64_cpu

if TYPE_CHECKING:
    from scaling_jax.laws.law import Law

_LANES = (16, 128)  # problem-start pairs in flight: few sizes, so that few programs are compiled
_FEWEST_LANES = 4  # of large tables, where an idle lane costs more than another compilation
_LARGE = 2048  # points
_ITERATIONS_A_CALL = 8  # after which lanes that are done give their place to others
_MOST_ITERATIONS = 400
_LEAST_POINTS = 256  # points are padded to this times a power of two, for the same reason
_MOST_VALUES = 2**21  # of the Jacobians in flight: large tables take fewer lanes
# The gain that a full step still promises, as a share of the objective: 1e-12 leaves a parameter
# within 1e-4 of its standard error. The absolute term is rounding, for data without noise.
_DECREMENT = 1e-12
_DECREMENT_FLOOR = 1e-25
# Of the gain that a step promised: one that keeps less went past the minimum to its other side, and
# would go back and forth there where every residual is beyond the Huber width.
_KEPT = 0.01
_TINY = 1e-30  # keeps a problem without weights from dividing by zero


class Found(NamedTuple):
    """What each start of each problem came to: theta (R, K, T), the others (R, K)."""

    theta: np.ndarray
    objective: np.ndarray
    converged: np.ndarray


class _Lane(NamedTuple):
    """`theta` is the best so far, `trial` where the next look is taken, which promised a gain."""

    theta: Any
    objective: Any
    gradient: Any
    curvature: Any
    bowl: Any
    trial: Any
    promised: Any
    damping: Any
    converged: Any
    iteration: Any


def solve_starts(
    law: Law,
    on_output: bool,
    delta: float,
    x: np.ndarray,
    y: np.ndarray,
    centre: tuple[np.ndarray, float],
    weights: np.ndarray,
    starts: np.ndarray,
) -> Found:
    """Minimise the weighted sum of Huber(residual; delta) from every start, for every problem.

    x (inputs, n) and y (n,) are logs from their `centre` x0 (inputs,), y0; weights (R, n); starts
    (K, T), or (R, K, T) where each problem has its own. Residuals are of logs, or of the output
    itself where `on_output`; an infinite `delta` makes it least squares.
    """
    problems, count = len(weights), starts.shape[-2]
    pad = _padding(y.size)
    x = np.pad(x, ((0, 0), (0, pad)))
    y = np.pad(y, (0, pad))
    weights = np.pad(np.asarray(weights, dtype=np.float64), ((0, 0), (0, pad)))
    # Lanes of one start lie together: they need about as many iterations as each other.
    problem = np.tile(np.arange(problems), count)
    theta = np.broadcast_to(starts, (problems, count, starts.shape[-1]))
    theta = theta.swapaxes(0, 1).reshape(problem.size, -1).astype(np.float64)
    lanes = _LANES[problem.size > 2 * _LANES[0]]
    if y.size >= _LARGE and problem.size <= _FEWEST_LANES:
        lanes = _FEWEST_LANES
    size = max(1, min(lanes, _MOST_VALUES // (y.size * theta.shape[1])))
    done = Found(np.empty_like(theta), np.empty(problem.size), np.zeros(problem.size, dtype=bool))
    with jax.enable_x64(True), float64_cpu():
        middle = jnp.asarray(centre[0]), jnp.asarray(centre[1])
        look = functools.partial(_advance, law, on_output, jnp.asarray(x), jnp.asarray(y), middle)
        _run(look, np.float64(delta), weights, problem, theta, size, done)
    return Found(*(part.reshape(count, problems, *part.shape[1:]).swapaxes(0, 1) for part in done))


def _run(look, delta, weights, problem, theta, size, done) -> None:
    """Keep `size` lanes busy until every start is finished; writes into `done`."""
    waiting = 0
    place = np.full(size, -1)  # which start each lane works on; -1: none
    state = _fresh(theta[np.zeros(size, dtype=int)])
    while True:
        free = np.flatnonzero(place < 0)
        new = np.arange(waiting, min(waiting + free.size, problem.size))
        if new.size:
            free, waiting = free[: new.size], waiting + new.size
            place[free] = new
            for old, first in zip(state, _fresh(theta[new]), strict=True):
                old[free] = first
        if np.all(place < 0):
            return
        lane_weights = weights[problem[np.maximum(place, 0)]]
        state = _Lane(*(np.array(part) for part in look(lane_weights, delta, state)))
        over = (place >= 0) & (state.converged | (state.iteration >= _MOST_ITERATIONS))
        which = place[over]
        done.theta[which] = state.theta[over]
        done.objective[which] = state.objective[over]
        done.converged[which] = state.converged[over]
        place[over] = -1


def _fresh(theta: np.ndarray) -> _Lane:
    lanes, count = theta.shape
    # The first look is at the start itself, so that the model of the loss is compiled once.
    return _Lane(
        theta=theta.copy(),
        objective=np.full(lanes, np.inf),
        gradient=np.zeros((lanes, count)),
        curvature=np.broadcast_to(np.eye(count), (lanes, count, count)).copy(),
        bowl=np.broadcast_to(np.eye(count), (lanes, count, count)).copy(),
        trial=theta.copy(),
        promised=np.ones(lanes),
        damping=np.full(lanes, 5e-2),
        converged=np.zeros(lanes, dtype=bool),
        iteration=np.zeros(lanes, dtype=np.int64),
    )


def _padding(count: int) -> int:
    padded = _LEAST_POINTS
    while padded < count:
        padded *= 2
    return padded - count


@functools.partial(jax.jit, static_argnums=(0, 1))
def _advance(law, on_output, x, y, centre, weights, delta, state):
    lane = functools.partial(_advance_lane, law, on_output, x, y, centre)
    return jax.vmap(lane, in_axes=(0, None, 0))(weights, delta, state)


def _advance_lane(law, on_output, x, y, centre, weights, delta, state):
    lower, upper = jnp.asarray(law.lower), jnp.asarray(law.upper)
    identity = jnp.eye(lower.size, dtype=y.dtype)
    total = jnp.sum(weights)
    measured = jnp.exp(y) if on_output else y

    def model(theta):
        predicted = law.log_predict(theta, x, *centre)
        return jnp.exp(predicted) if on_output else predicted

    def local_model(theta):
        """Objective, gradient, the curvature that a bowl above the objective has, and its own."""
        residual = measured - model(theta)
        jacobian = jax.jacfwd(model)(theta)
        size = jnp.abs(residual)
        inside = size <= delta
        robust = weights * jnp.where(inside, 1.0, delta / jnp.maximum(size, _TINY))
        huber = jnp.where(inside, 0.5 * size**2, delta * (size - 0.5 * delta))
        weighted = jacobian * robust[:, None]
        quadratic = jacobian * jnp.where(inside, weights, 0.0)[:, None]
        return (
            jnp.sum(weights * huber),
            -(weighted.T @ residual),
            quadratic.T @ jacobian,
            weighted.T @ jacobian,
        )

    def step_from(theta, gradient, curvature, bowl, damping):
        """One step, with what rests on a bound and pushes outwards held there."""
        held = ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0))
        free = jnp.where(held, 0.0, 1.0)
        both = free[:, None] * free[None, :]
        ridge = damping * (bowl * both + identity * jnp.diagonal(bowl)[:, None])
        matrix = curvature * both + ridge + identity * (_TINY + 1.0 - free)[:, None]
        return -_solve_spd(matrix, gradient * free)

    def advance(_, state):
        objective, gradient, curvature, bowl = local_model(state.trial)
        better = objective <= state.objective
        kept = state.objective - objective >= _KEPT * state.promised
        theta, objective, gradient, curvature, bowl = jax.tree.map(
            functools.partial(jnp.where, better),
            (state.trial, objective, gradient, curvature, bowl),
            (state.theta, state.objective, state.gradient, state.curvature, state.bowl),
        )
        factor = jnp.where(better, jnp.where(kept, 0.2, 2.0), 5.0)
        damping = jnp.clip(state.damping * factor, 1e-12, 1e12)
        step = step_from(theta, gradient, curvature, bowl, damping)
        full = step_from(theta, gradient, curvature, bowl, jnp.asarray(1e-12, y.dtype))
        allowed = jnp.clip(theta + full, lower, upper) - theta
        gain = -jnp.sum(allowed * (gradient + 0.5 * (curvature @ allowed)))
        converged = jnp.abs(gain) <= _DECREMENT * objective + _DECREMENT_FLOOR * total
        new = _Lane(
            theta,
            objective,
            gradient,
            curvature,
            bowl,
            trial=jnp.clip(theta + step, lower, upper),
            promised=-jnp.sum(step * (gradient + 0.5 * (curvature @ step))),
            damping=damping,
            converged=converged,
            iteration=state.iteration + 1,
        )
        return jax.tree.map(functools.partial(jnp.where, state.converged), state, new)

    return jax.lax.fori_loop(0, _ITERATIONS_A_CALL, advance, state)


def _solve_spd(matrix, right):
    """Cholesky, written out: a batched library call costs more than these few products."""
    count = right.shape[0]
    low = [[None] * count for _ in range(count)]
    for i in range(count):
        for j in range(i + 1):
            rest = matrix[i, j] - sum((low[i][k] * low[j][k] for k in range(j)), 0.0)
            low[i][j] = jnp.sqrt(jnp.maximum(rest, _TINY**2)) if i == j else rest / low[j][j]
    forward = []
    for i in range(count):
        rest = right[i] - sum((low[i][k] * forward[k] for k in range(i)), 0.0)
        forward.append(rest / low[i][i])
    back = [None] * count
    for i in reversed(range(count)):
        rest = forward[i] - sum((low[k][i] * back[k] for k in range(i + 1, count)), 0.0)
        back[i] = rest / low[i][i]
    return jnp.stack(back)
