"""Laws: named forms of the loss, fitted to the records, with what says how far to trust them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from scaling_jax.laws.describe import describe
from scaling_jax.laws.forms import LAWS, find_law
from scaling_jax.laws.l_ns import fit_l_ns
from scaling_jax.laws.noise_scale import describe_noise, noise_scale
from scaling_jax.laws.panel import Lamp
from scaling_jax.laws.result import Fit

if TYPE_CHECKING:
    from scaling_jax.records.store import Records

__all__ = ["LAWS", "Fit", "Lamp", "describe", "describe_noise", "fit", "noise_scale"]

_FITS = {"l_ns": fit_l_ns}


def fit(
    records: Records,
    law: str = "l_ns",
    columns: Mapping[str, str] | None = None,
    critical_batch: Mapping[str, float] | None = None,
    level: float = 0.9,
    resamples: int = 500,
    seed: int = 0,
) -> Fit:
    """Fit a law to the records: parameters, intervals, held-out errors, validity panel.

    `columns` maps roles (N, S, loss, run, lr, batch_tokens, ...) onto the columns of a foreign
    table; `critical_batch` {B_star (tokens), alpha_B} converts S to S_min (Kaplan et al. 2020,
    eq. 5.4); `level` is of the intervals, from `resamples` draws of whole runs.

    Raises `RequestError` where the request is wrong (unknown law, missing column, losses that are
    not positive and finite), `WorkError` where the data cannot carry the law.
    """
    return _FITS[find_law(law).slug](records, columns, critical_batch, level, resamples, seed)
