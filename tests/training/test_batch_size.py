from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling_jax import records
from scaling_jax.config import RunConfig
from scaling_jax.records.writer import RunWriter, write_study
from scaling_jax.training.batch_size import (
    BatchState,
    decide,
    most_tokens,
    next_decision,
    observe,
    start,
)
from scaling_jax.training.evaluation import evaluation_entries
from scaling_jax.training.saving import Checkpoints
from scaling_jax.training.trainer import train_cohort

GROUPS = 4
DIMENSIONS = 20


def _unobserved(step: int, losses: Any, tokens_per_s: float) -> None:
    """Hears of the progress."""


def follower(tiny, sequences: int = 8, most: int = 1024, **policy) -> RunConfig:
    policy = {"name": "noise_scale", "most_sequences": most, "every": 50, **policy}
    return tiny(
        batch={"sequences": sequences, "microbatches": 1, "policy": policy},
        noise={"groups": GROUPS},
        steps=100_000,
    )


def norms(draws, grad_sq: float, tr_sigma: float, sequences: int, updates: int = 50):
    """Squared norms (updates,) of groups' gradients and of batches', of Gaussian gradients."""
    shape = (updates, GROUPS, DIMENSIONS)
    scatter = math.sqrt(tr_sigma / DIMENSIONS * GROUPS / sequences)
    group = math.sqrt(grad_sq / DIMENSIONS) + scatter * draws.standard_normal(shape)
    return np.mean(np.sum(group**2, -1), -1), np.sum(group.mean(1) ** 2, -1)


def follow(config: RunConfig, noise_scale: Callable[[int], float], steps: int) -> list[int]:
    """The batch after each decision of a run whose B_simple is `noise_scale(step)`."""
    draws, state, chosen = np.random.default_rng(0), start(config), []
    every = config.batch.policy.every
    for step in range(every, steps + 1, every):
        small, big = norms(draws, 1.0, noise_scale(step), state.sequences, every)
        state = decide(config, observe(state, small, big, GROUPS), step)
        chosen.append(state.sequences)
    return chosen


def test_a_fixed_batch_is_never_decided(tiny):
    config = tiny(steps=300)
    state = start(config)
    assert state == BatchState(8)
    assert next_decision(config, 0) == next_decision(config, 299) == 300
    assert decide(config, state, 100) == state


@given(
    st.dictionaries(st.integers(1, 98), st.integers(1, 16), min_size=1, max_size=5),
    st.integers(0, 98),
)
def test_a_ramp_is_what_it_says(tiny, ramp, step):
    pairs = sorted((at, 4 * quarters) for at, quarters in ramp.items())
    config = tiny(batch={"policy": {"name": "ramp", "ramp": pairs}}, steps=99)
    expected = 8
    for at, sequences in pairs:
        expected = sequences if at <= step else expected
    assert decide(config, start(config), step).sequences == expected
    later = [at for at, _ in pairs if at > step]
    assert next_decision(config, step) == (later[0] if later else 99)


def test_a_noise_scale_is_looked_at_every_so_many_steps_before_the_last(tiny):
    config = follower(tiny, every=400).model_copy(update={"steps": 1000})
    steps = [next_decision(config, step) for step in (0, 399, 400, 799, 800, 999)]
    assert steps == [400, 400, 800, 800, 1000, 1000]


def test_the_most_tokens_of_a_run(tiny):
    assert most_tokens(tiny(steps=100)) == 100 * 8 * 8
    ramp = {"name": "ramp", "ramp": [[30, 16], [90, 4]]}
    assert most_tokens(tiny(batch={"policy": ramp}, steps=100)) == (30 * 8 + 60 * 16 + 10 * 4) * 8
    branch = {"run": "0123456789ab", "step": 40}
    config = tiny(batch={"policy": ramp}, steps=100, branch=branch)
    assert most_tokens(config) == (50 * 16 + 10 * 4) * 8
    config = follower(tiny, most=40).model_copy(update={"steps": 220})
    assert most_tokens(config) == (50 * 8 + 50 * 16 + 120 * 32) * 8


