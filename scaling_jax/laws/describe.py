"""A fit in plain text, for people."""

from __future__ import annotations

import textwrap
from typing import Any

from scaling_jax.laws.comparison import UNDECIDED
from scaling_jax.laws.forms import LAWS
from scaling_jax.laws.panel import Lamp
from scaling_jax.laws.result import Fit

WIDTH = 99
_MARKS = {True: "[ok] ", False: "[RED]", None: "[--] "}
_UNITS = {"loss": ", nats a token", "B_crit": ", tokens", "S": ", steps"}


def describe(fit: Fit) -> str:
    """Formula, parameters in both conventions of N, window, held-out errors, panel, exclusions."""
    law = LAWS[fit.law]
    steps = f" S: {fit.steps_name}." if fit.steps_name else ""
    held = ", ".join(f"{name} = {value}" for name, value in fit.fixed.items())
    lines = [
        *wrapped(f"{law.formula}{_UNITS[law.output]}; {law.source}"),
        *wrapped(
            f"{fit.n_points} points of {count_runs(fit.n_runs)}: {fit.rule}.{steps} "
            + ", ".join(f"{role} is {column}" for role, column in fit.columns.items())
            + "."
        ),
        *wrapped(f"{fit.level:.0%} intervals: {fit.interval_method}."),
        *(wrapped(f"Held: {held}.") if held else []),
        "",
        *_parameters(fit),
        "",
        *(_window(fit)),
        f"Objective: {fit.objective:.6g}, {fit.objective_form}",
        f"Rms log residual: {fit.rms_log_residual:.2%}",
        *_forms(fit.forms),
        "",
        f"Validity panel: {_count(fit.lamps)}",
        *(line for lamp in fit.lamps for line in _lamp(lamp)),
    ]
    if fit.excluded:
        lines += ["", "Left out:", *exclusions(fit.excluded)]
    return "\n".join(line.rstrip() for line in lines)


def _forms(forms: dict[str, Any] | None) -> list[str]:
    if forms is None:
        return []
    chosen = forms["chosen"].replace("_", " ")
    if forms["chosen"] == UNDECIDED:
        chosen += f" between {' and '.join(forms['contenders'])}".replace("_", " ")
    by_name = {name: form["formula"] for name, form in forms["forms"].items()}
    of = "; ".join(f"{name} is {formula}" for name, formula in by_name.items())
    return wrapped(f"Form of {forms['variable']}: {chosen}; {forms['reason']}. Here {of}.")


def _window(fit: Fit) -> list[str]:
    if fit.window is None:
        return []
    return wrapped(f"Window: from step {fit.window['step_start']:.0f}, {fit.window['rule']}.")


def _parameters(fit: Fit) -> list[str]:
    fits = [fit] if fit.other is None else [fit, fit.other]
    rows = [["", *(f"N = {each.convention}" for each in fits)]] if fit.convention else []
    for name in fit.params:
        rows.append([name, *(f"{each.params[name]:.4g}  (held)" if name in fit.fixed
                             else _with_interval(each.params[name], each.intervals[name])
                             for each in fits)])  # fmt: skip
    for name in fit.derived:
        rows.append([name, *(_with_interval(each.derived[name][0], each.derived[name][1:])
                             for each in fits)])  # fmt: skip
    for name in fit.held_out_detail:
        rows.append([f"held out: {name}", *(_share(each.held_out[name]) for each in fits)])
    return aligned(rows)


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows of cells as lines of columns, indented."""
    widths = [max(len(row[i]) for row in rows) + 3 for i in range(len(rows[0]))]
    return ["  " + "".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]


def _with_interval(value: float, ends: tuple[float, ...]) -> str:
    return f"{value:.4g}  ({ends[0]:.3g} to {ends[1]:.3g})"


def _share(value: float | None) -> str:
    return "not measurable" if value is None else f"{value:.2%}"


def _lamp(lamp: Lamp) -> list[str]:
    text = f"{_MARKS[lamp.ok]} {lamp.name} (limit {lamp.threshold:g}): {lamp.text}"
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent=" " * 8)


def _count(lamps: list[Lamp]) -> str:
    red = sum(lamp.ok is False for lamp in lamps)
    dark = sum(lamp.ok is None for lamp in lamps)
    return f"{len(lamps) - red - dark} green, {red} red, {dark} not measurable"


def exclusions(excluded: list[dict[str, Any]]) -> list[str]:
    """One paragraph a rule for rows {run_id, rule, reason, n_points}, indented."""
    rules: dict[str, list[dict]] = {}
    for row in excluded:
        rules.setdefault(row["rule"], []).append(row)
    lines = []
    for rule, rows in rules.items():
        points = sum(row["n_points"] for row in rows)
        runs = len({row["run_id"] for row in rows})
        said = list(dict.fromkeys(row["reason"] for row in rows))
        more = f" and {len(said) - 1} more" if len(said) > 1 else ""
        text = f"{rule}: {points} points of {count_runs(runs)} ({said[0]}{more})"
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")
    return lines


def count_runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def wrapped(text: str) -> list[str]:
    """The text in lines of `WIDTH`."""
    held = text.replace("eq. ", "eq.\0")  # an equation's number stays with its word
    return [line.replace("\0", " ") for line in textwrap.wrap(held, WIDTH)]
