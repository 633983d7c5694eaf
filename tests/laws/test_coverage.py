"""Do the default intervals cover? Many tables a design, with noise of runs and of points."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from scaling_jax.laws.fitting import make_points, solve
from scaling_jax.laws.forms import L_ND_CHINCHILLA, L_NS, find_law
from scaling_jax.laws.law import Law
from scaling_jax.laws.uncertainty import spread

LEVEL = 0.9
RUN_NOISE = POINT_NOISE = 0.005
KAPLAN = {"N_c": 3e6, "S_c": 30.0, "alpha_N": 0.12, "alpha_S": 0.4}
# Besiroglu et al. 2024 (arXiv 2404.10102).
BESIROGLU = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
# Kaplan et al. 2020 (arXiv 2001.08361), table 2.
OVERFITTING = {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103}


class Design(NamedTuple):
    law: Law
    truth: dict[str, float]
    inputs: dict[str, np.ndarray]
    run: np.ndarray


def curves(sizes: int, seeds: int) -> Design:
    """L(N, S): runs of 30 points, log-spaced in steps, over a factor of 50 in N."""
    size_of_run = np.repeat(np.geomspace(3456, 172_032, sizes), seeds)
    step = np.unique(np.geomspace(100, 12_000, 30).round())
    run = np.repeat(np.arange(size_of_run.size), step.size)
    inputs = {"N": size_of_run[run], "S": np.tile(step, size_of_run.size)}
    return Design(L_NS, KAPLAN, inputs, run)


def ends(count: int, law: Law, truth: dict[str, float]) -> Design:
    """L(N, D): one point a run, 2 to 200 tokens a parameter."""
    ratio = np.exp(np.random.default_rng(0).uniform(np.log(2), np.log(200), count))
    size = np.geomspace(6e7, 1.6e10, count)
    return Design(law, truth, {"N": size, "D": size * ratio}, np.arange(count))


DESIGNS = {
    "l_ns 7 sizes x 1 seed": curves(7, 1),
    "l_ns 7 sizes x 3 seeds": curves(7, 3),
    "l_ns 15 runs": curves(15, 1),
    "l_ns 40 runs": curves(8, 5),
    "l_nd_chinchilla 40 points": ends(40, L_ND_CHINCHILLA, BESIROGLU),
    "l_nd_chinchilla 240 points": ends(240, L_ND_CHINCHILLA, BESIROGLU),
    "l_nd 40 points": ends(40, find_law("l_nd"), OVERFITTING),
}


def coverage(design: Design, tables: int, seed: int) -> tuple[dict[str, float], list[float]]:
    """The share of tables whose interval holds each exponent, and mean widths in errors' sd."""
    law, truth, inputs, run = design
    exact = law.predict(truth, **inputs)
    rng = np.random.default_rng(seed)
    start = None
    hits, widths, errors = [], [], []
    for _ in range(tables):
        noise = RUN_NOISE * rng.normal(size=run.max() + 1)[run]
        noise = noise + POINT_NOISE * rng.normal(size=run.size)
        points = make_points(law, inputs, exact * np.exp(noise))
        if start is None:
            start = solve(points, np.ones((1, run.size))).theta
        theta = solve(points, np.ones((1, run.size)), starts=start).theta[0]
        found = spread(points, theta, np.ones(run.size), run, inputs["N"], level=LEVEL)
        assert found.flag is None
        low, high = np.log([found.intervals[name] for name in law.exponents]).T
        at = np.log([truth[name] for name in law.exponents])
        hits.append((low <= at) & (at <= high))
        widths.append((high - low) / 2)
        errors.append((high + low) / 2 - at)
    shares = dict(zip(law.exponents, np.mean(hits, axis=0).tolist(), strict=True))
    return shares, (np.median(widths, axis=0) / np.std(errors, axis=0)).tolist()


def require_honest(design: Design, tables: int, seed: int) -> None:
    covered, widths = coverage(design, tables, seed)
    assert all(0.85 <= share <= 0.95 for share in covered.values()), covered
    # Not by being wide: 1.64 for a known normal error, 2.35 for Student's t with three degrees.
    assert all(1.5 < width < 2.4 for width in widths), widths


@pytest.mark.parametrize("design", DESIGNS.values(), ids=DESIGNS)
def test_nine_in_ten_intervals_hold_the_truth(design: Design) -> None:
    require_honest(design, 200, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("design", DESIGNS.values(), ids=DESIGNS)
def test_nine_in_ten_intervals_hold_the_truth_over_a_thousand_tables(design: Design) -> None:
    require_honest(design, 1000, seed=1)
