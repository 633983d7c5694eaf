"""Measure `lanes`: runs together in one program against the same runs one after another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from tools.benchmarks.ours import MIDDLE, SMALL, Shape, lanes_of, run_config, trained
from tools.benchmarks.tables import Table
from tools.benchmarks.timing import Effort, interleave, ratio

PAIRS = 15
PIECE_S = 0.5
LANES_ON_ACCELERATORS = (1, 4, 16, 64)


def lanes(effort: Effort) -> Iterator[Table]:
    """On a CPU a lane a device; on accelerators ever more lanes of one small model."""
    n_devices = len(jax.devices())
    if jax.default_backend() == "cpu":
        cases = [(SMALL, n_devices), (MIDDLE, n_devices)]
    else:
        cases = [(MIDDLE, n) for n in LANES_ON_ACCELERATORS]
    yield Table(
        "Runs as lanes of one program, against one run at a time, 16 x 128 bytes a batch",
        {
            "layers x d_model": "",
            "lanes": "",
            "together": "tokens/s",
            "together, a lane": "tokens/s",
            "one at a time": "tokens/s",
            "speed-up": "95 %",
        },
        [_row(shape, n, effort) for shape, n in cases],
        f"Medians of {effort.rounds(PAIRS)} interleaved pairs on {n_devices} device(s). One at a "
        "time, the rows of a run's batch are laid over all devices.",
    )


def _row(shape: Shape, n: int, effort: Effort) -> dict[str, Any]:
    config = run_config(shape)
    rates = interleave(
        {"together": trained(lanes_of(config, n)), "alone": trained([config])},
        effort.rounds(PAIRS),
        effort.seconds(PIECE_S),
    )
    together = float(np.median(rates["together"]))
    return {
        "layers x d_model": str(shape),
        "lanes": n,
        "together": together,
        "together, a lane": together / n,
        "one at a time": float(np.median(rates["alone"])),
        "speed-up": ratio(rates["together"], rates["alone"]),
    }
