from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pytest
from etils import epath

from scaling_jax import records
from scaling_jax.config import RunConfig
from scaling_jax.records.status import run_status
from scaling_jax.records.writer import RunWriter, write_study
from scaling_jax.training import trainer
from scaling_jax.training.evaluation import evaluation_entries
from scaling_jax.training.saving import Checkpoints, committed_steps
from scaling_jax.training.trainer import Asked, Ended, train_cohort
from scaling_jax.training.windows import evaluation_steps

STEPS = 150


def never() -> None:
    return None


def unasked(going, step) -> None:
    return None


class Told:
    """What an observer was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, dict[str, float], float]] = []

    def __call__(self, step, losses, tokens_per_s) -> None:
        self.calls.append((step, dict(losses), tokens_per_s))


@pytest.fixture(autouse=True)
def _as_long_chunks_as_there_are(monkeypatch):
    monkeypatch.setattr(trainer, "CHUNK_S", 1e9)  # on a busy machine, too


@pytest.fixture
def program(tiny, compiled):
    return compiled(tiny(), lanes=2)


@pytest.fixture
def cohort(tiny) -> dict[str, RunConfig]:
    shared = {"steps": STEPS, "evaluation": {"per_decade": 1}}
    return {
        "slow": tiny(optimizer={"lr_peak": 1e-3}, **shared),
        "fast": tiny(seed=1, **shared),
    }


@pytest.fixture
def train_recorded(program, tmp_path):
    """`train_recorded(cohort, names, stop)`: how each ended, and the records of those named."""

    def run(
        cohort: dict[str, RunConfig],
        names: list[str],
        stop: Callable[[], str | None] = never,
        told: Told | None = None,
        kept: tuple[int, ...] = (),
        spy: type[Checkpoints] | None = None,
        asked: Asked = unasked,
    ):
        out = epath.Path(tmp_path)
        write_study(out, "study", "", [], {name: f"id-{name}" for name in names})
        writers = {name: RunWriter(out, f"id-{name}") for name in names}
        for name, writer in writers.items():
            config = cohort[name]
            doc = {"config": config.model_dump(mode="json"), "row": {"seed": config.seed}}
            writer.begin(
                doc, dict.fromkeys(("versions", "device", "mesh", "engine"), ""), config.steps
            )
        runs = {f"id-{name}": {} for name in cohort}
        checkpoints = Checkpoints(out, runs, kept) if spy is None else spy(out, runs, kept)
        ended = train_cohort(
            cohort, program, writers, checkpoints, None, stop, asked, told or Told()
        )
        checkpoints.close()
        return ended, records.load(tmp_path / "study")

    return run


def curve_of(loaded: records.Records, name: str) -> list[dict]:
    return loaded.curves.filter(run_id=f"id-{name}").sort("step").to_dicts()


def status_of(loaded: records.Records, name: str) -> str:
    return loaded.runs.filter(name=name)["status"].item()


def test_what_is_measured_is_what_is_recorded(program, cohort, train, train_recorded, tmp_path):
    ended, loaded = train_recorded(cohort, ["slow", "fast"])
    assert ended == {"slow": Ended("done", ""), "fast": Ended("done", "")}
    runs = list(cohort.values())
    last_state, window = train(program, runs, [50, 50, 50])
    states = {10: train(program, runs, [10])[0], STEPS: last_state}
    for lane, (name, config) in enumerate(cohort.items()):
        assert status_of(loaded, name) == "done"
        rows = curve_of(loaded, name)
        assert [row["step_start"] for row in rows[1:]] == [row["step"] for row in rows[:-1]]
        assert (rows[0]["step"], rows[-1]["step"]) == (0, STEPS)
        for row in rows[1:]:
            updates = slice(row["step_start"], row["step"])
            for column, values in (
                ("train_loss", window.loss),
                ("grad_sq_big", window.grad_sq_big),
            ):
                mean = values[lane, updates].astype(float).mean()
                assert row[column] == pytest.approx(mean, rel=1e-13)
        evaluated = {row["step"]: row for row in rows if row["val_loss"] is not None}
        assert list(evaluated) == evaluation_steps(config) == [0, 1, 10, 100, STEPS]
        for step, state in states.items():
            losses = np.asarray(program.evaluate(state))[lane]
            expected = evaluation_entries(program.evaluation, losses)
            assert expected is not None
            for table in ("evaluations", "positions"):
                found = loaded.sides[table].filter(run_id=f"id-{name}", step=step)
                assert found.select(*expected[table][0]).to_dicts() == expected[table]
            test = expected["evaluations"][1]
            assert test["corpus"] == "test"
            expected |= {"loss_test": test["loss"], "loss_test_se": test["loss_se"]}
            for column in ("val_loss", "val_loss_se", "loss_test", "loss_test_se"):
                assert evaluated[step][column] == expected[column]
        best = min(evaluated.values(), key=lambda row: row["val_loss"])
        run = loaded.runs.filter(name=name)
        assert run.select("best_step", "best_val_loss", "best_test_loss").row(0) == (
            best["step"],
            best["val_loss"],
            best["loss_test"],
        )
        status = run_status(epath.Path(tmp_path), f"id-{name}")
        assert status is not None
        assert status["compile_s"] == program.compile_s
        assert 0 < rows[-1]["wall_s"] <= status["wall_s"]
    fast, slow = (curve_of(loaded, name)[-1]["val_loss"] for name in ("fast", "slow"))
    assert fast < slow < np.log(257)


def test_the_observer_is_told_of_every_chunk(cohort, train_recorded):
    told = Told()
    _, loaded = train_recorded(cohort, ["slow"], told=told)
    steps = [step for step, _, _ in told.calls]
    assert steps == [1, 10, 100, STEPS]
    assert all(losses.keys() == cohort.keys() for _, losses, _ in told.calls)
    assert all(tokens_per_s > 0 for _, _, tokens_per_s in told.calls)
    assert told.calls[0][1]["slow"] == curve_of(loaded, "slow")[1]["train_loss"]


def test_a_lane_without_a_writer_is_trained_and_not_recorded(cohort, train_recorded, tmp_path):
    ended, loaded = train_recorded(cohort, ["fast"])
    assert ended.keys() == cohort.keys()
    assert loaded.runs["name"].to_list() == ["fast"]
    assert curve_of(loaded, "fast")[-1]["step"] == STEPS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cohorts", "id-fast", "study"]


def test_a_stop_at_once_leaves_the_initial_evaluation(cohort, train_recorded):
    ended, loaded = train_recorded(cohort, ["slow", "fast"], stop=lambda: "asked to")
    for name in cohort:
        assert ended[name] == Ended("interrupted", "asked to")
        assert status_of(loaded, name) == "interrupted"
        (row,) = curve_of(loaded, name)
        assert row["step"] == 0
        assert row["val_loss"] == pytest.approx(np.log(257), rel=1e-5)


def test_a_stop_on_the_way_leaves_whole_rows(cohort, train_recorded):
    answers = iter([None, None, "asked to"])
    ended, loaded = train_recorded(cohort, ["slow", "fast"], stop=lambda: next(answers))
    assert ended["fast"] == Ended("interrupted", "asked to")
    rows = curve_of(loaded, "fast")
    assert [row["step"] for row in rows] == list(range(11))
    assert rows[-1]["val_loss"] is not None


@pytest.fixture
def uneven(tiny) -> dict[str, RunConfig]:
    """Two lanes, one of two thirds of the other's length and with evaluation marks of its own."""
    return {
        "long": tiny(steps=STEPS, evaluation={"per_decade": 1}),
        "short": tiny(steps=103, seed=1, evaluation={"per_decade": 3}),
    }


