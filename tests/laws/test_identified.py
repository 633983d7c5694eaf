"""Designs that cannot tell two terms apart are refused with what to do about it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pytest

from scaling_jax.errors import WorkError
from scaling_jax.laws.fitting import Points, make_points
from scaling_jax.laws.forms import LAWS
from scaling_jax.laws.identified import require_independent

N = np.geomspace(1e6, 1e9, 10)
RNG = np.random.default_rng(0)


def design(N: np.ndarray, D: np.ndarray, slug: str = "l_nd_chinchilla") -> Points:
    return make_points(LAWS[slug], {"N": N, "D": D}, np.full(N.size, 3.0))


@pytest.mark.parametrize("slug", ["l_nd_chinchilla", "l_nd"])
@pytest.mark.parametrize("scatter", [0.0, 0.1])
def test_twenty_tokens_a_parameter_is_refused(slug: str, scatter: float) -> None:
    D = 20 * N * np.exp(scatter * RNG.uniform(-1, 1, size=N.size))
    with pytest.raises(WorkError, match=r"D goes as N\^1\.0.*D = 20 N") as refusal:
        require_independent(design(N, D, slug), ())
    assert "Train some sizes on more and on fewer tokens" in str(refusal.value)


def test_any_power_of_the_size_is_refused() -> None:
    with pytest.raises(WorkError, match=r"D goes as N\^0\.50"):
        require_independent(design(N, 1e6 * N**0.5), ())


@pytest.mark.parametrize(
    ("N", "D", "which"),
    [(np.full(10, 1e8), np.geomspace(1e8, 1e11, 10), "N"), (N, np.full(10, 1e10), "D")],
)
def test_one_value_of_an_input_is_refused(N: np.ndarray, D: np.ndarray, which: str) -> None:
    with pytest.raises(
        WorkError, match=f"l_nd_chinchilla needs 3 values of {which}, and the points have 1"
    ):
        require_independent(design(N, D), ())


def test_one_value_of_the_only_input_is_refused() -> None:
    points = make_points(LAWS["l_d"], {"D": np.full(10, 1e9)}, np.linspace(3.0, 3.1, 10))
    with pytest.raises(WorkError, match="l_d needs 2 values of D, and the points have 1"):
        require_independent(points, ())


@pytest.mark.parametrize(
    "D",
    [
        20 * N * np.where(np.arange(10) % 2, 4.0, 1.0),  # two multiples
        20 * N * np.exp(RNG.uniform(-1, 1, size=10)),
        np.geomspace(1e10, 1e10 * 4, 10)[RNG.permutation(10)],
    ],
    ids=["two multiples", "scattered", "apart from N"],
)
def test_a_spread_design_passes(D: np.ndarray) -> None:
    require_independent(design(N, D), ())


@pytest.mark.parametrize(
    ("fixed", "passes"),
    [
        (("A", "alpha"), True),
        (("B", "beta"), True),
        (("E", "A", "alpha"), True),
        (("beta",), False),
        (("E",), False),
        (("E", "beta"), False),
        (("E", "A"), False),
        (("A", "beta"), False),
    ],
)
def test_only_a_term_that_is_fixed_whole_needs_no_spread(
    fixed: Collection[str], passes: bool
) -> None:
    points = design(N, 20 * N)
    if passes:
        require_independent(points, fixed)
    else:
        with pytest.raises(WorkError, match="cannot be told apart"):
            require_independent(points, fixed)


def test_laws_of_one_input_have_nothing_to_tell_apart() -> None:
    require_independent(make_points(LAWS["l_n"], {"N": N}, np.full(10, 3.0)), ())
