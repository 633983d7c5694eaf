"""Allocations, critical batches and transfer lines in plain text, for people."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import polars as pl

from scaling_jax.laws.allocation import LINES, Allocation, compare
from scaling_jax.laws.approaches import ISOFLOP, PARABOLA, Allocations
from scaling_jax.laws.batch_policy import PolicyGain
from scaling_jax.laws.batch_sweep import BatchSweep
from scaling_jax.laws.corpora import Corpus, Transfer, corpus_name
from scaling_jax.laws.critical_batch import describe_ladder
from scaling_jax.laws.describe import WIDTH, aligned, count_runs, exclusions, wrapped
from scaling_jax.laws.transfer import PhaseTest, Quantity

_MOST_MINIMA = 10  # of an envelope, which has forty a decade


def describe_allocations(found: Allocations) -> str:
    """The approaches side by side, their minima, and what was refused, flagged and left out."""
    runs = found.points["run"].n_unique()
    lines = [
        "How compute divides: N_opt = N_e (C / 8.64e19 FLOPs)^p_N, D_opt = D_e (C / 8.64e19)^p_D",
        *wrapped(f"{found.points.height} points of {count_runs(runs)}. {_columns(found.columns)}"),
    ]
    if found.critical_batch is not None:
        said = ", ".join(f"{name} = {value:g}" for name, value in found.critical_batch.items())
        lines += wrapped(f"Approach 1 in C_min and E_min, with {said}.")
    if found.allocations:
        lines += ["", *_comparison(found)]
    for each in found.allocations:
        if each.minima.height and each.method != PARABOLA:
            lines += ["", *_minima(each, found)]
    notes = [(each.method, flag) for each in found.allocations for flag in each.flags]
    lines += _section("Refused", found.refused.items())
    lines += _section("Flags", [("all", flag) for flag in found.flags] + notes)
    out = [(f"{each.method} at {_budgets(row)}", row["reason"])
           for each in found.allocations for row in each.excluded]  # fmt: skip
    lines += _section("Budgets left out", out)
    if found.excluded:
        lines += ["", "Rows left out:", *exclusions(found.excluded)]
    return _text(lines)


def _comparison(found: Allocations) -> list[str]:
    table = compare(*found.allocations)
    rows = []
    for names in (LINES[:2], LINES[2:]):
        rows.append(["", *names])
        for row in table.iter_rows(named=True):
            cells = (_between(row[name], *(row[f"{name}_{end}"] for end in ("low", "high")))
                     for name in names)  # fmt: skip
            rows.append([row["method"], *cells])
    unit = f"{found.level:.0%} intervals in brackets; D in tokens"
    return [*aligned(rows), *wrapped(f"{unit}; N_e and D_e are at 8.64e19 FLOPs, one PF-day.")]


def _minima(each: Allocation, found: Allocations) -> list[str]:
    """A line a budget of isoFLOP minima, and some of the many budgets of an envelope."""
    if each.method == ISOFLOP and found.optima is not None:
        table = found.optima.filter(
            (pl.col("status") == "ok") | (pl.col("status_parabola") == "ok")
        )
        rows = [["C", "sizes", "N", "sd ln N", "D / N", "loss", "N by parabola"]]
        for row in table.iter_rows(named=True):
            N, D = row["n_opt"], row["d_opt"]
            rows.append([
                f"{row['budget']:.4g}", str(row["n_sizes"]), _number(N),
                _number(row["sd_ln_n"], 2), "-" if N is None else f"{D / N:.3g}",
                _number(row["loss_opt"]), _number(row["n_opt_parabola"]),
            ])  # fmt: skip
        return ["Minima:", *aligned(rows), f"  noise of ln loss {table['noise'][0]:.2g}"]
    minima = each.minima
    shown = np.unique(np.linspace(0, minima.height - 1, _MOST_MINIMA).round().astype(int))
    rows = [["C", "N", "D", "D / N"]]
    for row in minima[shown.tolist()].iter_rows(named=True):
        rows.append([f"{row[name]:.4g}" for name in ("compute", "N", "D")]
                    + [f"{row['D'] / row['N']:.3g}"])  # fmt: skip
    title = f"Minima of {each.method}: {minima.height} budgets, {minima['N'].n_unique()} sizes"
    return [f"{title}, of which:" if minima.height > len(shown) else f"{title}:", *aligned(rows)]


def _budgets(row: dict[str, Any]) -> str:
    ends = f"{row['low']:.3g}", f"{row['high']:.3g}"
    return " to ".join(dict.fromkeys(ends)) + " FLOPs"


def describe_critical_batch(found: BatchSweep) -> str:
    """Both definitions at every level, the law and what it is for, flags, what was left out."""
    law, ladder = found.ladder.law, found.ladder
    lines = [
        f"Critical batch size, {found.level:.0%} intervals; the law is by "
        f"{'E_min / S_min' if ladder.definition == 'kaplan' else 'the 20 % rule'}",
        *wrapped(f"Levels: {found.levels}. {_columns(found.columns)}"),
        "",
        *describe_ladder(ladder, found.unit).split("\n"),
    ]
    sizes = [size for size in dict.fromkeys(found.sizes) if size is not None]
    for size in sorted(sizes) if len(sizes) > 1 else ():
        own = [rung.loss for rung, of in zip(ladder.rungs, found.sizes, strict=True) if of == size]
        lines += wrapped(f"N = {size:.4g}: losses {', '.join(f'{loss:.4g}' for loss in own)}")
    if law is not None and ladder.definition == "kaplan" and found.unit == "tokens":
        constants = f"B_star={law.B_star.value:.4g},alpha_B={law.alpha_B.value:.4g}"
        lines += ["", *wrapped(
            f"For steps as S_min: scaling-jax fit SOURCE --law l_ns --critical-batch {constants}"
        )]  # fmt: skip
    for gain in found.policies:
        lines += ["", *_policy(gain)]
    lines += _section("Flags", [("", flag) for flag in found.flags])
    levels = [row for row in found.excluded if "loss" in row]
    lines += _section("Levels left out", [(_level(row), row["reason"]) for row in levels])
    if rows := [row for row in found.excluded if "run_id" in row]:
        lines += ["", "Rows left out:", *exclusions(rows)]
    return _text(lines)


def _policy(gain: PolicyGain) -> list[str]:
    """The tokens of a policy at equal steps, a line a level."""
    head = f"{gain.policy}, against the fixed batches of {gain.n_seeds} seeds:"
    rows = [["loss", "steps", "tokens", "tokens / theirs at equal steps", "gamma"]]
    for rung in gain.rungs:
        ratios = (_between(*each) for each in (rung.tokens_ratio, rung.gamma))
        rows.append([*(f"{value:.4g}" for value in rung[:3]), *ratios])
    out = [(f"loss {row['loss']:.4g}", row["reason"]) for row in gain.excluded]
    said = "gamma is (S / S_min - 1)(E / E_min - 1): 1 for fixed batches, less where it gains"
    return [*wrapped(head), *(aligned(rows) if gain.rungs else []), *wrapped(said),
            *_section("Levels without a ratio", out)]  # fmt: skip


def _level(row: dict[str, Any]) -> str:
    said = f"loss {row['loss']:.4g}"
    return said if row.get("N") is None else f"{said}, N = {row['N']:.4g}"


def describe_transfer(found: Transfer) -> str:
    """One paragraph a corpus: slope, gap, offset, the test of phases, or why there is no line."""
    lines = [
        f"L_other = offset + slope L_train, nats a token; L_train is {found.column} "
        f"({corpus_name(found.column)}); {found.level:.0%} intervals"
    ]
    for each in found.corpora:
        lines += ["", *_corpus(each)]
    return _text(lines)


def _corpus(each: Corpus) -> list[str]:
    line, lines = each.line, [f"{each.column} ({each.name})"]
    if line is None:
        lines += _indented(f"Refused: {each.refusal}")
    else:
        lines += aligned([
            ["slope", _quantity(line.slope), "1 where both losses fall alike"],
            ["gap", _quantity(line.gap), f"L_other - L_train at L_train = {line.centre:.4g}"],
            ["offset", _quantity(line.offset), "at L_train = 0, far outside the points"],
        ])  # fmt: skip
        if each.sample_se is not None:
            lines += _indented(
                f"Other documents of the two corpora would move the gap by {each.sample_se:.2g} "
                "more (one standard error)"
            )
        said = f"{line.n_points} points of {count_runs(line.n_runs)}, rms residual"
        lines.append(f"  {said} {line.rms_residual:.3g} nats")
        if line.phase_test is not None:
            lines += _indented(_phases(line.phase_test))
        lines += [text for flag in each.flags for text in _indented(f"Flag: {flag}")]
    if each.excluded:
        lines += ["  Rows left out:", *(f"  {text}" for text in exclusions(each.excluded))]
    return lines


def _phases(test: PhaseTest) -> str:
    both = " and ".join(f"{name!r}" for name in test.phases)
    if test.p_value is None or test.df is None:
        return f"Whether {both} lie on one line is not tested: {test.reason}"
    return (
        f"{both} on one line: p = {test.p_value:.2g} (F = {test.F:.3g} with {test.df[0]} and "
        f"{test.df[1]} degrees; {test.method}); {test.phases[1]!r} lies {test.shift:+.3g} nats off"
    )


def _quantity(quantity: Quantity) -> str:
    return f"{quantity.value:.4g}  ({quantity.low:.4g} to {quantity.high:.4g})"


def _columns(columns: dict[str, str]) -> str:
    return ", ".join(f"{role} is {column}" for role, column in columns.items()) + "."


def _between(value: float, low: float | None, high: float | None) -> str:
    ends = "" if low is None or high is None else f" ({low:.3g} to {high:.3g})"
    return f"{value:.3g}{ends}"


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def _section(title: str, rows: Any) -> list[str]:
    """Each reason once, with all that it holds for."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in rows:
        by_reason.setdefault(reason, []).append(name)
    if not by_reason:
        return []
    lines = ["", f"{title}:"]
    for reason, names in by_reason.items():
        name = ", ".join(dict.fromkeys(filter(None, names)))
        lines += _indented(f"{name}: {reason}" if name else reason)
    return lines


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")


def _text(lines: list[str]) -> str:
    return "\n".join(line.rstrip() for line in lines)
