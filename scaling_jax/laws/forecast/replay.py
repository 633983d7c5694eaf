"""Advice on finished runs, replayed: what it would have cost, against a uniform grid of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from scaling_jax.errors import WorkError
from scaling_jax.laws.fitting import Points, make_points, solve
from scaling_jax.laws.forecast.advise import ADVICE_OBJECTIVE, best_run
from scaling_jax.laws.forecast.posterior import Posterior, posterior
from scaling_jax.laws.forms import find_law
from scaling_jax.laws.identified import require_independent

_START = 9  # runs that every order begins with at the least
# What the start may cost a run, as a share of the target's compute.
_CHEAP = 0.02


class Reached(NamedTuple):
    """Where an order of runs first had the half-width: log units; `error` predicted less measured.

    `flops` is what those `n_runs` cost, over the compute of the target.
    """

    half_width: float
    error: float
    flops: float
    n_runs: int


@dataclass(frozen=True)
class Replay:
    """Each of `half_widths` with what the orders of each kind took; None: never reached.

    `advice` starts from different cheap runs, `uniform` are random orders of the whole grid, and
    `spread` orders in which every run is as far as can be from those before.
    """

    half_widths: tuple[float, ...]
    advice: list[list[Reached | None]]
    uniform: list[list[Reached | None]]
    spread: list[list[Reached | None]]

    def ratio(self, place: int, against: str = "uniform") -> float | None:
        """Median FLOPs of the advice over that of the other, at one of the half-widths."""
        ours, theirs = (
            [each.flops for order in orders if (each := order[place]) is not None]
            for orders in (self.advice, getattr(self, against))
        )
        if not ours or not theirs:
            return None
        return float(np.median(ours) / np.median(theirs))


def replay(
    N: ArrayLike,
    D: ArrayLike,
    loss: ArrayLike,
    target: tuple[float, float, float],
    *,
    relative: tuple[float, ...] = (1.15, 1.5, 2.0, 3.0),
    orders: int = 4,
    level: float = 0.9,
    seed: int = 0,
) -> Replay:
    """Buy runs one by one from a pool (n,) of finished ones until the target is known well enough.

    `target` is N, D and the measured loss of what is predicted and not in the pool. Every order
    refits `l_nd_chinchilla` after each run and stops at the half-widths (log units, at `level`)
    that are `relative` times that of the whole pool. Raises `WorkError` for a pool that cannot
    carry the law.
    """
    law = find_law("l_nd_chinchilla")
    points = make_points(law, {"N": N, "D": D}, loss, ADVICE_OBJECTIVE)
    require_independent(points, ())
    if points.y.size < 2 * _START:
        raise WorkError(f"{points.y.size} finished runs are too few to replay advice on")
    pool = _Pool(points, target, level)
    whole = pool.judge(np.arange(points.y.size), None)[1]
    wanted = [factor * whole.half_width for factor in relative]
    rng = np.random.default_rng(seed)
    found: dict[str, list] = {"advice": [], "uniform": [], "spread": []}
    for _ in range(orders):
        cheap = np.flatnonzero(pool.flops <= _CHEAP)
        if cheap.size < _START:
            cheap = np.argsort(pool.flops)[:_START]
        start = _far_apart(points, rng, cheap)[:_START]
        found["advice"].append(pool.follow(start, wanted, pool.advised))
        found["uniform"].append(pool.along(rng.permutation(points.y.size), wanted))
        found["spread"].append(pool.along(_far_apart(points, rng), wanted))
    return Replay(tuple(wanted), **found)


class _Pool:
    """Finished runs that can be bought, and the target they are to predict."""

    def __init__(self, points: Points, target: tuple[float, float, float], level: float) -> None:
        self.points, self.level = points, level
        size, tokens, measured = np.log(target)
        place = np.array([size, tokens]) - points.x_centre
        self.x = np.concatenate([points.x, place[:, None]], axis=1)
        self.measured = measured - points.y_centre
        logs = points.x.sum(axis=0) - place.sum()
        self.flops = np.exp(logs)  # 6 N D over that of the target

    def judge(
        self, used: np.ndarray, last: np.ndarray | None
    ) -> tuple[np.ndarray, Reached, Posterior]:
        """The fit to the runs `used`, from the `last` theta, and what it says of the target."""
        weights = np.zeros((1, self.points.y.size))
        weights[0, used] = 1.0
        starts = self.points.law.starts
        if last is not None:
            starts = np.concatenate([last[None], starts[:: len(starts) // 3]])
        theta = solve(self.points, weights, starts=starts).theta[0]
        found = posterior(self.points, theta, used, self.x)
        half = found.half_width(-1, self.level, max(used.size - theta.size, 1))
        error = found.middle(-1) - self.measured
        return theta, Reached(half, error, float(self.flops[used].sum()), used.size), found

    def follow(
        self, used: np.ndarray, wanted: list[float], choose: Callable[[np.ndarray, Posterior], int]
    ) -> list[Reached | None]:
        """Buy what `choose` says until every half-width is reached, or nothing is left."""
        reached: list[Reached | None] = [None] * len(wanted)
        theta = None
        while True:
            theta, now, found = self.judge(used, theta)
            for i, half in enumerate(wanted):
                if reached[i] is None and now.half_width <= half:
                    reached[i] = now
            if all(reached) or used.size == self.points.y.size:
                return reached
            used = np.append(used, choose(used, found))

    def along(self, order: np.ndarray, wanted: list[float]) -> list[Reached | None]:
        return self.follow(order[:_START], wanted, lambda used, _: order[used.size])

    def advised(self, used: np.ndarray, found: Posterior) -> int:
        free = np.setdiff1d(np.arange(self.flops.size), used)
        return int(free[best_run(found, -1, free[:, None], self.flops[free])])


def _far_apart(
    points: Points, rng: np.random.Generator, among: np.ndarray | None = None
) -> np.ndarray:
    """An order of the runs `among` in which each is as far as can be from those before it."""
    among = np.arange(points.y.size) if among is None else among
    x = points.x[:, among]
    x = x / np.maximum(np.ptp(x, axis=1), 1e-9)[:, None]
    order = [int(rng.integers(among.size))]
    away = ((x - x[:, order]) ** 2).sum(axis=0)
    while len(order) < among.size:
        away[order] = -1.0
        order.append(int(np.argmax(away + 1e-9 * rng.random(away.size))))
        away = np.minimum(away, ((x - x[:, order[-1:]]) ** 2).sum(axis=0))
    return among[np.array(order)]
