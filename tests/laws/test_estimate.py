"""One law through one set of points: what stands beside the parameters, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from scaling_jax.errors import WorkError
from scaling_jax.laws.estimate import Estimate, estimate, held_out, named, ranges_of
from scaling_jax.laws.fitting import Points, make_points
from scaling_jax.laws.forms import L_NS, LAWS

LEVEL, SEED = 0.9, 0


def through(case, noise: float = 0.01, seed: int = 0) -> Points:
    factor = np.exp(noise * np.random.default_rng(seed).normal(size=case.output.size))
    return make_points(L_NS, case.inputs, case.output * factor)


def estimated(points: Points, weights: np.ndarray | None = None, **options) -> Estimate:
    size = points.x[0]
    run = np.unique(size, return_inverse=True)[1]
    weights = np.ones(size.size) if weights is None else weights
    return estimate(points, weights, run, size, LEVEL, options.pop("resamples", 0), SEED, **options)


def test_the_parts_of_an_estimate_belong_together(cases) -> None:
    case = cases["l_ns"]
    points = through(case)
    found = estimated(points)
    params = named(points, found.theta)
    assert list(params) == list(L_NS.params)
    assert params == pytest.approx(case.params, rel=0.2)
    np.testing.assert_allclose(
        found.residual, points.y + points.y_centre - np.log(L_NS.predict(params, **case.inputs)),
        atol=1e-12,
    )  # fmt: skip
    size, delta = np.abs(found.residual), points.objective.delta
    huber = np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))
    assert found.objective == pytest.approx(huber.sum(), rel=1e-9)
    for name, (low, high) in found.spread.intervals.items():
        assert low < params[name] < high
    assert found.spread.n_clusters == 9


def test_points_without_weight_count_for_nothing(cases) -> None:
    points = through(cases["l_ns"])
    weights = np.ones(points.y.size)
    weights[::5] = 0
    rows = weights > 0
    alone = make_points(
        L_NS, {name: column[rows] for name, column in cases["l_ns"].inputs.items()},
        np.exp(points.y + points.y_centre)[rows],
    )  # fmt: skip
    found, again = estimated(points, weights), estimated(alone)
    assert named(points, found.theta) == pytest.approx(named(alone, again.theta), rel=1e-5)
    assert found.objective == pytest.approx(again.objective, rel=1e-9)
    for name, ends in again.spread.intervals.items():
        assert found.spread.intervals[name] == pytest.approx(ends, rel=1e-3)


def test_other_minima_are_listed_with_what_they_cost() -> None:
    N, S = (axis.ravel() for axis in np.meshgrid(*[np.geomspace(1e3, 1e5, 7)] * 2))
    # A constant, which the form has not, can hide in either term.
    loss = 4.0 + (1e4 / N) ** 0.3 + 1.02 * (1e4 / S) ** 0.31
    found = estimated(make_points(L_NS, {"N": N, "S": S}, loss))
    assert len(found.rivals) == 1
    assert found.rivals[0]["params"].keys() == set(L_NS.params)
    assert found.objective < found.rivals[0]["objective"] < 1.5 * found.objective


def test_an_exponent_of_chance_is_refused(cases) -> None:
    case = cases["l_ns"]
    rng = np.random.default_rng(0)
    runs, run = np.unique(case.inputs["N"], return_inverse=True)
    flat = case.formula(**{**case.params, "N_c": 1.0, "alpha_N": 1e-3}, **case.inputs)
    noisy = flat * np.exp(0.02 * rng.normal(size=runs.size))[run]
    with pytest.raises(WorkError, match="identif"):
        estimated(make_points(L_NS, case.inputs, noisy))


def test_one_arm_of_a_batch_sweep_is_refused() -> None:
    B = np.geomspace(1e3, 1e4, 6)
    noise = np.exp(0.01 * np.random.default_rng(0).normal(size=6))
    points = make_points(LAWS["pareto"], {"B": B}, 4000 * (1 + 1e6 / B) * noise)
    run = np.arange(6)
    with pytest.raises(WorkError, match="S_min is not identified: its 90% interval runs from"):
        estimate(points, np.ones(6), run, points.x[0], LEVEL, 0, SEED)


def equal(points: Points) -> np.ndarray:
    return np.ones(points.y.size)


def test_hidden_points_are_predicted_by_a_law_that_holds(cases) -> None:
    points = through(cases["l_ns"], noise=0.0)
    hidden = points.x[0] == points.x[0].max()
    errors = held_out(points, equal(points), hidden)
    assert errors is not None and errors.worst < 1e-6
    assert errors.n_points == hidden.sum() == 12


def test_errors_of_hidden_points_are_relative_and_of_the_last_of_their_runs(cases) -> None:
    points = through(cases["l_ns"], noise=0.0)
    hidden = points.x[0] == points.x[0].max()
    last = points.x[1] == points.x[1].max()
    factor = np.where(hidden, 1.1, 1.0) * np.where(hidden & last, 1.05, 1.0)
    loss = np.exp(points.y + points.y_centre) * factor
    moved = make_points(L_NS, cases["l_ns"].inputs, loss)
    errors = held_out(moved, equal(moved), hidden, last)
    assert errors is not None
    # The prediction is that of the law: too low by as much as the loss was raised.
    assert errors.median == pytest.approx(1 - 1 / 1.1, rel=1e-4)
    assert errors.worst == errors.final == pytest.approx(1 - 1 / (1.1 * 1.05), rel=1e-4)
    every = held_out(moved, equal(moved), hidden)
    assert every is not None and every.final == every.worst


def test_points_without_weight_are_neither_seen_nor_predicted(cases) -> None:
    case = cases["l_ns"]
    hidden = case.inputs["N"] == case.inputs["N"].max()
    wrong = np.arange(hidden.size) % 12 == 5
    points = make_points(L_NS, case.inputs, case.output * np.where(wrong, 1.5, 1.0))
    errors = held_out(points, (~wrong).astype(float), hidden)
    assert errors is not None and errors.worst < 1e-6
    assert errors.n_points == (hidden & ~wrong).sum() == 11
    weak = held_out(points, np.where(wrong, 1e-9, 1.0), hidden & ~wrong)
    assert weak is not None and weak.worst < 1e-6
    alike = held_out(points, equal(points), hidden & ~wrong)
    assert alike is not None and alike.worst > 1e-4


def test_what_cannot_be_predicted_is_none(cases) -> None:
    points = through(cases["l_ns"])
    nothing = np.zeros(points.y.size, dtype=bool)
    assert held_out(points, equal(points), nothing) is None
    few = nothing.copy()
    few[:4] = True
    assert held_out(points, equal(points), ~few) is None
    one_size = points.x[0] == points.x[0].min()
    assert held_out(points, equal(points), ~one_size) is None


def test_ranges() -> None:
    assert ranges_of(np.array([3.0, 1.0, 2.0])) == (1.0, 3.0)


def test_an_exponent_that_is_wide_open_is_refused_without_a_warning() -> None:
    rng = np.random.default_rng(0)
    D = np.where(np.arange(22) < 2, 3e11, 3.5e11)  # Student's t of about one degree
    loss = 2.6 * (3e11 / D) ** 0.1 * np.exp(0.05 * rng.normal(size=22))
    points = make_points(LAWS["l_d"], {"D": D}, loss)
    with pytest.raises(WorkError, match="identif"):
        estimate(points, np.ones(22), np.arange(22), points.x[0], LEVEL, 0, SEED)
