"""Fits of a schedule law: many shapes tried at once, the sizes of its terms solved for each."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forecast.cleaning import FEWEST_ALONE
from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.forecast.rates import Rates, drops, make_rates, progress
from scaling_jax.laws.forecast.schedule_laws import ScheduleLaw, find_schedule_law
from scaling_jax.laws.forecast.schedule_shapes import (
    INDEPENDENT,
    NEVER,
    RESIDUAL,
    Basis,
    Expected,
    Sizes,
    basis,
    mean_moments,
    moments_of,
    prior,
    residuals,
    shapes,
    solve_sizes,
)

FLOOR = 5e-4  # log residual that no law is expected to go below
DELTA = 1e-3  # Huber width of log residuals, the authors' of the multi-power law
FALLS = 0.1  # of the peak: a rate that falls by less does not show what a fall does
SPREAD = 0.15  # of log A and of log(B / A) about what other models let one expect
SCATTER, SLOPE = 0.05, 0.1  # of those logs about a line in log size, and what slopes it may have
MOST_MODELS = 6  # whose word on the shape counts in full; of more, each counts less
ROUNDS = 3
MOST_STEPS, USUAL_STEPS = 1e7, 3e4  # of a run: more are tokens
_PLAUSIBLE = 1e-3  # of the best shape's weight: less is left out
_TINY = 1e-300
_LEAST = 1e-15  # of A and of B: a term that is not there


class Shape(NamedTuple):
    """A place of the grid with the sizes that go with it, and how plausible it is."""

    weight: float
    L0: float
    A: float
    B: float
    alpha: float
    q: float
    constants: np.ndarray  # logs


@dataclass(frozen=True, eq=False)
class ScheduleFit:
    """A schedule law of one model.

    `shapes` are all that the data leave plausible, with weights that add up to 1: predictions are
    averages over them. `params` are the most plausible one, and `rms_log_residual` is of that.
    They count steps in `unit` of the curves': 1, but where these are tokens.
    """

    law: ScheduleLaw
    shapes: tuple[Shape, ...]
    rms_log_residual: float
    n_points: int
    n_curves: int
    unit: float = 1.0

    @property
    def params(self) -> dict[str, float]:
        """The parameters of the most plausible shape, by name."""
        best = max(self.shapes, key=lambda shape: shape.weight)
        own = {name: getattr(best, name) for name in ("L0", "A", "B", "alpha", "q")}
        constants = np.exp(best.constants).tolist()
        return own | dict(zip(self.law.constants, constants, strict=True))

    def predict(
        self, lr: ArrayLike, steps: ArrayLike, warmup_steps: float | None = None
    ) -> np.ndarray:
        """Losses (n,), nats a token, at `steps` (n,) of a run with the learning rates `lr`.

        `lr` is rows (step, lr), (k, 2), linear in between, or one rate for each step from the
        first on, (k,). Raises `RequestError` for other shapes and for steps beyond the rates.
        """
        rates = rates_from(lr, warmup_steps)
        steps = np.atleast_1d(np.asarray(steps, dtype=np.float64))
        if not steps.size or steps.min() <= 0 or steps.max() > rates.step[-1] * (1 + 1e-9):
            raise RequestError(
                f"Steps must lie above 0 and up to the last learning rate, of step "
                f"{rates.step[-1]:g}"
            )
        order, place = np.unique(steps, return_inverse=True)
        return self.along(rates, order)[place]

    def along(self, rates: Rates, steps: np.ndarray) -> np.ndarray:
        """Losses (n,) at ascending steps (n,) of those rates."""
        rates, steps = rates.counted_in(self.unit), steps / self.unit
        changes = drops(rates, steps)
        gained = {}
        covered = {q: progress(rates, steps, q) for q in {shape.q for shape in self.shapes}}
        loss = np.zeros(steps.shape)
        for shape in self.shapes:
            key = tuple(shape.constants)
            if key not in gained:
                gained[key] = self.law.gained(shape.constants, changes)
            power = shape.A * covered[shape.q] ** -shape.alpha
            loss += shape.weight * (shape.L0 + power - shape.B * gained[key])
        return loss


def rates_from(lr: ArrayLike, warmup_steps: float | None = None) -> Rates:
    """Rates of rows (step, lr), (k, 2), or of one learning rate a step from the first on, (k,)."""
    lr = np.asarray(lr, dtype=np.float64)
    if lr.ndim == 1:
        return make_rates(np.arange(1.0, lr.size + 1), lr, warmup_steps)
    if lr.ndim == 2 and lr.shape[1] == 2:
        return make_rates(lr[:, 0], lr[:, 1], warmup_steps)
    raise RequestError(f"lr has shape {lr.shape}: rows (step, lr), or a learning rate a step")


def fit_schedule_law(
    curves: Sequence[Curve],
    law: str = "multi_power",
    shared: Sequence[Sequence[Curve]] | None = None,
) -> ScheduleFit:
    """Fit a schedule law to the curves of one model, under whatever schedules.

    Minimises the sum over points, of equal weight along log step, of Huber losses of relative
    residuals: alpha, q and the constants of the response over a grid with priors, L0, A and B for
    each of them exactly. `shared` are the curves of other models, a list for each, that share
    alpha, q and the response with this one, and B / A about.

    Raises `RequestError` for an unknown law and for curves without a learning rate, `WorkError`
    for too few points, and where no rate among the curves fell, so that B could be anything.
    """
    form = find_schedule_law(law)
    if not curves:
        raise RequestError("No curve to fit a schedule law to")
    if missing := [curve.name for curve in curves if curve.lr is None]:
        raise RequestError(
            f"{missing[0]} has no learning rate at each step: a schedule law needs it; name the "
            "column with lr=COLUMN"
        )
    others = [own for own in shared or () if own and all(curve.lr is not None for curve in own)]
    fit = fit_shape(form, tuple(curves), tuple(tuple(own) for own in others))
    if fit is None:
        raise WorkError(
            f"{sum(curve.step.size for curve in curves)} points are too few for a schedule law, or "
            "their losses do not fall"
        )
    if not any(falls(curve) for curve in (*curves, *(c for own in others for c in own))):
        raise WorkError(
            "The learning rate of no curve falls: what a fall gains is not in the data. Add a run "
            "whose rate decays, or forecast at constant rate only"
        )
    return fit


def fit_shape(
    law: ScheduleLaw, own: tuple[Curve, ...], others: tuple[tuple[Curve, ...], ...]
) -> ScheduleFit | None:
    """The fit to the curves of one model and the other models' (`fit_schedule_law`).

    None where no curve of the model has points enough, or their losses do not fall.
    """
    unit = _unit([*own, *(curve for model in others for curve in model)])
    bases = [each for curve in own if (each := basis(law, curve, unit)) is not None]
    cost = prior(law)
    solved = [(model, _model_sizes(law, model, unit)) for model in others]
    known = [(model, sizes) for model, sizes in solved if sizes is not None]
    if not bases or (not known and sum(each.y.size for each in bases) < FEWEST_ALONE):
        return None
    for _, sizes in known:
        share = min(1.0, MOST_MODELS / len(known))
        cost = cost + share * INDEPENDENT / 2 * np.log(sizes.square + FLOOR**2)
    expected = _expected(own[0].size, known)
    settled = _settle(bases, cost, expected)
    if settled is None:
        return None
    total, sizes, residual = settled
    return ScheduleFit(
        law=law,
        shapes=_plausible(law, total, sizes),
        rms_log_residual=float(np.sqrt(np.mean(residual**2))),
        n_points=residual.size,
        n_curves=len(bases),
        unit=unit,
    )


def _settle(
    bases: Sequence[Basis], cost: np.ndarray, expected: Expected
) -> tuple[np.ndarray, Sizes, np.ndarray] | None:
    """The shapes' costs and sizes, and the residuals (n,) of the best; None where none is good.

    The first round finds the shape, the others lessen what lies far from it.
    """
    count, curves = sum(each.y.size for each in bases), len(bases)
    robust = [np.ones_like(each.y) for each in bases]
    usual, settled = RESIDUAL, None
    for _ in range(ROUNDS):
        parts = [moments_of(each, part) for each, part in zip(bases, robust, strict=True)]
        sizes = solve_sizes(mean_moments(parts), expected, usual)
        least = float(sizes.square.min())
        if least >= NEVER:
            return None
        total = cost + curves * INDEPENDENT / 2 * np.log(sizes.square + FLOOR**2)
        place = divmod(int(np.argmin(total)), total.shape[1])
        residual = [residuals(each, sizes, place) for each in bases]
        settled = total, sizes, np.concatenate(residual)
        # White noise averages out over the points; what a law misses does not.
        usual = max(RESIDUAL, float(np.sqrt(least * INDEPENDENT * curves / count)))
        robust = [np.minimum(1.0, DELTA / np.maximum(np.abs(each), _TINY)) for each in residual]
    return settled


def _plausible(law: ScheduleLaw, total: np.ndarray, sizes: Sizes) -> tuple[Shape, ...]:
    """The shapes of the grid within reach of the best, weighted by exp(-cost)."""
    weight = np.exp(total.min() - total)
    kept = np.argwhere(weight > _PLAUSIBLE)
    whole = float(np.sum(weight[weight > _PLAUSIBLE]))
    grid = shapes()
    return tuple(
        Shape(
            float(weight[s, k]) / whole,
            float(sizes.L0[s, k]),
            float(sizes.A[s, k]),
            float(sizes.B[s, k]),
            float(grid[s, 0]),
            float(grid[s, 1]),
            law.grid[k],
        )
        for s, k in kept
    )


def _unit(curves: Sequence[Curve]) -> float:
    """What a step is counted in: tokens are taken for as many as a step of a usual run has.

    The response goes by the updates made, and its constants are known in these.
    """
    longest = max(curve.end for curve in curves if curve.step.size)
    return longest / USUAL_STEPS if longest > MOST_STEPS else 1.0


def falls(curve: Curve) -> bool:
    """Whether the rate falls, after its peak, by enough to show what that does."""
    if curve.lr is None or not curve.lr.size:
        return False
    after = curve.lr[int(np.argmax(curve.lr)) :]
    return bool(after.min() < (1 - FALLS) * after[0])


@functools.lru_cache(maxsize=2048)
def _model_sizes(law: ScheduleLaw, model: tuple[Curve, ...], unit: float) -> Sizes | None:
    """Another model's own fit, which many forecasts ask for."""
    bases = [each for curve in model if (each := basis(law, curve, unit)) is not None]
    if not bases:
        return None
    return solve_sizes(mean_moments(moments_of(each, np.ones_like(each.y)) for each in bases))