@settings(max_examples=50)
@given(
    st.integers(0, 2**31),
    st.sampled_from([6, 8]),
    st.integers(16, 100),
    st.none() | st.floats(0.1, 1e4),
)
def test_batches_are_powers_of_two_in_bounds_and_change_at_decisions(
    tiny, seed, sequences, most, exchange
):
    config = follower(tiny, sequences, most, exchange=exchange)
    draws = np.random.default_rng(seed)
    state, before = start(config), config.batch.sequences
    for step in range(10, 1000, 10):
        # Norms that are no gradients' at all, some of them not finite.
        small, big = draws.standard_normal((2, 10)) * 10.0 ** draws.integers(-9, 9)
        small[draws.random(10) < 0.02] = np.nan
        state = decide(config, observe(state, small, big, GROUPS), step)
        assert state.sequences in (before // 2, before, 2 * before)
        assert state.sequences == before or step % 50 == 0
        assert sequences <= state.sequences <= most
        assert math.log2(state.sequences / sequences).is_integer()
        assert state.sequences in config.batch.sizes
        before = state.sequences


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 400), max_size=8, unique=True))
def test_pieces_and_a_stop_at_any_step_change_nothing(tiny, seed, stops):
    config = follower(tiny, every=70)
    draws = np.random.default_rng(seed)
    updates = [norms(draws, 1.0, 40.0, 8, 1) for _ in range(400)]

    def run(cuts: set[int]) -> list[BatchState]:
        state, step, states = start(config), 0, []
        while step < 400:
            end = min([cut for cut in cuts if cut > step] + [next_decision(config, step), 400])
            small, big = np.concatenate(updates[step:end], axis=1)
            state = observe(state, small, big, GROUPS)
            if end in cuts:
                state = BatchState(**json.loads(json.dumps(state._asdict())))
            step = end
            if step == next_decision(config, step - 1):
                state = decide(config, state, step)
                states.append(state)
        return [*states, state]

    assert run(set(stops)) == run(set())
    assert {state.sequences for state in run(set())} != {8}


def test_deciding_again_changes_nothing(tiny):
    config = follower(tiny)
    small, big = norms(np.random.default_rng(0), 1.0, 100.0, 8)
    state = observe(start(config), small, big, GROUPS)
    assert decide(config, state, 49) == state
    once = decide(config, state, 50)
    assert once == BatchState(16)
    assert decide(config, once, 50) == once


def test_a_growing_noise_scale_is_followed_within_a_factor_two(tiny):
    def noise_scale(step: int) -> float:
        return 10.0 * 100 ** (step / 20_000)

    chosen = follow(follower(tiny, every=100), noise_scale, 20_000)
    wanted = [noise_scale(step) for step in range(100, 20_001, 100)]
    assert sorted(chosen) == chosen
    assert 1 / 2 < min(np.divide(chosen, wanted)) < max(np.divide(chosen, wanted)) < 2


def test_a_falling_noise_scale_is_followed_down_to_the_first_batch(tiny):
    chosen = follow(follower(tiny), lambda step: 500.0 if step < 2000 else 1.0, 4000)
    assert max(chosen) == 512
    assert chosen[-1] == 8
    assert chosen[chosen.index(512) :] == sorted(chosen[chosen.index(512) :], reverse=True)


@pytest.mark.parametrize("noise_scale", [16, 20, 24, 28, 31, 32, 33, 40, 48, 63])
def test_a_steady_noise_scale_leaves_the_batch_once_it_has_it(tiny, noise_scale):
    chosen = follow(follower(tiny), lambda _: noise_scale, 10_000)
    assert sorted(chosen) == chosen
    assert noise_scale / 2 < chosen[-1] < noise_scale * 2


def test_an_exchange_rate_makes_it_a_square_root(tiny):
    # sqrt(4 x 340) = 37, which is nearest to 32
    assert follow(follower(tiny, exchange=4.0), lambda _: 340.0, 2000)[-1] == 32
    assert follow(follower(tiny), lambda _: 340.0, 2000)[-1] == 256


def test_a_gradient_lost_in_noise_never_halves_the_batch(tiny):
    config = follower(tiny, most=256)
    draws = np.random.default_rng(1)
    # |G|^2 of zero: estimates of either sign, and no bound of the noise scale from above.
    state = BatchState(128)
    for step in range(50, 2050, 50):
        state = observe(state, *norms(draws, 0.0, 1.0, state.sequences), GROUPS)
        state = decide(config, state, step)
        assert state.sequences >= 128
    assert state.sequences == 256


