"""Laws of the loss under any schedule: a power of the progress, less what a falling rate gains."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from scaling_jax.errors import RequestError, nearest
from scaling_jax.laws.forecast.rates import Drops, Rates, drops, progress

# Luo et al. 2025 at three sizes: C 2.02-2.13, beta .58-.60, gamma .63-.66. Where the data do not
# tell, the response is as theirs.
_C, _BETA, _GAMMA = 2.07, 0.59, 0.645
_LEAST_LEVEL = 1e-3  # of the largest rate: below, an update changes nothing any more


@dataclass(frozen=True, eq=False)
class ScheduleLaw:
    """loss = L0 + A S^(-alpha) - B sum over falls of the rate (fall x response).

    S is the progress, the integral of lr^q over the steps; the papers have q = 1. The response to
    a fall of the rate goes from 0 to 1; `response(constants, drops)` gives (n, m), and `constants`
    are the names of what it depends on. `usual` (c,) are their logs where the data do not tell,
    `spread` (c,) how far in log they may plausibly be from there, `grid` (k, c) the values tried.
    With `warm_up` the rise to the first rate counts as a negative fall.
    """

    slug: str
    formula: str
    source: str
    constants: tuple[str, ...]
    response: Callable[[np.ndarray, Drops], np.ndarray]
    usual: np.ndarray
    spread: np.ndarray
    grid: np.ndarray
    warm_up: bool

    @property
    def params(self) -> tuple[str, ...]:
        """All parameters: three of size, two of the progress, and those of the response."""
        return ("L0", "A", "B", "alpha", "q", *self.constants)

    def gained(self, constants: np.ndarray, changes: Drops) -> np.ndarray:
        """The sum (n,) over the falls, in units of the learning rate, at logs of constants (c,)."""
        part = changes.fall * self.response(np.exp(constants), changes)
        return part.sum(axis=1) if self.warm_up else part[:, 1:].sum(axis=1)

    def predict(self, params: Mapping[str, float], rates: Rates, steps: ArrayLike) -> np.ndarray:
        """Losses (n,) in nats a token at ascending steps (n,) of a run with those rates."""
        for name in self.params:
            if name not in params:
                raise RequestError(f"{self.slug} needs the parameter {name}")
        steps = np.asarray(steps, dtype=np.float64)
        constants = np.log([params[name] for name in self.constants])
        gained = self.gained(constants, drops(rates, steps))
        along = progress(rates, steps, params["q"])
        return params["L0"] + params["A"] * along ** -params["alpha"] - params["B"] * gained


def _multi_power_response(constants: np.ndarray, changes: Drops) -> np.ndarray:
    C, beta, gamma = constants
    level = np.maximum(changes.level, _LEAST_LEVEL * changes.level.max(initial=0.0))
    return -np.expm1(-beta * np.log1p(C * level**-gamma * changes.area))


def _annealing_response(constants: np.ndarray, changes: Drops) -> np.ndarray:
    return -np.expm1(-changes.age / constants[0])


MULTI_POWER = ScheduleLaw(
    slug="multi_power",
    formula="L = L0 + A S^-alpha - B sum_k (lr_{k-1} - lr_k) (1 - (1 + C lr_k^-gamma S_k)^-beta)",
    source="Luo et al. 2025 (arXiv 2503.12811), eq. 1, of a rate that is 0 before the first step",
    constants=("C", "beta", "gamma"),
    response=_multi_power_response,
    usual=np.log([_C, _BETA, _GAMMA]),
    spread=np.array([1.0, 0.5, 0.5]),
    grid=np.log(
        list(
            itertools.product(
                _C * np.array([1 / 64, 1 / 16, 0.25, 1.0, 4.0]), (_BETA, 1.2), (_GAMMA,)
            )
        )
    ),
    warm_up=True,
)
ANNEALING = ScheduleLaw(
    slug="annealing",
    formula="L = L0 + A S^-alpha - B sum_k (lr_{k-1} - lr_k) (1 - exp(-(s - k) / tau))",
    source="Tissue et al. 2024 (arXiv 2408.11029), eq. 1, S_2 summed with tau = -1 / ln(lambda)",
    constants=("tau",),
    response=_annealing_response,
    usual=np.log([1000.0]),
    spread=np.array([1.5]),
    grid=np.log(np.geomspace(30.0, 10000.0, 11))[:, None],
    warm_up=False,
)
SCHEDULE_LAWS = {law.slug: law for law in (MULTI_POWER, ANNEALING)}


def find_schedule_law(slug: str) -> ScheduleLaw:
    """The law of that slug. Raises `RequestError` with the nearest known one."""
    if slug not in SCHEDULE_LAWS:
        raise RequestError(f"No schedule law {slug!r}.{nearest(slug, SCHEDULE_LAWS)}")
    return SCHEDULE_LAWS[slug]
