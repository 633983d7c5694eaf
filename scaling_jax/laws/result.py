"""What a fit returns: the numbers, and beside them everything that says how far to trust them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from scaling_jax.laws.forms import LAWS
from scaling_jax.laws.panel import HeldOut, Lamp


@dataclass(frozen=True)
class Fit:
    """A law through measured losses (nats a token).

    `params` and `intervals` (name to (low, high) at `level`) are in the units of the law's
    formula; `correlation` (P, P) is of their logarithms, in the order of `params`. `held_out` has
    the worst relative error under `largest_N` and `later_half` (None: not measurable) and
    `held_out_detail` the whole of it. `points`: run_id, name, seed, N, S, step, loss, predicted,
    log_residual. `excluded`: {run_id, name, rule, reason, n_points}. `rivals`: other minima of the
    same objective. `other`: the same fit with N in the other convention, without a panel.
    """

    law: str
    params: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    level: float
    correlation: np.ndarray
    n_points: int
    n_runs: int
    objective: float
    objective_form: str
    rms_log_residual: float
    held_out: dict[str, float | None]
    held_out_detail: dict[str, HeldOut | None]
    points: pl.DataFrame
    convention: str
    window: dict[str, Any]
    steps_name: str
    rivals: list[dict[str, Any]]
    resamples: int
    source: str
    lamps: list[Lamp] = field(default_factory=list)
    excluded: list[dict[str, Any]] = field(default_factory=list)
    other: Fit | None = None

    @property
    def flags(self) -> list[str]:
        """The names of the red lamps."""
        return [lamp.name for lamp in self.lamps if lamp.ok is False]

    def predict(self, N: Any, S: Any) -> np.ndarray:
        """Loss in nats a token at sizes N and steps S (in `steps_name`), broadcast together."""
        return LAWS[self.law].predict(self.params, N=N, S=S)

    def to_json(self) -> dict[str, Any]:
        """Plain data without NaN: a number that could not be had is null."""
        doc = {
            "law": self.law,
            "formula": LAWS[self.law].formula,
            "convention": self.convention,
            "steps_name": self.steps_name,
            "params": self.params,
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "level": self.level,
            "resamples": self.resamples,
            "correlation": self.correlation.tolist(),
            "n_points": self.n_points,
            "n_runs": self.n_runs,
            "objective": self.objective,
            "objective_form": self.objective_form,
            "rms_log_residual": self.rms_log_residual,
            "held_out": self.held_out,
            "held_out_detail": {
                name: detail and detail._asdict() for name, detail in self.held_out_detail.items()
            },
            "window": self.window,
            "rivals": self.rivals,
            "flags": self.flags,
            "lamps": [lamp._asdict() for lamp in self.lamps],
            "excluded": self.excluded,
            "source": self.source,
            "other": None if self.other is None else self.other.to_json(),
        }
        return _plain(doc)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
