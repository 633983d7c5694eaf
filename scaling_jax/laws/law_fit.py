"""Any law through any table: points by rule, the fit, its intervals, held-out errors and panel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from scaling_jax.errors import WorkError
from scaling_jax.laws import panel
from scaling_jax.laws.comparison import compare_forms
from scaling_jax.laws.estimate import LARGEST_SHARE, drawn, estimate, held_out, named, ranges_of
from scaling_jax.laws.fitting import Objective, Points, make_points
from scaling_jax.laws.gather import gather
from scaling_jax.laws.identified import require_independent
from scaling_jax.laws.panel import HeldOut
from scaling_jax.laws.profile import profile
from scaling_jax.laws.restrict import restrict
from scaling_jax.laws.result import Fit

if TYPE_CHECKING:
    from scaling_jax.laws.law import Law
    from scaling_jax.laws.selection import Selection
    from scaling_jax.records.store import Records

# What every fit says of held-out errors, null where the law has no such axis.
_HELD_OUT = ("largest_N", "largest_C", "later_half")
# A model of as many parameters as the largest within this is one of the largest.
_SAME_SIZE = 0.99


def fit_law(
    records: Records,
    law: Law,
    columns: Mapping[str, str] | None,
    where: str | None,
    objective: Objective | None,
    fix: Mapping[str, float] | None,
    tie: Mapping[str, str] | None,
    level: float,
    resamples: int,
    seed: int,
) -> Fit:
    """Fit a law with everything that belongs beside it; see `laws.fit`.

    Raises `RequestError` for a wrong request, `WorkError` for data that cannot carry the law.
    """
    restricted = restrict(law, fix, tie)
    selection = gather(records, law, columns, where)
    frame = selection.points
    points = _points(frame, restricted, objective, "N")
    fixed = {**(fix or {}), **(tie or {})}
    require_independent(points, fixed)
    fit = replace(
        _fit_one(points, frame, selection, level, resamples, seed),
        source=records.source,
        fixed=fixed,
    )
    other = None
    if "N" in law.inputs and "N_other" in selection.table.sources:
        other = _in_other_convention(fit, selection, restricted, objective, level, resamples, seed)
    return replace(
        fit,
        other=other,
        lamps=_lamps(points, selection, fit, other),
        excluded=selection.excluded,
        forms=_forms(law, fit.points),
    )


def _points(frame: pl.DataFrame, law: Law, objective: Objective | None, size: str) -> Points:
    inputs = {name: frame[size if name == "N" else name].to_numpy() for name in law.inputs}
    return make_points(law, inputs, frame[law.output].to_numpy(), objective)


def _in_other_convention(
    fit: Fit, selection: Selection, law: Law, objective: Objective | None,
    level: float, resamples: int, seed: int,
) -> Fit | None:  # fmt: skip
    frame = selection.points
    if frame["N_other"].null_count():
        return None
    points = _points(frame, law, objective, "N_other")
    try:
        other = _fit_one(points, frame, selection, level, resamples, seed)
    except WorkError:
        return None
    return replace(
        other,
        columns={**other.columns, "N": selection.table.sources["N_other"]},
        source=fit.source,
        fixed=fit.fixed,
    )


def _fit_one(
    points: Points,
    frame: pl.DataFrame,
    selection: Selection,
    level: float,
    resamples: int,
    seed: int,
) -> Fit:
    law = points.law
    weights, run = _weights(frame), _runs(frame)
    found = estimate(points, weights, run, points.x[0], level, resamples, seed)
    residual = found.residual
    values = np.exp(points.x + points.x_centre[:, None])
    detail = _held_out(points, weights, frame, values)
    params = named(points, found.theta)
    output = frame[law.output].to_numpy()
    return Fit(
        law=law.slug,
        params=params,
        intervals=found.spread.intervals,
        derived=_derived(law, params, found.spread, level),
        level=level,
        interval_method=found.spread.method,
        interval_flag=found.spread.flag,
        correlation=found.spread.correlation,
        draws=drawn(found.spread),
        tail=found.spread.tail,
        n_points=frame.height,
        n_runs=int(run.max()) + 1,
        objective=found.objective,
        objective_form=points.objective.text,
        rms_log_residual=float(np.sqrt(np.average(residual**2, weights=weights))),
        held_out={**dict.fromkeys(_HELD_OUT), **{k: v and v.worst for k, v in detail.items()}},
        held_out_detail=detail,
        points=_point_table(frame, law, values, output, residual),
        columns={role: selection.table.sources[role] for role in ("run", *law.inputs, law.output)},
        ranges={
            name: ranges_of(row)
            for name, row in zip((*law.inputs, law.output), (*values, output), strict=True)
        },
        rivals=found.rivals,
        resamples=resamples,
        source="",
        rule=selection.rule,
    )


def _profiles(points: Points, frame: pl.DataFrame, fit: Fit) -> panel.Lamp:
    """Do the points close every exponent, offset and rate of decay in on both sides?"""
    law = points.law
    scales = {term for term in law.params if term not in (*law.exponents, law.offset)}
    asked = [
        name for name in law.params
        if name not in fit.fixed and (name not in scales or name.endswith("_star"))
    ]  # fmt: skip
    weights, run, theta = _weights(frame), _runs(frame), _theta(points, fit)
    flat = []
    for name in asked:
        found = profile(points, theta, weights, run, name, fit.level)
        if found.is_flat:
            low, high = found.interval
            side = "either way" if low is high else "downwards" if low is None else "upwards"
            flat.append(f"{name} is open {side}")
    return panel.profiles(flat, asked)


def _weights(frame: pl.DataFrame) -> np.ndarray:
    return frame["weight"].to_numpy() if "weight" in frame.columns else np.ones(frame.height)


def _runs(frame: pl.DataFrame) -> np.ndarray:
    return np.unique(frame["run"].to_numpy(), return_inverse=True)[1]


def _theta(points: Points, fit: Fit) -> np.ndarray:
    """The inner coordinates of a fit to these points."""
    with np.errstate(divide="ignore"):  # an offset that is held at zero
        log_params = np.log(np.array([fit.params[name] for name in points.law.params]))
    return points.law.from_log_params(log_params, points.x_centre, points.y_centre)


def _derived(law, params, spread, level) -> dict[str, tuple[float, float, float]]:
    found = {}
    draws = dict(zip(law.params, drawn(spread).T, strict=True))
    for name, function in law.derived.items():
        low, high = np.quantile(np.asarray(function(draws)), [spread.tail, 1 - spread.tail])
        found[name] = (float(function(params)), float(low), float(high))
    return found


def _held_out(
    points: Points, weights: np.ndarray, frame: pl.DataFrame, values: np.ndarray
) -> dict[str, HeldOut | None]:
    """Hide the largest N, the largest compute, the later half of every curve; predict them."""
    inputs = dict(zip(points.law.inputs, values, strict=True))
    detail: dict[str, HeldOut | None] = {}
    if points.law.output != "loss":
        return detail
    if "N" in inputs:
        hidden = inputs["N"] >= _SAME_SIZE * inputs["N"].max()
        detail["largest_N"] = held_out(points, weights, hidden)
    compute = _compute(inputs, frame)
    if compute is not None:
        hidden = compute >= LARGEST_SHARE * compute.max()
        detail["largest_C"] = held_out(points, weights, hidden)
    elif "D" in inputs:
        hidden = inputs["D"] >= LARGEST_SHARE * inputs["D"].max()
        detail["largest_D"] = held_out(points, weights, hidden)
    of_run = frame.select(pl.len().over("run")).to_series().to_numpy()
    axis = next((name for name in ("S", "D") if name in frame.columns), None)
    if axis is not None and np.any(of_run > 1):
        end = frame.select(pl.col(axis).max().over("run")).to_series().to_numpy()
        place = frame[axis].to_numpy()
        later = place > end / 2
        hidden = later & (of_run > 1)  # a run of one point has no earlier half
        detail["later_half"] = held_out(points, weights * (hidden | ~later), hidden, place == end)
    return detail


def _forms(law: Law, points: pl.DataFrame) -> dict[str, Any] | None:
    """Which form predicts the largest values of a law's one variable best, or None."""
    if law.inputs not in (("N",), ("D",), ("C",)):
        return None
    try:
        return compare_forms(points[law.inputs[0]], points["loss"], law.inputs[0]).to_json()
    except WorkError:
        return None


