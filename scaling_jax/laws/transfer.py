"""Transfer to another corpus: its loss as a line in the loss on the training corpus."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from scaling_jax.errors import RequestError, WorkError, counted
from scaling_jax.laws.arrays import columns, labels
from scaling_jax.laws.regression import f_test, jackknife, line_over, student

_LEAST_RUNS = 3
_LEAST_POINTS = 3  # of one run in one phase, for a line of its own


class Quantity(NamedTuple):
    """A number with its standard error and interval."""

    value: float
    se: float
    low: float
    high: float


class PhaseTest(NamedTuple):
    """F test that points of two phases lie on one line: no offset between them, no other slope.

    `p_value` is None where the points cannot tell, and `reason` then says why. `shift`: the second
    phase above the first, nats a token, where the second one's points are.
    """

    phases: tuple[str, str]
    method: str
    F: float | None
    df: tuple[int, int] | None
    p_value: float | None
    shift: float | None
    reason: str


@dataclass(frozen=True)
class TransferLine:
    """L_other = offset + slope L_train, both losses in nats a token.

    `gap`: L_other less L_train in the middle of the points (`centre`, L_train), which they fix
    much better than the `offset` at a loss of zero.
    """

    offset: Quantity
    slope: Quantity
    gap: Quantity
    centre: float
    level: float
    rms_residual: float
    n_points: int
    n_runs: int
    phase_test: PhaseTest | None

    def predict(self, loss_train: ArrayLike) -> np.ndarray:
        """L_other at losses on the training corpus, nats a token."""
        return self.offset.value + self.slope.value * np.asarray(loss_train, dtype=np.float64)


def transfer_line(
    loss_train: ArrayLike,
    loss_other: ArrayLike,
    run: ArrayLike,
    phase: ArrayLike | None = None,
    level: float = 0.9,
) -> TransferLine:
    """Loss on another corpus against loss on the training corpus, a least-squares line.

    `loss_train` and `loss_other` (n,) at the same checkpoints, nats a token; `run` (n,) labels the
    run of each. Intervals at `level` leave out one run at a time (jackknife, t with two degrees
    less than runs): the points of a run are not independent. `phase` (n,), two labels such as
    "training" and "converged", asks whether both phases lie on one line; see `PhaseTest`. Points
    weigh the same, whatever the standard errors of their losses: these are of the documents
    measured, which are the same at every point and move all of them together.

    Raises `RequestError` for unequal lengths, losses that are not positive and finite, and other
    than two phases; `WorkError` for fewer than three runs, or where one run alone spans the line
    and where the other loss never moves.
    Source: Kaplan et al. (2020), section 3.2.2, Fig. 8.
    """
    x, y = columns(loss_train=loss_train, loss_other=loss_other)
    of_run = labels("run", run, x)
    runs = np.unique(of_run)
    if runs.size < _LEAST_RUNS:
        verb = "gives" if runs.size == 1 else "give"
        raise WorkError(
            f"{counted(runs.size, 'run')} {verb} a line no interval: at least {_LEAST_RUNS}"
        )
    held = [of_run != each for each in runs]
    if any(np.ptp(x[rows]) <= 1e-9 * x.max() for rows in held):
        raise WorkError("Without one of its runs the line has a single loss_train, and no slope")
    if np.ptp(y) <= 1e-9 * y.max():
        raise WorkError(
            f"loss_other is {y[0]:g} at every point: it is not a loss that was measured"
        )
    centre = float(x.mean())
    fits = [line_over(x[rows] - centre).gain @ y[rows] for rows in held]
    covariance = jackknife(np.stack(fits, axis=1))
    level_at, slope = (line_over(x - centre).gain @ y).tolist()
    quantile = float(student(level, runs.size - 2))

    def quantity(value: float, along: tuple[float, float]) -> Quantity:
        se = math.sqrt(max(np.array(along) @ covariance @ np.array(along), 0.0))
        return Quantity(value, se, value - quantile * se, value + quantile * se)

    residual = y - level_at - slope * (x - centre)
    return TransferLine(
        offset=quantity(level_at - slope * centre, (1.0, -centre)),
        slope=quantity(slope, (0.0, 1.0)),
        gap=quantity(level_at - centre, (1.0, 0.0)),
        centre=centre,
        level=level,
        rms_residual=float(np.sqrt(np.mean(residual**2))),
        n_points=x.size,
        n_runs=runs.size,
        phase_test=None if phase is None else _same_line(x, y, of_run, phase),
    )


def _same_line(x: np.ndarray, y: np.ndarray, run: np.ndarray, phase: ArrayLike) -> PhaseTest:
    """Runs are the units, since the points of one run share what is particular to it.

    Where three runs pass through both phases, each is compared with itself. Where runs have one
    phase, as in Kaplan's Fig. 8 (one large run during training, others converged), means of runs
    are compared; a run with both then has a mean in each, which can only hide a difference.
    """
    label = labels("phase", phase, x)
    names, count = np.unique(label, return_counts=True)
    if names.size != 2:
        raise RequestError(f"phase needs two labels, not {names.size}: {', '.join(names)}")
    order = np.argsort(-count, kind="stable")  # the phase with more points carries the line
    first, second = (label == names[i] for i in order)
    phases = (str(names[order[0]]), str(names[order[1]]))
    both = [each for each in np.unique(run) if {*label[run == each]} == {*names}]
    alone = np.unique(run).size - len(both)
    if len(both) >= _LEAST_RUNS or not alone:
        return _within(x, y, [(first & (run == r), second & (run == r)) for r in both], phases)
    return _between(x, y, np.char.add(run, np.where(second, "/2", "/1")), second, phases)


def _within(
    x: np.ndarray, y: np.ndarray, runs: list[tuple[np.ndarray, np.ndarray]], phases: tuple[str, str]
) -> PhaseTest:
    """Each run's second phase against the line through its own first phase."""
    method = "each run against its own line"
    at, miss, weight = [], [], []
    for first, second in runs:
        spread = float(np.sum((x[first] - x[first].mean()) ** 2)) if first.any() else 0.0
        if first.sum() < _LEAST_POINTS or spread == 0:
            continue
        middle = x[first].mean()
        value, slope = line_over(x[first] - middle).gain @ y[first]
        place = x[second].mean()
        at.append(place)
        miss.append(y[second].mean() - value - slope * (place - middle))
        variance = 1 / second.sum() + 1 / first.sum() + (place - middle) ** 2 / spread
        weight.append(1 / variance)
    if len(at) < _LEAST_RUNS:
        reason = (
            f"{len(at)} runs pass through both phases with {_LEAST_POINTS} points or more in "
            f"{phases[0]!r}; {_LEAST_RUNS} are needed"
        )
        return PhaseTest(phases, method, None, None, None, None, reason)
    place, d, w = np.array(at), np.array(miss), np.array(weight)
    design = np.ones((d.size, 1))
    if d.size > _LEAST_RUNS and np.ptp(place) > 0:
        design = np.stack([np.ones(d.size), place - np.average(place, weights=w)], axis=1)
    shift = float(np.average(d, weights=w))
    return _f_test(np.zeros((d.size, 0)), design, d, w, phases, method, shift)


