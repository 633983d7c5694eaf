"""Measure `noise`: what recording the gradient noise moments costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from scaling_jax.config import BatchConfig, EngineConfig, NoiseConfig, RunConfig
from scaling_jax.training.noise import noise_measures
from scaling_jax.training.program import Program
from tools.benchmarks.mfu import big_config
from tools.benchmarks.ours import MIDDLE, compiled, run_config, train
from tools.benchmarks.tables import Table
from tools.benchmarks.timing import Candidate, Effort, Interval, interleave, ratio

PAIRS = 100
PIECE_S = 0.15
SPLIT = 4

_UNITS = {
    "layers x d_model": "",
    "recorded": "",
    "microbatches": "",
    "groups": "",
    "measures": "",
    "over the same cut": "ratio, 95 %",
    "over one microbatch": "ratio, 95 %",
    "bytes accessed": "ratio",
    "FLOPs": "ratio",
    "memory": "ratio",
}


class _Recording(NamedTuple):
    """What is recorded, of a batch in how many microbatches."""

    name: str
    microbatches: int
    noise: NoiseConfig


_RECORDINGS = (
    _Recording("groups", SPLIT, NoiseConfig()),
    _Recording("groups, parts", SPLIT, NoiseConfig(parts=True)),
    _Recording("groups, preconditioned", SPLIT, NoiseConfig(preconditioned=True)),
    _Recording("groups", 1, NoiseConfig()),
    _Recording("sequences, LayerNorms", 1, NoiseConfig(sequences="norms")),
    _Recording("sequences, all", 1, NoiseConfig(sequences="all")),
)
_SILENT = NoiseConfig(enabled=False)


class _Ready(NamedTuple):
    """A program and the run that it trains."""

    program: Program
    candidate: Candidate


def noise(effort: Effort) -> Iterator[Table]:
    """Each source of moments against the same batch in the same cut, and whole, without them."""
    rows = [row for config in _configs() for row in _shape(config, effort)]
    yield Table(
        "Recording the noise moments: time with them over time without",
        _UNITS,
        rows,
        f"Medians of {effort.rounds(PAIRS)} interleaved rounds. `over the same cut`: the same "
        "microbatches and data shards without moments; `over one microbatch`: the same batch in "
        "one piece without moments. Bytes, FLOPs and memory are the compiler's, of one update on "
        "one device and over the same cut: the compiler counts a loop as one turn of it. With one "
        "group the groups give no moments, and the norm of the gradient alone is taken.",
    )


def _configs() -> list[RunConfig]:
    configs = [run_config(MIDDLE)]
    if jax.default_backend() != "cpu":
        # Sized in its microbatches, and so that as many sequences fit in one piece.
        configs.append(big_config(EngineConfig()))
    return configs


def _shape(config: RunConfig, effort: Effort) -> Iterator[dict[str, Any]]:
    silent = {
        microbatches: _ready(_with(config, microbatches, _SILENT)) for microbatches in (SPLIT, 1)
    }
    for name, microbatches, settings in _RECORDINGS:
        recording = _with(config, microbatches, settings)
        ready, same = _ready(recording), silent[microbatches]
        rates = interleave(
            {
                "recording": ready.candidate,
                "same": same.candidate,
                "whole": silent[1].candidate,
            },
            effort.rounds(PAIRS),
            effort.seconds(PIECE_S),
        )
        with_moments, without = _costs(ready.program), _costs(same.program)
        yield {
            "layers x d_model": f"{config.model.n_layer} x {config.model.d_model}",
            "recorded": name,
            "microbatches": microbatches,
            "groups": ready.program.cut.groups,
            "measures": len(noise_measures(recording, ready.program.cut)),
            "over the same cut": _slower(rates, "same"),
            "over one microbatch": _slower(rates, "whole"),
            **{cost: with_moments[cost] / without[cost] for cost in with_moments},
        }


def _with(config: RunConfig, microbatches: int, noise: NoiseConfig) -> RunConfig:
    batch = BatchConfig(sequences=config.batch.sequences, microbatches=microbatches)
    return config.model_copy(update={"batch": batch, "noise": noise})


def _ready(config: RunConfig) -> _Ready:
    program = compiled([config])
    return _Ready(program, train(program, [config]))


def _slower(rates: dict[str, Any], base: str) -> Interval:
    return ratio(rates[base], rates["recording"])


def _costs(program: Program) -> dict[str, float]:
    cost = program._chunk.cost_analysis()
    return {
        "bytes accessed": cost["bytes accessed"],
        "FLOPs": cost["flops"],
        "memory": program.memory,
    }
