"""Which runs of a table are asked for their ends, with what help, and at which rates ahead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from scaling_jax.laws.forecast.curve import LAST_WINDOW, Curve
from scaling_jax.laws.forecast.plans import plan_for, plan_of_another
from scaling_jax.laws.forecast.predict import Question

_ENDED = ("diverged", "failed")  # their losses say nothing of an end that they will not reach


def is_finished(curve: Curve) -> bool:
    """Whether the run came to its end.

    Of a run that is said to be done the last loss may be the mean of a window, which is placed
    before the last step.
    """
    if curve.status in _ENDED:
        return False
    near = curve.horizon is not None and curve.end >= LAST_WINDOW * curve.horizon
    return curve.finished or (curve.status == "done" and near)


def unfinished(curves: Sequence[Curve], horizon: float | None) -> list[Curve]:
    """Runs that have not reached the horizon, or else their own end."""
    return [c for c in curves if (c.end < horizon if horizon else not is_finished(c))]


def questions_of(
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
        planned = plans.get(curve.run_id) if curve.ahead is None else curve.ahead
        declared = planned if end <= (curve.horizon or 0.0) else None
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
        return other.rows, (f"{ahead} as in run {other.name}",)
    stays = "as it is now" if curve.constant_rate() is False else "constant"
    return None, (f"{ahead} {stays}",)
