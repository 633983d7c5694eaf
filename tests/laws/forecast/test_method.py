"""Every method of the end of a run keeps to the one interface."""

from __future__ import annotations

import numpy as np
import pytest

from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.forecast.method import Method
from scaling_jax.laws.forecast.same_run import ALONE, BASELINES, FINISHED_RUNS

STEPS = np.arange(10.0, 1001.0, 10.0)


@pytest.mark.parametrize(
    "method", [*BASELINES, FINISHED_RUNS, ALONE], ids=lambda method: method.name
)
def test_a_method_is_pure_and_gives_a_loss(method: Method) -> None:
    def run(name: str) -> Curve:
        return Curve(name, name, STEPS, 2 + 3 * STEPS**-0.5, size=1e6)

    observed, finished = run("a").until(500), [run("b"), run("c"), run("d")]
    before = observed.loss.copy()
    first = method.predict(observed, 1000, finished, None)
    assert isinstance(first, float) and np.isfinite(first)
    assert method.predict(observed, 1000, finished, None) == first
    assert np.array_equal(observed.loss, before)


def test_names_are_all_different() -> None:
    names = [method.name for method in (*BASELINES, FINISHED_RUNS, ALONE)]
    assert len(set(names)) == len(names)
