"""A plan in plain text, for people."""

from __future__ import annotations

import textwrap

from scaling_jax.laws.describe import WIDTH
from scaling_jax.laws.plan import QUANTITIES, Plan
from scaling_jax.laws.plan_flags import times

_MEANINGS = {
    "params": "N: {convention}",
    "tokens": "D, trained on once",
    "batch_tokens": "tokens a step",
    "steps": "updates",
    "loss": "nats a token",
}


def describe_plan(plan: Plan) -> str:
    """Numbers with intervals, growth, time against compute, cost, and what to hold against it."""
    parts = [_head(plan), _numbers(plan), _compute(plan), _tenfold(plan), _trade(plan)]
    parts += [_sizes(plan), _cost(plan), _reach(plan), _flags(plan)]
    return "\n\n".join("\n".join(line.rstrip() for line in part) for part in parts if part)


def _head(plan: Plan) -> list[str]:
    basis = plan.basis
    title = f"Plan for {plan.flops:.4g} FLOPs ({plan.pf_days:.4g} PF-days)"
    if not isinstance(plan.batch, str):
        title += f" at a batch of {plan.batch:.4g} tokens"
    elif plan.critical_batch is not None:
        title += " at B = B_crit" if plan.batch == "critical" else " at B far below B_crit"
    return [
        title,
        *textwrap.wrap(f"{'' if basis.of_a_fit else basis.name + ': '}{basis.source}", WIDTH),
    ]


def _numbers(plan: Plan) -> list[str]:
    rows = [] if plan.basis.draws is None else [["", "", f"{plan.basis.level:.0%} interval", ""]]
    for name in QUANTITIES:
        value, ends = getattr(plan, name), plan.intervals[name]
        meaning = _MEANINGS[name].format(convention=plan.basis.convention)
        if name == "batch_tokens" and plan.batch_bound is not None:
            meaning = plan.batch_bound
        between = "" if ends is None else f"{_number(ends[0], name)} to {_number(ends[1], name)}"
        rows.append([name, _number(value, name), between, meaning])
    rows.append(["tokens / params", f"{plan.tokens / plan.params:.4g}", "", ""])
    if plan.lr_peak is not None:
        rows.append(["lr_peak", f"{plan.lr_peak:.4g}", "", "peak learning rate"])
    return _table(rows, left=(0, 2, 3))


def _compute(plan: Plan) -> list[str]:
    if plan.flops_min is None or plan.critical_batch is None:
        return ["C = 6 N D: no compute of attention, embeddings or head beyond what N counts."]
    return [
        f"C_min: {plan.flops_min:.4g} FLOPs reach this loss at batches far below "
        f"B_crit = {plan.critical_batch:.4g} tokens"
    ]


def _tenfold(plan: Plan) -> list[str]:
    rows = [["", "now", "with 10 x", "factor", "goes as"]]
    for name, each in plan.tenfold.items():
        power = "" if each.exponent is None else f"C^{each.exponent:.3f}"
        now = _number(getattr(plan, name), name)
        rows.append([name, now, _number(each.value, name), f"{each.factor:.3f}", power])
    return ["Ten times the compute:", *_table(rows)]


def _trade(plan: Plan) -> list[str]:
    if not plan.trade:
        return []
    timed = plan.bill is not None
    rows = [["B / B_crit", "batch", "steps", "/ S_min", "FLOPs", "/ C_min"]]
    rows[0] += ["time", "time, chips ~ B"] if timed else []
    for row in plan.trade:
        ratio = f"{row.ratio:g}" if row.ratio >= 1 else f"1/{1 / row.ratio:g}"
        cells = [ratio, f"{row.batch_tokens:.3g}", f"{row.steps:,.0f}", f"{row.steps_relative:.3g}"]
        cells += [f"{row.flops:.3g}", f"{row.flops_relative:.4g}"]
        if row.hours is not None and row.hours_scaled is not None:
            cells += [_time(row.hours), _time(row.hours_scaled)]
        rows.append(cells)
    title = "Time against compute, to the same loss with the same size:"
    note = "time: on the chips below; chips ~ B: their number grown or cut with the batch"
    return [title, *_table(rows), *([f"  {note}"] if timed else [])]


def _sizes(plan: Plan) -> list[str]:
    if not plan.sizes:
        return []
    rows = [["N / N_opt", "params", "FLOPs, relative"]]
    for row in plan.sizes:
        cost = "never" if row.flops_relative is None else f"{row.flops_relative:.3g}"
        rows.append([f"{row.ratio:g}", f"{row.params:.3g}", cost])
    return ["Another size, to the same loss:", *_table(rows)]


def _cost(plan: Plan) -> list[str]:
    cost = plan.bill
    if cost is None:
        return []
    chip = cost.slice.accelerator
    money = (
        "unknown without --price"
        if cost.money_usd is None
        else f"{_amount(cost.money_usd)} USD at {cost.usd_per_chip_hour:g} USD a chip and hour"
    )
    hosts, vms = cost.slice.hosts, cost.slice.vms
    where = f"{cost.slice.chips} {_several('chip', cost.slice.chips)} on {hosts} "
    where += _several("host", hosts) + (f" ({vms} VMs)" if vms != hosts else "")
    rows = [
        ["chips", where],
        ["peak", f"{chip.peak_flops / 1e12:g} TFLOP/s a chip in bf16, dense; {chip.hbm_gb} GB"],
        ["assumed MFU", f"{cost.mfu:g}"],
        ["chip-hours", _amount(cost.chip_hours)],
        ["time", f"{_time(cost.hours)}, training alone"],
        ["money", money],
    ]
    return [f"On {cost.slice.name}:", *_table(rows, left=(0, 1))]


def _reach(plan: Plan) -> list[str]:
    if not plan.reach:
        return []
    rows = [["", "planned", "fitted from", "to", "beyond by"]]
    for name, each in plan.reach.items():
        beyond = "inside" if each.factor == 1 else f"{times(each.factor)} x"
        rows.append([name, f"{each.value:.4g}", f"{each.low:.3g}", f"{each.high:.3g}", beyond])
    return ["Extrapolation:", *_table(rows)]


def _flags(plan: Plan) -> list[str]:
    lines = ["Flags:"]
    for flag in plan.flags:
        text = f"{flag.name}: {flag.text}"
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")
    return lines if plan.flags else []


def _number(value: float | None, name: str) -> str:
    if value is None:
        return "open"
    if name == "steps" and value < 1e9:
        return f"{value:,.0f}"
    return f"{value:.4f}" if name == "loss" else f"{value:.4g}"


def _time(hours: float) -> str:
    for unit, size in (("years", 8766.0), ("days", 24.0), ("hours", 1.0), ("minutes", 1 / 60)):
        if hours >= 2 * size:
            return f"{hours / size:,.3g} {unit}"
    return f"{hours * 3600:.3g} seconds"


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _several(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def _table(rows: list[list[str]], left: tuple[int, ...] = (0,)) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "   ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
