"""Laws as small objects: a prediction in log space, and the way to and from its parameters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from scaling_jax.errors import RequestError, nearest

# Residuals of small language models around a good law are about 1 %: a point inside that counts
# by its square, one further out by its distance, so that a single bad evaluation moves nothing.
DELTA = 0.01
# The width that Hoffmann et al. and all who refitted them used.
CHINCHILLA_DELTA = 1e-3


def float64_cpu() -> AbstractContextManager:
    """The CPU as default device; use it together with `jax.enable_x64(True)`."""
    return jax.default_device(jax.local_devices(backend="cpu")[0])


@dataclass(frozen=True, eq=False)
class Law:
    """A named form of one measured quantity (`output`, mostly the loss).

    A law is solved in inner coordinates `theta`, all of them logarithms, with the log inputs
    and the log output measured from a centre of the data: an exponent and the size of its term at
    the centre are nearly independent, where an exponent and its scale constant are not.

    `coordinates` (T) names the parameter that each coordinate stands for, `terms` those that stand
    for a term of the output at the centre. `log_predict(theta, x,
    x0, y0)`: theta (T,), x (inputs, n) log inputs from their centre x0 (inputs,) -> (n,) log
    output from its centre y0. `to_log_params(theta, x0, y0)`: (..., T) to (..., P) logs of
    `params`; `from_log_params` is its inverse; both also of traced values. `starts` (K, T) are
    where to start from, `lower` and `upper` (T,) bounds. `offset` names the constant term, which
    may vanish. `delta` is the Huber width of log residuals that the law is usually fitted with,
    infinite for least squares. `derived` are functions of `params` that are reported beside them.
    """

    slug: str
    params: tuple[str, ...]
    exponents: tuple[str, ...]
    inputs: tuple[str, ...]
    formula: str
    source: str
    coordinates: tuple[str, ...]
    terms: tuple[str, ...]
    log_predict: Callable[[jax.Array, jax.Array, Any, Any], jax.Array]
    to_log_params: Callable[[Any, Any, Any], Any]
    from_log_params: Callable[[Any, Any, Any], Any]
    starts: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    output: str = "loss"
    offset: str | None = None
    delta: float = DELTA
    derived: Mapping[str, Callable[[Mapping[str, float]], float]] = field(default_factory=dict)

    def predict(self, params: Mapping[str, float], **inputs: ArrayLike) -> np.ndarray:
        """The output at `inputs` (broadcast together; `inf` gives the limit), float64.

        Losses are nats a token. Raises `RequestError` for a missing or unknown parameter or input.
        """
        same_names(self.slug, "parameter", params, self.params)
        same_names(self.slug, "input", inputs, self.inputs)
        arrays = [np.asarray(inputs[name], dtype=np.float64) for name in self.inputs]
        arrays = np.broadcast_arrays(*arrays)
        with np.errstate(divide="ignore"):  # an offset of zero and an input of zero have limits
            x = np.log(np.stack([array.ravel() for array in arrays]))
            log_params = np.log(np.array([params[name] for name in self.params], dtype=np.float64))
        x0 = np.zeros(len(self.inputs))
        theta = self.from_log_params(log_params, x0, 0.0)
        with jax.enable_x64(True), float64_cpu():
            y = np.asarray(self.log_predict(jnp.asarray(theta), jnp.asarray(x), x0, 0.0))
        with np.errstate(over="ignore"):  # beyond float64 the output is inf
            return np.exp(y).reshape(arrays[0].shape)

    def invert(self, params: Mapping[str, float], output: float, **others: float) -> float:
        """The value of the first input at which the law gives `output`, the other inputs held.

        By bisection in log space, as every law falls in its first input; `inf` where the output is
        below what an infinite input gives, 0 where it is above what a vanishing one gives.
        Raises `RequestError` as `predict`, and for an output that is not positive.
        """
        if not (np.isfinite(output) and output > 0):
            raise RequestError(f"{self.slug} has no inverse at {self.output} = {output}")
        low, high = -200.0, 200.0
        name = self.inputs[0]
        if self.predict(params, **{name: np.exp(high)}, **others) > output:
            return float("inf")
        if self.predict(params, **{name: np.exp(low)}, **others) < output:
            return 0.0
        for _ in range(100):
            middle = (low + high) / 2
            above = self.predict(params, **{name: np.exp(middle)}, **others) > output
            low, high = (middle, high) if above else (low, middle)
        return float(np.exp((low + high) / 2))


def array_module(array: np.ndarray | jax.Array) -> Any:
    """jax.numpy for what is traced or on a device, numpy (and so float64) for the rest."""
    return jnp if isinstance(array, jax.Array) else np


def same_names(slug: str, kind: str, given: Mapping, wanted: tuple[str, ...]) -> None:
    """Raises `RequestError` unless `given` has exactly the `wanted` names."""
    for name in given:
        if name not in wanted:
            raise RequestError(f"{slug} has no {kind} {name!r}.{nearest(name, wanted)}")
    if missing := [name for name in wanted if name not in given]:
        raise RequestError(f"{slug} needs the {kind} {', '.join(missing)}")


class Term(NamedTuple):
    """One power of one input: (scale / input)^exponent when `ratio`, else scale / input^exponent.

    With `reciprocal` the power is 1 / exponent.
    """

    input: str
    scale: str
    exponent: str
    ratio: bool = True
    reciprocal: bool = False


# Exponents from 1/200 to 5, and any term from a thousandth of the output to three times it: a fit
# that rests on a bound has lost a term or an exponent and is not identified.
EXPONENT = (0.005, 5.0)
_POWER_OF_RECIPROCAL = (0.05, 50.0)
SHARE = (0.001, 3.0)


def sum_of_powers(
    slug: str,
    terms: tuple[Term, ...],
    formula: str,
    source: str,
    *,
    offset: str | None = None,
    order: tuple[str, ...] | None = None,
    powers: tuple[tuple[float, ...], ...],
    **rest,
) -> Law:
    """A law that is a sum of powers of its inputs, with or without a constant.

    `theta` is the log powers, then the logs of the terms at the centre, then that of the constant.
    It starts from every combination of `powers` (those of each term) with every way to share out
    the output: each term in turn has the larger part.
    """
    count = len(terms)
    names = tuple(
        [*(term.scale for term in terms), *(term.exponent for term in terms)]
        + ([offset] if offset else [])
    )
    order = names if order is None else order
    place = np.array([names.index(name) for name in order])
    back = np.array([order.index(name) for name in names])
    sign = np.array([-1.0 if term.reciprocal else 1.0 for term in terms])
    ratio = np.array([term.ratio for term in terms])

    def log_predict(theta: jax.Array, x: jax.Array, x0: Any, y0: Any) -> jax.Array:
        total = theta[count] - jnp.exp(theta[0]) * x[0]
        for k in range(1, count):
            total = jnp.logaddexp(total, theta[count + k] - jnp.exp(theta[k]) * x[k])
        return total if offset is None else jnp.logaddexp(total, theta[2 * count])

    def to_log_params(theta: Any, x0: Any, y0: Any) -> Any:
        xp = array_module(theta)
        power = xp.exp(theta[..., :count])
        size = theta[..., count : 2 * count] + y0
        scale = xp.where(ratio, x0 + size / power, size + power * x0)
        parts = [scale, sign * theta[..., :count], theta[..., 2 * count :] + y0]
        return xp.concatenate(parts, axis=-1)[..., place]

    def from_log_params(log_params: Any, x0: Any, y0: Any) -> Any:
        ordered = log_params[..., back]
        scale, exponent = ordered[..., :count], sign * ordered[..., count : 2 * count]
        xp = array_module(log_params)
        power = xp.exp(exponent)
        size = xp.where(ratio, power * (scale - x0), scale - power * x0) - y0
        return xp.concatenate([exponent, size, ordered[..., 2 * count :] - y0], axis=-1)

    shares = _shares(count + (offset is not None))
    grid = np.array(
        [
            np.concatenate([np.log(power), share])
            for power in itertools.product(*powers)
            for share in shares
        ]
    )
    bounds = [_POWER_OF_RECIPROCAL if term.reciprocal else EXPONENT for term in terms]
    bounds += [SHARE] * (grid.shape[1] - count)
    return Law(
        slug=slug,
        params=order,
        exponents=tuple(term.exponent for term in terms),
        inputs=tuple(term.input for term in terms),
        formula=formula,
        source=source,
        coordinates=(
            *(term.exponent for term in terms),
            *(term.scale for term in terms),
            *([offset] if offset else []),
        ),
        terms=(*(term.scale for term in terms), *([offset] if offset else [])),
        log_predict=log_predict,
        to_log_params=to_log_params,
        from_log_params=from_log_params,
        starts=grid,
        lower=np.log([low for low, _ in bounds]),
        upper=np.log([high for _, high in bounds]),
        offset=offset,
        **rest,
    )


def _shares(count: int) -> np.ndarray:
    """Logs of ways (count, count) to share 1 out: each part in turn is the larger one."""
    if count == 1:
        return np.zeros((1, 1))
    larger = 0.7
    smaller = (1 - larger) / (count - 1)
    return np.log(np.full((count, count), smaller) + (larger - smaller) * np.eye(count))
