"""The held-out errors behind the intervals of a table's forecasts: its own, or another set's."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scaling_jax.errors import RequestError
from scaling_jax.laws.forecast import new_runs
from scaling_jax.laws.forecast.backtest import ask, calibration_of, outcomes_of
from scaling_jax.laws.forecast.calibration import (
    Calibration,
    conformal_quantile,
    for_another_set,
)
from scaling_jax.laws.forecast.cleaning import FEWEST_POINTS
from scaling_jax.laws.forecast.curve import Curve, curves_of
from scaling_jax.laws.forecast.predict import Question
from scaling_jax.laws.forecast.questions import is_finished
from scaling_jax.laws.forecast.unnamed import with_runs

if TYPE_CHECKING:
    from scaling_jax.records.store import Records

# Ratios horizon / observed are rounded up to powers of this before finished runs are asked at them.
_STEP_OF_RATIO = 1.15


class Scores(NamedTuple):
    """Scores (n,) of held-out curves; `another` is the source that they are of, None where it is
    the table itself, and `notes` say what must be said with them."""

    values: np.ndarray
    another: str | None = None
    notes: tuple[str, ...] = ()


class OtherSet(NamedTuple):
    """The finished runs of another source, whose errors stand in where a table has too few."""

    source: str
    finished: tuple[Curve, ...]


@dataclass(frozen=True)
class HeldOut:
    """Forecasts made again on the `finished` runs, or on those of `other` where these are too few
    for an interval at `level`; those of another set are widened (`for_another_set`)."""

    finished: Sequence[Curve]
    other: OtherSet | None
    level: float

    @property
    def too_few(self) -> bool:
        """Whether a finished run has too few others for an interval of its own end."""
        others = np.zeros(max(0, len(self.finished) - 1))
        return conformal_quantile(others, self.level) is None

    def of_ends(self, questions: Sequence[Question]) -> Callable[[Question], Scores]:
        """The scores behind the end of each of the questions."""
        ratios, reach = [_ratio(each) for each in questions], _reach(questions)
        own = calibrate(self.finished, ratios, reach)
        theirs = functools.cache(lambda: self._theirs(ratios, reach))

        def scores(question: Question) -> Scores:
            ratio, itself = _ratio(question), {question.observed.run_id}
            return self._chosen(own.scores(ratio, itself), lambda: theirs().scores(ratio, itself))

        return scores

    def of_larger(self, question: Question) -> Scores:
        """The scores behind a larger model."""
        times = new_runs.reach_of(question)

        def of(finished: Sequence[Curve]) -> Calibration:
            return new_runs.calibrate_larger(finished, times)

        return self._of_new_runs(of, times)

    def of_schedules(self) -> Scores:
        """The scores behind another schedule."""
        return self._of_new_runs(new_runs.calibrate_schedules, 1.0)

    def of_backtest(self, observed: Sequence[float]) -> Calibration | None:
        """Those of the other set at these shares of a run, not widened; None where the table has
        enough of its own, or there is no other."""
        if self.other is None or not self.too_few:
            return None
        return calibrate(self.other.finished, [1 / share for share in observed if 0 < share < 1])

    def _theirs(self, ratios: Sequence[float], reach: float) -> Calibration:
        """Of the other set, each with as many helpers as the table has."""
        assert self.other is not None
        most = len(self.finished)
        return for_another_set(calibrate(self.other.finished, ratios, reach, most))

    def _of_new_runs(
        self, scores_of: Callable[[Sequence[Curve]], Calibration], ratio: float
    ) -> Scores:
        def theirs() -> np.ndarray:
            assert self.other is not None
            return for_another_set(scores_of(self.other.finished)).scores(ratio)

        return self._chosen(scores_of(self.finished).scores(ratio), theirs)

    def _chosen(self, own: np.ndarray, theirs: Callable[[], np.ndarray]) -> Scores:
        if self.other is None or conformal_quantile(own, self.level) is not None:
            return Scores(own)
        source, found = self.other.source, theirs()
        if conformal_quantile(found, self.level) is None:
            few = f"{len(found)} finished runs of {source} tell of errors this far: too few"
            return Scores(own, notes=(few,))
        said = f"interval from errors on another set of curves, {source}, widened"
        return Scores(found, source, (said,))


def other_set(records: Records, columns: Mapping[str, str] | None) -> OtherSet:
    """The finished runs of another source, by those of `columns` that it has.

    Raises `RequestError` where none is finished, and as `curves_of`.
    """
    known = {*records.runs.columns, *records.curves.columns}
    own = {role: column for role, column in (columns or {}).items() if column in known}
    curves, _ = curves_of(with_runs(records, own), own)
    finished = tuple(curve for curve in curves if is_finished(curve))
    if not finished:
        raise RequestError(
            f"{records.source} has no finished run whose errors could calibrate an interval"
        )
    return OtherSet(records.source, finished)


def calibrate(
    finished: Sequence[Curve], ratios: Sequence[float], reach: float = 1.0, most: int | None = None
) -> Calibration:
    """Scores of the finished runs, each asked at its end / ratio for every ratio, rounded.

    Where no helper has come to the horizon, those of the held-out questions are cut at the same
    share `reach` of theirs: helpers that know the end would make the errors too small. So would
    more of them than there are: each is asked with `most`, the nearest in size.
    """
    size = math.log(_STEP_OF_RATIO)
    rounded = sorted({math.ceil(math.log(ratio) / size) for ratio in ratios})
    asked = [
        ask(f"{times}", curve, curve.end / math.exp(times * size), helpers)
        for curve in finished
        for near in [finished if most is None else _nearest(curve, finished, most)]
        for helpers in [_cut(near, reach * curve.end) if reach < 1 else near]
        for times in rounded
    ]
    return calibration_of(outcomes_of(asked)[0])


def _nearest(curve: Curve, finished: Sequence[Curve], most: int) -> list[Curve]:
    """The `most` others that are no larger, the largest of them."""
    size = math.inf if curve.size is None else curve.size
    smaller = [o for o in finished if o.run_id != curve.run_id and (o.size or 0.0) <= size]
    return sorted(smaller, key=lambda other: other.size or 0.0)[max(0, len(smaller) - most) :]


def _ratio(question: Question) -> float:
    return question.horizon / question.observed.end


def _reach(questions: Sequence[Question]) -> float:
    """How much of its horizon the longest helper of a question has seen, the least of them."""
    return min(
        (
            min(1.0, max(other.end for other in each.finished) / each.horizon)
            for each in questions
            if each.finished
        ),
        default=1.0,
    )


def _cut(curves: Sequence[Curve], step: float) -> list[Curve]:
    short = [curve.until(step) for curve in curves]
    return [curve for curve in short if curve.step.size >= FEWEST_POINTS]