def _expected(size: float | None, models: Sequence[tuple[tuple[Curve, ...], Sizes]]) -> Expected:
    """What to expect of a model of that size from the others, and their sizes."""
    if not models:
        return Expected(None, None)
    falling = [each for each in models if any(falls(curve) for curve in each[0])]

    def expect(models, log_value):
        logs = np.stack([log_value(sizes) for _, sizes in models])
        return _trend(size, [model[0].size for model, _ in models], logs)

    return Expected(
        A=expect(models, lambda each: _log(each.A)),
        ratio=expect(falling, lambda each: _log(each.B) - _log(each.A)) if falling else None,
    )


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(values, _LEAST))


def _trend(
    size: float | None, sizes: list[float | None], logs: np.ndarray
) -> tuple[np.ndarray, float]:
    """What logs (models, s, k) come to at a size, by a line in log size where sizes are known."""
    mean = np.median(logs, axis=0)
    known = [each for each in sizes if each is not None]
    if size is None or len(known) < len(sizes):
        return mean, SPREAD
    at = np.log(known)
    x = at - at.mean()
    # As if the slope had been seen before, about 0: sizes close together do not tell of it.
    slope = np.tensordot(x, logs, axes=(0, 0)) / (x @ x + (SCATTER / SLOPE) ** 2)
    return np.mean(logs, axis=0) + slope * (np.log(size) - at.mean()), SPREAD
