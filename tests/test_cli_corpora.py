"""`positions` as a command: one object or a text, a picture, and the status."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from scaling_jax import cli
from scaling_jax.records.writer import RunWriter, write_study

HERE = {"versions": "jax 1", "device": "cpu", "mesh": "data=1"}
N_CTX = 32


def write_run(out: epath.Path, run_id: str, N: int, flat: bool) -> None:
    run = RunWriter(out, run_id)
    row = {"run_id": run_id, "params_non_embedding": N, "n_ctx": N_CTX, "steps": 20}
    run.begin({"config": {}, "row": row}, HERE, steps=20)
    for step in (0, 10, 20):
        T = np.arange(1, N_CTX + 1)
        loss = 5.0 + 0 * T if flat or step == 0 else 2 + 10 * N**-0.3 + 3 * T**-0.7 / step
        places = zip(T.tolist(), loss.tolist(), strict=True)
        run.append([{
            "step_start": max(step - 10, 0), "step": step, "tokens": 512 * step,
            "val_loss": float(loss.mean()),
            "positions": [
                {"corpus": "validation", "position_start": at, "position": at, "loss": value,
                 "tokens": 4} for at, value in places
            ],
        }])  # fmt: skip
    run.finish("done")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for study, flat in (("falls", False), ("flat", True)):
        runs = {f"size {N}": f"{study}{N}" for N in (1000, 8000)}
        for N in (1000, 8000):
            write_run(epath.Path(folder), f"{study}{N}", N, flat)
        write_study(epath.Path(folder), study, "", [], runs)
    return folder


def test_positions_of_a_study(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "picture.svg"
    argv = ["positions", str(out / "falls")]
    assert cli.main([*argv, "--json", "--plot", str(picture)]) == 0
    said = capsys.readouterr()
    doc = json.loads(said.out)
    assert said.err == "" and picture.read_bytes().startswith(b"<?xml")
    assert [run["name"] for run in doc["positions"]] == ["size 1000", "size 8000"]
    first = doc["positions"][0]
    assert first["step"] == 20 and first["c"]["value"] == pytest.approx(0.7, rel=1e-3)
    assert first["b"]["value"] == pytest.approx(3 / 20, rel=1e-3)
    assert cli.main([*argv, "--step", "15"]) == 0
    text = capsys.readouterr().out
    assert "size 8000" in text and "0.7 (0.7 to 0.7)" in text and "  10  " in text


def test_where_no_run_fixes_the_form_the_status_says_so(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["positions", str(out / "flat"), "--json"]) == 1
    said = capsys.readouterr()
    assert all("no fall" in run["refused"] for run in json.loads(said.out)["positions"])
    assert said.err.startswith("scaling-jax: No run's positions fix the form: ")
    assert cli.main(["positions", str(out / "falls"), "--step", "-1", "--json"]) == 1
    said = capsys.readouterr()
    assert "only after -1" in json.loads(said.out)["refused"] and said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["falls", "--where", "n_ctxx = 32"], "Did you mean 'n_ctx'"),
        (["falls", "--plot", "picture.gif"], "draws .svg or .png"),
        (["falls", "--level", "90"], "level is a share"),
        (["none"], "There is no"),
        (["table.csv"], "has no loss by position"),
    ],
)
def test_wrong_requests_end_with_2(
    out: Path, capsys: pytest.CaptureFixture[str], argv: list[str], says: str
) -> None:
    (out / "table.csv").write_text("run_id,step,val_loss\na,1,3.0\n")
    assert cli.main(["positions", str(out / argv[0]), *argv[1:]]) == 2
    said = capsys.readouterr()
    assert says in said.err and said.out == "" and said.err.count("\n") == 1
