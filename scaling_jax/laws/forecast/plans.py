"""The learning rate that a run is to have, rows (step, lr): declared, named, or from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scaling_jax.errors import RequestError, nearest
from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.records.tables import as_type, read_csv

if TYPE_CHECKING:
    from scaling_jax.records.store import Records

SCHEDULES = ("constant", "cosine", "linear", "wsd")
DECAY_FRACTION = 0.2  # of the steps, in which wsd falls where nothing else is declared
_ROWS = 400
_SAME_SHARE = 0.05  # of the peak, between rates that are taken to be of one schedule


class Plan(NamedTuple):
    """Rows (step, lr), (k, 2), and the name of the run that they are of."""

    rows: np.ndarray
    name: str


def named_plan(
    name: str,
    lr_peak: float,
    steps: float,
    warmup_steps: float = 0.0,
    final_fraction: float = 0.0,
    decay_fraction: float = DECAY_FRACTION,
) -> np.ndarray:
    """Rows (step, lr) of a named schedule up to `steps`, (k, 2).

    A linear warm-up, then the shape down to `final_fraction` of the peak at the last step; `wsd`
    falls linearly over its last `decay_fraction`. Raises `RequestError` for another name.
    """
    if name not in SCHEDULES:
        raise RequestError(f"No schedule {name!r}.{nearest(name, SCHEDULES)}")
    after = max(steps - warmup_steps, 1.0)
    falls = min(decay_fraction * steps, after) if name == "wsd" else after
    corners = [1.0, max(warmup_steps, 1.0), steps - falls]
    rows = np.union1d(np.linspace(1.0, steps, _ROWS), np.clip(corners, 1.0, steps))
    done = np.clip(1.0 - (steps - rows) / falls, 0.0, 1.0)
    left = np.ones_like(done)
    if name == "cosine":
        left = 0.5 * (1.0 + np.cos(np.pi * done))
    elif name != "constant":
        left = 1.0 - done
    warm = np.minimum(1.0, rows / max(warmup_steps, 1.0))
    rate = lr_peak * warm * (final_fraction + (1.0 - final_fraction) * left)
    return np.stack([rows, rate], axis=1)


def read_plan(path: Path) -> np.ndarray:
    """Rows (step, lr) of a CSV table with these columns, ascending in step, (k, 2).

    Raises `RequestError` where the file is none, has other columns, or steps do not ascend.
    """
    try:
        table = read_csv(path.read_bytes(), str(path))
    except OSError as error:
        raise RequestError(f"Cannot read {path}: {error.strerror or error}.") from None
    for name in ("step", "lr"):
        if name not in table.columns:
            raise RequestError(f"{path} has no column {name!r}.{nearest(name, table.columns)}")
    columns = [as_type(table[name], float, str(path)).to_numpy() for name in ("step", "lr")]
    plan = np.stack(columns, axis=1).astype(np.float64)
    if not plan.size or not np.isfinite(plan).all():
        raise RequestError(f"{path} needs a step and a learning rate in every row")
    if np.any(np.diff(plan[:, 0]) <= 0) or np.any(plan < 0) or not plan[:, 1].any():
        raise RequestError(f"{path}: steps ascend, and learning rates are 0 or more, not all 0")
    return plan


def plan_for(schedule: str, like: Curve, horizon: float) -> np.ndarray:
    """The plan that `--schedule` means for a model: of a file as it is, of a name up to `horizon`
    from the peak and the warm-up of the run it is `like`.

    Raises `RequestError` for an unknown name, for a file that ends before the horizon, and where
    the rate of the run is not known.
    """
    if schedule not in SCHEDULES:
        path = Path(schedule)
        if not path.exists():
            near = nearest(schedule, SCHEDULES)
            raise RequestError(f"No schedule and no file {schedule!r}.{near}")
        plan = read_plan(path)
        if plan[-1, 0] < horizon * (1 - 1e-9):
            raise RequestError(
                f"{schedule} ends at step {plan[-1, 0]:,.0f}, before the horizon of {horizon:,.0f}"
            )
        return plan
    if like.lr is None:
        raise RequestError(
            f"The peak of schedule {schedule} is that of run {like.name}, whose learning rate is "
            "not known: name the column of the rate at each step with lr=COLUMN"
        )
    warmup = like.warmup_steps
    if warmup is None:  # it had ended by the first row with the peak
        warmup = _warm(like)
    return named_plan(schedule, float(like.lr.max()), horizon, warmup)


def declared_plans(records: Records) -> dict[str, np.ndarray]:
    """Run id to plan, of the runs that declare schedule, peak and steps."""
    needed = ("run_id", "schedule", "lr_peak", "steps")
    runs = records.runs
    if any(name not in runs.columns for name in needed):
        return {}
    plans = {}
    for row in runs.iter_rows(named=True):
        if any(row[name] is None for name in needed) or row["schedule"] not in SCHEDULES:
            continue
        plans[str(row["run_id"])] = named_plan(
            row["schedule"],
            float(row["lr_peak"]),
            float(row["steps"]),
            float(row.get("warmup_steps") or 0.0),
            float(row.get("final_fraction") or 0.0),
            float(row.get("decay_fraction") or DECAY_FRACTION),
        )
    return plans


def plan_of_another(curve: Curve, horizon: float, finished: Sequence[Curve]) -> Plan | None:
    """The plan of the finished run whose rates were those of this one so far, and whose it was.

    Rates are compared as shares of the peak, at the same shares of the steps. Runs of the same
    declared schedule come before others; among equals those whose rate never falls, then the
    nearest rates and the nearest number of steps. None where no run had them.
    """
    if curve.lr is None:
        return None
    matching = []
    for run in finished:
        apart = None if run.run_id == curve.run_id else _apart(curve, horizon, run)
        if apart is not None and apart <= _SAME_SHARE:
            other_name = curve.schedule is None or run.schedule != curve.schedule
            away = abs(np.log(run.end / horizon))
            falls = run.constant_rate() is False
            matching.append(((other_name, falls, round(apart, 3), away), run))
    if not matching:
        return None
    run = min(matching, key=lambda each: each[0])[1]
    assert run.lr is not None
    rows = np.stack([run.step * horizon / run.end, run.lr / run.lr.max() * curve.lr.max()], axis=1)
    return Plan(rows, run.name)


def _apart(curve: Curve, horizon: float, run: Curve) -> float | None:
    """The largest difference of the shares of the peak, None where nothing can be compared."""
    if curve.lr is None or run.lr is None:
        return None
    at = curve.step / horizon * run.end
    # Warm-ups take steps, and not shares of a run: two of one schedule differ there.
    inside = (at >= _warm(run)) & (curve.step >= _warm(curve))
    if not inside.any():
        return None
    theirs = np.interp(at[inside], run.step, run.lr) / run.lr.max()
    return float(np.max(np.abs(curve.lr[inside] / curve.lr.max() - theirs)))


def _warm(curve: Curve) -> float:
    """The first step near the peak rate."""
    assert curve.lr is not None
    return float(curve.step[int(np.argmax(curve.lr >= 0.999 * curve.lr.max()))])
