"""`collapse` as a command: one object or a text, a picture of what was found, and the status."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from scaling_jax import cli
from scaling_jax.laws.forecast.collapse import collapse
from scaling_jax.laws.forecast.curve import curves_of
from scaling_jax.records import load
from scaling_jax.report.figures.collapse import collapsed_curves


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = []
    for i in range(5):
        for seed in range(2):
            step = np.linspace(5.0, 500.0, 100) * 2**i
            wave = np.exp(0.002 * (-1) ** seed * (1 - step / step[-1]))
            loss = 1.2 + 2 * 0.8**i * (step / step[-1]) ** -0.5 * wave
            parts.append(
                pl.DataFrame({"run": f"{i}-{seed}", "N": 1e6 * 2**i, "step": step, "loss": loss})
            )
    path = tmp_path_factory.mktemp("tables") / "curves.csv"
    pl.concat(parts).write_csv(path)
    return path


def test_a_table_is_reduced(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "picture.svg"
    argv = ["collapse", str(table), "--columns", "run=run", "--plot", str(picture)]
    assert cli.main([*argv, "--json"]) == 0
    said = capsys.readouterr()
    doc = json.loads(said.out)
    assert said.err == "" and picture.read_bytes().startswith(b"<?xml")
    assert doc["L0"] == pytest.approx(1.2, abs=0.02) and len(doc["runs"]) == 10
    assert cli.main([*argv, "--floor", "1.2"]) == 0
    assert "10 runs of 5 sizes" in capsys.readouterr().out


def test_what_is_wrong_is_said(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["collapse", str(table), "--columns", "run=run", "--floor", "7"]) == 2
    assert "below the lowest measured" in capsys.readouterr().err
    few = ["collapse", str(table), "--columns", "run=run", "--where", "N < 3e6"]
    assert cli.main(few) == 1
    assert "3 sizes, and there are 2" in capsys.readouterr().err


def test_the_figure_shows_every_run_the_deviation_and_the_noise(table: Path) -> None:
    found = collapse(curves_of(load(table), {"run": "run"})[0], 1.2)
    above, below = collapsed_curves(found).axes
    assert len(above.lines) == 10
    np.testing.assert_allclose(np.asarray(below.lines[0].get_ydata(), float), found.deviation)
    assert found.noise is not None
    np.testing.assert_allclose(np.asarray(below.lines[1].get_ydata(), float), found.noise)
