"""The figure of several corpora: by size, and against the training corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from scaling_jax.errors import RequestError
from scaling_jax.laws.corpora import Transfer, measure_transfer
from scaling_jax.records.store import load
from scaling_jax.report.figures import render, transfer_corpora

NAMES = [f"corpus_{i}" for i in range(9)] + ["test"]


def measured(folder: Path, sized: bool = True) -> Transfer:
    rng, points = np.random.default_rng(0), 8
    parts = []
    for i, N in enumerate((1e4, 1e5, 1e6, 1e6)):
        train = np.linspace(4.0, 3.0 - 0.3 * i + 0.4 * (i == 3), points)
        losses = {
            f"loss_{name}": (1 + 0.01 * k) * train + 0.2 * k + 0.002 * rng.normal(size=points)
            for k, name in enumerate(NAMES)
        }
        own = {"run_id": f"run {i}", "step": np.arange(1, points + 1), "val_loss": train}
        parts.append(pl.DataFrame(own | ({"params": N} if sized else {}) | losses))
    table = pl.concat(parts).with_columns(loss_test_se=0.01)
    table.write_csv(folder / "table.csv")
    return measure_transfer(load(folder / "table.csv"))


def said(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_ten_corpora_have_their_colours_and_their_names_in_the_order_of_the_lines(tmp_path):
    found = measured(tmp_path)
    figure = transfer_corpora(found)
    left, right = figure.axes
    assert said(figure)[:2] == ["test split", "corpus 8"]  # the highest first
    assert said(figure)[10] == "validation split" and "corpus 0" in said(figure)[9]
    looks = {(line.get_color(), str(line.get_marker())) for line in left.lines[:10]}
    assert len(looks) == 10
    for line in left.lines:  # of the two runs of 1e6 the better one
        x = np.asarray(line.get_xdata(), float)
        assert x.tolist() == [1e4, 1e5, 1e6]
    train = np.asarray(left.lines[10].get_ydata(), float)
    np.testing.assert_allclose(train, [3.0, 2.7, 2.4])
    ends, course, fitted = right.lines[:3]
    assert len(np.asarray(ends.get_xdata())) == 4 and ends.get_linestyle() == "None"
    assert np.asarray(course.get_xdata(), float).min() == pytest.approx(2.4)
    line = next(each.line for each in found.corpora if each.column == "loss_test")
    assert line is not None
    x, y = (np.asarray(part, float) for part in fitted.get_data())
    np.testing.assert_allclose(y, line.predict(x))
    assert "validation split" in right.get_xlabel()
    assert render(figure, "svg") == render(transfer_corpora(found), "svg")


def test_without_sizes_there_is_one_panel_and_without_a_course_no_dashes(tmp_path):
    figure = transfer_corpora(measured(tmp_path, sized=False))
    assert len(figure.axes) == 1 and "during" in said(figure)[-1]
    assert "validation split" not in said(figure)
    measured(tmp_path)
    once = measure_transfer(load(tmp_path / "table.csv"), where="step = 8")
    ends = transfer_corpora(once)
    assert len(ends.axes) == 2 and "during" not in " ".join(said(ends))


def test_nothing_is_drawn_where_no_corpus_has_a_line(tmp_path):
    found = measured(tmp_path)
    few = measure_transfer(load(tmp_path / "table.csv"), where="run_id < 'run 2'")
    assert found.corpora and all(each.line is None for each in few.corpora)
    with pytest.raises(RequestError, match="No other corpus has a line"):
        transfer_corpora(few)