def test_a_shorter_lane_is_recorded_to_its_own_end(uneven, program, train, train_recorded):
    told = Told()
    ended, loaded = train_recorded(uneven, ["long", "short"], told=told)
    assert ended == {"long": Ended("done", ""), "short": Ended("done", "")}
    state, window = train(program, list(uneven.values()), [103])
    rows = {name: curve_of(loaded, name) for name in uneven}
    for lane, (name, config) in enumerate(uneven.items()):
        evaluated = [row["step"] for row in rows[name] if row["val_loss"] is not None]
        assert evaluated == evaluation_steps(config)
        assert rows[name][-1]["step"] == config.steps
        for row in rows[name][1:]:
            if row["step"] <= 103:
                updates = slice(row["step_start"], row["step"])
                assert row["train_loss"] == window.loss[lane, updates].astype(float).mean()
    entries = evaluation_entries(program.evaluation, np.asarray(program.evaluate(state))[1])
    assert entries is not None
    assert rows["short"][-1]["val_loss"] == entries["val_loss"]
    assert [step for step, _, _ in told.calls][-1] == STEPS


def test_a_stop_after_the_end_of_a_lane_leaves_that_lane_done(uneven, train_recorded):
    marks = sorted({mark for config in uneven.values() for mark in evaluation_steps(config)})
    answers = iter([None] * marks.index(103) + ["asked to"])
    ended, loaded = train_recorded(uneven, ["long", "short"], stop=lambda: next(answers))
    assert ended == {"long": Ended("interrupted", "asked to"), "short": Ended("done", "")}
    assert status_of(loaded, "short") == "done"
    assert 100 <= curve_of(loaded, "long")[-1]["step"] <= 103  # whole rows


