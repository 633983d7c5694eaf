"""The analysis wing by itself: no Flax, no training libraries, and never the accelerator."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from scaling_jax.laws.forms import find_law
from scaling_jax.laws.published import published

ABSENT = ("flax", "optax", "orbax", "grain", "scaling_jax.training",
          "scaling_jax.models", "scaling_jax.data", "scaling_jax.executors")  # fmt: skip
PROGRAM = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.startswith({ABSENT!r}):
            raise ImportError(name + " is not here")

sys.meta_path.insert(0, Absent())
from scaling_jax.cli import main

status = main(sys.argv[1:])
import jax
print(jax.default_backend(), file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    n, d = np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 1e11, 6))
    law = find_law("l_nd_chinchilla")
    loss = law.predict(published("besiroglu2024").params, N=n.ravel(), D=d.ravel())
    noise = np.exp(0.002 * np.random.default_rng(0).normal(size=loss.size))
    path = tmp_path_factory.mktemp("alone") / "table.csv"
    pl.DataFrame({"params": n.ravel(), "tokens": d.ravel(), "loss": loss * noise}).write_csv(path)
    return path


@pytest.mark.parametrize(
    "words", [("fit", "TABLE", "--law", "l_nd_chinchilla"), ("plan", "--flops", "1e22")]
)
def test_fits_and_plans_without_the_training_wing(table: Path, words: tuple[str, ...]) -> None:
    words = tuple(str(table) if word == "TABLE" else word for word in words)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "", "JAX_PLATFORMS": "", "SCALING_JAX_CACHE": str(table.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.split()[-1] == "cpu"
    assert "besiroglu" in done.stdout or "alpha" in done.stdout or "params" in done.stdout
