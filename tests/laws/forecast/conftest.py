"""Curves nobody trained: a family with one exponent, whose ends are known."""

from __future__ import annotations

import numpy as np
import pytest

from scaling_jax.laws.forecast.curve import Curve

STEPS = 2000.0


def family(n: int = 14, noise: float = 0.002, seed: int = 0) -> list[Curve]:
    """n runs of growing size N, E + A s^-alpha with alpha about .5, and white noise."""
    rng = np.random.default_rng(seed)
    curves = []
    for i in range(n):
        step = np.arange(20.0, STEPS + 1, 20.0)
        size = 1e6 * 1.5**i
        loss = 1.5 + (1e5 / size) ** 0.1 + 12 * (1 + 0.1 * rng.standard_normal()) * step**-0.5
        loss = loss * np.exp(noise * rng.standard_normal(step.size))
        curves.append(Curve(f"r{i:02d}", f"r{i:02d}", step, loss, size=size, horizon=STEPS))
    return curves


@pytest.fixture(scope="session")
def curves() -> list[Curve]:
    return family()
