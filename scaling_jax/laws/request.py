"""What every analysis asks of its request, before it looks at the data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from scaling_jax.errors import RequestError, nearest


def require_level(level: float) -> None:
    """Raises `RequestError` unless the level of intervals is a share."""
    if not 0 < level < 1:
        raise RequestError(f"level is a share between 0 and 1, not {level:g}")


def require_constants(critical_batch: Mapping[str, float] | None) -> None:
    """Raises `RequestError` unless both constants of B_crit(L), B_star and alpha_B, are there."""
    if critical_batch is None:
        return
    for name, value in critical_batch.items():
        if name not in ("B_star", "alpha_B"):
            known = ("B_star", "alpha_B")
            raise RequestError(f"critical_batch has no constant {name!r}.{nearest(name, known)}")
        if not (np.isfinite(value) and value > 0):
            raise RequestError(f"critical_batch {name} is positive, not {value:g}")
    if len(critical_batch) < 2:
        raise RequestError("critical_batch needs B_star (tokens) and alpha_B")
