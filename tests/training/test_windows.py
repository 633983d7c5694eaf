from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling_jax.models.counts import counts
from scaling_jax.records.schema import CURVE_COLUMNS
from scaling_jax.training.noise import Cut
from scaling_jax.training.step import Measured
from scaling_jax.training.windows import WindowRecorder, evaluation_steps, log_spaced_steps

UNIQUE = 1000
CUT = Cut(2, 2)


def updates_of(steps: int, died: int | None = None) -> list[Measured]:
    """Values as the device has them, that differ at every step."""
    loss, lr, small, big = np.random.default_rng(0).random((4, steps)).astype(np.float32)
    alive = np.arange(steps) < (steps if died is None else died)
    return [Measured(loss[i], lr[i], small[i], big[i], alive[i]) for i in range(steps)]


def record(config, updates: list[Measured], length: int = 128, cut: Cut = CUT) -> list[dict]:
    recorder = WindowRecorder(config, cut, UNIQUE)
    rows = []
    for start in range(0, len(updates), length):
        rows += recorder.add(updates[start : start + length], 5.0, 7.0)
    return rows


@settings(max_examples=40)
@given(st.integers(1, 700), st.integers(1, 128), st.integers(1, 30))
def test_rows_part_the_updates_and_are_their_means(tiny, steps, length, per_decade):
    config = tiny(steps=steps, evaluation={"per_decade": per_decade})
    updates = updates_of(steps)
    rows = record(config, updates, length)
    assert [row["step_start"] for row in rows] == [0] + [row["step"] for row in rows[:-1]]
    assert all(row["step"] > row["step_start"] for row in rows)
    assert rows[-1]["step"] == steps
    loss, lr, small, big, _ = np.array(updates, np.float64).T
    for row in rows:
        window = slice(row["step_start"], row["step"])
        expected = {
            "train_loss": loss[window].mean(),
            "lr": lr[window].mean(),
            "lr_sum": lr[: row["step"]].sum(),
            "grad_sq_small": small[window].mean(),
            "grad_sq_big": big[window].mean(),
            "grad_sq_small_sq": (small[window] ** 2).mean(),
            "grad_sq_big_sq": (big[window] ** 2).mean(),
            "grad_sq_small_big": (small[window] * big[window]).mean(),
            "noise_steps": row["step"] - row["step_start"],
            "tokens": 64 * row["step"],
            "epochs": 64 * row["step"] / UNIQUE,
            "flops_6n": 64 * row["step"] * counts(config.model).training_flops_per_token_6n,
            "flops_exact": 64 * row["step"] * counts(config.model).training_flops_per_token_exact,
            "batch_tokens": 64,
            "batch_big": 64,
            "batch_small": 16,
            "tokens_per_s": 5.0,
            "wall_s": 7.0,
        }
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-12)
        assert row.keys() <= CURVE_COLUMNS.keys()
    ends = {row["step"] for row in rows}
    assert set(evaluation_steps(config)) - {0} <= ends
    assert set(range(1, min(steps, 10) + 1)) <= ends


def test_noise_is_left_out_where_it_is_not_measured(tiny):
    noise = {name for name in CURVE_COLUMNS if name.startswith(("grad", "noise"))}
    one_group = record(tiny(), updates_of(60), cut=Cut(1, 1))
    off = record(tiny(noise={"enabled": False}), updates_of(60))
    for row in one_group + off:
        assert not noise & row.keys()
        assert not {"batch_small", "batch_big"} & row.keys()
    assert noise <= record(tiny(), updates_of(60))[0].keys()


def test_the_row_of_step_0(tiny):
    row = WindowRecorder(tiny(), CUT, UNIQUE).initial_row()
    zero = ("step", "step_start", "tokens", "epochs", "lr_sum", "flops_6n", "flops_exact")
    assert {name: row[name] for name in zero} == dict.fromkeys(zero, 0)
    assert "train_loss" not in row


@pytest.mark.parametrize("length", [1, 7, 60])
@pytest.mark.parametrize("died", [0, 1, 14, 59])
def test_an_update_that_is_not_finite_ends_the_row_before_it(tiny, died, length):
    config = tiny()
    updates = updates_of(60, died)
    recorder = WindowRecorder(config, CUT, UNIQUE)
    rows = []
    for start in range(0, 60, length):
        rows += recorder.add(updates[start : start + length], 1.0, 1.0)
        if died < start + length:
            break
    assert recorder.step == died
    assert [row["step"] for row in rows][-1:] == ([died] if died else [])
    assert sum(row["step"] - row["step_start"] for row in rows) == died
    whole = {row["step"]: row["train_loss"] for row in record(config, updates_of(60))}
    assert all(whole[row["step"]] == row["train_loss"] for row in rows if row["step"] in whole)
    assert recorder.close(1.0, 1.0) == []


@given(st.integers(1, 10**6), st.integers(1, 100))
def test_evaluations_are_log_spaced_from_0_to_the_last(tiny, steps, per_decade):
    config = tiny(steps=steps, evaluation={"per_decade": per_decade})
    found = evaluation_steps(config)
    assert found == sorted(set(found))
    assert (found[0], found[-1]) == (0, steps)
    assert 1 in found
    ratio = 10 ** (1 / per_decade)
    late = [step for step in found if step >= 10]
    for before, after in pairwise(late):
        # each mark is rounded, and one that would fall on another is not doubled
        assert after <= max((before + 0.5) * ratio + 0.5, before + 1)
    for decade in (10, 100, 1000, 10_000, 100_000):
        inside = [step for step in found[:-1] if decade <= step < 10 * decade]
        assert len(inside) <= per_decade + 1
        if steps >= 10 * decade and decade * (ratio - 1) > 1:
            assert len(inside) >= per_decade - 1


@given(st.integers(1, 10**6), st.integers(1, 100), st.integers(1, 30))
def test_marks_are_every_early_step_and_the_last(steps, per_decade, dense_until):
    found = log_spaced_steps(steps, per_decade, dense_until)
    assert found == sorted(set(found))
    assert found[: min(steps, dense_until)] == list(range(1, min(steps, dense_until) + 1))
    assert found[-1] == steps
