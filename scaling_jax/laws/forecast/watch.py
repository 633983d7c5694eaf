"""A study watched while it trains: forecasts written down, and runs asked to stop that may.

Every forecast is a sealed prediction, which `seal.score` judges when the runs have ended.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import polars as pl
from etils import epath

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forecast.curve import curves_of
from scaling_jax.laws.forecast.law_ends import law_of_loss
from scaling_jax.laws.forecast.monitor import Look, look_ahead
from scaling_jax.laws.forecast.seal import read_seal, score, write_seal
from scaling_jax.records.files import is_there, reading
from scaling_jax.records.folders import declared_runs
from scaling_jax.records.forecasts import file_now, forecast_files
from scaling_jax.records.locks import is_locked
from scaling_jax.records.requests import ask_to_stop
from scaling_jax.records.schema import UNDER_WAY
from scaling_jax.records.status import STALE_S, read_statuses, standing
from scaling_jax.records.store import Records, load

LEVEL = 0.9
# A run is forecast anew when it has come so much further, so that forecasts are as many as the
# logarithm of its steps.
PROGRESS = 1.25
_SLICE_S = 0.5  # how soon a word to end is heard
_QUIET_S = 60.0  # who trains writes every 20 seconds

Tell = Callable[[str], None]


class Watched(NamedTuple):
    """What came of it: the forecasts that were written, the runs that were asked to stop, why it
    ended, and how all forecasts in the study's folder turned out (`Score.summary`, or None)."""

    forecasts: list[str]
    asked: list[str]
    ended: str
    score: dict[str, Any] | None


def watch(
    study: epath.Path, law: str | None, every_s: float, stop: Callable[[], str | None], tell: Tell
) -> Watched:
    """Look at a study's folder every so often, until nothing is left to train or `stop` says why.

    A look writes a forecast of all runs under way into the folder, where one of them has come
    `PROGRESS` times as far as at the last one or has ended. With a `law`, those that may be stopped
    for it are asked to. A look that fails is told and tried again. Ends too where nothing was
    written there for 15 minutes by who trains. Raises `RequestError` for an unknown law alone.
    """
    if law is not None:
        law_of_loss(law)
    watcher = Watcher(study, law, tell)
    while (ended := stop()) is None:
        watcher.look()
        if (ended := watcher.over()) is not None:
            break
        deadline = time.monotonic() + every_s
        while stop() is None and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, _SLICE_S))
    tell(f"ended: {ended}")
    return Watched(watcher.written, watcher.asked, ended, watcher.judge())


def require_study(study: epath.Path) -> None:
    """Raises `RequestError` for what is not the folder of a study."""
    if not is_there(study):
        raise RequestError(f"There is no {study}")
    with reading(study):
        if not study.is_dir() or not (study / "study.json").exists():
            raise RequestError(
                f"{study} is not the folder of one study, which holds its study.json, as "
                "runs/quickstart does"
            )


