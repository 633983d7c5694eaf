"""B_crit(L) from a batch sweep: Pareto hyperbolas at a ladder of loss levels, and a law in L.

McCandlish et al. (2018), eq. 2.11 and appendix A.3; Kaplan et al. (2020), eq. 5.1 to 5.3. The law
itself, as a function of the loss, is `forms.critical_batch`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import ArrayLike
from scipy import stats

from scaling_jax.errors import RequestError, WorkError, nearest
from scaling_jax.laws.arrays import columns
from scaling_jax.laws.hyperbola import (
    LEAST,
    OVERHEAD,
    Bounded,
    Hyperbola,
    fit_hyperbola,
    known_definition,
    solve_hyperbola,
)
from scaling_jax.laws.noise_scale import short_number
from scaling_jax.laws.regression import jackknife, line_over, student

_BENT = 0.01
_FLOAT = 700.0  # ln of what a float holds


class PowerLine(NamedTuple):
    """y = coefficient x^exponent, by weighted least squares in logarithms.

    `covariance` (2, 2) is of (ln coefficient, exponent), `quantile` the t that makes intervals.
    """

    coefficient: float
    exponent: float
    covariance: np.ndarray
    quantile: float
    chi2: float | None
    df: int
    log_residual: np.ndarray


def power_line(
    x: ArrayLike, y: ArrayLike, se_log: ArrayLike | None = None, level: float = 0.9
) -> PowerLine:
    """The power law through independent points (n,), with the standard errors of ln y (n,).

    `chi2` over `df` (None without `se_log`) above 1 means that the points scatter more than their
    standard errors say, and the covariance is scaled up to it; it is never scaled down.
    Raises `RequestError` for values that are not positive and finite, `WorkError` for fewer than
    three points, a single x, or an x so short of range that the coefficient is beyond floats.
    """
    x, y, se = columns(x=x, y=y, se_log=1.0 if se_log is None else se_log)
    log_x, log_y, weight = np.log(x), np.log(y), se**-2.0
    if log_x.size < LEAST or np.ptp(log_x) == 0:
        raise WorkError(f"{log_x.size} points at {np.unique(log_x).size} places make no power law")
    gain, inverse = line_over(log_x, weight)
    log_coefficient, exponent = (gain @ log_y).tolist()
    if abs(log_coefficient) > _FLOAT:
        raise WorkError(
            f"x from {math.exp(log_x.min()):.4g} to {math.exp(log_x.max()):.4g} is too short a "
            f"range for a power law: its exponent would be {exponent:.3g}"
        )
    residual = log_y - log_coefficient - exponent * log_x
    df = log_x.size - 2
    chi2 = float(weight @ residual**2)
    scale = chi2 / df if se_log is None else max(1.0, chi2 / df)
    return PowerLine(
        *(math.exp(log_coefficient), exponent, scale * inverse),
        quantile=float(student(level, df)),
        chi2=None if se_log is None else chi2,
        df=df,
        log_residual=residual,
    )


@dataclass(frozen=True)
class BatchLaw:
    """B_crit(L) = B_star / L^(1 / alpha_B), L in nats a token, B_star in the unit of the batches.

    `chi2` (None without standard errors) of the `n_levels` points has `df` degrees of freedom;
    `method` says what the intervals at `level` rest on.
    """

    B_star: Bounded
    alpha_B: Bounded
    definition: str
    level: float
    chi2: float | None
    df: int
    n_levels: int
    rms_log_residual: float
    method: str

    @property
    def bent(self) -> bool:
        """Whether the levels scatter about the law by more than chance (1 %) allows."""
        return self.chi2 is not None and bool(stats.chi2.sf(self.chi2, self.df) < _BENT)


def fit_b_crit(
    loss: ArrayLike,
    batch: ArrayLike,
    se_log: ArrayLike | None = None,
    definition: str = "kaplan",
    level: float = 0.9,
) -> BatchLaw:
    """B_crit(L) through critical batch sizes `batch` (n,) at losses (n,) that are independent.

    Regresses ln B on ln L, weighted by `se_log` (n,) of ln B where given; `definition` only says
    by which the batch sizes were measured. Levels of the same runs are not independent: `ladder`
    knows. Raises as `power_line`, and `WorkError` where B_crit does not rise as the loss falls.
    Source: Kaplan et al. (2020), eq. 5.3.
    """
    known_definition(definition)
    line = power_line(loss, batch, se_log, level)
    return batch_law(
        line, definition, level, f"t with {line.df} degrees, levels taken as independent"
    )


class Rung(NamedTuple):
    """A loss level in nats a token and the hyperbola of the steps that reach it."""

    loss: float
    hyperbola: Hyperbola


@dataclass(frozen=True)
class Ladder:
    """Hyperbolas at loss levels, highest loss first, and the B_crit(L) through the identified.

    `law` is None where the levels do not carry one, and `reason` says why. `excluded`: {rule,
    reason, loss, batch, n_points}, batch None where the whole level is out.
    """

    rungs: list[Rung]
    law: BatchLaw | None
    reason: str
    definition: str
    reference_batch: float
    excluded: list[dict[str, Any]]


def ladder(
    table: pl.DataFrame,
    definition: str = "kaplan",
    reference_batch: float = 0.0,
    level: float = 0.9,
) -> Ladder:
    """One hyperbola a loss level of a batch sweep of one model, and B_crit(L) through them.

    `table`: one row a (batch, loss level), or more with seeds: `batch` (tokens or sequences),
    `loss` (the level, nats a token), `steps` to reach it (null: not reached), and optionally
    `at_edge` (boolean; `fastest` makes it). Several rows of a batch and level are one point, their
    mean ln steps: runs of one seed share their initial draw at every batch size, so that they are
    late together, and rows would count that as scatter about the hyperbola. The regression weighs
    levels by their profile intervals. Its own interval comes from leaving out one batch size at a
    time through the whole chain (jackknife, t with two degrees less than batch sizes): the levels
    share their runs, and what is wrong with one run is wrong at each of them.

    Raises `RequestError` for missing columns, values that are not positive and finite and an
    unknown definition, `WorkError` where no level has three batch sizes.
    """
    known_definition(definition)
    for name in ("batch", "loss", "steps"):
        if name not in table.columns:
            raise RequestError(f"No column {name!r} in the sweep.{nearest(name, table.columns)}")
    rungs, excluded = [], []
    reached = table.drop_nulls(["batch", "loss", "steps"]).sort("loss", descending=True)
    for (loss,), rows in reached.group_by("loss", maintain_order=True):
        rows = _means(rows)
        edge = rows["at_edge"] if "at_edge" in rows.columns else None
        try:
            found = fit_hyperbola(rows["batch"], rows["steps"], at_edge=edge, level=level)
        except WorkError as error:
            excluded.append(_left_out("few_batch_sizes", str(error), rows.height, loss))
            continue
        rungs.append(Rung(float(loss), found))
        excluded += [{**row, "loss": loss} for row in found.excluded]
        if not found.identified:
            excluded.append(_left_out("one_sided", found.reason, found.batch.size, loss))
    if not rungs:
        raise WorkError(f"No loss level was reached at {LEAST} usable batch sizes")
    law, reason = None, ""
    try:
        law = law_through(rungs, definition, reference_batch, level)
    except WorkError as error:
        reason = str(error)
    return Ladder(rungs, law, reason, definition, reference_batch, excluded)


def fastest(table: pl.DataFrame) -> pl.DataFrame:
    """The rows of the fastest setting of each (batch, loss), with `at_edge`.

    `table`: one row a (run, loss level): `batch`, `loss`, `lr`, `steps` (null: never reached, which
    counts as slowest), and optionally `setting`, what else was tuned beside the rate. Seeds at one
    setting and rate are compared by their mean ln steps and all are kept. `at_edge` where that rate
    is the smallest or largest tried at the batch size: the best may lie beyond. Source: McCandlish
    et al. (2018), appendix A.2 and A.3.
    """
    tuned = ["setting"] if "setting" in table.columns else []
    grid = table.group_by("batch").agg(first=pl.col("lr").min(), last=pl.col("lr").max())
    speed = pl.col("steps").log().fill_null(math.inf).mean()
    best = (
        table.group_by("batch", "loss", "lr", *tuned, maintain_order=True)
        .agg(speed=speed)
        .filter(pl.col("speed").is_finite())
        .sort("speed", "lr", *tuned)
        .unique(["batch", "loss"], keep="first", maintain_order=True)
    )
    edge = (pl.col("lr") == pl.col("first")) | (pl.col("lr") == pl.col("last"))
    return (
        table.join(best.drop("speed"), on=["batch", "loss", "lr", *tuned], how="semi")
        .join(grid, on="batch", how="left", maintain_order="left")
        .with_columns(at_edge=edge)
        .drop("first", "last")
    )


def _means(rows: pl.DataFrame) -> pl.DataFrame:
    """One row a batch of a level: the geometric mean of its steps."""
    mean = {"steps": pl.col("steps").log().mean().exp()}
    if "at_edge" in rows.columns:
        mean["at_edge"] = pl.col("at_edge").any()
    return rows.group_by("batch", maintain_order=True).agg(**mean)


def _left_out(rule: str, reason: str, n_points: int, loss: Any) -> dict[str, Any]:
    return {"rule": rule, "reason": reason, "loss": loss, "batch": None, "n_points": n_points}


def law_through(rungs: Sequence[Rung], definition: str, reference: float, level: float) -> BatchLaw:
    """B_crit(L) through the identified rungs of one model or of several, as in `ladder`.

    Raises `WorkError` where fewer than three levels are identified, or B_crit does not rise as the
    loss falls.
    """
    # Where one batch size is left out, three must remain.
    used = [
        rung
        for rung in rungs
        if rung.hyperbola.identified and np.unique(rung.hyperbola.batch).size > LEAST
    ]
    if len(used) < LEAST:
        raise WorkError(
            f"{len(used)} of {len(rungs)} loss levels identify B_crit from {LEAST + 1} batch sizes "
            f"or more: at least {LEAST} levels are needed"
        )
    found = [rung.hyperbola.critical(definition, reference) for rung in used]
    value, low, high = (
        np.array([getattr(each, name) for each in found], dtype=np.float64)
        for name in ("value", "low", "high")
    )
    # Half the profile interval over its t, and not the local error: it knows a profile that bends.
    # At the scatter of all levels together: that of one is known too poorly to make a weight.
    df = np.array([rung.hyperbola.batch.size - 2 for rung in used])
    rss = np.array([rung.hyperbola.rms_log_residual for rung in used]) ** 2 * (df + 2)
    own, pooled = np.maximum(rss / df, 1e-24), max(rss.sum() / df.sum(), 1e-24)
    half = np.log(high / low) / 2 / student(level, df)
    se = np.maximum(half, 1e-12) * np.sqrt(pooled / own)
    loss = np.array([rung.loss for rung in used])
    line = power_line(loss, value, se, level)
    sizes = np.unique(np.concatenate([rung.hyperbola.batch for rung in used]))
    without = np.stack([_without(rung, sizes, definition, reference) for rung in used])
    covariance = jackknife(line_over(np.log(loss), se**-2.0).gain @ without)
    quantile = float(student(level, sizes.size - 2))
    method = f"jackknife over {sizes.size} batch sizes, t with {sizes.size - 2} degrees"
    return batch_law(
        line._replace(covariance=covariance, quantile=quantile), definition, level, method
    )


def _without(rung: Rung, sizes: np.ndarray, definition: str, reference: float) -> np.ndarray:
    """ln of the critical batch (sizes,) of a rung refitted without each batch size in turn."""
    b, y = np.log(rung.hyperbola.batch), np.log(rung.hyperbola.steps)
    weights = (rung.hyperbola.batch[None, :] != sizes[:, None]).astype(np.float64)
    c = solve_hyperbola(b, np.broadcast_to(y, weights.shape), weights)
    if definition == "kaplan":
        return c
    return np.log((1 + OVERHEAD) * reference + OVERHEAD * np.exp(c))


def batch_law(line: PowerLine, definition: str, level: float, method: str) -> BatchLaw:
    """The line of ln B on ln L as a law, with the line's covariance and quantile at `level`.

    Raises `WorkError` where B does not rise as the loss falls.
    """
    slope, se_slope = line.exponent, math.sqrt(line.covariance[1, 1])
    if slope >= 0:
        raise WorkError(
            f"B_crit does not rise as the loss falls (it goes as L^{slope:.3g}), so there is no "
            "B_star / L^(1 / alpha_B)"
        )
    se_star = math.sqrt(line.covariance[0, 0])
    low, high = (math.log(line.coefficient) + sign * line.quantile * se_star for sign in (-1, 1))
    steepest, flattest = slope - line.quantile * se_slope, slope + line.quantile * se_slope
    return BatchLaw(
        B_star=Bounded(
            line.coefficient,
            se_star,
            math.exp(low) if low > -_FLOAT else None,
            math.exp(high) if high < _FLOAT else None,
        ),
        alpha_B=Bounded(
            -1 / slope,
            -se_slope / slope,
            -1 / steepest,
            -1 / flattest if flattest < 0 else None,
        ),
        definition=definition,
        level=level,
        chi2=line.chi2,
        df=line.df,
        n_levels=line.log_residual.size,
        rms_log_residual=float(np.sqrt(np.mean(line.log_residual**2))),
        method=method,
    )


def describe_ladder(found: Ladder, unit: str = "tokens") -> str:
    """A table of the levels with B_crit by both definitions, the law, and what was left out."""
    reference = short_number(found.reference_batch)
    rows = [["loss", "S_min", "E_min", "E_min/S_min", "interval", "20 % rule", "rms", "arms"]]
    for loss, h in found.rungs:
        by_rule = "-"
        if h.identified:
            by_rule = short_number(h.critical("zhang", found.reference_batch).value)
        rows.append(
            [
                f"{loss:.4g}",
                *(_short(each) for each in (h.S_min, h.E_min, h.B_crit)),
                _interval(h.B_crit),
                by_rule,
                f"{h.rms_log_residual:.2%}",
                "both" if h.both_arms else "in part" if h.identified else "one",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    lines += [
        "",
        f"Loss in nats a token, S in steps, E and B in {unit}.",
        f"20 % rule: largest batch within 1.2 times linear scaling from B_0 = {reference}.",
    ]
    law = found.law
    if law is None:
        return "\n".join([*lines, f"No B_crit(L): {found.reason}"])
    lines.append(
        f"{law.definition}: B_crit = B_star / L^(1 / alpha_B), B_star {_short(law.B_star)} "
        f"({_interval(law.B_star)}), alpha_B {_short(law.alpha_B)} ({_interval(law.alpha_B)})"
    )
    if law.bent:
        lines.append(
            "The levels scatter more than their intervals allow: no power law of the loss."
        )
    scatter = "" if law.chi2 is None else f"chi2 {law.chi2:.3g} of {law.df}, "
    lines.append(f"{scatter}rms {law.rms_log_residual:.2%}; {law.level:.0%} by {law.method}")
    return "\n".join(lines)


def _short(estimate: Bounded) -> str:
    return "-" if estimate.value is None else short_number(estimate.value)


def _interval(estimate: Bounded) -> str:
    low, high = (None if end is None else short_number(end) for end in estimate[2:])
    if low is None or high is None:
        return f"> {low}" if low else f"< {high}" if high else "unknown"
    return f"{low} .. {high}"
