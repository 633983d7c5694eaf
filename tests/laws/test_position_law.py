"""a + b T^-c through means of bins: what is recovered, how surely, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.position_law import PositionLaw, fit_positions

A, B, C = 1.4, 3.0, 0.6
T = np.arange(1, 257)
TOKENS = np.full(T.size, 1024)


def form(position: np.ndarray) -> np.ndarray:
    return A + B * position.astype(float) ** -C


def test_exact_losses_give_their_own_numbers_and_the_first_position_counts_for_nothing() -> None:
    loss = form(T)
    loss[0] = 9.0
    law = fit_positions(T, T, loss, TOKENS)
    assert law.identified and law.reason == "" and law.n_points == 255
    assert [each.value for each in (law.a, law.b, law.c)] == pytest.approx([A, B, C], rel=1e-6)
    assert law.c.low == pytest.approx(C, rel=1e-4) and law.c.high == pytest.approx(C, rel=1e-4)
    np.testing.assert_allclose(law.predict(T[1:]), loss[1:], rtol=1e-6)


def test_a_long_bin_is_the_mean_over_its_positions() -> None:
    """Placed at their geometric middles, the same bins miss c by 2 per cent."""
    start = np.array([1, 2, 3, 5, 9, 17, 33, 65, 129])
    end = np.array([*(start[1:] - 1), 256])
    loss = np.array([form(np.arange(i, j + 1)).mean() for i, j in zip(start, end, strict=True)])
    order = np.random.default_rng(0).permutation(start.size)
    law = fit_positions(start[order], end[order], loss[order], (end - start + 1)[order])
    assert law.c.value == pytest.approx(C, rel=1e-6) and law.a.value == pytest.approx(A, rel=1e-6)
    middle = np.sqrt(start * end).round()
    placed = fit_positions(middle, middle, loss, end - start + 1)
    assert placed.c.value is not None and abs(placed.c.value - C) > 0.01


def coverage(rho: float, repeats: int = 60) -> tuple[float, list[PositionLaw]]:
    rng, hits, laws = np.random.default_rng(1), 0, []
    for _ in range(repeats):
        noise = rng.normal(size=T.size)
        for i in range(1, T.size):
            noise[i] = rho * noise[i - 1] + np.sqrt(1 - rho**2) * noise[i]
        law = fit_positions(T, T, form(T) + 0.06 * noise, TOKENS)
        laws.append(law)
        low, high = law.c.low or np.inf, law.c.high or -np.inf
        hits += low < C < high
    return hits / repeats, laws


def test_intervals_hold_the_truth_as_often_as_they_say_also_where_neighbours_go_together() -> None:
    share, independent = coverage(rho=0.0)
    assert 0.8 <= share <= 0.99
    assert np.mean([law.inflation for law in independent]) < 1.1
    assert not any(law.flags for law in independent)
    share, together = coverage(rho=0.4)
    assert share >= 0.8
    assert np.mean([law.inflation for law in together]) > 1.5


def test_more_tokens_weigh_more() -> None:
    """The second half is of another law, with a thousandth of the tokens."""
    loss = np.where(T <= 128, form(T), 9.0)
    law = fit_positions(T, T, loss, np.where(T <= 128, 1e6, 1e-3))
    assert law.c.value == pytest.approx(C, rel=1e-3)


def test_losses_that_bend_away_from_the_form_are_flagged() -> None:
    law = fit_positions(T, T, form(T) + 0.05 * np.sin(np.log(T) * 3), TOKENS)
    assert law.flags and "one side of the form" in law.flags[0]


NOISE = np.random.default_rng(0).normal(size=T.size)


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (3.0 + 0.05 * NOISE, "show no fall along the context"),
        (np.full(T.size, 3.0), "show no fall along the context"),
        (3.0 - 0.5 * T**-0.5 + 0.001 * NOISE, "does not fall"),
        (4.0 - 0.3 * np.log(T) + 0.002 * NOISE, "cannot be told from a logarithm"),
        (2.0 + 1.0 * (T <= 2) + 0.01 * NOISE, "at the first positions"),
    ],
    ids=["scatter", "constant", "rise", "logarithm", "step"],
)
def test_what_the_positions_do_not_fix_is_refused(loss: np.ndarray, says: str) -> None:
    law = fit_positions(T, T, loss, TOKENS)
    assert not law.identified and says in law.reason
    assert law.a.value is law.b.value is law.c.value is None
    with pytest.raises(WorkError, match="No L"):
        law.predict(2)


def test_a_logarithm_has_at_most_an_upper_end() -> None:
    law = fit_positions(T, T, 4.0 - 0.3 * np.log(T) + 0.002 * NOISE, TOKENS)
    assert law.c.low is None and law.c.high is not None and 0 < law.c.high < 0.2


def test_a_floor_below_zero_is_none() -> None:
    law = fit_positions(T, T, 5.0 * T**-0.1 - 1.0, TOKENS)
    assert "below zero" in law.reason and law.c.low is not None


def test_bins_that_are_none() -> None:
    with pytest.raises(WorkError, match="7 bins from position 2 on"):
        fit_positions(T[:8], T[:8], form(T[:8]), TOKENS[:8])
    with pytest.raises(RequestError, match="whole position_start"):
        fit_positions(T + 1, T, form(T), TOKENS)
    with pytest.raises(RequestError, match="whole position_start"):
        fit_positions(T + 0.5, T + 0.5, form(T), TOKENS)
    with pytest.raises(RequestError, match="1 row of loss not positive and finite"):
        fit_positions(T, T, np.where(T == 9, np.nan, form(T)), TOKENS)
