"""How far unfinished runs would move the fit of a law, were they finished as they are forecast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from scaling_jax.errors import WorkError
from scaling_jax.laws import uncertainty
from scaling_jax.laws.fitting import make_points, require_identified, solve
from scaling_jax.laws.forecast.law_ends import Finished, LawEnd, is_of_curves
from scaling_jax.laws.identified import require_independent
from scaling_jax.laws.selection import MIN_SIZES

if TYPE_CHECKING:
    from scaling_jax.laws.law import Law

_LATELY = 4  # points that say how far a run lies from the law, as far as it has come
_NEXT = 1.02  # a point nearer than this to the last one seen is that one


class Refits:
    """Refits to the finished points and to those of unfinished runs, all low or all high."""

    def __init__(self, form: Law, finished: Finished, ends: Sequence[LawEnd], level: float) -> None:
        """Raises `WorkError` where the finished runs do not carry the law."""
        inputs, count = finished.inputs, finished.loss.size
        _require_sizes(form.slug, inputs)
        alone = make_points(form, inputs, finished.loss)
        require_independent(alone, ())
        solution = solve(alone, np.ones((1, count)))
        require_identified(alone, solution)
        self.form = form
        self.values = dict(
            zip(form.params, np.exp(alone.log_params(solution.theta[0])).tolist(), strict=True)
        )
        self.intervals = uncertainty.spread(
            alone, solution.theta[0], np.ones(count), finished.run, alone.x[0], level=level
        ).intervals
        if is_of_curves(form):
            curves = [_curves(form, finished, self.values, end) for end in ends]
        else:
            curves = [(np.array([end.place]), np.array([[end.low], [end.high]])) for end in ends]
        places = [at for at, _ in curves for _ in range(2)]
        wide = {
            name: np.concatenate([inputs[name], *(at[:, k] for at in places)])
            for k, name in enumerate(form.inputs)
        }
        losses = np.concatenate([finished.loss, *(loss.ravel() for _, loss in curves)])
        self._points = make_points(form, wide, losses)
        length = [at.shape[0] for at, _ in curves]
        # Of every point the run, -1 for a finished one, and whether it belongs to the high end.
        run = [np.full(2 * n, k) for k, n in enumerate(length)]
        self._run = np.concatenate([np.full(count, -1), *run])
        self._high = np.concatenate([np.zeros(count), *(np.repeat([0, 1], n) for n in length)])
        found = solve(self._points, (self._run < 0).astype(float)[None])
        self._theta = found.theta[0]

    def moves(self, groups: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """How far the runs of each group together would move every exponent, the larger of both
        ends over the length of its interval, and what they would take off its standard error, each
        (groups, exponents)."""
        own = np.array([(self._run < 0) | np.isin(self._run, group) for group in groups])
        low, high = own & (self._high == 0), own & ((self._run < 0) | (self._high == 1))
        weights = np.stack([low, high], axis=1).reshape(-1, self._run.size).astype(float)
        starts = np.concatenate([self._theta[None], self._points.law.starts[[0, -1]]])
        found = solve(self._points, weights, starts=starts)
        names = list(self.form.exponents)
        place = [self.form.params.index(name) for name in names]
        moved = np.exp(self._points.log_params(found.theta))[:, place]
        middle = np.array([self.values[name] for name in names])
        length = np.array([self.intervals[name][1] - self.intervals[name][0] for name in names])
        moved = np.abs(moved - middle) / length
        moved[~found.converged | found.at_bound] = np.inf
        return moved.reshape(len(groups), 2, -1).max(axis=1), self._narrowed(low)[:, place]

    def _narrowed(self, weights: np.ndarray) -> np.ndarray:
        """The share that points with weights (groups, n) take off the standard errors of the
        parameters (groups, P), as their places alone tell."""
        points, theta = self._points, self._theta
        steps = 1e-6 * np.eye(theta.size)
        rises = [points.residuals(theta + by) - points.residuals(theta - by) for by in steps]
        slope, out = np.stack(rises, axis=1), points.slopes(theta)  # up to one factor

        def errors(weight: np.ndarray) -> np.ndarray:
            information = np.linalg.pinv((slope * weight[:, None]).T @ slope)
            return np.sqrt(np.einsum("tp,tu,up->p", out, information, out))

        without = errors((self._run < 0).astype(float))
        return np.array([1 - errors(weight) / without for weight in weights])


def _require_sizes(law: str, inputs: Mapping[str, np.ndarray]) -> None:
    """Two values give an exponent, and a third what it is worth: no run is stopped before."""
    for name, values in inputs.items():
        if (count := np.unique(values).size) < MIN_SIZES:
            raise WorkError(
                f"the finished runs have {count} value{'s' * (count > 1)} of {name}: a run may be "
                f"stopped for {law} once they have {MIN_SIZES}"
            )


def _curves(
    form: Law, finished: Finished, values: Mapping[str, float], end: LawEnd
) -> tuple[np.ndarray, np.ndarray]:
    """The places (n, inputs) of all points that the run would give, and losses (2, n) with its end
    at `low` and at `high`.

    What is still to come lies as densely as in the finished run that went furthest. Its distance
    from the law goes from that of the last points seen to that of the end, evenly in the log.
    """
    axis = finished.inputs[form.inputs[-1]]
    longest = np.unique(axis[finished.run == finished.run[axis.argmax()]])
    last = end.seen[-1, -1] if end.seen.size else finished.least.get(form.inputs[-1], 0.0)
    ahead = longest[:-1] * (end.place[-1] / longest[-1])
    ahead = np.append(ahead[ahead > last * _NEXT], end.place[-1])
    places = np.tile(end.place, (ahead.size, 1))
    places[:, -1] = ahead

    def expected(at: np.ndarray) -> np.ndarray:
        return np.log(form.predict(values, **dict(zip(form.inputs, at.T, strict=True))))

    after = np.log([[end.low], [end.high]]) - expected(places)[-1]
    before, share = after, np.ones(ahead.size)
    if end.seen.size:
        before = np.mean((np.log(end.losses) - expected(end.seen))[-_LATELY:])
        share = np.log(ahead / last) / np.log(end.place[-1] / last)
    coming = np.exp(expected(places) + before + (after - before) * share)
    seen = np.broadcast_to(end.losses, (2, end.losses.size))
    places = np.concatenate([end.seen.reshape(-1, places.shape[1]), places])
    return places, np.hstack([seen, coming])
