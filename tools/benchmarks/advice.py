"""Measure advice on the next run: finished runs bought in the order that it says, or in others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.forecast.replay import replay
from tools.benchmarks.tables import Table
from tools.benchmarks.timing import Effort

_POOL = 0.251  # of the target's FLOPs: the most that a run of the pool costs
_Pool = tuple[np.ndarray, np.ndarray, np.ndarray]


def advice(effort: Effort, porian: Path, gemstones: Sequence[Curve]) -> Table:
    """FLOPs at which the interval of the target is as narrow, advised and by a uniform grid."""
    rows = []
    relative, orders = ((3.0,), 1) if effort.quick else ((1.5, 2.0, 3.0), 6)
    for name, pool, target in _pools(porian, gemstones):
        found = replay(*pool, target, relative=relative, orders=orders)
        for place, factor in enumerate(relative):
            advised = [each for order in found.advice if (each := order[place]) is not None]
            rows.append(
                {
                    "runs": name,
                    "pool": len(pool[0]),
                    "half-width": factor,
                    "advised": _median([each.flops for each in advised]),
                    "advised / random": found.ratio(place),
                    "advised / spread": found.ratio(place, "spread"),
                    "error / half-width": _median(
                        [abs(each.error) / each.half_width for each in advised]
                    ),
                }
            )
    return Table(
        "Advice replayed on finished runs, until the interval of the target is so many times that "
        "of the whole pool",
        {"runs": "", "pool": "runs", "half-width": "of the pool's", "advised": "of the target's"}
        | {"advised / random": "FLOPs", "advised / spread": "FLOPs", "error / half-width": ""},
        rows,
        f"Medians of {orders} orders: random ones of the whole grid, and ones in which every run "
        "is as far as can be from those before.",
    )


def _pools(
    porian: Path, gemstones: Sequence[Curve]
) -> Iterator[tuple[str, _Pool, tuple[float, float, float]]]:
    """Name, N, D and loss of the runs that can be bought, and the target: N, D and its loss."""
    points = [
        (curve.size, curve.tokens[at], curve.loss[at])
        for curve in gemstones
        if curve.tokens is not None
        for at in np.unique(
            np.searchsorted(curve.tokens, np.geomspace(10e9, 0.999 * curve.tokens[-1], 8))
        )
    ]
    size, tokens, loss = np.array(points, dtype=np.float64).T
    yield "gemstones", *_largest_of(size, tokens, loss)
    if not porian.is_file():
        return
    table = pl.read_csv(porian).filter(
        (pl.col("hparams") == "tuned")
        & (pl.col("param_count") == "standard")
        & (pl.col("tokens") / pl.col("params")).is_between(5, 300)
    )
    for corpus in ("rw", "owt2"):
        own = table.filter(pl.col("dataset") == corpus)
        if not own.is_empty():
            columns = (
                own[name].cast(pl.Float64).to_numpy() for name in ("params", "tokens", "loss")
            )
            yield f"porian, {corpus}", *_largest_of(*columns)


def _largest_of(
    size: np.ndarray, tokens: np.ndarray, loss: np.ndarray
) -> tuple[_Pool, tuple[float, float, float]]:
    """The best of the runs with the most compute is the target; the pool has a quarter at most."""
    flops = size * tokens
    top = np.flatnonzero(flops >= 0.99 * flops.max())
    best = top[np.argmin(loss[top])]
    pool = flops <= _POOL * flops[best]
    target = (float(size[best]), float(tokens[best]), float(loss[best]))
    return (size[pool], tokens[pool], loss[pool]), target


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None
