"""Curves of a table: roles, restarts of the log, losses that are none, and cuts."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from scaling_jax.errors import RequestError
from scaling_jax.laws.forecast.curve import Curve, curves_of
from scaling_jax.records.store import load

STEPS = np.arange(1.0, 101.0)


def curve(**given) -> Curve:
    return Curve("a", "a", STEPS, 2 + STEPS**-0.5, **given)


def table(folder, **columns):
    path = folder / "table.csv"
    pl.DataFrame(columns).write_csv(path)
    return load(path)


def test_cut_sees_nothing_later() -> None:
    whole = curve(tokens=10 * STEPS, lr=np.ones(100))
    seen = whole.until(40.5)
    assert seen.end == 40 and seen.step.size == 40
    assert seen.tokens is not None and seen.tokens.size == 40
    assert seen.lr is not None and seen.lr.size == 40
    assert whole.until(100) is whole


def test_a_cut_at_a_share_of_another_length_keeps_the_point_there() -> None:
    whole = curve()
    assert whole.until(100 / (100 / 49)).end == 49


def test_final_loss_is_the_mean_of_the_last_steps() -> None:
    whole = curve()
    assert whole.final_loss == pytest.approx(np.mean(whole.loss[-3:]))  # steps 98, 99, 100
    assert whole.where(np.isin(STEPS, [1, 50, 100])).final_loss == whole.loss[-1]


def test_finished_is_the_horizon_before_the_status() -> None:
    assert curve().finished
    assert not curve(status="running").finished
    assert not curve(status="done", horizon=101.0).finished
    assert curve(status="running", horizon=100.0).finished


def test_constant_rate() -> None:
    warm = np.minimum(STEPS / 10, 1.0)
    assert curve(lr=warm).constant_rate()
    assert curve(lr=warm, warmup_steps=10.0).constant_rate()
    assert curve(lr=warm * np.where(STEPS > 90, 0.5, 1)).constant_rate() is False
    assert curve(schedule="constant").constant_rate()
    assert curve(schedule="cosine").constant_rate() is False
    assert curve().constant_rate() is None


def test_curves_by_role(tmp_path) -> None:
    records = table(
        tmp_path, run_id=["b", "b", "a", "a"], n=[10, 10, 20, 20], at=[1, 2, 1, 2],
        loss=[4.0, 3.0, 5.0, 4.5], lr=[0.1, 0.1, 0.1, 0.05], steps=[9, 9, 9, 9],
    )  # fmt: skip
    curves, excluded = curves_of(records, {"N": "n", "S": "at"})
    assert [each.run_id for each in curves] == ["a", "b"] and not excluded
    assert curves[0].size == 20 and curves[0].horizon == 9
    assert curves[0].loss.tolist() == [5.0, 4.5]
    assert curves[0].constant_rate() is False and curves[1].constant_rate()
    assert not curves[1].flags
    assert len(curves_of(records, {"N": "n", "S": "at"}, "n > 10")[0]) == 1


def test_a_peak_is_no_schedule(tmp_path) -> None:
    records = table(tmp_path, run_id=["a", "a"], step=[1, 2], loss=[4.0, 3.0], lr_peak=[0.1, 0.1])
    (only,), _ = curves_of(records)
    assert only.lr is None and only.constant_rate() is None
    assert any("no learning rate" in flag for flag in only.flags)


def test_tokens_alone(tmp_path) -> None:
    columns = {"run_id": ["a", "a"], "tokens": [100, 300], "loss": [4.0, 3.0]}
    (only,), _ = curves_of(table(tmp_path, **columns))
    assert only.step.tolist() == [100, 300]
    assert any("counted in tokens" in flag for flag in only.flags)
    # A number of steps is no end on an axis of tokens, unless it is named as that.
    assert curves_of(table(tmp_path, **columns, steps=[9, 9]))[0][0].horizon is None
    ends = table(tmp_path, **columns, planned=[900, 900])
    assert curves_of(ends, {"steps": "planned"})[0][0].horizon == 900
    (only,), _ = curves_of(table(tmp_path, **columns, batch_tokens=[50, 50]))
    assert only.step.tolist() == [2, 6] and only.tokens is not None
    with pytest.raises(RequestError, match="step"):
        curves_of(table(tmp_path, run_id=["a"], loss=[3.0]))


def test_log_that_went_back_keeps_the_later_rows(tmp_path) -> None:
    records = table(
        tmp_path, run_id=["a"] * 7, step=[1, 2, 3, 4, 3, 4, 5],
        loss=[5.0, 4.0, 3.9, 3.8, 3.7, 3.6, 3.5],
    )  # fmt: skip
    (only,), _ = curves_of(records)
    assert only.step.tolist() == [1, 2, 3, 4, 5]
    assert only.loss.tolist() == [5.0, 4.0, 3.7, 3.6, 3.5]
    assert any(flag.startswith("restart at step 3") for flag in only.flags)


def test_rows_that_are_in_the_log_twice_count_once(tmp_path) -> None:
    for step, loss in (
        ([1, 1, 2, 3, 3], [5.0, 5.0, 4.0, 3.5, 3.5]),
        ([1, 2, 3, 1, 2, 3], [5.0, 4.0, 3.5] * 2),
    ):
        records = table(tmp_path, run_id=["a"] * len(step), step=step, loss=loss)
        (only,), _ = curves_of(records)
        assert only.step.tolist() == [1, 2, 3] and only.loss.tolist() == [5.0, 4.0, 3.5]
        assert any("holds twice" in flag for flag in only.flags)


def test_two_restarts(tmp_path) -> None:
    records = table(
        tmp_path, run_id=["a"] * 8, step=[1, 2, 3, 4, 3, 4, 2, 3],
        loss=[8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0],
    )  # fmt: skip
    (only,), _ = curves_of(records)
    assert only.loss.tolist() == [8.0, 2.0, 1.0]


def test_several_curves_under_one_name_are_refused(tmp_path) -> None:
    for steps in ([1, 2, 1, 2], [1, 1, 2, 2]):
        records = table(tmp_path, run_id=["a"] * 4, step=steps, loss=[5.0, 4.0, 3.0, 2.0])
        with pytest.raises(RequestError, match="'a' has 2 rows"):
            curves_of(records)


def test_log_from_the_last_step(tmp_path) -> None:
    records = table(tmp_path, run_id=["a"] * 3, step=[3, 2, 1], loss=[3.0, 4.0, 5.0])
    assert curves_of(records)[0][0].loss.tolist() == [5.0, 4.0, 3.0]


def test_losses_that_are_none(tmp_path) -> None:
    nan, inf = float("nan"), float("inf")

    def loss_of(*loss: float) -> Curve:
        n = len(loss)
        path = tmp_path / "table.parquet"
        pl.DataFrame({"run_id": ["a"] * n, "step": range(n), "loss": loss}).write_parquet(path)
        return curves_of(load(path))[0][0]

    assert loss_of(9.0, 5.0, nan, 4.0).loss.tolist() == [5.0, 4.0]
    diverged = loss_of(9.0, 5.0, 4.0, nan, nan)
    assert diverged.loss.tolist() == [5.0, 4.0]
    assert any("at step 3: cut before it" in flag for flag in diverged.flags)
    assert loss_of(9.0, 5.0, inf, 4.0).loss.tolist() == [5.0]


def test_a_run_without_any_loss_is_left_out(tmp_path) -> None:
    records = table(tmp_path, run_id=["a", "a", "b"], step=[1, 2, 1], loss=[-1.0, 2.0, 3.0])
    curves, excluded = curves_of(records)
    assert [each.run_id for each in curves] == ["b"]
    assert [each["run_id"] for each in excluded] == ["a"]


def test_a_rate_that_some_rows_lack_is_that_of_the_rows_around(tmp_path) -> None:
    records = table(
        tmp_path,
        run_id=["a"] * 6 + ["b"] * 2,
        step=[1, 2, 3, 4, 5, 6, 1, 2],
        loss=[9.0, None, 7.0, 6.0, 5.0, 4.5, 9.0, 8.0],
        lr=[None, 0.4, None, 0.2, None, 0.1, None, None],
    )
    with_rates, without = curves_of(records)[0]
    assert with_rates.lr == pytest.approx([0.4, 0.3, 0.2, 0.15, 0.1])
    assert without.lr is None


@pytest.mark.parametrize("rates", [[0.0, 0.0, 0.0], [0.1, -0.1, 0.1]])
def test_rates_that_are_none_are_left_out(tmp_path, rates: list[float]) -> None:
    records = table(tmp_path, run_id=["a"] * 3, step=[1, 2, 3], loss=[3.0, 2.0, 1.5], lr=rates)
    (found,), _ = curves_of(records)
    assert found.lr is None and "left out" in found.flags[0]


def test_tokens_and_rates_do_without_steps(tmp_path) -> None:
    records = table(
        tmp_path, run_id=["a"] * 3, tokens=[1e9, 2e9, 3e9], loss=[3.0, 2.5, 2.2], lr=[0.3, 0.2, 0.1]
    )
    (found,), _ = curves_of(records)
    assert found.end == 3e9 and found.lr == pytest.approx([0.3, 0.2, 0.1])
    assert "counted in tokens" in found.flags[0]


def test_two_rows_of_a_decay_are_not_taken_for_a_constant_rate() -> None:
    two = Curve("a", "a", STEPS[:2], STEPS[:2], lr=np.ones(2), schedule="wsd")
    assert two.constant_rate() is False
    assert Curve("a", "a", STEPS[:2], STEPS[:2], lr=np.ones(2)).constant_rate()


def test_rows_of_a_rate_after_the_last_loss_are_the_plan(tmp_path) -> None:
    steps = [10, 20, 30, 40]
    records = table(
        tmp_path,
        run_id=[*"aaaabbbbcccc"],
        step=[*steps, *steps, 100, 200, 300, 301],
        loss=[9.0, 8.0, None, None, 9.0, 8.0, 7.0, 6.0, 9.0, 8.0, 7.0, None],
        lr=[0.4, 0.3, 0.2, 0.1] * 3,
    )
    (a, b, c), excluded = curves_of(records)
    assert a.end == 20 and a.horizon == 40 and not a.finished and not excluded
    assert a.ahead is not None and a.ahead.tolist() == [[30, 0.2], [40, 0.1]]
    assert b.ahead is None and b.finished
    # The loss of the last step may not be measured, and the run is done.
    assert c.ahead is None and c.finished
