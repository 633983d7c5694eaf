"""Forecasts of a table of curves: every unfinished run's end, with an interval and the backtest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forecast import new_runs
from scaling_jax.laws.forecast.backtest import (
    OBSERVED,
    UNCALIBRATED,
    Backtest,
    Forecaster,
    ask,
    backtest_runs,
    calibration_of,
    intervals_of,
    observed_step,
    outcomes_of,
)
from scaling_jax.laws.forecast.calibration import Calibration, Interval
from scaling_jax.laws.forecast.cleaning import FEWEST_POINTS
from scaling_jax.laws.forecast.curve import Curve, curves_of
from scaling_jax.laws.forecast.plans import declared_plans, plan_for, plan_of_another
from scaling_jax.laws.forecast.predict import Prediction, Question, end_of_runs
from scaling_jax.laws.forecast.unnamed import with_runs
from scaling_jax.laws.request import require_level

if TYPE_CHECKING:
    from scaling_jax.records.store import Records

# Ratios horizon / observed are rounded up to powers of this before finished runs are asked at them.
_STEP_OF_RATIO = 1.15
_LAST_WINDOW = 0.97  # of the steps: forty windows a decade end within this of their middle
_ENDED = ("diverged", "failed")  # their losses say nothing of an end that they will not reach


class RunForecast(NamedTuple):
    """The loss (nats a token) at `horizon_step` with its interval, and what it rests on."""

    run_id: str
    observed_step: float | None
    horizon_step: float
    prediction: Prediction
    interval: Interval
    size: float | None = None

    @property
    def flags(self) -> list[str]:
        own = [] if self.interval.calibrated else [UNCALIBRATED]
        return [*self.prediction.flags, *own]

    def to_json(self) -> dict[str, Any]:
        return {
            "run_id": self.run_id,
            "observed_step": self.observed_step,
            "horizon_step": self.horizon_step,
            "loss": self.prediction.loss,
            "interval": [self.interval.low, self.interval.high],
            "method": self.prediction.method,
            "flags": self.flags,
        }


@dataclass(frozen=True)
class Forecasts:
    """What a table's curves will come to. `refused`: {run_id, reason}, runs without a forecast;
    `excluded`: {run_id, name, rule, reason, n_points}, rows that were left out; `backtests` by
    task, None where none was asked for. `runs` are the unfinished ones, `new_runs` a larger model
    or another schedule."""

    runs: tuple[RunForecast, ...]
    new_runs: tuple[RunForecast, ...]
    backtests: dict[str, Backtest] | None
    level: float
    curves: tuple[Curve, ...]
    refused: tuple[dict[str, str], ...]
    excluded: tuple[dict[str, Any], ...]
    source: str

    def to_json(self) -> dict[str, Any]:
        tests = self.backtests
        return {
            "runs": [run.to_json() for run in (*self.runs, *self.new_runs)],
            "backtest": None
            if tests is None
            else {"level": self.level, **{task: test.to_json() for task, test in tests.items()}},
            "refused": list(self.refused),
        }

    def to_seal(self) -> list[dict[str, Any]]:
        """The rows of a seal: those of `to_json` with what the baselines say."""
        return [
            run.to_json() | {"size": run.size, "baselines": run.prediction.baselines}
            for run in (*self.runs, *self.new_runs)
        ]


def forecast(
    records: Records,
    columns: Mapping[str, str] | None = None,
    *,
    where: str | None = None,
    horizon: float | None = None,
    larger: float | None = None,
    schedule: str | None = None,
    backtest: bool = False,
    observed: Sequence[float] = OBSERVED,
    level: float = 0.9,
) -> Forecasts:
    """Forecast the end of every unfinished run, learning from the finished ones.

    `columns` maps roles onto columns (`curves_of`), `where` is a condition in SQL. The end is the
    declared one (`steps`), or `horizon` in steps, which then is asked of every run that has not
    reached it. `larger` asks for a model of so many parameters, `schedule` (a name, or a file of
    rows step, lr) for a new run of every model under it, and unfinished runs go on under it.
    `backtest` repeats such forecasts on the finished runs, those of their ends after shares
    `observed` of their steps. `level` is of the intervals.

    Raises `RequestError` where the request is wrong (a horizon before the last point of every run),
    `WorkError` where nothing that was asked can be forecast.
    """
    require_level(level)
    if horizon is not None and not (math.isfinite(horizon) and horizon > 0):
        raise RequestError(f"horizon is a number of steps above 0, not {horizon:g}")
    records = with_runs(records, columns)
    curves, excluded = curves_of(records, columns, where)
    if not curves:
        raise WorkError(f"{records.source} has no curve with a loss")
    finished = [curve for curve in curves if is_finished(curve)]
    # Under another schedule only runs that are under way go on.
    asked = _unfinished(curves, None if schedule else horizon)
    if horizon and not asked and larger is None and schedule is None:
        last = max(curve.end for curve in curves)
        raise RequestError(
            f"horizon {horizon:,.0f} is before the last point of every run, up to {last:,.0f} steps"
        )
    plans = declared_plans(records)
    questions, refused = _questions(asked, finished, horizon, plans, schedule)
    runs = _answered(questions, finished, level, refused)
    new = []
    if larger is not None:
        new += _larger(finished, larger, horizon, level, refused)
    if schedule is not None:
        new += _schedule(finished, schedule, horizon, level, refused)
    if refused and not runs and not new:
        first = refused[0]
        raise WorkError(f"Nothing can be forecast: {first['run_id']}: {first['reason']}")
    return Forecasts(
        tuple(runs),
        tuple(new),
        _backtests(finished, observed, level) if backtest else None,
        level,
        tuple(curves),
        tuple(refused),
        tuple(excluded),
        records.source,
    )


def is_finished(curve: Curve) -> bool:
    """Whether the run came to its end.

    Of a run that is said to be done the last loss may be the mean of a window, which is placed
    before the last step.
    """
    if curve.status in _ENDED:
        return False
    near = curve.horizon is not None and curve.end >= _LAST_WINDOW * curve.horizon
    return curve.finished or (curve.status == "done" and near)


def _unfinished(curves: Sequence[Curve], horizon: float | None) -> list[Curve]:
    """Runs that have not reached the horizon, or else their own end."""
    return [c for c in curves if (c.end < horizon if horizon else not is_finished(c))]


def _questions(
    asked: Sequence[Curve],
    finished: Sequence[Curve],
    horizon: float | None,
    plans: Mapping[str, np.ndarray],
    schedule: str | None,
) -> tuple[list[Question], list[dict[str, str]]]:
    """A question for every unfinished run, and why others have none."""
    questions, refused = [], []
    for curve in asked:
        end = horizon or curve.horizon
        reason = None
        if curve.status in _ENDED:
            reason = f"{curve.status} at step {curve.end:,.0f}"
        elif end is None:
            reason = "no declared end: --horizon STEPS gives one"
        if reason is not None or end is None:
            refused.append({"run_id": curve.run_id, "reason": str(reason)})
            continue
        helpers = [other for other in finished if other.run_id != curve.run_id]
        declared = plans.get(curve.run_id) if end <= (curve.horizon or 0.0) else None
        plan, flags = _plan(curve, end, helpers, declared, schedule)
        if helpers and max(other.end for other in helpers) < end:
            flags = (*flags, "no finished run has come as far: the interval may be too narrow")
        flagged = replace(curve, flags=curve.flags + flags)
        questions.append(Question(flagged, float(end), helpers, plan))
    return questions, refused


def _plan(
    curve: Curve,
    end: float,
    helpers: Sequence[Curve],
    declared: np.ndarray | None,
    schedule: str | None,
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The rates ahead: asked for, declared, of a finished run, or as they are, which is flagged."""
    if curve.lr is None:
        return None, ()
    if schedule is not None:
        return plan_for(schedule, curve, end), ()
    if declared is not None:
        return declared[declared[:, 0] <= end], ()
    ahead = f"learning rate after step {curve.end:g} not known: taken to be"
    other = plan_of_another(curve, end, helpers)
    if other is not None:
        return other.rows, (f"{ahead} as in run {other.run_id}",)
    stays = "as it is now" if curve.constant_rate() is False else "constant"
    return None, (f"{ahead} {stays}",)


