"""A study that was stopped goes on from its checkpoints: here, elsewhere, and after damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from etils import epath

from scaling_jax.config import (
    BatchConfig,
    CheckpointConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
)
from scaling_jax.data.corpus import Corpus
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.executors import local, placement
from scaling_jax.executors.local import run_study
from scaling_jax.executors.placement import Cohort
from scaling_jax.records import load
from scaling_jax.records.schema import SIDE_KEYS
from scaling_jax.study import Study
from scaling_jax.training import trainer
from scaling_jax.training.saving import committed_steps

STEPS, STOPPED = 300, 150
RUNS = {
    f"seed{seed}": RunConfig(
        model=ModelConfig(n_layer=1, d_model=8, n_head=1, n_ctx=8),
        batch=BatchConfig(sequences=16, microbatches=2),
        optimizer=OptimizerConfig(lr_peak=3e-3),
        evaluation=EvaluationConfig(tokens=64),
        checkpoint=CheckpointConfig(kept_per_decade=2),
        steps=STEPS,
        seed=seed,
    )
    for seed in range(4)
}
STUDY = Study("resumed", RUNS)


class Log:
    """A reporter that keeps the cohorts and the steps they began at."""

    def __init__(self) -> None:
        self.cohorts: list[tuple[int, int]] = []
        self.step = 0

    def cohort(self, cohort: Cohort, number: int, of: int, step: int) -> Any:
        self.cohorts.append((len(cohort.runs), step))
        self.step = step
        return self._observe

    def compiled(self, seconds: float) -> None: ...

    def ended(self, name: str, status: str, message: str) -> None: ...

    def _observe(self, step: int, losses: Mapping[str, float], tokens_per_s: float) -> None:
        self.step = step


Train = Callable[..., Log]


@pytest.fixture(scope="module")
def train(tiny_corpus: Corpus, compile_once: Any) -> Train:
    """`train(out, devices, until)`: trains STUDY on so many devices until a step has been read."""

    def run(out: Path, devices: int, until: int = STEPS) -> Log:
        log = Log()

        def here(corpus: Corpus) -> Any:
            return placement._Machine(corpus, devices, "cpu", 10**10)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(placement._Machine, "here", here)
            patch.setattr(local, "compile_program", compile_once)
            patch.setattr(trainer, "CHUNK_S", 1e9)
            patch.setattr(trainer, "IN_FLIGHT", 0)  # what is read is as far as it has come
            run_study(
                STUDY,
                epath.Path(out),
                tiny_corpus,
                log,
                lambda: "enough" if until <= log.step < STEPS else None,
            )
        return log

    return run


def curves(out: Path) -> pl.DataFrame:
    return load(out / STUDY.name).curves.sort("run_id", "step")


@pytest.fixture(scope="module")
def stopped(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped half-way on eight devices, all runs in one cohort."""
    out = tmp_path_factory.mktemp("stopped")
    log = train(out, 8, until=STOPPED)
    assert log.cohorts == [(4, 0)]
    assert STOPPED <= max(curves(out)["step"]) < STEPS
    return out


@pytest.fixture(scope="module")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    assert train(out, 8).cohorts == [(4, 0)]
    return out


@pytest.fixture(scope="module")
def undisturbed(whole: Path) -> pl.DataFrame:
    return curves(whole)


