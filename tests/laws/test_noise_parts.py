"""Other measurements of the noise scale against the main one, at its points."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from scaling_jax.laws.noise_parts import noise_ratios
from scaling_jax.laws.noise_scale import noise_series
from tests.laws.noise_curves import curve, records, side_rows, squared_norms


def flat(step):
    return np.full(len(step), 3.0)


def frame(rows):
    """A frame of `noise_series` from (run, step, part, tr Sigma, |G|^2)."""
    return pl.DataFrame(
        [
            {
                "run_id": run, "name": f"run-{run}", "step_start": step - 1, "step": step,
                "source": "groups", "metric": "euclidean", "part": part, "main": part == "total",
                "tr_sigma": trace, "grad_sq": square, "b_simple": trace / square,
                "undetermined": square <= 0.01, "noise_steps": 10,
            }
            for run, step, part, trace, square in rows
        ]
    )  # fmt: skip


def pairs(ratios, squares=None, run="a"):
    """The norms, with a tr Sigma of `ratios` of the total's and its |G|^2, unless given."""
    rows = []
    for step, ratio in enumerate(ratios, 1):
        square = 1.0 / step
        rows.append((run, step, "total", 5.0, square))
        rows.append((run, step, "norms", 5.0 * ratio, squares[step - 1] if squares else square))
    return rows


def test_the_ratio_of_a_part_and_how_it_ranks():
    ratios = np.array([1.4, 1.5, 1.3, 1.4])
    (found,) = noise_ratios(frame(pairs(ratios)))
    weight = 1.0 / np.arange(1, 5)
    assert found.ratio == pytest.approx(np.average(ratios, weights=weight))
    assert found.low is not None and found.high is not None
    without = [np.average(np.delete(ratios, i), weights=np.delete(weight, i)) for i in range(4)]
    half = 2.3534 * np.sqrt(3 / 4 * np.sum((np.log(without) - np.log(without).mean()) ** 2))
    assert np.log(found.high / found.low) / 2 == pytest.approx(half, rel=1e-3)
    assert found.rank_correlation == pytest.approx(1.0)
    assert (found.n_points, found.n_all) == (4, 4)
    assert found.agrees is False and found.run_id == "a"


def test_undetermined_points_count_too():
    squares = [1.2, 0.4, -0.1, 0.25]
    (found,) = noise_ratios(frame(pairs([1.0] * 4, squares)))
    assert (found.n_points, found.n_all) == (3, 4)
    assert found.ratio == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / sum(squares))


def test_several_runs_are_one_each_and_as_many_together():
    rows = []
    for run, ratio in (("a", 1.2), ("b", 1.4), ("c", 1.6)):
        rows += pairs(ratio * np.array([0.99, 1.01, 0.99, 1.01]), run=run)
    together, *alone = noise_ratios(frame(rows))
    assert [each.run_id for each in alone] == ["a", "b", "c"] and together.run_id is None
    assert together.n_all == 12
    spreads = [np.log((each.high or 0) / (each.low or 1)) for each in (together, alone[0])]
    assert spreads[0] > 5 * spreads[1]  # the scatter of runs, and not of points


def test_what_is_not_above_zero_or_too_little_has_no_ratio():
    (negative,) = noise_ratios(frame(pairs([1, 1, 1, 1], [-1, 0.3, 0.3, 0.3])))
    assert negative.ratio is None and negative.agrees is None and negative.n_points == 3
    (unsure,) = noise_ratios(frame(pairs([1, 1, 1, 1], [2.0, -0.3, -0.3, -0.3])))
    assert unsure.ratio is not None and unsure.low is None
    (few,) = noise_ratios(frame(pairs([1, 1])))
    assert few.ratio is None and few.n_all == 2
    assert noise_ratios(frame([("a", 1, "total", 5.0, 2.0)])) == []


def test_a_noisy_part_is_not_biased():
    """LayerNorms whose |G|^2 is lost in noise at most points, with 1.4 of the total."""
    rng = np.random.default_rng(2)
    edges = range(1000, 5001, 50)
    grad_sq = np.geomspace(4.0, 0.5, 4000)
    curves, side = [], []
    for i in range(40):
        total = squared_norms(rng, grad_sq, 1000.0, 4000, dim=1000)
        norms = squared_norms(rng, grad_sq / 20, 70.0, 4000, dim=4)
        curves.append(curve(*total, edges, f"{i:02d}", loss=flat))
        rows = curve(*norms, edges, f"{i:02d}", loss=flat)
        side.append(side_rows(rows, "groups", "euclidean", "norms"))
    together, *alone = noise_ratios(noise_series(records(curves, noise=pl.concat(side))))
    assert together.n_points < 0.9 * together.n_all
    assert together.ratio == pytest.approx(1.4, rel=0.03)
    inside = [(each.low or 0) <= 1.4 <= (each.high or 0) for each in alone]
    assert 0.8 <= np.mean(inside) <= 0.98


def test_sources_of_one_quantity_agree_and_a_part_does_not():
    """Three sources of the same gradients, cut differently, and the LayerNorms with 1.4 of it."""
    rng = np.random.default_rng(1)
    edges = range(1000, 5001, 50)
    grad_sq = np.geomspace(4.0, 0.5, 4000)
    total = curve(*squared_norms(rng, grad_sq, 1000.0, 4000), edges, loss=flat)
    single = curve(
        *squared_norms(rng, grad_sq, 1000.0, 4000, groups=16), edges, groups=16, loss=flat
    )
    norms = curve(*squared_norms(rng, grad_sq / 20, 70.0, 4000), edges, loss=flat)
    side = pl.concat(
        [
            side_rows(single, "sequences", "euclidean", "total"),
            side_rows(norms, "groups", "euclidean", "norms"),
        ]
    )
    found = {
        (each.source, each.part): each
        for each in noise_ratios(noise_series(records(total, noise=side)))
    }
    sequences, parts = found["sequences", "total"], found["groups", "norms"]
    assert sequences.agrees is True and parts.agrees is False
    assert parts.ratio == pytest.approx(1.4, rel=0.1)
    assert parts.low is not None and parts.high is not None
    assert parts.low < 1.4 < parts.high
    assert parts.rank_correlation is not None and parts.rank_correlation > 0.9
