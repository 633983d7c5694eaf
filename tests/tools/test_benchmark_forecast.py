"""The measure of forecasts, on tables of known truth in the shape of the public ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tools.benchmarks.forecast import forecast
from tools.benchmarks.main import main
from tools.benchmarks.tables import Table
from tools.benchmarks.timing import Effort

SCHEDULES = (
    "constant_24000", "constant_72000", "cosine_24000", "cosine_72000", "wsd_20000_24000",
    "wsdcon_9",
)  # fmt: skip


def loss_of(size: float, progress: np.ndarray) -> np.ndarray:
    return 1.7 + (3e4 / size) ** 0.3 + 40 * progress**-0.5


def shapes() -> pl.DataFrame:
    step = np.arange(2000.0, 80_001.0, 1000.0)
    sizes = np.geomspace(1e7, 3e9, 8)
    return pl.concat(
        pl.DataFrame(
            {
                "subset": "hot_100b+_477",
                "run_id": f"{size:.3g}",
                "params_incl_head_single_embed": size,
                "tokens": 4e6 * step,
                "step": step,
                "loss": loss_of(size, step),
            }
        )
        for size in sizes
    )


def rates(schedule: str, step: np.ndarray) -> np.ndarray:
    end, share = step[-1], np.clip((step - 2000) / (step[-1] - 2000), 0, 1)
    if schedule.startswith("cosine"):
        return 3e-4 * (0.55 + 0.45 * np.cos(np.pi * share))
    if schedule.startswith("wsdcon"):
        return np.where(step <= 8000, 3e-4, 9e-5)
    fall = np.clip((step - 20_000) / (end - 20_000), 0, 1)
    return 3e-4 * (1 - 0.9 * fall if schedule.startswith("wsd") else np.ones(step.size))


def scheduled() -> pl.DataFrame:
    parts = []
    for label, size in (("25M", 2.5e7), ("100M", 1e8), ("400M", 4e8)):
        for schedule in SCHEDULES:
            step = np.arange(2000.0, 72_001.0 if schedule.endswith("72000") else 24_001.0, 400.0)
            lr = rates(schedule, step)
            progress = 2000 + np.cumsum(np.append(0.0, lr[:-1] / 3e-4 * np.diff(step)))
            loss = loss_of(size, progress) - 400 * (3e-4 - lr)
            parts.append(
                pl.DataFrame(
                    {
                        "run_id": f"{label}/{schedule}",
                        "params_label": label,
                        "schedule": schedule,
                        "step": step,
                        "lr": lr,
                        "loss": loss,
                    }
                )
            )
    return pl.concat(parts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    shapes().write_csv(folder / "gemstones.csv")
    scheduled().write_csv(folder / "multipowerlaw_curves.csv")
    return folder


@pytest.fixture(scope="module")
def tables(folder: Path) -> list[Table]:
    return list(forecast(Effort(quick=True), folder))


def test_every_set_has_its_errors_beside_those_of_the_baselines(tables: list[Table]) -> None:
    rows = {row["curves"]: row for row in tables[0].rows}
    assert [row["n"] for row in rows.values()] == [8, 6, 12, 8]
    for row in rows.values():
        assert row["seen"] == "0.5" and row["median"] <= row["90 %"]
        assert row["median"] < row["last value"]
    decaying = rows["multipowerlaw, decaying"]
    assert decaying["median"] < 0.3 * decaying["power offset"]


def test_every_run_under_a_hidden_schedule_is_forecast(tables: list[Table]) -> None:
    rows = {(row["forecast"], row["model"]): row for row in tables[1].rows}
    assert len(rows) == 8
    decay, longer = (rows[part, "all"] for part, _ in list(rows)[::4])
    assert (decay["n"], longer["n"]) == (6, 6)
    assert decay["median"] < 0.02 < decay["power offset"]
    whole = tables[2].rows[0]
    assert whole["n"] + whole["refused"] == 18


def test_larger_models_come_from_smaller_ones_alone(tables: list[Table]) -> None:
    (row,) = tables[3].rows
    assert (row["models"], row["from"]) == (2, 6)
    assert row["median"] < row["last size"]


def test_intervals_are_judged_within_a_set_and_across(tables: list[Table]) -> None:
    pairs = {(row["judged"], row["errors of"]): row["covered"] for row in tables[4].rows}
    assert len(pairs) == 4 and all(0 <= share <= 1 for share in pairs.values())


def test_advice_and_the_time_are_measured(tables: list[Table]) -> None:
    (row,) = tables[5].rows
    assert row["runs"] == "gemstones" and row["advised"] > 0
    assert [row["forecasts"] > 0 for row in tables[6].rows] == [True, True]


def test_the_tables_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forecast"]) == 2
    assert "--tables DIR" in capsys.readouterr().err
    assert main(["forecast", "--tables", str(tmp_path)]) == 2
    assert "gemstones.csv" in capsys.readouterr().err
