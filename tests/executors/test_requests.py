"""Runs that are asked to stop: together, for good, and as if never where the request is undone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from etils import epath

from scaling_jax.config import (
    BatchConfig,
    BranchConfig,
    CheckpointConfig,
    EngineConfig,
    EvaluationConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
)
from scaling_jax.data.corpus import Corpus
from scaling_jax.errors import RequestError
from scaling_jax.executors import local, requests
from scaling_jax.executors.local import run_study
from scaling_jax.executors.placement import Cohort
from scaling_jax.records import load
from scaling_jax.records.files import read_record, write_record
from scaling_jax.records.requests import STOP_FILE, StopRequest, ask_to_stop
from scaling_jax.study import Study
from scaling_jax.training import trainer

STEPS = 120
TOGETHER = {"engine": EngineConfig(lanes=2), "mesh": MeshConfig(lane=1)}


def config(**fields: Any) -> RunConfig:
    fixed = {
        "model": ModelConfig(n_layer=1, d_model=8, n_head=1, n_ctx=8),
        "batch": BatchConfig(sequences=8),
        "optimizer": OptimizerConfig(name="sgd", lr_peak=0.1),
        "evaluation": EvaluationConfig(tokens=64),
        "checkpoint": CheckpointConfig(kept_per_decade=0),
        "steps": STEPS,
        **TOGETHER,
    }
    return RunConfig(**(fixed | fields))


# Two cohorts of one program, of two lanes each.
STUDY = Study("asked", {f"seed{i}": config(seed=i) for i in range(4)})
PAIR = ("seed0", "seed1")


class Log:
    """A reporter that calls `act` with each step that was read."""

    def __init__(self, act: Callable[[int], None] = lambda step: None) -> None:
        self.act = act
        self.cohorts: list[tuple[tuple[str, ...], int]] = []
        self.ends: list[tuple[str, str, str]] = []

    def cohort(self, cohort: Cohort, number: int, of: int, step: int) -> Any:
        self.cohorts.append((tuple(cohort.runs), step))
        return self._observe

    def compiled(self, seconds: float) -> None: ...

    def ended(self, name: str, status: str, message: str) -> None:
        self.ends.append((name, status, message))

    def _observe(self, step: int, losses: Mapping[str, float], tokens_per_s: float) -> None:
        self.act(step)


class Train:
    """`run_study` in short chunks that are read at once, with requests looked for at each."""

    def __init__(self, corpus: Corpus, folder: Path):
        self.corpus = corpus
        self.out = epath.Path(folder)

    def __call__(
        self,
        act: Callable[[int], None] = lambda step: None,
        study: Study = STUDY,
        stop: Callable[[], str | None] = lambda: None,
    ) -> tuple[dict[str, str], Log]:
        log = Log(act)
        return run_study(study, self.out, self.corpus, log, stop), log

    def run_id(self, name: str, study: Study = STUDY) -> str:
        runs = load(self.out / study.name).runs
        return runs.filter(name=name)["run_id"].item()

    def ask(self, *names: str, study: Study = STUDY) -> None:
        for name in names:
            ask_to_stop(self.out, self.run_id(name, study), "l_ns", "the rule", f"{name} may")

    def undo(self, *names: str, study: Study = STUDY) -> None:
        for name in names:
            (self.out / self.run_id(name, study) / STOP_FILE).unlink()

    def last_steps(self, study: Study = STUDY) -> dict[str, int]:
        records = load(self.out / study.name)
        last = records.curves.group_by("run_id").agg(pl.col("step").max())
        return dict(records.runs.join(last, on="run_id").select("name", "step").iter_rows())

    def curves(self) -> pl.DataFrame:
        curves = load(self.out / STUDY.name).curves
        return curves.sort("run_id", "step").drop("attempt", "wall_s", "tokens_per_s")


@pytest.fixture
def make(
    tiny_corpus: Corpus, compile_once: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str], Train]:
    monkeypatch.setattr(local, "compile_program", compile_once)
    monkeypatch.setattr(trainer, "CHUNK_STEPS", 10)
    monkeypatch.setattr(trainer, "CHUNK_S", 1e9)
    monkeypatch.setattr(trainer, "IN_FLIGHT", 0)
    monkeypatch.setattr(requests, "LOOK_S", 0.0)
    return lambda name: Train(tiny_corpus, tmp_path / name)


@pytest.fixture
def train(make: Callable[[str], Train]) -> Train:
    return make("out")


def at(step: int, act: Callable[[], None]) -> Callable[[int], None]:
    """Acts once, when so many updates have been read."""
    done = []

    def observe(read: int) -> None:
        if read >= step and not done:
            done.append(True)
            act()

    return observe


def test_a_cohort_of_which_all_are_asked_stops_with_a_checkpoint(make) -> None:
    train, undisturbed = make("out"), make("undisturbed")
    ends, log = train(at(50, lambda: train.ask(*PAIR)))
    assert ends == {"seed0": "stopped", "seed1": "stopped", "seed2": "done", "seed3": "done"}
    assert ("seed0", "stopped", "l_ns: seed0 may") in log.ends
    assert [run for run, _ in log.cohorts] == [PAIR, ("seed2", "seed3")]
    assert all(50 <= train.last_steps()[name] < STEPS for name in PAIR)
    runs = load(train.out / STUDY.name).runs
    assert dict(runs.select("name", "message").iter_rows()) == {
        "seed0": "l_ns: seed0 may", "seed1": "l_ns: seed1 may", "seed2": None, "seed3": None,
    }  # fmt: skip

    again, log = train()
    assert again == ends and log.cohorts == [] and log.ends == []

    train.undo(*PAIR)
    ends, log = train()
    assert set(ends.values()) == {"done"}
    ((names, step),) = log.cohorts
    assert names == PAIR and 50 <= step < STEPS
    undisturbed()
    assert train.curves().equals(undisturbed.curves())  # bitwise


def test_a_lane_that_is_asked_goes_on_with_its_neighbour(train: Train) -> None:
    ends, _ = train(at(50, lambda: train.ask("seed0")))
    assert set(ends.values()) == {"done"}


def test_a_request_that_is_taken_back_in_time_stops_nothing(train: Train) -> None:
    def observe(step: int) -> None:
        if step == 50:
            train.ask("seed0")
        elif step == 70:
            train.undo("seed0")
            train.ask("seed1")

    ends, _ = train(observe)
    assert set(ends.values()) == {"done"}


def test_one_that_has_diverged_need_not_be_asked(train: Train) -> None:
    wild = config(optimizer=OptimizerConfig(name="sgd", lr_peak=1e30))
    study = Study("half", {"calm": config(), "wild": wild})
    ends, _ = train(at(60, lambda: train.ask("calm", study=study)), study)
    assert ends == {"calm": "stopped", "wild": "diverged"}


def test_a_cohort_that_was_asked_before_is_not_trained(train: Train) -> None:
    train(stop=enough(8))
    assert {*load(train.out / STUDY.name).runs["status"]} == {"interrupted", "queued"}
    before = train.last_steps()
    train.ask(*PAIR)
    ends, log = train()
    assert ends == {"seed0": "stopped", "seed1": "stopped", "seed2": "done", "seed3": "done"}
    assert [run for run, _ in log.cohorts] == [("seed2", "seed3")]
    assert log.ends[0] == ("seed0", "stopped", "l_ns: seed0 may")
    assert {name: train.last_steps()[name] for name in PAIR} == {n: before[n] for n in PAIR}
    runs = load(train.out / STUDY.name).runs.filter(pl.col("name").is_in(PAIR))
    assert runs["status"].to_list() == ["stopped"] * 2 and runs["tries"].to_list() == [1, 1]


def test_a_run_that_was_never_begun_is_trained(train: Train) -> None:
    train(stop=enough(8))
    for run_id in (train.run_id("seed2"), train.run_id("seed3")):
        request = StopRequest(run_id, "l_ns", "the rule", "by hand", "now")
        write_record(train.out / run_id / STOP_FILE, request._asdict())
    ends, _ = train()
    assert set(ends.values()) == {"done"}


def enough(calls: int) -> Callable[[], str | None]:
    left = iter([None] * calls)
    return lambda: next(left, "enough")


def test_a_damaged_request_is_refused_at_the_start_and_told_on_the_way(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    def damage() -> None:
        train.ask("seed0")
        path = train.out / train.run_id("seed0") / STOP_FILE
        path.write_text(path.read_text()[:50])

    ends, _ = train(at(50, damage))
    assert set(ends.values()) == {"done"}
    err = capsys.readouterr().err
    assert err.count("is no whole request to stop") == 1
    train()  # where all are done nobody asks
    run_id = train.run_id("seed1")
    state = read_record(train.out / run_id / "status.json")
    write_record(train.out / run_id / "status.json", state | {"status": "interrupted"})
    (train.out / run_id / STOP_FILE).write_text("please")
    with pytest.raises(RequestError, match=rf"{STOP_FILE} is no whole request .* Remove it"):
        train()


FAMILY = Study(
    "family",
    {"long": config(), "branch": config(branch=BranchConfig(run="long", step=80), steps=100)},
)


def test_a_run_goes_on_to_the_step_that_another_is_to_branch_from(train: Train) -> None:
    ends, _ = train(at(30, lambda: train.ask("long", study=FAMILY)), FAMILY)
    assert ends == {"long": "stopped", "branch": "done"}
    assert train.last_steps(FAMILY) == {"long": 75, "branch": 100}  # 75: of the last whole row


def test_a_branch_from_a_run_that_was_stopped_before_is_refused_plainly(train: Train) -> None:
    alone = Study("alone", {"long": config()})
    train(at(30, lambda: train.ask("long", study=alone)), alone)
    run_id = train.run_id("long", alone)
    late = Study("late", {"late": config(branch=BranchConfig(run=run_id, step=80), steps=100)})
    says = rf"no checkpoint of step 80 .* stopped early: remove .*{run_id}/{STOP_FILE} and run"
    with pytest.raises(RequestError, match=says):
        train(study=late)
