from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl
import pytest
from etils import epath

from scaling_jax.config import (
    BatchConfig,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    ModelConfig,
    NoiseConfig,
    OptimizerConfig,
    RunConfig,
)
from scaling_jax.data.corpus import Corpus
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.executors import local
from scaling_jax.executors.local import MOST_TRIES, environment, run_row, run_study
from scaling_jax.executors.placement import Cohort, plan_cohorts
from scaling_jax.records import load
from scaling_jax.records.locks import FolderLock
from scaling_jax.records.schema import RUN_COLUMNS
from scaling_jax.records.status import run_status
from scaling_jax.study import Study
from scaling_jax.training import trainer
from scaling_jax.training.program import compile_program
from scaling_jax.training.trainer import Observer


def config(lr_peak: float = 0.1, **fields: Any) -> RunConfig:
    fixed = {
        "model": ModelConfig(n_layer=1, d_model=8, n_head=1, n_ctx=8),
        "batch": BatchConfig(sequences=8, microbatches=2),
        "optimizer": OptimizerConfig(name="sgd", lr_peak=lr_peak),
        "mesh": MeshConfig(data=1),
        "evaluation": EvaluationConfig(tokens=64),
        "steps": 20,
    }
    return RunConfig(**(fixed | fields))


# Two cohorts of one program; in each, one run that learns and one that cannot.
RATES = {"calm": 0.1, "wild": 1e30}
RUNS = {f"{kind}{steps}": config(RATES[kind], steps=steps) for steps in (60, 30) for kind in RATES}
STUDY = Study("wild", RUNS, ("l_ns",), "Half of it diverges.")
ENDS = {"calm60": "done", "wild60": "diverged", "calm30": "done", "wild30": "diverged"}


class Log:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.cohorts: list[tuple[tuple[str, ...], int, int]] = []
        self.began: list[int] = []
        self.ends: list[tuple[str, str, str]] = []
        self.steps: list[int] = []
        self.compilations: list[float] = []

    def cohort(self, cohort: Cohort, number: int, of: int, step: int) -> Observer:
        self.cohorts.append((tuple(cohort.runs), number, of))
        self.began.append(step)
        return self._observe

    def compiled(self, seconds: float) -> None:
        self.compilations.append(seconds)

    def ended(self, name: str, status: str, message: str) -> None:
        self.ends.append((name, status, message))

    def _observe(self, step: int, losses: Mapping[str, float], tokens_per_s: float) -> None:
        self.steps.append(step)


