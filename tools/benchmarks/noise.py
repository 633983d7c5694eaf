"""Measure `noise`: what recording the gradient noise moments costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax

from scaling_jax.config import BatchConfig, EngineConfig, NoiseConfig, RunConfig
from scaling_jax.training.program import Program
from tools.benchmarks.mfu import big_config
from tools.benchmarks.ours import MIDDLE, compiled, run_config, train
from tools.benchmarks.tables import Table
from tools.benchmarks.timing import Effort, Interval, interleave, ratio

PAIRS = 100
PIECE_S = 0.15
SPLIT = 4

_UNITS = {
    "layers x d_model": "",
    "microbatches": "",
    "groups": "",
    "time": "ratio, 95 %",
    "bytes accessed": "ratio",
    "FLOPs": "ratio",
    "bytes with": "B",
    "bytes without": "B",
    "FLOPs with": "",
    "FLOPs without": "",
}


def noise(effort: Effort) -> Iterator[Table]:
    """The same batch in the same microbatches with the moments and without; then unsplit."""
    pairs = effort.rounds(PAIRS)
    yield Table(
        "Recording the noise moments: time with them over time without",
        _UNITS,
        [_moments(config, effort) for config in _configs()],
        f"Medians of {pairs} interleaved pairs. Bytes and FLOPs are the compiler's, of one update "
        "on one device: the compiler counts a loop as one turn of it.",
    )
    yield Table(
        f"Cutting a batch into {SPLIT} microbatches: time cut over time whole, moments off",
        {"layers x d_model": "", "time": "ratio, 95 %"},
        [_splitting(effort)],
        f"Medians of {pairs} interleaved pairs.",
    )


def _configs() -> list[RunConfig]:
    cut = BatchConfig(sequences=16, microbatches=SPLIT)
    configs = [run_config(MIDDLE, batch=cut), run_config(MIDDLE)]
    if jax.default_backend() != "cpu":
        configs.append(big_config(EngineConfig(), batch=cut))
    return configs


def _moments(config: RunConfig, effort: Effort) -> dict[str, Any]:
    silent = config.model_copy(update={"noise": NoiseConfig(enabled=False)})
    recording, bare = compiled([config]), compiled([silent])
    (bytes_with, flops_with), (bytes_without, flops_without) = _costs(recording), _costs(bare)
    return {
        "layers x d_model": f"{config.model.n_layer} x {config.model.d_model}",
        "microbatches": config.batch.microbatches,
        "groups": recording.cut.groups,
        "time": _slower(recording, config, bare, silent, effort),
        "bytes accessed": bytes_with / bytes_without,
        "FLOPs": flops_with / flops_without,
        "bytes with": bytes_with,
        "bytes without": bytes_without,
        "FLOPs with": flops_with,
        "FLOPs without": flops_without,
    }


def _splitting(effort: Effort) -> dict[str, Any]:
    whole = run_config(MIDDLE, noise=NoiseConfig(enabled=False))
    cut = whole.model_copy(update={"batch": BatchConfig(sequences=16, microbatches=SPLIT)})
    return {
        "layers x d_model": str(MIDDLE),
        "time": _slower(compiled([cut]), cut, compiled([whole]), whole, effort),
    }


def _slower(
    program: Program, config: RunConfig, base: Program, base_config: RunConfig, effort: Effort
) -> Interval:
    rates = interleave(
        {"program": train(program, [config]), "base": train(base, [base_config])},
        effort.rounds(PAIRS),
        effort.seconds(PIECE_S),
    )
    return ratio(rates["base"], rates["program"])


def _costs(program: Program) -> tuple[float, float]:
    cost = program._chunk.cost_analysis()
    return cost["bytes accessed"], cost["flops"]
