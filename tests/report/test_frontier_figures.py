"""Figures of the compute-efficient frontier against the paper's known answers."""

from __future__ import annotations

import numpy as np
import pytest

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws import frontier
from scaling_jax.laws.published import PF_DAY, published
from scaling_jax.report import figures

KAPLAN = {**published("kaplan2020.table3").params, "B_star": 2e8, "alpha_B": 0.21}
TABLE2 = published("kaplan2020.table2").params
TABLE6 = published("kaplan2020.table6").params
LOSS_LAW = published("kaplan2020.table5.l_c_min").params
DATA_LAW = published("kaplan2020.table5.l_d").params


def curve(axes, i=0):
    lines = [line for line in axes.lines if len(np.asarray(line.get_xdata())) > 2]
    return np.asarray(lines[i].get_xydata()).T


def at(axes, x, i=0):
    known = curve(axes, i)
    return np.exp(np.interp(np.log(x), *np.log(known)))


def said(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_efficient_frontier_passes_through_the_known_point():
    size, batch, steps, tokens = figures.efficient_frontier(KAPLAN).axes
    assert at(size, PF_DAY) == pytest.approx(6.042e8, rel=1e-3)
    assert at(batch, PF_DAY) == pytest.approx(1.805e6, rel=1e-3)
    assert at(steps, PF_DAY) == pytest.approx(1.321e4, rel=1e-3)
    assert at(tokens, PF_DAY) == pytest.approx(1.805e6 * 1.321e4, rel=1e-3)
    assert [axes.get_title() for axes in (size, batch, steps, tokens)] == [
        f"exponent {p}" for p in ("0.681", "0.250", "0.069", "0.319")
    ]


def test_the_empirical_frontier_is_dashed_beside_it():
    figure = figures.efficient_frontier(KAPLAN, (1e15, 1e22), TABLE6)
    size = figure.axes[0]
    assert at(size, PF_DAY, 1) == pytest.approx(1.3e9, rel=1e-3)
    assert "empirical 0.73" in size.get_title() and "empirical 0.27" in figure.axes[3].get_title()
    assert said(figure) == ["closed form", "empirical fit"]
    assert curve(size)[0][[0, -1]] == pytest.approx([1e15, 1e22])
    with pytest.raises(RequestError, match="alpha_B"):
        figures.efficient_frontier(published("kaplan2020.table3").params)


def test_suboptimal_size_has_the_known_costs_and_the_band():
    figure = figures.suboptimal_size(KAPLAN)
    compute, steps = figure.axes
    assert at(compute, [0.5, 2.2, 10]) == pytest.approx([1.393, 1.204, 2.839], rel=2e-3)
    assert at(steps, [2.2, 3]) == pytest.approx([0.547, 0.461], rel=2e-3)
    band = compute.patches[0].get_extents()
    low, high = compute.transData.inverted().transform(band.get_points())[:, 0]
    assert at(compute, [low, high]) == pytest.approx([1.2, 1.2], rel=5e-3)
    assert 0.55 < low < 0.6 and 2.1 < high < 2.2
    assert np.asarray(compute.lines[0].get_xdata())[0] == pytest.approx(0.2856, rel=1e-3)


def test_loss_at_fixed_compute_is_least_at_the_efficient_size():
    figure = figures.loss_at_fixed_compute(KAPLAN, (1e-3 * PF_DAY, PF_DAY))
    axes = figure.axes[0]
    size, loss = curve(axes, 1)
    assert size[np.argmin(loss)] == pytest.approx(6.042e8, rel=0.05)
    assert loss.min() == pytest.approx(2.6876, rel=1e-4)
    marks = np.asarray(axes.collections[0].get_offsets())
    assert marks == pytest.approx(np.array([[5.464e6, 3.8611], [6.042e8, 2.6876]]), rel=1e-3)
    assert said(figure)[0] == r"$C_{min}$ = $8.64 \times 10^{16}$"


def test_contradiction_marks_where_the_lines_cross():
    draws = frontier.contradiction_by_rounding(500)
    figure = figures.contradiction(LOSS_LAW, DATA_LAW, TABLE6, draws)
    axes = figure.axes[0]
    known = 1.12e4 * PF_DAY
    assert at(axes, known) == pytest.approx(1.668, rel=2e-3)
    assert at(axes, known, 1) == pytest.approx(1.668, rel=2e-3)
    mark = next(line for line in axes.lines if line.get_marker() == "o")
    assert np.asarray(mark.get_xdata(), dtype=float)[0] == pytest.approx(known, rel=0.01)
    bar = next(line for line in axes.lines if line.get_linewidth() == 3)
    low, high = np.asarray(bar.get_xdata(), dtype=float)
    assert low < known < high
    assert "they meet at" in axes.get_title()


def test_lines_that_never_meet_are_said_to():
    flat = {**LOSS_LAW, "alpha_C": 0.01}
    figure = figures.contradiction(flat, DATA_LAW, TABLE6)
    axes = figure.axes[0]
    assert "do not meet" in axes.get_title()
    assert not any(line.get_marker() == "o" for line in axes.lines)


def test_required_data_is_that_of_the_paper_at_two_per_cent():
    figure = figures.required_data(TABLE2)
    axes = figure.axes[0]
    # eq. 4.4 by Table 2: D = 5.52e3 N^0.738 at a relative 2 %.
    assert at(axes, [1e6, 1e9], 1) == pytest.approx(
        5.52e3 * np.array([1e6, 1e9]) ** 0.738, rel=0.01
    )
    assert np.all(at(axes, 1e9, 0) > at(axes, 1e9, 1)) and at(axes, 1e9, 1) > at(axes, 1e9, 2)
    assert said(figure) == ["0.5 % of L", "2 % of L", "10 % of L"]
    assert "0.738" in axes.get_title()
    with pytest.raises(RequestError, match="D_c"):
        figures.required_data({"N_c": 1.0, "alpha_N": 0.1, "alpha_D": 0.1})


def test_early_stopping_sets_measured_steps_against_the_bound():
    gap = np.array([1.0, 0.1, 0.02, -0.01])
    law = {"S_c": 2.1e3, "alpha_S": 0.76}
    stop, data = [3e3, 4e4, 5e5, 1e4], [2.1e7, 8.6e7, 1.4e9, 1.4e9]
    figure = figures.early_stopping(stop, 3 + gap, [3.0] * 4, data, law)
    axes = figure.axes[0]
    marks = np.asarray(axes.collections[0].get_offsets())
    assert marks[:, 0] == pytest.approx([2.1e3, 4.35e4, 3.61e5], rel=2e-3)
    assert marks[:, 1] == pytest.approx(stop[:3])
    x, y = np.asarray(axes.lines[0].get_xydata()).T
    np.testing.assert_array_equal(x, y)
    assert x[0] < 2.1e3 and x[1] > 5e5
    assert "2 of 3 runs at or above" in axes.get_title()
    assert said(figure)[-1] == "1 without a bound:\ndata cost no loss"
    with pytest.raises(WorkError, match="no bound"):
        figures.early_stopping([1.0], [2.9], [3.0], [1e7], law)
    with pytest.raises(RequestError, match="1 row of loss_n "):
        figures.early_stopping([1.0, 1.0], [3.1, 3.1], [3.0, 0.0], 1e7, law)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.efficient_frontier(KAPLAN, empirical=TABLE6),
        lambda: figures.suboptimal_size(KAPLAN),
        lambda: figures.loss_at_fixed_compute(KAPLAN),
        lambda: figures.contradiction(LOSS_LAW, DATA_LAW, TABLE6),
        lambda: figures.required_data(TABLE2),
        lambda: figures.early_stopping([3e3, 4e4], [4.0, 3.1], 3.0, [2e7, 9e7], KAPLAN),
    ],
)
def test_nothing_overlaps(draw):
    figure = draw()
    figure.draw_without_rendering()
    frame = figure.get_window_extent()
    for axes in figure.axes:
        title = axes.title.get_window_extent()
        assert title.x0 >= frame.x0 and title.x1 <= frame.x1
        for legend in figure.legends:
            assert not title.overlaps(legend.get_window_extent())
        for axis in (axes.xaxis, axes.yaxis):
            boxes = [
                label.get_window_extent()
                for label in axis.get_ticklabels()
                if label.get_visible() and label.get_text()
            ]
            pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]]
            assert not any(a.overlaps(b) for a, b in pairs)


def test_the_picture_is_the_same_each_time():
    first = figures.render(figures.loss_at_fixed_compute(KAPLAN), "svg")
    assert first == figures.render(figures.loss_at_fixed_compute(KAPLAN), "svg")
