"""Advice replayed on finished runs, of a known law and real ones, against a uniform grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from scaling_jax.errors import WorkError
from scaling_jax.laws.forecast.replay import Replay, replay
from scaling_jax.laws.forms import find_law

LAW = find_law("l_nd_chinchilla")
TRUTH = {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}
PORIAN = Path(__file__).parents[3].parent / "shared" / "data" / "porian_isoflop_points.csv"


def known(noise: float = 0.003, seed: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size, tokens = (
        axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e9, 7), np.geomspace(1e9, 5e10, 7))
    )
    loss = LAW.predict(TRUTH, N=size, D=tokens)
    return size, tokens, loss * np.exp(noise * np.random.default_rng(seed).normal(size=size.size))


@pytest.fixture(scope="module")
def found() -> Replay:
    target = (3e9, 3e11, float(LAW.predict(TRUTH, N=3e9, D=3e11)))
    return replay(*known(), target, relative=(1.5, 2.5), orders=2, seed=2)


def test_a_true_form_is_known_for_fewer_flops_than_of_a_grid(found: Replay) -> None:
    ratios = [found.ratio(place) for place in (0, 1)]
    assert all(ratio is not None and ratio <= 0.8 for ratio in ratios)
    costs = [order[1].flops for order in found.advice if order[1] is not None]
    theirs = [order[1].flops for order in found.uniform if order[1] is not None]
    assert found.ratio(1) == pytest.approx(np.median(costs) / np.median(theirs))


def test_every_order_reaches_the_widths_and_the_truth_is_near(found: Replay) -> None:
    for order in (*found.advice, *found.uniform, *found.spread):
        costs = []
        for half, reached in zip(found.half_widths, order, strict=True):
            assert reached is not None and reached.half_width <= half
            assert abs(reached.error) <= 2 * reached.half_width
            costs.append(reached.flops)
        assert costs[0] >= costs[1] > 0  # the narrower interval comes first


def test_what_cannot_be_replayed() -> None:
    size, tokens, loss = known()
    with pytest.raises(WorkError, match="too few to replay"):
        replay(size[::3], tokens[::3], loss[::3], (3e9, 3e11, 2.0))
    with pytest.raises(WorkError, match="told apart"):
        replay(size, 20 * size, loss, (3e9, 3e11, 2.0))


@pytest.mark.skipif(not PORIAN.exists(), reason="the public tables are not here")
def test_porians_points_know_the_largest_run_for_less_than_a_grid() -> None:
    table = pl.read_csv(PORIAN).filter(
        (pl.col("dataset") == "rw")
        & (pl.col("hparams") == "tuned")
        & (pl.col("param_count") == "standard")
        & (pl.col("tokens") / pl.col("params")).is_between(5, 300)
    )
    top = table["flops_budget"].to_numpy().max()
    best = table.filter(pl.col("flops_budget") == top).sort("loss").row(0, named=True)
    pool = table.filter(pl.col("flops_budget") <= top / 4)
    target = (float(best["params"]), float(best["tokens"]), float(best["loss"]))
    size, tokens, loss = (pool[name].to_numpy() for name in ("params", "tokens", "loss"))
    found = replay(size, tokens, loss, target, relative=(3.0,), orders=2)
    ratio = found.ratio(0)
    assert ratio is not None and ratio < 0.8
    assert all(order[0] and abs(order[0].error) <= order[0].half_width for order in found.advice)
