"""Smoothing, level crossings and envelopes against curves whose answers are known."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.curves import (
    crossings,
    curves_at,
    envelope_law,
    lower_envelope,
    lower_hull,
    sample_efficiency,
    smooth,
)
from scaling_jax.laws.forms import critical_batch, minimum_steps
from scaling_jax.laws.published import published

TABLE3 = published("kaplan2020.table3").params
B_CRIT = published("kaplan2020.b_crit").params
BATCH = 2.0**19
SIZES = np.array([1e5, 1e6, 1e7])


def steps_to(loss: np.ndarray, N: float) -> np.ndarray:
    """Steps at the fixed batch that Table 3 needs to reach a loss: exact, since L is the input."""
    over = loss - (TABLE3["N_c"] / N) ** TABLE3["alpha_N"]
    S_min = TABLE3["S_c"] / over ** (1 / TABLE3["alpha_S"])
    return S_min * (1 + critical_batch(loss, **B_CRIT) / BATCH)


def kaplan_curves(points: int = 300) -> pl.DataFrame:
    frames = []
    for N in SIZES:
        loss = (TABLE3["N_c"] / N) ** TABLE3["alpha_N"] * (1 + np.geomspace(5, 0.01, points))
        frames.append(
            pl.DataFrame({"run": f"n{N:.0f}", "N": N, "S": steps_to(loss, N), "loss": loss})
        )
    return pl.concat(frames)


def test_a_power_law_is_left_as_it_is_up_to_its_ends() -> None:
    x = np.geomspace(1, 1e6, 200)
    np.testing.assert_allclose(smooth(x, 7 * x**-0.3, 1.0), 7 * x**-0.3, rtol=1e-12)


def test_smoothing_does_not_lag() -> None:
    # A moving average of the past shifts a straight descent by half its window.
    rng = np.random.default_rng(0)
    x = np.geomspace(10, 1e5, 400)
    truth = 2 + 5 * x**-0.4
    noise = np.exp(0.01 * rng.normal(size=x.size))
    error = np.log(smooth(x, truth * noise) / truth)
    assert np.std(error) < 0.5 * 0.01
    assert abs(np.mean(error)) < 0.002
    assert abs(np.mean(error[:20])) < 0.01


def test_smoothing_equals_a_line_fitted_to_each_window() -> None:
    rng = np.random.default_rng(1)
    x = np.sort(np.exp(rng.uniform(0, 5, 60)))
    y = np.exp(rng.normal(size=60))
    for i, value in enumerate(smooth(x, y, 0.8)):
        near = np.abs(np.log(x / x[i])) <= 0.4
        if near.sum() > 2:
            line = np.polyfit(np.log(x[near] / x[i]), np.log(y[near]), 1)
            assert value == pytest.approx(np.exp(line[1]), rel=1e-9)
        else:
            assert value == y[i]


def test_a_window_of_zero_changes_nothing() -> None:
    y = np.array([3.0, 1.0, 2.0])
    np.testing.assert_array_equal(smooth([1, 2, 3], y, 0), y)


@pytest.mark.parametrize("x", [[1, 1, 2], [2, 1, 3], [0, 1, 2]])
def test_steps_that_do_not_increase_from_above_zero_are_refused(x: list[int]) -> None:
    with pytest.raises(RequestError):
        smooth(x, [3, 2, 1])


def test_crossings_and_the_two_ways_of_having_none() -> None:
    table = crossings([1, 10, 100], [4, 2, 1], [5, 4, 2.5, 1, 0.5], window=0)
    assert table["status"].to_list() == [
        "below from the first point",
        "crossed",
        "crossed",
        "crossed",
        "never reached",
    ]
    at = 10 ** (np.log(4 / 2.5) / np.log(2))
    assert table["x"].to_list() == [None, 1.0, pytest.approx(at), pytest.approx(100.0), None]


def test_the_first_crossing_counts() -> None:
    assert crossings([1, 2, 4, 8], [4, 2, 4, 2], [2.0], window=0)["x"].item() == 2.0


@given(
    losses=st.lists(st.floats(0.1, 10), min_size=2, max_size=12),
    level=st.floats(0.1, 10),
)
def test_a_crossing_is_where_the_line_through_the_curve_is_at_the_level(
    losses: list[float], level: float
) -> None:
    x = np.arange(1.0, len(losses) + 1)
    row = crossings(x, losses, [level], window=0).row(0, named=True)
    if row["status"] == "crossed":
        value = np.exp(np.interp(np.log(row["x"]), np.log(x), np.log(losses)))
        assert value == pytest.approx(level, rel=1e-6)
        assert min(losses[: int(np.ceil(row["x"] - 1e-9)) - 1], default=np.inf) > level
    elif row["status"] == "never reached":
        assert min(losses) > level
    else:
        assert losses[0] < level


def test_sample_efficiency_of_table_3_is_exact() -> None:
    """Figure 19: S_min = S_c / (L - (N_c/N)^alpha_N)^(1/alpha_S), E_min = B_crit S_min."""
    curves = kaplan_curves()
    levels = curves["loss"].to_numpy()[[150, 450, 750]]
    table = sample_efficiency(
        curves["run"], curves["N"], curves["S"], curves["loss"], BATCH, levels, B_CRIT, window=0
    )
    crossed = table.filter(pl.col("status") == "crossed")
    assert crossed.height > 4
    L, N = crossed["level"].to_numpy(), crossed["N"].to_numpy()
    over = L - (TABLE3["N_c"] / N) ** TABLE3["alpha_N"]
    S_min = TABLE3["S_c"] / over ** (1 / TABLE3["alpha_S"])
    np.testing.assert_allclose(crossed["S_min"], S_min, rtol=2e-4)
    own = {size: levels[i] for i, size in enumerate(SIZES)}
    exact = np.array([own[size] == level for size, level in zip(N, L, strict=True)])
    np.testing.assert_allclose(crossed["S_min"].to_numpy()[exact], S_min[exact], rtol=1e-9)
    np.testing.assert_allclose(crossed["E_min"], critical_batch(L, **B_CRIT) * crossed["S_min"])
    np.testing.assert_allclose(crossed["tokens"], BATCH * crossed["S"])
    np.testing.assert_allclose(crossed["S_min"], minimum_steps(crossed["S"], L, BATCH, **B_CRIT))
    by_size = crossed.filter(pl.col("level") == levels[0]).sort("N")
    assert by_size["tokens"].is_sorted(descending=True)


def test_smoothed_crossings_stay_within_half_a_per_cent() -> None:
    curves = kaplan_curves(points=100).filter(pl.col("N") == SIZES[1])
    level = float(curves["loss"][50])
    found = crossings(curves["S"], curves["loss"], [level])["x"].item()
    assert found == pytest.approx(curves["S"][50], rel=5e-3)


def test_without_a_critical_batch_there_is_no_s_min() -> None:
    table = sample_efficiency(["a", "a"], 1e3, [1, 2], [3.0, 2.0], 64, [2.5])
    assert table["S_min"].item() is None
    assert table["E_min"].item() is None
    assert table["tokens"].item() == pytest.approx(64 * table["S"].item())


def test_a_batch_that_changes_within_a_run_is_refused() -> None:
    with pytest.raises(RequestError, match="batch_tokens of run a changes from 64 to 128"):
        sample_efficiency(["a", "a"], 1e3, [1, 2], [3.0, 2.0], [64, 128], [2.5])


def test_the_envelope_is_the_least_loss_of_the_runs_that_reach_a_budget() -> None:
    C = np.array([1, 100, 10, 1000], dtype=float)
    grid = curves_at(
        compute=C, loss=[4, 2, 4, 1], run=["a", "a", "b", "b"], N=[1, 1, 2, 2],
        tokens=C / np.array([6, 6, 12, 12]), budgets=[0.5, 1, 50, 150, 1000], window=0,
    )  # fmt: skip
    table = lower_envelope(grid)
    assert table["compute"].to_list() == [1, 50, 150, 1000]
    assert table["run"].to_list() == ["a", "a", "b", "b"]
    assert table["n_sizes"].to_list() == [1, 2, 1, 1]
    assert table["edge"].all()
    assert table["loss"][1] == pytest.approx(4 * 0.5 ** (np.log10(50) / 2))
    np.testing.assert_allclose(6 * table["N"] * table["D"], table["compute"])


def test_only_sizes_inside_the_range_are_no_edge() -> None:
    C = np.tile([1.0, 10.0], 3)
    loss = np.repeat([3.0, 2.0, 2.5], 2)
    N = np.repeat([1.0, 2.0, 4.0], 2)
    grid = curves_at(C, loss, N.astype(str), N, C / (6 * N), budgets=[2.0])
    assert lower_envelope(grid)["edge"].to_list() == [False]
    grid = curves_at(C, loss[::-1] + N, N.astype(str), N, C / (6 * N), budgets=[2.0])
    assert lower_envelope(grid)["edge"].to_list() == [True]


def test_c_min_of_an_envelope_is_what_its_steps_take_at_a_small_batch() -> None:
    """C_min = 6 N B_crit(L) S_min, papers' identity of eq. 5.2, 5.4 and 5.5."""
    curves = kaplan_curves()
    N, S = curves["N"].to_numpy(), curves["S"].to_numpy()
    grid = curves_at(
        6 * N * BATCH * S, curves["loss"], curves["run"], N, BATCH * S,
        batch_tokens=BATCH, critical=B_CRIT, window=0,
    )  # fmt: skip
    table = lower_envelope(grid)
    L, size = table["loss"].to_numpy(), table["N"].to_numpy()
    over = L - (TABLE3["N_c"] / size) ** TABLE3["alpha_N"]
    S_min = TABLE3["S_c"] / over ** (1 / TABLE3["alpha_S"])
    C_min = 6 * size * critical_batch(L, **B_CRIT) * S_min
    np.testing.assert_allclose(table["compute"], C_min, rtol=2e-3)
    np.testing.assert_allclose(6 * table["N"] * table["D"], table["compute"], rtol=1e-9)