def _answered(
    questions: Sequence[Question],
    finished: Sequence[Curve],
    level: float,
    refused: list[dict[str, str]],
) -> list[RunForecast]:
    ratios = [each.horizon / each.observed.end for each in questions]
    calibration = calibrate(finished, ratios, _reach(questions))
    return _with_intervals(
        questions,
        end_of_runs,
        lambda each: calibration.scores(each.horizon / each.observed.end, {each.observed.run_id}),
        level,
        refused,
    )


def _larger(
    finished: Sequence[Curve],
    size: float,
    horizon: float | None,
    level: float,
    refused: list[dict[str, str]],
) -> list[RunForecast]:
    question = new_runs.ask_larger(finished, size, horizon)
    times = new_runs.reach_of(question)
    scores = new_runs.calibrate_larger(finished, times).scores(times)
    return _with_intervals([question], new_runs.larger_models, lambda _: scores, level, refused)


def _schedule(
    finished: Sequence[Curve],
    schedule: str,
    horizon: float | None,
    level: float,
    refused: list[dict[str, str]],
) -> list[RunForecast]:
    questions = new_runs.ask_schedule(finished, schedule, horizon)
    scores = new_runs.calibrate_schedules(finished).scores(1.0)
    return _with_intervals(questions, new_runs.other_schedules, lambda _: scores, level, refused)


