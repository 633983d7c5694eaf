"""Robust fits of a law to points: the problem, its solution, and when there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from scaling_jax.errors import RequestError, WorkError, counted, nearest
from scaling_jax.laws.law import DELTA, Law, float64_cpu
from scaling_jax.laws.solver import Found, solve_starts

_AT_BOUND = 1e-3  # in inner coordinates, as is the next
_SAME_MINIMUM = 0.01  # two minima closer than 1 % in every inner coordinate are one


class Objective(NamedTuple):
    """What a fit minimises, summed over points and never averaged.

    `huber`: Huber losses of log residuals, of width `delta`; `log_squares`: half the squares of log
    residuals; `squares`: half the squares of the residuals themselves, in units of the geometric
    mean of the output.
    """

    form: Literal["huber", "log_squares", "squares"]
    delta: float = float("inf")

    @property
    def text(self) -> str:
        """For people, and for the JSON of a fit."""
        return {
            "huber": f"sum over points of Huber(log residual; delta = {self.delta:g})",
            "log_squares": "half the sum over points of squared log residuals",
            "squares": "half the sum over points of squared residuals, in units of the mean output",
        }[self.form]


class Solutions(NamedTuple):
    """The best start of each of R problems: theta (R, T), the other fields (R,)."""

    theta: np.ndarray
    objective: np.ndarray
    converged: np.ndarray
    at_bound: np.ndarray


@dataclass(frozen=True)
class Points:
    """Centred log inputs x (inputs, n) and log outputs y (n,), and their centres."""

    law: Law
    x: np.ndarray
    y: np.ndarray
    x_centre: np.ndarray
    y_centre: float
    objective: Objective

    def log_params(self, theta: np.ndarray) -> np.ndarray:
        """Logs of the law's parameters (..., P) at inner coordinates theta (..., T)."""
        return self.law.to_log_params(theta, self.x_centre, self.y_centre)

    def slopes(self, theta: np.ndarray) -> np.ndarray:
        """Slopes (T, P) of the logs of the parameters at theta (T,); 0 for one that is held."""
        step = 1e-6 * np.eye(theta.size)
        with np.errstate(invalid="ignore"):  # an offset that is held at zero
            rise = self.log_params(theta + step) - self.log_params(theta - step)
        return np.nan_to_num(rise / 2e-6)

    def residuals(self, theta: np.ndarray) -> np.ndarray:
        """Observed less predicted log output (n,) at theta (T,)."""
        with jax.enable_x64(True), float64_cpu():
            at = jnp.asarray(theta), jnp.asarray(self.x), self.x_centre, self.y_centre
            predicted = self.law.log_predict(*at)
            return self.y - np.asarray(predicted)


class PointFit(NamedTuple):
    """Parameters, the objective, the rms of the log residuals, and the residuals (n,)."""

    params: dict[str, float]
    objective: float
    rms_log_residual: float
    log_residual: np.ndarray


def find_objective(law: Law, form: str | None = None, delta: float | None = None) -> Objective:
    """The objective of that name, by default what the law is usually fitted with.

    `delta` is the width of huber. Raises `RequestError` for an unknown name and for a width that
    is none.
    """
    known = ("huber", "log_squares", "squares")
    if form is None:
        form = "huber" if delta is not None or np.isfinite(law.delta) else "log_squares"
    if form not in known:
        raise RequestError(f"No objective {form!r}.{nearest(form, known)}")
    if form != "huber":
        if delta is not None:
            raise RequestError(f"delta is the width of huber; {form} has none")
        return Objective(form)  # pyright: ignore[reportArgumentType]
    width = delta if delta is not None else law.delta if np.isfinite(law.delta) else DELTA
    if not (np.isfinite(width) and width > 0):
        raise RequestError(f"delta is a positive width of log residuals, not {width:g}")
    return Objective("huber", width)