class StopAfter:
    """A reason to stop once it has been asked for `calls` times."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self) -> str | None:
        self.left -= 1
        return None if self.left >= 0 else "enough"


def never() -> str | None:
    return None


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def curve(out: Path, name: str) -> pl.DataFrame:
    records = load(out / STUDY.name)
    run_id = records.runs.filter(pl.col("name") == name)["run_id"].item()
    return records.curves.filter(pl.col("run_id") == run_id).sort("step")


def last_step(curve: pl.DataFrame) -> int:
    return max(curve["step"].to_list())


def statuses(out: Path) -> dict[str, str]:
    runs = load(out / STUDY.name).runs
    return dict(zip(runs["name"], runs["status"], strict=True))


Train = Callable[..., dict[str, str]]


@pytest.fixture(autouse=True)
def _as_long_chunks_as_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "CHUNK_S", 1e9)  # on a busy machine, too


@pytest.fixture
def train(tiny_corpus: Corpus, compile_once: Any, monkeypatch: pytest.MonkeyPatch) -> Train:
    """`run_study` of STUDY on the tiny corpus, with programs compiled once for all tests."""
    monkeypatch.setattr(local, "compile_program", compile_once)

    def run(out: Path, stop: Callable[[], str | None] = never, log: Log | None = None) -> Any:
        return run_study(STUDY, epath.Path(out), tiny_corpus, log or Log(), stop)

    return run


@pytest.fixture(scope="module")
def trained(
    tiny_corpus: Corpus, compile_once: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str], Log]:
    out, log = tmp_path_factory.mktemp("trained"), Log()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "compile_program", compile_once)
        ended = run_study(STUDY, epath.Path(out), tiny_corpus, log, never)
    return out, ended, log


def test_a_run_that_diverges_does_not_stop_the_study(
    trained: tuple[Path, dict[str, str], Log],
) -> None:
    out, ended, log = trained
    assert ended == ENDS == statuses(out)
    assert log.cohorts == [(("calm60", "wild60"), 1, 2), (("calm30", "wild30"), 2, 2)]
    assert [(name, status) for name, status, _ in log.ends] == list(ENDS.items())
    messages = {name: message for name, _, message in log.ends}
    assert messages["calm60"] == ""
    wild = curve(out, "wild30")
    assert messages["wild30"].startswith("loss or gradient not finite")
    assert 0 < last_step(wild) < 30
    assert wild["train_loss"].drop_nulls().is_finite().all()
    calm = curve(out, "calm30")
    assert last_step(calm) == 30
    assert calm["val_loss"][-1] < calm["val_loss"][0] - 0.02
    assert calm["noise_steps"].sum() == 30
    assert log.steps[-1] == 30
    assert len(log.compilations) == 1 and log.compilations[0] > 0  # both cohorts share a program
    assert load(out / STUDY.name).runs["mesh"].to_list() == ["lane=2"] * 4


def test_what_is_finished_is_not_trained_again(
    trained: tuple[Path, dict[str, str], Log],
    tiny_corpus: Corpus,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, _, _ = trained
    before, log = contents(out), Log()
    monkeypatch.delattr(local, "compile_program")
    assert run_study(STUDY, epath.Path(out), tiny_corpus, log, never) == ENDS
    assert contents(out) == before
    assert (log.cohorts, log.ends) == ([], [])


def test_the_same_config_gives_bitwise_equal_curves(
    trained: tuple[Path, dict[str, str], Log], train: Train, tmp_path: Path, monkeypatch: Any
) -> None:
    compiled = []

    def compile_anew(*args: Any) -> Any:
        compiled.append(args)
        return compile_program(*args)

    monkeypatch.setattr(local, "compile_program", compile_anew)
    train(tmp_path)
    assert len(compiled) == 1  # both cohorts share a program
    for name in STUDY.runs:
        first, again = curve(trained[0], name), curve(tmp_path, name)
        assert len(first) == len(again) > 0
        for column in first.columns:
            if column not in ("wall_s", "tokens_per_s"):
                assert first[column].equals(again[column]), (name, column)
        assert first["train_loss"].drop_nulls().len() > 0


def test_what_was_stopped_goes_on_and_ends_the_same(
    trained: tuple[Path, dict[str, str], Log], train: Train, tmp_path: Path
) -> None:
    stop = StopAfter(18)  # of the second cohort, in its middle
    ended = train(tmp_path, stop)
    assert ended == ENDS | {"calm30": "interrupted"} == statuses(tmp_path)
    stopped = last_step(curve(tmp_path, "calm30"))
    assert 0 < stopped < 30
    kept = {name: curve(tmp_path, name) for name in ENDS if name != "calm30"}

    log = Log()
    assert train(tmp_path, log=log) == ENDS == statuses(tmp_path)
    assert log.cohorts == [(("calm30", "wild30"), 1, 1)]
    assert [name for name, _, _ in log.ends] == ["calm30"]
    assert all(curve(tmp_path, name).equals(before) for name, before in kept.items())
    assert log.began == [stopped]
    went_on, undisturbed = curve(tmp_path, "calm30"), curve(trained[0], "calm30")
    assert went_on["attempt"].unique().sort().to_list() == [1, 2]
    for column in ("step", "train_loss", "val_loss", "grad_sq_small", "grad_sq_big"):
        assert went_on[column].equals(undisturbed[column]), column
    assert not [name for name in contents(tmp_path) if name.endswith(".tmp")]


def test_a_study_stopped_before_it_begins_is_queued(train: Train, tmp_path: Path) -> None:
    log = Log()
    assert train(tmp_path, StopAfter(0), log) == dict.fromkeys(ENDS, "queued")
    assert statuses(tmp_path) == dict.fromkeys(ENDS, "queued")
    assert log.cohorts == []


@pytest.mark.parametrize(
    "error",
    [
        WorkError("no\n room  left"),
        MemoryError("no\n room  left"),
        jax.errors.JaxRuntimeError("no\n room  left"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_cohort_that_fails_does_not_stop_the_study_and_is_tried_again(
    train: Train, tmp_path: Path, compile_once: Any, monkeypatch: Any, error: Exception
) -> None:
    faults = [error]

    def compile_or_fail(*args: Any) -> Any:
        if faults:
            raise faults.pop()
        return compile_once(*args)

    monkeypatch.setattr(local, "compile_program", compile_or_fail)
    log = Log()
    assert train(tmp_path, log=log) == ENDS == statuses(tmp_path)
    assert log.ends[:2] == [(name, "failed", "no room left") for name in ("calm60", "wild60")]
    assert [names for names, _, _ in log.cohorts] == [
        ("calm60", "wild60"),
        ("calm30", "wild30"),
        ("calm60", "wild60"),  # once the others are through
    ]
    assert curve(tmp_path, "calm60")["attempt"].unique().to_list() == [2]
    assert curve(tmp_path, "calm30")["attempt"].unique().to_list() == [1]


def test_what_fails_every_time_is_given_up(
    train: Train, tiny_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = local.train_cohort

    def train_or_fail(cohort: Any, *args: Any) -> Any:
        if "calm60" in cohort:
            raise WorkError("it never fits")
        return plain(cohort, *args)

    monkeypatch.setattr(local, "train_cohort", train_or_fail)
    log, failed = Log(), {"calm60": "failed", "wild60": "failed"}
    assert train(tmp_path, log=log) == ENDS | failed == statuses(tmp_path)
    assert [names for names, _, _ in log.cohorts].count(("calm60", "wild60")) == MOST_TRIES
    known = run_status(epath.Path(tmp_path), STUDY.runs["calm60"].run_id(tiny_corpus.fingerprint))
    assert known is not None
    assert [each["message"] for each in known["failures"]] == ["it never fits"] * MOST_TRIES


def test_a_folder_that_another_writes_in_is_left_alone(train: Train, tmp_path: Path) -> None:
    with FolderLock(epath.Path(tmp_path)):
        before = contents(tmp_path)
        with pytest.raises(RequestError, match="Another process writes"):
            train(tmp_path)
        assert contents(tmp_path) == before


def test_where_no_checkpoint_can_be_written_nothing_is_trained(tiny_corpus: Corpus) -> None:
    with pytest.raises(RequestError, match="checkpoints cannot be written to s3://"):
        run_study(STUDY, epath.Path("s3://bucket/runs"), tiny_corpus, Log(), never)


def test_a_run_of_two_studies_is_trained_once(
    trained: tuple[Path, dict[str, str], Log],
    tiny_corpus: Corpus,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delattr(local, "compile_program")
    part = Study("part", {"renamed": STUDY.runs["calm60"]})
    assert run_study(part, epath.Path(trained[0]), tiny_corpus, Log(), never) == {"renamed": "done"}


def test_what_cannot_be_trained_here_is_refused_before_anything_is_written(
    tiny_corpus: Corpus, tmp_path: Path
) -> None:
    study = Study("s", {"good": config(), "bad": config(noise=NoiseConfig(groups=16))})
    with pytest.raises(RequestError, match=r"^run 'bad': .*does not divide into"):
        run_study(study, epath.Path(tmp_path / "out"), tiny_corpus, Log(), never)
    assert list(tmp_path.iterdir()) == []


def test_the_row_of_a_run_is_all_that_is_known_before_it_starts(tiny_corpus: Corpus) -> None:
    one = config(0.25, seed=3)
    row = run_row(one, tiny_corpus)
    later = {"study", "name", "status", "versions", "device", "mesh", "engine"} | {
        "tries",
        "failures",
        "heartbeat",
        "message",
        "best_step",
        "best_val_loss",
        "best_test_loss",
    }
    assert row.keys() == RUN_COLUMNS.keys() - later
    for name, value in row.items():
        assert value is None or type(value) is RUN_COLUMNS[name], name
    known = {
        "run_id": one.run_id(tiny_corpus.fingerprint),
        "seed": 3,
        "lr_peak": 0.25,
        "params_non_embedding": 12 * 8**2,
        "params_embedding": 257 * 8 + 8 * 8,
        "batch_tokens": 64,
        "unique_tokens": len(tiny_corpus.train.tokens),
        "data_order": "random",
        "tokenizer": "bytes 257",
        "evaluation_corpora": None,
        "document_mask": False,
        "optimizer": "sgd",
        "schedule": "constant",
        "grad_clip": None,
    }
    assert {name: row[name] for name in known} == known
    assert np.isclose(row["bigram_nats"], tiny_corpus.bigram_nats)


def test_the_row_tells_the_subset_the_corpora_and_the_precision(tiny_corpus: Corpus) -> None:
    one = config(
        data=DataConfig(unique_tokens=300, subset_seed=7),
        evaluation=EvaluationConfig(corpora={"law": "/law", "code": "/code"}),
        compute_dtype="bfloat16",
    )
    row = run_row(one, tiny_corpus)
    assert (row["unique_tokens"], row["subset_seed"]) == (300, 7)
    assert (row["evaluation_corpora"], row["compute_dtype"]) == ("code,law", "bfloat16")


def test_the_environment_names_versions_device_mesh_and_engine(tiny_corpus: Corpus) -> None:
    (cohort,) = plan_cohorts(Study("s", {"a": config(), "b": config(seed=1)}), tiny_corpus)
    found = environment(cohort)
    assert found.keys() == {"versions", "device", "mesh", "engine"}
    assert found["mesh"] == "lane=2"
    assert found["engine"] == "attention=blocks layers=unrolled feed=device remat=none"
    assert found["device"].startswith("8 x cpu")
    assert f"jax {jax.__version__}" in found["versions"]
