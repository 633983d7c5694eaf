"""L = E + A / N^alpha + B / D^beta by variable projection: a search in two dimensions, not five."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from scaling_jax.errors import WorkError, counted
from scaling_jax.laws.arrays import columns

MIN_SPREAD = 0.1  # sd of ln D at equal N: below it D follows N, and alpha and beta are one
EXPONENTS = (0.02, 3.0)  # where alpha and beta are looked for
LEAST_MOVE = 1e-4  # change of a term over the points, relative to the loss, for it to be there
_GRID = 16
_AT_BOUND = 1e-3  # in ln alpha and ln beta


def variable_projection(
    N: ArrayLike, D: ArrayLike, loss: ArrayLike, start: Mapping[str, float] | None = None
) -> dict[str, float]:
    """{E, A, B, alpha, beta} with the least sum of squares of relative residuals of the loss.

    N parameters, D tokens, `loss` nats a token, (n,). At given alpha and beta the form is linear
    in E, A and B, which non-negative least squares then gives, and only alpha and beta are
    searched: from a grid, or from `start` {alpha, beta} alone. E = 0 is an answer.

    Raises `RequestError` for values that are not positive and finite; `WorkError` where the points
    do not fix the form: fewer than six, D following N, a term that vanishes, an exponent at the
    end of its range (Chinchilla's approach 3b; arXiv 2603.22339).
    """
    N, D, loss = columns(N=N, D=D, loss=loss)
    _require_design(np.log(N), np.log(D))
    centre = np.log(N).mean(), np.log(D).mean()
    n, d, weight = np.log(N) - centre[0], np.log(D) - centre[1], 1 / loss

    def terms(theta: np.ndarray) -> tuple[np.ndarray, float]:
        alpha, beta = np.exp(theta)
        basis = np.stack([weight, weight * np.exp(-alpha * n), weight * np.exp(-beta * d)], axis=1)
        return optimize.nnls(basis, np.ones(n.size))

    def objective(theta: np.ndarray) -> float:
        return terms(theta)[1] ** 2

    low, high = np.log(EXPONENTS)
    if start is None:
        axis = np.linspace(low, high, _GRID)
        grid = np.stack([g.ravel() for g in np.meshgrid(axis, axis)], axis=1)
        first = grid[np.argmin([objective(theta) for theta in grid])]
    else:
        first = np.log([start["alpha"], start["beta"]])
    # A simplex as wide as the grid is coarse, narrow where the search begins at an answer.
    width = (high - low) / (_GRID - 1) if start is None else 0.05
    corners = first + width * np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    # A resample needs no more digits than its own error has.
    xatol, fatol = (1e-7, 1e-16) if start is None else (1e-4, 1e-7 * objective(first))
    options = {"initial_simplex": corners, "xatol": xatol, "fatol": fatol, "maxiter": 400}
    theta = optimize.minimize(
        objective, first, method="Nelder-Mead", bounds=[(low, high)] * 2, options=options
    ).x
    E, a, b = terms(theta)[0]
    alpha, beta = np.exp(theta)
    found = {
        "E": float(E),
        "A": float(a * np.exp(alpha * centre[0])),
        "B": float(b * np.exp(beta * centre[1])),
        "alpha": float(alpha),
        "beta": float(beta),
    }
    moves = min(a * np.ptp(np.exp(-alpha * n)), b * np.ptp(np.exp(-beta * d)))
    at_end = np.any((theta - low < _AT_BOUND) | (high - theta < _AT_BOUND))
    if moves < LEAST_MOVE * loss.mean() or at_end:
        values = ", ".join(f"{name} {value:.3g}" for name, value in found.items())
        why = "an exponent at the end of its range" if at_end else "a term that vanishes"
        raise WorkError(f"The points do not identify E + A/N^alpha + B/D^beta: {why} ({values})")
    return found


def _require_design(n: np.ndarray, d: np.ndarray) -> None:
    if n.size < 6:
        raise WorkError(
            f"{counted(n.size, 'point')} cannot fix the 5 parameters of E + A/N^alpha + B/D^beta"
        )
    if np.ptp(n) == 0:
        raise WorkError("All points have one N: alpha is not measured")
    spread = np.std(d - np.polyval(np.polyfit(n - n.mean(), d, 1), n - n.mean()))
    if spread < MIN_SPREAD:
        raise WorkError(
            f"D follows N (ln D varies by {spread:.2g} at equal N, {MIN_SPREAD} needed): A/N^alpha "
            "and B/D^beta cannot be told apart. Train some sizes on other amounts of data"
        )
