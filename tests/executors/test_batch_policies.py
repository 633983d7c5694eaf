"""Runs whose batch changes: what they record, and that stopping them changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import polars as pl
import pytest
from etils import epath

from scaling_jax.config import (
    BatchConfig,
    BatchPolicyConfig,
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    MeshConfig,
    ModelConfig,
    NoiseConfig,
    OptimizerConfig,
    RunConfig,
)
from scaling_jax.data.corpus import Corpus, load_corpus
from scaling_jax.errors import RequestError
from scaling_jax.executors import local
from scaling_jax.executors.dry_run import describe_runs
from scaling_jax.executors.local import run_study
from scaling_jax.executors.placement import Cohort, plan_cohorts
from scaling_jax.models.counts import counts
from scaling_jax.records import load
from scaling_jax.study import Study
from scaling_jax.training import trainer

CLOCKS = ("attempt", "tokens_per_s", "wall_s")
FOLLOW = BatchPolicyConfig(name="noise_scale", most_sequences=8, every=20)
RAMP = BatchPolicyConfig(name="ramp", ramp=((25, 8), (60, 4)))


class Quiet:
    """A reporter that says nothing."""

    def cohort(self, cohort: Cohort, number: int, of: int, step: int) -> Callable[..., None]:
        return lambda *told: None

    def compiled(self, seconds: float) -> None:
        pass

    def ended(self, name: str, status: str, message: str) -> None:
        pass


def config(policy: BatchPolicyConfig, steps: int, seed: int = 0, **fields: Any) -> RunConfig:
    fixed = {
        "model": ModelConfig(n_layer=1, d_model=8, n_head=1, n_ctx=8),
        "batch": BatchConfig(sequences=4, policy=policy),
        "noise": NoiseConfig(groups=4),
        "optimizer": OptimizerConfig(lr_peak=1e-2),
        "mesh": MeshConfig(data=1),
        "engine": EngineConfig(lanes=2),
        "evaluation": EvaluationConfig(tokens=64, per_decade=4),
    }
    return RunConfig(**(fixed | fields), steps=steps, seed=seed)


STUDY = Study(
    "changing",
    {
        "follow": config(FOLLOW, 260),
        "ramp0": config(RAMP, 90),
        "ramp1": config(RAMP, 80, seed=1),
    },
)


class StopAfter:
    """A reason to stop once it has been asked for `calls` times."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self) -> str | None:
        self.left -= 1
        return None if self.left >= 0 else "enough"


@pytest.fixture(scope="module", autouse=True)
def _promoting() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to an integer
        yield


