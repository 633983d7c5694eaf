"""L(N, S) from the records: points by rule, the fit, its intervals, its held-out errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from scaling_jax.errors import WorkError
from scaling_jax.laws import panel
from scaling_jax.laws.estimate import LARGEST_SHARE, drawn, estimate, held_out, named, ranges_of
from scaling_jax.laws.fitting import Objective, Points, make_points, solve
from scaling_jax.laws.forms import L_NS
from scaling_jax.laws.noise_scale import noise_scale
from scaling_jax.laws.panel import HeldOut
from scaling_jax.laws.request import require_constants
from scaling_jax.laws.result import Fit
from scaling_jax.laws.selection import MIN_SIZES, Selection, select
from scaling_jax.laws.slopes import Slopes, curve_slopes
from scaling_jax.laws.window import (
    WINDOW_RMS,
    WINDOW_RULE,
    Holding,
    Measured,
    Window,
    where_it_holds,
)

if TYPE_CHECKING:
    from scaling_jax.records.store import Records


def fit_l_ns(
    records: Records,
    columns: Mapping[str, str] | None,
    where: str | None,
    objective: Objective | None,
    critical_batch: Mapping[str, float] | None,
    level: float,
    resamples: int,
    seed: int,
) -> Fit:
    """Fit L(N, S) (Kaplan et al. 2020, eq. 1.6) with everything that belongs beside it.

    `critical_batch` {B_star, alpha_B} converts S to S_min by eq. 5.4, and without it S is steps at
    fixed batch. Raises `RequestError` for wrong columns, constants or losses, `WorkError` for data
    that cannot carry the law.
    """
    require_constants(critical_batch)
    selection = select(records, columns, critical_batch is None, where)
    held = where_it_holds(selection, critical_batch, objective)
    data, points, window = held.data, held.points, held.window
    sources = selection.table.sources

    def in_convention(points: Points, data: Measured, role: str) -> Fit:
        return replace(
            _fit_one(points, data, window, level, resamples, seed),
            columns={"run": sources["run"], "N": sources[role], "S": sources["S"],
                     "loss": sources["loss"]},
            steps_name="S_min" if critical_batch else "steps at fixed batch",
            critical_batch=dict(critical_batch) if critical_batch else None,
            source=records.source,
        )  # fmt: skip

    fit = in_convention(points, data, "N")
    other = None
    if "N_other" in sources:
        size = data.frame["N_other"].to_numpy()
        twin = make_points(L_NS, {"N": size, "S": data.steps}, data.loss, objective)
        other = in_convention(twin, replace(data, size=size), "N_other")
    moved = _beside(points, data, window)
    resized = _other_sizes(held)
    selection.drop(
        pl.col("S") < window.start,
        "before the window",
        f"before the first step of the window, {window.start:.0f}",
    )
    noise = _noise(records, selection)
    slopes = _slopes(fit)
    return replace(
        fit,
        other=other,
        lamps=_lamps(selection, fit, other, window, moved, resized, noise, slopes),
        excluded=selection.excluded,
        slopes=None if isinstance(slopes, str) else slopes.to_json(),
    )


def _fit_one(
    points: Points,
    data: Measured,
    window: Window,
    level: float,
    resamples: int,
    seed: int,
) -> Fit:
    """The fit in one convention of N, without a panel."""
    inside = data.step >= window.start
    beside = (data.step >= np.array(window.beside)[:, None]).astype(float)
    found = estimate(
        points, inside.astype(float), data.run, data.size, level, resamples, seed, beside
    )
    residual = found.residual[inside]
    end = data.step == data.end
    compute = data.size * data.step
    hidden = {
        "largest_N": data.size == data.size.max(),
        "largest_C": compute >= LARGEST_SHARE * compute.max(),
        "later_half": data.step > data.end / 2,
    }
    detail = {name: _held_out(points, data, inside, which, end) for name, which in hidden.items()}
    table = _point_table(data, inside, residual)
    return Fit(
        law=L_NS.slug,
        params=named(points, found.theta),
        intervals=found.spread.intervals,
        derived={},
        level=level,
        interval_method=found.spread.method,
        interval_flag=found.spread.flag,
        correlation=found.spread.correlation,
        draws=drawn(found.spread),
        tail=found.spread.tail,
        n_points=int(inside.sum()),
        n_runs=int(np.unique(data.run[inside]).size),
        objective=found.objective,
        objective_form=points.objective.text,
        rms_log_residual=float(np.sqrt(np.mean(residual**2))),
        held_out={name: each and each.worst for name, each in detail.items()},
        held_out_detail=detail,
        points=table,
        columns={},
        ranges={name: ranges_of(table[name]) for name in ("N", "S", "loss")},
        rivals=found.rivals,
        resamples=resamples,
        source="",
        rule="runs at constant learning rate, past warm-up and below the bigram floor",
        window={
            "step_start": window.start,
            "rule": WINDOW_RULE,
            "criterion_met": window.met,
            "allowed": list(window.allowed),
            "resampled": list(window.beside),
        },
    )


def _held_out(
    points: Points, data: Measured, inside: np.ndarray, hidden: np.ndarray, end: np.ndarray
) -> HeldOut | None:
    """Errors of the window's `hidden` points, from a fit to the others; None where it has none."""
    counts = np.unique(data.size[inside & ~hidden], return_counts=True)[1]
    least = MIN_SIZES - 1 if np.unique(data.size[inside & hidden]).size == 1 else MIN_SIZES
    enough = np.sum(counts >= 2) >= least
    return held_out(points, inside.astype(float), hidden, end) if enough else None


def _beside(points: Points, data: Measured, window: Window) -> list[dict[str, float]]:
    """The parameters from starts a factor of sqrt(2) earlier and later, where allowed."""
    starts = [start for start in window.beside if start != window.start]
    if not starts:
        return []
    found = solve(points, (data.step >= np.array(starts)[:, None]).astype(float))
    return [named(points, theta) for theta in found.theta[found.converged]]


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
            found.append(named(case.points, solution.theta[0]))
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
    except WorkError:
        return "no noise moments were recorded"


def _slopes(fit: Fit) -> Slopes | str:
    """Exponents of the learning curves inside the window, or why there are none."""
    points = (fit.points[name] for name in ("run_id", "N", "S", "loss"))
    try:
        return curve_slopes(*points, level=fit.level)
    except WorkError as error:
        return str(error)


def _lamps(
    selection: Selection,
    fit: Fit,
    other: Fit | None,
    window: Window,
    moved: list[dict[str, float]],
    resized: list[dict[str, float]],
    noise: pl.DataFrame | str,
    slopes: Slopes | str,
) -> list[panel.Lamp]:
    kept = selection.points
    detail: dict[str, Any] = fit.held_out_detail
    what = {
        "largest_N": f"N = {kept['N'].max():.4g} from the smaller ones",
        "largest_C": "the upper half of compute from the rest",
        "later_half": "the second half of every run from the first",
    }
    return [
        panel.complete_rows(selection),
        panel.lr_bracketed(selection),
        panel.batch_vs_noise(kept, noise),
        panel.epochs(selection),
        panel.below_floor(selection),
        *panel.spans(kept),
        panel.interval_promise(fit.interval_flag, fit.n_runs),
        panel.rms_residual(fit.rms_log_residual),
        panel.window_found(window.met, fit.rms_log_residual, WINDOW_RMS),
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
        panel.equal_slopes(slopes),
        panel.seed_noise(kept),
    ]
