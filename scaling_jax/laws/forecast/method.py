"""What every method of forecasting is: a name, what it needs, and a prediction or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from scaling_jax.laws.forecast.curve import Curve

# The observed curve, the horizon in its steps, the finished runs, and the learning rate planned:
# rows (step, lr) from the first step to the horizon, (k, 2); None where it stays as it is.
Predict = Callable[[Curve, float, Sequence[Curve], np.ndarray | None], float | None]


@dataclass(frozen=True)
class Method:
    """`needs` are of "size", "tokens", "lr", "finished": what the observed curve, or the finished
    runs, must have. `predict` is pure, sees nothing beyond `observed` of the run in question, and
    gives None where the method does not apply."""

    name: str
    needs: tuple[str, ...]
    predict: Predict
