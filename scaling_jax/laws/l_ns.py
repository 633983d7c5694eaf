"""L(N, S) from the records: points by rule, the fit, its intervals, its held-out errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from scaling_jax.errors import RequestError, WorkError, nearest
from scaling_jax.laws import panel, uncertainty
from scaling_jax.laws.fitting import (
    DELTA,
    Points,
    make_points,
    minima,
    require_identified,
    solve,
)
from scaling_jax.laws.forms import L_NS
from scaling_jax.laws.noise_scale import noise_scale
from scaling_jax.laws.panel import HeldOut
from scaling_jax.laws.result import Fit
from scaling_jax.laws.selection import MIN_SIZES, Selection, select
from scaling_jax.laws.window import WINDOW_RULE, Holding, Measured, Window, where_it_holds

if TYPE_CHECKING:
    from scaling_jax.records.store import Records

_MAX_EXPONENT_SPAN = 10.0  # of an interval, high over low
_MAX_FAILED = 0.1  # of the resamples
_CORNERS = L_NS.starts[[0, -1]]  # opposite ends of the grid of starts


def fit_l_ns(
    records: Records,
    columns: Mapping[str, str] | None = None,
    critical_batch: Mapping[str, float] | None = None,
    level: float = 0.9,
    resamples: int = 500,
    seed: int = 0,
) -> Fit:
    """Fit L(N, S) (Kaplan et al. 2020, eq. 1.6) with everything that belongs beside it.

    `columns` maps roles (N, S, loss, run, lr, ...) onto a foreign table's columns;
    `critical_batch` {B_star, alpha_B} converts S to S_min by eq. 5.4, and without it S is steps at
    fixed batch. Raises `RequestError` for wrong columns, constants, level or losses, `WorkError`
    for data that cannot carry the law.
    """
    _check_request(critical_batch, level, resamples)
    selection = select(records, columns, one_batch=critical_batch is None)
    held = where_it_holds(selection, critical_batch)
    data, points, window = held.data, held.points, held.window
    rng = np.random.default_rng(seed)
    weights = uncertainty.resample_weights(
        rng, data.run, data.size_of_run, data.step, window.beside, resamples
    )
    fit = replace(
        _fit_one(points, data, window, weights, level),
        convention=selection.table.sources["N"],
        steps_name="S_min" if critical_batch else "steps at fixed batch",
        source=records.source,
    )
    other = None
    if "N_other" in selection.table.sources:
        size = data.frame["N_other"].to_numpy()
        twin = make_points(L_NS, {"N": size, "S": data.steps}, data.loss)
        other = replace(
            _fit_one(twin, replace(data, size=size), window, weights, level),
            convention=selection.table.sources["N_other"],
            steps_name=fit.steps_name,
            source=fit.source,
        )
    moved = _beside(points, data, window)
    resized = _other_sizes(held)
    selection.drop(
        pl.col("S") < window.start,
        "before the window",
        f"before the first step of the window, {window.start:.0f}",
    )
    noise = _noise(records, selection)
    return replace(
        fit,
        other=other,
        lamps=_lamps(selection, fit, other, moved, resized, noise),
        excluded=selection.excluded,
    )


def _check_request(
    critical_batch: Mapping[str, float] | None, level: float, resamples: int
) -> None:
    if not 0 < level < 1:
        raise RequestError(f"level is a share between 0 and 1, not {level:g}")
    if resamples < 100:
        raise RequestError(f"{resamples} resamples cannot give an interval; 100 or more")
    if critical_batch is None:
        return
    for name, value in critical_batch.items():
        if name not in ("B_star", "alpha_B"):
            known = ("B_star", "alpha_B")
            raise RequestError(f"critical_batch has no constant {name!r}.{nearest(name, known)}")
        if not (np.isfinite(value) and value > 0):
            raise RequestError(f"critical_batch {name} is positive, not {value:g}")
    if len(critical_batch) < 2:
        raise RequestError("critical_batch needs B_star (tokens) and alpha_B")


def _fit_one(
    points: Points, data: Measured, window: Window, weights: np.ndarray, level: float
) -> Fit:
    """The fit in one convention of N, without a panel."""
    inside = data.step >= window.start
    solution = solve(points, inside[None, :].astype(float))
    require_identified(points, solution)
    theta = solution.theta[0]
    residual = points.residuals(theta)[inside]
    others = minima(points, inside.astype(float))
    samples = _resample(points, np.concatenate([theta[None], others.theta[1:3]]), weights)
    runs = data.size_of_run.size
    ends = uncertainty.intervals(
        dict(zip(L_NS.params, np.exp(samples).T, strict=True)), level, runs
    )
    _require_exponents(ends, level)
    detail = {
        "largest_N": _held_out(points, data, inside, data.size == data.size.max()),
        "later_half": _held_out(points, data, inside, data.step > data.end / 2),
    }
    return Fit(
        law=L_NS.slug,
        params=_named(points, theta),
        intervals=ends,
        level=level,
        correlation=uncertainty.correlation(samples),
        n_points=int(inside.sum()),
        n_runs=int(np.unique(data.run[inside]).size),
        objective=float(solution.objective[0]),
        objective_form=f"sum over points of Huber(log residual; delta = {DELTA:g})",
        rms_log_residual=float(np.sqrt(np.mean(residual**2))),
        held_out={name: found and found.worst for name, found in detail.items()},
        held_out_detail=detail,
        points=_point_table(data, inside, residual),
        convention="",
        window={
            "step_start": window.start,
            "rule": WINDOW_RULE,
            "criterion_met": window.met,
            "allowed": list(window.allowed),
            "resampled": list(window.beside),
        },
        steps_name="",
        rivals=[
            {"params": _named(points, rival), "objective": float(value)}
            for rival, value in zip(others.theta[1:], others.objective[1:], strict=True)
        ],
        resamples=len(weights),
        source="",
    )


def _named(points: Points, theta: np.ndarray) -> dict[str, float]:
    values = np.exp(points.log_params(theta)).tolist()
    return dict(zip(points.law.params, values, strict=True))


def _resample(points: Points, near: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Log parameters (resamples, P). Starts at the known minima and at two far corners."""
    found = solve(points, weights, starts=np.concatenate([near, _CORNERS]))
    failed = float(np.mean(~found.converged | found.at_bound))
    if failed > _MAX_FAILED:
        raise WorkError(
            f"The points do not identify L(N, S): with whole runs drawn at random, {failed:.0%} of "
            "the fits lose a term or do not converge. More sizes, or more steps, are needed"
        )
    return points.log_params(found.theta[found.converged])


