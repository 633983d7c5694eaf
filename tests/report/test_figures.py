"""Figures: what is drawn where, in which colour, and that it can be read."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba

from scaling_jax.errors import RequestError
from scaling_jax.laws.noise_scale import noise_scale
from scaling_jax.records.store import Records
from scaling_jax.report import figures

BATCH = 512


def labels(axis):
    """Tick labels that are inside the frame, as a person sees them."""
    low, high = sorted(axis.get_view_interval())
    places = axis.get_majorticklocs()
    texts = axis.get_major_formatter().format_ticks(places)
    return [text for place, text in zip(places, texts, strict=True) if low <= place <= high]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def drawn(study):
    with_curve = study.curves["run_id"].unique().implode()
    return study.runs.filter(pl.col("run_id").is_in(with_curve))


@pytest.fixture(scope="session")
def noise(study):
    return noise_scale(study)


def test_learning_curves_hold_every_measured_loss(study):
    figure = figures.learning_curves(study)
    axes = figure.axes[0]
    run = drawn(study).row(0, named=True)
    evaluated = study.curves.filter(
        (pl.col("run_id") == run["run_id"]) & pl.col("val_loss").is_not_null()
    )
    lines = [np.asarray(line.get_xydata()) for line in axes.get_lines()]
    wanted = evaluated.select("step", "val_loss").to_numpy()
    assert any(line.shape == wanted.shape and np.allclose(line, wanted) for line in lines)
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert "nats a token" in axes.get_ylabel() and "Steps" in axes.get_xlabel()
    assert "bigram model, 2.41" in [text.get_text() for text in axes.texts]
    assert {"N = 3.46k", "N = 186k", "validation", "training", "shorter run"} <= set(legend(figure))
    assert "N = 393k" not in legend(figure)  # queued: no curve


def test_learning_curves_against_tokens_scale_the_axis_by_the_batch(study):
    steps = figures.learning_curves(study, "step").axes[0].get_lines()
    tokens = figures.learning_curves(study, "tokens").axes[0].get_lines()
    for by_step, by_token in zip(steps[:4], tokens[:4], strict=True):
        at_step, at_token = np.asarray(by_step.get_xdata()), np.asarray(by_token.get_xdata())
        np.testing.assert_allclose(at_step * BATCH, at_token)


def test_axes_have_readable_ticks(study, noise, fit):
    for figure in (
        figures.learning_curves(study),
        figures.loss_against_compute(study),
        figures.l_ns_fit(fit),
        figures.noise_against_loss(noise),
    ):
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                shown = [text for text in labels(axis) if text]
                if axes.xaxis is axis and len(figure.axes) == 2 and axes is figure.axes[0]:
                    continue  # shares the axis of the panel below
                assert 3 <= len(shown) <= 12, (axes.get_title(), shown)
    loss_axis = figures.l_ns_fit(fit).axes[0].yaxis
    assert all(float(text) == pytest.approx(float(text), rel=1e-3) for text in labels(loss_axis))


def test_one_colour_for_a_size_in_every_figure(study, fit, noise):
    colours = figures.size_colours(study)
    size = int(fit.points["N"].min())
    wanted = to_rgba(colours(size))
    for figure in (
        figures.learning_curves(study, colours=colours),
        figures.loss_against_compute(study, colours=colours),
        figures.l_ns_fit(fit, colours),
        figures.noise_against_loss(noise, colours),
    ):
        entry = figure.legends[0].get_lines()[legend(figure).index("N = 6.14k")]
        assert to_rgba(entry.get_color()) == wanted
        assert any(to_rgba(line.get_color())[:3] == wanted[:3] for line in figure.axes[0].lines)


def test_colours_are_ordered_and_never_too_pale_for_white():
    colours = figures.SizeColours([1e3, 1e5])
    light = [np.dot(colours(n)[:3], (0.2126, 0.7152, 0.0722)) for n in np.geomspace(1e3, 1e5, 9)]
    assert np.all(np.diff(light) > 0)
    assert light[-1] < 0.75
    assert figures.SizeColours([5])(5) == figures.SizeColours([])(7)


def test_frontier_is_what_no_cheaper_point_beats(study):
    axes = figures.loss_against_compute(study).axes[0]
    points = study.curves.filter(pl.col("val_loss").is_not_null())
    cost, loss = points["flops_6n"].to_numpy(), points["val_loss"].to_numpy()
    cheaper = (cost[None, :] < cost[:, None]) | (
        (cost[None, :] == cost[:, None]) & (loss[None, :] < loss[:, None])
    )
    beaten = np.any(cheaper & (loss[None, :] <= loss[:, None]), axis=1)
    wanted = np.unique(np.stack([cost[~beaten], loss[~beaten]], axis=1), axis=0)
    got = np.unique(np.asarray(axes.collections[0].get_offsets()), axis=0)
    np.testing.assert_allclose(got, wanted)
    assert "FLOPs" in axes.get_xlabel()


def test_compute_that_was_not_recorded_is_refused(study):
    with pytest.raises(RequestError, match="flops_exact"):
        figures.loss_against_compute(study, "flops_guess")


def test_fit_marks_the_held_out_size_and_the_window(fit):
    figure = figures.l_ns_fit(fit)
    upper, lower = figure.axes
    faces = [len(np.asarray(collection.get_facecolor())) for collection in upper.collections]
    assert faces == [1] * (len(faces) - 1) + [0]
    assert [
        np.asarray(line.get_xdata())[0] for line in upper.lines if line.get_linestyle() == "--"
    ] == [2500]
    residuals = np.concatenate([np.asarray(c.get_offsets())[:, 1] for c in lower.collections])
    np.testing.assert_allclose(np.sort(residuals), np.sort(100 * fit.points["log_residual"]))
    assert "steps at fixed batch" in lower.get_xlabel()
    assert "%" in lower.get_ylabel()


def test_noise_shows_intervals_bounds_and_the_batch():
    frame = pl.DataFrame(
        {
            "run_id": ["a"] * 3,
            "params_non_embedding": [1540] * 3,
            "step": [10, 100, 1000],
            "loss": [4.0, 3.0, 2.0],
            "b_simple": [300.0, None, 2000.0],
            "b_simple_low": [200.0, 700.0, 1500.0],
            "b_simple_high": [400.0, None, 1e9],
            "undetermined": [False, True, False],
            "batch_tokens": [BATCH] * 3,
        }
    )
    figure = figures.noise_against_loss(frame)
    axes = figure.axes[0]
    left, right = axes.get_xlim()
    assert left > right
    bars, triangles = axes.collections
    assert isinstance(bars, LineCollection)
    ends = [np.asarray(s)[:, 1].tolist() for s in bars.get_segments() if len(s)]
    assert any(end == pytest.approx([200.0, 400.0]) for end in ends)
    np.testing.assert_allclose(np.asarray(triangles.get_offsets()), [[3.0, 700.0]])
    assert axes.get_ylim()[1] < 1e6
    assert "batch, 512 tokens" in [text.get_text() for text in axes.texts]
    assert "lower bound only" in legend(figure)


def test_svg_is_the_same_each_time_and_has_no_date(study):
    first = figures.render(figures.learning_curves(study), "svg")
    assert first == figures.render(figures.learning_curves(study), "svg")
    assert b"<dc:date>" not in first
    assert figures.render(figures.learning_curves(study), "png").startswith(b"\x89PNG")


def test_a_loss_that_is_not_finite_is_left_out_of_the_picture(study):
    run_id = study.curves["run_id"][0]
    broken = study.curves.with_columns(
        train_loss=pl.when((pl.col("run_id") == run_id) & (pl.col("step") > 100))
        .then(float("nan"))
        .otherwise("train_loss")
    )
    axes = figures.learning_curves(Records(study.runs, broken, "x")).axes[0]
    assert all(np.isfinite(line.get_ydata()).all() for line in axes.lines)


def test_nothing_to_draw_is_said(study):
    with pytest.raises(RequestError, match="nothing to draw"):
        figures.learning_curves(Records(study.runs, study.curves.clear(), "runs/x"))
