"""Exponents of learning curves: recovered, compared at the stated error rate, refused if flat."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.slopes import curve_slopes

FLOORS = (4.0, 3.6, 3.3, 3.0, 2.8)
ALPHA = 0.5
SMALLEST = 1e4


def curves(
    rng: np.random.Generator,
    alphas: tuple[float, ...] = (ALPHA,) * 5,
    seeds: int = 1,
    noise: float = 0.002,
    lag: float = 0.0,
    between: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """run, N, S, loss: noise whose neighbours correlate by `lag`, alpha varying between runs."""
    S = np.geomspace(300, 30_000, 30)
    found = []
    for i, alpha in enumerate(alphas):
        for seed in range(seeds):
            e = rng.normal(size=S.size)
            for j in range(1, S.size):
                e[j] = lag * e[j - 1] + np.sqrt(1 - lag**2) * e[j]
            loss = FLOORS[i] + (200 / S) ** (alpha * np.exp(between * rng.normal()))
            run = np.full(S.size, f"{i}-{seed}")
            found.append((run, np.full(S.size, 10.0 ** (4 + i)), S, loss * np.exp(noise * e)))
    run, N, S, loss = (np.concatenate(columns) for columns in zip(*found, strict=True))
    return run, N, S, loss


def test_exponents_are_recovered_without_noise() -> None:
    alphas = (0.4, 0.45, 0.5, 0.6, 0.7)
    table = curve_slopes(*curves(np.random.default_rng(0), alphas, noise=1e-9)).table
    np.testing.assert_allclose(table["alpha"], alphas, rtol=1e-3)
    np.testing.assert_allclose(table["E"], FLOORS, rtol=2e-3)


def test_the_plain_slope_is_the_line_through_the_logs() -> None:
    run, N, S, loss = curves(np.random.default_rng(0))
    table = curve_slopes(run, N, S, loss).table
    one = N == SMALLEST
    slope = np.polyfit(np.log(S[one]), np.log(loss[one]), 1)[0]
    assert table["plain_slope"][0] == pytest.approx(-slope)
    assert table["plain_slope"][0] < 0.1 * ALPHA


@pytest.mark.parametrize(
    ("kind", "unit"),
    [
        ({"seeds": 1}, "points"),
        ({"seeds": 1, "lag": 0.6}, "points"),
        ({"seeds": 3, "lag": 0.6}, "runs"),
        ({"seeds": 3, "between": 0.05}, "runs"),
    ],
)
def test_equal_exponents_are_rejected_about_as_often_as_stated(kind: dict, unit: str) -> None:
    rng = np.random.default_rng(7)
    values, inside = [], []
    for _ in range(150):
        found = curve_slopes(*curves(rng, **kind))
        assert found.unit == unit
        values.append(found.p_value)
        inside.append(
            found.table["alpha_low"].is_between(0, ALPHA) & (found.table["alpha_high"] >= ALPHA)
        )
    assert np.mean(np.array(values) < 0.05) < 0.1
    assert 0.85 <= np.mean(inside) <= 0.98


@pytest.mark.parametrize("seeds", [1, 3])
def test_unequal_exponents_are_found(seeds: int) -> None:
    found = curve_slopes(*curves(np.random.default_rng(1), (0.4, 0.45, 0.5, 0.55, 0.6), seeds))
    assert found.p_value is not None and found.p_value < 0.001
    assert found.table["alpha"].is_sorted()


def test_what_differs_between_runs_is_not_taken_for_a_difference_between_sizes() -> None:
    """Within the curves alone, runs of one exponent each would look certain to differ."""
    run, N, S, loss = curves(np.random.default_rng(2), seeds=3, noise=2e-4, between=0.05)
    assert (curve_slopes(run, N, S, loss).p_value or 0) > 0.01
    first = np.char.endswith(run, "-0")
    alone = curve_slopes(run[first], N[first], S[first], loss[first])
    assert (alone.p_value or 0) < 1e-6
    assert any("one run a size" in flag for flag in alone.flags)


def test_a_flat_profile_has_no_exponent() -> None:
    run, N, S, loss = curves(np.random.default_rng(3), noise=0.003)
    short = (N > SMALLEST) | (S > 10_000)
    found = curve_slopes(run[short], N[short], S[short], loss[short])
    row = found.table.row(0, named=True)
    assert row["alpha"] is row["alpha_low"] is None
    assert "flat" in row["reason"]
    assert found.table["alpha"].drop_nulls().len() == 4
    assert any("N = 1e+04 has no exponent" in flag for flag in found.flags)
    assert any("different steps" in flag for flag in found.flags)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["sizes"][0]["alpha"] is None


def test_a_curve_that_rises_has_no_exponent() -> None:
    run, N, S, loss = curves(np.random.default_rng(4))
    rising = np.where(N > SMALLEST, loss, 2 * 4.0 - loss)
    assert curve_slopes(run, N, S, rising).table["alpha"].null_count() == 1


def test_one_size_and_wrong_values_are_refused() -> None:
    run, N, S, loss = curves(np.random.default_rng(5))
    one = N == SMALLEST
    with pytest.raises(WorkError, match="1 size with 6 points"):
        curve_slopes(run[one], N[one], S[one], loss[one])
    with pytest.raises(RequestError, match="loss"):
        curve_slopes(run, N, S, -loss)
    with pytest.raises(RequestError, match="N of run 0-0 changes"):
        curve_slopes(run, N * np.arange(1, N.size + 1), S, loss)


def test_short_runs_do_not_enter() -> None:
    run, N, S, loss = curves(np.random.default_rng(6))
    table = curve_slopes(
        np.append(run, ["x"] * 5),
        np.append(N, [77.0] * 5),
        np.append(S, S[:5]),
        np.append(loss, loss[:5]),
    ).table
    assert isinstance(table, pl.DataFrame)
    assert 77.0 not in table["N"]
