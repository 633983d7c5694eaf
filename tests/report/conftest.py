"""A study nobody trained: records, a fit and panel lamps with known shapes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from scaling_jax.laws.forecast.backtest import Backtest, backtest_runs
from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.panel import Lamp
from scaling_jax.laws.result import Fit
from scaling_jax.records.schema import CURVE_COLUMNS, RUN_COLUMNS
from scaling_jax.records.store import Records

STEPS, BATCH, GROUPS = 12_000, 512, 4
WIDTHS = (12, 16, 24, 32, 48, 64, 88)
LAW = {"N_c": 2.0e4, "S_c": 800.0, "alpha_N": 0.22, "alpha_S": 0.16}
TYPES = {str: pl.String, int: pl.Int64, float: pl.Float64, bool: pl.Boolean}


def law(n, s):
    return (LAW["N_c"] / n) ** LAW["alpha_N"] + (LAW["S_c"] / s) ** LAW["alpha_S"]


def edges(steps):
    return np.unique(np.geomspace(1, steps, 90).astype(int)).tolist()


def table(rows, columns):
    schema = {name: TYPES[kind] for name, kind in columns.items()}
    return pl.DataFrame([{name: row.get(name) for name in columns} for row in rows], schema=schema)


def run_row(width, lr_factor=1.0, status="done", steps=STEPS):
    n = 24 * width * width
    lr = 8e-3 * min(1, 32 / width) * lr_factor
    return {
        "run_id": f"{width:04x}{round(lr_factor * 4):04x}",
        "study": "quickstart",
        "name": f"d{width}" + ("" if lr_factor == 1 else f"-lr-x{lr_factor:g}"),
        "status": status,
        "seed": 0,
        "arch": "transformer",
        "n_layer": 2,
        "d_model": width,
        "n_ctx": 64,
        "n_vocab": 257,
        "params_non_embedding": n,
        "params_embedding": 321 * width,
        "params_head": 257 * width,
        "params_other": 10 * width,
        "params_total": n + 588 * width,
        "data_source": "embedded",
        "data_fingerprint": "3f2a9c41d07be6",
        "unique_tokens": 10_900_000,
        "bigram_nats": 2.41,
        "batch_tokens": BATCH,
        "steps": steps,
        "optimizer": "adamw",
        "schedule": "constant",
        "warmup_steps": 100,
        "lr_peak": lr,
        "device": "TFRT_CPU_0 (cpu)",
        "versions": "jax 0.10.2, flax 0.12.8",
    }


def curve_rows(run, rng):
    n, lr_cost = run["params_non_embedding"], 1 + 0.03 * ("lr" in run["name"])
    rows = []
    for start, step in pairwise([0, *edges(run["steps"])]):
        middle = np.sqrt((start + 1) * step)
        train = min(5.6, law(n, middle) * lr_cost) * np.exp(0.03 * rng.standard_normal())
        grad_sq, tr_sigma = 1.2 * np.exp(-1.1 * (5.6 - train)), 700.0
        spread = 0.35 / np.sqrt(step - start)
        big = grad_sq + tr_sigma / BATCH * (1 + spread * rng.standard_normal())
        small = grad_sq + tr_sigma * GROUPS / BATCH * (1 + 0.5 * spread * rng.standard_normal())
        evaluated = step in edges(run["steps"])[::3] or step == run["steps"]
        val = min(5.6, law(n, step) * lr_cost) * np.exp(0.006 * rng.standard_normal())
        rows.append(
            {
                "run_id": run["run_id"],
                "attempt": 1,
                "step_start": start,
                "step": step,
                "tokens": step * BATCH,
                "epochs": step * BATCH / run["unique_tokens"],
                "lr": run["lr_peak"],
                "batch_tokens": BATCH,
                "train_loss": train,
                "val_loss": val if evaluated else None,
                "val_loss_se": 0.006 if evaluated else None,
                "grad_sq_small": small,
                "grad_sq_big": big,
                "grad_sq_small_sq": small**2 + (0.175 * tr_sigma * GROUPS / BATCH) ** 2,
                "grad_sq_big_sq": big**2 + (0.35 * tr_sigma / BATCH) ** 2,
                "grad_sq_small_big": small * big,
                "noise_steps": step - start,
                "batch_small": BATCH // GROUPS,
                "batch_big": BATCH,
                "flops_6n": 6.0 * n * step * BATCH,
                "flops_exact": 9.0 * n * step * BATCH,
                "tokens_per_s": 4.1e8 / n,
                "wall_s": step * 0.002,
            }
        )
    return rows


@pytest.fixture(scope="session")
def study() -> Records:
    rng = np.random.default_rng(0)
    runs = [run_row(width) for width in WIDTHS]
    runs += [run_row(width, f, steps=1500) for width in (12, 88) for f in (0.5, 2.0)]
    curves = [row for run in runs for row in curve_rows(run, rng)]
    queued = run_row(128, status="queued")
    return Records(
        runs=table([*runs, queued], RUN_COLUMNS),
        curves=table(curves, CURVE_COLUMNS),
        source="runs/quickstart",
    )


def stand_in_fit(convention="params_non_embedding", other=None):
    rng = np.random.default_rng(1)
    steps = np.geomspace(2500, STEPS, 16).astype(int)
    n = np.repeat([24 * w * w for w in WIDTHS[1:]], len(steps)).astype(float)
    s = np.tile(steps, len(WIDTHS) - 1).astype(float)
    residual = 0.012 * rng.standard_normal(len(n))
    points = pl.DataFrame(
        {
            "run_id": [f"{x:.0f}" for x in n],
            "seed": [0] * len(n),
            "N": n,
            "S": s,
            "loss": law(n, s) * np.exp(residual),
            "predicted": law(n, s),
            "log_residual": residual,
        }
    )
    intervals = {name: (0.9 * value, 1.15 * value) for name, value in LAW.items()}
    lamps = [
        Lamp("largest_N", 0.043, 0.05, True, "largest N from the rest: worst error 4.3 %"),
        Lamp("batch_vs_noise", 7.31, 4.0, False, "the noise scale is far above a batch of <b>"),
        Lamp("lr_bracketed", None, 4.0, None, "not measurable: one learning rate"),
    ]
    left_out = {"rule": "above the floor", "reason": "at or above the bigram floor", "n_points": 16}
    return Fit(
        law="l_ns",
        params=dict(LAW),
        intervals=intervals,
        derived={},
        level=0.9,
        interval_method="draws of whole runs and of the window's start",
        interval_flag=None,
        correlation=np.eye(4),
        draws=np.tile(list(LAW.values()), (500, 1)),
        tail=0.05,
        n_points=len(n),
        n_runs=6,
        objective=0.0031,
        objective_form="Huber",
        rms_log_residual=0.0118,
        held_out={"largest_N": 0.043, "largest_C": None, "later_half": 0.042},
        held_out_detail={"largest_N": None, "largest_C": None, "later_half": None},
        points=points,
        columns={"N": convention, "S": "step", "loss": "val_loss"},
        ranges={"N": (n.min(), n.max()), "S": (s.min(), s.max())},
        window={
            "step_start": 2500.0,
            "rule": "the earliest at which the residuals are small",
            "criterion_met": True,
        },
        steps_name="steps at fixed batch",
        rivals=[],
        resamples=500,
        source="runs/quickstart",
        rule="",
        lamps=lamps,
        excluded=[
            {"run_id": "000c0004", "name": "d12", **left_out},
            {"run_id": "00100004", "name": "d16", **left_out},
        ],
        other=other,
    )


@pytest.fixture(scope="session")
def fit():
    return stand_in_fit(other=stand_in_fit("params_total"))


@pytest.fixture(scope="session")
def curves() -> list[Curve]:
    rng = np.random.default_rng(0)
    step = np.arange(20.0, 2001.0, 20.0)
    return [
        Curve(
            f"r{i:02d}", f"r{i:02d}", step,
            (2 - 0.03 * i + 12 * (1 + 0.1 * rng.standard_normal()) * step**-0.5)
            * np.exp(0.002 * rng.standard_normal(step.size)),
            size=1e6 * 1.5**i,
        )
        for i in range(22)
    ]  # fmt: skip


@pytest.fixture(scope="session")
def test(curves: list[Curve]) -> Backtest:
    return backtest_runs(curves)
