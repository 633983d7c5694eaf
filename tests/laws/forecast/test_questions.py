"""Which runs are asked for their ends, and why others are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.forecast.questions import is_finished, questions_of, unfinished


def test_what_counts_as_finished(curves) -> None:
    whole = curves[0]
    assert is_finished(whole)
    assert not is_finished(replace(whole, status="diverged"))
    assert not is_finished(whole.until(1000.0))
    # The last window of a run that is done lies before its last step.
    assert is_finished(replace(whole.until(1960.0), status="done"))
    assert not is_finished(replace(whole.until(1960.0), status="running"))
    assert not is_finished(replace(whole.until(1000.0), status="done"))


def test_a_horizon_is_asked_of_every_run_before_it(curves) -> None:
    runs = [curves[0], curves[1].until(1000.0), curves[2].until(400.0)]
    assert [c.run_id for c in unfinished(runs, None)] == ["r01", "r02"]
    assert [c.run_id for c in unfinished(runs, 800.0)] == ["r02"]
    assert len(unfinished(runs, 3000.0)) == 3


def test_a_run_without_an_end_is_named(curves) -> None:
    runs = [
        curves[1].until(800.0),
        replace(curves[2].until(800.0), horizon=None),
        replace(curves[3].until(800.0), status="failed"),
    ]
    questions, refused = questions_of(runs, curves[4:], None, {}, None)
    assert [each.observed.run_id for each in questions] == ["r01"]
    assert questions[0].horizon == 2000.0 and len(questions[0].finished) == len(curves) - 4
    assert [row["run_id"] for row in refused] == ["r02", "r03"]
    assert "--horizon" in refused[0]["reason"] and "failed at step 800" in refused[1]["reason"]
    (further,), _ = questions_of(runs[:1], curves[4:], 4000.0, {}, None)
    assert any("no finished run has come as far" in flag for flag in further.observed.flags)


def test_the_rates_that_a_table_has_ahead_are_the_plan() -> None:
    ahead = np.array([[2000.0, 1e-3], [3000.0, 5e-4], [4000.0, 0.0]])
    step = np.arange(10.0, 1001.0, 10.0)
    curve = Curve(
        "a", "a", step, 3 - step / 1e4, lr=np.full(100, 1e-3), horizon=4000.0, ahead=ahead
    )
    (question,), refused = questions_of([curve], [], None, {}, None)
    assert question.lr is not None and question.lr.tolist() == ahead.tolist() and not refused
    assert question.horizon == 4000 and question.observed.flags == ()
    (question,), _ = questions_of([curve], [], 3000.0, {}, None)
    assert question.lr is not None and question.lr[-1, 0] == 3000
