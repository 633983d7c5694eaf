"""Runs that begin from another run's checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import polars as pl
import pytest
from etils import epath

from scaling_jax.config import (
    BatchConfig,
    BatchPolicyConfig,
    BranchConfig,
    EngineConfig,
    EvaluationConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)
from scaling_jax.data.corpus import Corpus
from scaling_jax.errors import RequestError
from scaling_jax.executors import local
from scaling_jax.executors.local import run_study
from scaling_jax.executors.placement import Cohort
from scaling_jax.records import load
from scaling_jax.study import Study
from scaling_jax.training import trainer
from tests.quick_compile import compiling_quickly

LATER = ["step", "tokens", "lr", "lr_sum", "train_loss", "val_loss", "grad_sq_big"]


def config(**fields: Any) -> RunConfig:
    fixed = {
        "model": ModelConfig(n_layer=1, d_model=8, n_head=1, n_ctx=8),
        "batch": BatchConfig(sequences=8, microbatches=2),
        "optimizer": OptimizerConfig(lr_peak=3e-3),
        "schedule": ScheduleConfig(name="wsd", decay_fraction=0.5),
        "engine": EngineConfig(lanes=1),
        "evaluation": EvaluationConfig(tokens=64),
        "steps": 60,
    }
    return RunConfig(**(fixed | fields))


def branch(run: str, step: int, **fields: Any) -> RunConfig:
    return config(branch=BranchConfig(run=run, step=step), **fields)


# Declared before its parent; the last one descends from a branch.
FAMILY = Study(
    "family",
    {
        "cooled": branch("long", 12, steps=30),
        "long": config(),
        "larger": branch("long", 12, steps=20, batch=BatchConfig(sequences=16, microbatches=2)),
        "grandchild": branch("cooled", 20, steps=26, seed=7),
        "whole": config(steps=30),
    },
)


class Quiet:
    """A reporter that keeps where each cohort began, and how runs ended."""

    def __init__(self) -> None:
        self.began: dict[str, int] = {}
        self.ends: dict[str, tuple[str, str]] = {}

    def cohort(self, cohort: Cohort, number: int, of: int, step: int) -> Any:
        self.began |= dict.fromkeys(cohort.runs, step)
        return lambda step, losses, tokens_per_s: None

    def compiled(self, seconds: float) -> None: ...

    def ended(self, name: str, status: str, message: str) -> None:
        self.ends[name] = (status, message)


Train = Callable[..., Quiet]


@pytest.fixture(scope="module")
def train(tiny_corpus: Corpus, compile_once: Any) -> Train:
    def run(study: Study, out: Path, stop: Callable[[], str | None] = lambda: None) -> Quiet:
        told = Quiet()
        with pytest.MonkeyPatch.context() as patch, compiling_quickly():
            patch.setattr(local, "compile_program", compile_once)
            patch.setattr(trainer, "CHUNK_S", 1e9)
            run_study(study, epath.Path(out), tiny_corpus, told, stop)
        return told

    return run


@pytest.fixture(scope="module")
def family(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("family")
    told = train(FAMILY, out)
    assert told.began == {"long": 0, "whole": 0, "cooled": 12, "larger": 12, "grandchild": 20}
    assert list(told.began)[-1] == "grandchild"
    return out


def curve(out: Path, name: str, study: Study = FAMILY) -> pl.DataFrame:
    records = load(out / study.name)
    run_id = records.runs.filter(pl.col("name") == name)["run_id"].item()
    return records.curves.filter(pl.col("run_id") == run_id).sort("step")


def runs(out: Path) -> Mapping[str, Mapping[str, Any]]:
    return {row["name"]: row for row in load(out / FAMILY.name).runs.iter_rows(named=True)}


def test_a_cooldown_from_a_long_run_is_the_run_of_that_length(family: Path) -> None:
    cooled, whole = curve(family, "cooled"), curve(family, "whole")
    assert cooled["step"].to_list() == [step for step in whole["step"] if step >= 12]
    after = pl.col("step") > 12
    assert cooled.filter(after).select(LATER).equals(whole.filter(after).select(LATER))
    assert not curve(family, "long").filter(after)["lr"].equals(whole.filter(after)["lr"])


def test_the_first_row_of_a_branch_is_its_parent_at_that_step(family: Path) -> None:
    first = curve(family, "larger").row(0, named=True)
    parent = curve(family, "long").row(by_predicate=pl.col("step") == 12, named=True)
    for column in ("step", "tokens", "lr_sum", "val_loss", "flops_6n"):
        assert first[column] == parent[column]
    assert first["step_start"] == 12 and first["train_loss"] is None


def test_a_branch_of_another_batch_counts_tokens_on(family: Path) -> None:
    larger = curve(family, "larger")
    assert larger["tokens"].to_list()[-1] == 12 * 64 + 8 * 128
    assert larger["batch_tokens"].unique().to_list() == [128]


def test_lineage_stands_in_the_runs_table(family: Path) -> None:
    rows = runs(family)
    assert rows["long"]["parent"] is None and rows["long"]["branch_step"] is None
    for name, parent, step in (("cooled", "long", 12), ("grandchild", "cooled", 20)):
        assert (rows[name]["parent"], rows[name]["branch_step"]) == (rows[parent]["run_id"], step)


def test_the_name_of_the_parent_is_no_part_of_a_branch(
    family: Path, train: Train, tmp_path: Path
) -> None:
    renamed = {"before": config(), "cooled": branch("before", 12, steps=30)}
    told = train(Study("renamed", renamed), family)
    assert told.began == {}  # both are done


def test_a_branch_that_was_stopped_goes_on(family: Path, train: Train, tmp_path: Path) -> None:
    calls = iter(range(100))
    study = Study("family", {name: FAMILY.runs[name] for name in ("cooled", "long")})

    def stop() -> str | None:
        # Asked before each cohort and each chunk: the long run takes nine or more of them.
        return "enough" if next(calls) > 15 else None

    for _ in range(20):
        told = train(study, tmp_path, stop)
        calls = iter(range(10, 100))
        if told.ends.get("cooled", ("", ""))[0] == "done":
            break
    assert max(load(tmp_path / "family").runs["tries"].to_list()) > 1
    assert curve(tmp_path, "cooled").select(LATER).equals(curve(family, "cooled").select(LATER))


def test_a_branch_from_a_run_of_another_study(family: Path, train: Train) -> None:
    run_id = runs(family)["long"]["run_id"]
    other = Study("other", {"from_ten": branch(run_id, 10, steps=16)})
    assert train(other, family).began == {"from_ten": 10}
    assert curve(family, "from_ten", other)["step"].to_list()[0] == 10
    with pytest.raises(RequestError, match=r"no checkpoint of step 11 .* there are: 10, 12"):
        train(Study("other", {"from_eleven": branch(run_id, 11)}), family)
    with pytest.raises(RequestError, match="0123456789ab, which is not in"):
        train(Study("other", {"orphan": branch("0123456789ab", 11)}), family)


def test_a_branch_whose_parent_is_gone_fails_alone(train: Train, tmp_path: Path) -> None:
    wild = config(optimizer=OptimizerConfig(name="sgd", lr_peak=1e30))
    lost = branch("wild", 30, optimizer=OptimizerConfig(name="sgd", lr_peak=1e-3))
    told = train(Study("lost", {"wild": wild, "lost": lost}), tmp_path)
    assert told.ends["wild"][0] == "diverged"
    assert told.ends["lost"][0] == "failed"
    assert "step 30" in told.ends["lost"][1]


def test_only_the_branch_of_a_run_that_had_ended_fails(train: Train, tmp_path: Path) -> None:
    def sgd(lr_peak: float, **fields: Any) -> RunConfig:
        optimizer = OptimizerConfig(name="sgd", lr_peak=lr_peak)
        together = EngineConfig(lanes=2)
        return config(optimizer=optimizer, engine=together, mesh=MeshConfig(lane=1), **fields)

    family = {
        "wild": sgd(1e30),
        "short": sgd(1e-3, steps=42),
        "lost": sgd(1e-3, branch=BranchConfig(run="wild", step=30)),
        "found": sgd(1e-3, branch=BranchConfig(run="short", step=30)),
    }
    told = train(Study("ended", family), tmp_path)
    ended = {name: status for name, (status, _) in told.ends.items()}
    assert ended == {"wild": "diverged", "short": "done", "lost": "failed", "found": "done"}
    assert "no checkpoint of step 30" in told.ends["lost"][1]
    rows = load(tmp_path / "ended").runs
    short = rows.filter(name="short")["run_id"].item()
    beyond = {"late": sgd(1e-3, branch=BranchConfig(run=short, step=60), steps=70)}
    with pytest.raises(RequestError, match="no checkpoint of step 60"):
        train(Study("beyond", beyond), tmp_path)


def test_a_branch_has_the_batch_that_its_ramp_has_come_to(
    family: Path, train: Train, tmp_path: Path
) -> None:
    ramp = BatchPolicyConfig(name="ramp", ramp=((11, 16), (16, 8)))
    batch = BatchConfig(sequences=8, microbatches=2, policy=ramp)
    study = Study("ramp", {"ramped": branch("long", 12, steps=20, batch=batch), "long": config()})
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to an integer
        train(study, family)
    ramped = curve(family, "ramped", study)
    assert ramped["tokens"].to_list()[-1] == 12 * 64 + 4 * 128 + 4 * 64
    larger = curve(family, "larger").filter(pl.col("step") == 12)
    assert ramped["batch_tokens"].to_list()[0] == larger["batch_tokens"].item() == 128


def test_two_names_of_one_branch_are_refused(family: Path, train: Train) -> None:
    run_id = runs(family)["long"]["run_id"]
    twins = {"long": config(), "a": branch("long", 12), "b": branch(run_id, 12)}
    with pytest.raises(RequestError, match="'b' and 'a' are the same run"):
        train(Study("twins", twins), family)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"a": branch("b", 5), "long": config()}, "no run of the study and no run_id"),
        ({"a": branch("lon", 5), "long": config()}, "Did you mean 'long'"),
        ({"a": branch("b", 5), "b": branch("a", 5)}, "branches from itself"),
        ({"a": branch("b", 50), "b": config(steps=40)}, "which has 40 steps"),
        (
            {"a": branch("b", 5, model=ModelConfig(d_model=16, n_head=1)), "b": config()},
            "a branch has the model",
        ),
        (
            {"a": branch("b", 5, optimizer=OptimizerConfig(name="sgd")), "b": config()},
            "the kind of optimizer of its parent",
        ),
    ],
)
def test_what_cannot_branch_is_refused(
    declared: dict[str, RunConfig], message: str, train: Train, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=message):
        train(Study("wrong", declared), tmp_path)
    assert not (tmp_path / "wrong").exists()
