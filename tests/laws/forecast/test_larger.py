"""A larger model from smaller ones, of known truth and of gemstones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.forecast.larger import BASELINES, LARGER, LAST_SIZE, predict_larger
from scaling_jax.laws.forecast.method import Method
from tests.laws.forecast.multipowerlaw import gemstones, have_gemstones

STEP = np.arange(100.0, 10001.0, 100.0)
BATCH = 1e5


def a_model(size: float, end: float = 10000.0, **rest) -> Curve:
    loss = 1.7 + (3e4 / size) ** 0.3 + (1e5 / (BATCH * STEP)) ** 0.35
    curve = Curve(
        f"{size:g}", f"{size:g}", STEP, loss, tokens=BATCH * STEP, size=size, schedule="constant"
    )
    return replace(curve, **rest).until(end)


def truth(size: float, tokens: float) -> float:
    return 1.7 + (3e4 / size) ** 0.3 + (1e5 / tokens) ** 0.35


def ask(method: Method, target: Curve, finished: list[Curve]) -> float:
    """Of a run that has not begun."""
    found = method.predict(target.where(target.step < 0), target.end, finished, None)
    assert found is not None
    return found


SIZES = (1e6, 3e6, 1e7, 3e7, 1e8)


def test_a_law_in_size_of_known_truth():
    models = [a_model(size) for size in SIZES]
    found = predict_larger(models, 1e9, 10000, BATCH)
    assert found == pytest.approx(truth(1e9, 1e9), abs=0.02)
    # Larger ones are not looked at.
    assert predict_larger([*models, a_model(1e10)], 1e9, 10000, BATCH) == found
    # A target that ends earlier is compared with what the others had then.
    early = predict_larger(models, 1e9, 2000, BATCH)
    assert early == pytest.approx(truth(1e9, 2e8), abs=0.02)


def test_runs_that_end_at_different_tokens():
    models = [a_model(size, end=500 * size**0.15) for size in SIZES]
    found = predict_larger(models, 1e9, 10000, BATCH)
    assert found == pytest.approx(truth(1e9, 1e9), abs=0.05)


def test_steps_take_the_place_of_tokens():
    models = [replace(a_model(size), tokens=None) for size in SIZES]
    with_tokens = predict_larger([a_model(size) for size in SIZES], 1e9, 10000, BATCH)
    assert predict_larger(models, 1e9, 10000, None) == pytest.approx(with_tokens, abs=1e-9)


def test_a_shape_that_is_out_of_line_hardly_counts():
    models = [a_model(size) for size in SIZES]
    odd = a_model(2e7)
    found = predict_larger([*models, replace(odd, loss=1.05 * odd.loss)], 1e9, 10000, BATCH)
    assert found == pytest.approx(predict_larger(models, 1e9, 10000, BATCH), abs=0.02)


def test_what_is_refused():
    models = [a_model(size) for size in SIZES]
    with pytest.raises(WorkError, match="from 1 smaller finished size:"):
        predict_larger(models[:1], 1e9, 10000, BATCH)
    with pytest.raises(WorkError, match="from 0"):
        predict_larger(models, 1e5, 10000, BATCH)
    with pytest.raises(RequestError, match="positive number of parameters"):
        predict_larger(models, -1.0, 10000, BATCH)
    nothing = a_model(1e9).where(STEP < 0)
    assert LARGER.predict(nothing, 10000, models[:2], None) is None
    assert LARGER.predict(replace(nothing, size=None), 10000, models, None) is None


def test_methods_and_baselines():
    models = [a_model(size) for size in SIZES]
    target = a_model(1e9, batch_tokens=BATCH)
    end = truth(1e9, 1e9)
    last, power = (ask(each, target, models) for each in BASELINES)
    assert last == pytest.approx(models[-1].final_loss)
    found = ask(LARGER, target, models)
    assert abs(found - end) < 0.5 * min(abs(last - end), abs(power - end))
    assert LAST_SIZE.predict(target, 10000, [], None) is None


@have_gemstones
def test_gemstones_of_a_billion_from_the_smaller():
    curves = gemstones()
    smaller = [curve for curve in curves if (curve.size or 0) < 1e9]
    large = [curve for curve in curves if (curve.size or 0) > 1e9]
    assert (len(smaller), len(large)) == (16, 6)

    def median_error(method: Method) -> float:
        return float(np.median([abs(ask(method, c, smaller) - c.final_loss) for c in large]))

    assert median_error(LARGER) <= 0.015
    assert [median_error(each) for each in BASELINES] == pytest.approx([0.150, 0.067], abs=1e-3)
