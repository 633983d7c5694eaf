"""The laws, by slug. A new one is one entry here: a sum of powers, or a function of its own."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from scaling_jax.errors import RequestError, nearest
from scaling_jax.laws.law import (
    CHINCHILLA_DELTA,
    EXPONENT,
    SHARE,
    Law,
    Term,
    array_module,
    sum_of_powers,
)

KAPLAN_2020 = "Kaplan et al. 2020 (arXiv 2001.08361)"
_ONE = (0.05, 0.15, 0.5)


def _single(slug: str, symbol: str, source: str) -> tuple[Law, Law]:
    """L = (X_c / X)^alpha_X, and the same above an irreducible loss E."""
    term = Term(symbol, f"{symbol}_c", f"alpha_{symbol}")
    power = f"({symbol}_c / {symbol})^alpha_{symbol}"
    plain = sum_of_powers(slug, (term,), f"L({symbol}) = {power}", source, powers=(_ONE,))
    above = sum_of_powers(
        f"{slug}_offset",
        (term,),
        f"L({symbol}) = E + {power}",
        f"{source}, with an irreducible loss E",
        offset="E",
        order=("E", f"{symbol}_c", f"alpha_{symbol}"),
        powers=((0.1, 0.3, 1.0),),
    )
    return plain, above


L_N, L_N_OFFSET = _single("l_n", "N", f"{KAPLAN_2020}, eq. 1.1 and 3.1")
L_D, L_D_OFFSET = _single("l_d", "D", f"{KAPLAN_2020}, eq. 1.2")
L_C, L_C_OFFSET = _single("l_c", "C", f"{KAPLAN_2020}, eq. 1.3, C in FLOPs")

L_NS = sum_of_powers(
    "l_ns",
    (Term("N", "N_c", "alpha_N"), Term("S", "S_c", "alpha_S")),
    "L(N, S) = (N_c / N)^alpha_N + (S_c / S)^alpha_S",
    f"{KAPLAN_2020}, eq. 1.6 and 5.6",
    powers=((0.08, 0.3), (0.15, 0.6)),
)

L_ND_CHINCHILLA = sum_of_powers(
    "l_nd_chinchilla",
    (Term("N", "A", "alpha", ratio=False), Term("D", "B", "beta", ratio=False)),
    "L(N, D) = E + A / N^alpha + B / D^beta",
    "Hoffmann et al. 2022 (arXiv 2203.15556), eq. 2",
    offset="E",
    order=("E", "A", "B", "alpha", "beta"),
    powers=((0.15, 0.35, 0.8), (0.15, 0.35, 0.8)),
    delta=CHINCHILLA_DELTA,
    derived={"a_opt": lambda p: p["beta"] / (p["alpha"] + p["beta"])},
)

B_CRIT = sum_of_powers(
    "b_crit",
    (Term("L", "B_star", "alpha_B", ratio=False, reciprocal=True),),
    "B_crit(L) = B_star / L^(1 / alpha_B)",
    f"{KAPLAN_2020}, eq. 5.3",
    powers=((2.0, 4.0, 8.0),),
    output="B_crit",
    delta=np.inf,
)


def _overfitting() -> Law:
    """Kaplan's L(N, D): the terms add up under a common power."""

    def log_predict(theta: jax.Array, x: jax.Array, x0: Any, y0: Any) -> jax.Array:
        alpha_n, alpha_d = jnp.exp(theta[0]), jnp.exp(theta[1])
        size = (theta[2] - alpha_n * x[0]) / alpha_d
        return alpha_d * jnp.logaddexp(size, (theta[3] - alpha_d * x[1]) / alpha_d)

    exponents = list(itertools.product((0.05, 0.15, 0.4), (0.05, 0.15, 0.4)))
    starts = np.array(
        [
            [np.log(a), np.log(b), b * np.log(share), b * np.log(1 - share)]
            for a, b in exponents
            for share in (0.7, 0.3)
        ]
    )
    return Law(
        slug="l_nd",
        params=("N_c", "D_c", "alpha_N", "alpha_D"),
        exponents=("alpha_N", "alpha_D"),
        inputs=("N", "D"),
        coordinates=("alpha_N", "alpha_D", "N_c", "D_c"),
        terms=("N_c", "D_c"),
        formula="L(N, D) = [(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D",
        source=f"{KAPLAN_2020}, eq. 1.5 and 4.1",
        log_predict=log_predict,
        # At the centre either term alone would give the loss exp(theta), as in a sum of powers.
        to_log_params=L_NS.to_log_params,
        from_log_params=L_NS.from_log_params,
        starts=starts,
        lower=np.log([EXPONENT[0], EXPONENT[0], SHARE[0], SHARE[0]]),
        upper=np.log([EXPONENT[1], EXPONENT[1], SHARE[1], SHARE[1]]),
    )


def _hyperbola() -> Law:
    """Steps to one loss against the batch; B_crit is what two of the three make of each other."""

    def to_log_params(theta: Any, x0: Any, y0: Any) -> Any:
        xp = array_module(theta)
        steps, tokens = theta[..., :1] + y0, theta[..., 1:] + y0 + x0
        return xp.concatenate([steps, tokens, tokens - steps], axis=-1)

    def from_log_params(log_params: Any, x0: Any, y0: Any) -> Any:
        xp = array_module(log_params)
        return xp.concatenate([log_params[..., :1] - y0, log_params[..., 1:2] - y0 - x0], axis=-1)

    shares = np.log([[0.5, 0.5], [0.9, 0.1], [0.1, 0.9]])
    return Law(
        slug="pareto",
        params=("S_min", "E_min", "B_crit"),
        exponents=(),
        inputs=("B",),
        coordinates=("S_min", "E_min"),
        terms=("S_min", "E_min"),
        formula="S(B) = S_min + E_min / B, that is (S / S_min - 1) (E / E_min - 1) = 1, E = B S",
        source=f"McCandlish et al. 2018 (arXiv 1812.06162), eq. 2.11; {KAPLAN_2020}, eq. 5.1",
        log_predict=lambda theta, x, x0, y0: jnp.logaddexp(theta[0], theta[1] - x[0]),
        to_log_params=to_log_params,
        from_log_params=from_log_params,
        starts=shares,
        lower=np.log([SHARE[0], SHARE[0]]),
        upper=np.log([SHARE[1], SHARE[1]]),
        output="S",
        delta=np.inf,
    )


