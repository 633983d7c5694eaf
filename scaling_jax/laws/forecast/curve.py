"""One learning curve as arrays, cut at a step without a look ahead, and the curves of a table."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from scaling_jax.errors import RequestError
from scaling_jax.laws.columns import flat_table
from scaling_jax.laws.forecast.unnamed import with_runs
from scaling_jax.laws.selection import Selection, begin, require_measured, require_single

if TYPE_CHECKING:
    from scaling_jax.records.store import Records

END_SHARE = 0.02  # of a curve's steps: the measured end of a run is the mean of its losses there
LAST_WINDOW = 0.97  # of the steps: forty windows a decade end within this of their middle
IN_TOKENS = "steps are counted in tokens: the table has neither steps nor the batch"  # a flag
_CHANGE = 1e-3  # relative; two learning rates that differ by less are one
_ROUNDING = 1e-9  # relative, of a step that is a share of another


@dataclass(frozen=True, eq=False)
class Curve:
    """The losses of one run: `step` and `loss` (n,), nats a token, ascending in step.

    `tokens` seen and learning rate `lr` after each step are (n,), or None where they were not
    recorded. `size` is N; `batch_tokens` tokens; `horizon` the steps that the run was declared
    with; `schedule` the declared name of the schedule; `ahead` (k, 2) rows (step, lr) after its
    last loss. `flags` say what was found and done.
    """

    run_id: str
    name: str
    step: np.ndarray
    loss: np.ndarray
    tokens: np.ndarray | None = None
    lr: np.ndarray | None = None
    size: float | None = None
    batch_tokens: float | None = None
    status: str | None = None
    horizon: float | None = None
    warmup_steps: float | None = None
    schedule: str | None = None
    ahead: np.ndarray | None = None
    flags: tuple[str, ...] = ()

    @property
    def end(self) -> float:
        """The last step."""
        return float(self.step[-1])

    @property
    def final_loss(self) -> float:
        """The measured end: the mean loss of the last 2 % of the steps, at least the last point."""
        return float(np.mean(self.loss[self.step >= (1 - END_SHARE) * self.step[-1]]))

    @property
    def finished(self) -> bool:
        """Whether the run reached its declared horizon, or else is said to be done."""
        if self.horizon is not None:
            return self.end >= (1 - 1e-9) * self.horizon
        return self.status in (None, "done")

    @functools.lru_cache(maxsize=4096)  # noqa: B019
    def until(self, step: float) -> Curve:
        """What had been seen after `step` steps; at the end of the curve, the curve itself."""
        if step >= self.end:
            return self
        seen = np.searchsorted(self.step, step * (1 + _ROUNDING), side="right")
        return self.where(slice(int(seen)))

    def where(self, kept: np.ndarray | slice) -> Curve:
        """The points where `kept` (n,) is true; of a slice without a copy."""
        return replace(
            self,
            step=self.step[kept],
            loss=self.loss[kept],
            tokens=None if self.tokens is None else self.tokens[kept],
            lr=None if self.lr is None else self.lr[kept],
        )

    def constant_rate(self) -> bool | None:
        """Whether the learning rate is constant after warm-up; None where nothing says so."""
        after = np.empty(0) if self.lr is None else self.lr[self.step > (self.warmup_steps or 0)]
        # Two rows may be all there is of a decay, whose rate is then that of one window.
        if after.size > 2 or (after.size and self.schedule is None):
            # A mean over the window in which warm-up ended is below the peak.
            after = after[int(np.argmax(after)) :]
            return bool(np.ptp(after) <= _CHANGE * after.max())
        return None if self.schedule is None else self.schedule.startswith("constant")


def curves_of(
    records: Records, columns: Mapping[str, str] | None = None, where: str | None = None
) -> tuple[list[Curve], list[dict]]:
    """The curves of a table, in the order of their run ids, and what was left out and why.

    `columns` maps roles (run, S or tokens, loss, N, lr, batch_tokens, steps, warmup_steps, ...)
    onto columns, `where` is a condition in SQL. `lr` is a column with the learning rate of every
    row; a row without takes it from the rows of its run around it, with or without a loss. Rows
    with a rate after the last loss are the plan of a run, and their last step its end where none is
    declared. A peak alone says nothing of the schedule. Without a column of steps the steps are
    tokens over the batch where that is known, and else the tokens themselves, which is flagged. A
    log that went back to an earlier step of its run (a restart) keeps the later rows, and rows that
    are in it twice count once, both flagged. A loss that is not positive and finite ends the curve
    before it, flagged. What is left out: {run_id, name, rule, reason, n_points}. Where nothing
    tells runs apart, rows of one size are one curve, and without sizes all are.

    Raises `RequestError` for unknown roles, missing columns, and two rows of a run at one step.
    """
    row = "row of the log"
    records = with_runs(records, columns)
    records = replace(records, curves=records.curves.with_row_index(row))
    required = ("run", "loss", "row")
    table = flat_table(
        records, {**(columns or {}), "row": row}, required, where, first={"lr": "lr"}
    )
    selection = begin(table, records, where)
    note = _with_steps(selection)
    ahead = _rates_ahead(selection)
    _with_rates(selection)
    selection.drop(pl.col("loss").is_null(), "incomplete", f"no {table.sources['loss']}")
    counted = table.sources.get("S", "tokens")
    selection.drop(~pl.col("S").is_finite().fill_null(False), "incomplete", f"no {counted}")
    selection.drop(pl.col("S") <= 0, "initialisation", "step 0: before any update")
    if "N" in table.sources:
        require_measured(selection, {}, "N")
    curves, several = [], []
    for (run,), points in selection.points.sort("row").group_by("run", maintain_order=True):
        own = _after_restarts(points)
        if own is None:
            several.append(run)
            continue
        curve = _curve(str(run), *own, table.sources, note)
        curves.append(_with_plan(curve, ahead[run]) if run in ahead else curve)
    if several:
        selection.points = selection.points.filter(pl.col("run").is_in(several))
        if records.made_ids and "run" not in (columns or {}):
            raise RequestError(
                f"{records.source} does not name its runs, and the rows taken for one, "
                f"{several[0]}, hold several curves: name the column that tells runs apart with "
                "run=COLUMN, or leave rows out with --where"
            )
        if "S" in table.sources:
            require_single(selection, ("S",))
        raise RequestError(
            f"{table.sources['run']} {several[0]!r} holds several curves: a run is one training of "
            "one model; name the column that tells them apart, or leave rows out with --where"
        )
    for curve in curves:
        if not curve.step.size:
            selection.exclude(curve.run_id, curve.name, "no loss", "no finite positive loss", 0)
    kept = sorted((curve for curve in curves if curve.step.size), key=lambda curve: curve.run_id)
    return kept, selection.excluded


def _with_steps(selection: Selection) -> tuple[str, ...]:
    """Gives the points their steps where the table counts tokens alone, and says so."""
    sources, points = selection.table.sources, selection.points
    tokens = next((role for role in ("tokens", "D") if role in sources), None)
    if "S" in sources:
        return ()
    if tokens is None:
        raise RequestError(
            "No column 'step' for S and none of tokens either; name one with S=COLUMN or D=COLUMN."
        )
    if "batch_tokens" in sources:
        selection.points = points.with_columns(S=pl.col(tokens) / pl.col("batch_tokens"))
        return ()
    selection.points = points.with_columns(S=pl.col(tokens).cast(pl.Float64))
    for role in ("steps", "warmup_steps"):
        if sources.get(role) == role:  # steps that no row is counted in
            del sources[role]
    return (IN_TOKENS,)


def _rates_ahead(selection: Selection) -> dict[object, np.ndarray]:
    """Takes the rows with a rate and no loss after the last loss of their run out, by run."""
    if "lr" not in selection.table.sources:
        return {}
    step = pl.col("S").cast(pl.Float64)
    last = step.filter(pl.col("loss").is_not_null()).max().over("run")
    planned = pl.col("lr").is_not_null() & pl.col("loss").is_null() & (step > last)
    rows = selection.points.filter(planned).unique(["run", "S"], keep="last").sort("S")
    selection.points = selection.points.filter(~planned.fill_null(False))
    return {
        run: points.select(step, pl.col("lr").cast(pl.Float64)).to_numpy()
        for (run,), points in rows.group_by("run", maintain_order=True)
    }


def _with_plan(curve: Curve, ahead: np.ndarray) -> Curve:
    """The curve with the rates ahead of it, of which a run that is all but at its end has none."""
    end = float(ahead[-1, 0])
    if curve.step.size and curve.end >= LAST_WINDOW * end:
        return curve
    return replace(curve, ahead=ahead, horizon=curve.horizon or end)


def _with_rates(selection: Selection) -> None:
    """Fills the learning rates that some rows of a run lack, as an evaluation between them."""
    if "lr" not in selection.table.sources:
        return
    rate = pl.col("lr").cast(pl.Float64).fill_nan(None)
    filled = rate.interpolate_by(pl.col("S").cast(pl.Float64).fill_null(-1.0))
    filled = filled.forward_fill().backward_fill()
    selection.points = selection.points.with_columns(lr=filled.over("run", order_by="S"))


def _after_restarts(points: pl.DataFrame) -> tuple[pl.DataFrame, tuple[str, ...]] | None:
    """One run's points in the order of its log, ascending in step; None for several curves.

    Where the log goes back to a step after its first, the rows from there on are the run's and
    those they go over again are not. A log that begins anew, or has two rows at one step in a row,
    holds more than one curve.
    """
    step = points["S"].to_numpy()
    if np.all(np.diff(step) > 0):
        return points, ()
    once = points.unique(["S", "loss"], keep="first", maintain_order=True)
    if np.all(np.diff(once["S"].to_numpy()) > 0):
        return once, (f"rows that the log holds twice are left out: {len(points) - len(once)}",)
    back = np.flatnonzero(np.diff(step) <= 0) + 1
    if np.all(np.diff(step) < 0):
        return points.reverse(), ()  # the log runs from the last step to the first
    if np.any(step[back] <= step[0]) or np.any(step[back] == step[back - 1]):
        return None
    later = np.minimum.accumulate(np.append(step[back], np.inf)[::-1])[::-1]
    part = np.searchsorted(back, np.arange(step.size), side="right")
    return points.filter(pl.Series(step < later[part])), (
        f"restart at step {', '.join(f'{at:g}' for at in step[back])}: the rows that it went over "
        "again are left out",
    )


def _curve(
    run: str,
    points: pl.DataFrame,
    flags: tuple[str, ...],
    sources: Mapping[str, str],
    note: tuple[str, ...],
) -> Curve:
    loss = points["loss"].to_numpy()
    # Not a number in between is an evaluation that is missing; at the end the run diverged.
    good = np.isfinite(loss) & (loss > 0)
    last = int(np.flatnonzero(good)[-1]) if good.any() else -1
    lost = ~good & (~np.isnan(loss) | (np.arange(loss.size) > last))
    if lost.any():
        first = int(np.argmax(lost))
        flags += (f"no finite positive loss at step {points['S'][first]:g}: cut before it",)
        points, good = points.head(first), good[:first]
    points = points.filter(pl.Series(good, dtype=pl.Boolean))

    def column(*roles: str) -> np.ndarray | None:
        for role in roles:
            if role in sources and not points[role].null_count():
                return points[role].cast(pl.Float64).to_numpy()
        return None

    def single(role: str) -> float | None:
        values = points[role].drop_nulls().unique() if role in sources else pl.Series([])
        return float(values[0]) if len(values) == 1 else None

    def word(role: str) -> str | None:
        found = points[role].drop_nulls() if role in sources else pl.Series([])
        return str(found[0]) if len(found) else None

    # A peak is not the rate of every step.
    lr = None if sources.get("lr") == "lr_peak" else column("lr")
    schedule = word("schedule")
    if lr is not None and not (np.all(np.isfinite(lr) & (lr >= 0)) and lr.any()):
        lr = None
        flags += ("learning rates that are negative, not finite or all 0 are left out",)
    elif lr is None and schedule is None:
        flags += ("no learning rate at each step: it is taken to be constant",)
    return Curve(
        run_id=run,
        name=word("name") or run,
        step=points["S"].cast(pl.Float64).to_numpy(),
        loss=points["loss"].to_numpy(),
        tokens=column("tokens", "D"),
        lr=lr,
        size=single("N"),
        batch_tokens=single("batch_tokens"),
        status=word("status"),
        horizon=single("steps"),
        warmup_steps=single("warmup_steps"),
        schedule=schedule,
        flags=note + flags,
    )
