from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import pytest
from etils import epath

from scaling_jax import cli
from scaling_jax.config import (
    BatchConfig,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    ModelConfig,
    RunConfig,
)
from scaling_jax.data.corpus import load_corpus
from scaling_jax.executors.local import run_study
from scaling_jax.records import load
from scaling_jax.study import Study

FEW = ("--draws", "5", "--batch", "16", "--groups", "2", "--hessian-sequences", "3")


class Quiet:
    def cohort(self, cohort: Any, number: int, of: int, step: int) -> Any:
        return lambda *_: None

    def compiled(self, seconds: float) -> None: ...

    def ended(self, name: str, status: str, message: str) -> None: ...


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    config = RunConfig(
        model=ModelConfig(n_layer=1, d_model=8, n_head=1, n_ctx=8),
        batch=BatchConfig(sequences=8, microbatches=2),
        mesh=MeshConfig(data=1),
        evaluation=EvaluationConfig(tokens=64),
        steps=12,
    )
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to an integer
        run_study(
            Study("one", {"a": config}),
            epath.Path(out),
            load_corpus(DataConfig()),
            Quiet(),
            lambda: None,
        )
    return out / "one"


@pytest.fixture(autouse=True)
def _started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # JAX has looked for its devices long ago.
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = cli.main(["curvature", *argv])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_what_is_measured_is_printed_and_kept(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = said(capsys, str(study), "--run", "a", "--steps", "10,last", *FEW, "--json")
    assert status == 0
    assert "step 10: 5 draws of 16 sequences in 2 groups" in err
    doc = json.loads(out)
    metrics = ["euclidean", "hessian", "gauss_newton"]
    found = [(row["step"], row["metric"], row["draws"]) for row in doc["checkpoints"]]
    assert found == [(step, metric, 5) for step in (10, 12) for metric in metrics]
    assert all(row["grad_sq"] != 0 for row in doc["checkpoints"])
    assert sorted(set(load(study).noise["step"])) == [10, 12]

    status, out, _ = said(capsys, str(study), *FEW)
    assert status == 0
    assert "Gauss-Newton" in out
    assert "90% intervals" in out
    (step,) = {line.split()[0] for line in out.splitlines()[1:4]}
    assert step == "12"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--run", "b"), "No run 'b'."),
        (("--steps", "11"), "the nearest is of step 10 (of 10, 12)"),
        (("--draws", "1"), "draws is 2 at least, not 1"),
        (("--batch", "10"), "10 sequences do not divide into 8 groups"),
    ],
    ids=str,
)
def test_a_wrong_request_is_refused_and_leaves_nothing(
    study: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], words: str
) -> None:
    before = sorted(study.parent.rglob("*"))
    status, out, err = said(capsys, str(study), *argv)
    assert status == 2
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
    assert sorted(study.parent.rglob("*")) == before
