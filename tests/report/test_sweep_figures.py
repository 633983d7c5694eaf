"""Figures of batch sweeps and of isoFLOP curves."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from scaling_jax.laws.critical_batch import ladder
from scaling_jax.laws.forms import LAWS
from scaling_jax.laws.isoflop import isoflop
from scaling_jax.report import figures

BATCHES = 2.0 ** np.arange(13, 23)
LOSSES = np.linspace(3.2, 6.0, 6)
CHINCHILLA = {"E": 1.82, "A": 482.0, "B": 2085.0, "alpha": 0.348, "beta": 0.366}


def sweep(batches):
    critical = 2e8 / LOSSES ** (1 / 0.21)
    least = 300 * (6.5 / LOSSES) ** 5
    rng = np.random.default_rng(0)
    rows = [
        (batch, loss, s * (1 + b / batch) * np.exp(0.02 * rng.standard_normal()))
        for loss, s, b in zip(LOSSES, least, critical, strict=True)
        for batch in batches
    ]
    return pl.DataFrame(rows, schema=["batch", "loss", "steps"], orient="row")


def said(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def curves(axes):
    return [np.asarray(line.get_xydata()).T for line in axes.lines if np.size(line.get_xdata()) > 5]


def minima(budget, size, loss):
    return isoflop(budget, size, loss, noise=1e-3, resamples=50)


@pytest.fixture(scope="module")
def points():
    budget, size = (a.ravel() for a in np.meshgrid([1e18, 1e19, 1e20], np.geomspace(3e7, 3e10, 13)))
    loss = LAWS["l_nd_chinchilla"].predict(CHINCHILLA, N=size, D=budget / 6 / size)
    return budget, size, loss


def test_fronts_are_hyperbolas_and_critical_batches_lie_on_their_law():
    found = ladder(sweep(BATCHES))
    figure = figures.critical_batch(found)
    fronts, critical = figure.axes
    drawn = np.concatenate([np.asarray(c.get_offsets()) for c in fronts.collections])
    table = sweep(BATCHES)
    assert len(drawn) == len(table)
    np.testing.assert_allclose(
        np.sort(drawn[:, 1]), np.sort((table["batch"] * table["steps"]).to_numpy())
    )
    assert len(curves(fronts)) == len(LOSSES)
    for (steps, tokens), rung in zip(curves(fronts), found.rungs, strict=True):
        s, e = rung.hyperbola.S_min.value, rung.hyperbola.E_min.value
        np.testing.assert_allclose((steps / s - 1) * (tokens / e - 1), 1, rtol=1e-6)
    ((loss, batch), (_, kaplan)) = sorted(curves(critical), key=lambda one: one[1].max())
    np.testing.assert_allclose(batch, 2e8 / loss ** (1 / 0.21), rtol=0.15)
    np.testing.assert_allclose(kaplan, 2.1e8 / loss ** (1 / 0.21), rtol=1e-9)
    assert any(text.startswith("Kaplan et al. 2020,\nanother corpus") for text in said(figure))
    left, right = critical.get_xlim()
    assert left > right
    assert r"\alpha_B" in critical.get_title() and "kaplan" in critical.get_ylabel()


def test_other_units_have_no_published_law_beside_them():
    figure = figures.critical_batch(ladder(sweep(BATCHES)), "sequences")
    assert len(curves(figure.axes[1])) == 1
    assert not any("Kaplan" in text for text in said(figure))


def test_a_one_sided_sweep_has_points_and_no_critical_batch():
    found = ladder(sweep(BATCHES[:3] / 1e3))
    figure = figures.critical_batch(found, "sequences")
    fronts, critical = figure.axes
    assert not curves(fronts) and not curves(critical)
    assert "No law" in critical.get_title() and not critical.axison
    assert "sequences" in fronts.get_ylabel()
    assert any("not\nidentified" in text for text in said(figure))


def test_isoflop_marks_both_minima_of_every_budget(points):
    optima = minima(*points)
    budget, size, loss = points
    figure = figures.isoflop(budget, size, loss, optima)
    left, right = figure.axes
    assert len(curves(left)) == 3
    for (x, y), one in zip(curves(left), np.unique(budget), strict=True):
        at = np.argsort(size[budget == one])
        np.testing.assert_allclose(x, size[budget == one][at])
        np.testing.assert_allclose(y, loss[budget == one][at])
    marks = np.concatenate(
        [
            np.asarray(c.get_offsets())
            for c in right.collections
            if np.shape(c.get_offsets())[0] == 3
        ]
    )
    wanted = np.concatenate([optima["n_opt"], optima["n_opt_parabola"]])
    np.testing.assert_allclose(np.sort(marks[:, 1]), np.sort(wanted))
    assert "FLOPs" in right.get_xlabel()
    assert "C = $10^{18}$" in said(figure)


def test_a_refused_minimum_is_not_drawn(points):
    budget, size, loss = (values[points[1] > 5e9] for values in points)
    optima = minima(budget, size, loss)
    refused = optima.filter(pl.col("status") == "refused").height
    assert refused > 0
    left = figures.isoflop(budget, size, loss, optima).axes[0]
    circles = [c for c in left.collections if not len(np.asarray(c.get_facecolor()))]
    assert sum(np.shape(c.get_offsets())[0] for c in circles) == 3 - refused


def test_the_picture_is_the_same_each_time():
    found = ladder(sweep(BATCHES))
    first = figures.render(figures.critical_batch(found), "svg")
    assert first == figures.render(figures.critical_batch(found), "svg")
