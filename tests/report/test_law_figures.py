"""Figures of fitted laws: what is drawn where, in which colour, and what the title says."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
from matplotlib.colors import to_rgba

from scaling_jax.errors import RequestError
from scaling_jax.laws.forms import LAWS
from scaling_jax.laws.profile import Profile
from scaling_jax.report import figures

PARAMS = {
    "l_n": {"N_c": 8.8e13, "alpha_N": 0.076},
    "l_n_offset": {"E": 1.2, "N_c": 5e11, "alpha_N": 0.13},
    "l_d": {"D_c": 5.4e13, "alpha_D": 0.095},
    "l_c": {"C_c": 2.7e28, "alpha_C": 0.05},
    "l_nd": {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
    "l_nd_chinchilla": {"E": 1.82, "A": 482.0, "B": 2085.0, "alpha": 0.348, "beta": 0.366},
    "l_ns": {"N_c": 6.5e13, "S_c": 2.1e3, "alpha_N": 0.077, "alpha_S": 0.76},
    "b_crit": {"B_star": 2.1e8, "alpha_B": 0.21},
    "pareto": {"S_min": 1e4, "E_min": 1e10, "B_crit": 1e6},
    "data_constrained": {
        "E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.353, "beta": 0.353,
        "R_D_star": 15.4, "R_N_star": 5.3,
    },
}  # fmt: skip
GRIDS = {
    "N": np.geomspace(1e6, 1e9, 7),
    "D": np.geomspace(4e7, 2e10, 5),
    "C": np.geomspace(1e16, 1e20, 9),
    "S": np.geomspace(1e3, 1e5, 12),
    "L": np.linspace(2.8, 3.5, 6),
    "B": np.geomspace(2e4, 1e7, 9),
    "U": np.array([4e7, 1e9]),
}
XLABEL = {"N": "without embeddings", "D": "tokens", "C": "FLOPs", "S": "steps", "L": "nats"}
YLABEL = {"b_crit": "Critical batch (tokens)", "pareto": "S (steps to the loss)"}


def made(fit, law, held_out="largest_N", noise=0.01, **grids):
    """The session's fit with another law through noisy points on a grid of its inputs."""
    form, params = LAWS[law], PARAMS[law]
    axes = [grids.get(name, GRIDS[name]) for name in form.inputs]
    at = dict(zip(form.inputs, (a.ravel() for a in np.meshgrid(*axes)), strict=True))
    if "U" in at:
        at["U"] = np.minimum(at["U"], at["D"])
    predicted = form.predict(params, **at)
    residual = noise * np.random.default_rng(0).standard_normal(predicted.size)
    return dataclasses.replace(
        fit,
        law=law,
        params=params,
        intervals={name: (0.9 * value, 1.2 * value) for name, value in params.items()},
        held_out={name: 0.04 if name == held_out else None for name in fit.held_out},
        window=fit.window if law == "l_ns" else None,
        points=pl.DataFrame(
            {
                **at,
                "loss": predicted * np.exp(residual),
                "predicted": predicted,
                "log_residual": residual,
            }
        ),
    )


