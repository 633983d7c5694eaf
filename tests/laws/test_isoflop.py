"""IsoFLOP minima against a surface whose optimum is known, against refusals and real budgets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.isoflop import isoflop, noise_level

DATA = Path(__file__).parents[2].parent / "shared" / "data"
BUDGETS = np.geomspace(6e18, 3e21, 9)
# Besiroglu et al. 2024
E, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658
POWER = BETA / (ALPHA + BETA)
G = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
OPTIMAL = G * (BUDGETS / 6) ** POWER


def centred(half_width: float, points: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Budget, N, loss: sizes from 1 / half_width to half_width times the best of each budget."""
    N = OPTIMAL[:, None] * np.geomspace(1 / half_width, half_width, points)
    C = np.broadcast_to(BUDGETS[:, None], N.shape)
    loss = E + A / N**ALPHA + B / (C / (6 * N)) ** BETA
    return C.ravel(), N.ravel(), loss.ravel()


@pytest.mark.parametrize(("half_width", "bias"), [(2, -0.001), (4, -0.004), (16, -0.017)])
def test_the_parabola_is_biased_by_its_width_and_its_exponent_is_not(
    half_width: float, bias: float
) -> None:
    table = isoflop(*centred(half_width))
    found = table["n_opt_parabola"].to_numpy()
    assert np.mean(found / OPTIMAL - 1) == pytest.approx(bias, abs=5e-4)
    slope = np.polyfit(np.log(BUDGETS), np.log(found), 1)[0]
    assert slope == pytest.approx(POWER, abs=1e-5)


@pytest.mark.parametrize("half_width", [2, 4, 16])
def test_interpolation_finds_the_best_size(half_width: float) -> None:
    table = isoflop(*centred(half_width))
    assert table["status"].unique().to_list() == ["ok"]
    np.testing.assert_allclose(table["n_opt"], OPTIMAL, rtol=6e-3)
    np.testing.assert_allclose(table["d_opt"], BUDGETS / (6 * OPTIMAL), rtol=6e-3)
    best = E + A / OPTIMAL**ALPHA + B / (BUDGETS / (6 * OPTIMAL)) ** BETA
    np.testing.assert_allclose(table["loss_opt"], best, rtol=1e-4)


def test_off_centre_sizes_bias_the_parabola_more_than_the_interpolation() -> None:
    C = np.full(9, BUDGETS[4])
    N = OPTIMAL[4] * np.geomspace(1 / 3, 100, 9)
    loss = E + A / N**ALPHA + B / (C / (6 * N)) ** BETA
    row = isoflop(C, N, loss).row(0, named=True)
    assert abs(np.log(row["n_opt"] / OPTIMAL[4])) < 0.05
    assert abs(np.log(row["n_opt_parabola"] / OPTIMAL[4])) > 0.1


def test_sd_of_ln_n_is_the_spread_over_new_measurements() -> None:
    C, N, loss = (column[:9] for column in centred(8))
    rng = np.random.default_rng(0)
    noise = 0.004
    found = [
        isoflop(C, N, loss * np.exp(noise * rng.normal(size=9)), resamples=1, noise=0)["n_opt"]
        for _ in range(300)
    ]
    spread = np.std(np.log([column.item() for column in found if column.item()]))
    stated = isoflop(C, N, loss, noise=noise)["sd_ln_n"].item()
    assert stated == pytest.approx(spread, rel=0.2)


def test_sd_of_ln_n_is_at_least_a_third_of_the_spacing() -> None:
    C, N, loss = centred(4)
    stated = isoflop(C, N, loss, noise=1e-6)["sd_ln_n"].to_numpy()
    np.testing.assert_allclose(stated, np.log(16) / 8 / 3, rtol=1e-6)


def test_redraws_are_the_same_for_the_same_seed() -> None:
    points = centred(4)
    assert isoflop(*points, noise=0.01, seed=3).equals(isoflop(*points, noise=0.01, seed=3))
    assert not isoflop(*points, noise=0.01, seed=3).equals(isoflop(*points, noise=0.01, seed=4))


def test_noise_is_measured_from_the_scatter_around_the_curves() -> None:
    C, N, loss = centred(4)
    rng = np.random.default_rng(5)
    levels = [noise_level(C, N, loss * np.exp(0.01 * rng.normal(size=81))) for _ in range(50)]
    assert np.mean(levels) == pytest.approx(0.01, rel=0.1)
    assert noise_level(C, N, loss) < 1e-4
    wild = loss.copy()
    wild[::9] *= 1.5
    noisy = wild * np.exp(0.01 * rng.normal(size=81))
    assert noise_level(C, N, noisy) < 0.02


