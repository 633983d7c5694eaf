"""How the runs that a study is training will end, for a look at it while it runs."""

from __future__ import annotations

from typing import Any, NamedTuple

import polars as pl

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forecast.law_ends import law_of_loss
from scaling_jax.laws.forecast.run import Forecasts, forecast
from scaling_jax.laws.forecast.stop import Stops, stops_of
from scaling_jax.records.schema import UNDER_WAY
from scaling_jax.records.store import Records

_MOST_RUNS = 40  # finished ones that are learned from, so that a look stays quick


class Look(NamedTuple):
    """`forecasts` of the runs under way and `stops`, the rule's verdicts; each None where it could
    not be had or was not asked for, and then `reasons` says why not."""

    forecasts: Forecasts | None
    stops: Stops | None
    reasons: tuple[str, ...]

    def columns(self, run_ids: list[str]) -> dict[str, list[Any]]:
        """Columns for a table of runs: `forecast`, `low`, `high` (nats a token), `may_stop`."""
        if self.forecasts is None:
            return {}
        known = {run.run_id: run for run in self.forecasts.runs}
        mine = [known.get(run_id) for run_id in run_ids]
        columns: dict[str, list[Any]] = {
            "forecast": [run and run.prediction.loss for run in mine],
            "low": [run and run.interval.low for run in mine],
            "high": [run and run.interval.high for run in mine],
        }
        if self.stops is not None:
            verdict = {run.run_id: "yes" if run.may_stop else "no" for run in self.stops.runs}
            columns["may_stop"] = [verdict.get(run_id) for run_id in run_ids]
        return columns

    def to_json(self) -> dict[str, Any]:
        return {
            "forecasts": None if self.forecasts is None else self.forecasts.to_json()["runs"],
            "stops": None if self.stops is None else self.stops.to_json(),
            "no_forecast": list(self.reasons),
        }


def look_ahead(records: Records, law: str | None = None, level: float = 0.9) -> Look | None:
    """Forecasts of the runs under way, and with `law` those that it may do without.

    None where no run under way has a curve. Of more than 40 finished runs it learns from 40 evenly
    spread over the sizes. What goes wrong is in `reasons`; raises `RequestError` alone for a law
    that the rule cannot judge by.
    """
    if law is not None:
        law_of_loss(law)
    if not _has_curves_under_way(records):
        return None
    forecasts, why = _guarded(lambda: forecast(_few_finished(records), level=level))
    if law is None or forecasts is None:
        return Look(forecasts, None, why)
    stops, refused = _guarded(lambda: stops_of(records, forecasts, law))
    return Look(forecasts, stops, refused)


def _guarded(make: Any) -> tuple[Any, tuple[str, ...]]:
    try:
        return make(), ()
    except (RequestError, WorkError) as error:
        return None, (str(error),)
    except Exception as error:  # curves that are being written may hold anything
        return None, (f"{type(error).__name__}: {error}",)


def _has_curves_under_way(records: Records) -> bool:
    under_way = records.runs.filter(pl.col("status").is_in(UNDER_WAY))
    measured = records.curves.filter(pl.col("step") > 0)
    return not under_way.join(measured, on="run_id", how="semi").is_empty()


def _few_finished(records: Records) -> Records:
    done = records.runs.filter(pl.col("status") == "done").sort("params_non_embedding", "run_id")
    if done.height <= _MOST_RUNS:
        return records
    every = pl.int_range(done.height) * _MOST_RUNS // done.height
    kept = done.filter(every != every.shift(-1, fill_value=_MOST_RUNS))["run_id"]
    which = (pl.col("status") != "done") | pl.col("run_id").is_in(kept.to_list())
    runs = records.runs.filter(which)
    curves = records.curves.join(runs, on="run_id", how="semi", maintain_order="left")
    return Records(runs, curves, records.source, records.made_ids)
