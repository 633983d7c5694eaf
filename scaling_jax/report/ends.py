"""Where the runs of a study end, for its page: forecasts, and how good such ones have been."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forecast import describe
from scaling_jax.laws.forecast.run import Forecasts, forecast
from scaling_jax.laws.forecast.stop import Stops, stops_by
from scaling_jax.records.store import Records, declared_laws
from scaling_jax.report.figures import backtest as tests
from scaling_jax.report.figures import forecast as figures
from scaling_jax.report.pictures import Picture


@dataclass(frozen=True)
class Ends:
    """The forecasts of what is unfinished with the backtests on what is finished, and which runs
    may stop, or why that is not known (neither where the study declares no law of them)."""

    forecasts: Forecasts
    stops: Stops | None
    no_stops: str | None


def measure_ends(records: Records) -> Ends | None:
    """The ends of a study's runs; None where its curves carry neither forecast nor backtest."""
    try:
        found = forecast(records, backtest=True)
        stops, no_stops = stops_by(records, found, declared_laws(records.source))
    except (RequestError, WorkError):
        return None
    tested = any(test.outcomes for test in (found.backtests or {}).values())
    return Ends(found, stops, no_stops) if found.runs or tested else None


def words_of(ends: Ends) -> dict[str, Any]:
    """What the page says of them: tables, whose first row is of heads, and sentences."""
    found, stops = ends.forecasts, ends.stops
    names = describe.names_of(found)
    tests = [test for test in (found.backtests or {}).values() if test.outcomes]
    return {
        "level": found.level,
        "runs": describe.forecast_rows(found, stops) if found.runs else [],
        "note": describe.note_of(found),
        "flags": describe.flags_of(found),
        "refused": describe.by_reason(describe.named(found.refused, names)),
        "rule": ends.no_stops if stops is None else describe.rule_of(stops),
        "going_on": [] if stops is None else describe.by_reason(describe.going_on(found, stops)),
        "tests": [
            {
                "title": describe.title_of(test),
                "rows": describe.backtest_rows(test),
                "coverage": describe.coverage_of(test),
                "refused": describe.by_reason(describe.named(test.refused, names)),
            }
            for test in tests
        ],
    }


def pictures_of_ends(ends: Ends) -> list[Picture]:
    """The forecasts, the errors of the backtest, and what its intervals cover, where there are."""
    found, drawn = ends.forecasts, []
    if found.runs:
        drawn.append(
            Picture(
                "forecasts",
                "Unfinished runs",
                "Lines are what was seen, dots the final losses as they are forecast, with their "
                "intervals; of more than ten runs the ends are drawn beside each other. Finished "
                "runs are faint.",
                figures.forecasts(found),
            )
        )
    test = (found.backtests or {}).get("run")
    if test is None or not test.outcomes:
        return drawn
    drawn.append(
        Picture(
            "forecast_errors",
            "Errors of such forecasts on the finished runs",
            "Every finished run was forecast from a part of its steps, with the help of the "
            "others that are no larger. The band has eight of ten errors; a line below those of "
            "the baselines is what a forecast is worth here.",
            tests.backtest_errors(test),
        )
    )
    if tests.has_calibration(test):
        drawn.append(
            Picture(
                "forecast_calibration",
                "What the intervals cover",
                "Errors on the smaller runs make intervals for the larger. On the dotted line they "
                "hold what they promise, below it they are too narrow. Few runs make steps.",
                tests.calibration(test),
            )
        )
    return drawn