def _data_constrained() -> Law:
    """Chinchilla's form of effective parameters and data, which repetition makes less of.

    `theta` is that of Chinchilla's form with all data fresh, then logs of R_D_star and R_N_star.
    """
    fresh = L_ND_CHINCHILLA
    own = len(fresh.params)
    scales = [fresh.params.index(name) for name in ("A", "B")]

    def to_log_params(theta: Any, x0: Any, y0: Any) -> Any:
        first = fresh.to_log_params(theta[..., :own], x0[:2], y0)
        return array_module(theta).concatenate([first, theta[..., own:]], axis=-1)

    def from_log_params(log_params: Any, x0: Any, y0: Any) -> Any:
        first = fresh.from_log_params(log_params[..., :own], x0[:2], y0)
        return array_module(log_params).concatenate([first, log_params[..., own:]], axis=-1)

    def log_predict(theta: jax.Array, x: jax.Array, x0: Any, y0: Any) -> jax.Array:
        alpha, beta = jnp.exp(theta[0]), jnp.exp(theta[1])
        log_params = fresh.to_log_params(theta[:own], x0[:2], y0)
        A, B = log_params[scales[0]], log_params[scales[1]]
        N, D, U = (x[i] + x0[i] for i in range(3))
        unique = jnp.minimum(D, U)
        # The size that is compute-optimal for the unique tokens (Hoffmann et al. 2022, eq. 4).
        balance = (theta[0] + A - theta[1] - B) / (alpha + beta)
        base = balance + beta / alpha * (balance + unique)
        size = _effective(N, base, jnp.exp(theta[6]))
        tokens = _effective(D, unique, jnp.exp(theta[5]))
        total = jnp.logaddexp(A - alpha * size, B - beta * tokens) - y0
        return jnp.logaddexp(total, theta[4])

    shares = np.log([[0.25, 0.25, 0.5], [0.1, 0.1, 0.8]])
    grid = itertools.product((0.2, 0.35, 0.6), shares, (3.0, 15.0, 100.0), (1.5, 5.0, 30.0))
    decay = np.log([0.01, 1e4])
    return Law(
        slug="data_constrained",
        params=(*fresh.params, "R_D_star", "R_N_star"),
        exponents=fresh.exponents,
        inputs=("N", "D", "U"),
        coordinates=(*fresh.coordinates, "R_D_star", "R_N_star"),
        terms=fresh.terms,
        formula="L = E + A / N'^alpha + B / D'^beta, D' = U (1 + R_D_star (1 - "
        "exp(-(D / U - 1) / R_D_star))), N' likewise with R_N_star of the size optimal for U",
        source="Muennighoff et al. 2023 (arXiv 2305.16264), eq. 5 and 6; U unique tokens",
        log_predict=log_predict,
        to_log_params=to_log_params,
        from_log_params=from_log_params,
        starts=np.array([[*np.log([a, a]), *share, *np.log([r_d, r_n])]
                         for a, share, r_d, r_n in grid]),
        lower=np.append(fresh.lower, [decay[0], decay[0]]),
        upper=np.append(fresh.upper, [decay[1], decay[1]]),
        offset="E",
        delta=CHINCHILLA_DELTA,
        derived=fresh.derived,
    )  # fmt: skip


def _effective(x: jax.Array, base: jax.Array, decay: jax.Array) -> jax.Array:
    """Log of what an amount exp(x) is worth of which exp(base) is fresh; equal to x below that."""
    repeats = jnp.expm1(jnp.maximum(x - base, 0.0))
    return jnp.minimum(x, base) + jnp.log1p(-decay * jnp.expm1(-repeats / decay))


LAWS = {
    law.slug: law
    for law in (
        L_N, L_N_OFFSET, L_D, L_D_OFFSET, L_C, L_C_OFFSET, _overfitting(), L_ND_CHINCHILLA, L_NS,
        B_CRIT, _hyperbola(), _data_constrained(),
    )
}  # fmt: skip


def find_law(slug: str) -> Law:
    """The law of that slug. Raises `RequestError` with the nearest known one."""
    if slug not in LAWS:
        raise RequestError(f"No law {slug!r}.{nearest(slug, LAWS)}")
    return LAWS[slug]


def critical_batch(loss: ArrayLike, B_star: ArrayLike, alpha_B: ArrayLike) -> np.ndarray:
    """B_crit(L) = B_star / L^(1/alpha_B) in tokens (Kaplan et al. 2020, eq. 5.3)."""
    loss, scale, alpha = (np.asarray(each, dtype=np.float64) for each in (loss, B_star, alpha_B))
    return scale * loss ** (-1.0 / alpha)


def minimum_steps(
    steps: ArrayLike, loss: ArrayLike, batch_tokens: ArrayLike, B_star: float, alpha_B: float
) -> np.ndarray:
    """S_min = S / (1 + B_crit(L) / B), with L the loss observed at S (Kaplan et al., eq. 5.4)."""
    batch = np.asarray(batch_tokens, dtype=np.float64)
    return np.asarray(steps, dtype=np.float64) / (
        1.0 + critical_batch(loss, B_star, alpha_B) / batch
    )
