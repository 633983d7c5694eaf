"""Checks of numbers from outside: parameters that are there, positive columns of one length."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from scaling_jax.errors import RequestError

Params = Mapping[str, ArrayLike]


def positive(name: str, value: ArrayLike) -> np.ndarray:
    """The value, of any shape, as float64. Raises `RequestError` unless positive and finite."""
    array = np.asarray(value, dtype=np.float64)
    if bad := _count_bad(array):
        which = (
            f"{name} = {array}" if array.ndim == 0 else f"{bad} of {array.size} values of {name}"
        )
        raise RequestError(f"{which} not positive and finite")
    return array


def require(params: Params, *names: str) -> None:
    """Raises `RequestError` with the parameters that are missing, if any."""
    if missing := [name for name in names if name not in params]:
        raise RequestError(f"Missing parameter: {', '.join(missing)}")


def values(params: Params, *names: str) -> tuple[np.ndarray, ...]:
    """Those parameters as float64. Raises `RequestError` if one is missing or not positive."""
    require(params, *names)
    return tuple(positive(name, params[name]) for name in names)


def columns(**given: ArrayLike) -> list[np.ndarray]:
    """The values as float64 columns (n,) of one length, in the order given; one number is repeated.

    Raises `RequestError` for other shapes than that of the first column, and for values that are
    not positive and finite.
    """
    arrays = {name: np.asarray(value, dtype=np.float64) for name, value in given.items()}
    first = next((name for name, array in arrays.items() if array.ndim), None)
    shape = (1,) if first is None else arrays[first].shape
    for name, array in arrays.items():
        if array.ndim > 1:
            raise RequestError(f"{name} has shape {array.shape}: one number a row is needed")
        if array.ndim and array.shape != shape:
            raise RequestError(f"{name} has shape {array.shape}, {first} {shape}")
        if bad := _count_bad(array):
            rows = "row" if bad == 1 else "rows"
            raise RequestError(f"{bad} {rows} of {name} not positive and finite")
    return [np.broadcast_to(array, shape) for array in arrays.values()]


def labels(name: str, value: ArrayLike, beside: np.ndarray) -> np.ndarray:
    """Labels (n,) as strings; `RequestError` unless there is one for each row of `beside`."""
    found = np.asarray(value).astype(str)
    if found.shape != beside.shape:
        raise RequestError(f"{name} has shape {found.shape}, not {beside.shape}")
    return found


def _count_bad(array: np.ndarray) -> int:
    return int(np.sum(~(np.isfinite(array) & (array > 0))))