def _require_exponents(ends: Mapping[str, tuple[float, float]], level: float) -> None:
    for name in L_NS.exponents:
        low, high = ends[name]
        if high > _MAX_EXPONENT_SPAN * low:
            raise WorkError(
                f"{name} is not identified: its {level:.0%} interval runs from {low:.3g} to "
                f"{high:.3g}. A wider range of {name[-1]} is needed"
            )


def _held_out(
    points: Points, data: Measured, inside: np.ndarray, hidden: np.ndarray
) -> HeldOut | None:
    """Errors of the window's `hidden` points, from a fit to the others; None where it has none."""
    seen, hidden = inside & ~hidden, inside & hidden
    counts = np.unique(data.size[seen], return_counts=True)[1]
    least = MIN_SIZES - 1 if np.unique(data.size[hidden]).size == 1 else MIN_SIZES
    if not hidden.any() or np.sum(counts >= 2) < least:
        return None
    solution = solve(points, seen[None, :].astype(float))
    if not solution.converged[0]:
        return None
    error = np.abs(np.expm1(-points.residuals(solution.theta[0])))
    return HeldOut(
        worst=float(error[hidden].max()),
        median=float(np.median(error[hidden])),
        final=float(error[hidden & (data.step == data.end)].max()),
        n_points=int(hidden.sum()),
    )


def _beside(points: Points, data: Measured, window: Window) -> list[dict[str, float]]:
    """The parameters from starts a factor of sqrt(2) earlier and later, where allowed."""
    starts = [start for start in window.beside if start != window.start]
    if not starts:
        return []
    found = solve(points, (data.step >= np.array(starts)[:, None]).astype(float))
    return [_named(points, theta) for theta in found.theta[found.converged]]


def _other_sizes(held: Holding) -> list[dict[str, float]]:
    """The parameters without the smallest size, and with the last one that was left out."""
    cases = []
    if np.unique(held.data.size).size > MIN_SIZES:
        cases.append((held, held.data.size > held.data.size.min()))
    if held.wider is not None:
        cases.append((held.wider, np.ones_like(held.wider.data.size, dtype=bool)))
    found = []
    for case, sizes in cases:
        inside = sizes & (case.data.step >= held.window.start)
        solution = solve(case.points, inside[None, :].astype(float))
        if solution.converged[0]:
            found.append(_named(case.points, solution.theta[0]))
    return found


def _point_table(data: Measured, inside: np.ndarray, residual: np.ndarray) -> pl.DataFrame:
    frame = data.frame.filter(pl.Series(inside))
    seed = pl.col("seed") if "seed" in frame.columns else pl.lit(None, pl.Int64)
    name = pl.col("name") if "name" in frame.columns else pl.col("run")
    return frame.select(
        run_id="run",
        name=name,
        seed=seed,
        N=pl.Series(data.size[inside]),
        S=pl.Series(data.steps[inside]),
        step="S",
        loss="loss",
        predicted=pl.Series(data.loss[inside] * np.exp(-residual)),
        log_residual=pl.Series(residual),
    )


def _noise(records: Records, selection: Selection) -> pl.DataFrame | str:
    """The noise scale of the runs in the fit, or why there is none."""
    if selection.table.sources["run"] != "run_id":
        return "runs are named by another column than run_id"
    inside = pl.col("run_id").is_in(selection.points["run"].unique().to_list())
    try:
        return noise_scale(
            replace(records, runs=records.runs.filter(inside), curves=records.curves.filter(inside))
        )
    except WorkError as error:
        return str(error)


def _lamps(
    selection: Selection,
    fit: Fit,
    other: Fit | None,
    moved: list[dict[str, float]],
    resized: list[dict[str, float]],
    noise: pl.DataFrame | str,
) -> list[panel.Lamp]:
    kept = selection.points
    detail: dict[str, Any] = fit.held_out_detail
    what = {
        "largest_N": f"N = {kept['N'].max():.4g} from the smaller ones",
        "later_half": "the second half of every run from the first",
    }
    return [
        panel.lr_bracketed(selection),
        panel.batch_vs_noise(kept, noise),
        panel.epochs(selection),
        panel.below_floor(selection),
        *panel.spans(kept),
        panel.rms_residual(fit.rms_log_residual),
        *(panel.held_out(name, what[name], detail[name]) for name in what),
        panel.shift(
            "convention_shift",
            f"N as {fit.convention} and as {other.convention}" if other else "",
            fit.params,
            [other.params] if other else [],
            "the table has one convention of N",
        ),
        panel.shift(
            "window_shift",
            "start of the window a factor of 1.4 earlier and later",
            fit.params,
            moved,
            "the window cannot move",
        ),
        panel.shift(
            "size_shift",
            "smallest size left out, and the last one left out put back",
            fit.params,
            resized,
            "no size can be spared",
        ),
        panel.single_minimum(fit.objective, fit.rivals),
        panel.seed_noise(kept),
    ]
