"""Measure `study`: a whole study of small models, records and all."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
from etils import epath
from rich.console import Console

from scaling_jax.config import OptimizerConfig, RunConfig
from scaling_jax.executors.local import run_study
from scaling_jax.executors.placement import plan_cohorts
from scaling_jax.executors.progress import StudyProgress
from scaling_jax.study import Study
from tools.benchmarks.ours import LARGE, MIDDLE, SMALL, Shape, made_up_corpus, run_config
from tools.benchmarks.tables import Table
from tools.benchmarks.timing import Effort

SHAPES = (SMALL, Shape(2, 32, 2), MIDDLE, Shape(3, 96, 6), LARGE)
RATES = np.geomspace(1e-4, 1e-2, 8).tolist()
SEEDS = tuple(range(5))
STEPS = 300


def studying(effort: Effort) -> Iterator[Table]:
    """Shapes by learning rates by seeds, from nothing to the last record."""
    study = Study("benchmark", _quick_runs() if effort.quick else _runs(SHAPES, RATES, STEPS))
    corpus = made_up_corpus()
    cohorts = plan_cohorts(study, corpus)
    tokens = sum(config.steps * config.batch_tokens for config in study.runs.values())
    unseen = Console(quiet=True, force_terminal=False)  # hundreds of lines are no table
    with tempfile.TemporaryDirectory() as folder, StudyProgress(unseen) as progress:
        began = time.perf_counter()
        statuses = run_study(study, epath.Path(folder), corpus, progress, lambda: None)
        took = time.perf_counter() - began
    tally = Counter(statuses.values())
    yield Table(
        "A study of small models, from nothing to the last record",
        {
            "runs": "",
            "cohorts": "",
            "steps": "a run",
            "wall": "s",
            "overall": "tokens/s",
            "ended": "",
        },
        [
            {
                "runs": len(study.runs),
                "cohorts": len(cohorts),
                "steps": max(config.steps for config in study.runs.values()),
                "wall": took,
                "overall": tokens / took,
                "ended": ", ".join(f"{count} {status}" for status, count in tally.items()),
            }
        ],
        "Compilation, evaluation and the writing of records are part of it.",
    )


def _runs(shapes: tuple[Shape, ...], rates: list[float], steps: int) -> dict[str, RunConfig]:
    return {
        f"layers{shape.n_layer}-d{shape.d_model}-lr{index}-seed{seed}": run_config(
            shape, steps=steps, seed=seed, optimizer=OptimizerConfig(lr_peak=lr)
        )
        for shape in shapes
        for index, lr in enumerate(rates)
        for seed in SEEDS
    }


def _quick_runs() -> dict[str, RunConfig]:
    return _runs(SHAPES[:1], RATES[:1], steps=30)
