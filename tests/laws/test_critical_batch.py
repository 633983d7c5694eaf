"""B_crit(L) against known laws, the published law of Zhang et al., and where it must refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws import critical_batch as sweeps
from scaling_jax.laws.critical_batch import describe_ladder, fastest, power_line
from scaling_jax.laws.forms import critical_batch
from scaling_jax.laws.hyperbola import fit_hyperbola

STAR, ALPHA = 2e7, 0.21
LEVELS = np.linspace(3.4, 6.0, 8)
ZHANG = Path(__file__).parents[2].parent / "shared" / "data" / "zhang_cbs_steps_to_target.csv"


def ladder(*columns: Any, **options: Any) -> Any:
    """Without its type: a test takes the law to be there, and fails where it is not."""
    return sweeps.ladder(*columns, **options)


def fit_b_crit(*columns: Any, **options: Any) -> Any:
    return sweeps.fit_b_crit(*columns, **options)


def sweep(run_noise: float, noise: float, seed: int = 0, sizes: int = 8) -> pl.DataFrame:
    """Steps to each level for each batch size; a run's own error is the same at all its levels."""
    rng = np.random.default_rng(seed)
    batch = 1e3 * 2.0 ** np.arange(sizes)
    of_run = run_noise * rng.normal(size=sizes)
    parts = []
    for loss in LEVELS:
        steps = 500 * (6 / loss) ** 4 * (1 + critical_batch(loss, STAR, ALPHA) / batch)
        steps = steps * np.exp(of_run + noise * rng.normal(size=sizes))
        parts.append(pl.DataFrame({"batch": batch, "loss": loss, "steps": steps}))
    return pl.concat(parts)


@pytest.mark.parametrize(
    ("noise", "alpha_spread", "star_spread"), [(0.02, 0.004, 0.03), (0.2, 0.04, 0.31)]
)
def test_fifteen_losses_give_the_law_within_the_known_spread(
    noise: float, alpha_spread: float, star_spread: float
) -> None:
    rng = np.random.default_rng(2)
    loss = np.linspace(3, 7, 15)
    alpha, star = [], []
    for _ in range(30):
        batch = critical_batch(loss, 2e8, 0.21) * np.exp(noise * rng.normal(size=15))
        found = fit_b_crit(loss, batch)
        alpha.append(np.log(found.alpha_B.value / 0.21))
        star.append(np.log(found.B_star.value / 2e8))
    for errors, spread in ((alpha, alpha_spread), (star, star_spread)):
        assert np.max(np.abs(errors)) < 3.5 * spread
        assert np.std(errors) == pytest.approx(spread, rel=0.3)


def test_a_law_without_noise_is_exact() -> None:
    found = ladder(sweep(0.0, 0.0))
    assert found.law.B_star.value == pytest.approx(STAR, rel=1e-7)
    assert found.law.alpha_B.value == pytest.approx(ALPHA, rel=1e-8)
    assert [rung.loss for rung in found.rungs] == sorted(LEVELS, reverse=True)
    for loss, hyperbola in found.rungs:
        expected = critical_batch(loss, STAR, ALPHA)
        assert hyperbola.critical().value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("run_noise", "noise"), [(0.06, 0.0), (0.0, 0.05)])
def test_intervals_hold_the_truth_whether_noise_is_of_runs_or_of_points(
    run_noise: float, noise: float
) -> None:
    hits, chi2 = np.zeros(2), []
    for seed in range(40):
        law = ladder(sweep(run_noise, noise, seed)).law
        hits += [
            law.alpha_B.low < ALPHA < law.alpha_B.high,
            law.B_star.low < STAR < law.B_star.high,
        ]
        chi2.append(law.chi2 / law.df)
    assert np.all(hits / 40 > 0.75)
    # Errors shared by all levels leave no scatter about the law, independent ones all of it.
    assert np.mean(chi2) < 0.05 if noise == 0.0 else 0.7 < np.mean(chi2) < 1.4


