"""A law with some of its parameters fixed or tied to others, as a law of fewer coordinates."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from scaling_jax.errors import RequestError, nearest
from scaling_jax.laws.law import Law, array_module


def restrict(
    law: Law, fix: Mapping[str, float] | None = None, tie: Mapping[str, str] | None = None
) -> Law:
    """The law with parameters held at the values of `fix`, and the keys of `tie` at their values.

    Its coordinates are those of the law that stand for parameters that are free. An offset may be
    fixed at 0. Raises `RequestError` for unknown names, values that no parameter can have, ties of
    unlike parameters, and where nothing is left to fit.
    """
    fix, tie = dict(fix or {}), dict(tie or {})
    if not fix and not tie:
        return law
    for name in (*fix, *tie, *tie.values()):
        if name not in law.params:
            raise RequestError(f"{law.slug} has no parameter {name!r}.{nearest(name, law.params)}")
    if set(law.params) != set(law.coordinates):
        raise RequestError(
            f"The parameters of {law.slug} are not free of each other: none is fixed"
        )
    for name, value in fix.items():
        if not (np.isfinite(value) and (value > 0 or (value == 0 and name == law.offset))):
            raise RequestError(f"{name} cannot be fixed at {value}: it is positive")
    for name, other in tie.items():
        if name in fix or other in fix or other in tie or name == other:
            raise RequestError(f"{name} is tied to {other}, which is fixed or tied itself")
        if _kind(law, name) != _kind(law, other):
            raise RequestError(
                f"{name} is {_kind(law, name)} and {other} is {_kind(law, other)}: they cannot be "
                "equal"
            )
    if len(fix) + len(tie) >= len(law.params):
        raise RequestError(f"No parameter of {law.slug} is left to fit")
    return _restricted(law, tuple(sorted(fix.items())), tuple(sorted(tie.items())))


def _kind(law: Law, name: str) -> str:
    if name in law.exponents:
        return "an exponent"
    return "an offset" if name == law.offset else "a scale"


@functools.lru_cache(maxsize=64)  # a law that is another object is compiled anew
def _restricted(
    law: Law, fix: tuple[tuple[str, float], ...], tie: tuple[tuple[str, str], ...]
) -> Law:
    fixed, tied = dict(fix), dict(tie)
    free = np.array([k for k, name in enumerate(law.coordinates) if name not in fixed | tied])
    is_free = np.isin(np.arange(len(law.coordinates)), free)
    back = np.maximum(np.cumsum(is_free) - 1, 0)
    is_fixed = np.array([name in fixed for name in law.params])
    with np.errstate(divide="ignore"):
        constant = np.log([fixed.get(name, 1.0) for name in law.params])
    source = np.array([law.params.index(tied.get(name, name)) for name in law.params])

    def complete(log_params: Any) -> Any:
        """All parameters, from logs that are right for the free ones."""
        return array_module(log_params).where(is_fixed, constant, log_params[..., source])

    def whole(theta: Any, x0: Any, y0: Any) -> Any:
        """The logs of the law's parameters at free coordinates (..., T)."""
        xp = array_module(theta)
        own = theta[..., back]
        # The free exponents say what the held ones are, and all exponents what the scales are.
        first = complete(law.to_log_params(own, x0, y0))
        exponents = law.from_log_params(first, x0, y0)
        return complete(law.to_log_params(xp.where(is_free, own, exponents), x0, y0))

    def log_predict(theta: jax.Array, x: jax.Array, x0: Any, y0: Any) -> jax.Array:
        return law.log_predict(law.from_log_params(whole(theta, x0, y0), x0, y0), x, x0, y0)

    return replace(
        law,
        coordinates=tuple(law.coordinates[k] for k in free),
        log_predict=log_predict,
        to_log_params=whole,
        from_log_params=lambda log_params, x0, y0: law.from_log_params(
            complete(log_params), x0, y0
        )[..., free],
        starts=np.unique(law.starts[:, free], axis=0),
        lower=law.lower[free],
        upper=law.upper[free],
    )
