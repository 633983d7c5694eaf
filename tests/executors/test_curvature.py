from __future__ import annotations

import re
import shutil
from typing import Any, NamedTuple

import polars as pl
import pytest
from etils import epath

from scaling_jax.config import BatchConfig, EvaluationConfig, MeshConfig, ModelConfig, RunConfig
from scaling_jax.errors import RequestError
from scaling_jax.executors import curvature, local
from scaling_jax.executors.curvature import choose_run, choose_steps, measure_run
from scaling_jax.executors.local import run_study
from scaling_jax.laws.noise_points import noise_points
from scaling_jax.records import load
from scaling_jax.study import Study
from scaling_jax.training.checkpoints import load_run
from scaling_jax.training.curvature_draws import CurvatureProgram, Draws

FEW = Draws(draws=5, groups=2, sequences=6, hessian_sequences=3)
CONFIG = RunConfig(
    model=ModelConfig(n_layer=1, d_model=8, n_head=1, n_ctx=8),
    batch=BatchConfig(sequences=8, microbatches=2),
    mesh=MeshConfig(data=1),
    evaluation=EvaluationConfig(tokens=64),
    steps=20,
)


class Quiet:
    def cohort(self, cohort: Any, number: int, of: int, step: int) -> Any:
        return lambda *_: None

    def compiled(self, seconds: float) -> None: ...

    def ended(self, name: str, status: str, message: str) -> None: ...


class Trained(NamedTuple):
    out: epath.Path
    run_id: str
    other: str


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_corpus, compile_once) -> Trained:
    out = epath.Path(tmp_path_factory.mktemp("trained"))
    runs = {f"seed{seed}": CONFIG.model_copy(update={"seed": seed}) for seed in (0, 1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "compile_program", compile_once)
        run_study(Study("two", runs), out, tiny_corpus, Quiet(), lambda: None)
    return Trained(out, *(config.run_id(tiny_corpus.fingerprint) for config in runs.values()))


@pytest.fixture(scope="module")
def program(tiny_corpus) -> CurvatureProgram:
    """Of both runs, which draw the same rows and have no dropout; compiled once."""
    return CurvatureProgram(CONFIG, tiny_corpus, FEW)


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tiny_corpus, program):
    monkeypatch.setattr(curvature, "load_corpus", lambda *_: tiny_corpus)
    monkeypatch.setattr(curvature, "CurvatureProgram", lambda *_: program)


def test_a_run_is_measured_at_the_steps_asked_for(trained, program):
    told: list[str] = []
    before = load(trained.out / "two")
    assert measure_run(trained.out, trained.run_id, "10,last", FEW, told.append) == [10, 20]
    assert [words.partition(":")[0] for words in told] == ["step 10", "step 20"]

    records = load(trained.out / "two")
    assert records.curves.equals(before.curves)
    points = noise_points(records)
    assert points.select("name", "step", "tokens", "metric", "draws").rows() == [
        ("seed0", step, step * 64, metric, 5)
        for step in (10, 20)
        for metric in ("euclidean", "hessian", "gauss_newton")
    ]
    assert set(points["batch_big"]) == {48}
    _, params = load_run(trained.out, trained.run_id, 10)
    for row in program.measure(params, 10):
        (kept,) = records.noise.filter(step=10, metric=row["metric"]).rows(named=True)
        assert row.items() <= kept.items()


def test_each_run_has_its_own_measures(trained):
    for run_id in (trained.run_id, trained.other):
        measure_run(trained.out, run_id, "last", FEW, lambda words: None)
    last = load(trained.out).noise.filter(pl.col("step") == 20, metric="euclidean")
    assert set(last["run_id"]) == {trained.run_id, trained.other}
    assert last["grad_sq_big"].n_unique() == 2


def test_a_run_without_checkpoints_and_another_corpus_are_refused(
    trained, tmp_path, monkeypatch, tiny_corpus
):
    bare = epath.Path(shutil.copytree(trained.out, tmp_path / "bare"))
    shutil.rmtree(bare / "cohorts")
    with pytest.raises(RequestError, match=f"run {trained.run_id} has no checkpoint"):
        measure_run(bare, trained.run_id, "last", FEW, lambda words: None)

    other = tiny_corpus.__class__(**(vars(tiny_corpus) | {"fingerprint": "f" * 64}))
    monkeypatch.setattr(curvature, "load_corpus", lambda *_: other)
    with pytest.raises(RequestError, match="trained on another 'embedded' corpus"):
        measure_run(trained.out, trained.run_id, "last", FEW, lambda words: None)


@pytest.mark.parametrize(
    ("asked", "steps"), [("last", [90]), ("all", [10, 20, 90]), (" 20, 10,last,20", [10, 20, 90])]
)
def test_steps(asked, steps):
    assert choose_steps([10, 20, 90], asked) == steps


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("21", "no checkpoint of step 21; the nearest is of step 20 (of 10, 20, 90)"),
        ("last,500", "the nearest is of step 90"),
        ("first", "not 'first'"),
        ("", "not ''"),
        ("-1", "not '-1'"),
    ],
)
def test_steps_without_a_checkpoint_are_refused(asked, words):
    with pytest.raises(RequestError, match=re.escape(words)):
        choose_steps([10, 20, 90], asked)


def test_runs_by_name_or_id():
    names = {"aa1": "small", "bb2": "large", "cc3": "large"}
    assert choose_run(names, "small") == "aa1"
    assert choose_run(names, "bb2") == "bb2"
    assert choose_run({"aa1": "small"}, None) == "aa1"
    for asked, words in (
        ("smal", "No run 'smal'. Did you mean 'small'?"),
        ("large", "2 runs are named 'large'; give the run_id of one: bb2, cc3"),
        (None, "there are 3 runs: give --run one of small, large, large"),
    ):
        with pytest.raises(RequestError, match=re.escape(words)):
            choose_run(names, asked)
