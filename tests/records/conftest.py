from __future__ import annotations

from pathlib import Path

import pytest
from etils import epath

from scaling_jax.records.writer import write_study
from tests.records.runs import ZERO, begun, row


@pytest.fixture
def out(tmp_path: Path) -> epath.Path:
    return epath.Path(tmp_path) / "runs"


@pytest.fixture
def study(out: epath.Path) -> epath.Path:
    """Run a over two attempts, run b diverged; both done with."""
    first = begun(out, "aaa")
    first.append([ZERO, row(10), row(20), row(30)])
    first.flush()
    second = begun(out, "aaa")
    second.append([row(30, train_loss=9.0)])
    second.flush()
    second.append([row(40)])
    second.finish("done")
    other = begun(out, "bbb", seed=1)
    other.append([row(10, train_loss=float("nan"), grad_sq_big=float("inf"))])
    other.finish("diverged", "loss is not finite at step 10")
    write_study(out, "ladder", "A claim.", ["l_ns"], {"a": "aaa", "b": "bbb"})
    return out / "ladder"
