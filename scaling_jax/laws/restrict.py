"""A law with some of its parameters fixed or tied to others, as a law of fewer coordinates."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from scaling_jax.errors import RequestError, nearest
from scaling_jax.laws.law import Law

_EXPONENT = np.log([0.005, 20.0])
_SCALE = np.array([-700.0, 700.0])  # logs of what float64 holds
_OFFSET = np.array([-12.0, 12.0])


def restrict(
    law: Law, fix: Mapping[str, float] | None = None, tie: Mapping[str, str] | None = None
) -> Law:
    """The law with parameters held at the values of `fix`, and the keys of `tie` at their values.

    Its coordinates are the logs of the parameters that remain, and its data are not centred. An
    offset may be fixed at 0. Raises `RequestError` for unknown names, values that no parameter can
    have, and where nothing is left to fit.
    """
    fix, tie = dict(fix or {}), dict(tie or {})
    if not fix and not tie:
        return law
    for name in (*fix, *tie, *tie.values()):
        if name not in law.params:
            raise RequestError(f"{law.slug} has no parameter {name!r}.{nearest(name, law.params)}")
    if len(law.params) != len(law.lower):
        raise RequestError(
            f"The parameters of {law.slug} are not free of each other: none is fixed"
        )
    for name, value in fix.items():
        if not (np.isfinite(value) and (value > 0 or (value == 0 and name == law.offset))):
            raise RequestError(f"{name} cannot be fixed at {value}: it is positive")
    for name, other in tie.items():
        if name in fix or other in fix or other in tie or name == other:
            raise RequestError(f"{name} is tied to {other}, which is fixed or tied itself")
    if len(fix) + len(tie) >= len(law.params):
        raise RequestError(f"No parameter of {law.slug} is left to fit")
    return _restricted(law, tuple(sorted(fix.items())), tuple(sorted(tie.items())))


@functools.lru_cache(maxsize=64)  # a law that is another object is compiled anew
def _restricted(
    law: Law, fix: tuple[tuple[str, float], ...], tie: tuple[tuple[str, str], ...]
) -> Law:
    held = {name for name, _ in (*fix, *tie)}
    free = [name for name in law.params if name not in held]
    with np.errstate(divide="ignore"):
        constant = np.array([np.log(dict(fix).get(name, 1.0)) for name in law.params])
    source = [free.index(dict(tie).get(name, name)) if name not in dict(fix) else -1
              for name in law.params]  # fmt: skip
    fixed = np.array([place < 0 for place in source])
    place = np.maximum(source, 0)
    position = [law.params.index(name) for name in free]
    zero = np.zeros(len(law.inputs))

    def log_predict(theta: jax.Array, x: jax.Array) -> jax.Array:
        full = jnp.where(jnp.asarray(fixed), jnp.asarray(constant), theta[jnp.asarray(place)])
        return law.log_predict(law.from_log_params(full, zero, 0.0), x)

    def to_log_params(theta: np.ndarray, x0: np.ndarray, y0: float) -> np.ndarray:
        return np.where(fixed, constant, theta[..., place])

    def starts(x_mean: np.ndarray, y_mean: float) -> np.ndarray:
        inner = law.starts(x_mean, y_mean)
        centre = (x_mean, y_mean) if law.centred else (zero, 0.0)
        return np.unique(law.to_log_params(inner, *centre)[..., position], axis=0)

    bounds = np.array([_bounds(law, name) for name in free])
    return replace(
        law,
        log_predict=log_predict,
        to_log_params=to_log_params,
        from_log_params=lambda log_params, x0, y0: log_params[..., position],
        starts=starts,
        lower=bounds[:, 0],
        upper=bounds[:, 1],
        centred=False,
    )


def _bounds(law: Law, name: str) -> np.ndarray:
    if name in law.exponents:
        return _EXPONENT
    if not law.centred:  # the coordinates are the parameters' own logs already
        inner = law.from_log_params(
            np.array([float(n == name) for n in law.params]), np.zeros(len(law.inputs)), 0.0
        )
        place = int(np.argmax(inner))
        return np.array([law.lower[place], law.upper[place]])
    return _OFFSET if name == law.offset else _SCALE