def _between(
    x: np.ndarray, y: np.ndarray, run: np.ndarray, second: np.ndarray, phases: tuple[str, str]
) -> PhaseTest:
    """Means of runs: the line through both phases against one more line for the second."""
    method = "means of runs, between runs"
    runs = np.unique(run)
    place, mean, is_second = (
        np.array([column[run == each].mean() for each in runs]) for column in (x, y, second)
    )
    terms = [np.ones(runs.size), place - place.mean(), is_second]
    if min(is_second.sum(), (1 - is_second).sum()) >= _LEAST_RUNS:
        terms.append(is_second * (place - place[is_second == 1].mean()))
    design = np.stack(terms, axis=1)
    if runs.size - design.shape[1] < 2 or np.linalg.matrix_rank(design) < design.shape[1]:
        reason = f"{runs.size} runs cannot tell a phase from the scatter between runs"
        return PhaseTest(phases, method, None, None, None, None, reason)
    shift = float(np.linalg.lstsq(design, mean, rcond=None)[0][2])
    return _f_test(design[:, :2], design, mean, np.ones(runs.size), phases, method, shift)


def _f_test(
    small: np.ndarray,
    large: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    phases: tuple[str, str],
    method: str,
    shift: float,
) -> PhaseTest:
    root = np.sqrt(weight)[:, None]

    def left(design: np.ndarray) -> float:
        fit = np.linalg.lstsq(root * design, root[:, 0] * y, rcond=None)[0]
        return float(np.sum((root[:, 0] * (y - design @ fit)) ** 2))

    df = (large.shape[1] - small.shape[1], y.size - large.shape[1])
    rest = left(large)
    # Losses are known to rounding at best; without any scatter the ratio is of rounding errors.
    floor = df[1] * (1e-12 * np.abs(y).max()) ** 2 * weight.max() + 1e-30
    F, p_value = f_test(left(small), max(rest, floor), df)
    return PhaseTest(phases, method, F, df, p_value, shift, "")
