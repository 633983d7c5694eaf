"""B_simple beside the critical batch of the same sweep."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from scaling_jax.laws.critical_batch import ladder
from scaling_jax.laws.noise_critical import noise_against_critical

BATCHES = 128 * 2.0 ** np.arange(8)
LEVELS = (5.0, 4.5, 4.0)


def b_crit(loss):
    return 1e6 / loss**5


def sweep(rng=None, noise=0.0):
    rows = []
    for loss in LEVELS:
        for batch in BATCHES:
            steps = 300 * (5 / loss) ** 4 * (1 + b_crit(loss) / batch)
            steps *= np.exp(noise * rng.standard_normal()) if rng else 1.0
            rows.append({"batch": batch, "loss": loss, "steps": steps})
    return ladder(pl.DataFrame(rows))


def noise_of(rng, ratio, exponent=0.0, of_run=0.0, batches=BATCHES, losses=(5.5, 4.75, 4.25, 3.8)):
    """B_simple = ratio B_crit(L) (B / B_crit(L))^exponent at a few losses of every run."""
    rows = []
    for i, batch in enumerate(batches):
        luck = np.exp(of_run * rng.standard_normal())
        for step, loss in enumerate(losses, 1):
            scale = luck * ratio * b_crit(loss) * (batch / b_crit(loss)) ** exponent
            rows.append(
                {"run_id": str(i), "params_non_embedding": 1000, "loss": loss,
                 "step_start": 10 * step - 10, "step": 10 * step,
                 "batch_tokens": int(batch), "b_simple": scale, "b_simple_low": scale / 1.2,
                 "b_simple_high": scale * 1.2, "undetermined": False}
            )  # fmt: skip
    return pl.DataFrame(rows)


def runs_of(frame):
    return pl.DataFrame({"run_id": frame["run_id"].unique(maintain_order=True)})


def test_the_ratio_at_every_level():
    frame = noise_of(np.random.default_rng(0), 2.5)
    found = noise_against_critical(frame, sweep(), runs_of(frame))
    assert [rung.loss for rung in found] == list(LEVELS)
    for rung in found:
        assert rung.ratio.value == pytest.approx(2.5, rel=0.01)  # straight lines between points
        assert rung.b_simple.value == pytest.approx(2.5 * b_crit(rung.loss), rel=0.01)
        assert rung.n_runs == len(BATCHES)
        assert rung.b_mean.value is not None and rung.b_simple.value is not None
        assert rung.b_mean.value < rung.b_simple.value  # it rises along the way


def test_the_mean_over_the_way_counts_progress():
    """A run that goes half of its progress at each of two noise scales, far below its batch."""
    frame = noise_of(np.random.default_rng(0), 1.0, losses=(9.0, 5.0, 3.8))
    flat = frame.with_columns(
        pl.lit(700.0).alias(name) for name in ("b_simple", "b_simple_low", "b_simple_high")
    )
    for rung in noise_against_critical(flat, sweep(), runs_of(flat)):
        assert rung.b_mean.value == pytest.approx(700.0)
        assert rung.mean_ratio.value == pytest.approx(700 / b_crit(rung.loss), rel=0.01)


def test_it_is_read_off_at_the_critical_batch():
    """A noise scale that rises with the batch of the run is not averaged over the sweep."""
    frame = noise_of(np.random.default_rng(0), 2.5, exponent=0.4)
    for rung in noise_against_critical(frame, sweep(), runs_of(frame)):
        assert rung.exponent == pytest.approx(0.4, abs=0.01)
        assert rung.ratio.value == pytest.approx(2.5, rel=0.02)


def test_the_interval_of_the_ratio_holds_both_errors():
    rng = np.random.default_rng(1)
    hits, widths = [], []
    for _ in range(60):
        frame = noise_of(rng, 2.5, of_run=0.2)
        for rung in noise_against_critical(frame, sweep(rng, 0.03), runs_of(frame)):
            _, _, low, high = rung.ratio
            assert low is not None and high is not None
            hits.append(low <= 2.5 <= high)
            widths.append(np.log(high / low) / 2)
            assert np.log(high / low) > np.log((rung.b_simple.high or 0) / (rung.b_simple.low or 1))
    assert 0.82 < np.mean(hits) < 0.99
    assert np.median(widths) < np.log(1.5)


def test_a_level_without_enough_runs_says_so():
    frame = noise_of(np.random.default_rng(2), 2.5, batches=BATCHES[:3])
    for rung in noise_against_critical(frame, sweep(), runs_of(frame)):
        assert rung.ratio.value is None and "3 runs at 3 batch sizes" in rung.reason
    other = noise_against_critical(frame, sweep(), runs_of(frame), [2000.0] * len(LEVELS))
    assert {rung.n_runs for rung in other} == {0} and other[0].N == 2000.0
