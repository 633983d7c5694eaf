"""The curves of Luo et al. 2025, where the folder of shared tables lies beside the checkout."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from scaling_jax.laws.forecast.curve import Curve

_SHARED = Path(__file__).parents[3].parent / "shared" / "data"
have_multipowerlaw = pytest.mark.skipif(
    not (_SHARED / "multipowerlaw_curves.csv").exists(), reason="no shared tables here"
)
have_gemstones = pytest.mark.skipif(
    not (_SHARED / "gemstones.csv").exists(), reason="no shared tables here"
)
SIZES = ("25M", "100M", "400M")
SCHEDULES = (
    "constant_24000", "constant_72000", "cosine_24000", "cosine_72000", "wsd_20000_24000",
    "wsdcon_18", "wsdcon_3", "wsdcon_9", "wsdld_20000_24000",
)  # fmt: skip


@functools.cache
def _table(name: str) -> pl.DataFrame:
    return pl.read_csv(_SHARED / name)


@functools.cache
def curve_of(size: str, schedule: str) -> Curve:
    """One of the 27 curves."""
    rows = _table("multipowerlaw_curves.csv").filter(
        (pl.col("params_label") == size) & (pl.col("schedule") == schedule)
    )
    return Curve(
        run_id=f"{size}/{schedule}",
        name=f"{size}/{schedule}",
        step=rows["step"].cast(pl.Float64).to_numpy(),
        loss=rows["loss"].to_numpy(),
        lr=rows["lr"].to_numpy(),
        size=float(size[:-1]) * 1e6,
    )


def plan_of(curve: Curve) -> np.ndarray:
    """The learning rates of a curve as rows (step, lr)."""
    assert curve.lr is not None
    return np.stack([curve.step, curve.lr], axis=1)


def gemstones() -> list[Curve]:
    """The 22 shapes of McLeish et al. 2025 at constant learning rate."""
    rows = _table("gemstones.csv").filter(pl.col("subset") == "hot_100b+_477")
    return [
        Curve(
            run_id=str(run),
            name=str(run),
            step=own["step"].cast(pl.Float64).to_numpy(),
            loss=own["loss"].to_numpy(),
            tokens=own["tokens"].cast(pl.Float64).to_numpy(),
            size=float(own["params_incl_head_single_embed"][0]),
            batch_tokens=4194304.0,
            schedule="constant",
        )
        for (run,), own in rows.sort("run_id", "tokens").group_by("run_id", maintain_order=True)
    ]
