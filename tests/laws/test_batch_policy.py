"""Gains of batch policies: known ones recovered, intervals that cover, and what is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from scaling_jax import laws
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.batch_policy import compare, measure_policy_gain
from scaling_jax.records.store import Records

SIZES = (50, 200, 800, 3200)
SEEDS = (0, 1, 2, 3, 4)
POLICY = "noise_scale B_simple every 100 steps up to 4096 sequences"


def critical(s: float) -> float:
    """McCandlish's example of appendix D: B_crit against progress s, in tokens."""
    return 10 * math.sqrt(s)


def curve(batch: Callable[[float], float], speed: float = 1.0) -> list[dict[str, Any]]:
    """Windows of a run whose updates each make 1 / (1 + B_crit / B) of progress (eq. D.2)."""
    s, step, tokens, rows = 0.0, 0, 0.0, [{"step": 0, "tokens": 0, "val_loss": 6.0}]
    marks = {int(mark) for mark in np.geomspace(1, 1e5, 400)}
    while s < 2500:
        now = batch(max(s, 1.0))
        s += speed / (1 + critical(s) / now)
        step, tokens = step + 1, tokens + now
        if step in marks:
            loss = 6 * (1 + s / 100) ** -0.2
            rows.append(
                {"step": step, "tokens": round(tokens), "val_loss": loss, "batch_tokens": now}
            )
    return rows


def constantly(size: int) -> Callable[[float], float]:
    return lambda _: size


@pytest.fixture(scope="module")
def study() -> Records:
    """Fixed batches and a policy of B = sqrt(r B_crit), seeds of other speeds."""
    runs, curves = [], []
    for seed in SEEDS:
        speed = 1 + 0.1 * seed
        batches = {f"{size}": (constantly(size), "fixed") for size in SIZES}
        batches["policy"] = (lambda s: math.sqrt(400 * critical(s)), POLICY)
        for name, (batch, policy) in batches.items():
            run_id = f"{name}-{seed}"
            runs.append(
                {"run_id": run_id, "name": run_id, "seed": seed, "status": "done",
                 "batch_policy": policy, "warmup_steps": 2}
            )  # fmt: skip
            rows = curve(batch, speed)
            rows[0]["batch_tokens"] = rows[1]["batch_tokens"]
            curves += [{"run_id": run_id, **row} for row in rows]
    return Records(pl.DataFrame(runs), pl.DataFrame(curves), source="made")


def test_the_gain_of_following_b_crit_is_recovered(study: Records) -> None:
    (gain,) = measure_policy_gain(study)
    assert (gain.policy, gain.n_seeds, gain.level) == (POLICY, 5, 0.9)
    losses = [rung.loss for rung in gain.rungs]
    assert losses == sorted(losses, reverse=True)
    # At the highest loss B_crit is below the smallest batch.
    (left_out,) = gain.excluded
    assert left_out["loss"] > losses[0]
    assert "E_min is not identified" in left_out["reason"]
    for rung in gain.rungs:
        s = 100 * ((rung.loss / 6) ** -5 - 1)
        slower = math.sqrt(10 / 400) * s**0.25 / 1.25  # S / S_min - 1
        ratio = (1 + 0.96 / slower) / (1 + 1 / slower)
        assert rung.gamma.value == pytest.approx(24 / 25, abs=0.006)  # eq. D.7
        assert rung.tokens_ratio.value == pytest.approx(ratio, abs=0.005)
        assert rung.tokens_ratio.low < rung.tokens_ratio.value < rung.tokens_ratio.high
        assert rung.steps == pytest.approx((1 + slower) * s / 1.2, rel=0.02)


def test_a_fixed_batch_gains_nothing(study: Records) -> None:
    renamed = study.runs.with_columns(
        pl.when(pl.col("run_id").str.starts_with("200-")).then(pl.lit("ramp 1:200"))
        .otherwise("batch_policy").alias("batch_policy")
    )  # fmt: skip
    records = Records(renamed, study.curves, "made")
    followed, ramp = sorted(measure_policy_gain(records), key=lambda gain: gain.policy)
    assert (followed.policy, ramp.policy) == (POLICY, "ramp 1:200")
    for rung in ramp.rungs:
        assert rung.gamma.value == pytest.approx(1.0, abs=0.003)
        assert rung.tokens_ratio.value == pytest.approx(1.0, abs=0.003)


def test_tokens_are_read_off_windows_without_an_evaluation(study: Records) -> None:
    # One evaluation in eight, and all windows: the tokens in between stay known.
    index = pl.int_range(pl.len()).over("run_id")
    thinned = study.curves.with_columns(
        pl.when(index % 8 == 0).then("val_loss").alias("val_loss"),
        step_start=pl.col("step").shift(1).over("run_id").fill_null(0),
    )
    (gain,) = measure_policy_gain(Records(study.runs, thinned, "made"), levels=[4.0])
    (whole,) = measure_policy_gain(study, levels=[4.0])
    for name in ("steps", "tokens"):
        assert getattr(gain.rungs[0], name) == pytest.approx(
            getattr(whole.rungs[0], name), rel=2e-3
        )


def test_levels_and_seeds_may_be_chosen(study: Records) -> None:
    (gain,) = measure_policy_gain(study, [4.0, 3.5, 1.0], where="seed < 3", level=0.5)
    assert (gain.n_seeds, [rung.loss for rung in gain.rungs]) == (3, [4.0, 3.5])
    assert gain.excluded == [
        {"loss": 1.0, "reason": "the policy's run of seed 0 does not reach it"}
    ]
    wide = measure_policy_gain(study, [4.0, 3.5], where="seed < 3")[0].rungs[0].tokens_ratio
    narrow = gain.rungs[0].tokens_ratio
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    assert wide.value == pytest.approx(narrow.value, rel=1e-12)


