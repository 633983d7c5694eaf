"""Several forecasts as one: weights from finished runs asked alike, and no look ahead."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scaling_jax.errors import WorkError
from scaling_jax.laws.forecast.combine import combine, held_out, nearest
from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.forecast.method import Method, Question
from scaling_jax.laws.forecast.predict import end_of_runs

STEP = np.arange(100.0, 4001.0, 100.0)


def decaying(name: str, size: float, noise: float = 0.0) -> Curve:
    """A linear fall of the rate to 0; the loss falls with the steps and with the rate."""
    rate = 1e-3 * (1 - STEP / 4100)
    rng = np.random.default_rng(len(name))
    loss = 2 + (1e6 / size) ** 0.3 + 10 * STEP**-0.5 - 150 * (1e-3 - rate) * 1.2
    loss = loss * np.exp(noise * rng.standard_normal(STEP.size))
    return Curve(name, name, STEP, loss, lr=rate, size=size)


def of_end(off: float, name: str) -> Method:
    """The end of the run, off by so much, as if one knew it."""
    ends = {each.run_id: each.final_loss for each in FAMILY}
    return Method(name, lambda observed, *_: ends[observed.run_id] + off)


FAMILY = [decaying(f"r{i}", 1e6 * 2.0**i) for i in range(6)]


def asked(share: float = 0.25) -> Question:
    target = FAMILY[-1]
    assert target.lr is not None
    plan = np.stack([target.step, target.lr], axis=1)
    return Question(target.until(share * target.end), target.end, FAMILY[:-1], plan)


def test_the_better_on_finished_runs_counts_for_more() -> None:
    good, bad = of_end(0.01, "good"), of_end(-0.3, "bad")
    question = asked()
    losses = {each.name: each.predict(*question) or 0.0 for each in (good, bad)}
    found = combine(question, (good, bad), losses)
    assert found.name == "good + bad"
    assert abs(found.loss - losses["good"]) < 0.02
    assert 0 < found.spread < 0.1
    errors = held_out(question, (good, bad), nearest(question))
    assert errors.shape == (5, 2) and errors[:, 0] == pytest.approx(0.01)


def test_one_forecast_is_itself() -> None:
    found = combine(asked(), (of_end(0.0, "a"), of_end(0.0, "b")), {"b": 2.5})
    assert found == (2.5, "b", 0.0)


def test_without_finished_runs_to_ask_forecasts_are_averaged() -> None:
    question = asked()._replace(finished=FAMILY[:1])
    none = Method("none", lambda *_: None)
    found = combine(question, (of_end(0.0, "a"), none), {"a": 2.0, "none": 3.0})
    assert found.loss == pytest.approx(2.5)


def test_runs_that_one_method_cannot_forecast_do_not_count() -> None:
    none = Method("none", lambda *_: None)
    assert held_out(asked(), (of_end(0.0, "a"), none), nearest(asked())).shape == (0, 2)


def test_finished_runs_are_asked_alike_without_themselves_and_without_their_ends() -> None:
    seen: list[Question] = []

    def look(*parts) -> float:
        seen.append(Question(*parts))
        return 2.0

    question = asked(0.5)
    held_out(question, (Method("look", look),), nearest(question))
    assert len(seen) == 5
    for each in seen:
        run = next(run for run in FAMILY if run.run_id == each.observed.run_id)
        assert each.observed.end == 0.5 * run.end and each.horizon == run.end
        helpers = {other.run_id for other in each.finished}
        assert run.run_id not in helpers and FAMILY[-1].run_id not in helpers
        assert len(helpers) == 4


def test_the_combination_sees_nothing_of_the_future() -> None:
    """The end of the run moves by .3 nats: its forecast and the scale of its error do not."""
    family = [decaying(f"r{i}", 1e6 * 2.0**i, 0.002) for i in range(6)]
    target = family[-1]
    later = replace(target, loss=np.where(target.step > 2000, target.loss + 0.3, target.loss))
    answers = []
    for run in (target, later):
        plan = None if run.lr is None else np.stack([run.step, run.lr], axis=1)
        (found,) = end_of_runs([Question(run.until(2000), run.end, family[:-1], plan)])
        assert not isinstance(found, WorkError)
        answers.append(found)
    assert answers[0] == answers[1]
    assert answers[0].method == "multi_power + finished_runs"
    assert answers[0].loss == pytest.approx(target.final_loss, abs=0.02)


def test_a_run_without_a_point_is_refused() -> None:
    question = asked()
    for schedule in (None, "wsd"):
        nothing = replace(FAMILY[-1].where(STEP < 0), schedule=schedule)
        (found,) = end_of_runs([question._replace(observed=nothing)])
        assert isinstance(found, WorkError) and "no points yet" in str(found)


def test_a_law_that_is_off_alike_in_all_runs_is_moved_by_part_of_it() -> None:
    law, question = of_end(0.13, "multi_power"), asked()
    losses = {"multi_power": law.predict(*question) or 0.0}
    found = combine(question, (law,), losses)
    # Five runs were asked, and eight are taken to have had no error.
    assert found.loss == pytest.approx(losses["multi_power"] - 0.13 * 5 / 13)
    not_begun = question._replace(observed=FAMILY[-1].where(np.zeros(STEP.size, dtype=bool)))
    assert combine(not_begun, (law,), losses).loss == losses["multi_power"]


def test_a_forecast_that_goes_astray_where_others_did_not_counts_for_little() -> None:
    question = asked()
    right = FAMILY[-1].final_loss
    astray = Method("astray", lambda observed, *_: observed.loss[-1] / 3)
    ends = {each.run_id: each.final_loss for each in FAMILY[:-1]}
    # On finished runs it was as good as the other.
    twin = Method("twin", lambda observed, *_: ends.get(observed.run_id))
    good = of_end(0.001, "good")
    losses = {"good": right + 0.001, "twin": question.observed.loss[-1] / 3}
    assert abs(combine(question, (good, twin), losses).loss - right) < 0.01
    # Where all of them are far off they are averaged as before.
    far = {"astray": losses["twin"], "twin": losses["twin"] * 1.1}
    assert far["astray"] < combine(question, (astray, twin), far).loss <= far["twin"]
