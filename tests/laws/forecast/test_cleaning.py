"""Spikes and restarts that were put in are found; noise and steady curves are left alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forecast.cleaning import branched, clean, require_forecastable
from scaling_jax.laws.forecast.curve import Curve

STEPS = np.arange(100.0, 20_001.0, 100.0)


def smooth(noise: float = 0.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (2 + 20 * STEPS**-0.5) * np.exp(noise * rng.standard_normal(STEPS.size))


def curve(loss: np.ndarray, **given) -> Curve:
    return Curve("a", "a", STEPS, loss, **given)


def raised(loss: np.ndarray, first: int, rise: np.ndarray) -> np.ndarray:
    loss = loss.copy()
    loss[first : first + rise.size] += rise
    return loss


@settings(max_examples=30, deadline=None)
@given(noise=st.sampled_from([0.0, 0.001, 0.01, 0.03]), seed=st.integers(0, 10_000))
def test_noise_is_no_spike(noise: float, seed: int) -> None:
    whole = curve(smooth(noise, seed))
    assert clean(whole) is whole


@settings(max_examples=30, deadline=None)
@given(
    noise=st.sampled_from([0.0, 0.001, 0.005]),
    first=st.integers(20, 180),
    count=st.integers(1, 6),
    seed=st.integers(0, 10_000),
)
def test_a_spike_is_left_out(noise: float, first: int, count: int, seed: int) -> None:
    whole = curve(raised(smooth(noise, seed), first, np.full(count, 0.8)))
    found = clean(whole)
    gone = np.setdiff1d(STEPS, found.step)
    assert set(STEPS[first : first + count]) <= set(gone)
    assert gone.size <= count + 8
    assert any(f"at step {STEPS[first]:g}" in flag for flag in found.flags)


def test_a_restart_is_what_takes_long() -> None:
    slow = 1.5 * np.exp(-np.arange(60) / 12)
    found = clean(curve(raised(smooth(0.001), 50, slow)))
    assert [flag.split()[0] for flag in found.flags] == ["restart"]
    assert 20 < STEPS.size - found.step.size <= 60
    quick = clean(curve(raised(smooth(0.001), 150, np.array([0.5, 0.2]))))
    assert [flag.split()[0] for flag in quick.flags] == ["spike"]


def test_cleaning_twice_changes_nothing() -> None:
    once = clean(curve(raised(smooth(0.001), 50, np.full(4, 1.0))))
    assert clean(once) is once


def test_a_rise_that_stays_is_refused() -> None:
    whole = curve(raised(smooth(0.001), 150, np.full(50, 1.0)))
    found = clean(whole)
    assert found.step.size == STEPS.size
    with pytest.raises(WorkError, match="risen since step 15100 and not come back"):
        require_forecastable(found, 40_000)
    # What had been seen before it is not touched by what came later.
    require_forecastable(clean(whole.until(15_000)), 40_000)


def test_a_rise_of_the_rate_is_no_fault() -> None:
    lr = np.where(STEPS < 10_000, 0.1, 0.3)
    whole = curve(raised(smooth(), 99, np.full(1, 0.5)), lr=lr)
    assert not any(
        flag.startswith("spike of the loss at step 10000") for flag in clean(whole).flags
    )


def test_warmup_is_left_out() -> None:
    assert clean(curve(smooth(), warmup_steps=1000.0)).step[0] == 1100
    assert clean(curve(smooth(), lr=np.minimum(STEPS / 3000, 1.0))).step[0] == 3000
    rising = clean(curve(smooth(), lr=STEPS / 1e6))
    with pytest.raises(WorkError, match="0 points after warm-up"):
        require_forecastable(rising, 1e6)
    with pytest.raises(WorkError, match="1 point after warm-up"):
        require_forecastable(clean(curve(smooth(), warmup_steps=19_900.0)), 1e6)


def test_a_rate_that_has_been_0_so_far_has_begun_nothing() -> None:
    held = curve(smooth(), lr=np.where(STEPS > 3000, 1.0, 0.0))
    assert clean(held.until(3000)).step.size == 0
    assert clean(held).step[0] == 3100


def test_a_rate_that_rises_again_has_passed_its_warm_up() -> None:
    share = (STEPS - STEPS[0]) / (STEPS[-1] - STEPS[0])
    twice = curve(smooth(), lr=0.5 + 0.5 * np.abs(np.cos(np.pi * share)))
    assert twice.lr is not None and twice.lr[-1] > twice.lr[-2]
    assert clean(twice).step.size > 100


def test_what_has_hardly_gone_on_after_warm_up_tells_no_slope() -> None:
    short = clean(curve(smooth(), warmup_steps=10_000.0).until(11_000))
    with pytest.raises(WorkError, match="seen from step 10100 to 11000 after warm-up"):
        require_forecastable(short, 1e6)
    require_forecastable(clean(curve(smooth(), warmup_steps=10_000.0).until(13_000)), 1e6)


def test_branches_are_one_run_and_runs_of_one_seed_are_two() -> None:
    trunk = curve(smooth(0.001), warmup_steps=1000.0)
    branch = replace(trunk, loss=np.where(STEPS > 10_000, trunk.loss - 0.1, trunk.loss))
    assert branched(branch.until(12_000), trunk)
    same_seed = replace(trunk, loss=np.where(STEPS > 1000, trunk.loss - 0.1, trunk.loss))
    assert not branched(same_seed.until(1500), trunk)
    assert not branched(trunk.until(12_000), curve(smooth(0.002)))


def test_horizon_before_the_last_point() -> None:
    whole = clean(curve(smooth()))
    require_forecastable(whole, 20_000)
    with pytest.raises(RequestError, match="before the last point"):
        require_forecastable(whole, 19_000)
    for horizon in (0.0, -5.0, float("nan"), float("inf")):
        with pytest.raises(RequestError, match="horizon"):
            require_forecastable(whole, horizon)
