"""Measure `speed`: tokens/s against the plain Flax implementation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from scaling_jax.config import MeshConfig
from tools.benchmarks.ours import (
    LARGE,
    MIDDLE,
    SMALL,
    Shape,
    flops_per_token,
    lanes_of,
    made_up_corpus,
    run_config,
    trained,
)
from tools.benchmarks.reference import train_plainly
from tools.benchmarks.tables import Table
from tools.benchmarks.timing import Effort, interleave, ratio

PAIRS = 15
PIECE_S = 1.0


def speed(effort: Effort) -> Iterator[Table]:
    """One run in one process, noise moments on, its rows over all devices; and a lane a device."""
    n_devices = len(jax.devices())
    yield Table(
        "Training in float32, 16 x 128 bytes a batch, against plain Flax NNX",
        {
            "layers x d_model": "",
            "one run": "tokens/s",
            "plain Flax": "tokens/s",
            "ratio": "95 %",
            "one run's model": "FLOP/s",
            "a run a device": "tokens/s",
        },
        [_row(shape, n_devices, effort) for shape in (SMALL, MIDDLE, LARGE)],
        f"Medians of {effort.rounds(PAIRS)} interleaved rounds on {n_devices} device(s). The plain "
        "loop computes on one device, with all of a CPU's cores, and records no noise moments.",
    )


def _row(shape: Shape, n_devices: int, effort: Effort) -> dict[str, Any]:
    config = run_config(shape)
    candidates = {
        "one run": trained([config]),
        "plain Flax": train_plainly(config, np.asarray(made_up_corpus().train.tokens)),
    }
    if n_devices > 1:
        candidates["a run a device"] = trained(
            lanes_of(config, n_devices), MeshConfig(lane=n_devices)
        )
    rates = interleave(candidates, effort.rounds(PAIRS), effort.seconds(PIECE_S))
    medians = {name: float(np.median(each)) for name, each in rates.items()}
    return {
        "layers x d_model": str(shape),
        "ratio": ratio(rates["one run"], rates["plain Flax"]),
        "one run's model": medians["one run"] * flops_per_token(config),
        **medians,
    }