def is_bitwise(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    own = ["attempt", "wall_s", "tokens_per_s"]
    return one.drop(own).equals(other.drop(own))


def test_it_goes_on_to_the_same_end(stopped, whole, undisturbed, train, tmp_path):
    out = shutil.copytree(stopped, tmp_path / "out")
    log = train(out, 8)
    ((lanes, step),) = log.cohorts
    assert lanes == 4 and STOPPED <= step < STEPS
    assert is_bitwise(curves(out), undisturbed)
    assert undisturbed["loss_test"].is_not_null().equals(undisturbed["val_loss"].is_not_null())
    mine, theirs = (load(each / STUDY.name) for each in (out, whole))
    for name in ("evaluations", "positions"):
        order = ["run_id", "step", *SIDE_KEYS[name]]
        one, other = (each.sides[name].drop("attempt").sort(order) for each in (mine, theirs))
        assert other.height > 0
        assert one.equals(other)


@pytest.mark.parametrize(
    ("devices", "cohorts"),
    [pytest.param(4, [4], marks=pytest.mark.slow), (2, [2, 2]), (1, [1, 1, 1, 1])],
)
def test_it_goes_on_with_fewer_devices(stopped, undisturbed, train, tmp_path, devices, cohorts):
    out = shutil.copytree(stopped, tmp_path / "out")
    log = train(out, devices)
    assert [lanes for lanes, _ in log.cohorts] == cohorts
    (step,) = {step for _, step in log.cohorts}
    assert STOPPED <= step < STEPS
    found = curves(out)
    assert found["step"].to_list() == undisturbed["step"].to_list()
    for column in ("train_loss", "val_loss", "lr_sum", "tokens"):
        there, here = undisturbed[column], found[column]
        assert there.is_null().equals(here.is_null())
        np.testing.assert_allclose(
            here.drop_nulls().to_numpy(), there.drop_nulls().to_numpy(), rtol=1e-5, err_msg=column
        )


@pytest.mark.slow
def test_it_moves_back_and_forth(stopped, undisturbed, train, tmp_path):
    """Over two devices to one for a while, which leaves its runs at different steps, and back."""
    out = shutil.copytree(stopped, tmp_path / "out")
    train(out, 2, until=200)
    train(out, 1, until=250)
    log = train(out, 8)
    assert sum(lanes for lanes, _ in log.cohorts) == 4
    assert len({step for _, step in log.cohorts}) == len(log.cohorts) > 1
    found = curves(out)
    assert found["step"].to_list() == undisturbed["step"].to_list()
    last = found.filter(step=STEPS)["val_loss"].to_numpy()
    np.testing.assert_allclose(last, undisturbed.filter(step=STEPS)["val_loss"], rtol=1e-4)


def test_a_finished_study_keeps_its_last_state_and_the_sparse_ones(stopped, train, tmp_path):
    out = shutil.copytree(stopped, tmp_path / "out")
    (folder,) = (out / "cohorts").iterdir()
    assert committed_steps(epath.Path(folder))[-1] >= STOPPED
    train(out, 8)
    assert committed_steps(epath.Path(folder)) == [10, 32, 100, STEPS]


def damage(out: Path, draws: np.random.Generator) -> str:
    """Damages one file of a study, and says how."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != ".lock")
    folders = sorted({path.relative_to(out).parts[0] for path in files})
    folder = folders[draws.integers(len(folders))]  # else nearly all would be of checkpoints
    inside = [path for path in files if path.relative_to(out).parts[0] == folder]
    path = inside[draws.integers(len(inside))]
    data = bytearray(path.read_bytes())
    kind = draws.choice(["truncate", "flip", "remove", "swap"])
    if kind == "remove":
        path.unlink()
    elif kind == "swap":
        path.write_bytes(inside[draws.integers(len(inside))].read_bytes())
    elif data:
        at = int(draws.integers(len(data)))
        if kind == "truncate":
            del data[at:]
        else:
            data[at] ^= 1 << int(draws.integers(8))
        path.write_bytes(bytes(data))
    return f"{kind} {path.relative_to(out)}"


@pytest.fixture
def survives(stopped, undisturbed, train, tmp_path) -> Callable[[int], str]:
    """`survives(seed)`: what became of a study with that damage, which is never a wrong number."""

    def check(seed: int) -> str:
        out = shutil.copytree(stopped, tmp_path / "out")
        how = damage(out, np.random.default_rng(seed))
        refusal = ""
        try:
            train(out, 8)
            found = curves(out)
        except (RequestError, WorkError) as error:
            refusal = str(error)
        else:
            assert is_bitwise(found, undisturbed), how
        assert "\n" not in refusal, how
        shutil.rmtree(out)
        return f"refused {how}: {refusal}" if refusal else f"survived {how}"

    return check


def test_damage_is_survived_or_refused(survives):
    ends = [survives(seed) for seed in range(8)]
    assert sum(end.startswith("survived") for end in ends) >= 4, ends


@pytest.mark.slow
def test_much_damage_is_survived_or_refused(survives):
    ends = [survives(seed) for seed in range(1000, 1200)]
    print("\n".join(ends))
    assert sum(end.startswith("survived") for end in ends) >= 100, ends