def test_levels_taken_as_independent_would_claim_too_much() -> None:
    hits = 0
    for seed in range(30):
        found = ladder(sweep(0.06, 0.0, seed))
        batch = [rung.hyperbola.critical().value for rung in found.rungs]
        law = fit_b_crit([rung.loss for rung in found.rungs], batch)
        hits += law.alpha_B.low < ALPHA < law.alpha_B.high
    assert hits / 30 < 0.5


def test_both_definitions_are_available_and_printed() -> None:
    table = sweep(0.01, 0.01)
    ratio, rule = ladder(table), ladder(table, "zhang")
    assert rule.law.B_star.value == pytest.approx(0.2 * ratio.law.B_star.value, rel=1e-6)
    assert rule.law.alpha_B.value == pytest.approx(ratio.law.alpha_B.value, rel=1e-6)
    text = describe_ladder(ratio)
    assert max(map(len, text.splitlines())) < 110
    for part in ("E_min/S_min", "20 % rule", "kaplan: B_crit", "jackknife over 8 batch sizes"):
        assert part in text
    offset = ladder(table, "zhang", reference_batch=4000.0)
    assert offset.law.bent and not ratio.law.bent
    assert "no power law of the loss" in describe_ladder(offset)
    with pytest.raises(RequestError, match="Did you mean 'kaplan'"):
        ladder(table, "kaplen")


def test_one_sided_levels_are_left_out_and_told() -> None:
    table = sweep(0.01, 0.01, sizes=5)
    found = ladder(table)
    out = {row["loss"] for row in found.excluded if row["rule"] == "one_sided"}
    beyond = critical_batch(LEVELS, STAR, ALPHA) > 1.1 * table["batch"].to_numpy().max()
    assert out >= set(LEVELS[beyond]) and len(out) < len(LEVELS)
    assert found.law.n_levels == len(LEVELS) - len(out)
    assert found.law.alpha_B.low < ALPHA < found.law.alpha_B.high
    small = ladder(table.filter(pl.col("batch") < 5000))
    assert small.law is None and "0 of 8 loss levels identify B_crit" in small.reason
    assert "No B_crit(L)" in describe_ladder(small) and "one" in describe_ladder(small)


def test_levels_that_few_batch_sizes_reach_are_left_out() -> None:
    table = sweep(0.01, 0.01).with_columns(
        steps=pl.when((pl.col("loss") < 3.5) & (pl.col("batch") > 2000))
        .then(None)
        .otherwise("steps")
    )
    found = ladder(table)
    assert [row["rule"] for row in found.excluded] == ["few_batch_sizes"]
    assert len(found.rungs) == len(LEVELS) - 1
    with pytest.raises(WorkError, match="No loss level was reached"):
        ladder(table.filter(pl.col("batch") < 3000))
    with pytest.raises(RequestError, match="No column 'batch'"):
        ladder(table.rename({"batch": "batch_tokens"}))


def test_a_critical_batch_that_falls_with_the_loss_is_refused() -> None:
    with pytest.raises(WorkError, match="does not rise as the loss falls"):
        fit_b_crit([3.0, 4.0, 5.0], [100.0, 200.0, 300.0])


def test_an_exponent_that_may_be_nothing_has_an_open_end() -> None:
    found = fit_b_crit([3.0, 4.0, 5.0], [100.0, 300.0, 90.0])
    assert found.alpha_B.high is None and found.alpha_B.low > 0


