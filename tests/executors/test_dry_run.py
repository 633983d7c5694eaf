from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling_jax.config import (
    BatchConfig,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
)
from scaling_jax.data.corpus import Corpus
from scaling_jax.executors import dry_run
from scaling_jax.executors.dry_run import COLUMNS, describe_runs, estimate_seconds
from scaling_jax.executors.placement import Cohort, plan_cohorts
from scaling_jax.models.counts import counts
from scaling_jax.study import Study


def config(d_model: int = 8, seed: int = 0, steps: int = 20) -> RunConfig:
    return RunConfig(
        model=ModelConfig(n_layer=1, d_model=d_model, n_head=1, n_ctx=8),
        batch=BatchConfig(sequences=8, microbatches=2),
        optimizer=OptimizerConfig(name="sgd", lr_peak=0.1),
        mesh=MeshConfig(data=1),
        evaluation=EvaluationConfig(tokens=64),
        steps=steps,
        seed=seed,
    )


def test_every_run_is_described_and_timed_and_nothing_written(
    tiny_corpus: Corpus, compile_once: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "compile_program", compile_once)
    runs = {
        f"{steps}-s{seed}": config(seed=seed, steps=steps) for steps in (40, 20) for seed in (0, 1)
    }
    rows = describe_runs(plan_cohorts(Study("s", runs), tiny_corpus), tiny_corpus)
    assert [row["name"] for row in rows] == list(runs)
    assert [row["cohort"] for row in rows] == [1, 1, 2, 2]
    for row in rows:
        tokens = row["steps"] * 8 * 8
        assert tuple(row) == COLUMNS
        assert (row["N"], row["N_total"]) == (12 * 8**2, counts(config().model).params_total)
        assert row["tokens"] == tokens
        assert row["epochs"] == tokens / len(tiny_corpus.train.tokens)
        assert row["masked"] == 0
        # blocks 2N, attention 4 n_ctx d_model, head 2 n_vocab d_model; thrice with the backward
        assert row["flops_exact"] == tokens * 3 * (2 * 768 + 4 * 8 * 8 + 2 * 257 * 8)
        assert row["mesh"] == "lane=2"
        assert 0 < row["GiB"] < 0.01
        assert row["seconds"] > 0
    assert rows[2]["seconds"] == pytest.approx(rows[0]["seconds"] / 2)
    assert list(tmp_path.iterdir()) == []


def test_seconds_lie_between_the_cheapest_and_the_dearest_shape(
    tiny_corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = []

    def seconds_a_token(cohort: Cohort, corpus: Corpus) -> float:
        timed.append(cohort.config.model.d_model)
        return 1e-6 + 1e-12 * counts(cohort.config.model).training_flops_per_token_exact

    monkeypatch.setattr(dry_run, "_seconds_a_token", seconds_a_token)
    runs = {f"d{d}-s{seed}": config(d, seed) for d in (16, 32, 8, 24) for seed in (0, 1)}
    cohorts = plan_cohorts(Study("s", runs), tiny_corpus)
    seconds = estimate_seconds(cohorts, tiny_corpus)
    assert sorted(timed) == [8, 32]
    assert seconds == pytest.approx(
        [
            2 * 20 * 64 * (1e-6 + 1e-12 * counts(c.config.model).training_flops_per_token_exact)
            for c in cohorts
        ],
        rel=1e-9,
    )


def test_a_lane_that_ends_early_is_carried_along_in_the_time(
    tiny_corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "_seconds_a_token", lambda *_: 1e-3)
    runs = {str(steps): config(steps=steps) for steps in (40, 30)}
    long, short = describe_runs(plan_cohorts(Study("s", runs), tiny_corpus), tiny_corpus)
    assert long["cohort"] == short["cohort"]
    assert (long["tokens"], short["tokens"]) == (40 * 64, 30 * 64)
    assert long["seconds"] == short["seconds"] == pytest.approx(40 * 64 * 1e-3)
    assert long["GiB"] == short["GiB"] > 0


def test_what_does_not_count_is_told(tiny_corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "_seconds_a_token", lambda *_: 1e-3)
    runs = {
        order: config().model_copy(update={"data": DataConfig(order=order)})
        for order in ("random", "epochs", "documents")
    }
    cohorts = plan_cohorts(Study("s", runs), tiny_corpus)
    random, epochs, documents = describe_runs(cohorts, tiny_corpus)
    n = len(tiny_corpus.train.tokens)
    lengths = np.diff([*tiny_corpus.train.doc_starts, n])
    windows = int((-(-lengths // 8)).sum())
    assert (random["masked"], random["epochs"]) == (0, 20 * 64 / n)
    assert (epochs["masked"], epochs["epochs"]) == (
        pytest.approx(1 - n / (-(-n // 8) * 8)),
        pytest.approx(20 * 8 / -(-n // 8)),
    )
    assert documents["epochs"] == pytest.approx(20 * 8 / windows)
    assert documents["masked"] == pytest.approx(1 - n / (8 * windows)) and windows > n / 8