def make_points(
    law: Law,
    inputs: Mapping[str, ArrayLike],
    output: ArrayLike,
    objective: Objective | None = None,
) -> Points:
    """Logs of positive inputs (n,) and outputs (n,), centred on their means.

    Raises `RequestError` for a missing input, unequal lengths, and values that are not positive
    and finite, `WorkError` for no more points than parameters.
    """
    if missing := [name for name in law.inputs if name not in inputs]:
        raise RequestError(f"{law.slug} needs the input {', '.join(missing)}")
    columns = {name: np.asarray(inputs[name], dtype=np.float64) for name in law.inputs}
    columns[law.output] = np.asarray(output, dtype=np.float64)
    for name, column in columns.items():
        if column.shape != columns[law.output].shape or column.ndim != 1:
            raise RequestError(
                f"{name} has shape {column.shape}, {law.output} {columns[law.output].shape}"
            )
        if bad := int(np.sum(~(np.isfinite(column) & (column > 0)))):
            rows = "row" if bad == 1 else "rows"
            raise RequestError(f"{bad} {rows} of {name} not positive and finite")
    unknown = len(law.lower)
    if columns[law.output].size <= unknown:
        raise WorkError(
            f"{counted(columns[law.output].size, 'point')} cannot fix the {unknown} parameters of "
            f"{law.slug}: more than {unknown} are needed"
        )
    x = np.log(np.stack([columns[name] for name in law.inputs]))
    y = np.log(columns[law.output])
    centre, level = x.mean(axis=1), float(y.mean())
    return Points(
        law=law,
        x=x - centre[:, None],
        y=y - level,
        x_centre=centre,
        y_centre=level,
        objective=find_objective(law) if objective is None else objective,
    )


def fit_points(
    law: Law,
    inputs: Mapping[str, ArrayLike],
    output: ArrayLike,
    objective: Objective | None = None,
) -> PointFit:
    """The law through points of equal weight, by default with the law's own Huber width.

    The sum and not the mean is minimised: a mean of many small residuals meets a solver's tolerance
    early. Raises `RequestError` as `make_points`, `WorkError` when no start converges or the
    minimum lies on a bound, where the data do not fix a parameter.
    """
    points = make_points(law, inputs, output, objective)
    solution = solve(points, np.ones((1, points.y.size)))
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
        law, theta = points.law, solution.theta[0]
        values = np.exp(points.log_params(theta))
        found = ", ".join(f"{k} {v:.3g}" for k, v in zip(law.params, values, strict=True))
        near = np.flatnonzero(_near_bound(law, theta))
        bound = " and of ".join(law.coordinates[k] for k in near)
        if bound == law.offset:
            raise WorkError(
                f"The points show no {law.offset}: the best fit has it at its bound ({found}). Fix "
                f"{law.offset} at 0, or fit the law without it"
            )
        raise WorkError(
            f"The points do not identify {law.slug}: the best fit lies on the bound of {bound} "
            f"({found}). Wider ranges of {' and of '.join(law.inputs)} are needed"
        )


def solve(points: Points, weights: np.ndarray, starts: np.ndarray | None = None) -> Solutions:
    """Solve R problems that share the points and differ in weights (R, n); zero leaves one out.

    Every problem is started from every row of `starts` (K, T), or of its own (R, K, T), by default
    from the law's, and its lowest minimum is kept. `converged` says that the start of that minimum
    met the tolerance.
    """
    found = _solve_starts(points, weights, starts)
    # A start that stopped on the way must not win over a finished one by rounding.
    rank = np.where(found.converged, found.objective, found.objective * (1 + 1e-9) + 1e-20)
    best = np.argmin(np.where(np.isfinite(rank), rank, np.inf), axis=1)
    rows = np.arange(len(weights))
    theta = found.theta[rows, best]
    return Solutions(
        theta,
        found.objective[rows, best],
        found.converged[rows, best],
        _at_bound(points.law, theta),
    )


def minima(points: Points, weights: np.ndarray) -> Solutions:
    """The distinct minima that the law's starts find for weights (n,), the lowest first."""
    theta, objective, converged = (part[0] for part in _solve_starts(points, weights[None, :]))
    kept: list[int] = []
    for i in np.argsort(objective):
        new = all(np.max(np.abs(theta[i] - theta[j])) > _SAME_MINIMUM for j in kept)
        if converged[i] and new:
            kept.append(int(i))
    theta = theta[kept]
    return Solutions(theta, objective[kept], converged[kept], _at_bound(points.law, theta))


def _solve_starts(points: Points, weights: np.ndarray, starts: np.ndarray | None = None) -> Found:
    objective = points.objective
    return solve_starts(
        points.law,
        objective.form == "squares",
        objective.delta if objective.form == "huber" else np.inf,
        points.x,
        points.y,
        (points.x_centre, points.y_centre),
        weights,
        points.law.starts if starts is None else starts,
    )


def _at_bound(law: Law, theta: np.ndarray) -> np.ndarray:
    return np.any(_near_bound(law, theta), axis=-1)


def _near_bound(law: Law, theta: np.ndarray) -> np.ndarray:
    return (theta <= law.lower + _AT_BOUND) | (theta >= law.upper - _AT_BOUND)
