"""The figure of replayed advice."""

from __future__ import annotations

from scaling_jax.laws.forecast.replay import Reached, Replay
from scaling_jax.report.figures import render
from scaling_jax.report.figures.advice import replayed_advice


def test_lines_are_medians_and_orders_that_never_arrive_are_not_drawn() -> None:
    def order(cost: float, error: float) -> list[Reached | None]:
        return [Reached(0.01, error, 4 * cost, 30), Reached(0.02, error, cost, 12)]

    found = Replay(
        (0.01, 0.02),
        advice=[order(0.1, 0.005), order(0.2, 0.005), order(0.4, 0.5)],
        uniform=[order(1.0, 0.0), [None, order(0.5, 0.0)[1]]],
        spread=[[None, None]],
    )
    figure = replayed_advice(found)
    (axes,) = figure.axes
    lines = [line for line in axes.lines if line.get_linestyle() in ("-", "--", ":")]
    assert [list(line.get_xdata()) for line in lines] == [[0.8, 0.2], [4.0, 0.75]]  # pyright: ignore
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert len(dots) == 6 + 3
    assert sum(line.get_markerfacecolor() == "white" for line in dots) == 2
    assert render(figure, "svg").startswith(b"<?xml")
