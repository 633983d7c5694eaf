"""Laws: named forms of the loss, fitted to the records, with what says how far to trust them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from scaling_jax.errors import RequestError
from scaling_jax.laws.approaches import Allocations, allocate
from scaling_jax.laws.batch_sweep import BatchSweep, measure_critical_batch
from scaling_jax.laws.branched_batch import (
    BranchedBatch,
    describe_branched_batch,
    measure_branched_batch,
)
from scaling_jax.laws.corpora import Transfer, measure_transfer
from scaling_jax.laws.describe import describe
from scaling_jax.laws.describe_analyses import (
    describe_allocations,
    describe_critical_batch,
    describe_transfer,
)
from scaling_jax.laws.describe_noise import describe_noise
from scaling_jax.laws.describe_plan import describe_plan
from scaling_jax.laws.describe_positions import describe_positions
from scaling_jax.laws.fitting import Objective, find_objective
from scaling_jax.laws.forms import LAWS, find_law
from scaling_jax.laws.l_ns import fit_l_ns
from scaling_jax.laws.law_fit import fit_law
from scaling_jax.laws.noise_report import NoiseReport, measure_noise
from scaling_jax.laws.noise_scale import noise_scale
from scaling_jax.laws.panel import Lamp
from scaling_jax.laws.plan import plan
from scaling_jax.laws.positions import Positions, measure_positions
from scaling_jax.laws.published import published
from scaling_jax.laws.request import require_level
from scaling_jax.laws.result import Fit

if TYPE_CHECKING:
    from scaling_jax.records.store import Records

__all__ = [
    "LAWS",
    "Allocations",
    "BatchSweep",
    "BranchedBatch",
    "Fit",
    "Lamp",
    "NoiseReport",
    "Objective",
    "Positions",
    "Transfer",
    "allocate",
    "describe",
    "describe_allocations",
    "describe_branched_batch",
    "describe_critical_batch",
    "describe_noise",
    "describe_plan",
    "describe_positions",
    "describe_transfer",
    "find_law",
    "find_objective",
    "fit",
    "measure_branched_batch",
    "measure_critical_batch",
    "measure_noise",
    "measure_positions",
    "measure_transfer",
    "noise_scale",
    "plan",
    "published",
]


def fit(
    records: Records,
    law: str = "l_ns",
    columns: Mapping[str, str] | None = None,
    *,
    where: str | None = None,
    objective: Objective | None = None,
    fix: Mapping[str, float] | None = None,
    tie: Mapping[str, str] | None = None,
    critical_batch: Mapping[str, float] | None = None,
    level: float = 0.9,
    resamples: int = 0,
    seed: int = 0,
) -> Fit:
    """Fit a law to the records: parameters, intervals, held-out errors, validity panel.

    `columns` maps roles (N, D, C, S, loss, run, lr, batch_tokens, weight, ...) onto the columns of
    a foreign table; `where` is a condition in SQL on its columns. `objective` is by default Huber
    on log residuals, of the law's usual width. `fix` holds parameters at values, `tie` at the value
    of another parameter. `critical_batch` {B_star (tokens), alpha_B} converts S to S_min (Kaplan
    et al. 2020, eq. 5.4). `level` is of the intervals, which rest on the covariance over whole runs
    unless a number of `resamples` of whole runs is asked for.

    Raises `RequestError` where the request is wrong (unknown law, missing column, losses that are
    not positive and finite), `WorkError` where the data cannot carry the law.
    """
    form = find_law(law)
    require_level(level)
    if resamples and resamples < 100:
        raise RequestError(f"{resamples} resamples cannot give an interval; 100 or more")
    if form.slug == "l_ns" and not fix and not tie:
        return fit_l_ns(records, columns, where, objective, critical_batch, level, resamples, seed)
    if form.slug == "l_ns":
        raise RequestError("l_ns chooses its window by its own fit: no parameter of it is fixed")
    if critical_batch is not None:
        raise RequestError(f"critical_batch turns S into S_min, and {law} has no S; l_ns has")
    return fit_law(records, form, columns, where, objective, fix, tie, level, resamples, seed)
