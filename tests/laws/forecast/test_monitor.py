"""A look at a study under way: forecasts beside the runs, and never a failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from etils import epath

from scaling_jax.errors import RequestError
from scaling_jax.laws.forecast import monitor
from scaling_jax.laws.forecast.monitor import look_ahead
from scaling_jax.records.files import write_record
from scaling_jax.records.requests import ask_to_stop
from scaling_jax.records.store import Records

RUN = "n27648-s1-lr0.01"
OTHER = "n49152-s1-lr0.01"


def under_way(whole: Records, run: str = RUN) -> Records:
    state = pl.when(pl.col("run_id") == run).then(pl.lit("running")).otherwise("status")
    seen = whole.curves.filter((pl.col("run_id") != run) | (pl.col("step") < 4000))
    return Records(whole.runs.with_columns(status=state), seen, "under way")


def test_the_end_of_a_run_under_way_is_beside_it(make_records: Callable[..., Records]) -> None:
    whole = make_records(noise=0.001, seeds=2, recorded=60, bracket=False)
    found = look_ahead(under_way(whole), "l_ns")
    assert found is not None and found.reasons == ()
    columns = found.columns(whole.runs["run_id"].to_list())
    place = whole.runs["run_id"].to_list().index(RUN)
    last = whole.curves.filter(pl.col("run_id") == RUN)["val_loss"][-1]
    assert columns["low"][place] < columns["forecast"][place] < columns["high"][place]
    assert columns["forecast"][place] == pytest.approx(last, rel=0.01)
    assert columns["may_stop"][place] in ("yes", "no")
    assert [value for value in columns["forecast"] if value is not None] == [
        columns["forecast"][place]
    ]
    doc = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [run["run_id"] for run in doc["forecasts"]] == [RUN]
    assert [run["run_id"] for run in doc["stops"]["runs"]] == [RUN]


def test_a_run_that_was_stopped_or_asked_to_is_forecast_and_counts(
    make_records: Callable[..., Records], tmp_path: Path
) -> None:
    whole = make_records(noise=0.001, seeds=3, recorded=60, bracket=False)
    ahead = under_way(under_way(whole, RUN), OTHER)
    stopped = pl.when(run_id=RUN).then(pl.lit("stopped")).otherwise("status")
    records = Records(ahead.runs.with_columns(status=stopped), ahead.curves, str(tmp_path))
    write_record(epath.Path(tmp_path / OTHER / "status.json"), {})
    assert ask_to_stop(epath.Path(tmp_path), OTHER, "l_ns", "the rule", "it may")
    found = look_ahead(records, "l_ns")
    assert found is not None and found.forecasts is not None and found.stops is not None
    assert {run.run_id for run in found.forecasts.runs} == {RUN, OTHER}
    assert set(found.stops.stopped) == {RUN, OTHER}  # whatever they would move


def test_nothing_under_way_is_nothing_to_look_at(make_records: Callable[..., Records]) -> None:
    whole = make_records(bracket=False)
    assert look_ahead(whole) is None
    queued = whole.runs.with_columns(status=pl.lit("running"))
    assert look_ahead(Records(queued, whole.curves.head(0), "empty")) is None


@pytest.mark.parametrize("fault", [ZeroDivisionError("odd"), RequestError("two rows")])
def test_a_fault_is_said_and_not_raised(
    make_records: Callable[..., Records], monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(monitor, "forecast", fail)
    found = look_ahead(under_way(make_records(seeds=2, bracket=False)))
    assert found is not None and found.forecasts is None
    assert found.columns(["a"]) == {} and str(fault) in found.reasons[0]
    assert found.to_json()["forecasts"] is None


def test_an_unknown_law_is_a_wrong_request(make_records: Callable[..., Records]) -> None:
    with pytest.raises(RequestError, match="l_ns"):
        look_ahead(make_records(bracket=False), "l_nss")


def test_many_finished_runs_are_thinned_over_the_sizes(
    make_records: Callable[..., Records], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "_MOST_RUNS", 7)
    whole = under_way(make_records(seeds=4, bracket=False))
    few = monitor._few_finished(whole)
    done = few.runs.filter(pl.col("status") == "done")
    assert done.height == 7 and done["params_non_embedding"].n_unique() >= 6
    assert RUN in few.runs["run_id"] and RUN in few.curves["run_id"]
    assert set(few.curves["run_id"]) == set(few.runs["run_id"])
