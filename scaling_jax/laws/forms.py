"""Laws as small objects: a prediction in log space, and the way to and from its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from scaling_jax.errors import RequestError, nearest


def float64_cpu() -> AbstractContextManager:
    """The CPU as default device; use it together with `jax.enable_x64(True)`."""
    return jax.default_device(jax.local_devices(backend="cpu")[0])


@dataclass(frozen=True, eq=False)
class Law:
    """A named form of the loss.

    A law is solved in inner coordinates `theta`, all of them logarithms, with the log inputs
    and the log loss measured from a centre of the data: an exponent and the size of its term at
    the centre are nearly independent, where an exponent and its scale constant are not.

    `log_predict(theta, x)`: theta (P,), x (inputs, n) centred log inputs -> (n,) centred log loss.
    `to_log_params(theta, x_centre, y_centre)`: (P,) logs of `params`; `from_log_params` is its
    inverse. `starts` (K, P) are inner coordinates to start from, `lower` and `upper` (P,) bounds.
    """

    slug: str
    params: tuple[str, ...]
    exponents: tuple[str, ...]
    inputs: tuple[str, ...]
    formula: str
    source: str
    log_predict: Callable[[jax.Array, jax.Array], jax.Array]
    to_log_params: Callable[[np.ndarray, np.ndarray, float], np.ndarray]
    from_log_params: Callable[[np.ndarray, np.ndarray, float], np.ndarray]
    starts: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    def predict(self, params: Mapping[str, float], **inputs: ArrayLike) -> np.ndarray:
        """Loss in nats a token at `inputs` (broadcast together; `inf` gives the limit), float64.

        Raises `RequestError` for a missing or unknown parameter or input.
        """
        _same_names(self.slug, "parameter", params, self.params)
        _same_names(self.slug, "input", inputs, self.inputs)
        arrays = [np.asarray(inputs[name], dtype=np.float64) for name in self.inputs]
        arrays = np.broadcast_arrays(*arrays)
        x = np.log(np.stack([array.ravel() for array in arrays]))
        log_params = np.log(np.array([params[name] for name in self.params], dtype=np.float64))
        theta = self.from_log_params(log_params, np.zeros(len(self.inputs)), 0.0)
        with jax.enable_x64(True), float64_cpu():
            y = np.asarray(self.log_predict(jnp.asarray(theta), jnp.asarray(x)))
        return np.exp(y).reshape(arrays[0].shape)


def _same_names(slug: str, kind: str, given: Mapping, wanted: tuple[str, ...]) -> None:
    for name in given:
        if name not in wanted:
            raise RequestError(f"{slug} has no {kind} {name!r}.{nearest(name, wanted)}")
    if missing := [name for name in wanted if name not in given]:
        raise RequestError(f"{slug} needs the {kind} {', '.join(missing)}")


def _two_terms(theta: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.logaddexp(theta[2] - jnp.exp(theta[0]) * x[0], theta[3] - jnp.exp(theta[1]) * x[1])


def _two_terms_to_log_params(theta: np.ndarray, x0: np.ndarray, y0: float) -> np.ndarray:
    alpha = np.exp(theta[..., :2])
    return np.concatenate([x0 + (theta[..., 2:] + y0) / alpha, theta[..., :2]], axis=-1)


def _two_terms_from_log_params(log_params: np.ndarray, x0: np.ndarray, y0: float) -> np.ndarray:
    alpha = np.exp(log_params[..., 2:])
    return np.concatenate([log_params[..., 2:], alpha * (log_params[..., :2] - x0) - y0], axis=-1)


def _grid(*axes: tuple[float, ...]) -> np.ndarray:
    return np.log(np.stack([axis.ravel() for axis in np.meshgrid(*axes)], axis=-1))


def _l_ns_starts() -> np.ndarray:
    exponents = _grid((0.08, 0.3), (0.15, 0.6), (0.7, 0.3))
    share_s = np.log1p(-np.exp(exponents[:, 2:]))
    return np.concatenate([exponents, share_s], axis=1)


L_NS = Law(
    slug="l_ns",
    params=("N_c", "S_c", "alpha_N", "alpha_S"),
    exponents=("alpha_N", "alpha_S"),
    inputs=("N", "S"),
    formula="L(N, S) = (N_c / N)^alpha_N + (S_c / S)^alpha_S",
    source="Kaplan et al. 2020 (arXiv 2001.08361), eq. 1.6 and 5.6",
    log_predict=_two_terms,
    to_log_params=_two_terms_to_log_params,
    from_log_params=_two_terms_from_log_params,
    starts=_l_ns_starts(),
    # Exponents from 1/200 to 5, and either term from a thousandth of the loss to three times it:
    # a fit that rests on a bound has lost a term or an exponent and is not identified.
    lower=np.log([0.005, 0.005, 0.001, 0.001]),
    upper=np.log([5.0, 5.0, 3.0, 3.0]),
)

LAWS = {law.slug: law for law in (L_NS,)}


def find_law(slug: str) -> Law:
    """The law of that slug. Raises `RequestError` with the nearest known one."""
    if slug not in LAWS:
        raise RequestError(f"No law {slug!r}.{nearest(slug, LAWS)}")
    return LAWS[slug]


def critical_batch(loss: ArrayLike, B_star: float, alpha_B: float) -> np.ndarray:
    """B_crit(L) = B_star / L^(1/alpha_B) in tokens (Kaplan et al. 2020, eq. 5.3)."""
    return B_star * np.asarray(loss, dtype=np.float64) ** (-1.0 / alpha_B)


def minimum_steps(
    steps: ArrayLike, loss: ArrayLike, batch_tokens: ArrayLike, B_star: float, alpha_B: float
) -> np.ndarray:
    """S_min = S / (1 + B_crit(L) / B), with L the loss observed at S (Kaplan et al., eq. 5.4)."""
    batch = np.asarray(batch_tokens, dtype=np.float64)
    return np.asarray(steps, dtype=np.float64) / (
        1.0 + critical_batch(loss, B_star, alpha_B) / batch
    )
