"""How FLOPs are spent by each law that says so: size, tokens, batch, steps, loss.

Pure arithmetic; parameters may hold arrays (draws of a fit), which broadcast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from scaling_jax.laws import chinchilla, frontier
from scaling_jax.laws.frontier import Efficient, Params, efficient, exponents, table6
from scaling_jax.laws.hyperparameters import deepseek

Batch = str | float  # "critical", "small" or tokens
Array = np.ndarray

_NEWTON_STEPS = 50  # it closes in from above and needs about six


class Spending(NamedTuple):
    """6 `params` `tokens` is the compute spent; `steps` = `tokens` / `batch_tokens`.

    None is what the law does not say: the batch and its steps where only a bound on the batch is
    known, `flops_min` (C_min) and `critical_batch` (tokens) where a law has no batch in it.
    """

    params: Array
    tokens: Array
    loss: Array | None
    batch_tokens: Array | None = None
    steps: Array | None = None
    flops_min: Array | None = None
    critical_batch: Array | None = None
    lr_peak: Array | None = None


def spend(law: str, flops: float, params: Params, batch: Batch) -> Spending:
    """Spend `flops` by a law of `plan_input.Basis`, at a batch `critical`, `small` or in tokens."""
    return _SPENDING[law](np.asarray(flops, dtype=np.float64), params, batch)


def _on_frontier(
    flops: Array, batch: Batch, at: Callable[[Array], Efficient], p_b: ArrayLike
) -> Spending:
    if batch == "critical":
        flops_min = flops / 2.0
    elif batch == "small":
        flops_min = flops
    else:
        flops_min = flops * _share(float(batch) / at(flops).B_crit, np.asarray(p_b))
    point = at(flops_min)
    spending = Spending(
        params=point.N,
        tokens=flops / (6.0 * point.N),
        loss=point.loss,
        flops_min=flops_min,
        critical_batch=point.B_crit,
    )
    if batch == "small":
        return spending
    return _with_batch(spending, point.B_crit if batch == "critical" else batch)


def _share(ratio: Array, p_b: Array) -> Array:
    """x = C_min / C where the batch is `ratio` times B_crit at C, and B_crit goes as C_min^p_b.

    x (1 + ratio x^-p_b) = 1 is Kaplan's eq. 5.5 with B_crit at the loss that C_min reaches. Its
    logarithm is convex and rising in ln x, so that Newton's steps from x = 1 fall to the root and
    never pass it. At a fixed batch too the best size is the frontier's N(C_min): where L is
    stationary in N, so is B_crit(L), and 6 N S_min (B + B_crit) = C is a budget for N S_min alone.
    """
    log_x = np.zeros(np.broadcast_shapes(ratio.shape, p_b.shape))
    for _ in range(_NEWTON_STEPS):
        first, second = np.exp(log_x), ratio * np.exp((1.0 - p_b) * log_x)
        total = first + second
        step = total * np.log(total) / (first + (1.0 - p_b) * second)
        log_x = log_x - step
        if np.all(np.abs(step) <= 1e-15):
            break
    return np.exp(log_x)


def _frontier(flops: Array, params: Params, batch: Batch) -> Spending:
    p_b = exponents(params)["p_B"]
    return _on_frontier(flops, batch, lambda c: efficient(c, params), p_b)


def _frontier_powers(flops: Array, params: Params, batch: Batch) -> Spending:
    """Table 6: N and B_crit as it prints them, tokens and steps from C = 6 N B S.

    Its own D_opt and S_min are regressions apart, and miss that identity by 10 and 2.5 %.
    """
    return _on_frontier(flops, batch, lambda c: table6(c, params), params["p_B"])


def _chinchilla(flops: Array, params: Params, batch: Batch) -> Spending:
    spending = Spending(*chinchilla.optimal(flops, params))
    return spending if isinstance(batch, str) else _with_batch(spending, batch)


def _deepseek(flops: Array, params: Params, batch: Batch) -> Spending:
    """Bi et al. 2024: M, B and the peak learning rate as powers of C; D = C / M.

    N stands for M / 6, M being non-embedding FLOPs a token: it counts attention too.
    """
    advice = deepseek(flops)
    spending = Spending(advice.M / 6.0, flops / advice.M, loss=None, lr_peak=advice.lr_peak)
    return _with_batch(spending, advice.batch_tokens if isinstance(batch, str) else batch)


def _with_batch(spending: Spending, tokens: ArrayLike) -> Spending:
    used = np.asarray(tokens, dtype=np.float64)
    return spending._replace(batch_tokens=used, steps=spending.tokens / used)


def growth(law: str, params: Params) -> dict[str, float]:
    """Exponents of C by which a law's plan grows, at B = B_crit or far below, where exact."""
    if law == "frontier":
        p = exponents(params)
        found = {"params": p["p_N"], "tokens": p["p_D"], "batch_tokens": p["p_B"]}
        found |= {"steps": p["p_S"], "loss": -p["alpha_C"]}
    elif law == "l_nd_chinchilla":
        p = chinchilla.exponents(params)
        found = {"params": p["a"], "tokens": p["b"]}
    else:
        size, batch = ("p_N", "p_B") if law == "frontier_powers" else ("M_C", "B_C")
        p_n, p_b = np.asarray(params[size]), np.asarray(params[batch])
        found = {"params": p_n, "tokens": 1 - p_n, "batch_tokens": p_b, "steps": 1 - p_n - p_b}
    return {name: float(value) for name, value in found.items()}


_SPENDING = {
    "frontier": _frontier,
    "frontier_powers": _frontier_powers,
    "l_nd_chinchilla": _chinchilla,
    "deepseek": _deepseek,
}


def off_size(law: str, ratio: ArrayLike, params: Params) -> np.ndarray | None:
    """Compute to the same loss with N = `ratio` N_opt, over that with N_opt; None: not known.

    `inf` where a size never reaches the loss. Kaplan et al. 2020, eq. B.16; for the form of
    Hoffmann et al. 2022 likewise.
    """
    if law == "frontier":
        return frontier.excess_compute(ratio, params)
    if law == "l_nd_chinchilla":
        return chinchilla.excess_compute(ratio, params)
    return None
