"""The critical batch from anybody's batch sweep: steps to losses given, or read off its curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.batch_policy import PolicyGain, measure_policy_gain
from scaling_jax.laws.batch_steps import (
    crossed_steps,
    decaying,
    given_steps,
    of_size,
    select_sweep,
)
from scaling_jax.laws.critical_batch import Ladder, fastest, ladder, law_through
from scaling_jax.laws.hyperbola import known_definition
from scaling_jax.laws.request import require_level
from scaling_jax.laws.result import plain

if TYPE_CHECKING:
    from scaling_jax.records.store import Records


@dataclass(frozen=True)
class BatchSweep:
    """The `ladder` of all levels, with `sizes`: N of each of its rungs, None where N is unknown.

    `unit` is that of the batches, in words, `levels` where the levels come from. `columns` maps
    roles onto columns. `excluded`: {rule, reason, n_points} with loss, batch and N of a level, or
    with run_id and name of rows. `flags` are sentences. `policies`: what runs whose batch changed
    gained over the fixed batches, where the records hold any.
    """

    ladder: Ladder
    sizes: list[float | None]
    level: float
    unit: str
    levels: str
    columns: dict[str, str]
    flags: list[str]
    excluded: list[dict[str, Any]]
    source: str
    policies: list[PolicyGain]

    @property
    def identified(self) -> bool:
        """Whether any level has a critical batch."""
        return any(rung.hyperbola.identified for rung in self.ladder.rungs)

    def to_json(self) -> dict[str, Any]:
        """Plain data; a number that could not be had is null."""
        found = self.ladder
        law = found.law
        return plain(
            {
                "levels": [
                    self._rung(size, i) for i, size in enumerate(self.sizes)
                ],
                "law": None if law is None else {
                    "B_star": law.B_star._asdict(),
                    "alpha_B": law.alpha_B._asdict(),
                    "chi2": law.chi2,
                    "df": law.df,
                    "n_levels": law.n_levels,
                    "rms_log_residual": law.rms_log_residual,
                    "method": law.method,
                },
                "definition": found.definition,
                "reference_batch": found.reference_batch,
                "reason": found.reason,
                "level": self.level,
                "unit": self.unit,
                "levels_from": self.levels,
                "columns": self.columns,
                "flags": self.flags,
                "excluded": self.excluded,
                "source": self.source,
                "policies": [each.to_json() for each in self.policies],
            }
        )  # fmt: skip

    def _rung(self, size: float | None, i: int) -> dict[str, Any]:
        loss, found = self.ladder.rungs[i]
        known = found.identified
        critical = {
            name: found.critical(name, self.ladder.reference_batch)._asdict() if known else None
            for name in ("kaplan", "zhang")
        }
        sides = {name: getattr(found, name)._asdict() for name in ("S_min", "E_min", "B_crit")}
        return {
            "loss": loss, "N": size, **sides, "critical": critical, "identified": known,
            "both_arms": found.both_arms, "reason": found.reason,
            "n_batches": int(np.unique(found.batch).size),
            "rms_log_residual": found.rms_log_residual,
        }  # fmt: skip


def measure_critical_batch(
    records: Records,
    columns: Mapping[str, str] | None = None,
    *,
    levels: Sequence[float] | None = None,
    definition: str = "kaplan",
    reference_batch: float = 0.0,
    where: str | None = None,
    level: float = 0.9,
) -> BatchSweep:
    """B_crit at each loss level of a batch sweep, and B_crit(L) = B_star / L^(1 / alpha_B).

    From a table of steps to loss levels: roles B (tokens), L (the level, nats a token), S (steps),
    one row a batch and level. Without L, from curves: roles run, S, B, loss, smoothed and crossed
    at `levels`, by default up to eight that every batch size passes through. Of several learning
    rates (role lr), and of what else was tuned (`batch_steps.TUNED`), the fastest at each batch and
    level is taken, and left out where its rate is an end of its grid; seeds (role seed) are
    averaged. Each N, where it is there, has hyperbolas of its own and all share one law.
    `definition` and `reference_batch` (tokens) as in `hyperbola.DEFINITIONS`.

    Runs whose batch changed by a policy are compared with the fixed ones (`measure_policy_gain`).

    Raises `RequestError` where the request is wrong, also for two rows at one batch and level;
    `WorkError` where no level has three batch sizes. Source: Kaplan et al. 2020, section 5.1.
    """
    require_level(level)
    known_definition(definition)
    if not 0 <= reference_batch < math.inf:
        raise RequestError(f"reference_batch is a number of tokens, not {reference_batch:g}")
    if levels is not None and not all(0 < each < math.inf for each in levels):
        raise RequestError(f"levels are losses above 0, not {', '.join(f'{x:g}' for x in levels)}")
    by_level = "L" in (columns or {}) or "L" in records.curves.columns
    if by_level and levels is not None:
        raise RequestError("The table has levels of its own (role L); --where keeps some of them")
    selection = select_sweep(records, columns, where, by_level)
    steps = given_steps(selection) if by_level else crossed_steps(selection, levels)
    flags = [] if by_level else decaying(selection)
    rungs, excluded = [], steps.excluded
    reasons: dict[str, list[float | None]] = {}
    for (size,), rows in steps.table.sort("N").group_by("N", maintain_order=True):
        own = {"N": size} if size is not None else {}
        try:
            found = ladder(_best(rows, size, flags), definition, reference_batch, level)
        except WorkError as error:
            reasons.setdefault(str(error), []).append(size)
            continue
        rungs += [(rung, size) for rung in found.rungs]
        excluded += [{**row, **own} for row in found.excluded]
    if not rungs:
        said = dict.fromkeys([*_said(reasons), *(row["reason"] for row in excluded)])
        raise WorkError("; ".join(said))
    rungs.sort(key=lambda pair: -pair[0].loss)
    law, reason = None, ""
    try:
        law = law_through([rung for rung, _ in rungs], definition, reference_batch, level)
    except WorkError as error:
        reason = str(error)
    policies = []
    if not by_level:
        try:
            policies = measure_policy_gain(records, levels, where, level)
        except WorkError as error:
            flags.append(str(error))
    sizes = [size for _, size in rungs]
    if len(set(sizes)) > 1:
        flags.append(
            f"levels of {len(set(sizes))} sizes N: B_crit(L) takes B_crit not to depend on N"
        )
    if law is not None and law.bent:
        flags.append("the levels scatter more than their intervals allow: no power law of the loss")
    return BatchSweep(
        ladder=Ladder([rung for rung, _ in rungs], law, reason, definition, reference_batch,
                      excluded),
        sizes=sizes,
        level=level,
        unit=_unit(selection.table.sources["B"]),
        levels=steps.levels,
        columns={name: selection.table.sources[name]
                 for name in ("N", "B", "S", "lr", *(("L",) if by_level else ("run", "loss")))
                 if name in selection.table.sources},
        flags=[*flags, *_said(reasons)],
        excluded=[*excluded, *selection.excluded],
        source=records.source,
        policies=policies,
    )  # fmt: skip


def _best(rows: pl.DataFrame, size: float | None, flags: list[str]) -> pl.DataFrame:
    """The rows of the fastest learning rate at each batch and level, as `ladder` takes them."""
    if rows["lr"].null_count():
        if rows.select(pl.struct("batch", "loss").is_duplicated().any()).item():
            flags.append(
                f"{of_size(size)}several runs at one batch, and no learning rate (lr=COLUMN) that "
                "tells them apart: their steps are averaged"
            )
        return rows
    single = rows.group_by("batch").agg(pl.col("lr").n_unique()).filter(pl.col("lr") == 1)["batch"]
    if single.len():
        which = (
            "every batch size"
            if single.len() == rows["batch"].n_unique()
            else (f"batch {', '.join(f'{batch:g}' for batch in single.sort())}")
        )
        flags.append(f"{of_size(size)}one learning rate at {which}: not known to be the fastest")
    best = fastest(rows)
    if best.group_by("batch").agg(pl.col("seed").unique().sort())["seed"].n_unique() > 1:
        flags.append(
            f"{of_size(size)}seeds differ between batch sizes: what a seed does to all its runs is "
            "then part of the scatter about the hyperbola"
        )
    return best.with_columns(at_edge=pl.col("at_edge") & ~pl.col("batch").is_in(single.to_list()))


def _said(reasons: dict[str, list[float | None]]) -> list[str]:
    """Each reason with the sizes that it holds for."""
    return [
        f"{of_size(sizes[0])}{reason}"
        if len(sizes) == 1
        else f"{reason} (at each of {len(sizes)} sizes N)"
        for reason, sizes in reasons.items()
    ]


def _unit(column: str) -> str:
    return "tokens" if "token" in column.lower() else f"the unit of {column}"
