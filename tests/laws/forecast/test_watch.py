"""A study watched: forecasts as often as it comes further, requests to stop, and no fatal look."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest
from etils import epath

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forecast import watch as watching
from scaling_jax.laws.forecast.monitor import Look
from scaling_jax.laws.forecast.seal import read_seal
from scaling_jax.laws.forecast.watch import PROGRESS, Watcher, require_study, watch
from scaling_jax.records.forecasts import forecast_files, written_at
from scaling_jax.records.locks import FolderLock
from scaling_jax.records.requests import STOP_FILE, stop_requests
from scaling_jax.records.store import Records
from scaling_jax.records.writer import RunWriter, write_study

STEPS = 12_000
RUN = "n12288-s1-lr0.01"
ROW = ("step_start", "step", "tokens", "batch_tokens", "train_loss", "val_loss")
HERE = {"versions": "", "device": "cpu", "mesh": "", "engine": ""}


class Study:
    """A study of known curves, written as it would train: all runs are done and one is not."""

    def __init__(self, out: Path, whole: Records):
        self.out = epath.Path(out)
        self.folder = self.out / "small"
        self._whole = whole
        names = dict(whole.runs.select(pl.col("run_id").alias("name"), "run_id").iter_rows())
        write_study(self.out, "small", "", ["l_ns"], names)
        self._writers: dict[str, RunWriter] = {}

    def train(self, run_id: str, until: int = STEPS) -> None:
        """The run as far as that step, on from where it was."""
        if run_id not in self._writers:
            row = self._whole.runs.row(by_predicate=pl.col("run_id") == run_id, named=True)
            row = {name: value for name, value in row.items() if name not in ("name", "status")}
            writer = self._writers[run_id] = RunWriter(self.out, run_id)
            writer.begin({"config": {}, "row": row}, HERE, STEPS)
            self._last = 0
        own = self._whole.curves.filter(pl.col("run_id") == run_id, pl.col("step") > self._last)
        writer = self._writers[run_id]
        writer.append(own.filter(pl.col("step") <= until).select(ROW).to_dicts())
        writer.flush()
        self._last = until
        if until == STEPS:
            writer.finish("done")


@pytest.fixture
def study(tmp_path: Path, make_records: Callable[..., Records]) -> Iterator[Study]:
    sizes = (3456, 6144, 12288, 27648)
    whole = make_records(sizes, seeds=3, noise=0.001, run_noise=0.01, bracket=False, recorded=50)
    found = Study(tmp_path / "runs", whole)
    for run_id in whole.runs["run_id"]:
        if run_id != RUN:
            found.train(run_id)
    with FolderLock(found.out):
        yield found


class Told(list):
    def __call__(self, line: str) -> None:
        self.append(line)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every forecast has a second of its own."""
    numbers = itertools.count()

    def name(study: epath.Path, suffix: str = ".json") -> epath.Path:
        return study / "forecasts" / f"20260101T0000{next(numbers):02d}Z{suffix}"

    monkeypatch.setattr(watching, "file_now", name)


def test_forecasts_are_written_as_a_run_comes_further_and_judged(study: Study, seconds) -> None:
    told = Told()
    watcher = Watcher(study.folder, None, told)
    watcher.look()
    assert watcher.written == [] and watcher.over() is None  # the one that is left was not begun
    for until, written in ((3000, 1), (3000 * PROGRESS - 400, 1), (8000, 2)):
        study.train(RUN, round(until))
        watcher.look()
        assert len(watcher.written) == written
    again = Watcher(study.folder, None, told)
    again.look()
    assert again.written == []  # nobody came further since the other's
    study.train(RUN)
    watcher.look()
    assert len(watcher.written) == 2 and watcher.over() == "nothing is left to train"
    files = forecast_files(study.folder)
    assert [str(path) for path in files] == watcher.written
    assert written_at(files[0]) == "2026-01-01T00:00:00+00:00"
    for path in files:
        (row,) = read_seal(path)["runs"]
        assert row["run_id"] == RUN and row["horizon_step"] == STEPS
        assert "may_stop" not in row
    summary = watcher.judge()
    assert summary is not None and (summary["n"], summary["n_runs"]) == (2, 1)
    assert summary["median_error"] < 0.05
    assert "2 predictions of 1 runs judged" in told[-1] and "0 without an outcome" in told[-1]


def test_runs_that_the_rule_can_spare_are_asked_to_stop_once(study: Study, seconds) -> None:
    told = Told()
    study.train(RUN, 9000)
    watcher = Watcher(study.folder, "l_n", told)
    watcher.look()
    request = stop_requests(study.out, [RUN])[RUN]
    assert watcher.asked == [RUN] and request.law == "l_n"
    (row,) = read_seal(watcher.written[0])["runs"]
    assert row["may_stop"] is True and row["reason"] == request.reason
    assert f"{RUN} is asked to stop: {request.reason}" in told
    other = Watcher(study.folder, "l_n", told)
    other._last_seen = dict
    other.look()
    assert other.asked == [] and len(other.written) == 1
    assert stop_requests(study.out, [RUN])[RUN] == request