def test_c_min_needs_the_batch() -> None:
    with pytest.raises(RequestError, match="batch_tokens"):
        curves_at([1, 2], [2, 1], ["a", "a"], 1, [1, 2], critical=B_CRIT)


def test_the_law_of_an_envelope_that_is_a_power_law_is_that_power_law() -> None:
    C = np.geomspace(1e15, 1e20, 9)
    table = pl.DataFrame({"compute": C, "loss": (1e28 / C) ** 0.05, "edge": [True] + 8 * [False]})
    found = envelope_law(table.with_columns(pl.col("loss") + pl.col("edge")))
    assert found["alpha_C"] == pytest.approx(0.05)
    assert found["C_c"] == pytest.approx(1e28, rel=1e-6)
    with pytest.raises(WorkError, match="2 budgets"):
        envelope_law(table[:3])


def test_single_points_are_no_curves() -> None:
    with pytest.raises(WorkError, match="No run has 2 points"):
        curves_at([1, 2], [2, 1], ["a", "b"], 1, [1, 2])


def test_a_size_that_changes_within_a_run_is_refused() -> None:
    with pytest.raises(RequestError, match="N of run a"):
        curves_at([1, 2], [2, 1], ["a", "a"], [1, 2], [1, 2])


def test_the_hull_holds_all_points_above_it() -> None:
    rng = np.random.default_rng(2)
    C = np.exp(rng.uniform(0, 5, 300))
    loss = 2 + 3 * C**-0.3 * np.exp(0.2 * np.abs(rng.normal(size=300)))
    hull = lower_hull(C, loss)
    x, y = np.log(C[hull]), np.log(loss[hull])
    assert np.all(np.diff(x) > 0)
    assert np.all(np.diff(np.diff(y) / np.diff(x)) > 0)
    assert loss[hull[-1]] == loss.min()
    before = x[-1] >= np.log(C)
    assert np.all(np.log(loss[before]) >= np.interp(np.log(C[before]), x, y) - 1e-12)