def test_standard_errors_weigh_and_too_small_ones_are_scaled_up() -> None:
    x, y = np.array([1.0, 2.0, 4.0, 8.0]), np.array([1.0, 2.0, 4.0, 80.0])
    trusted = power_line(x, y, se_log=[0.01, 0.01, 0.01, 10.0])
    assert trusted.exponent == pytest.approx(1.0, abs=1e-3)
    assert trusted.chi2 is not None and trusted.chi2 < 1
    tight, free = power_line(x, y, se_log=[0.01] * 4), power_line(x, y)
    assert tight.chi2 is not None and tight.chi2 > 1000 and free.chi2 is None
    np.testing.assert_allclose(tight.covariance, free.covariance, rtol=1e-9)
    with pytest.raises(WorkError, match="too short a range"):
        power_line([3.0, 3.001, 3.002], [1.0, 2.0, 5.0])
    with pytest.raises(WorkError, match="2 points"):
        power_line(x[:2], y[:2])


def test_the_fastest_rate_is_taken_and_an_edge_is_told() -> None:
    table = pl.DataFrame(
        {
            "batch": [8] * 6 + [16] * 4,
            "loss": 4.0,
            "lr": [0.1, 0.2, 0.2, 0.4, 0.4, 0.4, 0.1, 0.2, 0.4, 0.4],
            "steps": [90.0, 50.0, 60.0, 40.0, 45.0, None, 70.0, 60.0, 55.0, 50.0],
        }
    )
    best = fastest(table).sort("batch", "steps")
    assert best["steps"].to_list() == [50.0, 60.0, 50.0, 55.0]
    assert best["at_edge"].to_list() == [False, False, True, True]


def test_what_else_was_tuned_is_chosen_with_the_rate() -> None:
    table = pl.DataFrame(
        {
            "batch": 8,
            "loss": 4.0,
            "lr": [0.1, 0.2, 0.4] * 2,
            "setting": ["0.9"] * 3 + ["0.99"] * 3,
            "steps": [60.0, 70.0, 80.0, 90.0, 50.0, 95.0],
        }
    )
    best = fastest(table)
    assert best.select("lr", "setting", "steps", "at_edge").rows() == [(0.2, "0.99", 50.0, False)]
    assert fastest(table.drop("setting"))["steps"].to_list() == [70.0, 50.0]


def test_seeds_are_one_point_a_batch() -> None:
    one = sweep(0.0, 0.0)
    slow = (1.0, 1.1, 1.3)  # a seed is as slow at every batch size
    seeds = pl.concat(one.with_columns(steps=pl.col("steps") * each) for each in slow)
    found, mean = ladder(seeds), float(np.prod(slow)) ** (1 / 3)
    for rung, alone in zip(found.rungs, ladder(one).rungs, strict=True):
        assert rung.hyperbola.batch.size == alone.hyperbola.batch.size
        assert rung.hyperbola.rms_log_residual < 1e-9
        assert rung.hyperbola.B_crit.value == pytest.approx(alone.hyperbola.B_crit.value)
        assert rung.hyperbola.S_min.value == pytest.approx(mean * alone.hyperbola.S_min.value)


@pytest.mark.skipif(not ZHANG.exists(), reason="the tables of other authors are not here")
def test_zhang_et_al_against_size_and_loss() -> None:
    size, rule, ratio, loss = [], [], [], []
    for _, rows in pl.read_csv(ZHANG).group_by("model", maintain_order=True):
        found = fit_hyperbola(rows["batch_tokens"] / 512, rows["steps_to_target"])
        size.append(rows["params_non_embedding_label"][0] / 1e6)
        loss.append(rows["target_c4_val_loss"][0])
        rule.append(found.critical("zhang", 256).value)
        ratio.append(found.critical())
    law = power_line(size, rule)
    assert (round(law.coefficient, 2), round(law.exponent, 4)) == (93.2, 0.4683)
    law = power_line(size, [each.value for each in ratio])
    assert (round(law.coefficient), round(law.exponent, 3)) == (146, 0.619)
    law = fit_b_crit(loss, [512 * each.value for each in ratio])
    assert round(law.alpha_B.value, 3) == 0.133
    assert law.B_star.value == pytest.approx(1.17e10, rel=0.005)
