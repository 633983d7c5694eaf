"""Do the intervals of the noise scale cover? Many runs a design, points as long as they choose."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
import pytest

from scaling_jax.laws.noise_scale import noise_scale
from tests.laws.noise_curves import BATCH, curve, records, squared_norms, wandering

LEVEL = 0.9
DIM = 200
RECORDED = np.unique(
    np.concatenate([np.arange(11), np.round(10 * 10 ** (np.arange(73) / 24))])
).astype(int)


class Design(NamedTuple):
    edges: np.ndarray
    scale: float  # B_simple over the batch, at the end
    correlation: float = 0.0
    fall: float = 0.0  # of ln |G|^2 over the run, with the loss falling by a factor e


def apart(updates: int, windows: int) -> np.ndarray:
    return 10_000 + updates * np.arange(windows + 1)


DESIGNS = {
    "200 steps": Design(apart(200, 1), 2.0),
    "200 steps, scale 20 B": Design(apart(200, 1), 20.0),
    "400 steps in windows of 10": Design(apart(10, 40), 2.0),
    "10 windows of 200": Design(apart(200, 10), 2.0),
    "10 windows of 200, scale 20 B": Design(apart(200, 10), 20.0),
    "20 windows of 200, AR(1) 0.3": Design(apart(200, 20), 2.0, 0.3),
    "20 windows of 200, AR(1) 0.8": Design(apart(200, 20), 2.0, 0.8),
    "20 windows of 50, AR(1) 0.8": Design(apart(50, 20), 2.0, 0.8),
    "40 windows of 50, AR(1) 0.95": Design(apart(50, 40), 2.0, 0.95),
    "as recorded": Design(RECORDED, 2.0),
    "as recorded, falling": Design(RECORDED, 2.0, 0.0, 3.0),
    "as recorded, falling, AR(1) 0.8": Design(RECORDED, 2.0, 0.8, 3.0),
}


class Covered(NamedTuple):
    """Shares of points: determined, and of these with the truth in the interval."""

    points: int
    determined: float
    inside: float


def coverage(design: Design, groups: int, runs: int, seed: int) -> Covered:
    rng = np.random.default_rng(seed)
    edges, count = design.edges, int(np.ptp(design.edges))
    way = np.log(edges[0] + 1 + np.arange(count))
    way = (way - way[0]) / np.ptp(way)
    grad_sq = np.exp(design.fall * (1 - way))
    tr_sigma = design.scale * BATCH
    wander = wandering(rng, (runs, count), design.correlation) if design.correlation else 1.0
    small, big = squared_norms(rng, grad_sq * wander, tr_sigma, (runs, count), DIM, groups)

    def loss(step):
        share = way[step - edges[0] - 1] if design.fall else np.zeros(len(step))
        return 5.0 * np.exp(-share)

    curves = [
        curve(s, b, edges, f"{i:05d}", groups, loss=loss)
        for i, (s, b) in enumerate(zip(small, big, strict=True))
    ]
    frame = noise_scale(records(curves), LEVEL)
    total = np.concatenate([[0.0], np.cumsum(grad_sq)])
    first, last = (frame[name].to_numpy() - edges[0] for name in ("step_start", "step"))
    truth = tr_sigma * (last - first) / (total[last] - total[first])
    found = frame.with_columns(truth=truth).filter(~pl.col("undetermined"))
    inside = (pl.col("b_simple_low") <= pl.col("truth")) & (
        pl.col("truth") <= pl.col("b_simple_high")
    )
    return Covered(len(frame), len(found) / len(frame), float(found.select(inside.mean()).item()))


@pytest.mark.parametrize("groups", [2, 8])
@pytest.mark.parametrize("name", DESIGNS)
def test_nine_in_ten_intervals_hold_the_truth(name, groups):
    design = DESIGNS[name]
    found = coverage(design, groups, 250 if len(design.edges) == 2 else 30, seed=0)
    assert found.determined > (0.8 if design.fall else 0.95), found
    assert 0.85 <= found.inside <= 0.95, found


@pytest.mark.slow
@pytest.mark.parametrize("groups", [2, 8])
@pytest.mark.parametrize("name", DESIGNS)
def test_nine_in_ten_intervals_hold_the_truth_over_thousands(name, groups):
    design = DESIGNS[name]
    found = coverage(design, groups, 4000 if len(design.edges) == 2 else 500, seed=1)
    print(f"{name}, {groups} groups: {found}")
    assert 0.86 <= found.inside <= 0.94, found
