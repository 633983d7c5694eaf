"""What a batch that changes saves: its tokens against those of fixed batches at equal steps.

McCandlish et al. (2018), appendix D: at equal steps a run that follows B_crit needs fewer tokens
than the hyperbola of the fixed batches, by a few per cent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.batch_steps import MOST_LEVELS
from scaling_jax.laws.columns import flat_table
from scaling_jax.laws.curves import crossings, points_of_runs, smooth
from scaling_jax.laws.hyperbola import fit_hyperbola
from scaling_jax.laws.regression import student

if TYPE_CHECKING:
    from scaling_jax.records.store import Records

FIXED = "fixed"
LEAST_SEEDS = 2
_RATIOS = ("tokens_ratio", "gamma")
_ROLES = ("run", "S", "B", "loss", "seed", "batch_policy")


class Ratio(NamedTuple):
    """A ratio, the geometric mean over seeds, and its interval: Student's t of the logarithms."""

    value: float
    low: float
    high: float


class PolicyRung(NamedTuple):
    """One loss level, nats a token: what the policy took to it, and what fixed batches take.

    `steps` and `tokens` are geometric means over seeds. `tokens_ratio` is the policy's tokens over
    those of the hyperbola at the policy's steps; `gamma` is (S/S_min - 1)(E/E_min - 1), which is 1
    on the hyperbola and below 1 where the policy gains (eq. D.4).
    """

    loss: float
    steps: float
    tokens: float
    tokens_ratio: Ratio
    gamma: Ratio


@dataclass(frozen=True)
class PolicyGain:
    """What one policy saved over fixed batches, highest loss first; the last rung is the run's.

    `n_seeds` hyperbolas, one a seed, so that the interval at `level` holds their errors too.
    `excluded`: {loss, reason} of levels at which some seed has no ratio.
    """

    policy: str
    rungs: list[PolicyRung]
    n_seeds: int
    level: float
    excluded: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        rungs = [
            rung._asdict() | {name: getattr(rung, name)._asdict() for name in _RATIOS}
            for rung in self.rungs
        ]
        return {
            "policy": self.policy,
            "levels": rungs,
            "n_seeds": self.n_seeds,
            "level": self.level,
            "excluded": self.excluded,
        }


def measure_policy_gain(
    records: Records,
    levels: Sequence[float] | None = None,
    where: str | None = None,
    level: float = 0.9,
) -> list[PolicyGain]:
    """Each policy of the records against the fixed batches of its seeds; empty where there is none.

    Reads step, tokens, batch_tokens, val_loss, seed and batch_policy, of runs of one model. Losses
    are smoothed and crossed at `levels`, by default eight that every run passes. A hyperbola is
    fitted to the fixed batches of each seed; policy runs of other seeds are not compared.

    Raises `RequestError` for missing columns, `WorkError` where fewer than two seeds have a policy
    run and three fixed batches, or no level is passed by every run.
    """
    if "batch_policy" not in records.runs.columns:
        return []
    if records.runs["batch_policy"].drop_nulls().is_in([FIXED]).all():
        return []
    table = flat_table(records, required=_ROLES, where=where)
    points = table.points.filter(pl.col("S") > 0).drop_nulls(["loss"])
    if "status" in table.sources:
        points = points.filter(pl.col("status") == "done")
    runs = [
        _Run.of(points[at], records.curves.filter(pl.col("run_id") == run))
        for run, at in points_of_runs(points["run"], _steps(points)).items()
    ]
    fixed = [run for run in runs if run.policy == FIXED]
    own = np.unique(levels) if levels is not None else _common_levels(runs)
    gains = []
    for policy in dict.fromkeys(run.policy for run in runs if run.policy != FIXED):
        chosen = [run for run in runs if run.policy == policy]
        gains.append(compare(_to_levels(fixed, own), _to_levels(chosen, own), policy, level))
    return gains


def compare(
    fixed: pl.DataFrame, chosen: pl.DataFrame, policy: str = "policy", level: float = 0.9
) -> PolicyGain:
    """The policy's runs `chosen` against `fixed` batches, by seed.

    Both have `seed`, `loss` (the level), `steps` and `tokens` (null: not reached), `fixed` also
    `batch` in tokens; of several runs at one batch, as at several learning rates, the fastest
    counts. Raises `WorkError` where fewer than two seeds are in both.
    """
    seeds = sorted(set(fixed["seed"]) & set(chosen["seed"]))
    if len(seeds) < LEAST_SEEDS:
        raise WorkError(
            f"{policy}: {len(seeds)} seed(s) have both this policy and fixed batches; an interval "
            f"needs {LEAST_SEEDS} or more"
        )
    rungs, excluded = [], []
    for loss in chosen["loss"].unique().sort(descending=True).to_list():
        try:
            prices = np.array(
                [
                    _price(*(table.filter(seed=seed, loss=loss) for table in (fixed, chosen)))
                    for seed in seeds
                ]
            )
        except WorkError as error:
            excluded.append({"loss": loss, "reason": str(error)})
            continue
        steps, tokens, tokens_ratio, gamma = np.log(prices).T
        rungs.append(
            PolicyRung(
                loss,
                float(np.exp(steps.mean())),
                float(np.exp(tokens.mean())),
                _over_seeds(tokens_ratio, level),
                _over_seeds(gamma, level),
            )
        )
    return PolicyGain(policy, rungs, len(seeds), level, excluded)


