"""What every method of forecasting is: a name, and a prediction or none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from scaling_jax.laws.forecast.curve import Curve


class Question(NamedTuple):
    """What is the loss after `horizon` steps of the run that was `observed`, or has not begun?

    `finished` are the runs that may help; `lr` (k, 2) the planned rows (step, lr) up to the
    horizon, None where the rate stays as it is.
    """

    observed: Curve
    horizon: float
    finished: Sequence[Curve]
    lr: np.ndarray | None


# The four parts of a question.
Predict = Callable[[Curve, float, Sequence[Curve], np.ndarray | None], float | None]


@dataclass(frozen=True)
class Method:
    """`predict` is pure, sees nothing beyond `observed` of the run in question, and gives None
    where the method does not apply."""

    name: str
    predict: Predict

    def ask(self, question: Question) -> float | None:
        """The loss (nats a token), finite and above 0, or None."""
        loss = self.predict(*question)
        return loss if loss is not None and math.isfinite(loss) and loss > 0 else None