@pytest.mark.parametrize(
    ("run", "spared"), [("n6144-s1-lr0.01", True), ("n27648-s0-lr0.01", False)]
)
def test_what_carries_the_law_is_not_asked(
    tmp_path: Path, make_records, seconds, run: str, spared: bool
) -> None:
    whole = make_records(
        (3456, 6144, 12288, 27648), seeds=3, noise=0.001, run_noise=0.01, bracket=False
    )
    kept = whole.runs.filter((pl.col("seed") == 0) | (pl.col("params_non_embedding") < 27648))
    study = Study(tmp_path / "runs", Records(kept, whole.curves, "one seed of the largest"))
    for run_id in kept["run_id"]:
        study.train(run_id, 9000 if run_id == run else STEPS)
    watcher = Watcher(study.folder, "l_ns", Told())
    with FolderLock(study.out):
        watcher.look()
    (row,) = read_seal(watcher.written[-1])["runs"]
    assert row["may_stop"] is spared and "alpha_" in row["reason"], row["reason"]
    assert watcher.asked == [run] * spared


def test_a_look_that_fails_is_told_once_and_tried_again(
    study: Study, seconds, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.train(RUN, 3000)
    told = Told()
    watcher = Watcher(study.folder, None, told)
    with monkeypatch.context() as patch:
        for fault in (WorkError("no room"), ZeroDivisionError("odd"), RequestError("damaged")):
            patch.setattr(watching, "load", _failing(fault))
            watcher.look()
            watcher.look()
    assert told == ["no room", "ZeroDivisionError: odd", "damaged"]
    watcher.look()
    assert len(watcher.written) == 1
    assert "looks succeed again" in told


def test_what_cannot_be_forecast_yet_is_looked_at_again_further_on(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def nothing(*_: object) -> Look:
        looks.append(True)
        return Look(None, None, ("too early",))

    monkeypatch.setattr(watching, "look_ahead", nothing)
    told = Told()
    watcher = Watcher(study.folder, None, told)
    for until, so_far in ((3000, 1), (3001, 1), (8000, 2)):
        study.train(RUN, until)
        watcher.look()
        assert len(looks) == so_far
    assert told == ["too early"] and watcher.written == []


def _failing(fault: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise fault

    return fail


def test_a_damaged_request_or_forecast_is_told_by_name(study: Study, seconds) -> None:
    study.train(RUN, 3000)
    told = Told()
    (study.folder / "forecasts").mkdir()
    bad = study.folder / "forecasts" / "20250101T000000Z.json"
    bad.write_text("{}")
    (study.out / RUN / STOP_FILE).write_text("please")
    watcher = Watcher(study.folder, "l_ns", told)
    watcher.look()
    assert any(f"{bad} is no sealed forecast" in line for line in told)
    assert any(f"{STOP_FILE} is no whole request to stop" in line for line in told)
    assert len(watcher.written) == 1  # what runs will come to is known without the rule
    assert "may_stop" not in read_seal(watcher.written[0])["runs"][0]


def test_no_finished_run_is_told_once(tmp_path: Path, make_records, seconds) -> None:
    whole = make_records((3456, 6144), noise=0.001, bracket=False, recorded=50)
    study = Study(tmp_path / "runs", whole)
    told = Told()
    watcher = Watcher(study.folder, None, told)
    for until in (3000, 9000):
        study.train("n3456-s0-lr0.01", until)
        watcher.look()
    assert len(watcher.written) == 2
    assert sum("no run is finished yet" in line for line in told) == 1


def test_it_waits_for_who_trains_and_says_for_what(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = itertools.chain([0.0, 0.0, 61.0, 61.0, 900.0], itertools.repeat(1800.0))

    class Clock:
        time = staticmethod(watching.time.time)
        sleep = staticmethod(lambda _: None)
        monotonic = staticmethod(lambda: next(now))

    monkeypatch.setattr(watching, "time", Clock)
    told = Told()
    found = watch(study.folder, None, 1.0, lambda: None, told)
    assert found.ended == "nothing was trained here for 15 minutes; what is left: 1 queued"
    assert told[0] == ("waiting up to 15 minutes for a process that trains; what is left: 1 queued")
    assert found.forecasts == [] and found.score is None


def test_it_ends_when_told(study: Study) -> None:
    answers = iter([None, "enough", "enough"])
    found = watch(study.folder, None, 60.0, lambda: next(answers), Told())
    assert found.ended == "enough"


def test_an_unknown_law_and_what_is_no_study_are_wrong_requests(
    study: Study, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="l_ns"):
        watch(study.folder, "l_nss", 1.0, lambda: None, Told())
    (tmp_path / "table.csv").write_text("step,loss\n1,2\n")
    for path, says in (
        (tmp_path / "nope", "There is no"),
        (study.out, "is not the folder of one study"),
        (tmp_path / "table.csv", "is not the folder of one study"),
    ):
        with pytest.raises(RequestError, match=says):
            require_study(epath.Path(path))
    require_study(study.folder)