def test_what_is_asked_to_stop_for_good_ends_with_a_checkpoint(cohort, train_recorded, tmp_path):
    heard = []

    def asked(going, step):
        heard.append((tuple(going), step))
        return {"slow": "one reason", "fast": "another"} if step >= 100 else None

    ended, loaded = train_recorded(cohort, ["slow", "fast"], asked=asked)
    assert ended == {"slow": Ended("stopped", "one reason"), "fast": Ended("stopped", "another")}
    assert heard == [(("slow", "fast"), step) for step in (0, 1, 10, 100)]
    (folder,) = (tmp_path / "cohorts").iterdir()
    assert committed_steps(epath.Path(folder)) == [100]
    assert loaded.runs["status"].to_list() == ["stopped", "stopped"]
    assert loaded.runs["message"].to_list() == ["one reason", "another"]


def test_only_a_run_that_goes_on_is_asked_about(uneven, train_recorded, monkeypatch):
    monkeypatch.setattr(trainer, "IN_FLIGHT", 0)  # what is trained is read
    heard = []

    def asked(going, step):
        heard.append(tuple(going))
        return {"long": "a reason"} if going == ["long"] else None

    ended, _ = train_recorded(uneven, ["long", "short"], asked=asked)
    assert ended == {"long": Ended("stopped", "a reason"), "short": Ended("done", "")}
    assert heard[0] == ("long", "short") and heard[-1] == ("long",)


def test_a_stop_asked_for_after_the_last_update_is_none(tiny, cohort, train_recorded):
    answers = iter([None] * 4 + ["too late"] * 9)
    ended, _ = train_recorded(cohort, ["slow"], stop=lambda: next(answers))
    assert ended["slow"] == Ended("done", "")


def test_rows_are_on_the_disk_before_the_end(cohort, train_recorded, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "FLUSH_S", 0.0)
    found = []

    def look() -> None:
        found.append(len(list((tmp_path / "id-fast").glob("curve/*.parquet"))))

    train_recorded(cohort, ["fast"], stop=look)
    assert found[0] == 0
    assert found[-1] > 0


def test_a_diverging_run_ends_as_such_and_its_neighbour_does_not(tiny, cohort, train_recorded):
    cohort["slow"] = tiny(
        optimizer={"lr_peak": 1e30},
        schedule={"warmup_steps": 1},
        steps=STEPS,
        evaluation={"per_decade": 1},
    )
    ended, loaded = train_recorded(cohort, ["slow", "fast"])
    assert ended["fast"] == Ended("done", "")
    assert ended["slow"].status == "diverged"
    assert status_of(loaded, "slow") == "diverged"
    rows = curve_of(loaded, "slow")
    assert 0 < rows[-1]["step"] < 10
    assert f"not finite after step {rows[-1]['step']}" in ended["slow"].message
    for column in ("train_loss", "val_loss", "grad_sq_big"):
        measured = [row[column] for row in rows if row[column] is not None]
        assert np.isfinite(measured).all()
    assert curve_of(loaded, "fast")[-1]["step"] == STEPS


