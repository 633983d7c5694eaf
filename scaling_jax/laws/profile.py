"""Profile likelihood of one parameter: how much worse the best fit is with it held elsewhere."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, stats

from scaling_jax.errors import RequestError, nearest
from scaling_jax.laws.fitting import Points, solve
from scaling_jax.laws.law import Law
from scaling_jax.laws.sandwich import sandwich

_FARTHEST = 25.0  # in logs, for a parameter without bounds
_FIRST_STEP = 0.5  # in standard errors; each further one is longer by a third
_LONGER = 4 / 3
_ENOUGH = 2.0  # times the threshold, where the walk ends


@dataclass(frozen=True)
class Profile:
    """`value` (K,) ascending, in the parameter's units, and the `excess` (K,) of fits there.

    The excess counts as a squared Student t: the interval is where it is at most `threshold`.
    An end of the `interval` is None where that is so up to the bound of the parameter.
    """

    name: str
    value: np.ndarray
    excess: np.ndarray
    threshold: float
    interval: tuple[float | None, float | None]

    @property
    def is_flat(self) -> bool:
        """Whether the points leave the parameter open, on one side or on both."""
        return None in self.interval


def profile(
    points: Points,
    theta: np.ndarray,
    weights: np.ndarray,
    cluster: np.ndarray,
    name: str,
    level: float = 0.9,
) -> Profile:
    """The profile of parameter `name` around the minimum theta (T,) of points with weights (n,).

    The rest is solved again at each value, walking outwards from the minimum. The rise of the
    objective is counted against the scale of the residuals, and against how much more the
    parameter varies with the runs (`cluster` (n,)) than it would with points drawn one by one
    (Chandler and Bate 2007, Biometrika 94(1)). Where the profile is a parabola, the interval is
    the one of `uncertainty.spread`. Raises `RequestError` for a parameter that the law has not or
    that is fixed, `WorkError` as `sandwich`.
    """
    law = points.law
    if name not in law.params:
        raise RequestError(f"{law.slug} has no parameter {name!r}.{nearest(name, law.params)}")
    place = law.params.index(name)
    direction = points.slopes(theta)[:, place]
    if not direction.any():
        raise RequestError(f"{name} is fixed: it has no profile")
    robust = sandwich(points, theta, weights, cluster)
    variance = float(direction @ robust.covariance @ direction)
    apart = float(direction @ robust.independent @ direction)
    unit = robust.unit * variance / apart
    threshold = float(stats.t.ppf((1 + level) / 2, robust.freedom(direction))) ** 2

    held = _Held.of(points, theta, place, direction)
    best = held.best(held.start, held.rest[None], weights)
    walks = [_walk(held, best, sign, np.sqrt(variance), unit * threshold, weights)
               for sign in (-1, 1)]  # fmt: skip
    path = [*walks[0][::-1], (held.start, *best), *walks[1]]
    at, objective = np.array([[step[0], step[1]] for step in path]).T
    # A walk may find a lower minimum than the one it set out from.
    excess = (objective - objective.min()) / unit
    below = np.flatnonzero(excess <= threshold)

    def end(inside: int, outside: int) -> float | None:
        if not 0 <= outside < len(path):
            return None
        starts = np.stack([path[inside][2], path[outside][2]])

        def above(value: float) -> float:
            found, _ = held.best(value, starts, weights)
            return (found - objective.min()) / unit - threshold

        if above(at[outside]) <= 0:  # the other start found a lower way there
            return float(np.exp(at[outside]))
        precision = 1e-3 * float(np.sqrt(variance))
        found: Any = optimize.brentq(above, at[inside], at[outside], xtol=precision)
        return float(np.exp(found))

    interval = (end(below[0], below[0] - 1), end(below[-1], below[-1] + 1))
    return Profile(name, np.exp(at), excess, threshold, interval)


def _walk(
    held: _Held,
    best: tuple[float, np.ndarray],
    sign: int,
    error: float,
    rise: float,
    weights: np.ndarray,
) -> list[tuple[float, float, np.ndarray]]:
    """Values, objectives and the rest, outwards until the objective rose enough or the bound."""
    at, length, bound = held.start, _FIRST_STEP * error, held.bounds[sign > 0]
    objective, rest = best
    path = []
    while objective <= best[0] + _ENOUGH * rise and at != bound:
        at = float(np.clip(at + sign * length, *held.bounds))
        objective, rest = held.best(at, np.stack([rest, held.rest]), weights)
        path.append((at, objective, rest))
        length *= _LONGER
    return path


@dataclass(frozen=True)
class _Held:
    """The points under a law that takes one coordinate from its inputs: one program for all values.

    The coordinates are the law's own where the parameter is one of them, else the logs of its free
    parameters. `start` is the log of the parameter at the minimum, which lies at `rest` (T,), of
    which coordinate `axis` is held; `bounds` are those of the log of the parameter.
    """

    points: Points
    axis: int
    rest: np.ndarray
    start: float
    bounds: tuple[float, float]

    @classmethod
    def of(cls, points: Points, theta: np.ndarray, place: int, direction: np.ndarray) -> _Held:
        law, log_params = points.law, points.log_params(theta)
        start, axis = float(log_params[place]), int(np.argmax(np.abs(direction)))
        if np.allclose(direction, np.eye(theta.size)[axis], atol=1e-6):
            low, high = start + law.lower[axis] - theta[axis], start + law.upper[axis] - theta[axis]
            held = replace(points, law=_held_law(law, False))
            return cls(held, axis, theta, start, (float(low), float(high)))
        if law.params[place] not in law.coordinates:
            raise RequestError(f"{law.params[place]} of {law.slug} cannot be held by itself")
        free = [law.params.index(name) for name in law.coordinates]
        bounds = (start - _FARTHEST, start + _FARTHEST)
        held = replace(points, law=_held_law(law, True))
        return cls(held, free.index(place), log_params[free], start, bounds)

    def best(self, at: float, starts: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
        """The lowest objective with the parameter's log at `at`, and the coordinates (T,) there."""
        points, which = self.points, np.eye(self.rest.size)[self.axis]
        held = np.concatenate([which, which * (self.rest[self.axis] + at - self.start)])
        held = np.broadcast_to(held[:, None], (held.size, points.y.size))
        found = solve(
            replace(points, x=np.concatenate([points.x, held])), weights[None], starts=starts
        )
        return float(found.objective[0]), found.theta[0]


@functools.lru_cache(maxsize=64)  # a law that is another object is compiled anew
def _held_law(law: Law, logs: bool) -> Law:
    inputs, unknown = len(law.inputs), law.lower.size
    free = np.array([law.params.index(name) for name in law.coordinates])

    def log_predict(theta: jax.Array, x: jax.Array, x0: Any, y0: Any) -> jax.Array:
        which, value = x[-2 * unknown : -unknown, 0], x[-unknown:, 0]
        theta = jnp.where(which > 0, value, theta)
        if logs:
            log_params = jnp.zeros(len(law.params), theta.dtype).at[free].set(theta)
            theta = law.from_log_params(log_params, x0, y0)
        return law.log_predict(theta, x[:inputs], x0, y0)

    if not logs:
        return replace(law, log_predict=log_predict)
    open_ended = np.full(unknown, np.inf)
    return replace(law, log_predict=log_predict, lower=-open_ended, upper=open_ended)
