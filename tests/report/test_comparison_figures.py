"""Figures of the forms of a loss in one variable, and of transfer to another corpus."""

from __future__ import annotations

import numpy as np

from scaling_jax.laws.comparison import compare_forms
from scaling_jax.laws.transfer import transfer_line
from scaling_jax.report.figures import form_comparison, transfer

N = np.geomspace(1e4, 1e9, 12)


def said(figure):
    return " ".join(text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts())


def test_each_form_is_drawn_with_its_error_and_the_chosen_one_passes_through_the_points():
    loss = 1.7 + (1e7 / N) ** 0.34
    found = compare_forms(N, loss)
    figure = form_comparison(found, N, loss)
    upper, lower = figure.axes
    assert len(upper.lines) == 3
    x, y = np.asarray(upper.lines[1].get_xydata()).T
    np.testing.assert_allclose(y, 1.7 + (1e7 / x) ** 0.34, rtol=1e-9)
    marks = np.concatenate([np.asarray(c.get_offsets()) for c in upper.collections])
    np.testing.assert_allclose(marks[np.argsort(marks[:, 0]), 1], loss)
    assert np.shape(upper.collections[1].get_offsets())[0] == found.held_out_values.size
    assert "(0.00% held out)" in said(figure) and "logarithm (no prediction)" in said(figure)
    assert "power law plus constant" in upper.get_title()
    assert lower.get_xlabel() == "N (parameters)"


def test_transfer_shows_both_phases_the_line_and_its_test():
    rng = np.random.default_rng(0)
    x = np.tile(np.linspace(5, 3, 10), 5) + np.repeat(np.arange(5) / 5, 10)
    y = 0.3 + 1.1 * x + 0.01 * rng.normal(size=50)
    run, phase = np.repeat(np.arange(5), 10), np.tile(["training"] * 9 + ["converged"], 5)
    line = transfer_line(x, y, run, phase)
    figure = transfer(line, x, y, phase, "books")
    (axes,) = figure.axes
    assert [np.shape(c.get_offsets())[0] for c in axes.collections] == [45, 5]
    ends = np.asarray(axes.lines[0].get_xydata())
    np.testing.assert_allclose(ends[:, 1], line.predict(ends[:, 0]))
    assert "slope 1.099 (" in axes.get_title() and "p = " in axes.get_title()
    assert "books" in axes.get_ylabel() and "training converged" in said(figure)
    bare = transfer(transfer_line(x, y, run), x, y)
    assert "measured" in said(bare) and "p =" not in bare.axes[0].get_title()