class Watcher:
    """The looks at one study; `written` and `asked` are what came of them."""

    def __init__(self, study: epath.Path, law: str | None, tell: Tell) -> None:
        self.written: list[str] = []
        self.asked: list[str] = []
        self._study = study
        self._out = study.parent
        self._law = law
        self._tell = tell
        self._told: set[str] = set()
        self._fault = ""  # of the last look
        self._states: dict[str, dict[str, Any]] | None = None  # by run_id, as last read
        self._seen: dict[str, float] = {}  # steps of runs at the last forecast
        self._heard = time.monotonic()  # of who trains

    def look(self) -> None:
        """Read where the runs stand, and where one has come further, forecast them all."""
        fault = ""
        try:
            self._read()
            if self._is_due():
                self._forecast()
        except (RequestError, WorkError) as error:
            fault = str(error)
        except Exception as error:  # files that are being written may hold anything
            fault = f"{type(error).__name__}: {error}"
        if _without_numbers(fault) != _without_numbers(self._fault):
            self._tell(fault or "looks succeed again")
        self._fault = fault

    def over(self) -> str | None:
        """Why there is nothing to look at any more, or None."""
        left = Counter(
            state["status"] for state in (self._states or {}).values() if _is_left(state["status"])
        )
        if self._states is not None and not left:
            return "nothing is left to train"
        runs = ", ".join(f"{count} {status}" for status, count in left.items())
        waits = f"what is left: {runs}" if runs else f"there is no {self._study / 'study.json'}"
        silence, most = time.monotonic() - self._heard, f"{STALE_S / 60:.0f} minutes"
        if silence >= STALE_S:
            return f"nothing was trained here for {most}; {waits}"
        if silence >= _QUIET_S and "running" not in left:
            self._tell_once(f"waiting up to {most} for a process that trains; {waits}")
        return None

    def judge(self) -> dict[str, Any] | None:
        """How the forecasts in the study's folder turned out, told and returned."""
        try:
            files = forecast_files(self._study)
            if not files:
                return None
            curves, _ = curves_of(load(self._study))
            found = score(files, curves)
        except Exception as error:
            self._tell(f"the forecasts could not be judged: {error}")
            return None
        summary = found.summary()
        self._tell(_said(summary, len(files), len(found.pending), len(found.changed)))
        return summary

    def _read(self) -> None:
        known, held, now = self._states or {}, is_locked(self._out), time.time()
        queued = {"status": "queued", "step": 0}
        states = {run: known.get(run, queued) for run in declared_runs(self._study).values()}
        ended = [run for run, state in states.items() if state["status"] in ("done", "diverged")]
        for run_id, state in read_statuses(self._out, states.keys() - ended).items():
            status = standing(state, held, now)
            if status == "failed" and held:
                status = "queued"  # it may be tried again
            states[run_id] = {**state, "status": status}
        if states != self._states:
            self._heard = time.monotonic()
        self._states = states

    def _is_due(self) -> bool:
        """Whether there is a run to forecast, and one came further or ended since the last time."""
        states = self._states or {}
        begun = any(s["status"] in UNDER_WAY and s["step"] > 0 for s in states.values())
        return begun and _is_further(states, self._seen) and _is_further(states, self._last_seen())

    def _last_seen(self) -> dict[str, float]:
        """How far the runs had come at the newest forecast that is there, whoever wrote it."""
        for path in reversed(forecast_files(self._study)):
            try:
                return {run: float(saw["step"]) for run, saw in read_seal(path)["data"].items()}
            except RequestError as error:
                self._tell_once(str(error))
        return {}

    def _forecast(self) -> None:
        records = load(self._study)
        if "done" not in records.runs["status"]:
            self._tell_once("no run is finished yet: forecasts have none to learn from")
        under_way = set(records.runs.filter(pl.col("status").is_in(UNDER_WAY))["run_id"])
        ahead = look_ahead(records, self._law, LEVEL)
        for reason in () if ahead is None else ahead.reasons:
            self._tell_once(reason)
        if ahead is not None and ahead.forecasts is not None:
            self._write(ahead, records, under_way)
        # also where there was none to write: it takes more of a curve to come by one
        self._seen = {run_id: state["step"] for run_id, state in (self._states or {}).items()}

    def _write(self, ahead: Look, records: Records, under_way: set[str]) -> None:
        assert ahead.forecasts is not None
        rows = _rows(ahead, under_way)
        if not rows:
            self._tell_once("of the runs under way none can be forecast yet")
            return
        path = file_now(self._study)
        write_seal(path, rows, ahead.forecasts.curves, LEVEL, str(self._study))
        self.written.append(str(path))
        self._tell(f"forecast of {len(rows)} run{'s' * (len(rows) > 1)} in {path.name}")
        self._ask(ahead, under_way, dict(records.runs["run_id", "name"].rows()))

    def _ask(self, ahead: Look, run_ids: set[str], names: Mapping[str, str]) -> None:
        for verdict in () if ahead.stops is None else ahead.stops.runs:
            if not (verdict.may_stop and verdict.run_id in run_ids):
                continue
            assert ahead.stops is not None
            law, rule = ahead.stops.law, ahead.stops.rule
            if ask_to_stop(self._out, verdict.run_id, law, rule, verdict.reason):
                self.asked.append(verdict.run_id)
                name = names.get(verdict.run_id, verdict.run_id)
                self._tell(f"{name} is asked to stop: {verdict.reason}")

    def _tell_once(self, message: str) -> None:
        if (kind := _without_numbers(message)) not in self._told:
            self._told.add(kind)
            self._tell(message)


def _is_further(states: Mapping[str, Mapping[str, Any]], seen: Mapping[str, float]) -> bool:
    """Whether a run has come `PROGRESS` times as far as seen, or has ended since."""
    return any(
        state["step"] > 0
        and (
            state["step"] >= PROGRESS * seen.get(run_id, 0)
            or (not _is_left(state["status"]) and state["step"] > seen.get(run_id, 0))
        )
        for run_id, state in states.items()
    )


def _without_numbers(message: str) -> str:
    """What two messages have in common that tell the same of other runs, steps or times."""
    return " ".join(word for word in message.split() if not any(map(str.isdigit, word)))


def _is_left(status: str) -> bool:
    return status in ("queued", *UNDER_WAY)


def _rows(ahead: Look, run_ids: set[str]) -> list[dict[str, Any]]:
    """The rows of a seal for the runs, with what the rule says of each where it was asked."""
    assert ahead.forecasts is not None
    rows = [row for row in ahead.forecasts.to_seal() if row["run_id"] in run_ids]
    if ahead.stops is None:
        return rows
    verdicts = {run.run_id: run for run in ahead.stops.runs}
    judged = [row | {"may_stop": False, "reason": "not judged"} for row in rows]
    return [
        row | {"may_stop": found.may_stop, "reason": found.reason}
        if (found := verdicts.get(row["run_id"])) is not None
        else row
        for row in judged
    ]


def _said(summary: dict[str, Any] | None, files: int, pending: int, changed: int) -> str:
    open_ends = f"{pending} without an outcome, {changed} of data that changed since"
    if summary is None:
        return f"forecasts written: {files}, none judged: {open_ends}"
    beside = ", ".join(
        f"{name.replace('_', ' ')} {of['median_error']:.2g}"
        for name, of in summary["baselines"].items()
    )
    return (
        f"{summary['n']} predictions of {summary['n_runs']} runs judged: {summary['covered']} "
        f"covered at {LEVEL:.0%}, median error {summary['median_error']:.2g} nats a token, "
        f"half-width {summary['half_width']:.2g}; baselines: {beside or 'none'}; {open_ends}"
    )
