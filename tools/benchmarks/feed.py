"""Measure `feed`: batches gathered from tokens on the device, against batches the host sends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from scaling_jax.config import EngineConfig
from tools.benchmarks.ours import MIDDLE, SMALL, Shape, run_config, trained
from tools.benchmarks.tables import Table
from tools.benchmarks.timing import Effort, interleave, ratio

PAIRS = 15
PIECE_S = 2.0  # long against the start of the host's threads, which is part of each piece


def feed(effort: Effort) -> Iterator[Table]:
    """The same batches, the same run."""
    yield Table(
        "Where batches come from, 16 x 128 bytes each",
        {
            "layers x d_model": "",
            "from the device": "tokens/s",
            "from the host": "tokens/s",
            "device / host": "ratio, 95 %",
        },
        [_row(shape, effort) for shape in (SMALL, MIDDLE)],
        f"Medians of {effort.rounds(PAIRS)} interleaved pairs of {effort.seconds(PIECE_S)} s "
        "pieces; the host's threads start and end with each of theirs.",
    )


def _row(shape: Shape, effort: Effort) -> dict[str, Any]:
    rates = interleave(
        {
            "device": trained([run_config(shape, engine=EngineConfig(feed="device"))]),
            "host": trained([run_config(shape, engine=EngineConfig(feed="host"))]),
        },
        effort.rounds(PAIRS),
        effort.seconds(PIECE_S),
    )
    return {
        "layers x d_model": str(shape),
        "from the device": float(np.median(rates["device"])),
        "from the host": float(np.median(rates["host"])),
        "device / host": ratio(rates["device"], rates["host"]),
    }