def test_two_updates_decide_nothing_that_a_hundred_do(tiny):
    config = follower(tiny)
    draws = np.random.default_rng(3)
    few = observe(start(config), *norms(draws, 1.0, 16.0, 8, 2), GROUPS)
    many = observe(start(config), *norms(draws, 1.0, 16.0, 8, 400), GROUPS)
    assert decide(config, few, 50).sequences == 8
    assert decide(config, many, 50).sequences == 16
    one = observe(start(config), *norms(draws, 1.0, 1e6, 8, 1), GROUPS)
    assert decide(config, one, 50).sequences == 8


def paid(batch: Callable[[float, int], int], progress: float) -> float:
    """(S / S_min - 1)(E / E_min - 1) of a run to `progress` with B_crit 10 sqrt(s) (eq. D.4)."""

    def critical(s: float) -> float:
        return 10 * math.sqrt(s)

    s, steps, examples = 1.0, 0, 0.0
    while s < progress:
        now = batch(critical(s), steps)
        s += 1 / (1 + critical(s) / now)
        steps += 1
        examples += now
    least = 10 * (progress**1.5 - 1) / 1.5
    return (steps / (progress - 1) - 1) * (examples / least - 1)


def test_the_gain_is_that_of_mccandlish_and_powers_of_two_cost_it(tiny):
    exchange, progress = 400.0, 10_000.0
    assert paid(lambda critical, step: 300, progress) == pytest.approx(1.0, abs=2e-3)
    exact = paid(lambda critical, step: math.sqrt(exchange * critical), progress)  # pyright: ignore
    assert exact == pytest.approx(24 / 25, abs=2e-3)  # eq. D.7

    config = follower(tiny, sequences=16, exchange=exchange, every=40)
    draws, state = np.random.default_rng(0), start(config)

    def chosen(critical: float, step: int) -> int:
        nonlocal state
        if step and step % 40 == 0:
            small, big = norms(draws, 1.0, critical, state.sequences, 40)
            state = decide(config, observe(state, small, big, GROUPS), step)
        return state.sequences

    # Between 2/3 and 4/3 of the batch wanted, evenly in the logarithm, the product of both prices
    # is (sinh u / u)^2 = 1.04 times what it was, u = ln 2 / 2.
    assert paid(chosen, progress) == pytest.approx(24 / 25 * 1.04, abs=0.02)


def test_a_ramp_is_its_parts_joined_by_hand(tiny, compiled, tmp_path):
    ramp = {"name": "ramp", "ramp": [[25, 16], [40, 8]]}
    config = tiny(batch={"policy": ramp}, steps=60)
    program = compiled(config)
    out = epath.Path(tmp_path)
    write_study(out, "study", "", [], {"a": "id"})
    writer = RunWriter(out, "id")
    places = {name: "" for name in ("versions", "device", "mesh", "engine")}
    writer.begin({"config": config.model_dump(mode="json"), "row": {}}, places, config.steps)
    checkpoints = Checkpoints(out, {"id": {}}, kept=())
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to an integer
        train_cohort(
            {"a": config}, program, {"a": writer}, checkpoints, None,
            lambda: None, lambda going, step: None, _unobserved,
        )  # fmt: skip
    checkpoints.close()
    rows = records.load(tmp_path / "study").curves.sort("step").to_dicts()[1:]

    state, losses, rates = program.init(program.place([config])), [], []
    sixteen = config.at_batch(16)
    parts = ((0, 25, config, program), (25, 40, sixteen, compiled(sixteen)))
    for first, last, part, alone in (*parts, (40, 60, config, program)):
        state, window = alone.chunk(state, first, last - first, alone.place([part]))
        losses += np.asarray(window.loss)[0, : last - first].tolist()
        rates += np.asarray(window.lr)[0, : last - first].tolist()
    for row in rows:
        updates = slice(row["step_start"], row["step"])
        assert row["train_loss"] == pytest.approx(np.mean(losses[updates]), rel=1e-14)
        assert row["lr"] == pytest.approx(np.mean(rates[updates]), rel=1e-14)
    assert rows[-1]["tokens"] == (25 * 8 + 15 * 16 + 20 * 8) * 8
    entries = evaluation_entries(program.evaluation, np.asarray(program.evaluate(state))[0])
    assert entries is not None
    assert rows[-1]["val_loss"] == entries["val_loss"]
    assert rates[30] == pytest.approx(math.sqrt(2) * rates[0], rel=1e-6)
    larger = program.at_batch([sixteen])
    assert larger is program.at_batch([sixteen])
    assert program is program.at_batch([config])
    assert (larger.sequences, larger.cut) == (16, (4, 1))
    assert larger._resident is program._resident
