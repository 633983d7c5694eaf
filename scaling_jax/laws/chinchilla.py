"""How to spend compute by L(N, D) = E + A / N^alpha + B / D^beta, and what N counts and repeats do.

C = 6 N D FLOPs, N parameters, D tokens, L nats a token. Parameters {E, A, B, alpha, beta} are as
in `published`, and may hold arrays (draws of a fit), which broadcast with the inputs. Functions
raise `RequestError` for a parameter that is missing and for values that are not positive and
finite (E may be 0).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from scaling_jax.errors import RequestError
from scaling_jax.laws.arrays import Params, positive, require, values


class Optimal(NamedTuple):
    """The best division of a budget: parameters, tokens, loss."""

    N: np.ndarray
    D: np.ndarray
    loss: np.ndarray


class NonEmbedding(NamedTuple):
    """A point of the frontier that leaves embeddings out of N and of C = 6 N D."""

    C: np.ndarray
    N: np.ndarray
    D: np.ndarray
    loss: np.ndarray


def exponents(params: Params) -> dict[str, np.ndarray]:
    """a and b of N_opt ~ C^a and D_opt ~ C^b; a + b = 1 (Hoffmann et al. 2022, eq. 4)."""
    alpha, beta = values(params, "alpha", "beta")
    return {"a": beta / (alpha + beta), "b": alpha / (alpha + beta)}


def optimal(C: ArrayLike, params: Params) -> Optimal:
    """N_opt = G (C/6)^a and D_opt = (C/6)^b / G, G = (alpha A / (beta B))^(1/(alpha + beta)).

    Hoffmann et al. 2022, eq. 4.
    """
    A, B, alpha, beta = values(params, "A", "B", "alpha", "beta")
    share, p = positive("C", C) / 6.0, exponents(params)
    G = (alpha * A / (beta * B)) ** (1.0 / (alpha + beta))
    N, D = G * share ** p["a"], share ** p["b"] / G
    return Optimal(N, D, _loss(N, D, params))


def size_for_data(D: ArrayLike, params: Params) -> np.ndarray:
    """The size for which D tokens are optimal; of the unique tokens it is Muennighoff's U_N."""
    A, B, alpha, beta = values(params, "A", "B", "alpha", "beta")
    return (alpha * A / (beta * B) * positive("D", D) ** beta) ** (1.0 / alpha)


def excess_compute(N_ratio: ArrayLike, params: Params) -> np.ndarray:
    """Compute of a size over that of the optimal one, for the same loss; `N_ratio` = N / N_opt.

    r (1 + (beta / alpha) (1 - r^-alpha))^(-1/beta) at every budget, since A / N_opt^alpha and
    B / D_opt^beta are as beta to alpha. `inf` at and below `smallest_ratio`.
    """
    alpha, beta = values(params, "alpha", "beta")
    ratio = positive("N_ratio", N_ratio)
    with np.errstate(divide="ignore", over="ignore"):
        bracket = 1.0 + beta / alpha * (1.0 - ratio**-alpha)
        return ratio * np.maximum(bracket, 0.0) ** (-1.0 / beta)


def smallest_ratio(params: Params) -> np.ndarray:
    """N / N_opt of the size that reaches the optimal one's loss with endless data only."""
    alpha, beta = values(params, "alpha", "beta")
    return (1.0 + alpha / beta) ** (-1.0 / alpha)


def total_parameters(N: ArrayLike, omega: float) -> np.ndarray:
    """N + omega N^(1/3): embeddings grow as the width does (Pearce and Song 2024, 2406.12907)."""
    N = positive("N", N)
    return N + _omega(omega) * np.cbrt(N)


def frontier_non_embedding(N: ArrayLike, params: Params, omega: float) -> NonEmbedding:
    """Where N non-embedding parameters are optimal, C = 6 N D leaving embeddings out too.

    `params` are of L in total parameters. Not a power law: see `local_exponent`.
    Pearce and Song 2024 (arXiv 2406.12907).
    """
    A, B, alpha, beta = values(params, "A", "B", "alpha", "beta")
    N, total = positive("N", N), total_parameters(N, omega)
    slope = N + omega / 3.0 * np.cbrt(N)  # dN_total / d ln N
    D = (beta * B * total ** (alpha + 1.0) / (alpha * A * slope)) ** (1.0 / beta)
    return NonEmbedding(6.0 * N * D, N, D, _loss(total, D, params))


def local_exponent(N: ArrayLike, params: Params, omega: float) -> np.ndarray:
    """d ln N / d ln C on `frontier_non_embedding` at N.

    beta / (alpha/3 + beta) for small N, beta / (alpha + beta) for large N, and above both between.
    """
    alpha, beta = values(params, "alpha", "beta")
    N, total = positive("N", N), total_parameters(N, omega)
    slope = N + omega / 3.0 * np.cbrt(N)
    bend = (N + omega / 9.0 * np.cbrt(N)) / slope
    return 1.0 / (1.0 + ((alpha + 1.0) * slope / total - bend) / beta)


def fitted_exponent(
    params: Params, omega: float, sizes: ArrayLike, budgets: ArrayLike, tokens: ArrayLike
) -> float:
    """The exponent of N_opt(C) that an envelope of learning curves would give, N non-embedding.

    Curves of `sizes` (n,) are recorded at `tokens` (t,); at each of `budgets` (c,), FLOPs, each
    size gives its record of the nearest compute, the best loss its size, and a line through ln N
    against ln C its slope. Spacing of `tokens` moves it: 1,000 records over 19 decades, as in the
    paper, add 0.005. Pearce and Song 2024 (arXiv 2406.12907).
    """
    N, C = positive("sizes", sizes), positive("budgets", budgets)
    D = np.sort(positive("tokens", tokens))
    wanted = C / (6.0 * N[:, None])
    after = np.clip(np.searchsorted(D, wanted), 1, D.size - 1)
    nearest = np.where(wanted - D[after - 1] < D[after] - wanted, D[after - 1], D[after])
    loss = _loss(total_parameters(N, omega)[:, None], nearest, params)
    return float(np.polyfit(np.log(C), np.log(N[loss.argmin(axis=0)]), 1)[0])


def effective(amount: ArrayLike, base: ArrayLike, R_star: ArrayLike) -> np.ndarray:
    """What an amount is worth of which `base` is fresh: D' of D and U_D, or N' of N and U_N.

    base (1 + R_star (1 - exp(-R / R_star))), R = amount / base - 1 repeats; up to `base` it is
    itself, and never more than base (1 + R_star). Muennighoff et al. 2023 (2305.16264), eq. 5.
    """
    amount, base, r = positive("amount", amount), positive("base", base), positive("R_star", R_star)
    repeats = np.maximum(amount / base - 1.0, 0.0)
    return np.minimum(amount, base) - base * r * np.expm1(-repeats / r)


def _loss(N: ArrayLike, D: ArrayLike, params: Params) -> np.ndarray:
    A, B, alpha, beta = values(params, "A", "B", "alpha", "beta")
    require(params, "E")
    return np.asarray(params["E"]) + A / np.asarray(N) ** alpha + B / np.asarray(D) ** beta


def _omega(omega: float) -> float:
    if not (np.isfinite(omega) and omega >= 0):
        raise RequestError(f"omega = {omega} not finite and at least 0")
    return omega
