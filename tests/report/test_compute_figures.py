"""Figures of the compute-optimal analysis: what is drawn, and what cannot be."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from matplotlib.colors import to_rgba

from scaling_jax.errors import RequestError
from scaling_jax.laws.allocation import approach_1, approach_3, fit_minima
from scaling_jax.laws.curves import Grid, curves_at, envelope_law, lower_envelope, sample_efficiency
from scaling_jax.laws.slopes import curve_slopes
from scaling_jax.report import figures
from scaling_jax.report.figures import SizeColours, render

SURFACE = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
SIZES = np.geomspace(1e7, 1e10, 10)


def curves() -> tuple[np.ndarray, ...]:
    """run, N, D, loss."""
    N, D = np.meshgrid(SIZES, np.geomspace(1e8, 1e12, 60), indexing="ij")
    loss = 1.8172 + 482.01 / N**0.3478 + 2085.43 / D**0.3658
    return N.ravel().astype(str), N.ravel(), D.ravel(), loss.ravel()


@pytest.fixture(scope="module")
def grid() -> Grid:
    run, N, D, loss = curves()
    return curves_at(6 * N * D, loss, run, N, D)


def legend(figure) -> str:
    return "\n".join(text.get_text() for text in figure.legends[0].get_texts())


def test_allocations_draw_each_approach_with_its_minima(grid: Grid) -> None:
    found = [approach_1(grid, resamples=20), approach_3(SURFACE)]
    figure = figures.allocations(found)
    size, data = figure.axes
    assert [len(axes.get_lines()) for axes in figure.axes] == [2, 2]
    C, N = np.asarray(size.get_lines()[1].get_xydata()).T
    np.testing.assert_allclose(N, found[1].optimal(C)[0])
    minima = np.asarray(size.collections[0].get_offsets())
    np.testing.assert_allclose(minima[:, 1], found[0].minima["N"])
    assert size.get_xscale() == data.get_yscale() == "log"
    assert f"{found[0].p_N:.3f} (" in legend(figure)
    assert "3: surface" in legend(figure)
    assert render(figure, "svg").startswith(b"<?xml")


def test_lines_without_minima_need_a_range() -> None:
    with pytest.raises(RequestError, match="over which compute"):
        figures.allocations([approach_3(SURFACE)])
    figure = figures.allocations([approach_3(SURFACE)], (1e18, 1e21))
    drawn = np.asarray(figure.axes[0].get_lines()[0].get_xdata())
    np.testing.assert_allclose(drawn[[0, -1]], [1e18, 1e21])


def test_the_band_is_the_interval_of_the_exponent() -> None:
    C = np.geomspace(1e18, 1e21, 6)
    found = fit_minima(C, C**0.5 * [1, 1.1, 0.9, 1, 1.2, 1], C**0.5 / 6)
    band = np.asarray(figures.allocations([found]).axes[0].collections[-1].get_paths()[0].vertices)
    at_end = np.sort(band[np.isclose(band[:, 0], 1e21), 1])
    reach = np.array(found.intervals["p_N"]) - found.p_N
    wanted = found.optimal(1e21)[0] * np.sqrt(1e3) ** reach
    np.testing.assert_allclose(at_end[[0, -1]], wanted, rtol=1e-6)


def test_an_envelope_lies_below_its_curves_and_stops_at_its_edges(grid: Grid) -> None:
    figure = figures.envelope(grid)
    axes = figure.axes[0]
    table = lower_envelope(grid)
    line = np.asarray(axes.get_lines()[-1].get_ydata(), dtype=float)
    np.testing.assert_array_equal(np.isnan(line), table["edge"].to_numpy())
    for curve in axes.get_lines()[:-1]:
        loss = np.asarray(curve.get_ydata(), dtype=float)
        drawn = np.isfinite(loss) & np.isfinite(line)
        assert np.all(loss[drawn] >= line[drawn] - 1e-12)
    assert f"{envelope_law(table)['alpha_C']:.4f}" in legend(figure)
    assert len(axes.get_lines()) == SIZES.size + 1
    assert len(figures.envelope(grid, grid).axes[0].get_lines()) == SIZES.size + 2
    wider = SizeColours([1e3, 1e12])
    drawn = figures.envelope(grid, colours=wider).axes[0].get_lines()[0]
    assert to_rgba(drawn.get_color()) == to_rgba(wider(SIZES[0]))


def test_sample_efficiency_has_a_line_for_each_level() -> None:
    run, N, D, loss = curves()
    levels = [2.5, 3.0, 4.0]
    critical = {"B_star": 2e8, "alpha_B": 0.21}
    table = sample_efficiency(run, N, D / 1e5, loss, 1e5, levels, critical)
    figure = figures.sample_efficiency(table)
    steps, tokens = figure.axes
    assert len(steps.get_lines()) == 6  # a line and its points for each level
    assert "S_{min}" in steps.get_ylabel() and "E_{min}" in tokens.get_ylabel()
    assert "L = 2.5" in legend(figure)
    plain = figures.sample_efficiency(sample_efficiency(run, N, D / 1e5, loss, 1e5, levels))
    assert plain.axes[0].get_ylabel().startswith("S (steps")
    twice = pl.concat([table, table.with_columns(S_min=2 * pl.col("S_min"))])
    between = np.asarray(figures.sample_efficiency(twice).axes[0].get_lines()[0].get_ydata())
    np.testing.assert_allclose(
        between, np.sqrt(2) * np.asarray(steps.get_lines()[0].get_ydata(), dtype=float)
    )
    with pytest.raises(RequestError, match="crosses"):
        figures.sample_efficiency(sample_efficiency(run, N, D / 1e5, loss, 1e5, [0.1]))


def test_slopes_show_each_size_and_the_shared_exponent() -> None:
    run, N, D, loss = curves()
    noise = np.exp(0.001 * np.random.default_rng(0).normal(size=loss.size))
    found = curve_slopes(run, N, D, loss * noise)
    figure = figures.curve_slopes(found.to_json())
    own, plain = figure.axes
    points = np.asarray(own.get_lines()[0].get_xydata())
    assert len(points) == found.table["alpha"].count()
    assert len(np.asarray(plain.get_lines()[0].get_xydata())) == SIZES.size
    assert f"{found.shared_alpha:.3f}" in legend(figure)
    assert "p = " in own.get_title()
    untold = found.to_json() | {"p_value": None}
    for row in untold["sizes"] or []:
        row |= {"alpha": None, "alpha_low": None, "alpha_high": None}
    shown = figures.curve_slopes(untold)
    assert "no test" in shown.axes[0].get_title()
    assert np.asarray(shown.axes[0].get_lines()[0].get_xdata()).size == 0
