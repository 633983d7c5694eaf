"""The reduction of curves to one: the acceptance of Qiu et al. 2025, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forecast.collapse import collapse, describe_collapse
from scaling_jax.laws.forecast.curve import Curve

L0 = 1.2
SEEDS = 3


def run(i: int, seed: int, alpha: float = 0.6, noise: float = 0.003, lr: float = 1e-3) -> Curve:
    """A compute-optimal run: steps grow as N, its end lies on L0 + a C^-b, its shape is x^-alpha.

    The error of the whole run is one factor, as the noise of seeds is that lasts.
    """
    rng = np.random.default_rng([i, seed])
    size = 1e6 * 2.0**i
    end = 500.0 * 2.0**i
    step = np.linspace(end / 200, end, 200)
    reducible = 3.0 * (size * end / 5e8) ** -0.12 * (step / end) ** -alpha
    reducible *= np.exp(noise * rng.standard_normal() * (1 - step / end))
    name = f"n{i}-s{seed}-{lr:g}"
    return Curve(name, name, step, L0 + reducible, lr=np.full(200, lr), size=size, horizon=end)


def family(**odd: float) -> list[Curve]:
    """Five sizes of three seeds; `odd` are the arguments of the third size."""
    return [run(i, seed, **(odd if i == 2 else {})) for i in range(5) for seed in range(SEEDS)]


def test_one_family_collapses_to_the_noise_of_its_seeds() -> None:
    found = collapse(family())
    assert found.fitted and found.floor == pytest.approx(L0, abs=0.05)
    # Given the true floor nothing but the seeds is left.
    found = collapse(family(), L0)
    assert found.noise is not None
    assert np.all(found.deviation < 1.5 * found.noise)
    assert found.leaves is None and not found.one_horizon


def test_the_deviation_is_that_of_equation_two_and_the_noise_that_of_three() -> None:
    curves = family()
    found = collapse(curves, L0)
    at = found.x[10]
    reducible = np.array([np.interp(at * c.end, c.step, c.loss) - L0 for c in curves])
    ends = np.array([c.final_loss - L0 for c in curves])
    ell = reducible / ends
    assert found.deviation[10] == pytest.approx(ell.std(ddof=1) / ell.mean(), rel=0.02)
    by_size = reducible.reshape(5, SEEDS)
    noise = by_size.std(axis=1, ddof=1) / by_size.mean(axis=1)
    assert found.noise is not None
    assert found.noise[10] == pytest.approx(noise.mean(), rel=0.02)


def test_a_size_with_another_exponent_leaves_the_bundle() -> None:
    found = collapse(family(alpha=0.8), L0)
    assert found.leaves is not None and found.leaves[0] == 4e6 and found.leaves[1] < 0.2
    assert found.below_noise is not None and found.below_noise < 0.2
    assert "N = 4e+06 leaves the bundle" in describe_collapse(found)


def test_of_a_size_the_longest_runs_at_the_best_rate_enter() -> None:
    worse = run(0, 0, lr=2e-3)
    worse = Curve("worse", "worse", worse.step, worse.loss + 0.1, lr=worse.lr, size=worse.size)
    short = run(1, 0).until(400.0)
    short = Curve("short", "short", short.step, short.loss, lr=short.lr, size=short.size)
    found = collapse([*family(), worse, short], L0)
    assert len(found.runs) == 15
    assert {row["run_id"]: row["reason"] for row in found.excluded} == {
        "worse": "its size has runs at a better learning rate",
        "short": "its size has a longer run",
    }
    assert json.loads(json.dumps(found.to_json()))["L0"] == L0


def test_without_seeds_the_noise_is_not_known_and_said() -> None:
    found = collapse([run(i, 0) for i in range(5)], L0)
    assert found.noise is None and found.below_noise is None
    assert "No size has two seeds" in describe_collapse(found)


def test_what_cannot_be_reduced_is_refused() -> None:
    with pytest.raises(WorkError, match="needs finished runs of 3 sizes, and there are 2"):
        collapse([run(0, 0), run(1, 0)])
    with pytest.raises(WorkError, match="--floor gives L0"):
        collapse([run(i, 0) for i in range(3)])
    for floor in (-1.0, 9.0, float("nan")):
        with pytest.raises(RequestError, match="below the lowest measured"):
            collapse(family(), floor)
