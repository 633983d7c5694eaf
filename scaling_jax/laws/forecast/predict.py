"""The forecast of one question: the methods that apply combined, with the baselines beside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scaling_jax.errors import WorkError
from scaling_jax.laws.forecast import same_run
from scaling_jax.laws.forecast.calibration import (
    CHANGING_RATE,
    CONSTANT_RATE,
    Scale,
    difficulty,
)
from scaling_jax.laws.forecast.cleaning import FEWEST_ALONE, clean, require_forecastable
from scaling_jax.laws.forecast.combine import combine
from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.forecast.method import Method, Question
from scaling_jax.laws.forecast.schedule_methods import MULTI_POWER_LAW

# The curve alone where neither a law of the schedule nor finished runs apply.
_METHODS = ((MULTI_POWER_LAW, same_run.FINISHED_RUNS), (same_run.ALONE,))


class Prediction(NamedTuple):
    """The loss (nats a token), by which methods (joined by " + "), what must be said with it, the
    scale of its error (`calibration.difficulty`), and what the baselines say."""

    loss: float
    method: str
    flags: tuple[str, ...]
    difficulty: float
    baselines: dict[str, float]


Answer = Prediction | WorkError


def answer(
    question: Question,
    methods: Sequence[Sequence[Method]],
    baselines: Sequence[Method],
    scale: Scale,
) -> Answer:
    """The prediction by the first of `methods` of which any applies, combined, or why there is
    none; `scale` is that of its error.

    Raises `RequestError` for a horizon before the last point.
    """
    observed = question.observed
    if observed.step.size:  # a run that has not begun has nothing to be wrong
        observed = clean(observed)
        try:
            require_forecastable(observed, question.horizon)
        except WorkError as error:
            return error
    for group in methods:
        asked = {method.name: method.ask(question) for method in group}
        losses = {name: loss for name, loss in asked.items() if loss is not None}
        if not losses:
            continue
        found = combine(question, group, losses)
        beside = {each.name: each.ask(question) for each in baselines}
        known = {name: value for name, value in beside.items() if value is not None}
        hard = difficulty(scale, observed, found.loss, known, found.spread)
        return Prediction(found.loss, found.name, observed.flags, hard, known)
    return WorkError(_why_not(observed, question.lr))


def _why_not(observed: Curve, lr: np.ndarray | None) -> str:
    count = observed.step.size
    if not count:
        return f"Run {observed.name} has no points yet"
    if observed.constant_rate() is False and observed.lr is None:
        return (
            f"The learning rate of run {observed.name} changes, and no column gives it at each "
            "step: name one with lr=COLUMN"
        )
    if count < FEWEST_ALONE:
        return (
            f"Run {observed.name} has {count} points after warm-up, and without finished runs like "
            f"it a forecast needs {FEWEST_ALONE}"
        )
    if same_run.rate_stays(observed, lr):
        return (
            f"Run {observed.name} does not fall as a power of the steps does, and no finished run "
            "shows how it goes on"
        )
    return (
        f"Run {observed.name} is to go on at other learning rates than it has shown, and no "
        "finished run shows what these do"
    )


def end_of_runs(questions: Sequence[Question]) -> list[Answer]:
    """The ends of runs, by what applies, baselines beside."""
    return [
        answer(
            question,
            _METHODS,
            same_run.BASELINES,
            CONSTANT_RATE if _rate_stays(question) else CHANGING_RATE,
        )
        for question in questions
    ]


def _rate_stays(question: Question) -> bool:
    return same_run.rate_stays(clean(question.observed), question.lr)
