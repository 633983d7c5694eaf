"""Forecasts, backtests and scores of sealed predictions in plain text, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scaling_jax.laws.describe import aligned, count_runs, exclusions, wrapped
from scaling_jax.laws.forecast.backtest import Backtest
from scaling_jax.laws.forecast.run import Forecasts, RunForecast
from scaling_jax.laws.forecast.seal import Score
from scaling_jax.laws.forecast.stop import Stops, Verdict

_MOST_REASONS = 8
_WHOLE = 1000  # steps; of fewer the parts are said
_TITLES = {
    "run": ("The end of finished runs, forecast from a part of their steps", "seen"),
    "larger": ("Larger models, forecast from the smaller", "N / largest seen"),
    "schedule": ("Runs of one schedule, forecast from those of the others", "schedule"),
}


def describe_forecasts(
    found: Forecasts, stops: Stops | None = None, no_stops: str | None = None
) -> str:
    """Every forecast with its interval and whether its run may be stopped, or `no_stops`, why that
    is not known; what could not be forecast, and the backtests."""
    names = names_of(found)
    parts = [
        _runs(found, stops),
        _refused(named(found.refused, names), "No forecast:"),
        _flags(found),
        _rule(found, stops),
        [] if no_stops is None else wrapped(no_stops),
    ]
    for test in (found.backtests or {}).values():
        parts.append(describe_backtest(test, found.another_tests, names))
    if found.excluded:
        parts.append(["Left out:", *exclusions(list(found.excluded))])
    return "\n\n".join("\n".join(line.rstrip() for line in part) for part in parts if part)


def describe_backtest(
    test: Backtest, another: str | None = None, names: Mapping[str, str] | None = None
) -> list[str]:
    """Errors against the baselines and coverage, with the number of curves behind each.

    `another` is the source whose errors gave the intervals of the ends of runs, where the finished
    runs are too few for their own; `names` those of runs, by id, where they have any.
    """
    title = title_of(test)
    refused = named(test.refused, names or {})
    if not test.outcomes:
        if not refused:
            return ["No run is finished: there is nothing to test such forecasts on."]
        return [f"{title}: none.", *_refused(refused, "")]
    lines = [f"{title} (errors in nats a token; medians of the baselines):"]
    lines += [*aligned(backtest_rows(test)), *wrapped(f"{coverage_of(test, another)}.")]
    return [*lines, *_refused(refused, "Not forecast:")]


def title_of(test: Backtest) -> str:
    """What was forecast from what."""
    return _TITLES[test.task][0]


def backtest_rows(test: Backtest) -> list[list[str]]:
    """A table of a backtest with outcomes: the heads, and one row a group."""
    rows = [test.summary(name) for name in test.groups]
    names = list(dict.fromkeys(name for row in rows for name in row["baselines"]))
    head = [_TITLES[test.task][1], "curves", "median error", "90 %", *map(_words, names)]
    table = [[*head, "covered", "half-width", "/ median"]]
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
    return table


def coverage_of(test: Backtest, another: str | None = None) -> str:
    """What the intervals of a backtest rest on."""
    few = sum(not ends.calibrated for ends in test.intervals)
    behind = "the errors on the other curves"
    if another is not None and test.task == "run":
        behind = f"the errors on the curves of another set, {another}, widened"
    elif few:
        behind += f"; {few} of {len(test.intervals)} had too few of them and were widened"
    return f"Covered: by {test.level:.0%} intervals from {behind}"


def describe_score(found: Score, names: Mapping[str, str] | None = None) -> str:
    """What became of sealed predictions: errors, coverage, and those not judged with the reason.

    `names` are those of runs, by id; a run that it does not have goes by its id.
    """
    parts, names = [], names or {}
    summary = found.summary()
    if summary is not None:
        parts.append(_judged(found, summary, names))
    changed = named(found.changed, names)
    parts.append(_refused(named(found.pending, names), "Pending:"))
    parts.append(_refused(changed, "Changed since they were sealed, and not judged:"))
    return "\n\n".join("\n".join(line.rstrip() for line in part) for part in parts if part)


def _runs(found: Forecasts, stops: Stops | None) -> list[str]:
    every = [*found.runs, *found.new_runs]
    if not every:
        return [] if found.refused else wrapped(_all_finished(found))
    return [
        f"Forecasts of {count_runs(len(every))}, nats a token:",
        *aligned(forecast_rows(found, stops)),
        *(f"  {line}" for line in wrapped(f"curves: {note_of(found)}")),
    ]


def _all_finished(found: Forecasts) -> str:
    unknown = all(curve.horizon is None for curve in found.curves)
    return "No run is unfinished." + (
        " No column says how many steps a run is to take, so that every curve counts as whole: "
        "--horizon STEPS asks how it would go on."
        if unknown
        else ""
    )


def forecast_rows(found: Forecasts, stops: Stops | None) -> list[list[str]]:
    """A table of the forecasts: the heads, and one row a run in the order of size and name."""
    head = ["run", "at step", "to step", "loss", f"{found.level:.0%} interval", "curves", "method"]
    verdicts = {} if stops is None else {run.run_id: _verdict(found, run) for run in stops.runs}
    rows = [[*head, *(["may stop"] if verdicts else [])]]
    names = names_of(found)
    for run in _in_order(found):
        rows.append([
            names.get(run.run_id, run.run_id),
            _steps(run.observed_step),
            _steps(run.horizon_step),
            f"{run.prediction.loss:.4f}",
            f"{run.interval.low:.4f} to {run.interval.high:.4f}",
            _curves(run),
            _words(run.prediction.method),
            *([verdicts.get(run.run_id, "-")] if verdicts else []),
        ])  # fmt: skip
    return rows


def _curves(run: RunForecast) -> str:
    count = str(run.interval.n_curves)
    if run.another is not None:
        return f"{count} of another set"
    return count if run.interval.calibrated else f"{count} (too few)"


def note_of(found: Forecasts) -> str:
    """What stands behind the intervals."""
    every = [*found.runs, *found.new_runs]
    said = ["finished runs, held out, whose errors the interval rests on"]
    if sources := sorted({run.another for run in every if run.another is not None}):
        said.append(
            f"those of another set are of {', '.join(sources)}, and errors on these are widened, as"
            " nothing says that the curves are alike"
        )
    other = found.request.calibration
    if any(not run.interval.calibrated for run in every):
        said.append(
            "too few: the interval is widened by a rule of thumb and promises no level"
            + ("; --calibration SOURCE takes the errors on another set" if other is None else "")
        )
    elif other is not None and not sources:
        said.append(f"they are enough, and those of {other.source} were not needed")
    return "; ".join(said)


def _verdict(found: Forecasts, run: Verdict) -> str:
    status = {curve.run_id: curve.status for curve in found.curves}
    if status.get(run.run_id) == "stopped":
        return "stopped"
    return "yes" if run.may_stop else "no"


def _rule(found: Forecasts, stops: Stops | None) -> list[str]:
    if stops is None:
        return []
    return [*wrapped(rule_of(stops)), *_refused(going_on(found, stops), "These go on:")]


def rule_of(stops: Stops) -> str:
    """The law with its exponents, how many runs may be stopped, and the rule in words."""
    held = ", ".join(
        f"{name} {value:.3g} ({low:.3g} to {high:.3g})"
        for name, (value, low, high) in stops.exponents.items()
    )
    gone = len(stops.stopped)
    counted = f"{len(stops.may_stop) - gone} of {count_runs(len(stops.runs) - gone)} may be stopped"
    counted += f", beside {gone} that {'was' if gone == 1 else 'were'}" if gone else ""
    return f"May stop, for {stops.law} ({held}): {counted}. The rule: {stops.rule}."


def going_on(found: Forecasts, stops: Stops) -> list[dict[str, str]]:
    """The name of every run that may not be stopped, as `run_id`, with the reason."""
    names, reasons = names_of(found), {run.run_id: run.reason for run in stops.runs}
    on = {run.run_id for run in stops.runs if not run.may_stop}
    return [
        {"run_id": names.get(run.run_id, run.run_id), "reason": reasons[run.run_id]}
        for run in _in_order(found)
        if run.run_id in on
    ]


def _in_order(found: Forecasts) -> list[RunForecast]:
    """By size, then by name."""
    names = names_of(found)
    every = [*found.runs, *found.new_runs]
    return sorted(every, key=lambda run: (run.size or 0.0, names.get(run.run_id, run.run_id)))


def names_of(found: Forecasts) -> dict[str, str]:
    """The name of every run of the table, by id."""
    return {curve.run_id: curve.name for curve in found.curves}


def named(rows: Sequence[Mapping[str, str]], names: Mapping[str, str]) -> list[dict[str, str]]:
    """Rows {run_id, reason} with the names, by id, in place of the ids; a run without keeps its
    id. A reason that begins with the run goes without, so that equal reasons are one."""
    found = []
    for row in rows:
        name = names.get(row["run_id"], row["run_id"])
        reason = row["reason"].removeprefix(f"Run {name} ")
        found.append({**row, "run_id": name, "reason": reason})
    return found


def _flags(found: Forecasts) -> list[str]:
    return _refused(_flagged(found), "Flags:")


def flags_of(found: Forecasts) -> list[str]:
    """Every flag with the runs that have it."""
    return by_reason(_flagged(found))


def _flagged(found: Forecasts) -> list[dict[str, str]]:
    names = names_of(found)
    return [
        {"run_id": names.get(run.run_id, run.run_id), "reason": flag}
        for run in _in_order(found)
        for flag in run.flags
    ]


def _judged(found: Score, summary: dict[str, Any], names: Mapping[str, str]) -> list[str]:
    rows = [
        ["run", "sealed", "at step", "to step", "forecast", "interval", "measured", "error", ""]
    ]
    for each in found.judged:
        low, high = each.interval
        rows.append([
            names.get(each.run_id, each.run_id),
            each.sealed_at[:10],
            _steps(each.observed_step),
            _steps(each.horizon_step),
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


def _refused(rows: Sequence[Mapping[str, str]], title: str) -> list[str]:
    if not rows:
        return []
    said = [f"  {line}" for text in by_reason(rows) for line in wrapped(text)]
    return [title, *said] if title else said


def by_reason(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Every reason of rows {run_id, reason} once, with the first three of its runs; of more than
    eight reasons the first, and of how many runs there are others."""
    reasons: dict[str, dict[str, None]] = {}
    for row in rows:
        reasons.setdefault(row["reason"], {})[row["run_id"]] = None
    said = [
        ", ".join([*runs][:3])
        + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
        + f": {reason}"
        for reason, runs in [*reasons.items()][:_MOST_REASONS]
    ]
    others = {run for runs in [*reasons.values()][_MOST_REASONS:] for run in runs}
    more = f"{count_runs(len(others))} more, for other reasons; --json has them all"
    return [*said, more] if others else said


def _group(task: str, group: str) -> str:
    if task == "run":
        return f"{float(group):.3g}"
    return f"{float(group):.3g}" if task == "larger" else group


def _steps(value: float | None) -> str:
    """Steps, or what a table has in their place: of epochs the parts count too."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= _WHOLE else f"{value:.4g}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _nats(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else f"{value:.1e}"
