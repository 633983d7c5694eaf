"""Forecasts of a table of curves: every unfinished run's end, with an interval and the backtest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forecast import new_runs
from scaling_jax.laws.forecast.backtest import (
    OBSERVED,
    UNCALIBRATED,
    Backtest,
    Forecaster,
    backtest_runs,
    intervals_of,
    observed_step,
)
from scaling_jax.laws.forecast.calibrated import HeldOut, Scores, other_set
from scaling_jax.laws.forecast.calibration import Interval
from scaling_jax.laws.forecast.curve import Curve, curves_of
from scaling_jax.laws.forecast.plans import declared_plans
from scaling_jax.laws.forecast.predict import Prediction, Question, end_of_runs
from scaling_jax.laws.forecast.questions import is_finished, questions_of, unfinished
from scaling_jax.laws.forecast.unnamed import with_runs
from scaling_jax.laws.request import require_level

if TYPE_CHECKING:
    from scaling_jax.records.store import Records


class RunForecast(NamedTuple):
    """The loss (nats a token) at `horizon_step` with its interval, and what it rests on.

    `another` is the source whose errors the interval rests on, where it is another set of curves.
    """

    run_id: str
    observed_step: float | None
    horizon_step: float
    prediction: Prediction
    interval: Interval
    size: float | None = None
    another: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def flags(self) -> list[str]:
        own = [] if self.interval.calibrated else [UNCALIBRATED]
        return [*self.prediction.flags, *self.notes, *own]

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


@dataclass(frozen=True, eq=False)
class Request:
    """What was asked about the unfinished runs of a table (`forecast`)."""

    records: Records
    columns: Mapping[str, str] | None
    where: str | None
    horizon: float | None
    schedule: str | None
    calibration: Records | None
    level: float

    def again(self, columns: Mapping[str, str]) -> Forecasts:
        """The same asked of other columns, for other losses."""
        return forecast(
            self.records,
            columns,
            where=self.where,
            horizon=self.horizon,
            schedule=self.schedule,
            calibration=self.calibration,
            level=self.level,
        )


@dataclass(frozen=True)
class Forecasts:
    """What a table's curves will come to. `refused`: {run_id, reason}, runs without a forecast;
    `excluded`: {run_id, name, rule, reason, n_points}, rows that were left out; `backtests` by
    task, None where none was asked for. `runs` are the unfinished ones, `new_runs` a larger model
    or another schedule. `another_tests` is the source whose errors gave the intervals of the
    backtest of ends of runs, where it is another set of curves."""

    request: Request
    runs: tuple[RunForecast, ...]
    new_runs: tuple[RunForecast, ...]
    backtests: dict[str, Backtest] | None
    curves: tuple[Curve, ...]
    refused: tuple[dict[str, str], ...]
    excluded: tuple[dict[str, Any], ...]
    another_tests: str | None = None

    @property
    def level(self) -> float:
        """Of the intervals."""
        return self.request.level

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


class Asking(NamedTuple):
    """Questions of one kind, what answers them, and the scores behind the interval of each."""

    questions: Sequence[Question]
    forecaster: Forecaster
    scores_of: Callable[[Question], Scores]


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
    calibration: Records | None = None,
    level: float = 0.9,
) -> Forecasts:
    """Forecast the end of every unfinished run, learning from the finished ones.

    `columns` maps roles onto columns (`curves_of`), `where` is a condition in SQL. The end is the
    declared one (`steps`), or `horizon` in steps, which then is asked of every run that has not
    reached it. `larger` asks for a model of so many parameters, `schedule` (a name, or a file of
    rows step, lr) for a new run of every model under it, and unfinished runs go on under it.
    `backtest` repeats such forecasts on the finished runs, those of their ends after shares
    `observed` of their steps. `level` is of the intervals. Where the finished runs are too few for
    one, it rests on the errors on those of `calibration`, widened, as these are another set of
    curves; of `columns` it has those that it has.

    Raises `RequestError` where the request is wrong (a horizon that every run has come to),
    `WorkError` where nothing that was asked can be forecast.
    """
    require_level(level)
    if horizon is not None and not (math.isfinite(horizon) and horizon > 0):
        raise RequestError(f"horizon is a number of steps above 0, not {horizon:g}")
    request = Request(records, columns, where, horizon, schedule, calibration, level)
    records = with_runs(records, columns)
    curves, excluded = curves_of(records, columns, where)
    if not curves:
        raise WorkError(f"{records.source} has no curve with a positive, finite loss")
    finished = [curve for curve in curves if is_finished(curve)]
    held = HeldOut(
        finished, None if calibration is None else other_set(calibration, columns), level
    )
    asked = _asked(curves, horizon, schedule, larger is not None or schedule is not None)
    plans = declared_plans(records)
    questions, refused = questions_of(asked, finished, horizon, plans, schedule)
    runs = _with_intervals(Asking(questions, end_of_runs, held.of_ends(questions)), level, refused)
    new = []
    if larger is not None:
        new += _with_intervals(_larger(held, larger, horizon), level, refused)
    if schedule is not None:
        new += _with_intervals(_schedule(held, schedule, horizon), level, refused)
    if refused and not runs and not new and not backtest:
        first = refused[0]
        names = {curve.run_id: curve.name for curve in curves}
        of = names.get(first["run_id"], first["run_id"])
        reason = first["reason"].removeprefix(f"Run {of} ")
        raise WorkError(f"Nothing can be forecast: {of}: {reason}")
    return Forecasts(
        request,
        tuple(runs),
        tuple(new),
        _backtests(held, observed) if backtest else None,
        tuple(curves),
        tuple(refused),
        tuple(excluded),
        held.other.source if held.other is not None and held.too_few else None,
    )


def _asked(
    curves: Sequence[Curve], horizon: float | None, schedule: str | None, new: bool
) -> list[Curve]:
    """The runs that are asked for their end; `new` where runs that have not begun are asked too."""
    # Under another schedule only runs that are under way go on.
    asked = unfinished(curves, None if schedule else horizon)
    if schedule and horizon:
        asked = [curve for curve in asked if curve.end < horizon]
    if horizon and not asked and not new:
        last = max(curve.end for curve in curves)
        raise RequestError(
            f"every run has come to horizon {horizon:,.10g}: they go up to step {last:,.10g}"
        )
    return asked


def _larger(held: HeldOut, size: float, horizon: float | None) -> Asking:
    question = new_runs.ask_larger(held.finished, size, horizon)
    scores = held.of_larger(question)
    return Asking([question], new_runs.larger_models, lambda _: scores)


def _schedule(held: HeldOut, schedule: str, horizon: float | None) -> Asking:
    questions = new_runs.ask_schedule(held.finished, schedule, horizon)
    scores = held.of_schedules()
    return Asking(questions, new_runs.other_schedules, lambda _: scores)


def _with_intervals(
    asking: Asking, level: float, refused: list[dict[str, str]]
) -> list[RunForecast]:
    """The forecasts of the questions; those without one are added to `refused`."""
    answered = []
    predictions = asking.forecaster(asking.questions)
    for question, prediction in zip(asking.questions, predictions, strict=True):
        if isinstance(prediction, WorkError):
            refused.append({"run_id": question.observed.run_id, "reason": str(prediction)})
        else:
            answered.append((question, prediction))
    asked = [question for question, _ in answered]
    scores = [asking.scores_of(question) for question in asked]
    values = [each.values for each in scores]
    predicted = [prediction for _, prediction in answered]
    intervals = intervals_of(asked, predicted, values, level, asking.forecaster)
    return [
        RunForecast(
            question.observed.run_id,
            observed_step(question),
            question.horizon,
            prediction,
            ends,
            question.observed.size,
            behind.another,
            behind.notes,
        )
        for question, prediction, ends, behind in zip(
            asked, predicted, intervals, scores, strict=True
        )
    ]


def _backtests(held: HeldOut, observed: Sequence[float]) -> dict[str, Backtest]:
    """Of the ends of runs, and of new runs where the finished ones have sizes or rates."""
    finished, level = held.finished, held.level
    tests = {"run": backtest_runs(finished, observed, level, held.of_backtest(observed))}
    for task, test in (
        ("larger", new_runs.backtest_larger(finished, level)),
        ("schedule", new_runs.backtest_schedules(finished, level)),
    ):
        if test.outcomes:
            tests[task] = test
    return tests