def _compute(inputs: Mapping[str, np.ndarray], frame: pl.DataFrame) -> np.ndarray | None:
    if "C" in inputs:
        return inputs["C"]
    size = inputs.get("N")
    tokens = frame["D"].to_numpy() if "D" in frame.columns else None
    if size is None or tokens is None:
        return None
    with np.errstate(over="ignore"):  # only compared
        return size * tokens


def _point_table(
    frame: pl.DataFrame, law: Law, values: np.ndarray, output: np.ndarray, residual: np.ndarray
) -> pl.DataFrame:
    absent = pl.lit(None, pl.Int64)
    return frame.select(
        run_id="run",
        name=pl.col("name") if "name" in frame.columns else pl.col("run"),
        seed=pl.col("seed") if "seed" in frame.columns else absent,
        step=pl.col("S") if "S" in frame.columns else absent,
        **{name: pl.Series(row) for name, row in zip(law.inputs, values, strict=True)},
        loss=pl.Series(output),
        predicted=pl.Series(output * np.exp(-residual)),
        log_residual=pl.Series(residual),
    )


def _lamps(points: Points, selection: Selection, fit: Fit, other: Fit | None) -> list[panel.Lamp]:
    law = points.law
    detail = fit.held_out_detail
    lamps = [
        panel.complete_rows(selection),
        *panel.stopped(selection.points),
        *panel.distinct_values({name: fit.points[name].to_numpy() for name in law.inputs}),
        panel.interval_promise(fit.interval_flag, fit.n_runs),
        panel.rms_residual(fit.rms_log_residual),
        panel.replicates(fit.points, law.inputs, law.output),
    ]
    what = {
        "largest_N": "the largest N from the smaller ones",
        "largest_C": "the upper half of compute from the rest",
        "largest_D": "the upper half of data from the rest",
        "later_half": "the second half of every run from the first",
    }
    lamps += [panel.held_out(name, what[name], detail[name]) for name in detail]
    if "N" in law.inputs:
        lamps.append(
            panel.shift(
                "convention_shift",
                f"N as {fit.convention} and as {other.convention}" if other else "",
                fit.params,
                [other.params] if other else [],
                "the table has one convention of N",
                exponents=law.exponents,
            )
        )
    lamps += [
        panel.single_minimum(fit.objective, fit.rivals),
        _profiles(points, selection.points, fit),
    ]
    return lamps
