"""Several forecasts of one question as one, weighted by how well each foresaw finished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from scaling_jax.laws.forecast.cleaning import branched, clean, not_back
from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.forecast.method import Method, Question

# Chosen on multipowerlaw, on runs of Haegele et al. (2024) and on small models of our own.
_ASKED = 8  # finished runs, the nearest, that are asked alike
_HELPED = 24  # finished runs, the nearest, that help these
_POWER = 1.5  # of the mean square error, that divides the weight
# What a method's error is taken to be beside the others', as that of one more run, before any is
# asked: a law of the schedule is off by less than runs that are alike but for their rates.
_USUAL = {"multi_power": 0.5}
# Of these the mean error on the finished runs asked is taken off, as if so many more had had none:
# a law is off alike in all runs of a set, what was learned from these runs is not off in the mean.
_LAWS = ("multi_power",)
_WITHOUT_ERROR = 8
# Few points fit a law that goes astray, and finished runs that were asked alike did not: the share
# of the loss that is still lost differs from theirs by about half of it, and as theirs do.
_DIFFERS = 0.5
_MOST_OFF = 6.0  # standard deviations: of forecasts that all are further off none counts for less
_TINY = 1e-12


class Combined(NamedTuple):
    """The mean of forecasts (nats a token), whose, and how far they lie about it."""

    loss: float
    name: str
    spread: float


def combine(question: Question, methods: Sequence[Method], losses: Mapping[str, float]) -> Combined:
    """One forecast from those of several methods, by name in `losses`.

    The nearest finished runs are asked as this one is: after the same share of their steps, with
    the help of the others. Weights are the methods' mean square errors there to the power -1.5, and
    laws of the schedule are moved by about half of their mean error there. A drop that is unlike
    those of finished runs counts for less. Only runs that all methods could forecast count, and a
    run that has not begun is taken at its law's word.
    """
    used = [method for method in methods if method.name in losses]
    lawful = np.array([method.name in _LAWS for method in used])
    if not question.observed.step.size or (len(used) == 1 and not lawful.any()):
        (name,) = losses
        return Combined(losses[name], name, 0.0)
    near = nearest(question)
    errors = held_out(question, used, near)
    usual = np.array([_USUAL.get(method.name, 1.0) for method in used]) ** 2
    if errors.size:
        usual = usual * np.median(errors**2)
    square = (usual + np.sum(errors**2, axis=0)) / (1 + len(errors)) + _TINY
    each = np.array([losses[method.name] for method in used])
    weight = square**-_POWER * _plausible(question, each, near[:_ASKED])
    weight /= weight.sum()
    each = each - lawful * np.sum(errors, axis=0) / (len(errors) + _WITHOUT_ERROR)
    loss = float(weight @ each)
    spread = float(np.sqrt(weight @ (each - loss) ** 2))
    return Combined(loss, " + ".join(method.name for method in used), spread)


def _plausible(question: Question, losses: np.ndarray, near: Sequence[Curve]) -> np.ndarray:
    """How plausible forecasts (m,) are beside what runs `near` lost after the same share."""
    if len(near) < 2:
        return np.ones(losses.size)
    seen = question.observed
    share = seen.end / question.horizon
    level = [float(np.interp(share * run.end, run.step, run.loss)) for run in near]
    lost = 1 - np.array([run.final_loss for run in near]) / level
    usual = abs(float(lost.mean())) * _DIFFERS + float(lost.std()) + _TINY
    off = (1 - losses / seen.loss[-1] - lost.mean()) / usual
    return np.exp(-0.5 * np.minimum(np.abs(off), _MOST_OFF) ** 2)


def held_out(question: Question, methods: Sequence[Method], near: Sequence[Curve]) -> np.ndarray:
    """The errors (runs, methods), nats a token, at the ends of finished runs asked alike.

    `near` are the finished runs, `nearest` first.
    """
    near = near[:_HELPED]
    ratio = question.horizon / question.observed.end
    errors: list[list[float]] = []
    for run in near:
        if len(errors) == _ASKED:
            break
        seen = run.until(run.end / ratio)
        plan = None if run.lr is None else np.stack([run.step, run.lr], axis=1)
        helpers = [each for each in near if each is not run and not branched(seen, each)]
        asked = Question(seen, run.end, helpers, plan)
        found = []
        for method in methods:
            loss = method.ask(asked)
            if loss is None:
                break
            found.append(loss - run.final_loss)
        else:
            errors.append(found)
    return np.array(errors, dtype=np.float64).reshape(len(errors), len(methods))


def nearest(question: Question) -> list[Curve]:
    """The finished runs, the nearest in size first, and in loss after the same share of steps."""
    seen = question.observed
    runs = [
        run
        for run in question.finished
        if run.run_id != seen.run_id and clean(run).step.size and not not_back(clean(run))
    ]
    sized = seen.size is not None and all(run.size is not None for run in runs)
    share = seen.end / question.horizon

    def away(run: Curve) -> tuple[float, float]:
        loss = np.interp(share * run.end, run.step, run.loss)
        size = abs(np.log((run.size or 1.0) / (seen.size or 1.0))) if sized else 0.0
        return float(size), float(abs(np.log(loss / seen.loss[-1])))

    return sorted(runs, key=away)
