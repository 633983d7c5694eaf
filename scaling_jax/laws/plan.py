"""What to train with so many FLOPs: size, tokens, batch, steps, loss, and how sure that is."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from scaling_jax.errors import RequestError, nearest
from scaling_jax.laws import plan_flags
from scaling_jax.laws.accelerators import Bill, bill, check_share, find_slice
from scaling_jax.laws.frontier import PF_DAY
from scaling_jax.laws.plan_flags import Flag, Reach, flags, reach
from scaling_jax.laws.plan_input import Basis, from_fit, from_published
from scaling_jax.laws.plan_spending import Batch, Spending, growth, off_size, spend
from scaling_jax.laws.result import plain

QUANTITIES = ("params", "tokens", "batch_tokens", "steps", "loss")
_BATCHES = ("critical", "small")
_OTHER_SIZES = (0.25, 0.5, 0.7, 1.4, 2.0, 4.0)  # N over the optimal one
_RATIOS = tuple(2.0**power for power in range(-3, 4))
# float32 weights, gradients and Adam's two moments; activations come on top.
_BYTES_A_PARAMETER = 16

Interval = tuple[float, float]


class Trade(NamedTuple):
    """One batch on the way to the plan's loss with the plan's size.

    `steps` and `flops` are also given over S_min and C_min, which no batch can go below. `hours`
    are on the plan's chips; `hours_scaled` where the chips grow with the batch, the plan's number
    being at the plan's batch, or at B_crit where that is open.
    """

    ratio: float
    batch_tokens: float
    steps: float
    flops: float
    steps_relative: float
    flops_relative: float
    hours: float | None
    hours_scaled: float | None


class Growth(NamedTuple):
    """What one quantity becomes with ten times the compute, and its exponent of C where exact."""

    value: float
    factor: float
    exponent: float | None


class OtherSize(NamedTuple):
    """A size off the optimum, and its compute to the same loss (None: it never gets there)."""

    ratio: float
    params: float
    flops_relative: float | None


@dataclass(frozen=True)
class Plan:
    """How to spend `flops`, and everything that belongs beside it.

    `flops` is what is spent; `flops_min` (C_min) would reach the same loss at batches far below
    `critical_batch` (tokens), and is None, as the batch and its steps are, where the law does not
    say. 6 `params` `tokens` = `flops`, `params` counted as in `basis.convention`; `loss` is nats a
    token. `intervals` are at `basis.level`, None each where the constants have no joint draws.
    """

    flops: float
    batch: Batch
    basis: Basis
    params: float
    tokens: float
    batch_tokens: float | None
    steps: float | None
    loss: float | None
    flops_min: float | None
    critical_batch: float | None
    lr_peak: float | None
    intervals: dict[str, Interval | None]
    flags: list[Flag]
    reach: dict[str, Reach]
    trade: list[Trade]
    sizes: list[OtherSize]
    tenfold: dict[str, Growth]
    bill: Bill | None

    @property
    def pf_days(self) -> float:
        """`flops` in PF-days."""
        return self.flops / PF_DAY

    @property
    def batch_bound(self) -> str | None:
        """The bound on the batch in words, where it is all that is said of it."""
        if self.batch != "small" or self.critical_batch is None:
            return None
        return f"any batch well below B_crit = {self.critical_batch:.4g} tokens"

    def to_json(self) -> dict[str, Any]:
        """Plain data without NaN: what is not known is null."""
        basis = self.basis
        doc = {
            "flops": self.flops,
            "flops_min": self.flops_min,
            "pf_days": self.pf_days,
            **{name: getattr(self, name) for name in QUANTITIES},
            "intervals": {name: ends and list(ends) for name, ends in self.intervals.items()},
            "level": None if basis.draws is None else basis.level,
            "constants": {
                "name": basis.name,
                "law": basis.of_a_fit or basis.law,
                "params": basis.params,
                "convention": basis.convention,
                "source": basis.source,
            },
            "flags": [flag.name for flag in self.flags],
            "warnings": {flag.name: flag.text for flag in self.flags},
            "batch": self.batch,
            "batch_bound": self.batch_bound,
            "critical_batch": self.critical_batch,
            "lr_peak": self.lr_peak,
            "tokens_per_param": self.tokens / self.params,
            "extrapolation": plan_flags.to_json(self.reach),
            "batch_trade": [row._asdict() for row in self.trade],
            "size_trade": [row._asdict() for row in self.sizes],
            "ten_times": {name: each._asdict() for name, each in self.tenfold.items()},
            "accelerator": None if self.bill is None else self.bill.to_json(),
        }
        return plain(doc)


def plan(
    flops: float,
    constants: str | None = None,
    fit: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    batch: Batch = "critical",
    accelerator: str | None = None,
    chips: int | None = None,
    mfu: float = 0.4,
    usd_per_chip_hour: float | None = None,
) -> Plan:
    """Plan the spending of `flops` by a published set (kaplan2020 by default) or by a fit.

    `fit` is what `Fit.to_json` gives, or the path of a file that holds it. `batch` is `critical`
    (B = B_crit(L), so that C = 2 C_min), `small` (B far below it: C = C_min) or tokens.
    `accelerator` is a chip (`v4`, `H100`; counted by `chips`) or a slice (`v4-32`), run at the
    share `mfu` of its bfloat16 peak.

    Raises `RequestError` for values that cannot be, unknown names, constants that do not say how
    to spend compute, and files that are no fit of this version.
    """
    _positive(flops, "flops")
    batch = _batch(batch)
    if not isinstance(batch, str) and batch > flops / 6.0:
        raise RequestError(
            f"a batch of {batch:g} tokens is more than {flops:g} FLOPs give to one parameter, "
            f"{flops / 6.0:.3g}"
        )
    if constants is not None and fit is not None:
        raise RequestError("constants and fit are two bases for one plan; give one of them")
    basis = from_published(constants or "kaplan2020") if fit is None else from_fit(fit)
    cost = _bill(flops, accelerator, chips, mfu, usd_per_chip_hour)
    chosen = _solve(basis, flops, basis.params, batch)
    _check(chosen, flops, batch)
    reaches = reach(basis, flops, chosen)
    intervals = _intervals(basis, flops, batch)
    found = flags(basis, chosen, batch, reaches)
    if basis.draws is not None and intervals["params"] is None:
        found.append(Flag("no_intervals", "some joint draws give no finite plan"))
    if cost is not None:
        found += _memory(float(chosen.params), cost)
    numbers = {
        name: None if value is None else float(value) for name, value in chosen._asdict().items()
    }
    return Plan(
        flops=float(flops),
        batch=batch,
        basis=basis,
        **numbers,  # type: ignore[arg-type]
        intervals=intervals,
        flags=found,
        reach=reaches,
        trade=_trade(chosen, cost),
        sizes=_sizes(basis, chosen),
        tenfold=_tenfold(basis, flops, batch, chosen),
        bill=cost,
    )


def _positive(value: float, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise RequestError(f"{name} is a number, not {value!r}")
    if not (value > 0 and math.isfinite(value)):
        raise RequestError(f"{name} is a finite number above 0, not {value:g}")


def _batch(batch: Batch) -> Batch:
    if isinstance(batch, str):
        if batch in _BATCHES:
            return batch
        try:
            batch = float(batch)
        except ValueError:
            hint = nearest(batch, _BATCHES)
            raise RequestError(
                f"batch is critical, small or tokens, not {batch!r}.{hint}"
            ) from None
    _positive(batch, "batch")
    if batch < 1:
        raise RequestError(f"batch is one token or more, not {batch:g}")
    return float(batch)


def _bill(
    flops: float, accelerator: str | None, chips: int | None, mfu: float, price: float | None
) -> Bill | None:
    if accelerator is None:
        if chips is not None or price is not None:
            raise RequestError("chips and a price need an accelerator, as in accelerator v4-32")
        check_share(mfu)
        return None
    return bill(flops, find_slice(accelerator, chips), mfu, price)


def _solve(basis: Basis, flops: float, params: Mapping[str, Any], batch: Batch) -> Spending:
    with np.errstate(all="ignore"):
        return spend(basis.law, flops, params, batch)


def _check(plan: Spending, flops: float, batch: Batch) -> None:
    values = [value for value in plan if value is not None]
    if not all(np.isfinite(value) and value > 0 for value in values):
        raise RequestError(f"these constants give no finite plan for {flops:g} FLOPs")
    if plan.params < 1 or plan.tokens < 1:
        raise RequestError(
            f"{flops:g} FLOPs are too few: {float(plan.params):.2g} parameters, "
            f"{float(plan.tokens):.2g} tokens"
        )
    if plan.steps is not None and plan.steps < 1:
        raise RequestError(
            f"a batch of {float(batch):.4g} tokens is more than the whole plan's "
            f"{float(plan.tokens):.4g}"
        )


def _memory(size: float, cost: Bill) -> list[Flag]:
    chip = cost.slice.accelerator
    needed, there = size * _BYTES_A_PARAMETER / 1e9, chip.hbm_gb * cost.slice.chips
    if needed <= there:
        return []
    return [
        Flag(
            "memory",
            f"weights, gradients and Adam's moments in float32 are {needed:,.0f} GB, and "
            f"{cost.slice.chips} {chip.name} hold {there:,} GB",
        )
    ]


def _intervals(basis: Basis, flops: float, batch: Batch) -> dict[str, Interval | None]:
    """Quantiles over the joint draws of every quantity that depends on them."""
    if basis.draws is None:
        return dict.fromkeys(QUANTITIES)
    drawn = _solve(basis, flops, basis.draws, batch)
    values = {name: getattr(drawn, name) for name in QUANTITIES}
    if not all(np.all(np.isfinite(each)) for each in values.values() if each is not None):
        return dict.fromkeys(QUANTITIES)
    return {name: _interval(each, basis.tail) for name, each in values.items()}


def _interval(values: np.ndarray | None, tail: float) -> Interval | None:
    if values is None or values.ndim == 0:
        return None
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _trade(chosen: Spending, cost: Bill | None) -> list[Trade]:
    """Batches on either side of B_crit, each with the compute and the steps that reach the loss."""
    if chosen.flops_min is None or chosen.critical_batch is None:
        return []
    flops_min, critical = float(chosen.flops_min), float(chosen.critical_batch)
    steps_min = flops_min / (6.0 * float(chosen.params) * critical)
    rows = []
    for ratio in _RATIOS:
        flops, steps = flops_min * (1 + ratio), steps_min * (1 + 1 / ratio)
        hours = scaled = None
        if cost is not None:
            here = bill(flops, cost.slice, cost.mfu)
            hours = here.hours
            used = critical if chosen.batch_tokens is None else float(chosen.batch_tokens)
            scaled = hours * used / (ratio * critical)
        rows.append(
            Trade(ratio, ratio * critical, steps, flops, 1 + 1 / ratio, 1 + ratio, hours, scaled)
        )
    return rows


def _sizes(basis: Basis, chosen: Spending) -> list[OtherSize]:
    found = off_size(basis.law, np.array(_OTHER_SIZES), basis.params)
    if found is None:
        return []
    return [
        OtherSize(ratio, ratio * float(chosen.params), float(cost) if np.isfinite(cost) else None)
        for ratio, cost in zip(_OTHER_SIZES, found, strict=True)
    ]


def _tenfold(basis: Basis, flops: float, batch: Batch, chosen: Spending) -> dict[str, Growth]:
    more = _solve(basis, 10 * flops, basis.params, batch)
    held = not isinstance(batch, str) and basis.law != "l_nd_chinchilla"
    exact = {} if held else growth(basis.law, basis.params)
    found = {}
    for name in QUANTITIES:
        before, after = getattr(chosen, name), getattr(more, name)
        if before is None or after is None or not np.isfinite(after):
            continue
        found[name] = Growth(float(after), float(after / before), exact.get(name))
    return found
