"""Why a question has no answer."""

from __future__ import annotations

import numpy as np
import pytest

from scaling_jax.errors import WorkError
from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.forecast.predict import Question, end_of_runs

STEPS = np.arange(100.0, 2100.0, 100.0)


@pytest.mark.parametrize(
    ("lr", "ahead", "says"),
    [
        (None, None, "does not fall as a power of the steps"),
        (1.0, 1.0, "does not fall as a power of the steps"),
        (1.0, 0.1, "is to go on at other learning rates"),
    ],
)
def test_what_is_said_of_a_curve_that_nothing_foresees(lr, ahead, says: str) -> None:
    rates = None if lr is None else np.full(STEPS.size, lr)
    curve = Curve("a", "a", STEPS, np.full(STEPS.size, 2.0), lr=rates)
    plan = None if ahead is None else np.array([[3000.0, ahead], [4000.0, ahead]])
    (found,) = end_of_runs([Question(curve, 4000.0, [], plan)])
    assert isinstance(found, WorkError) and says in str(found)
