"""How compute divides between N and D by every approach that a table of runs can carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws import panel
from scaling_jax.laws.allocation import (
    Allocation,
    approach_1,
    approach_2,
    approach_3,
    approach_3b,
)
from scaling_jax.laws.curves import Grid, curves_at
from scaling_jax.laws.forms import LAWS
from scaling_jax.laws.gather import gather
from scaling_jax.laws.isoflop import isoflop
from scaling_jax.laws.law_fit import fit_law
from scaling_jax.laws.request import require_constants, require_level
from scaling_jax.laws.result import plain

if TYPE_CHECKING:
    from scaling_jax.laws.law import Law
    from scaling_jax.laws.selection import Selection
    from scaling_jax.records.store import Records

# Of the least budget of a group: real runs miss their budget by a part of a step.
ONE_BUDGET = 0.01
ENVELOPE = "1: envelope"
ISOFLOP, PARABOLA = "2: isoFLOP, Akima", "2: isoFLOP, parabola"
SURFACE, PROJECTED = "3: surface", "3b: surface by variable projection"
_SURFACE = LAWS["l_nd_chinchilla"]
_OTHER_COMPUTE = 0.02  # of C away from 6 N D: then they are two measures of compute


@dataclass(frozen=True)
class Allocations:
    """The `allocations` that the rows carry, and why the other approaches are `refused`.

    `points`: run, N, D (tokens), C (FLOPs), loss (nats a token), and budget (FLOPs) where there is
    one. `optima` is the frame of `isoflop` where there are budgets, `grid` the smoothed curves
    where there are curves, in C_min with `critical_batch`. `columns` maps roles onto columns.
    `excluded`: {run_id, name, rule, reason, n_points} of rows. `flags` are sentences.
    """

    allocations: list[Allocation]
    refused: dict[str, str]
    points: pl.DataFrame
    optima: pl.DataFrame | None
    grid: Grid | None
    columns: dict[str, str]
    critical_batch: dict[str, float] | None
    level: float
    flags: list[str]
    excluded: list[dict[str, Any]]
    source: str

    def to_json(self) -> dict[str, Any]:
        """Plain data; a number that could not be had is null."""
        return plain(
            {
                "allocations": [each.to_json() for each in self.allocations],
                "refused": self.refused,
                "level": self.level,
                "n_points": self.points.height,
                "n_runs": self.points["run"].n_unique(),
                "columns": self.columns,
                "critical_batch": self.critical_batch,
                "flags": self.flags,
                "excluded": self.excluded,
                "source": self.source,
            }
        )


def allocate(
    records: Records,
    columns: Mapping[str, str] | None = None,
    *,
    where: str | None = None,
    critical_batch: Mapping[str, float] | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> Allocations:
    """N_opt and D_opt against compute, by each of Chinchilla's approaches that the rows carry.

    `columns` maps roles (N, D, C, budget, loss, run, batch_tokens) onto columns; `where` is a
    condition in SQL. With budgets: isoFLOP minima by interpolation and by a parabola; budgets that
    differ by less than 1 % are one. Without: the lower envelope of learning curves, in C_min with
    `critical_batch` {B_star (tokens), alpha_B}. In either case the closed form of the surface
    E + A/N^alpha + B/D^beta, fitted by Huber's loss and by variable projection. C is 6 N D where no
    column has it. An approach that the rows cannot carry is in `refused`, with its reason.

    Raises `RequestError` where the request is wrong, `WorkError` where no row is left. Sources:
    Hoffmann et al. 2022, section 3; Porian et al. 2024 (arXiv 2406.19146); Kaplan et al. 2020,
    eq. 5.5.
    """
    require_level(level)
    require_constants(critical_batch)
    selection = gather(records, _SURFACE, columns, where)
    sources = selection.table.sources
    if critical_batch is not None and "budget" in sources:
        raise RequestError(
            "critical_batch turns the compute of learning curves into C_min, and rows with a "
            f"budget ({sources['budget']}) are no curves"
        )
    if critical_batch is not None and (why := selection.table.missing("batch_tokens")):
        raise RequestError(f"C_min needs the batch in tokens: {why}")
    points = _points(selection)
    N, D, loss, run = (points[name].to_numpy() for name in ("N", "D", "loss", "run"))
    optima = grid = None
    attempts: dict[str, Callable[[], Allocation]] = {}
    if "budget" in sources:
        try:
            optima = isoflop(points["budget"], N, loss, D, seed=seed)
            attempts[ISOFLOP] = lambda: approach_2(optima, level=level, seed=seed)
            attempts[PARABOLA] = lambda: approach_2(optima, True, level, seed)
        except WorkError as error:
            attempts[ISOFLOP] = attempts[PARABOLA] = _refusing(error)
    else:
        try:
            batch = points["batch_tokens"] if critical_batch is not None else None
            grid = _curves(points, batch, critical_batch)
            attempts[ENVELOPE] = lambda: approach_1(grid, level, seed=seed)
        except WorkError as error:
            attempts[ENVELOPE] = _refusing(error)
    attempts[SURFACE] = lambda: _fitted(records, _SURFACE, columns, where, level, seed)
    attempts[PROJECTED] = lambda: _projected(N, D, loss, run, level, seed)
    found, refused = [], {}
    for method, attempt in attempts.items():
        try:
            found.append(attempt())
        except WorkError as error:
            refused[method] = str(error)
    return Allocations(
        allocations=found,
        refused=refused,
        points=points,
        optima=optima,
        grid=grid,
        columns={name: sources.get(name, "6 N D")
                 for name in ("run", "N", "D", "C", "budget", "loss")
                 if name in sources or name == "C"},
        critical_batch=dict(critical_batch) if critical_batch else None,
        level=level,
        flags=_flags(points),
        excluded=selection.excluded,
        source=records.source,
    )  # fmt: skip


def _points(selection: Selection) -> pl.DataFrame:
    spent = 6.0 * pl.col("N") * pl.col("D")
    sources = selection.table.sources
    if "budget" in sources:
        if not selection.points.schema["budget"].is_numeric():
            raise RequestError(f"Not numbers: column {sources['budget']} (budget)")
        bad = ~(pl.col("budget").is_finite() & (pl.col("budget") > 0)).fill_null(False)
        selection.drop(bad, "incomplete", f"no budget above 0 in {sources['budget']}")
    if selection.points.is_empty():
        raise WorkError("No row is left to find an optimum among")
    kept = [name for name in ("batch_tokens",) if name in sources]
    kept += ["U"] if "U" in sources else []
    frame = selection.points.select(
        "run", "N", "D", "loss", *kept,
        C=pl.coalesce("C", spent) if "C" in sources else spent,
        budget=pl.col("budget").cast(pl.Float64) if "budget" in sources else pl.lit(None),
    )  # fmt: skip
    if "budget" not in sources:
        return frame.drop("budget")
    budget = frame["budget"].to_numpy()
    return frame.with_columns(budget=pl.Series(_one_budget(budget)))


def _one_budget(budget: np.ndarray) -> np.ndarray:
    """Each budget (n,) as the median of those within a per cent above the least of them."""
    values = np.unique(budget)
    found = {}
    while values.size:
        same = values <= values[0] * (1 + ONE_BUDGET)
        found |= dict.fromkeys(values[same].tolist(), float(np.median(values[same])))
        values = values[~same]
    return np.array([found[value] for value in budget.tolist()])


def _curves(
    points: pl.DataFrame, batch: pl.Series | None, critical: Mapping[str, float] | None
) -> Grid:
    again = points.group_by("run", "C").len().filter(pl.col("len") > 1).sort("run", "C")
    if not again.is_empty():
        run, compute, count = again.row(0)
        raise WorkError(
            f"Run {run} has {count} rows at {compute:.4g} FLOPs, so its rows are no learning curve"
        )
    return curves_at(
        *(points[name] for name in ("C", "loss", "run", "N", "D")),
        batch_tokens=batch,
        critical=critical,
    )


def _refusing(error: WorkError) -> Callable[[], Allocation]:
    def refuse() -> Allocation:
        raise error

    return refuse


def _fitted(
    records: Records, law: Law, columns: Mapping[str, str] | None, where: str | None,
    level: float, seed: int,
) -> Allocation:  # fmt: skip
    fit = fit_law(records, law, columns, where, None, None, None, level, 0, seed)
    draws = dict(zip(fit.params, fit.draws.T, strict=True))
    found = approach_3(fit.params, draws, 1 - 2 * fit.tail)
    said = [f"red lamps of its fit: {', '.join(fit.flags)}"] if fit.flags else []
    return replace(found, level=level, flags=[*found.flags, *said])


def _projected(
    N: np.ndarray, D: np.ndarray, loss: np.ndarray, run: np.ndarray, level: float, seed: int
) -> Allocation:
    found = approach_3b(N, D, loss, run, level, seed=seed)
    residual = np.log(loss / _SURFACE.predict(found.params, N=N, D=D))
    lamp = panel.rms_residual(float(np.sqrt(np.mean(residual**2))))
    said = [] if lamp.ok else [f"{lamp.text} of its fit, above {lamp.threshold:.0%}"]
    return replace(found, flags=[*found.flags, *said])


def _flags(points: pl.DataFrame) -> list[str]:
    flags = []
    same = panel.replicates(points, ("N", "D"), "loss")
    if same.ok is False:
        flags.append(same.text)
    if "U" in points.columns and (count := points.filter(pl.col("D") > 1.001 * pl.col("U")).height):
        flags.append(f"{count} points have seen their tokens more than once, as no surface knows")
    ratio = points.select(pl.col("C") / (6.0 * pl.col("N") * pl.col("D"))).to_series()
    low, high = float(ratio.min()), float(ratio.max())  # pyright: ignore
    if low < 1 - _OTHER_COMPUTE or high > 1 + _OTHER_COMPUTE:
        flags.append(
            f"C is {low:.3g} to {high:.3g} times 6 N D: N counts something else than C does, and "
            "the surface (3, 3b) spends 6 N D"
        )
    return flags
