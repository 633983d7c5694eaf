from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling_jax.models.counts import counts
from scaling_jax.records.schema import CURVE_COLUMNS, NOISE_COLUMNS
from scaling_jax.training.noise import TOTAL, Cut, Measure, noise_measures
from scaling_jax.training.step import Measured
from scaling_jax.training.windows import WindowRecorder, evaluation_steps, log_spaced_steps

UNIQUE = 1000
CUT = Cut(2, 2)


def updates_of(steps: int, died: int | None = None, measures: int = 1) -> list[Measured]:
    """Values as the device has them, that differ at every step."""
    draws = np.random.default_rng(0)
    loss, lr = draws.random((2, steps)).astype(np.float32)
    small, big = draws.random((2, steps, measures)).astype(np.float32)
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
    loss, lr, small, big = (
        np.array([np.squeeze(update[i]) for update in updates], np.float64) for i in range(4)
    )
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
    one_group = record(tiny(), updates_of(60, measures=0), cut=Cut(1, 1))
    off = record(tiny(noise={"enabled": False}), updates_of(60, measures=0))
    for row in one_group + off:
        assert not noise & row.keys()
        assert not {"batch_small", "batch_big", "noise"} & row.keys()
    assert noise <= record(tiny(), updates_of(60))[0].keys()


def side_rows(rows: list[dict], measure: Measure) -> list[dict]:
    return [
        side for row in rows for side in row.get("noise", []) if measure == tuple(side.values())[:3]
    ]


@pytest.mark.parametrize("cut", [CUT, Cut(1, 1)])
def test_every_measure_but_the_total_of_groups_has_side_rows(tiny, cut):
    noise = {"sequences": "all", "parts": True, "preconditioned": True}
    config = tiny(noise=noise, steps=400)
    measures = noise_measures(config, cut)
    updates = updates_of(400, measures=len(measures))
    rows = record(config, updates, cut=cut)
    assert (TOTAL in measures) == ("grad_sq_small" in rows[0]) == (cut.groups > 1)
    assert not side_rows(rows, TOTAL)
    for i, measure in enumerate(measures):
        if measure == TOTAL:
            continue
        sides = side_rows(rows, measure)
        small, big = (
            np.array([float(norms[i]) for norms in each])
            for each in zip(*[(u.grad_sq_small, u.grad_sq_big) for u in updates], strict=True)
        )
        # Adam has no metric at the first update, whose window is the first row.
        recorded = rows[1:] if measure.metric == "adam" else rows
        for row, side in zip(recorded, sides, strict=True):
            window = slice(row["step_start"], row["step"])
            expected = {
                "grad_sq_small": small[window].mean(),
                "grad_sq_big": big[window].mean(),
                "grad_sq_small_sq": (small[window] ** 2).mean(),
                "grad_sq_big_sq": (big[window] ** 2).mean(),
                "grad_sq_small_big": (small[window] * big[window]).mean(),
                "noise_steps": row["step"] - row["step_start"],
                "batch_small": 8 if measure.source == "sequences" else 64 // cut.groups,
                "batch_big": 64,
            }
            assert {name: side[name] for name in expected} == pytest.approx(expected, rel=1e-12)
            named = {"run_id", "attempt", "step_start", "step"}
            assert side.keys() == NOISE_COLUMNS.keys() - named


@settings(max_examples=20)
@given(st.integers(0, 60), st.integers(1, 60))
def test_a_recorder_restored_at_any_step_gives_the_same_rows(tiny, stop, length):
    config = tiny(noise={"sequences": "norms"})
    updates = updates_of(60, measures=2)
    first, second = (WindowRecorder(config, CUT, UNIQUE) for _ in range(2))
    rows = first.add(updates[:stop], 5.0, 7.0)
    second.restore(json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
    for start in range(stop, 60, length):
        rows += second.add(updates[start : start + length], 5.0, 7.0)
    assert rows == record(config, updates)


def test_moments_of_other_groups_are_not_mixed(tiny):
    config, updates = tiny(steps=200), updates_of(200)
    before = WindowRecorder(config, CUT, UNIQUE)
    start = before.add(updates[:150], 1.0, 1.0)[-1]["step"]
    assert start < 150
    whole = record(config, updates)
    for cut, kept in ((Cut(1, 4), 150 - start), (Cut(1, 8), 0), (Cut(1, 1), 0)):
        after = WindowRecorder(config, cut, UNIQUE)
        after.restore(before.state())
        rows = after.add(updates[150:], 5.0, 7.0)
        expected = whole[-len(rows) :]
        for name in ("step_start", "step", "tokens", "train_loss", "lr", "lr_sum"):
            assert [row[name] for row in rows] == [row[name] for row in expected]
        if cut.groups == 1:
            assert "noise_steps" not in rows[0]
            continue
        assert rows[0]["noise_steps"] == kept + rows[0]["step"] - 150
        window = slice(150 - kept, rows[0]["step"])
        big = np.mean([update.grad_sq_big[0] for update in updates[window]], dtype=np.float64)
        assert rows[0]["grad_sq_big"] == pytest.approx(big, rel=1e-12)
        assert rows[0]["batch_small"] == 64 // cut.groups


@pytest.mark.parametrize("stop", [35, 37])  # at the end of a window, and inside one
def test_another_batch_size_closes_the_window_and_counts_its_own_tokens(tiny, stop):
    config, updates = tiny(evaluation={"per_decade": 1}), updates_of(60)
    recorder = WindowRecorder(config, CUT, UNIQUE)
    rows = recorder.add(updates[:stop], 5.0, 7.0)
    assert rows[-1]["step"] == 35
    closed = recorder.begin_batch(32, Cut(4, 2))
    assert [row["step"] for row in closed] == ([37] if stop == 37 else [])
    if closed:
        assert (closed[0]["step_start"], closed[0]["batch_tokens"]) == (35, 64)
        assert (closed[0]["tokens_per_s"], closed[0]["wall_s"]) == (5.0, 7.0)
    restored = WindowRecorder(config, Cut(4, 2), UNIQUE)
    restored.restore(json.loads(json.dumps(recorder.state())))
    for one in (recorder, restored):
        after = one.add(updates[stop:], 6.0, 8.0)
        assert [row["step"] for row in after[:2]] == [38, 42]
        assert [row["step_start"] for row in after[:2]] == [stop, 38]
        assert one.tokens == after[-1]["tokens"] == 64 * stop + 256 * (60 - stop)
        for row in after:
            assert (row["batch_tokens"], row["batch_big"], row["batch_small"]) == (256, 256, 32)
            assert row["noise_steps"] == row["step"] - row["step_start"]
            assert row["epochs"] == row["tokens"] / UNIQUE
            per_token = counts(config.model).training_flops_per_token_6n
            assert row["flops_6n"] == row["tokens"] * per_token
        assert after[-1]["lr_sum"] == pytest.approx(
            sum(float(update.lr) for update in updates), rel=1e-12
        )


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