def test_without_a_policy_there_is_nothing_to_measure(study: Records) -> None:
    fixed = pl.col("batch_policy") == "fixed"
    assert measure_policy_gain(Records(study.runs.filter(fixed), study.curves, "made")) == []
    assert measure_policy_gain(Records(study.runs.drop("batch_policy"), study.curves, "x")) == []


def test_what_cannot_be_compared_is_refused(study: Records) -> None:
    with pytest.raises(WorkError, match=r"1 seed\(s\) have both .* needs 2 or more"):
        measure_policy_gain(study, where="seed = 0")
    changed = study.runs.with_columns(batch_policy=pl.lit("fixed")).with_columns(
        pl.when(pl.col("run_id") == "50-0").then(pl.lit(POLICY)).otherwise("batch_policy")
        .alias("batch_policy")
    )  # fmt: skip
    with pytest.raises(RequestError, match="batch of run 'policy-0' changes, and it says fixed"):
        measure_policy_gain(Records(changed, study.curves, "made"))
    with pytest.raises(RequestError, match="No column 'val_loss'"):
        measure_policy_gain(Records(study.runs, study.curves.drop("val_loss"), "made"))


def swept(draws: np.random.Generator, noise: float, steps: float, gamma: float) -> Any:
    """Fixed batches on a hyperbola of S_min 1000, E_min 4e5, and runs that gain `gamma`."""
    fixed, chosen = [], []
    for seed in SEEDS:
        for batch in (50, 100, 200, 400, 800, 1600, 3200):
            took = 1000 * (1 + 400 / batch) * math.exp(noise * draws.standard_normal())
            fixed.append((seed, 3.0, batch, took, took * batch))
        price = 4e5 * (1 + gamma / (steps / 1000 - 1)) * math.exp(noise * draws.standard_normal())
        chosen.append((seed, 3.0, steps, price))
    return (
        pl.DataFrame(fixed, ["seed", "loss", "batch", "steps", "tokens"], orient="row"),
        pl.DataFrame(chosen, ["seed", "loss", "steps", "tokens"], orient="row"),
    )


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    draws, held, trials = np.random.default_rng(1), 0, 150
    truth = (1 + 0.9) / 2  # at twice S_min
    for _ in range(trials):
        rung = compare(*swept(draws, 0.02, 2000, 0.9)).rungs[0]
        held += rung.tokens_ratio.low < truth < rung.tokens_ratio.high
    assert 0.83 <= held / trials <= 0.97


def test_of_several_rates_the_fastest_counts() -> None:
    fixed, chosen = swept(np.random.default_rng(0), 0.0, 2000, 0.9)
    slower = fixed.with_columns(pl.col("steps", "tokens") * 1.5)
    both = compare(pl.concat([slower, fixed]), chosen).rungs[0]
    assert both.tokens_ratio.value == pytest.approx(0.95, rel=1e-6)
    assert both == compare(fixed, chosen).rungs[0]


@pytest.mark.parametrize(
    ("steps", "gamma", "said"),
    [
        (900, 1.0, "takes 900 steps, no more than the S_min 1000"),
        (2000, -0.5, "tokens, no more than the E_min 4e[+]05"),
    ],
)
def test_beyond_the_reach_of_fixed_batches_there_is_no_ratio(
    steps: float, gamma: float, said: str
) -> None:
    gain = compare(*swept(np.random.default_rng(0), 0.0, steps, gamma))
    assert gain.rungs == []
    (left_out,) = gain.excluded
    assert re.search(said, left_out["reason"])


def test_two_runs_of_a_seed_are_not_one() -> None:
    fixed, chosen = swept(np.random.default_rng(0), 0.0, 2000, 0.9)
    gain = compare(fixed, pl.concat([chosen, chosen.filter(seed=3)]))
    assert gain.excluded == [{"loss": 3.0, "reason": "seed 3 has 2 runs of the policy"}]


def test_the_critical_batch_tells_of_policies_and_does_not_count_them(study: Records) -> None:
    found = laws.measure_critical_batch(study)
    fixed = study.runs.filter(batch_policy="fixed")
    curves = study.curves.filter(pl.col("run_id").is_in(fixed["run_id"].to_list()))
    alone = laws.measure_critical_batch(Records(fixed, curves, "made"))
    assert found.ladder.law == alone.ladder.law
    left_out = [row for row in found.excluded if row.get("rule") == "batch policy"]
    assert {row["run_id"] for row in left_out} == {f"policy-{seed}" for seed in SEEDS}
    assert alone.policies == []
    (gain,) = found.policies
    assert gain == measure_policy_gain(study)[0]
    (told,) = json.loads(json.dumps(found.to_json()))["policies"]
    assert told["policy"] == POLICY
    assert told["levels"][-1]["gamma"]["value"] == pytest.approx(0.96, abs=0.006)
    text = laws.describe_critical_batch(found)
    assert f"{POLICY}, against the fixed batches of 5 seeds:" in text
    assert "tokens / theirs at equal steps" in text
    assert "Levels without a ratio" in text


def test_a_policy_of_one_seed_is_a_flag_of_the_critical_batch(study: Records) -> None:
    found = laws.measure_critical_batch(study, where="seed = 0")
    assert found.policies == []
    assert any("1 seed(s) have both this policy and fixed batches" in flag for flag in found.flags)
