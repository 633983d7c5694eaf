"""Plans of the learning rate: named, read from a file, declared by the records."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from scaling_jax.errors import RequestError
from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.forecast.plans import (
    declared_plans,
    named_plan,
    plan_for,
    plan_of_another,
    read_plan,
)
from scaling_jax.records import Records
from scaling_jax.training.schedules import Horizon, learning_rate


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "wsd"])
@pytest.mark.parametrize("warmup", [0, 50])
def test_named_plans_are_the_rates_that_training_uses(name: str, warmup: int) -> None:
    plan = named_plan(name, 3e-4, 1000.0, warmup, final_fraction=0.1, decay_fraction=0.2)
    horizon = Horizon(*(jnp.float32(x) for x in (3e-4, 1000, warmup, 0.1, 0.2)))
    updates = jnp.asarray(plan[:, 0] - 1, jnp.float32)
    used = np.asarray(learning_rate(name, updates, horizon), dtype=np.float64)
    np.testing.assert_allclose(plan[:, 1], used, rtol=2e-3, atol=1e-9)
    assert plan[0, 0] == 1.0 and plan[-1, 0] == 1000.0 and np.all(np.diff(plan[:, 0]) > 0)


def test_a_file_is_read_and_what_is_wrong_with_it_is_said(tmp_path: Path) -> None:
    path = tmp_path / "plan.csv"
    path.write_text("step,lr\n1,0.1\n10,0.1\n20,0\n")
    np.testing.assert_array_equal(read_plan(path), [[1, 0.1], [10, 0.1], [20, 0]])
    for text, says in (
        ("step,rate\n1,0.1\n", "no column 'lr'"),
        ("step,lr\n2,0.1\n1,0.1\n", "steps ascend"),
        ("step,lr\n1,-0.1\n", "0 or more"),
        ("step,lr\n1,\n2,0.1\n", "in every row"),
        ("step,lr\n1,fast\n", "a number is due"),
    ):
        path.write_text(text)
        with pytest.raises(RequestError, match=says):
            read_plan(path)
    with pytest.raises(RequestError, match="Cannot read"):
        read_plan(tmp_path / "none.csv")


def test_a_name_takes_peak_and_warm_up_from_the_run(tmp_path: Path) -> None:
    step = np.arange(10.0, 201.0, 10.0)
    rate = np.minimum(step / 50, 1.0) * 0.01
    run = Curve("a", "a", step, 3 - step / 1e3, lr=rate)
    plan = plan_for("linear", run, 400.0)
    assert plan[:, 1].max() == pytest.approx(0.01)
    assert plan[np.argmax(plan[:, 1]), 0] == pytest.approx(50.0)
    assert plan[-1, 1] == 0.0
    path = tmp_path / "plan.csv"
    path.write_text("step,lr\n1,0.1\n100,0.1\n")
    with pytest.raises(RequestError, match="before the horizon of 400"):
        plan_for(str(path), run, 400.0)
    with pytest.raises(RequestError, match="Did you mean 'cosine'"):
        plan_for("cosin", run, 400.0)
    with pytest.raises(RequestError, match="lr=COLUMN"):
        plan_for("cosine", Curve("b", "b", step, 3 - step / 1e3), 400.0)


def test_declared_plans_are_those_of_runs_that_say_all_of_it() -> None:
    runs = pl.DataFrame(
        {
            "run_id": ["a", "b"],
            "schedule": ["wsd", None],
            "lr_peak": [0.1, 0.1],
            "steps": [100, 100],
            "warmup_steps": [10, 10],
            "final_fraction": [0.0, 0.0],
            "decay_fraction": [0.5, 0.5],
        }
    )
    plans = declared_plans(Records(runs, pl.DataFrame(), "x"))
    assert list(plans) == ["a"]
    np.testing.assert_array_equal(plans["a"], named_plan("wsd", 0.1, 100, 10, 0.0, 0.5))
    assert declared_plans(Records(runs.drop("lr_peak"), pl.DataFrame(), "x")) == {}


def test_the_rates_of_a_finished_run_that_was_alike_so_far_are_taken_over() -> None:
    def run(name: str, end: float, shape: str) -> Curve:
        step = np.arange(10.0, end + 1, 10.0)
        left = 0.5 * (1 + np.cos(np.pi * step / end)) if shape == "cosine" else 1 - step / end
        return Curve(name, name, step, 3 - step / 1e5, lr=2e-3 * left)

    finished = [run("linear", 1000.0, "linear"), run("cosine", 1000.0, "cosine")]
    seen = run("new", 4000.0, "cosine").until(2200.0)
    found = plan_of_another(seen, 4000.0, finished)
    assert found is not None and found.name == "cosine"
    assert found.rows[-1, 0] == 4000.0
    at = np.interp(3000.0, found.rows[:, 0], found.rows[:, 1])
    assert at == pytest.approx(1e-3 * (1 + np.cos(np.pi * 0.75)), rel=0.05)
    assert plan_of_another(seen, 4000.0, finished[:1]) is None


def test_a_rate_that_has_not_fallen_yet_falls_as_it_did_under_the_same_schedule() -> None:
    def run(name: str, schedule: str | None, falls: bool = True) -> Curve:
        step = np.arange(10.0, 1001.0, 10.0)
        rate = np.minimum(1.0, (1000 - step) / 200) if falls else np.ones(step.size)
        return Curve(name, name, step, 3 - step / 1e5, lr=2e-3 * rate, schedule=schedule)

    finished = [run("constant", "constant", falls=False), run("falls", "wsd")]
    declared = plan_of_another(run("new", "wsd").until(500.0), 1000.0, finished)
    assert declared is not None and declared.name == "falls" and declared.rows[-1, 1] == 0
    unknown = run("new", None).until(500.0)
    stays = plan_of_another(unknown, 1000.0, finished)
    assert stays is not None and stays.name == "constant"
    only = plan_of_another(unknown, 1000.0, finished[1:])
    assert only is not None and only.name == "falls"


def test_a_warm_up_of_other_length_hides_no_schedule() -> None:
    """Points every 200 steps: the first is in the warm-up of 300, at another share of the run."""

    def run(name: str, end: float) -> Curve:
        plan = named_plan("cosine", 2e-3, end, 300.0, final_fraction=0.1)
        step = np.arange(200.0, end + 1, 200.0)
        return Curve(name, name, step, 3 - step / 1e5, lr=np.interp(step, *plan.T))

    found = plan_of_another(run("new", 9800.0).until(2400.0), 9800.0, [run("finished", 7400.0)])
    assert found is not None and found.rows[-1, 1] == pytest.approx(2e-4, rel=0.01)
