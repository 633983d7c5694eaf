"""Ends of decaying runs and other schedules: when they apply, and how far off they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scaling_jax.errors import WorkError
from scaling_jax.laws.forecast.schedule_laws import ANNEALING, MULTI_POWER
from scaling_jax.laws.forecast.schedule_methods import (
    MULTI_POWER_LAW,
    planned_rates,
    predict_end,
    predict_schedule,
)
from tests.laws.forecast.multipowerlaw import (
    SCHEDULES,
    SIZES,
    curve_of,
    have_multipowerlaw,
    plan_of,
)
from tests.laws.forecast.test_schedule import STEP, a_curve, constant, cosine, rows, wsd


def test_the_end_of_a_decaying_run_with_other_runs_of_its_model():
    finished = [a_curve(constant(), name="a"), a_curve(cosine(), name="b")]
    hidden = a_curve(wsd(), name="hidden")
    for law in (MULTI_POWER, ANNEALING):
        found = predict_end(law, hidden.until(10000), STEP[-1], finished, rows(wsd()))
        assert found == pytest.approx(hidden.loss[-1], abs=0.01)


def test_sizes_need_not_be_known_where_losses_agree():
    finished = [a_curve(constant(), name="a", size=None), a_curve(wsd(), name="b", size=None)]
    other = a_curve(constant(), name="c", size=None, L0=2.0)
    hidden = a_curve(wsd(), name="hidden", size=None)
    found = MULTI_POWER_LAW.predict(hidden.until(10000), STEP[-1], [*finished, other], rows(wsd()))
    assert found == pytest.approx(hidden.loss[-1], abs=0.005)


def test_it_sees_nothing_beyond_what_was_observed():
    hidden = a_curve(cosine(), name="hidden")
    changed = replace(hidden, loss=np.where(STEP > 10000, 9.0, hidden.loss))
    finished = [a_curve(constant(), name="a"), a_curve(wsd(), name="b")]
    one, other = (
        MULTI_POWER_LAW.predict(curve.until(10000), STEP[-1], finished, rows(cosine()))
        for curve in (hidden, changed)
    )
    assert one == other


def test_where_it_does_not_apply_there_is_none():
    finished = [a_curve(constant(), name="a"), a_curve(cosine(), name="b")]
    seen = a_curve(wsd(), name="hidden").until(10000)

    def ask(observed, finished, lr):
        return MULTI_POWER_LAW.predict(observed, STEP[-1], finished, lr)

    assert ask(replace(seen, lr=None), finished, rows(wsd())) is None
    assert ask(seen, [], rows(constant())) is None
    assert ask(seen, finished[:1], None) is None
    assert ask(seen, [], rows(wsd())) is None  # no fall was seen by any run
    assert ask(seen, finished[:1], rows(wsd())) is None
    assert ask(seen, finished, rows(wsd())[:100]) is None  # the plan ends before the horizon
    assert ask(seen.where(seen.step < 500), finished, rows(wsd())) is None
    dark = replace(seen, lr=np.zeros(seen.step.size))
    assert planned_rates(dark, STEP[-1], None) is None


def test_where_the_rate_stays_the_falls_of_others_show_how_it_goes_on():
    finished = [a_curve(cosine(), name="b")]
    hidden = a_curve(constant(), name="hidden")
    found = MULTI_POWER_LAW.predict(hidden.until(4000), STEP[-1], finished, None)
    assert found == pytest.approx(hidden.loss[-1], abs=0.01)


def test_two_points_do_with_other_runs_of_the_model():
    finished = [a_curve(constant(), name="a"), a_curve(cosine(), name="b")]
    hidden = a_curve(wsd(), name="hidden")
    found = MULTI_POWER_LAW.predict(hidden.until(500), STEP[-1], finished, rows(wsd()))
    assert found == pytest.approx(hidden.loss[-1], abs=0.01)


def test_steps_may_be_tokens():
    batch = 2.0**19

    def in_tokens(curve):
        return replace(curve, step=curve.step * batch)

    finished = [a_curve(constant(), name="a"), a_curve(cosine(), name="b")]
    hidden = a_curve(wsd(), name="hidden")
    plan = rows(wsd()) * [batch, 1.0]
    found = MULTI_POWER_LAW.predict(
        in_tokens(hidden).until(10000 * batch),
        STEP[-1] * batch,
        [in_tokens(each) for each in finished],
        plan,
    )
    assert found == pytest.approx(hidden.loss[-1], abs=0.01)


def test_a_curve_alone_may_tell_when_it_saw_much_of_the_fall():
    hidden = a_curve(cosine(), name="hidden")
    early = MULTI_POWER_LAW.predict(hidden.until(4000), STEP[-1], [], rows(cosine()))
    late = MULTI_POWER_LAW.predict(hidden.until(14000), STEP[-1], [], rows(cosine()))
    assert early is None
    assert late == pytest.approx(hidden.loss[-1], abs=0.02)


def test_planned_rates_go_on_from_those_seen():
    seen = a_curve(constant(), name="a").until(1000)
    stays = planned_rates(seen, 5000.0, None)
    assert stays is not None and stays.at(5000.0) == pytest.approx(3e-4)
    plan = np.array([[500.0, 9.0], [5000.0, 1e-4]])  # what was planned for the past is past
    goes = planned_rates(seen, 5000.0, plan)
    assert goes is not None and goes.at([500.0, 5000.0]) == pytest.approx([3e-4, 1e-4])


def test_a_schedule_that_has_not_begun():
    finished = [a_curve(constant(), name="a"), a_curve(cosine(), name="b")]
    hidden = a_curve(wsd())
    found = predict_schedule(finished, 1e8, STEP[-1], rows(wsd()))
    assert found == pytest.approx(hidden.loss[-1], abs=2e-3)
    with pytest.raises(WorkError, match="of that size"):
        predict_schedule(finished, 2e8, STEP[-1], rows(wsd()))
    with pytest.raises(WorkError, match="no finished run falls"):
        predict_schedule(finished[:1], 1e8, STEP[-1], rows(wsd()))
    with pytest.raises(WorkError, match="lr=COLUMN"):
        predict_schedule([replace(finished[0], lr=None)], 1e8, STEP[-1], rows(wsd()))
    unknown = [
        a_curve(lr, name=name, size=None, L0=L0)
        for name, lr, L0 in (("a", constant(), 2.5), ("b", cosine(), 2.0))
    ]
    with pytest.raises(WorkError, match="N=COLUMN"):
        predict_schedule(unknown, None, STEP[-1], rows(wsd()))


@have_multipowerlaw
@pytest.mark.parametrize(("share", "most"), [(0.25, 0.018), (0.5, 0.013)])
def test_ends_of_real_runs_from_smaller_sizes(share, most):
    errors = []
    for i in (1, 2):
        finished = [curve_of(size, name) for size in SIZES[:i] for name in SCHEDULES]
        for name in SCHEDULES:
            if name.startswith("constant"):
                continue
            curve = curve_of(SIZES[i], name)
            seen = curve.until(share * curve.end)
            found = MULTI_POWER_LAW.predict(seen, curve.end, finished, plan_of(curve))
            assert found is not None
            errors.append(abs(found - curve.final_loss))
    assert np.median(errors) <= most
