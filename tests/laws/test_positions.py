"""Losses by position out of records: which evaluation, which runs, and octaves."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import polars as pl
import pytest

from scaling_jax import laws
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.positions import coarser
from scaling_jax.records.schema import POSITION_COLUMNS
from scaling_jax.records.store import Records

SIZES = (1000, 8000, 64000)
STEPS = (10, 100, 1000)
N_CTX = 64


def losses(N: int, step: int) -> np.ndarray:
    T = np.arange(1, N_CTX + 1)
    share = np.log10(step) / 3
    return 2.0 + 10 * N**-0.3 + share * 2.0 * T ** -(0.3 + 0.05 * np.log10(N)) + (1 - share)


def study(**runs: Any) -> Records:
    rng = np.random.default_rng(0)
    noise = 0.003 * rng.normal(size=N_CTX)
    frame = pl.DataFrame(
        {
            "run_id": [f"r{N}" for N in SIZES],
            "name": [f"size {N}" for N in SIZES],
            "status": "done",
            "params_non_embedding": SIZES,
            "n_ctx": N_CTX,
        }
    ).with_columns(**runs)
    T = np.arange(1, N_CTX + 1)
    tables = [
        pl.DataFrame(
            {
                "run_id": f"r{N}",
                "attempt": 1,
                "step_start": 0,
                "step": step,
                "corpus": "validation",
                "position_start": T,
                "position": T,
                "loss": losses(N, step) + noise,
                "tokens": 100,
            }
        )
        for N in SIZES
        for step in STEPS
    ]
    table = pl.concat(tables)
    assert table.columns == list(POSITION_COLUMNS)
    return Records(frame, pl.DataFrame(), "study", sides={"positions": table})


def test_every_run_at_its_last_evaluation_smallest_first() -> None:
    found = laws.measure_positions(study())
    assert [run.N for run in found.runs] == list(SIZES) and found.excluded == []
    for run in found.runs:
        assert run.step == 1000 and run.refusal == "" and run.tokens == 100 * N_CTX
        law, c = run.law, 0.3 + 0.05 * np.log10(run.N or 0)
        assert law is not None and law.c.low is not None and law.c.high is not None
        assert law.c.low < c < law.c.high
        assert run.loss == pytest.approx(losses(run.N or 0, 1000).mean(), abs=0.002)


def test_up_to_a_step() -> None:
    found = laws.measure_positions(study(), step=500)
    assert {run.step for run in found.runs} == {100}
    with pytest.raises(WorkError, match=r"No loss by position is left in study \(only after 5\)"):
        laws.measure_positions(study(), step=5)


def test_runs_that_are_left_out_are_listed() -> None:
    status = pl.Series(["done", "diverged", "done"])
    found = laws.measure_positions(study(status=status), where="n_ctx = 64 AND step > 50")
    assert [run.N for run in found.runs] == [1000, 64000]
    rules = {(row["run_id"], row["rule"]): row["n_points"] for row in found.excluded}
    assert rules["r8000", "diverged"] == 2 * N_CTX and rules["r1000", "where"] == N_CTX
    with pytest.raises(RequestError, match=r"--where names 'n_ctxx'.*'n_ctx'"):
        laws.measure_positions(study(), where="n_ctxx = 64")


def test_losses_that_are_no_numbers_and_other_corpora_do_not_count() -> None:
    records = study()
    table = records.positions
    odd = table.with_columns(
        loss=pl.when(run_id="r1000", position=5).then(float("nan")).otherwise("loss")
    )
    books = table.with_columns(corpus=pl.lit("books"), loss=pl.lit(9.0))
    records = dataclasses.replace(records, sides={"positions": pl.concat([odd, books])})
    found = laws.measure_positions(records)
    assert [run.bins.height for run in found.runs] == [63, 64, 64]
    assert found.excluded[0]["rule"] == "incomplete" and found.excluded[0]["n_points"] == 3
    assert max(run.loss for run in found.runs) < 5


def test_records_without_positions_are_no_request() -> None:
    with pytest.raises(RequestError, match="study has no loss by position"):
        laws.measure_positions(dataclasses.replace(study(), sides={}))


def test_octaves_tile_the_context_and_keep_the_mean() -> None:
    found = laws.measure_positions(study())
    run = found.runs[0]
    bands = found.at_step(run)
    ends = list(zip(bands["position_start"], bands["position"], strict=True))
    assert ends == [(1, 1), (2, 2), (3, 5), (6, 11), (12, 22), (23, 45), (46, 64)]
    mean = np.average(bands["loss"].to_numpy(), weights=bands["tokens"].to_numpy())
    assert mean == pytest.approx(run.loss, rel=1e-12)
    assert set(found.octaves["step"]) == set(STEPS)
    long = pl.DataFrame(
        {"position_start": [1, 257, 300], "position": [256, 299, 512], "loss": [3.0, 2.0, 1.0],
         "tokens": [256, 43, 213]}
    )  # fmt: skip
    wide = coarser(long, per_octave=1)
    assert wide["octave"].to_list() == [16, 256, 512]


def test_the_best_run_of_each_size_and_context() -> None:
    more = study(run_id=pl.col("run_id") + "b")
    worse = more.positions.with_columns(run_id=pl.col("run_id") + "b", loss=pl.col("loss") + 0.1)
    both = study()
    both = dataclasses.replace(
        both,
        runs=pl.concat([both.runs, more.runs]),
        sides={"positions": pl.concat([worse, both.positions])},
    )
    best = laws.measure_positions(both).best_of_size()
    assert [run.run_id for run in best] == ["r1000", "r8000", "r64000"]


def test_a_short_context_is_refused_alone_and_said() -> None:
    records = study()
    short = records.positions.filter((pl.col("run_id") != "r1000") | (pl.col("position") <= 4))
    records = dataclasses.replace(records, sides={"positions": short})
    found = laws.measure_positions(records)
    assert "3 bins from position 2 on" in found.runs[0].refusal and found.runs[1].refusal == ""
    doc = json.loads(json.dumps(found.to_json(), allow_nan=False))
    first, second = doc["positions"][:2]
    assert "3 bins" in first["refused"] and "c" not in first and second["refused"] is None
    assert second["c"]["low"] < second["c"]["value"] < second["c"]["high"]
    assert second["octaves"][2] == pytest.approx(
        {"position_start": 3, "position": 5, "tokens": 300,
         "loss": losses(8000, 1000)[2:5].mean()}, abs=0.01
    )  # fmt: skip
    text = laws.describe_positions(found)
    assert "size 1000: refused, 3 bins" in text and "3-5" in text
    assert max(map(len, text.splitlines())) < 100


def test_how_c_grows_with_size_is_known_better_than_each_c() -> None:
    """The scatter of positions is that of the documents, which every run has read."""
    found = laws.measure_positions(study())
    grows = found.steepening()
    assert grows is not None and grows.low is not None and grows.high is not None
    assert grows.low < 0.05 < grows.high
    law = found.runs[0].law
    assert law is not None and law.c.low is not None and law.c.high is not None
    assert grows.high - grows.low < (law.c.high - law.c.low) / 2
    assert "With each tenfold N, c grows by 0.0" in laws.describe_positions(found)
    assert found.to_json()["c_per_decade"]["value"] == grows.value
    two = laws.measure_positions(study(), where="n_ctx = 64 AND params_non_embedding > 1000")
    assert two.steepening() is None and two.to_json()["c_per_decade"] is None


@pytest.mark.parametrize("own", [0.05, 0.4])
def test_the_growth_of_c_lies_in_its_interval_where_positions_scatter_together(own: float) -> None:
    rng, hits, repeats = np.random.default_rng(3), 0, 40
    for _ in range(repeats):
        records, shared = study(), 0.02 * rng.normal(size=N_CTX)
        last = records.positions.filter(step=1000).sort("run_id")
        noise = np.concatenate([shared + own * 0.02 * rng.normal(size=N_CTX) for _ in SIZES])
        clean = np.concatenate([losses(int(str(run)[1:]), 1000) for run in
                                last["run_id"].unique(maintain_order=True)])  # fmt: skip
        table = last.with_columns(loss=pl.Series(clean + noise))
        found = laws.measure_positions(dataclasses.replace(records, sides={"positions": table}))
        grows = found.steepening()
        hits += grows is not None and (grows.low or 0) < 0.05 < (grows.high or 0)
    assert hits >= 0.8 * repeats
