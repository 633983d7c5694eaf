"""Figures of losses by position, and what they refuse."""

from __future__ import annotations

import dataclasses
from typing import cast

import numpy as np
import polars as pl
import pytest
from matplotlib.colors import to_hex

from scaling_jax.errors import RequestError
from scaling_jax.laws.positions import Positions, measure_positions
from scaling_jax.records.store import Records
from scaling_jax.report.figures import (
    loss_against_size,
    loss_by_position,
    position_over_training,
    render,
)

SIZES, STEPS = (1000, 8000, 64000), (0, 10, 100, 1000)


def table(N: int, step: int, n_ctx: int, run_id: str) -> pl.DataFrame:
    T = np.arange(1, n_ctx + 1)
    share = np.log10(step + 1) / 3
    loss = 2.0 + 10 * N**-0.3 + share * 2.0 * T**-0.5 + 3 * (1 - share)
    return pl.DataFrame(
        {
            "run_id": run_id, "attempt": 1, "step_start": 0, "step": step, "corpus": "validation",
            "position_start": T, "position": T, "loss": loss + 0.002 * np.sin(37 * T),
            "tokens": 100,
        }
    )  # fmt: skip


def measured(contexts: tuple[int, ...] = (64,), sizes: tuple[int, ...] = SIZES) -> Positions:
    runs = [(f"N{N}-{n}", N, n) for n in contexts for N in sizes]
    frame = pl.DataFrame(runs, schema=["run_id", "params_non_embedding", "n_ctx"], orient="row")
    frame = frame.with_columns(name=pl.col("run_id"), status=pl.lit("done"))
    tables = [table(N, step, n, run_id) for run_id, N, n in runs for step in STEPS]
    return measure_positions(
        Records(frame, pl.DataFrame(), "study", sides={"positions": pl.concat(tables)})
    )


@pytest.fixture(scope="module")
def found() -> Positions:
    return measured()


def data(line) -> tuple[np.ndarray, np.ndarray]:
    return cast(tuple[np.ndarray, np.ndarray], tuple(np.asarray(line.get_xydata(), float).T))


def said(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_each_size_has_its_dots_and_its_form(found):
    figure = loss_by_position(found)
    (axes,) = figure.axes
    dots, forms = axes.lines[::2], axes.lines[1::2]
    assert len(dots) == len(forms) == 3
    for run, dot, form in zip(found.runs, dots, forms, strict=True):
        x, y = data(dot)
        assert x[0] == 1 and x[-1] < 64 and len(x) < 40
        assert y[0] == pytest.approx(run.bins["loss"][0])
        x, y = data(form)
        assert x[0] == 2 and run.law is not None
        np.testing.assert_allclose(y, run.law.predict(x))
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert said(figure)[0].startswith("N = 1k\n") and "T^{-0.50}" in said(figure)[0]
    assert render(figure, "svg") == render(loss_by_position(found), "svg")


def test_the_dots_of_a_run_without_a_form_are_joined(found):
    refused = [dataclasses.replace(run, law=None, refusal="no") for run in found.runs]
    figure = loss_by_position(dataclasses.replace(found, runs=refused))
    dots, joined = figure.axes[0].lines[:2]
    np.testing.assert_array_equal(data(joined), data(dots))
    assert len(figure.axes[0].lines) == 6 and said(figure)[0] == "N = 1k"


def test_positions_over_training_are_those_of_the_largest_size(found):
    figure = position_over_training(found)
    (axes,) = figure.axes
    assert said(figure) == ["T = 1", "T = 2", "T = 3-5", "T = 6-11", "T = 12-22", "T = 23-45",
                            "T = 46-64"]  # fmt: skip
    x, y = data(axes.lines[0])
    assert x.tolist() == [10, 100, 1000]  # step 0 has no place on the logarithm
    run = found.runs[-1]
    assert run.N == 64000 and y[-1] == pytest.approx(found.at_step(run)["loss"][0])
    assert "N = 64k" in axes.get_title()
    other = position_over_training(found, "N1000-64")
    assert "N = 1k" in other.axes[0].get_title()
    once = dataclasses.replace(found, octaves=found.octaves.filter(pl.col("step") == 1000))
    with pytest.raises(RequestError, match="one evaluation"):
        position_over_training(once)


def test_sizes_at_fixed_positions_with_a_line_style_for_each_context():
    found = measured((64, 16))
    figure = loss_against_size(found)
    (axes,) = figure.axes
    styles = [line.get_linestyle() for line in axes.lines]
    assert styles.count("-") == 7 and styles.count("--") == 5
    assert said(figure)[-2:] == ["context 64", "context 16"]
    by_colour = {to_hex(line.get_color()) for line in axes.lines}
    assert len(by_colour) == 7  # one a position, of whatever context
    for line in axes.lines:
        x, y = data(line)
        assert x.tolist() == list(SIZES) and np.all(np.diff(y) < 0)
    assert "context" not in " ".join(said(loss_against_size(measured())))
    with pytest.raises(RequestError, match="One size"):
        loss_against_size(measured(sizes=(1000,)))


def test_of_many_sizes_some_are_drawn_and_without_any_nothing():
    many = measured(sizes=tuple(1000 * 2**i for i in range(14)))
    assert len(said(loss_by_position(many))) == 12
    unknown = dataclasses.replace(
        many, runs=[dataclasses.replace(run, N=None) for run in many.runs]
    )
    with pytest.raises(RequestError, match="known size"):
        loss_by_position(unknown)
