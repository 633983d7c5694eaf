"""Measure `compile`: seconds to compile, cold and from a cache, by depth, and what a step takes.

Run as a program, it compiles the run that its argument describes and prints the seconds: what is
found in a cache on disk is only seen by a process that has not compiled it before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from scaling_jax.config import EngineConfig, RunConfig
from scaling_jax.errors import WorkError
from scaling_jax.executors.startup import start_jax
from tools.benchmarks.ours import LARGE, MIDDLE, SMALL, Shape, compiled, run_config, train
from tools.benchmarks.tables import Table
from tools.benchmarks.timing import Effort, interleave

DEPTHS = (2, 4, 8, 16)
ROUNDS = 7
PIECE_S = 0.5


def compilation(effort: Effort) -> Iterator[Table]:
    """Three shapes in fresh processes; then layers traced once and scanned, or each traced."""
    yield Table(
        "Compiling a run's program in a fresh process, and in another one from the cache on disk",
        {"layers x d_model": "", "cold": "s", "cached": "s"},
        [_cold_and_cached(run_config(shape)) for shape in (SMALL, MIDDLE, LARGE)],
        "Tracing and the programs of the initial state and of evaluation are part of it.",
    )
    yield Table(
        f"Layers scanned or unrolled, d_model {MIDDLE.d_model}",
        {
            "n_layer": "",
            "scanned, compile": "s",
            "unrolled, compile": "s",
            "scanned, step": "ms",
            "unrolled, step": "ms",
        },
        [_depth(n_layer, effort) for n_layer in (DEPTHS[:2] if effort.quick else DEPTHS)],
        f"Steps: medians of {effort.rounds(ROUNDS)} interleaved pairs.",
    )


def _cold_and_cached(config: RunConfig) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache:
        cold, cached = (_compile_in_fresh_process(config, cache) for _ in range(2))
    shape = Shape(config.model.n_layer, config.model.d_model, config.model.n_head)
    return {"layers x d_model": str(shape), "cold": cold, "cached": cached}


def _compile_in_fresh_process(config: RunConfig, cache: str) -> float:
    env = {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # this process holds most of a GPU's memory
    }
    child = subprocess.run(
        [sys.executable, "-P", "-m", __spec__.name, config.model_dump_json()],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )
    if child.returncode:
        raise WorkError(child.stderr.strip().splitlines()[-1])
    return float(child.stdout)


def _depth(n_layer: int, effort: Effort) -> dict[str, Any]:
    shape = MIDDLE._replace(n_layer=n_layer)
    configs = {
        "scanned": run_config(shape, engine=EngineConfig(layers="scan")),
        "unrolled": run_config(shape, engine=EngineConfig(layers="unrolled")),
    }
    programs = {name: compiled([config]) for name, config in configs.items()}
    rates = interleave(
        {name: train(programs[name], [config]) for name, config in configs.items()},
        effort.rounds(ROUNDS),
        effort.seconds(PIECE_S),
    )
    return {
        "n_layer": n_layer,
        **{f"{name}, compile": program.compile_s for name, program in programs.items()},
        **{
            f"{name}, step": 1000 * configs[name].batch_tokens / float(np.median(each))
            for name, each in rates.items()
        },
    }


if __name__ == "__main__":
    start_jax()
    jax.devices()  # the start of the platform is no compilation
    print(compiled([RunConfig.model_validate_json(sys.argv[1])]).compile_s)
