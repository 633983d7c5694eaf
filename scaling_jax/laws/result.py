"""What a fit returns: the numbers, and beside them everything that says how far to trust them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from scaling_jax.laws.forms import LAWS
from scaling_jax.laws.panel import HeldOut, Lamp

# Of the JSON that a fit is kept in; a file of another one is refused by name.
FORMAT = 1
_DRAWS_KEPT = 1000


@dataclass(frozen=True)
class Fit:
    """A law through measured values of its output (losses in nats a token).

    `params` and `intervals` (name to (low, high) at `level`) are in the units of the law's
    formula, `derived` (name to (value, low, high)) are functions of them; `correlation` (P, P) is
    of their logarithms, in the order of `params`. `draws` (R, P) are joint draws of the
    parameters: what is computed from each has its interval between the quantiles `tail` and
    1 - `tail`. `interval_method` says in words how they were made, `interval_flag` why they may not
    cover as often as `level` says. `held_out` has the worst
    relative error under `largest_N`, `largest_C` and `later_half` (None: not measurable) and
    `held_out_detail` the whole of it. `points`: run_id, name, seed, the law's inputs, the output
    as `loss`, predicted, log_residual, and `step` where steps are known. `columns` maps each role
    onto the column it was read from, `ranges` each input onto (least, most) of the points.
    `excluded`: {run_id, name, rule, reason, n_points}. `rivals`: other minima of the same
    objective. `critical_batch`: constants that turned S into S_min. `window`: the steps that
    entered, of a law of S. `other`: the same fit with N in the other convention, without a panel.
    `forms`: of a law in one variable, power law, power law plus constant and logarithm with the
    errors of their predictions (`comparison.compare_forms`). `slopes`: of `l_ns`, the exponents of
    the learning curves of each N and the test of their equality (`slopes.curve_slopes`). Either is
    plain data, None where it could not be had.
    """

    law: str
    params: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    derived: dict[str, tuple[float, float, float]]
    level: float
    interval_method: str
    interval_flag: str | None
    correlation: np.ndarray
    draws: np.ndarray
    tail: float
    n_points: int
    n_runs: int
    objective: float
    objective_form: str
    rms_log_residual: float
    held_out: dict[str, float | None]
    held_out_detail: dict[str, HeldOut | None]
    points: pl.DataFrame
    columns: dict[str, str]
    ranges: dict[str, tuple[float, float]]
    rivals: list[dict[str, Any]]
    resamples: int
    source: str
    rule: str
    fixed: dict[str, float | str] = field(default_factory=dict)
    steps_name: str = ""
    critical_batch: dict[str, float] | None = None
    window: dict[str, Any] | None = None
    lamps: list[Lamp] = field(default_factory=list)
    excluded: list[dict[str, Any]] = field(default_factory=list)
    other: Fit | None = None
    forms: dict[str, Any] | None = None
    slopes: dict[str, Any] | None = None

    @property
    def convention(self) -> str:
        """The column that N was read from, or nothing where the law has no N."""
        return self.columns.get("N", "")

    @property
    def flags(self) -> list[str]:
        """The names of the red lamps."""
        return [lamp.name for lamp in self.lamps if lamp.ok is False]

    def predict(self, **inputs: Any) -> np.ndarray:
        """The law's output at its inputs, broadcast together; losses in nats a token."""
        return LAWS[self.law].predict(self.params, **inputs)

    def to_json(self) -> dict[str, Any]:
        """Plain data without NaN: a number that could not be had is null."""
        doc = {
            "format": FORMAT,
            "law": self.law,
            "formula": LAWS[self.law].formula,
            "convention": self.convention,
            "columns": self.columns,
            "steps_name": self.steps_name,
            "params": self.params,
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "derived": {
                name: {"value": value, "interval": [low, high]}
                for name, (value, low, high) in self.derived.items()
            },
            "fixed": self.fixed,
            "level": self.level,
            "interval_method": self.interval_method,
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
            "rule": self.rule,
            "window": self.window,
            "critical_batch": self.critical_batch,
            "ranges": {name: list(ends) for name, ends in self.ranges.items()},
            "rivals": self.rivals,
            "flags": self.flags,
            "lamps": [lamp._asdict() for lamp in self.lamps],
            "excluded": self.excluded,
            "source": self.source,
            "tail": self.tail,
            "draws": self._kept_draws(),
            "forms": self.forms,
            "slopes": self.slopes,
            "other": None if self.other is None else self.other.to_json(),
        }
        return plain(doc)

    def _kept_draws(self) -> dict[str, list[float]] | None:
        """Some of the draws, for what is computed from the fit; None where float64 lost one."""
        kept = self.draws[:_DRAWS_KEPT]
        if not np.isfinite(kept).all():
            return None
        return {
            name: [float(f"{value:.6g}") for value in kept[:, i]]
            for i, name in enumerate(self.params)
        }


def plain(value: Any) -> Any:
    """Plain data for JSON: no NumPy, and null for a number that is not finite."""
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
