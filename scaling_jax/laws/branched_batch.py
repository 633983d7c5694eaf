"""The critical batch by branches of a run: the largest batch that loses nothing by it.

Merrill et al. (2025): from a checkpoint, branches of k times the batch, at a learning rate scaled
by sqrt(k) under Adam and by k under SGD, train for as many tokens. k* is the largest k whose loss
is within a tolerance of that of every smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.describe import wrapped
from scaling_jax.laws.regression import student
from scaling_jax.laws.request import require_level
from scaling_jax.laws.result import plain

if TYPE_CHECKING:
    from scaling_jax.records.store import Records

LEAST_SIZES = 3
_NEEDED = ("parent", "branch_step", "batch_tokens", "lr_peak", "optimizer")


class Size(NamedTuple):
    """Branches of one batch, in tokens: the mean over parents of their last loss, nats a token.

    `lost` is how much above the best of the smaller batches it lies, each parent by itself, and
    (`low`, `high`) the interval of that, without one where there is one parent.
    """

    batch: float
    k: float
    loss: float
    lost: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class BranchPoint:
    """The branches at one step: `loss` (nats a token) and `tokens` are the parents' there.

    `k_star` is the largest tried multiple of the smallest batch that is within the tolerance, as
    all smaller ones are, and `batch` that batch in tokens. It lies between `low` and `high`: the
    largest batch of which the intervals say so, or the smallest one, and the smallest of which they
    say the contrary (None: of none). `reason` says why there is no k_star.
    """

    step: int
    loss: float
    tokens: float
    budget: float
    n_parents: int
    sizes: list[Size]
    k_star: float | None
    batch: float | None
    low: float | None
    high: float | None
    reason: str


@dataclass(frozen=True)
class BranchedBatch:
    """Each step that runs branch at, in order; `flags` are sentences."""

    points: list[BranchPoint]
    tolerance: float
    level: float
    flags: list[str]
    source: str

    def to_json(self) -> dict[str, Any]:
        """Plain data; a number that could not be had is null."""
        points = [
            asdict(point) | {"sizes": [size._asdict() for size in point.sizes]}
            for point in self.points
        ]
        return plain(
            {
                "points": points,
                "tolerance": self.tolerance,
                "level": self.level,
                "unit": "tokens",
                "flags": self.flags,
                "source": self.source,
            }
        )


def measure_branched_batch(
    records: Records, tolerance: float = 0.01, level: float = 0.9
) -> BranchedBatch:
    """The critical batch at each step that the records' runs branch at.

    `tolerance` in nats a token. Branches of equal batch from several parents, as of several seeds,
    are compared parent by parent; intervals are Student's t over parents. Raises `RequestError`
    for records without branches or columns, `WorkError` where no branch is done.
    """
    if not tolerance > 0:
        raise RequestError(f"tolerance is in nats and above 0, not {tolerance:g}")
    require_level(level)
    branches = _branches(records)
    points = [
        _point(part, tolerance, level)
        for _, part in sorted(branches.group_by("branch_step"), key=lambda each: each[0])
    ]
    flags = [*_left_out(records, points), *_strange_rates(branches, points)]
    return BranchedBatch(points, tolerance, level, flags, records.source)


def describe_branched_batch(found: BranchedBatch) -> str:
    """A paragraph a step: its branches, and the batch that loses nothing."""
    lines = wrapped(
        "Critical batch by branches (Merrill et al. 2025): the largest whose loss is within "
        f"{found.tolerance:g} nats of every smaller one's after as many tokens"
    )
    for point in found.points:
        lines += ["", *_describe(point, found.level)]
    if found.flags:
        lines += ["", *(line for flag in found.flags for line in wrapped(f"Flag: {flag}"))]
    return "\n".join(lines)


def _describe(point: BranchPoint, level: float) -> list[str]:
    parents = f"{point.n_parents} parent{'s' if point.n_parents > 1 else ''}"
    head = (
        f"step {point.step:,}, {point.loss:.4g} nats, {point.tokens:,.0f} tokens seen, "
        f"{point.budget:,.0f} more, {parents}"
    )
    rows = []
    for size in point.sizes:
        interval = "" if size.low is None else f" ({size.low:+.4f} to {size.high:+.4f})"
        lost = "" if math.isnan(size.lost) else f", {size.lost:+.4f}{interval}"
        rows.append(f"  {size.batch:>9,.0f} tokens (k = {size.k:g}): {size.loss:.4f} nats{lost}")
    if point.batch is None:
        return [head, *rows, f"  no critical batch: {point.reason}"]
    between = ""
    if point.n_parents > 1:
        high = "with no upper end" if point.high is None else f"less than {point.high:,.0f}"
        between = f", by the {level:.0%} intervals at least {point.low:,.0f} and {high}"
    more = f" ({point.reason})" if point.reason else ""
    return [head, *rows, f"  B* = {point.batch:,.0f} tokens, k* = {point.k_star:g}{between}{more}"]


def _branches(records: Records) -> pl.DataFrame:
    """One row a finished branch: where it began, where it ended, and what it was."""
    missing = [name for name in _NEEDED if name not in records.runs.columns]
    if missing or records.runs["parent"].null_count() == records.runs.height:
        raise RequestError(
            f"{records.source} holds no runs that branch from another; a study declares them with "
            "BranchConfig(run=..., step=...)"
        )
    runs = records.runs.filter(pl.col("parent").is_not_null() & (pl.col("status") == "done"))
    measured = records.curves.drop_nulls("val_loss").sort("step")
    ends = measured.group_by("run_id").agg(
        pl.col("tokens").first().alias("tokens_before"),
        pl.col("val_loss").first().alias("loss_before"),
        pl.col("tokens").last().alias("tokens_after"),
        pl.col("val_loss").last().alias("loss"),
    )
    found = runs.select("run_id", *_NEEDED).join(ends, on="run_id")
    if found.is_empty():
        raise WorkError(f"None of the branches in {records.source} is done")
    return found


def _point(branches: pl.DataFrame, tolerance: float, level: float) -> BranchPoint:
    step = branches["branch_step"][0]
    budgets = (branches["tokens_after"] - branches["tokens_before"]).to_numpy()
    sizes = np.unique(branches["batch_tokens"].to_numpy()).astype(float)
    parents = branches["parent"].unique(maintain_order=True).to_list()
    losses_pk = np.array([[_loss(branches, parent, size) for size in sizes] for parent in parents])
    whole = losses_pk[np.isfinite(losses_pk).all(axis=1)]
    found = [] if not whole.size else _sizes(sizes, whole, level)
    reason = _refusal(sizes, budgets, whole)
    k_star, low, high = (None, None, None) if reason else _knee(found, tolerance)
    if not reason and k_star == found[-1].k:
        reason = "the largest batch that was tried: the critical one may be larger"
    return BranchPoint(
        step=step,
        loss=float(np.mean(branches["loss_before"].to_numpy())),
        tokens=float(np.mean(branches["tokens_before"].to_numpy())),
        budget=float(np.median(budgets)),
        n_parents=len(whole),
        sizes=found,
        k_star=k_star,
        batch=None if k_star is None else k_star * float(sizes[0]),
        low=low,
        high=high,
        reason=reason,
    )


def _loss(branches: pl.DataFrame, parent: str, size: float) -> float:
    own = branches.filter((pl.col("parent") == parent) & (pl.col("batch_tokens") == size))["loss"]
    if own.is_empty():
        return math.nan
    return float(np.mean(own.to_numpy()))


def _refusal(sizes: np.ndarray, budgets: np.ndarray, whole: np.ndarray) -> str:
    if len(sizes) < LEAST_SIZES:
        return f"{len(sizes)} batch size(s), and a knee shows in {LEAST_SIZES} or more"
    if not whole.size:
        return "no parent has a finished branch of every batch size"
    if budgets.max() - budgets.min() > sizes[-1]:
        return (
            f"the branches train for {budgets.min():,.0f} to {budgets.max():,.0f} tokens: they are "
            "to be compared after as many"
        )
    return ""


def _sizes(sizes: np.ndarray, losses_pk: np.ndarray, level: float) -> list[Size]:
    n = len(losses_pk)
    found = []
    for i, size in enumerate(sizes):
        lost, low, high = math.nan, None, None
        if i:
            own = losses_pk[:, i] - losses_pk[:, :i].min(axis=1)
            lost = float(own.mean())
            if n > 1:
                half = float(student(level, n - 1)) * float(own.std(ddof=1)) / math.sqrt(n)
                low, high = lost - half, lost + half
        found.append(Size(size, size / sizes[0], float(losses_pk[:, i].mean()), lost, low, high))
    return found


def _knee(sizes: Sequence[Size], tolerance: float) -> tuple[float, float | None, float | None]:
    """k*, and the batches of which intervals say that they are within the tolerance, or not."""
    k_star, low, high, all_within, all_sure = sizes[0].k, None, None, True, True
    for size in sizes[1:]:
        all_within &= size.lost <= tolerance
        if all_within:
            k_star = size.k
        if size.low is None or size.high is None:
            continue
        all_sure &= size.high <= tolerance
        if all_sure:
            low = size.batch
        if high is None and size.low > tolerance:
            high = size.batch
    return k_star, low if low is not None else sizes[0].batch, high


def _left_out(records: Records, points: Sequence[BranchPoint]) -> list[str]:
    """Parents that do not count because some branch of theirs is not done."""
    flags = []
    for point in points:
        declared = records.runs.filter(pl.col("branch_step") == point.step)["parent"].n_unique()
        if declared > point.n_parents:
            flags.append(
                f"at step {point.step:,} {declared - point.n_parents} of {declared} parents are "
                "left out, which have no finished branch of every batch size: a branch that "
                "diverged speaks against its batch"
            )
    return flags


def _strange_rates(branches: pl.DataFrame, points: Sequence[BranchPoint]) -> list[str]:
    """Learning rates that do not follow the rule of the method."""
    strange: set[float] = set()
    for point in points:
        own = branches.filter(pl.col("branch_step") == point.step)
        batch, rate = (own[name].to_numpy() for name in ("batch_tokens", "lr_peak"))
        power = np.where((own["optimizer"] == "sgd").to_numpy(), 1.0, 0.5)
        rule = rate[batch == batch.min()].mean() * (batch / batch.min()) ** power
        strange |= set(batch[~np.isclose(rate, rule, rtol=0.02)].tolist())
    if not strange:
        return []
    listed = ", ".join(f"{size:,.0f}" for size in sorted(strange))
    return [
        "the learning rate follows neither sqrt(k) (Adam) nor k (SGD) at batches of "
        f"{listed} tokens"
    ]
