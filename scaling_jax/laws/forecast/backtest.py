"""Forecasts made again on what is finished: how wrong they were, and what intervals cover."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forecast.calibration import (
    Calibration,
    Interval,
    conformal_quantile,
    for_another_set,
    interval,
)
from scaling_jax.laws.forecast.cleaning import branched
from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.forecast.predict import Answer, Prediction, Question, end_of_runs

OBSERVED = (0.1, 0.25, 0.5)
_PARTS = (1.0, 0.7, 0.5)  # of an observed curve, whose ends it is asked about
_LEAST_PART = 8  # points of such a part


Forecaster = Callable[[Sequence[Question]], list[Answer]]


class Asked(NamedTuple):
    """A question about a curve whose end is known."""

    group: str
    curve: Curve
    question: Question
    ratio: float


class Outcome(NamedTuple):
    """One held-out forecast beside what was measured; losses in nats a token.

    `group` is what forecasts are compared within: the share of a run that was seen, the size that
    was the largest, the schedule that was held out. `ratio` is how far it went: horizon / observed
    steps, N / the largest N.
    """

    group: str
    run_id: str
    ratio: float
    question: Question
    prediction: Prediction
    measured: float

    @property
    def observed_step(self) -> float | None:
        return observed_step(self.question)

    @property
    def error(self) -> float:
        return abs(self.prediction.loss - self.measured)

    @property
    def score(self) -> float:
        return self.error / self.prediction.difficulty


@dataclass(frozen=True)
class Backtest:
    """`outcomes` with an interval each, from the scores of other curves in `calibration`, and what
    could not be forecast (run_id, group, reason). `task` is "run", "larger" or "schedule"."""

    task: str
    level: float
    outcomes: tuple[Outcome, ...]
    intervals: tuple[Interval, ...]
    refused: tuple[dict[str, str], ...]
    calibration: Calibration

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(outcome.group for outcome in self.outcomes))

    def summary(self, group: str | None = None) -> dict[str, Any]:
        """Errors, those of the baselines on the same curves, coverage and width with the counts."""
        pairs = [
            (outcome, ends)
            for outcome, ends in zip(self.outcomes, self.intervals, strict=True)
            if group in (None, outcome.group)
        ]
        errors = np.array([outcome.error for outcome, _ in pairs])
        names = dict.fromkeys(n for outcome, _ in pairs for n in outcome.prediction.baselines)
        covered = [ends.low <= outcome.measured <= ends.high for outcome, ends in pairs]
        half = float(np.median([(ends.high - ends.low) / 2 for _, ends in pairs]))
        methods = [outcome.prediction.method for outcome, _ in pairs]
        return {
            "group": group,
            "n_curves": len({outcome.run_id for outcome, _ in pairs}),
            "n": len(pairs),
            "median_error": float(np.median(errors)),
            "p90_error": float(np.quantile(errors, 0.9)),
            "methods": {name: methods.count(name) for name in dict.fromkeys(methods)},
            "baselines": {name: _errors(name, pairs) for name in names},
            "covered": sum(covered),
            "coverage": sum(covered) / len(pairs),
            "calibrated": sum(ends.calibrated for _, ends in pairs),
            "half_width": half,
            "half_width_of_median_error": half / float(max(np.median(errors), 1e-12)),
        }

    def to_json(self) -> dict[str, Any]:
        rows = [
            {
                "group": outcome.group,
                "run_id": outcome.run_id,
                "observed_step": outcome.observed_step,
                "horizon_step": outcome.question.horizon,
                "loss": outcome.prediction.loss,
                "interval": [ends.low, ends.high],
                "measured": outcome.measured,
                "error": outcome.error,
                "method": outcome.prediction.method,
                "flags": [*outcome.prediction.flags, *([] if ends.calibrated else [UNCALIBRATED])],
            }
            for outcome, ends in zip(self.outcomes, self.intervals, strict=True)
        ]
        return {
            "level": self.level,
            "groups": [self.summary(group) for group in self.groups],
            "cases": rows,
            "refused": list(self.refused),
        }


UNCALIBRATED = "uncalibrated"


def backtest_runs(
    finished: Sequence[Curve],
    observed: Sequence[float] = OBSERVED,
    level: float = 0.9,
    calibration: Calibration | None = None,
) -> Backtest:
    """Leave the future out: the end of every finished run, from shares `observed` of its steps.

    A run is forecast with the help of the other finished runs that are no larger, and not of its
    own branches. Intervals rest on the scores of the other curves but its branches (larger ones are
    forecast with the help of the whole run), or on the `calibration` of another set, which is
    widened (`for_another_set`). Raises `RequestError` for shares that are not between 0 and 1.
    """
    for share in observed:
        if not 0 < share < 1:
            raise RequestError(f"observed is a share of a run between 0 and 1, not {share:g}")
    asked = [
        ask(f"{share:g}", curve, share * curve.end, finished)
        for share in observed
        for curve in finished
    ]
    other = None if calibration is None else for_another_set(calibration)
    return judge("run", asked, level, other)


def ask(group: str, curve: Curve, step: float, finished: Sequence[Curve]) -> Asked:
    """The end of a finished curve, asked after `step` steps."""
    seen = curve.until(step)
    planned = None if curve.lr is None else np.stack([curve.step, curve.lr], axis=1)
    question = Question(seen, curve.end, _helpers(curve, seen, finished), planned)
    return Asked(group, curve, question, curve.end / step)


def judge(
    task: str,
    asked: Sequence[Asked],
    level: float,
    calibration: Calibration | None = None,
    forecast: Forecaster = end_of_runs,
) -> Backtest:
    """Forecasts of the questions, judged, with intervals from the scores of the other curves, of
    which its own branches are none."""
    outcomes, refused = outcomes_of(asked, forecast)
    calibration = calibration or calibration_of(outcomes)
    curves = list({each.curve.run_id: each.curve for each in asked}.values())
    scores = [calibration.scores(each.ratio, _itself(each, curves)) for each in outcomes]
    intervals = intervals_of(
        [each.question for each in outcomes],
        [each.prediction for each in outcomes],
        scores,
        level,
        forecast,
    )
    return Backtest(task, level, tuple(outcomes), tuple(intervals), tuple(refused), calibration)


def outcomes_of(
    asked: Sequence[Asked], forecast: Forecaster = end_of_runs
) -> tuple[list[Outcome], list[dict[str, str]]]:
    """The forecasts of questions beside what was measured, and what could not be forecast."""
    outcomes, refused = [], []
    predictions = forecast([each.question for each in asked])
    for each, prediction in zip(asked, predictions, strict=True):
        if isinstance(prediction, WorkError):
            refused.append(
                {"group": each.group, "run_id": each.curve.run_id, "reason": str(prediction)}
            )
        else:
            outcomes.append(
                Outcome(
                    each.group,
                    each.curve.run_id,
                    each.ratio,
                    each.question,
                    prediction,
                    each.curve.final_loss,
                )
            )
    return outcomes, refused


def intervals_of(
    questions: Sequence[Question],
    predictions: Sequence[Prediction],
    scores: Sequence[np.ndarray],
    level: float,
    forecast: Forecaster = end_of_runs,
) -> list[Interval]:
    """The interval of every prediction from the `scores` (n,) of other curves that went as far.

    Where these are too few, the observed curve is asked about its own parts too.
    """
    few = [i for i, known in enumerate(scores) if conformal_quantile(known, level) is None]
    own: dict[int, list[float]] = {i: [] for i in few}
    nested = [(i, whole, asked) for i in few for whole, asked in _parts(questions[i])]
    answers = forecast([asked for _, _, asked in nested]) if nested else []
    for (i, whole, _), answer in zip(nested, answers, strict=True):
        if not isinstance(answer, WorkError):
            own[i].append(abs(answer.loss - whole.final_loss) / answer.difficulty)
    return [
        interval(each.loss, each.difficulty, known, level, own.get(i, ()))
        for i, (each, known) in enumerate(zip(predictions, scores, strict=True))
    ]


def _parts(question: Question) -> list[tuple[Curve, Question]]:
    """Parts of the observed curve, each with the question that goes as far on it."""
    if not question.observed.step.size:
        return []
    observed, ratio = question.observed, question.horizon / question.observed.end
    parts = []
    for share in _PARTS:
        whole = observed.until(share * observed.end)
        if whole.step.size < _LEAST_PART:
            break
        planned = None if whole.lr is None else np.stack([whole.step, whole.lr], axis=1)
        asked = whole.until(whole.end / ratio)
        if asked.step.size:
            parts.append((whole, Question(asked, whole.end, question.finished, planned)))
    return parts


def coverage(test: Backtest, level: float, group: str | None = None) -> tuple[int, int] | None:
    """How many outcomes lie inside intervals at `level` that were made without them, of how many.

    The smaller runs (the first where sizes are unknown) give the scores and the others are judged:
    among exchangeable curves that each are judged by all others the share is as it must be. None
    where no outcome has enough curves behind it.
    """
    runs: dict[str, float] = {o.run_id: o.question.observed.size or 0.0 for o in test.outcomes}
    order = sorted(runs, key=lambda run: runs[run])
    judged = set(order[(len(order) + 1) // 2 :])
    inside = []
    for outcome in test.outcomes:
        if outcome.run_id in judged and group in (None, outcome.group):
            scores = test.calibration.scores(outcome.ratio, judged)
            quantile = conformal_quantile(scores, level)
            if quantile is not None:
                inside.append(outcome.score <= quantile)
    return (sum(inside), len(inside)) if inside else None


def calibration_of(outcomes: Iterable[Outcome]) -> Calibration:
    """The scores of held-out forecasts, for the intervals of others."""
    known = list(outcomes)
    return Calibration(
        tuple(outcome.run_id for outcome in known),
        np.array([outcome.ratio for outcome in known]),
        np.array([outcome.score for outcome in known]),
    )


def observed_step(question: Question) -> float | None:
    """The last step that was seen; None of a run that has not begun."""
    return question.observed.end if question.observed.step.size else None


def _itself(outcome: Outcome, curves: Sequence[Curve]) -> set[str]:
    """The ids of the run and of its branches, whose errors tell of its own."""
    seen = outcome.question.observed
    return {outcome.run_id, *(other.run_id for other in curves if branched(seen, other))}


def _helpers(curve: Curve, seen: Curve, finished: Sequence[Curve]) -> list[Curve]:
    return [
        other
        for other in finished
        if other.run_id != curve.run_id
        and (curve.size is None or other.size is None or other.size <= curve.size)
        and not branched(seen, other)
    ]


def _errors(name: str, pairs: Sequence[tuple[Outcome, Interval]]) -> dict[str, Any]:
    errors = [
        abs(outcome.prediction.baselines[name] - outcome.measured)
        for outcome, _ in pairs
        if name in outcome.prediction.baselines
    ]
    return {
        "median_error": float(np.median(errors)),
        "p90_error": float(np.quantile(errors, 0.9)),
        "n": len(errors),
    }