def test_a_cohort_that_has_diverged_is_not_trained_on(tiny, train_recorded):
    wild = {"optimizer": {"lr_peak": 1e30}, "steps": 10_000}
    told = Told()
    ended, _ = train_recorded({"a": tiny(**wild), "b": tiny(seed=1, **wild)}, ["a"], told=told)
    assert {end.status for end in ended.values()} == {"diverged"}
    assert len(told.calls) < 10


def test_a_last_update_that_leaves_no_finite_loss_is_a_divergence(tiny, train_recorded):
    # 1e30 would leave a loss of that order, which is finite
    cohort = {"a": tiny(optimizer={"lr_peak": 3e38}, steps=1), "b": tiny(seed=1, steps=1)}
    ended, loaded = train_recorded(cohort, ["a", "b"])
    assert (ended["a"].status, ended["b"].status) == ("diverged", "done")
    assert [row["val_loss"] is None for row in curve_of(loaded, "a")] == [False, True]


class Spy(Checkpoints):
    """Keeps the steps that are saved, with the steps of the rows that are on the disk by then."""

    found: ClassVar[dict[int, list[int]]] = {}

    def save(self, step, state, lanes) -> None:
        curves = records.load(self.folder.parent.parent / "study").curves.filter(run_id="id-fast")
        self.found[step] = curves["step"].to_list()
        assert [lane["recorder"]["step"] for lane in lanes] == [step] * len(lanes)
        super().save(step, state, lanes)


def test_rows_are_on_the_disk_before_the_checkpoint_that_follows_them(cohort, train_recorded):
    Spy.found.clear()
    ended, _ = train_recorded(cohort, ["slow", "fast"], kept=(10, 105), spy=Spy)
    assert ended["fast"] == Ended("done", "")
    assert {step: max(rows) for step, rows in Spy.found.items()} == {
        10: 10,
        105: 100,  # in the middle of a window, of which a checkpoint knows the sums
        STEPS: STEPS,
    }


def test_a_checkpoint_is_written_when_it_is_due_and_at_a_stop(tiny, train_recorded):
    Spy.found.clear()
    often = {"steps": STEPS, "evaluation": {"per_decade": 1}, "checkpoint": {"every_s": 1e-9}}
    cohort = {"slow": tiny(optimizer={"lr_peak": 1e-3}, **often), "fast": tiny(seed=1, **often)}
    answers = iter([None, None, "asked to"])
    train_recorded(cohort, ["fast"], stop=lambda: next(answers), spy=Spy)
    assert 1 in Spy.found and max(Spy.found) == 10


def test_chunks_are_no_longer_than_they_may_take(cohort, train_recorded, monkeypatch):
    told, in_short = Told(), Told()
    _, whole = train_recorded(cohort, ["fast"], told=told)
    monkeypatch.setattr(trainer, "CHUNK_S", 0.0)
    _, parts = train_recorded(cohort, ["slow", "fast"], told=in_short)
    assert len(told.calls) == 4
    assert [step for step, _, _ in in_short.calls][-50:] == list(range(STEPS - 49, STEPS + 1))
    for one, other in zip(curve_of(whole, "fast"), curve_of(parts, "fast"), strict=True):
        assert one["train_loss"] == other["train_loss"]
        assert one["val_loss"] == other["val_loss"]


def test_epochs_in_an_order_are_windows_by_those_of_an_epoch(tiny, compiled, tmp_path):
    config = tiny(data={"order": "epochs", "unique_tokens": 700}, steps=30)
    out, program = epath.Path(tmp_path), compiled(config)
    write_study(out, "study", "", [], {"run": "id-run"})
    writer = RunWriter(out, "id-run")
    doc = {"config": config.model_dump(mode="json"), "row": {"seed": config.seed}}
    writer.begin(doc, dict.fromkeys(("versions", "device", "mesh", "engine"), ""), config.steps)
    checkpoints = Checkpoints(out, {"id-run": {}}, ())
    train_cohort(
        {"run": config}, program, {"run": writer}, checkpoints, None, never, unasked, Told()
    )
    checkpoints.close()
    last = curve_of(records.load(tmp_path / "study"), "run")[-1]
    assert last["tokens"] == 30 * 8 * 8
    assert last["epochs"] == pytest.approx(30 * 8 / 88)
