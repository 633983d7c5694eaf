"""How to spend compute by L(N, S_min): the efficient frontier, what leaving it costs, data needs.

Everything is in FLOPs, parameters, steps, tokens and nats a token; parameters of laws are mappings
by the names of `published`, and may hold arrays (draws of a fit), which broadcast with the inputs.
Functions raise `RequestError` for a parameter that is missing and for values that are not positive
and finite.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.arrays import Params, positive, values
from scaling_jax.laws.forms import critical_batch
from scaling_jax.laws.published import PF_DAY, published

_GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0
_NEWTON_STEPS = 50  # it is within a factor of the root from the start and needs about six


class Efficient(NamedTuple):
    """Where C_min goes: loss, size, minimum steps, and tokens a batch and in all.

    `D_min` = E_min = B_crit S_min is what a batch far below B_crit uses. At B = B_crit the same
    loss takes 2 S_min steps, 2 D_min tokens and 2 C_min.
    """

    loss: np.ndarray
    N: np.ndarray
    S_min: np.ndarray
    B_crit: np.ndarray
    D_min: np.ndarray


class Ratios(NamedTuple):
    """One way of training to a loss over another: size, steps, compute."""

    N: np.ndarray
    S: np.ndarray
    C: np.ndarray


def exponents(params: Params) -> dict[str, np.ndarray]:
    """p_N, p_B, p_S, p_D and alpha_C of the frontier, from alpha_N, alpha_S and alpha_B.

    N, B_crit, S_min and D_min go as C_min^p, the loss as C_min^-alpha_C. p_N + p_B + p_S = 1 and
    p_D = p_B + p_S. Kaplan et al. 2020, eq. 6.4, 6.5 and B.7.
    """
    a_n, a_s, a_b = values(params, "alpha_N", "alpha_S", "alpha_B")
    alpha_c = 1.0 / (1.0 / a_s + 1.0 / a_b + 1.0 / a_n)
    p_b, p_s = alpha_c / a_b, alpha_c / a_s
    return {"p_N": alpha_c / a_n, "p_B": p_b, "p_S": p_s, "p_D": p_b + p_s, "alpha_C": alpha_c}


def scale_C(params: Params) -> np.ndarray:
    """C_c in FLOPs, of L = (C_c / C_min)^alpha_C on the frontier (Kaplan et al. 2020, eq. B.8)."""
    n_c, s_c, a_n, a_s, b = values(params, "N_c", "S_c", "alpha_N", "alpha_S", "B_star")
    r = a_n / a_s
    return 6.0 * n_c * b * s_c * (1.0 + r) ** (1.0 / a_s + 1.0 / a_n) * r ** (-1.0 / a_s)


def efficient(C_min: ArrayLike, params: Params) -> Efficient:
    """The frontier in closed form at C_min FLOPs (Kaplan et al. 2020, eq. B.5 to B.10).

    `params` {N_c, S_c, alpha_N, alpha_S, B_star, alpha_B}, as of `kaplan2020`.
    """
    n_c, a_n, a_s, b = values(params, "N_c", "alpha_N", "alpha_S", "B_star")
    p, c_c = exponents(params), scale_C(params)
    share = positive("C_min", C_min) / c_c
    one_plus = 1.0 + a_n / a_s
    loss = share ** -p["alpha_C"]
    size = n_c * share ** p["p_N"] * one_plus ** (1.0 / a_n)
    steps = c_c / (6.0 * n_c * b) * one_plus ** (-1.0 / a_n) * share ** p["p_S"]
    batch = critical_batch(loss, *values(params, "B_star", "alpha_B"))
    return Efficient(loss, size, steps, batch, batch * steps)


def efficient_numeric(C_min: ArrayLike, params: Params) -> Efficient:
    """The frontier by minimising eq. B.3 over N: a check on `efficient`, and slower.

    A golden section in ln N between one parameter and one token: the loss falls towards the
    minimum from both sides. Raises `WorkError` where the minimum lies on an edge.
    """
    c = positive("C_min", C_min)
    shape = np.broadcast_shapes(c.shape, *(np.shape(value) for value in params.values()))
    low, high = np.zeros(shape), np.broadcast_to(np.log(c / 6.0), shape).copy()
    if np.any(high <= low):
        raise RequestError("C_min below 6 FLOPs, one parameter trained on one token")
    edges = (low.copy(), high.copy())
    while np.any(high - low > 1e-9):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        falls = loss_at_compute(np.exp(left), c, params) > loss_at_compute(np.exp(right), c, params)
        low, high = np.where(falls, left, low), np.where(falls, high, right)
    if np.any((low == edges[0]) | (high == edges[1])):
        raise WorkError("The efficient size is not between one parameter and one token of data")
    size = np.exp((low + high) / 2.0)
    loss = loss_at_compute(size, c, params)
    batch = critical_batch(loss, *values(params, "B_star", "alpha_B"))
    tokens = c / (6.0 * size)
    return Efficient(loss, size, tokens / batch, batch, tokens)


def loss_at_compute(N: ArrayLike, C_min: ArrayLike, params: Params) -> np.ndarray:
    """Loss of N parameters with C_min FLOPs, where C_min = 6 N B_crit(L) S_min.

    It stands on both sides of Kaplan et al. 2020, eq. B.3, and is solved for.
    """
    n_c, s_c, a_n, a_s, b, a_b = values(
        params, "N_c", "S_c", "alpha_N", "alpha_S", "B_star", "alpha_B"
    )
    N, c = positive("N", N), positive("C_min", C_min)
    return _solve((n_c / N) ** a_n, np.zeros(()), 6.0 * b * s_c * N / c, a_s, a_b)


def loss_at(N: ArrayLike, S: ArrayLike, B: ArrayLike, params: Params) -> np.ndarray:
    """Loss after S steps of a fixed batch of B tokens, S_min being S / (1 + B_crit(L) / B).

    Kaplan et al. 2020, eq. 5.4 and 5.6; the loss stands on both sides and is solved for.
    """
    n_c, s_c, a_n, a_s, b, a_b = values(
        params, "N_c", "S_c", "alpha_N", "alpha_S", "B_star", "alpha_B"
    )
    N, S, B = positive("N", N), positive("S", S), positive("B", B)
    return _solve((n_c / N) ** a_n, s_c / S, s_c / S * b / B, a_s, a_b)


def _solve(
    size: np.ndarray, s: np.ndarray, t: np.ndarray, a_s: np.ndarray, a_b: np.ndarray
) -> np.ndarray:
    """The root of L = size + (s + t L^(-1/a_b))^a_s.

    The left side less the right is rising and concave in L, so that Newton's steps from below the
    root never pass it. Each of three lower bounds is the root when its term is alone.
    """
    p = 1.0 / a_b
    alone = np.power(t, a_s / (1.0 + p * a_s))
    loss = np.maximum(np.maximum(size, np.power(s, a_s)), alone)
    for _ in range(_NEWTON_STEPS):
        inner = s + t * loss**-p
        term = inner**a_s
        slope = 1.0 + a_s * p * term * (t * loss**-p / inner) / loss
        step = (size + term - loss) / slope
        loss = loss + step
        if np.all(np.abs(step) <= 1e-15 * loss):
            break
    return loss


def minimum_compute(
    C: ArrayLike, B: ArrayLike, loss: ArrayLike, B_star: float, alpha_B: float
) -> np.ndarray:
    """C_min = C / (1 + B / B_crit(L)), for C FLOPs spent at B tokens (Kaplan et al., eq. 5.5)."""
    C, B, loss = positive("C", C), positive("B", B), positive("loss", loss)
    return C / (1.0 + B / critical_batch(loss, B_star, alpha_B))


def table6(C_min: ArrayLike, params: Params) -> Efficient:
    """The empirical frontier {N_e, p_N, B_e, p_B, S_e, p_S} (`kaplan2020.table6`) at C_min FLOPs.

    Its loss is Table 5's L(C_min), which the same curves gave. The three powers are separate fits:
    6 N B_crit S_min is 0.975 C_min. `D_min` is B_crit S_min, and Table 6's own D_opt twice that.
    """
    n, b, s = values(params, "N_e", "B_e", "S_e")
    p_n, p_b, p_s = values(params, "p_N", "p_B", "p_S")
    c = positive("C_min", C_min)
    law = published("kaplan2020.table5.l_c_min").params
    days = c / PF_DAY
    steps, batch = s * days**p_s, b * days**p_b
    loss = (law["C_c"] / c) ** law["alpha_C"]
    return Efficient(loss, n * days**p_n, steps, batch, batch * steps)


def excess_compute(N_ratio: ArrayLike, params: Params) -> np.ndarray:
    """Compute of a size over that of the efficient one, for the same loss; `N_ratio` = N / N_eff.

    `inf` at and below `smallest_ratio`, where the size never reaches the loss.
    Kaplan et al. 2020, eq. B.16.
    """
    return positive("N_ratio", N_ratio) * relative_steps(N_ratio, params)


def relative_steps(N_ratio: ArrayLike, params: Params) -> np.ndarray:
    """Steps of a size over those of the efficient one, for the same loss (eq. B.17), or `inf`."""
    a_n, a_s = values(params, "alpha_N", "alpha_S")
    bracket = 1.0 + a_s / a_n * (1.0 - positive("N_ratio", N_ratio) ** -a_n)
    with np.errstate(divide="ignore"):
        return np.maximum(bracket, 0.0) ** (-1.0 / a_s)


def smallest_ratio(params: Params) -> np.ndarray:
    """N / N_eff of the size whose converged loss is the efficient one's: smaller never gets there.

    (1 + alpha_N / alpha_S)^(-1/alpha_N), where eq. B.16 of Kaplan et al. 2020 has its pole.
    """
    a_n, a_s = values(params, "alpha_N", "alpha_S")
    return (1.0 + a_n / a_s) ** (-1.0 / a_n)


def near_convergence(f: ArrayLike, f_prime: ArrayLike, params: Params) -> Ratios:
    """Stopping at (1 + f) of the converged loss, over stopping at (1 + f'), at one loss.

    Size, steps and compute of the first over the second. The frontier stops at
    f = alpha_N / alpha_S. Kaplan et al. 2020, Appendix B.3.
    """
    a_n, a_s = values(params, "alpha_N", "alpha_S")
    f, g = positive("f", f), positive("f_prime", f_prime)
    size = ((1.0 + f) / (1.0 + g)) ** (1.0 / a_n)
    steps = ((1.0 + 1.0 / f) / (1.0 + 1.0 / g)) ** (1.0 / a_s)
    return Ratios(size, steps, size * steps)


def early_stopping_bound(
    loss_nd: ArrayLike, loss_n: ArrayLike, S_c: float, alpha_S: float
) -> np.ndarray:
    """The least steps S_min at which a run on finite data should stop.

    S_c / (L(N, D) - L(N, inf))^(1/alpha_S), losses in nats a token (Kaplan et al. 2020, eq. 5.7).
    Raises `WorkError` where finite data do not cost any loss, and there is no bound.
    """
    gap = positive("loss_nd", loss_nd) - positive("loss_n", loss_n)
    if bad := int(np.sum(gap <= 0)):
        raise WorkError(f"No bound on {bad} of {gap.size}: L(N, D) is not above L(N, inf)")
    return S_c * gap ** (-1.0 / alpha_S)


def decompose(factor: ArrayLike, exponents: Params) -> dict[str, np.ndarray]:
    """By how much N, B, S and D grow when C_min grows by `factor`: factor^p of each.

    `exponents` is of `exponents` or `kaplan2020.table6`. The first three multiply to `factor`
    where their exponents sum to 1. Kaplan et al. 2020, Figure 3.
    """
    grown = positive("factor", factor)
    return {name: grown ** values(exponents, f"p_{name}")[0] for name in ("N", "B", "S", "D")}


def overfitting(N: ArrayLike, D: ArrayLike, params: Params) -> np.ndarray:
    """delta L = L(N, D) / L(N, inf) - 1, relative, by {N_c, D_c, alpha_N, alpha_D} of `l_nd`.

    Kaplan et al. 2020, eq. 4.2 and 4.3.
    """
    n_c, d_c, a_n, a_d = values(params, "N_c", "D_c", "alpha_N", "alpha_D")
    N, D = positive("N", N), positive("D", D)
    return np.expm1(a_d * np.log1p((N / n_c) ** (a_n / a_d) * d_c / D))


def required_data(N: ArrayLike, params_l_nd: Params, excess: float = 0.02) -> np.ndarray:
    """Tokens at which `overfitting` is `excess`: with fewer, data limits the model more than that.

    `excess` is relative: the paper's 5e3 N^0.74 is 0.02, its noise from seed to seed.
    Kaplan et al. 2020, eq. 4.4.
    """
    n_c, d_c, a_n, a_d = values(params_l_nd, "N_c", "D_c", "alpha_N", "alpha_D")
    size = (positive("N", N) / n_c) ** (a_n / a_d)
    return d_c * size / np.expm1(np.log1p(positive("excess", excess)) / a_d)


class DataGrowth(NamedTuple):
    """Exponents of C_min: of the tokens needed against overfitting, and of those trained on."""

    need: np.ndarray
    supply: np.ndarray


def data_growth(params_l_nd: Params, powers: Params) -> DataGrowth:
    """How the two grow with C_min, from `l_nd` and the frontier's {p_N, p_D}.

    need = p_N alpha_N / alpha_D, 0.54 by Kaplan's tables, and supply = p_D, 0.26 or 0.27.
    Kaplan et al. 2020, eq. 6.6 and 6.7.
    """
    a_n, a_d = values(params_l_nd, "alpha_N", "alpha_D")
    p_n, p_d = values(powers, "p_N", "p_D")
    return DataGrowth(p_n * a_n / a_d, p_d)


class Contradiction(NamedTuple):
    """Where L(C_min) would fall below L(D(C_min)), beyond which one of them must fail."""

    C_min: np.ndarray
    N: np.ndarray
    D: np.ndarray
    loss: np.ndarray


def contradiction(loss_law: Params, data_law: Params, powers: Params) -> Contradiction:
    """Where the frontier's loss meets the least that its own data allow.

    `loss_law` {C_c, alpha_C} in FLOPs, `data_law` {D_c, alpha_D}, `powers` {N_e, p_N, D_e, p_D} of
    C_min in PF-days. Where the loss does not fall faster than the data allow they never meet:
    C_min, N and D are `inf`, the loss 0. Kaplan et al. 2020, eq. 6.8, whose point is 1e4 PF-days
    with an order of magnitude either way: see `contradiction_by_rounding`.
    """
    c_c, a_c = values(loss_law, "C_c", "alpha_C")
    d_c, a_d = values(data_law, "D_c", "alpha_D")
    n_e, p_n, d_e, p_d = values(powers, "N_e", "p_N", "D_e", "p_D")
    faster = a_c - a_d * p_d
    ahead = a_c * np.log(c_c / PF_DAY) - a_d * np.log(d_c / d_e)
    with np.errstate(divide="ignore", over="ignore"):
        log_days = np.where(faster > 0, ahead / np.where(faster > 0, faster, 1.0), np.inf)
        days = np.exp(log_days)
        loss = (c_c / PF_DAY) ** a_c * days**-a_c
    return Contradiction(days * PF_DAY, n_e * days**p_n, d_e * days**p_d, loss)


# Half a unit of the last digit printed. D_e = 2e10 has one digit, and weighs the most.
_HALF_DIGIT = {
    "C_c": 0.05e8 * PF_DAY, "alpha_C": 0.0005, "D_c": 0.05e13, "alpha_D": 0.0005,
    "N_e": 0.05e9, "p_N": 0.005, "D_e": 0.5e10, "p_D": 0.005,
}  # fmt: skip


def contradiction_by_rounding(draws: int, seed: int = 0) -> Contradiction:
    """`contradiction` (draws,) of Kaplan's Tables 5 and 6, each number anywhere in its last digit.

    What the printed digits alone leave open, before any error of the fits.
    """
    rng = np.random.default_rng(seed)
    names = ("kaplan2020.table5.l_c_min", "kaplan2020.table5.l_d", "kaplan2020.table6")
    drawn = [
        {
            key: value + _HALF_DIGIT[key] * rng.uniform(-1.0, 1.0, draws)
            for key, value in published(name).params.items()
            if key in _HALF_DIGIT
        }
        for name in names
    ]
    return contradiction(*drawn)