def test_a_minimum_at_the_edge_is_refused_with_its_side() -> None:
    N = np.geomspace(1e6, 1e8, 7)
    points = np.concatenate([N, N]), np.concatenate([3 + N / 1e8, 3 + 1e6 / N])
    table = isoflop(np.repeat([1e18, 2e18], 7), *points, noise=1e-3)
    assert table["status"].to_list() == ["refused", "refused"]
    assert "smallest size" in table["reason"][0]
    assert "largest size" in table["reason"][1]
    assert table["n_opt"].to_list() == [None, None]
    assert table["sd_ln_n"].to_list() == [None, None]


def test_a_minimum_that_noise_moves_to_the_edge_is_refused() -> None:
    C = np.full(9, BUDGETS[4])
    N = OPTIMAL[4] * np.geomspace(1 / 1.05, 30, 9)
    loss = E + A / N**ALPHA + B / (C / (6 * N)) ** BETA
    row = isoflop(C, N, loss, noise=0.002).row(0, named=True)
    assert row["status"] == "refused"
    assert "smallest or the largest size in" in row["reason"]


@pytest.mark.parametrize("half_width", [2, 4])
def test_a_minimum_that_noise_hides_is_refused(half_width: float) -> None:
    table = isoflop(*centred(half_width), noise=1.0)
    assert table["status"].unique().to_list() == ["refused"]
    assert "hides the minimum" in table["reason"][0]


def test_a_parabola_without_a_minimum_inside_is_refused() -> None:
    N = np.geomspace(1e6, 1e8, 7)
    hump = 3 - np.linspace(-1, 1, 7) ** 2
    slide = 3 + np.exp(-np.linspace(0, 0.5, 7))
    table = isoflop(
        np.repeat([1e18, 2e18], 7), np.tile(N, 2), np.concatenate([hump, slide]), noise=1e-3
    )
    assert table["status_parabola"].to_list() == ["refused", "refused"]
    assert "curvature" in table["reason_parabola"][0]
    assert "above the largest" in table["reason_parabola"][1]
    assert table["n_opt_parabola"].to_list() == [None, None]


def test_fewer_than_four_sizes_are_refused() -> None:
    row = isoflop(np.full(4, 1e18), [1e6, 1e7, 1e7, 1e8], [3, 2, 2, 3], noise=0.01).row(
        0, named=True
    )
    assert row["reason"] == row["reason_parabola"] == "3 sizes, 4 needed"
    assert row["n_opt"] is row["n_opt_parabola"] is None


def test_points_of_one_size_are_averaged_in_ln_loss() -> None:
    C, N, loss = (column[:9] for column in centred(4))
    twice = isoflop(
        np.tile(C, 2), np.tile(N, 2), np.concatenate([loss * 1.1, loss / 1.1]), noise=0.01
    )
    once = isoflop(C, N, loss, noise=0.01)
    assert twice["n_sizes"].item() == 9
    assert twice["n_opt"].item() == once["n_opt"].item()
    assert twice["loss_opt"].item() == pytest.approx(once["loss_opt"].item())


def test_d_is_read_between_the_points_where_it_is_given() -> None:
    C, N, loss = centred(4)
    table = isoflop(C, N, loss, D=3 * C / (6 * N))
    np.testing.assert_allclose(table["d_opt"], 3 * BUDGETS / (6 * table["n_opt"].to_numpy()))


def test_wrong_values_are_named() -> None:
    with pytest.raises(RequestError, match="loss"):
        isoflop([1, 1], [1, 2], [1, -1])
    with pytest.raises(RequestError, match="noise is -1"):
        isoflop([1, 1], [1, 2], [1, 1], noise=-1)
    with pytest.raises(WorkError, match="name the noise"):
        isoflop([1, 1], [1, 2], [1, 1])


@pytest.mark.skipif(not DATA.exists(), reason="the real tables are not beside the checkout")
def test_minima_and_spreads_of_porian_2024() -> None:
    """RefinedWeb, tuned, constant rate: the authors' N* and sd, which are of other redraws."""
    wanted = (
        pl.col("dataset") == "rw",
        pl.col("hparams") == "tuned",
        pl.col("param_count") == "standard",
    )
    points = pl.read_csv(DATA / "porian_isoflop_points.csv").filter(*wanted)
    theirs = pl.read_csv(DATA / "porian_isoflop_optima.csv").filter(*wanted).sort("flops")
    table = isoflop(points["flops_budget"], points["params"], points["loss"], points["tokens"])
    assert table["status"].unique().to_list() == ["ok"]
    np.testing.assert_allclose(table["n_opt"], theirs["n"], rtol=0.01)
    np.testing.assert_allclose(table["loss_opt"], theirs["loss"], rtol=0.005)
    assert np.median(table["sd_ln_n"] / theirs["n_star_std"]) == pytest.approx(1, abs=0.05)
