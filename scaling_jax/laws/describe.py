"""A fit in plain text, for people."""

from __future__ import annotations

import textwrap

from scaling_jax.laws.forms import LAWS
from scaling_jax.laws.panel import Lamp
from scaling_jax.laws.result import Fit

WIDTH = 99
_MARKS = {True: "[ok] ", False: "[RED]", None: "[--] "}


def describe(fit: Fit) -> str:
    """Formula, parameters in both conventions of N, window, held-out errors, panel, exclusions."""
    law = LAWS[fit.law]
    lines = [
        *_wrapped(f"{law.formula}, nats a token; {law.source}"),
        *_wrapped(
            f"S: {fit.steps_name}. {fit.n_points} points of {fit.n_runs} runs. {fit.level:.0%} "
            f"intervals from {fit.resamples} draws of whole runs and of the window's start."
        ),
        "",
        *_parameters(fit),
        "",
        *_wrapped(f"Window: from step {fit.window['step_start']:.0f}, {fit.window['rule']}."),
        f"Objective: {fit.objective:.4g}, {fit.objective_form}",
        f"Rms log residual: {fit.rms_log_residual:.2%}",
        "",
        f"Validity panel: {_count(fit.lamps)}",
        *(line for lamp in fit.lamps for line in _lamp(lamp)),
    ]
    if fit.excluded:
        lines += ["", "Left out:", *_exclusions(fit)]
    return "\n".join(line.rstrip() for line in lines)


def _parameters(fit: Fit) -> list[str]:
    fits = [fit] if fit.other is None else [fit, fit.other]
    rows = [["", *(f"N = {each.convention}" for each in fits)]]
    for name in fit.params:
        cells = [
            f"{each.params[name]:.4g}  ({each.intervals[name][0]:.3g} to "
            f"{each.intervals[name][1]:.3g})"
            for each in fits
        ]
        rows.append([name, *cells])
    for name in fit.held_out:
        rows.append([f"held out: {name}", *(_share(each.held_out[name]) for each in fits)])
    widths = [max(len(row[i]) for row in rows) + 3 for i in range(len(rows[0]))]
    return ["  " + "".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]


def _share(value: float | None) -> str:
    return "not measurable" if value is None else f"{value:.2%}"


def _lamp(lamp: Lamp) -> list[str]:
    text = f"{_MARKS[lamp.ok]} {lamp.name} (limit {lamp.threshold:g}): {lamp.text}"
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent=" " * 8)


def _count(lamps: list[Lamp]) -> str:
    red = sum(lamp.ok is False for lamp in lamps)
    dark = sum(lamp.ok is None for lamp in lamps)
    return f"{len(lamps) - red - dark} green, {red} red, {dark} not measurable"


def _exclusions(fit: Fit) -> list[str]:
    rules: dict[str, list[dict]] = {}
    for row in fit.excluded:
        rules.setdefault(row["rule"], []).append(row)
    lines = []
    for rule, rows in rules.items():
        points = sum(row["n_points"] for row in rows)
        runs = len({row["run_id"] for row in rows})
        said = list(dict.fromkeys(row["reason"] for row in rows))
        more = f" and {len(said) - 1} more" if len(said) > 1 else ""
        text = f"{rule}: {points} points of {runs} runs ({said[0]}{more})"
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH)
