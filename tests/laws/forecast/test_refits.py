"""What a run would do to a fit, told before it has ended: as much as it does when it has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from scaling_jax import laws
from scaling_jax.errors import WorkError
from scaling_jax.laws.forecast.stop import Ending, Stops, Verdict, may_be_stopped
from scaling_jax.laws.forms import find_law
from scaling_jax.records.store import Records

STEPS = 12_000
MIDDLE, LARGEST = "n27648-s0-lr0.01", "n172032-s0-lr0.01"
NARROW = 5e-4


def judged(
    whole: Records, run: str, seen: float, law: str = "l_ns", off: float = 0.0, half: float = NARROW
) -> Stops:
    """The verdict at a share of the steps of a run, whose end is known to `half`, but for `off`."""
    mine = pl.col("run_id") == run
    status = pl.when(mine).then(pl.lit("running")).otherwise("status")
    curves = whole.curves.filter(~mine | (pl.col("step") <= seen * STEPS))
    records = Records(whole.runs.with_columns(status=status), curves, "under way")
    (size,) = whole.runs.filter(mine)["params_non_embedding"]
    end = whole.curves.filter(mine)["val_loss"][-1] * np.exp(off)
    low, high = end * np.exp(-half), end * np.exp(half)
    ending = Ending(run, size, STEPS, STEPS * 512.0, low, high)
    return may_be_stopped(records, [ending], law)


def verdict(found: Stops) -> Verdict:
    (run,) = found.runs
    return run


def moved_in_truth(whole: Records, found: Stops, law: str = "l_ns") -> dict[str, float]:
    """How far the exponents are from those of the fit when all has ended, over their intervals."""
    full = laws.fit(whole, law).params
    return {
        name: abs(full[name] - value) / (high - low)
        for name, (value, low, high) in found.exponents.items()
    }


@pytest.fixture(params=range(3))
def family(make_records: Callable[..., Records], request: pytest.FixtureRequest) -> Records:
    noise = {"noise": 0.002, "run_noise": 0.004, "seed": request.param}
    return make_records(seeds=1, recorded=40, bracket=False, **noise)


@pytest.mark.parametrize("run", [MIDDLE, LARGEST])
def test_it_moves_the_fit_as_far_as_it_does_when_it_has_ended(family: Records, run: str) -> None:
    found = judged(family, run, 0.75)
    moves = verdict(found).moves
    assert moves is not None
    for name, truth in moved_in_truth(family, found).items():
        assert moves[name] == pytest.approx(truth, abs=0.05)


def test_a_run_between_others_whose_end_is_known_may_be_stopped(
    make_records: Callable[..., Records],
) -> None:
    whole = make_records(seeds=2, recorded=40, bracket=False, noise=0.0005, run_noise=0.002)
    for seen in (0.5, 0.9):
        found = verdict(judged(whole, MIDDLE, seen))
        assert found.may_stop and "at most" in found.reason
    assert not verdict(judged(whole, MIDDLE, 0.5, off=0.05)).may_stop
    assert not verdict(judged(whole, MIDDLE, 0.5, half=0.1)).may_stop


def test_a_run_that_carries_the_law_goes_on_though_it_lies_on_it(
    make_records: Callable[..., Records],
) -> None:
    whole = make_records(recorded=40, bracket=False, noise=1e-4)
    found = verdict(judged(whole, LARGEST, 0.9))
    assert found.moves is not None and found.narrows is not None
    assert not found.may_stop and found.narrows["alpha_N"] > 0.1
    assert verdict(judged(whole, MIDDLE, 0.9)).narrows["alpha_N"] < 0.1  # pyright: ignore
    if max(found.moves.values()) <= 0.1:
        assert "rests on it: its interval would narrow by" in found.reason


def test_a_run_that_gives_one_point_counts_as_one(make_records: Callable[..., Records]) -> None:
    whole = make_records(seeds=3, recorded=40, bracket=False, noise=0.002, run_noise=0.004)
    found = judged(whole, MIDDLE, 0.9, "l_n", half=1e-9)
    truth = moved_in_truth(whole, found, "l_n")
    assert verdict(found).moves == pytest.approx(truth, rel=1e-3)
    assert verdict(found).may_stop


def test_two_sizes_stop_nothing(make_records: Callable[..., Records]) -> None:
    whole = make_records((3456, 12288, 27648), seeds=2, recorded=40, bracket=False, noise=0.002)
    alone = whole.runs.filter((pl.col("params_non_embedding") < 27648) | (pl.col("seed") == 0))
    records = Records(alone, whole.curves.join(alone, on="run_id", how="semi"), "two sizes")
    with pytest.raises(WorkError, match="have 2 values of N: a run may be stopped for l_n once"):
        judged(records, MIDDLE, 0.9, "l_n")


def test_curves_in_tokens_move_the_fit_likewise() -> None:
    """L(N, D) is fitted to every row of a run at constant learning rate."""
    law, truth = find_law("l_nd_chinchilla"), {
        "E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37
    }  # fmt: skip
    rng, runs, curves = np.random.default_rng(0), [], []
    step = np.unique(np.geomspace(100, STEPS, 25).round())
    for k, size in enumerate(np.geomspace(1e6, 1e8, 6)):
        run = f"r{k}"
        loss = law.predict(truth, N=size, D=step * 512.0 * 64)
        loss = loss * np.exp(0.002 * rng.normal(size=step.size) + 0.002 * rng.normal())
        runs.append({
            "run_id": run, "name": run, "status": "done", "params_non_embedding": size,
            "steps": STEPS, "schedule": "constant", "batch_tokens": 512 * 64,
        })  # fmt: skip
        curves += [
            {"run_id": run, "step": int(s), "tokens": int(s) * 512 * 64, "val_loss": v}
            for s, v in zip(step, loss, strict=True)
        ]
    whole = Records(pl.DataFrame(runs), pl.DataFrame(curves), "in tokens")
    mine = pl.col("run_id") == "r3"
    status = pl.when(mine).then(pl.lit("running")).otherwise("status")
    seen = whole.curves.filter(~mine | (pl.col("step") <= 0.75 * STEPS))
    end = whole.curves.filter(mine)["val_loss"][-1]
    size, tokens = np.geomspace(1e6, 1e8, 6)[3], STEPS * 512.0 * 64
    records = Records(whole.runs.with_columns(status=status), seen, "under way")
    ending = Ending("r3", size, STEPS, tokens, end * 0.9999, end * 1.0001)
    found = may_be_stopped(records, [ending], "l_nd_chinchilla")
    moves = verdict(found).moves
    assert moves is not None
    for name, expected in moved_in_truth(whole, found, "l_nd_chinchilla").items():
        assert moves[name] == pytest.approx(expected, abs=0.03)
