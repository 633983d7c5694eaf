"""Published laws of the learning rate and the batch: where a sweep begins."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from scaling_jax.laws.arrays import positive
from scaling_jax.laws.published import published


class StepLaw(NamedTuple):
    """Peak learning rate of AdamW, batch in tokens."""

    lr_peak: np.ndarray
    batch_tokens: np.ndarray


class DeepSeek(NamedTuple):
    """Peak learning rate, batch in tokens, non-embedding FLOPs a token M, and tokens D."""

    lr_peak: np.ndarray
    batch_tokens: np.ndarray
    M: np.ndarray
    D: np.ndarray


def step_law(N: ArrayLike, D: ArrayLike) -> StepLaw:
    """lr_peak = 1.79 N^-0.713 D^0.307 and B = 0.58 D^0.571 tokens.

    N non-embedding parameters, D tokens. Raises `RequestError` unless both are positive and
    finite. Li et al. 2025 (arXiv 2503.04715).
    """
    N, D = positive("N", N), positive("D", D)
    p = published("li2025.step_law").params
    return StepLaw(p["lr_scale"] * N ** p["lr_N"] * D ** p["lr_D"], p["B_scale"] * D ** p["B_D"])


def deepseek(C: ArrayLike) -> DeepSeek:
    """lr_peak = 0.3118 C^-0.1250, B = 0.2920 C^0.3271 tokens, and how C = M D is best divided.

    C in FLOPs, counted as M D with M the non-embedding FLOPs a token, attention included. The
    division depends on the quality of the data. Raises `RequestError` unless C is positive and
    finite. Bi et al. 2024 (arXiv 2401.02954).
    """
    C = positive("C", C)
    p = published("deepseek2024").params
    return DeepSeek(*(p[f"{q}_scale"] * C ** p[f"{q}_C"] for q in ("lr", "B", "M", "D")))
