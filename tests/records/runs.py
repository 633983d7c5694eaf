"""Runs as the trainer writes them, for the tests of the records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from etils import epath

from scaling_jax.errors import RequestError
from scaling_jax.records import Records, load
from scaling_jax.records.writer import RunWriter

HERE = {"versions": "jax 1", "device": "cpu", "mesh": "data=1"}


def evaluated(val_loss: float) -> dict[str, Any]:
    loss = {"corpus": "validation", "loss": val_loss, "tokens": 64}
    return {
        "val_loss": val_loss,
        "evaluations": [loss],
        "positions": [loss | {"position_start": 1, "position": 8}],
    }


ZERO = {"step_start": 0, "step": 0} | evaluated(5.5)


def row(step: int, start: int | None = None, **others: Any) -> dict[str, Any]:
    losses: dict[str, Any] = {"train_loss": 4 - step / 100}
    if step % 20 == 0:
        losses |= evaluated(4.5 - step / 100)
    place = {"step_start": step - 10 if start is None else start, "step": step}
    return place | {"tokens": 512 * step, "batch_tokens": 512, "batch_big": 512} | losses | others


def noise(source: str = "groups", part: str = "total", small: float = 2.0) -> dict[str, Any]:
    moments = {"grad_sq_small": small, "grad_sq_big": 1.0, "noise_steps": 10}
    cut = {"batch_small": 64, "batch_big": 512}
    return {"source": source, "metric": "euclidean", "part": part} | moments | cut


def begun(out: epath.Path, run_id: str, seed: int = 0, resumed_at: int | None = None) -> RunWriter:
    run = RunWriter(out, run_id)
    known = {
        "seed": seed,
        "lr_peak": 1e-3 if seed else 1,  # JSON writes a whole float as an integer elsewhere
        "params_non_embedding": 1000,
        "tied_embeddings": False,
        "grad_clip": None,
        "optimizer": "adamw",
        "batch_tokens": 512,
        "steps": 40,
    }
    doc = {"config": {"seed": seed}, "row": {"run_id": run_id} | known}
    run.begin(doc, HERE, steps=40, resumed_at=resumed_at)
    return run


def segment(out: epath.Path, run_id: str, piece: str, table: str = "curve") -> epath.Path:
    """The one segment of that attempt and piece, as `001-00000`."""
    (path,) = (out / run_id / table).glob(f"{piece}-*.parquet")
    return path


def fault(path: epath.Path | Path) -> str:
    with pytest.raises(RequestError) as caught:
        load(path)
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    return message


def flat_of(records: Records) -> pl.DataFrame:
    return records.curves.join(records.runs.drop("batch_tokens"), on="run_id", how="left")


def damage(path: epath.Path) -> None:
    """Flip one bit in the middle of the file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(bytes(data))
