"""Records made from a law whose parameters are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from scaling_jax.laws.forms import L_NS
from scaling_jax.records.store import Records

TRUTH = {"N_c": 3e6, "S_c": 30.0, "alpha_N": 0.12, "alpha_S": 0.4}
SIZES = (3456, 6144, 12288, 27648, 49152, 98304, 172032)


def synthetic(
    sizes: tuple[int, ...] = SIZES,
    seeds: int = 1,
    steps: int = 12_000,
    noise: float = 0.003,
    run_noise: float = 0.0,
    params: dict[str, float] | None = None,
    seed: int = 0,
    bracket: bool = True,
    recorded: int = 22,
) -> Records:
    """Runs at constant learning rate, with half and double learning rate
    for a tenth of the steps at the smallest and the largest size."""
    rng = np.random.default_rng(seed)
    grid = np.unique(np.geomspace(1, steps, recorded).round()).astype(int)
    runs, curves = [], []
    plan = [(n, s, 0.01, steps) for n in sizes for s in range(seeds)]
    if bracket:
        plan += [(n, 0, lr, steps // 10) for n in (sizes[0], sizes[-1]) for lr in (0.005, 0.02)]
    for n, run_seed, lr, last in plan:
        run_id = f"n{n}-s{run_seed}-lr{lr}"
        at = grid[grid <= last]
        loss = L_NS.predict(params or TRUTH, N=float(n), S=at.astype(float))
        loss = loss * np.exp(noise * rng.normal(size=at.size) + run_noise * rng.normal())
        loss = loss * (1.0 if lr == 0.01 else 1.05)
        runs.append(
            {
                "run_id": run_id,
                "name": f"size {n}",
                "status": "done",
                "seed": run_seed,
                "n_layer": 2,
                "d_model": round((n / 24) ** 0.5),
                "params_non_embedding": n,
                "params_total": n + 578 * round((n / 24) ** 0.5),
                "unique_tokens": 10_000_000,
                "bigram_nats": 3.2,
                "batch_tokens": 512,
                "steps": last,
                "lr_peak": lr,
                "schedule": "constant",
                "warmup_steps": 10,
            }
        )
        curves.append(
            pl.DataFrame(
                {
                    "run_id": run_id,
                    "step_start": np.concatenate([[0], at[:-1]]),
                    "step": at,
                    "tokens": at * 512,
                    "epochs": at * 512 / 1e7,
                    "batch_tokens": 512,
                    "train_loss": loss,
                    "val_loss": loss,
                }
            )
        )
    return Records(pl.DataFrame(runs), pl.concat(curves), "synthetic")


@pytest.fixture(scope="session")
def make_records() -> Callable[..., Records]:
    return synthetic


@pytest.fixture(scope="session")
def truth() -> dict[str, float]:
    return TRUTH