@pytest.fixture(scope="module")
def train(tiny_corpus: Corpus, compile_once: Any) -> Any:
    """`train(out, stop)`: how the runs ended, programs being compiled once for all tests."""

    def run(out: Path, calls: int = 10**9, study: Study = STUDY) -> dict[str, str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(local, "compile_program", compile_once)
            patch.setattr(trainer, "CHUNK_S", 1e9)  # on a busy machine, too
            return run_study(study, epath.Path(out), tiny_corpus, Quiet(), StopAfter(calls))

    return run


def curves(out: Path) -> pl.DataFrame:
    loaded = load(out / STUDY.name)
    names = loaded.runs.select("run_id", "name")
    return loaded.curves.join(names, on="run_id").drop(*CLOCKS, "run_id").sort("name", "step")


@pytest.fixture(scope="module")
def whole(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    assert set(train(out).values()) == {"done"}
    return out


@pytest.fixture(scope="module")
def undisturbed(whole: Path) -> pl.DataFrame:
    return curves(whole)


def test_every_change_shows_and_no_window_straddles_it(
    undisturbed: pl.DataFrame, whole: Path
) -> None:
    runs = load(whole / STUDY.name).runs.sort("name")
    assert runs["batch_policy"].to_list() == [
        "noise_scale B_simple every 20 steps up to 8 sequences",
        *["ramp 25:8 60:4"] * 2,
    ]
    assert runs["batch_tokens"].to_list() == [32] * 3
    flops = counts(STUDY.runs["follow"].model).training_flops_per_token_exact
    for (name,), rows in undisturbed.group_by("name"):
        windows = rows.filter(pl.col("step") > 0)
        starts, ends = windows["step_start"].to_list(), windows["step"].to_list()
        assert starts == [0, *ends[:-1]]
        assert ends[-1] == STUDY.runs[str(name)].steps
        tokens = ((windows["step"] - windows["step_start"]) * windows["batch_tokens"]).cum_sum()
        assert windows["tokens"].to_list() == tokens.to_list()
        assert windows["flops_exact"].to_list() == [float(x) * flops for x in tokens]
        assert windows["batch_big"].to_list() == windows["batch_tokens"].to_list()
        rate = 1e-2 * (windows["batch_tokens"] / 32).sqrt()
        assert windows["lr"].to_list() == pytest.approx(rate.to_list(), rel=1e-6)
        lr_sum = ((windows["step"] - windows["step_start"]) * windows["lr"]).cum_sum()
        assert windows["lr_sum"].to_list() == pytest.approx(lr_sum.to_list(), rel=1e-12)
        changes = windows.filter(pl.col("batch_tokens") != pl.col("batch_tokens").shift(1))
        begun = dict(changes.select("step_start", "batch_tokens").iter_rows())
        if name == "follow":
            assert list(begun.values()) == [64]
            assert all(step % FOLLOW.every == 0 for step in begun)
        else:
            assert begun == {25: 64, 60: 32}


@pytest.mark.parametrize("length", [1, 7])
def test_the_length_of_chunks_changes_nothing(
    undisturbed: pl.DataFrame,
    train: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    length: int,
) -> None:
    monkeypatch.setattr(trainer, "CHUNK_STEPS", length)
    train(tmp_path / "short")
    assert curves(tmp_path / "short").equals(undisturbed)


def test_stops_and_going_on_change_nothing(
    undisturbed: pl.DataFrame, train: Any, tmp_path: Path
) -> None:
    # A stop before each of many chunks, some at the step of a decision, some with a window open.
    out, starts = tmp_path / "stopped", 0
    while set(train(out, calls=6).values()) != {"done"}:
        starts += 1
        assert starts < 50
    assert starts > 4
    assert curves(out).equals(undisturbed)


def test_a_checkpoint_in_the_middle_of_what_is_observed_resumes_it(
    undisturbed: pl.DataFrame, train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "CHUNK_STEPS", 3)
    out = tmp_path / "stopped"
    for calls in (40, 30, 2, 45, 33, 10**6):
        ended = train(out, calls)
    assert set(ended.values()) == {"done"}
    assert curves(out).equals(undisturbed)


def test_the_most_that_a_dry_run_can_tell(
    tiny_corpus: Corpus, compile_once: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scaling_jax.executors.dry_run.compile_program", compile_once)
    rows = describe_runs(plan_cohorts(STUDY, tiny_corpus), tiny_corpus)
    tokens = {row["name"]: row["tokens"] for row in rows}
    assert tokens == {
        "follow": (20 * 4 + 240 * 8) * 8,
        "ramp0": (25 * 4 + 35 * 8 + 30 * 4) * 8,
        "ramp1": (25 * 4 + 35 * 8 + 20 * 4) * 8,
    }


@pytest.mark.parametrize(
    ("policy", "fields", "said"),
    [
        (
            BatchPolicyConfig(name="ramp", ramp=((5, 6),)),
            {"noise": NoiseConfig(groups=4)},
            "run 'a': a batch of 6: batch.sequences 6 does not divide into 2 microbatch.* of 2 gr",
        ),
        (
            BatchPolicyConfig(name="ramp", ramp=((5, 2),)),
            {"mesh": MeshConfig(data=4), "noise": NoiseConfig(enabled=False)},
            "run 'a': mesh.data 4 does not fit",
        ),
        (
            BatchPolicyConfig(name="noise_scale", most_sequences=10**6, every=5),
            {},
            "run 'a': the training split has .* fewer than the 4194305 of one batch",
        ),
    ],
)
def test_a_size_that_cannot_be_trained_is_refused_before_anything_is(
    tiny_corpus: Corpus, policy: BatchPolicyConfig, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        plan_cohorts(Study("s", {"a": config(policy, 20, **fields)}), tiny_corpus)


def test_data_shards_are_as_many_as_divide_every_size(tiny_corpus: Corpus) -> None:
    ramp = BatchPolicyConfig(name="ramp", ramp=((5, 2),))
    one = {"a": config(ramp, 20, mesh=MeshConfig(), noise=NoiseConfig(enabled=False))}
    (cohort,) = plan_cohorts(Study("s", one), tiny_corpus)
    assert cohort.mesh.data == 2


def test_a_run_on_the_embedded_corpus_grows_its_batch(tmp_path: Path) -> None:
    model = ModelConfig(n_layer=1, d_model=8, n_head=1, n_ctx=16)
    policy = BatchPolicyConfig(name="noise_scale", most_sequences=8, every=50)
    study = Study("changing", {"a": config(policy, 250, model=model)})
    run_study(study, epath.Path(tmp_path), load_corpus(DataConfig()), Quiet(), lambda: None)
    batches = curves(tmp_path)["batch_tokens"].unique(maintain_order=True).to_list()
    assert batches == [64, 128]


def test_a_size_is_compiled_once(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "first")
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)
    back_and_forth = BatchPolicyConfig(name="ramp", ramp=((25, 8), (60, 4)))
    runs = {f"s{seed}": config(back_and_forth, 90, seed=seed) for seed in (7, 8)}
    ended = train(tmp_path / "second", study=Study("changing", runs))
    assert set(ended.values()) == {"done"}
