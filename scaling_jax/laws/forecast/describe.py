"""Forecasts, backtests and scores of sealed predictions in plain text, for people."""

from __future__ import annotations

from typing import Any

from scaling_jax.laws.describe import aligned, count_runs, exclusions, wrapped
from scaling_jax.laws.forecast.backtest import Backtest
from scaling_jax.laws.forecast.run import Forecasts
from scaling_jax.laws.forecast.seal import Score

_TITLES = {
    "run": ("The end of finished runs, forecast from a part of their steps", "seen"),
    "larger": ("Larger models, forecast from the smaller", "largest N seen"),
    "schedule": ("Runs of one schedule, forecast from those of the others", "schedule"),
}


def describe_forecasts(found: Forecasts) -> str:
    """Every forecast with its interval, what could not be forecast, and the backtests."""
    parts = [_runs(found), _refused(found.refused, "No forecast:"), _flags(found)]
    for test in (found.backtests or {}).values():
        parts.append(describe_backtest(test))
    if found.excluded:
        parts.append(["Left out:", *exclusions(list(found.excluded))])
    return "\n\n".join("\n".join(line.rstrip() for line in part) for part in parts if part)


def describe_backtest(test: Backtest) -> list[str]:
    """Errors against the baselines and coverage, with the number of curves behind each."""
    title, group = _TITLES[test.task]
    if not test.outcomes:
        return [f"{title}: none.", *_refused(test.refused, "")]
    rows = [test.summary(name) for name in test.groups]
    names = list(dict.fromkeys(name for row in rows for name in row["baselines"]))
    head = [group, "curves", "median error", "90 %", *(f"{_words(name)}" for name in names)]
    table = [[*head, "covered", "half-width", "/ median error"]]
    for row in rows:
        beside = [row["baselines"].get(name) for name in names]
        table.append([
            _group(test.task, row["group"]),
            str(row["n_curves"]),
            _nats(row["median_error"]),
            _nats(row["p90_error"]),
            *("-" if of is None else _nats(of["median_error"]) for of in beside),
            f"{row['covered']} of {row['n']}",
            _nats(row["half_width"]),
            f"{row['half_width_of_median_error']:.2g}",
        ])  # fmt: skip
    few = sum(not ends.calibrated for ends in test.intervals)
    lines = [f"{title} (errors in nats a token; medians of the baselines):", *aligned(table)]
    lines += wrapped(
        f"Covered: by {test.level:.0%} intervals from the errors on the other curves"
        + (
            f"; {few} of {len(test.intervals)} had too few of them and were widened."
            if few
            else "."
        )
    )
    return [*lines, *_refused(test.refused, "Not forecast:")]


def describe_score(found: Score) -> str:
    """What became of sealed predictions: errors, coverage, and those not judged with the reason."""
    parts = []
    summary = found.summary()
    if summary is not None:
        parts.append(_judged(found, summary))
    parts.append(_refused(found.pending, "Pending:"))
    parts.append(_refused(found.changed, "Changed since they were sealed, and not judged:"))
    return "\n\n".join("\n".join(line.rstrip() for line in part) for part in parts if part)


def _runs(found: Forecasts) -> list[str]:
    every = [*found.runs, *found.new_runs]
    if not every:
        return ["No run is unfinished."] if not found.refused else []
    rows = [
        ["run", "at step", "to step", "loss", f"{found.level:.0%} interval", "curves", "method"]
    ]
    names = {curve.run_id: curve.name for curve in found.curves}
    for run in every:
        seen = "-" if run.observed_step is None else f"{run.observed_step:,.0f}"
        low, high = run.interval.low, run.interval.high
        rows.append([
            names.get(run.run_id, run.run_id),
            seen,
            f"{run.horizon_step:,.0f}",
            f"{run.prediction.loss:.4f}",
            f"{low:.4f} to {high:.4f}",
            f"{run.interval.n_curves}{'' if run.interval.calibrated else ' (too few)'}",
            _words(run.prediction.method),
        ])  # fmt: skip
    note = "curves: finished runs, held out, whose errors the interval rests on"
    return [
        f"Forecasts of {count_runs(len(every))}, nats a token:",
        *aligned(rows),
        f"  {note}",
    ]


def _flags(found: Forecasts) -> list[str]:
    said: dict[str, list[str]] = {}
    names = {curve.run_id: curve.name for curve in found.curves}
    for run in (*found.runs, *found.new_runs):
        for flag in run.flags:
            said.setdefault(flag, []).append(names.get(run.run_id, run.run_id))
    lines = []
    for flag, runs in said.items():
        which = ", ".join(runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
        lines += [f"  {line}" for line in wrapped(f"{flag}: {which}")]
    return ["Flags:", *lines] if lines else []


def _judged(found: Score, summary: dict[str, Any]) -> list[str]:
    rows = [
        ["run", "sealed", "at step", "to step", "forecast", "interval", "measured", "error", ""]
    ]
    for each in found.judged:
        low, high = each.interval
        rows.append([
            each.run_id,
            each.sealed_at[:10],
            "-" if each.observed_step is None else f"{each.observed_step:,.0f}",
            f"{each.horizon_step:,.0f}",
            f"{each.loss:.4f}",
            f"{low:.4f} to {high:.4f}",
            f"{each.measured:.4f}",
            _nats(each.error),
            "covered" if each.covered else "missed",
        ])  # fmt: skip
    beside = ", ".join(
        f"{_words(name)} {_nats(of['median_error'])}" for name, of in summary["baselines"].items()
    )
    level = "" if found.level is None else f" at {found.level:.0%}"
    count = f"{summary['n']} sealed forecasts of {count_runs(summary['n_runs'])}"
    return [
        *aligned(rows),
        *wrapped(
            f"{count}: {summary['covered']} covered{level}; median error "
            f"{_nats(summary['median_error'])} nats a token, half-width "
            f"{_nats(summary['half_width'])}" + (f"; baselines: {beside}." if beside else ".")
        ),
    ]


def _refused(rows: Any, title: str) -> list[str]:
    if not rows:
        return []
    reasons: dict[str, list[str]] = {}
    for row in rows:
        reasons.setdefault(row["reason"], []).append(row["run_id"])
    lines = [title] if title else []
    for reason, runs in reasons.items():
        names = list(dict.fromkeys(runs))
        which = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        lines += [f"  {line}" for line in wrapped(f"{which}: {reason}")]
    return lines


def _group(task: str, group: str) -> str:
    if task == "run":
        return f"{float(group):.3g}"
    return f"{float(group):.3g}" if task == "larger" else group


def _words(name: str) -> str:
    return name.replace("_", " ")


def _nats(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else f"{value:.1e}"