def _price(fixed: pl.DataFrame, chosen: pl.DataFrame) -> tuple[float, float, float, float]:
    """Steps and tokens of one seed's run to one loss, and both against the seed's hyperbola."""
    seed = chosen["seed"][0]
    by_batch = fixed.drop_nulls("steps").group_by("batch", maintain_order=True)
    reached = by_batch.agg(pl.col("steps").min())
    steps, tokens = chosen["steps"][0], chosen["tokens"][0]
    if chosen.height != 1:
        raise WorkError(f"seed {seed} has {chosen.height} runs of the policy")
    if steps is None:
        raise WorkError(f"the policy's run of seed {seed} does not reach it")
    found = fit_hyperbola(reached["batch"], reached["steps"])
    least_steps, least_tokens = found.S_min.value, found.E_min.value
    if least_steps is None or least_tokens is None:
        raise WorkError(f"seed {seed}: {found.reason}")
    if steps <= least_steps:
        raise WorkError(
            f"the policy's run of seed {seed} takes {steps:.4g} steps, no more than the S_min "
            f"{least_steps:.4g} of the fixed batches: they have no tokens at that many steps"
        )
    if tokens <= least_tokens:
        raise WorkError(
            f"the policy's run of seed {seed} takes {tokens:.4g} tokens, no more than the E_min "
            f"{least_tokens:.4g} of the fixed batches"
        )
    beyond = steps / least_steps - 1
    at_equal_steps = least_tokens * (1 + 1 / beyond)
    return steps, tokens, tokens / at_equal_steps, beyond * (tokens / least_tokens - 1)


def _over_seeds(logs: np.ndarray, level: float) -> Ratio:
    mean = logs.mean()
    half = float(student(level, logs.size - 1)) * logs.std(ddof=1) / np.sqrt(logs.size)
    return Ratio(*np.exp([mean, mean - half, mean + half]).tolist())


class _Run(NamedTuple):
    """The curve of one run: losses at steps (n,), and tokens at the ends of all windows (m,)."""

    policy: str
    seed: int
    batch: float
    step: np.ndarray
    loss: np.ndarray
    window_end: np.ndarray
    tokens: np.ndarray
    top: float
    low: float

    @classmethod
    def of(cls, rows: pl.DataFrame, curve: pl.DataFrame) -> _Run:
        step, loss = _steps(rows), rows["loss"].to_numpy()
        policy = rows["batch_policy"][0] or FIXED
        if policy == FIXED and rows["B"].n_unique() > 1:
            raise RequestError(f"The batch of run {rows['run'][0]!r} changes, and it says fixed")
        ends = curve.drop_nulls("tokens").sort("step")
        smoothed = smooth(step, loss)
        warmup = rows["warmup_steps"][0] if "warmup_steps" in rows.columns else None
        after = smoothed[step > (warmup or 0)]
        return cls(
            policy=policy,
            seed=rows["seed"][0],
            batch=rows["B"][0],
            step=step,
            loss=loss,
            window_end=ends["step"].to_numpy(),
            tokens=ends["tokens"].to_numpy(),
            top=float(after[0]) if after.size else 0.0,
            low=float(smoothed.min()),
        )


def _steps(points: pl.DataFrame) -> np.ndarray:
    return points["S"].to_numpy()


def _to_levels(runs: Sequence[_Run], levels: np.ndarray) -> pl.DataFrame:
    tables = []
    for run in runs:
        found = crossings(run.step, run.loss, levels)
        steps = found["x"].to_numpy()
        tables.append(
            found.select(
                seed=pl.lit(run.seed),
                batch=pl.lit(run.batch),
                loss="level",
                steps="x",
                # A window has one batch, so that tokens rise on a line within it.
                tokens=pl.Series(np.interp(steps, run.window_end, run.tokens)).fill_nan(None),
            )
        )
    return pl.concat(tables)


def _common_levels(runs: Sequence[_Run]) -> np.ndarray:
    high, low = min(run.top for run in runs), max(run.low for run in runs)
    if high <= low:
        raise WorkError(
            f"No loss that all {len(runs)} runs pass: one of them ends at {low:.4g} nats, one "
            f"begins at {high:.4g}"
        )
    return np.geomspace(high, low, MOST_LEVELS + 1)[1:]
