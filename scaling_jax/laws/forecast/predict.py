"""The forecast of one question: the first method that applies, with the baselines beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scaling_jax.errors import WorkError
from scaling_jax.laws.forecast import same_run
from scaling_jax.laws.forecast.calibration import difficulty
from scaling_jax.laws.forecast.cleaning import clean, require_forecastable
from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.forecast.method import Method
from scaling_jax.laws.forecast.schedule_methods import MULTI_POWER_LAW

# In order of preference; the first is None where the learning rate stays.
_METHODS = (MULTI_POWER_LAW, *same_run.METHODS)


class Question(NamedTuple):
    """What is the loss after `horizon` steps of the run that was `observed`, or has not begun?

    `finished` are the runs that may help; `lr` (k, 2) the planned rows (step, lr) up to the
    horizon, None where the rate stays as it is.
    """

    observed: Curve
    horizon: float
    finished: Sequence[Curve]
    lr: np.ndarray | None


class Prediction(NamedTuple):
    """The loss (nats a token), by which method, what must be said with it, the scale of its error
    (`calibration.difficulty`), and what the baselines say."""

    loss: float
    method: str
    flags: tuple[str, ...]
    difficulty: float
    baselines: dict[str, float]


Answer = Prediction | WorkError


def answer(question: Question, methods: Sequence[Method], baselines: Sequence[Method]) -> Answer:
    """The prediction of the first of `methods` that applies, or why there is none.

    Raises `RequestError` for a horizon before the last point.
    """
    observed = question.observed
    if observed.step.size:  # a run that has not begun has nothing to be wrong
        observed = clean(observed)
        try:
            require_forecastable(observed, question.horizon)
        except WorkError as error:
            return error
    for method in methods:
        loss = _ask(method, question)
        if loss is None:
            continue
        beside = {each.name: _ask(each, question) for each in baselines}
        known = {name: value for name, value in beside.items() if value is not None}
        scale = difficulty(method.name, observed, loss, known)
        return Prediction(loss, method.name, observed.flags, scale, known)
    return WorkError(_why_not(observed))


def _why_not(observed: Curve) -> str:
    if observed.constant_rate() is False and observed.lr is None:
        return (
            f"The learning rate of run {observed.name} changes, and no column gives it at each "
            "step: name one with lr=COLUMN"
        )
    return (
        f"Run {observed.name} is to go on at other learning rates than it has shown, and no "
        "finished run shows what these do"
    )


def end_of_runs(questions: Sequence[Question]) -> list[Answer]:
    """The ends of runs, each by the first method that applies, baselines beside."""
    return [answer(question, _METHODS, same_run.BASELINES) for question in questions]


def _ask(method: Method, question: Question) -> float | None:
    loss = method.predict(*question)
    return loss if loss is not None and math.isfinite(loss) and loss > 0 else None