def _with_intervals(
    questions: Sequence[Question],
    forecaster: Forecaster,
    scores_of: Callable[[Question], np.ndarray],
    level: float,
    refused: list[dict[str, str]],
) -> list[RunForecast]:
    """The forecasts of the questions; those without one are added to `refused`."""
    answered = []
    for question, prediction in zip(questions, forecaster(questions), strict=True):
        if isinstance(prediction, WorkError):
            refused.append({"run_id": question.observed.run_id, "reason": str(prediction)})
        else:
            answered.append((question, prediction))
    asked = [question for question, _ in answered]
    scores = [scores_of(question) for question in asked]
    intervals = intervals_of(asked, [each for _, each in answered], scores, level, forecaster)
    return [
        RunForecast(
            question.observed.run_id,
            observed_step(question),
            question.horizon,
            prediction,
            ends,
            question.observed.size,
        )
        for (question, prediction), ends in zip(answered, intervals, strict=True)
    ]


def _backtests(
    finished: Sequence[Curve], observed: Sequence[float], level: float
) -> dict[str, Backtest]:
    """Of the ends of runs, and of new runs where the finished ones have sizes or rates."""
    tests = {"run": backtest_runs(finished, observed, level)}
    for task, test in (
        ("larger", new_runs.backtest_larger(finished, level)),
        ("schedule", new_runs.backtest_schedules(finished, level)),
    ):
        if test.outcomes:
            tests[task] = test
    return tests


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


def calibrate(
    finished: Sequence[Curve], ratios: Sequence[float], reach: float = 1.0
) -> Calibration:
    """Scores of the finished runs, each asked at its end / ratio for every ratio, rounded.

    Where no helper has come to the horizon, those of the held-out questions are cut at the same
    share `reach` of theirs: helpers that know the end would make the errors too small.
    """
    size = math.log(_STEP_OF_RATIO)
    rounded = sorted({math.ceil(math.log(ratio) / size) for ratio in ratios})
    asked = [
        ask(f"{times}", curve, curve.end / math.exp(times * size), helpers)
        for curve in finished
        for helpers in [_cut(finished, reach * curve.end) if reach < 1 else finished]
        for times in rounded
    ]
    return calibration_of(outcomes_of(asked)[0])


def _cut(curves: Sequence[Curve], step: float) -> list[Curve]:
    short = [curve.until(step) for curve in curves]
    return [curve for curve in short if curve.step.size >= FEWEST_POINTS]
