"""Runs that have not begun: a larger model, another schedule, and how well such forecasts went."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forecast import larger, same_run
from scaling_jax.laws.forecast.backtest import Asked, Backtest, calibration_of, judge, outcomes_of
from scaling_jax.laws.forecast.calibration import CHANGING_RATE, LARGER_MODEL, Calibration
from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.forecast.method import Method
from scaling_jax.laws.forecast.plans import plan_for
from scaling_jax.laws.forecast.predict import Answer, Question, answer
from scaling_jax.laws.forecast.schedule_methods import predict_schedule

# How many times larger than the largest run that helps a model is, in the backtest.
TIMES = (1.5, 2.0, 4.0)
_SAME_RATE = 0.02  # of the peak, between the rates of two runs under one schedule
_SAME_END = 0.02


def larger_models(questions: Sequence[Question]) -> list[Answer]:
    """Larger models, each by the first method that applies, baselines beside."""
    return [
        answer(question, (larger.METHODS,), larger.BASELINES, LARGER_MODEL)
        for question in questions
    ]


def ask_larger(finished: Sequence[Curve], size: float, horizon: float | None) -> Question:
    """The loss of a model of `size` parameters after `horizon` steps, or as many as the longest.

    Raises `RequestError` for a size that is none or not beyond the finished runs, `WorkError` where
    these have no sizes or too few of them.
    """
    if not (math.isfinite(size) and size > 0):
        raise RequestError(f"larger is a number of parameters above 0, not {size:g}")
    known = [curve for curve in finished if curve.size is not None]
    if not known:
        raise WorkError(
            "A larger model needs finished runs of known sizes: --columns N=COLUMN names theirs"
        )
    largest = max(curve.size or 0.0 for curve in known)
    if (count := len({curve.size for curve in known})) < larger.LEAST_SIZES:
        raise WorkError(
            f"A larger model needs {larger.LEAST_SIZES} smaller finished sizes, and there "
            f"{'is' if count == 1 else 'are'} {count}"
        )
    if size <= largest:
        raise RequestError(f"larger {size:g} is not beyond the largest finished run, {largest:g}")
    batches = {curve.batch_tokens for curve in known}
    target = _not_begun(f"N={size:g}", size, batches.pop() if len(batches) == 1 else None)
    return Question(target, horizon or max(curve.end for curve in known), known, None)


def backtest_larger(finished: Sequence[Curve], level: float = 0.9) -> Backtest:
    """Leave the largest out: every run that has enough runs `TIMES` times smaller, from these."""
    asked = [each for times in TIMES for each in _from_smaller(finished, times)]
    return judge("larger", asked, level, forecast=larger_models)


def calibrate_larger(finished: Sequence[Curve], times: float) -> Calibration:
    """Scores of the finished runs, each asked of runs `times` smaller."""
    return calibration_of(outcomes_of(_from_smaller(finished, times), larger_models)[0])


def reach_of(question: Question) -> float:
    """N of the target over the largest N that helps."""
    return (question.observed.size or math.nan) / max(each.size or 0 for each in question.finished)


def _from_smaller(finished: Sequence[Curve], times: float) -> list[Asked]:
    sized = [curve for curve in finished if curve.size is not None]
    asked = []
    for curve in sized:
        assert curve.size is not None
        helpers = [other for other in sized if (other.size or 0.0) <= curve.size / times]
        if len({other.size for other in helpers}) < larger.LEAST_SIZES:
            continue
        question = Question(curve.where(np.zeros(curve.step.size, bool)), curve.end, helpers, None)
        asked.append(Asked(f"{times:g}", curve, question, reach_of(question)))
    return asked


def other_schedules(questions: Sequence[Question]) -> list[Answer]:
    """Other schedules, by the multi-power law; the longest run of the model gives the baselines."""
    answers = []
    for question in questions:
        try:
            answers.append(answer(question, (_SCHEDULES,), _LONGEST, CHANGING_RATE))
        except WorkError as error:
            answers.append(error)
    return answers


def ask_schedule(finished: Sequence[Curve], schedule: str, horizon: float | None) -> list[Question]:
    """The end of a new run of every model under a schedule: a name, or a file of rows step, lr.

    Models are told apart by N. The horizon is that of their longest run where none is given. Raises
    `RequestError` for an unknown name or a file that does not do, `WorkError` where no finished run
    has a learning rate.
    """
    known = [curve for curve in finished if curve.lr is not None]
    if not known:
        raise WorkError(
            "Another schedule needs finished runs with a learning rate at each step: --columns "
            "lr=COLUMN names theirs"
        )
    questions = []
    for size in dict.fromkeys(curve.size for curve in known):
        like = max((c for c in known if c.size == size), key=lambda curve: curve.end)
        end = horizon or like.end
        named = schedule if size is None else f"{schedule} N={size:g}"
        target = _not_begun(named, size, like.batch_tokens)
        questions.append(Question(target, end, known, plan_for(schedule, like, end)))
    return questions


def backtest_schedules(finished: Sequence[Curve], level: float = 0.9) -> Backtest:
    """Leave a schedule out: every run with a learning rate, from runs under other schedules."""
    return judge("schedule", _left_out(finished), level, forecast=other_schedules)


def calibrate_schedules(finished: Sequence[Curve]) -> Calibration:
    """Scores of the finished runs, each asked of those under other schedules."""
    return calibration_of(outcomes_of(_left_out(finished), other_schedules)[0])


def _left_out(finished: Sequence[Curve]) -> list[Asked]:
    known = [curve for curve in finished if curve.lr is not None]
    asked = []
    for curve in known:
        helpers = [other for other in known if not _same_schedule(curve, other)]
        assert curve.lr is not None
        question = Question(
            _not_begun(curve.name, curve.size, curve.batch_tokens),
            curve.end,
            helpers,
            np.stack([curve.step, curve.lr], axis=1),
        )
        asked.append(Asked(curve.schedule or curve.name, curve, question, 1.0))
    return asked


def _not_begun(name: str, size: float | None, batch_tokens: float | None) -> Curve:
    nothing = np.empty(0)
    return Curve(name, name, nothing, nothing, size=size, batch_tokens=batch_tokens)


def _same_schedule(one: Curve, other: Curve) -> bool:
    """Whether two runs, of whatever models, have the same share of their peak at the same steps."""
    if one.lr is None or other.lr is None:
        return False
    if abs(one.end / other.end - 1) > _SAME_END:
        return False
    theirs = np.interp(one.step, other.step, other.lr) / other.lr.max()
    return bool(np.all(np.abs(one.lr / one.lr.max() - theirs) <= _SAME_RATE))


def _longest(question: Question) -> Curve | None:
    size = question.observed.size
    same = [curve for curve in question.finished if curve.size == size]
    return max(same, key=lambda curve: curve.end) if same else None


def _of_longest(method: Method) -> Method:
    def predict(
        observed: Curve, horizon: float, finished: Sequence[Curve], lr: np.ndarray | None
    ) -> float | None:
        like = _longest(Question(observed, horizon, finished, lr))
        return None if like is None else method.predict(like, horizon, [], None)

    return Method(method.name, predict)


def _schedule(
    observed: Curve, horizon: float, finished: Sequence[Curve], lr: np.ndarray | None
) -> float | None:
    return None if lr is None else predict_schedule(finished, observed.size, horizon, lr)


_SCHEDULES = (Method("multi_power", _schedule),)
_LONGEST = tuple(_of_longest(method) for method in (same_run.LAST_VALUE, same_run.POWER_OFFSET))
