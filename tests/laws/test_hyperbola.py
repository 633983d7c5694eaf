"""Pareto hyperbolas against a known front, brute force, the table of Zhang et al., and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import optimize

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws import hyperbola

BATCH = 4 * 2.0 ** np.arange(11)
ZHANG = Path(__file__).parents[2].parent / "shared" / "data" / "zhang_cbs_steps_to_target.csv"
TRUTH = {"S_min": 500.0, "E_min": 64_000.0, "B_crit": 128.0}


def fit_hyperbola(*columns: Any, **options: Any) -> Any:
    """Without its type: a test takes the values to be there, and fails where one is not."""
    return hyperbola.fit_hyperbola(*columns, **options)


def minimum(*problem: Any, **options: Any) -> Any:
    return optimize.minimize_scalar(*problem, **options)


def steps(batch: np.ndarray, noise: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 500 * (1 + 128 / batch) * np.exp(noise * rng.normal(size=batch.size))


def test_the_front_is_recovered_and_both_arms_are_seen() -> None:
    for seed in range(5):
        found = fit_hyperbola(BATCH, steps(BATCH, 0.03, seed))
        for name, value in TRUTH.items():
            assert getattr(found, name).value == pytest.approx(value, rel=0.05)
        assert found.identified and found.both_arms and not found.reason
    exact = fit_hyperbola(BATCH, steps(BATCH, 0.0))
    for name, value in TRUTH.items():
        assert getattr(exact, name)[::2] == pytest.approx((value, value), rel=1e-10)


def test_brute_force_finds_no_better_front_and_the_same_profile_bounds() -> None:
    S = steps(BATCH, 0.05, 3)
    weights = np.linspace(0.5, 2.0, 11)
    found = fit_hyperbola(BATCH, S, weights)

    def rss(p: np.ndarray) -> float:
        return float(weights @ (np.log(S) - np.logaddexp(p[0], p[1] - np.log(BATCH))) ** 2)

    best: Any = optimize.minimize(rss, [6.0, 11.0], method="Nelder-Mead",
                             options={"xatol": 1e-10, "fatol": 1e-15})  # fmt: skip
    values = [found.S_min.value, found.E_min.value]
    np.testing.assert_allclose(values, np.exp(best.x), rtol=1e-6)
    quantile = 1.8331129  # t of 9 degrees, both tails 10 %
    limit = best.fun * (1 + quantile**2 / 9)
    for index, estimate in enumerate((found.S_min, found.E_min)):
        for end in (estimate.low, estimate.high):
            fixed = np.log(end)
            other = minimum(lambda at, fixed=fixed, index=index: rss(np.roll([fixed, at], index)))
            assert other.fun == pytest.approx(limit, rel=1e-5)
    for end in (found.B_crit.low, found.B_crit.high):
        along = minimum(lambda p, end=end: rss(np.array([p, p + np.log(end)])))
        assert along.fun == pytest.approx(limit, rel=1e-5)


def test_intervals_cover_as_often_as_they_say() -> None:
    hits = dict.fromkeys(TRUTH, 0)
    batch = BATCH[1:8]
    for seed in range(250):
        found = fit_hyperbola(batch, steps(batch, 0.1, seed))
        for name, value in TRUTH.items():
            _, _, low, high = getattr(found, name)
            hits[name] += (low or 0.0) <= value <= (high or np.inf)
    for name, hit in hits.items():
        assert 0.85 < hit / 250 < 0.95, name


def test_a_sweep_of_small_batches_bounds_b_crit_from_below() -> None:
    for noise in (0.0, 0.03):
        found = fit_hyperbola(BATCH[:5], steps(BATCH[:5], noise, 1))
        assert not found.identified and not found.both_arms
        assert "larger batches" in found.reason and "smaller batches" not in found.reason
        assert found.B_crit.value is None and found.B_crit.high is None
        assert found.B_crit.low < 128 * (1 + 1e-9) and found.S_min.low is None
        assert found.E_min.value == pytest.approx(64_000, rel=0.05)
        with pytest.raises(WorkError, match=r"No critical batch size: .*larger batches"):
            found.critical()


def test_a_sweep_of_large_batches_bounds_b_crit_from_above() -> None:
    found = fit_hyperbola(BATCH[6:], steps(BATCH[6:], 0.03, 1))
    assert not found.identified
    assert "smaller batches" in found.reason and "larger batches" not in found.reason
    assert found.B_crit.value is None and found.B_crit.low is None
    assert found.B_crit.high > 128 and found.E_min.low is None and found.E_min.value is None
    assert found.S_min.value == pytest.approx(500, rel=0.05)
    with pytest.raises(WorkError, match="smaller batches"):
        found.critical("zhang", 16.0)


def test_a_sweep_that_says_nothing_claims_nothing() -> None:
    found = fit_hyperbola([100.0, 110.0, 120.0], [50.0, 40.0, 48.0])
    assert "larger batches" in found.reason and "smaller batches" in found.reason
    assert found.B_crit == (None, None, None, None)


def test_batch_sizes_at_the_edge_of_the_learning_rates_are_left_out() -> None:
    S = steps(BATCH, 0.0)
    S[-1] *= 3
    edge = BATCH > 4000
    found = fit_hyperbola(BATCH, S, at_edge=edge)
    assert found.B_crit.value == pytest.approx(128, rel=1e-9)
    assert [(row["rule"], row["batch"]) for row in found.excluded] == [("learning_rate_edge", 4096)]
    with pytest.raises(WorkError, match=r"2 batch sizes \(9 left out\)"):
        fit_hyperbola(BATCH, S, at_edge=BATCH > 8)


def test_the_twenty_percent_rule_is_the_largest_batch_within_it() -> None:
    found = fit_hyperbola(BATCH, steps(BATCH, 0.01))
    batch = found.critical("zhang", 16.0).value

    def at(B: float) -> float:
        return found.S_min.value * (1 + found.B_crit.value / B)

    assert at(batch) == pytest.approx(1.2 * at(16.0) * 16.0 / batch, rel=1e-9)
    of_the_minimum = found.critical("zhang")
    assert of_the_minimum.value == pytest.approx(0.2 * found.B_crit.value)
    assert of_the_minimum.se_log == pytest.approx(found.B_crit.se_log)
    with pytest.raises(RequestError, match="Did you mean 'zhang'"):
        found.critical("zhan")
    with pytest.raises(RequestError, match="reference batch of -1"):
        found.critical("zhang", -1.0)


def test_bad_numbers_are_told() -> None:
    with pytest.raises(RequestError, match="1 row of steps not positive and finite"):
        fit_hyperbola([1.0, 2.0, 4.0], [4.0, np.nan, 2.0])
    with pytest.raises(RequestError, match="steps has shape"):
        fit_hyperbola([1.0, 2.0, 4.0], [4.0, 2.0])
    with pytest.raises(WorkError, match="2 batch sizes cannot fix"):
        fit_hyperbola([1.0, 2.0, 2.0, 1.0], [4.0, 3.0, 3.1, 4.1])


def zhang() -> dict[str, Any]:
    table = pl.read_csv(ZHANG)
    return {
        str(model): fit_hyperbola(rows["batch_seqs"], rows["steps_to_target"])
        for (model,), rows in table.group_by("model", maintain_order=True)
    }


@pytest.mark.skipif(not ZHANG.exists(), reason="the tables of other authors are not here")
def test_zhang_et_al_to_every_printed_digit() -> None:
    found = zhang()
    small = found["85M"]
    assert round(small.S_min.value, 2) == 1293.83
    assert round(small.E_min.value) == 2_834_258
    rule = [each.critical("zhang", 256).value for each in found.values()]
    np.testing.assert_allclose(rule, [745.3, 955.2, 1393.7, 1888.5, 2533.4], rtol=1e-4)
    ratio = [each.critical().value for each in found.values()]
    np.testing.assert_allclose(ratio, [2191, 3240, 5433, 7907, 11131], rtol=2e-4)
    assert all(0.055 < each.B_crit.se_log < 0.075 for each in found.values())
    assert [each.both_arms for each in found.values()] == [True] * 4 + [False]
