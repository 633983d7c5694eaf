"""Records made from a law whose parameters are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest

from scaling_jax.laws.forms import L_NS
from scaling_jax.records.store import Records, load

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


class Case(NamedTuple):
    """A law with known parameters, its formula in plain NumPy, and inputs (n,) that identify it."""

    slug: str
    params: dict[str, float]
    formula: Callable[..., np.ndarray]
    inputs: dict[str, np.ndarray]

    @property
    def output(self) -> np.ndarray:
        return self.formula(**self.params, **self.inputs)


def grid(**axes: np.ndarray) -> dict[str, np.ndarray]:
    """Every combination of the values of the axes, as columns."""
    columns = np.meshgrid(*axes.values(), indexing="ij")
    return {name: column.ravel() for name, column in zip(axes, columns, strict=True)}


def data_constrained(N, D, U, E, A, B, alpha, beta, R_D_star, R_N_star):
    """Muennighoff et al. 2023, eq. 5 and 6; the size that is optimal for U from Hoffmann's G."""
    G = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    U_D = np.minimum(D, U)
    U_N = np.minimum(N, G * (G * U_D) ** (beta / alpha))
    D_eff = U_D + U_D * R_D_star * (1 - np.exp(-(D / U_D - 1) / R_D_star))
    N_eff = U_N + U_N * R_N_star * (1 - np.exp(-(N / U_N - 1) / R_N_star))
    return E + A / N_eff**alpha + B / D_eff**beta


PF_DAY = 8.64e19
N, D, C = np.geomspace(1e5, 1e9, 24), np.geomspace(2e7, 2e10, 24), np.geomspace(1e14, 1e20, 24)
CHINCHILLA = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
ND = grid(N=np.geomspace(4e7, 1.6e10, 12), D=np.geomspace(1e9, 5e11, 20))
EPOCHS = np.array([1.0, 2, 4, 10, 40, 200])
REPEATED = grid(N=np.geomspace(1e7, 1e10, 6), U=np.geomspace(1e8, 2e10, 5), epochs=EPOCHS)
CASES = (
    Case("l_n", {"N_c": 8.8e13, "alpha_N": 0.076},
         lambda N, N_c, alpha_N: (N_c / N) ** alpha_N, {"N": N}),
    Case("l_d", {"D_c": 5.4e13, "alpha_D": 0.095},
         lambda D, D_c, alpha_D: (D_c / D) ** alpha_D, {"D": D}),
    Case("l_c", {"C_c": 1.6e7 * PF_DAY, "alpha_C": 0.057},
         lambda C, C_c, alpha_C: (C_c / C) ** alpha_C, {"C": C}),
    Case("l_n_offset", {"E": 1.5, "N_c": 1e8, "alpha_N": 0.3},
         lambda N, E, N_c, alpha_N: E + (N_c / N) ** alpha_N, {"N": N}),
    Case("l_d_offset", {"E": 1.5, "D_c": 1e9, "alpha_D": 0.3},
         lambda D, E, D_c, alpha_D: E + (D_c / D) ** alpha_D, {"D": D}),
    Case("l_c_offset", {"E": 1.5, "C_c": 1e18, "alpha_C": 0.15},
         lambda C, E, C_c, alpha_C: E + (C_c / C) ** alpha_C, {"C": C}),
    Case("l_nd", {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
         lambda N, D, N_c, D_c, alpha_N, alpha_D:
         ((N_c / N) ** (alpha_N / alpha_D) + D_c / D) ** alpha_D,
         grid(N=np.array([3.9e5, 3e6, 2.5e7, 8.5e7, 7.1e8]), D=np.geomspace(4.3e7, 2.2e10, 7))),
    Case("l_nd_chinchilla", CHINCHILLA,
         lambda N, D, E, A, B, alpha, beta: E + A / N**alpha + B / D**beta, ND),
    Case("l_ns", {"N_c": 6.5e13, "S_c": 2.1e3, "alpha_N": 0.077, "alpha_S": 0.76},
         lambda N, S, N_c, S_c, alpha_N, alpha_S: (N_c / N) ** alpha_N + (S_c / S) ** alpha_S,
         grid(N=np.geomspace(1e5, 1e9, 9), S=np.geomspace(3e3, 2.5e5, 12))),
    Case("b_crit", {"B_star": 2.1e8, "alpha_B": 0.21},
         lambda L, B_star, alpha_B: B_star / L ** (1 / alpha_B), {"L": np.linspace(2.0, 5.0, 12)}),
    Case("pareto", {"S_min": 1e4, "E_min": 3e9, "B_crit": 3e5},
         lambda B, S_min, E_min, B_crit: S_min * (1 + B_crit / B),
         {"B": np.geomspace(1e4, 1e7, 11)}),
    Case("data_constrained",
         {"E": np.exp(0.6254804), "A": np.exp(6.255414), "B": np.exp(7.3049974),
          "alpha": 0.3526596, "beta": 0.3526596, "R_D_star": 15.387756, "R_N_star": 5.309743},
         data_constrained,
         {"N": REPEATED["N"], "D": REPEATED["U"] * REPEATED["epochs"], "U": REPEATED["U"]}),
)  # fmt: skip


@pytest.fixture(scope="session")
def cases() -> dict[str, Case]:
    return {case.slug: case for case in CASES}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `case` is run for every law."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES, ids=[case.slug for case in CASES])


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Records]:
    """Loads a foreign table of these columns, as a user's CSV."""

    def from_columns(table: pl.DataFrame | dict[str, object] | None = None, **columns) -> Records:
        path = tmp_path / "theirs.csv"
        pl.DataFrame(columns if table is None else table).write_csv(path)
        return load(path)

    return from_columns