def said(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def offsets(axes):
    return np.concatenate([np.asarray(c.get_offsets()) for c in axes.collections])


def in_order(points):
    return points[np.lexsort(points.T)]


def curves(axes):
    return [line for line in axes.lines if len(np.asarray(line.get_xdata())) > 2]


@pytest.mark.parametrize("law", sorted(PARAMS))
def test_every_law_has_its_points_its_lines_and_its_residuals(fit, law):
    held_out = {"l_c": "largest_C", "l_d": "", "b_crit": "", "pareto": ""}.get(law, "largest_N")
    own = made(fit, law, held_out)
    figure = figures.law_fit(own)
    upper, lower = figure.axes
    axis, *more = ("S", "N") if law == "l_ns" else LAWS[law].inputs
    points = own.points.select(axis, "loss").to_numpy()
    np.testing.assert_allclose(in_order(offsets(upper)), in_order(points))
    residuals = 100 * own.points["log_residual"].to_numpy()
    np.testing.assert_allclose(np.sort(offsets(lower)[:, 1]), np.sort(residuals))
    values = [{more[0]: value} for value in own.points[more[0]].unique()] if more else [{}]
    assert len(curves(upper)) == len(values)
    for line in curves(upper):
        x, y = np.asarray(line.get_xydata()).T
        assert GRIDS[axis].min() * 0.999 <= x.min() and x.max() <= GRIDS[axis].max() * 1.001
        assert sum(np.allclose(predict(own, axis, x, other), y) for other in values) == 1
    assert XLABEL.get(axis, "batch") in lower.get_xlabel()
    assert upper.get_ylabel() == YLABEL.get(law, "Loss (nats a token)")
    assert "%" in lower.get_ylabel()
    assert any("predicted" in text for text in said(figure)) == bool(held_out)


def predict(fit, axis, x, others):
    if "U" in LAWS[fit.law].inputs:
        others = {**others, "U": others["D"]}
    return fit.predict(**{axis: x}, **others)


def test_title_has_the_exponents_with_intervals_and_the_flags(fit):
    own = dataclasses.replace(made(fit, "l_nd_chinchilla"), derived={"a_opt": (0.513, 0.48, 0.55)})
    title = figures.law_fit(own).axes[0].get_title()
    assert "L(N, D)" in title and "90% intervals" in title
    assert r"$\alpha$ = 0.348 (0.313 to 0.418)" in title
    assert r"$\beta$ = 0.366" in title and "$E$ = 1.82" in title
    assert "$a_{opt}$ = 0.513 (0.48 to 0.55)" in title
    assert "Flags: batch_vs_noise" in title
    assert "$B$" not in title
    held = dataclasses.replace(own, fixed={"E": 1.82})
    assert "$E$ = 1.82 (held)" in figures.law_fit(held).axes[0].get_title()


def test_an_interval_that_could_not_be_had_is_left_out_and_no_offset_is_zero(fit):
    own = made(fit, "l_n_offset")
    own = dataclasses.replace(own, params={**own.params, "E": 0.0}, intervals={"E": (0.0, 0.1)})
    title = figures.law_fit(own).axes[0].get_title()
    assert r"$\alpha_{N}$ = 0.13" + ",   $E$ = 0 (0 to 0.1)" in title


def test_the_held_out_end_is_open_diamonds(fit):
    own = made(fit, "l_nd")
    upper = figures.law_fit(own).axes[0]
    empty = [c for c in upper.collections if len(np.asarray(c.get_facecolor())) == 0]
    at = np.concatenate([np.asarray(c.get_offsets()) for c in empty])
    np.testing.assert_allclose(at[:, 0], GRIDS["N"].max())
    assert len(at) == len(GRIDS["D"])
    assert not any("predicted" in text for text in said(figures.law_fit(made(fit, "l_nd", ""))))


def test_many_values_are_drawn_as_eight_bands_with_their_points_in_their_own_colours(fit):
    own = made(fit, "l_nd_chinchilla", D=np.geomspace(1e8, 1e11, 40))
    figure = figures.law_fit(own)
    upper = figure.axes[0]
    assert len(curves(upper)) == 8
    labels = [text for text in said(figure) if text.startswith("D = ")]
    assert labels[0] == "D = 100M" and labels[-1] == "D = 100G" and len(labels) == 8
    shades = {tuple(c) for group in upper.collections for c in np.asarray(group.get_facecolor())}
    assert len(shades) >= 38
    assert len(offsets(upper)) == len(own.points)


def test_repeated_tokens_are_squares_and_the_lines_are_of_new_ones(fit):
    own = made(fit, "data_constrained")
    figure = figures.law_fit(own)
    assert {"tokens repeated", "fitted law,\nall tokens new"} <= set(said(figure))
    repeated = own.points.filter((pl.col("D") > pl.col("U")) & (pl.col("N") < 1e9))
    square = [
        c for c in figure.axes[0].collections
        if np.shape(c.get_paths()[0].vertices)[0] == 5 and len(np.asarray(c.get_facecolor()))
    ]  # fmt: skip
    assert sum(len(np.asarray(c.get_offsets())) for c in square) == len(repeated)


def test_many_points_are_one_picture_inside_the_svg(fit):
    own = made(fit, "l_ns", S=np.geomspace(1e3, 1e5, 4000))
    assert len(figures.render(figures.law_fit(own), "svg")) < 1_500_000
    few = figures.law_fit(made(fit, "l_ns")).axes[0].collections
    assert not any(c.get_rasterized() for c in few)


def test_loss_falls_to_the_right_under_the_critical_batch(fit):
    left, right = figures.law_fit(made(fit, "b_crit", "")).axes[0].get_xlim()
    assert left > right


def test_pareto_marks_the_fewest_steps_and_the_critical_batch(fit):
    figure = figures.law_fit(made(fit, "pareto", ""))
    upper = figure.axes[0]
    straight = [
        np.asarray(line.get_xydata()) for line in upper.lines if np.size(line.get_xdata()) == 2
    ]
    assert any((line[:, 1] == 1e4).all() for line in straight)
    assert any((line[:, 0] == 1e6).all() for line in straight)
    assert {"$S_{min}$", "$B_{crit}$"} <= set(said(figure))


@pytest.mark.parametrize("law", sorted(PARAMS))
def test_nothing_overlaps_and_every_axis_has_labels(fit, law):
    figure = figures.law_fit(made(fit, law))
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    frame = figure.get_window_extent()
    assert legend.y0 >= frame.y0 and legend.x1 <= frame.x1 + 1
    for axes in figure.axes:
        title = axes.title.get_window_extent()
        assert not (axes.get_title() and title.overlaps(legend))
        assert title.x0 >= frame.x0 and title.y1 <= frame.y1 + 1
        for axis in (axes.xaxis, axes.yaxis):
            boxes = [
                label.get_window_extent()
                for label in axis.get_ticklabels()
                if label.get_visible() and label.get_text()
            ]
            assert (axes is figure.axes[0] and axis is axes.xaxis) or len(boxes) >= 2
            inside = [box for box in boxes if box.width > 0]
            pairs = [(a, b) for i, a in enumerate(inside) for b in inside[i + 1 :]]
            assert not any(a.overlaps(b) for a, b in pairs)


def test_the_picture_is_the_same_each_time(fit):
    own = made(fit, "l_nd")
    first = figures.render(figures.law_fit(own), "svg")
    assert first == figures.render(figures.law_fit(own), "svg")


def test_overfitting_lies_on_one_curve_and_keeps_its_sign(fit):
    own = made(fit, "l_nd", noise=0.0)
    axes = figures.overfitting(own).axes[0]
    x, delta = offsets(axes).T
    ratio = 0.076 / 0.103
    np.testing.assert_allclose(
        np.sort(x), np.sort(own.points["N"].to_numpy() ** ratio / own.points["D"].to_numpy())
    )
    order = np.argsort(x)
    line = np.asarray(curves(axes)[0].get_xydata())
    np.testing.assert_allclose(
        delta[order], np.interp(np.log(x[order]), np.log(line[:, 0]), line[:, 1]), atol=0.02
    )
    # Kaplan et al. 2020, eq. 4.4 by Table 2: 2 % at D = 5.52e3 N^0.738.
    assert np.interp(1 / 5.52e3, *line.T) == pytest.approx(2.0, rel=0.01)
    assert offsets(figures.overfitting(made(fit, "l_nd", noise=0.02)).axes[0])[:, 1].min() < 0
    with pytest.raises(RequestError, match="l_nd"):
        figures.overfitting(made(fit, "l_n"))


def test_profile_shades_its_interval_and_marks_the_threshold():
    value = np.geomspace(4, 200, 30)
    excess = 3 * np.log(value / 20) ** 2
    found = Profile("R_D_star", value, excess, 2.7, (7.7, 51.6))
    figure = figures.profile(found, 20)
    axes = figure.axes[0]
    np.testing.assert_allclose(np.asarray(curves(axes)[0].get_xydata()), np.c_[value, excess])
    assert band(axes) == pytest.approx([7.7, 51.6])
    (dashed,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert np.unique(np.asarray(dashed.get_ydata(), dtype=float)).tolist() == [2.7]
    assert axes.get_xlabel() == "$R_{D}^*$" and "interval\n7.7 to\n51.6" in said(figure)


def test_an_open_end_of_a_profile_is_shaded_to_the_frame_and_said():
    value = np.geomspace(4, 200, 30)
    flat = Profile("alpha_N", value, np.maximum(0, 9 * np.log(20 / value)), 2.7, (12.0, None))
    figure = figures.profile(flat, 20)
    assert band(figure.axes[0]) == pytest.approx([12, 200])
    assert "interval\n12 to\nopen" in said(figure)
    both = figures.profile(dataclasses.replace(flat, interval=(None, None)), 20)
    assert band(both.axes[0]) == pytest.approx([4, 200])


def band(axes):
    points = axes.patches[0].get_extents().get_points()
    return axes.transData.inverted().transform(points)[:, 0]


def test_a_foreign_column_of_sizes_names_the_axis(fit):
    own = dataclasses.replace(made(fit, "l_n"), columns={"N": "params_active"})
    assert figures.law_fit(own).axes[1].get_xlabel() == "N (params_active)"


def test_colours_given_are_the_colours_drawn(fit):
    colours = figures.SizeColours([1e3, 1e12])
    upper = figures.law_fit(made(fit, "l_nd"), colours).axes[0]
    wanted = [to_rgba(colours(value)) for value in GRIDS["D"]]
    assert [to_rgba(line.get_color()) for line in curves(upper)] == wanted
