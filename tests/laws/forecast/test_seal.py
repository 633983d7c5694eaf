"""Sealed forecasts: written once and whole, and judged by what came."""

from __future__ import annotations

import errno
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.forecast.seal import data_hash, measured_at, read_seal, score, write_seal


def curve(name: str, end: float, level: float = 2.0, status: str | None = None) -> Curve:
    step = np.arange(10.0, end + 1, 10.0)
    loss = level + 3 * step**-0.5
    return Curve(name, name, step, loss, horizon=1000.0, status=status)


def row(name: str, loss: float, low: float, high: float, step: float = 400.0) -> dict:
    return {
        "run_id": name,
        "observed_step": step,
        "horizon_step": 1000.0,
        "loss": loss,
        "interval": [low, high],
        "method": "power_offset",
        "flags": [],
        "baselines": {"last_value": loss + 0.1},
    }


def seal(path: Path, rows: list[dict], seen: list[Curve]) -> str:
    write_seal(path, rows, seen, 0.9, "table.csv")
    return str(path)


def test_the_file_holds_the_prediction_its_date_its_version_and_what_it_saw(tmp_path: Path) -> None:
    path = seal(tmp_path / "a.json", [row("a", 2.1, 2.0, 2.2)], [curve("a", 400)])
    doc = read_seal(path)
    assert doc["sealed_at"].endswith("+00:00") and doc["version"] and doc["level"] == 0.9
    assert doc["data"]["a"] == {"step": 400.0, "hash": data_hash(curve("a", 400))}
    assert doc["runs"] == [row("a", 2.1, 2.0, 2.2)]
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_a_seal_is_never_written_over_even_by_two_at_once(tmp_path: Path) -> None:
    path, refusals = tmp_path / "a.json", []

    def write(loss: float) -> None:
        try:
            seal(path, [row("a", loss, 2.0, 2.2)], [curve("a", 400)])
        except RequestError as error:
            refusals.append(str(error))

    threads = [threading.Thread(target=write, args=(2.0 + i / 100,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refusals) == 7 and all("never written over" in said for said in refusals)
    before = path.read_bytes()
    with pytest.raises(RequestError, match="exists"):
        seal(path, [row("a", 1.0, 0.9, 1.1)], [curve("a", 400)])
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_disk_that_refuses_is_said_of_the_seal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    path = tmp_path / "a.json"
    with pytest.raises(WorkError, match=rf"^Could not write {path}: No space left on device"):
        seal(path, [row("a", 2.1, 2.0, 2.2)], [curve("a", 400)])
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_links_takes_seals_and_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "a.json"
    seal(path, [row("a", 2.1, 2.0, 2.2)], [curve("a", 400)])
    before = path.read_bytes()
    with pytest.raises(RequestError, match="never written over"):
        seal(path, [row("a", 1.0, 0.9, 1.1)], [curve("a", 400)])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_nothing_to_seal_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no run is unfinished"):
        seal(tmp_path / "a.json", [], [])
    assert not list(tmp_path.iterdir())


def test_the_score_counts_covered_and_errors_beside_the_baselines(tmp_path: Path) -> None:
    whole = curve("a", 1000)
    truth = whole.final_loss
    paths = [
        seal(
            tmp_path / "hit.json", [row("a", truth + 0.01, truth - 0.02, truth + 0.04)],
            [curve("a", 400)],
        ),
        seal(
            tmp_path / "miss.json", [row("a", truth + 0.03, truth + 0.01, truth + 0.05)],
            [curve("a", 400)],
        ),
    ]  # fmt: skip
    found = score(paths, [whole])
    summary = found.summary()
    assert summary is not None and (summary["n"], summary["n_runs"], summary["covered"]) == (
        2,
        1,
        1,
    )
    assert summary["median_error"] == pytest.approx(0.02)
    assert summary["half_width"] == pytest.approx(0.025)
    assert summary["baselines"]["last_value"]["median_error"] == pytest.approx(0.12)
    doc = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [each["covered"] for each in doc["judged"]] == [True, False]


def test_what_has_not_come_is_pending_with_the_reason(tmp_path: Path) -> None:
    rows = [row("a", 2.1, 2.0, 2.2), row("b", 2.1, 2.0, 2.2), row("c", 2.1, 2.0, 2.2)]
    seen = [curve(name, 400) for name in "abc"]
    path = seal(tmp_path / "a.json", rows, seen)
    now = [curve("a", 700), curve("b", 990, status="running")]
    found = score([path], now)
    assert not found.judged and found.summary() is None and not found.changed
    assert [each["run_id"] for each in found.pending] == ["a", "b", "c"]
    assert "step 700 of 1,000" in found.pending[0]["reason"]
    assert "not in the source" in found.pending[2]["reason"]


def test_a_larger_model_is_judged_by_the_run_of_its_size_begun_since(tmp_path: Path) -> None:
    new = row("N=2e+09", 2.1, 2.0, 2.2) | {"observed_step": None, "size": 2e9}
    seen = [replace(curve("a", 1000), size=1e9)]
    path = seal(tmp_path / "a.json", [new | {"method": "larger_model"}], seen)
    big = replace(curve("big", 1000), size=2.01e9)
    found = score([path], [*seen, big])
    assert [each.measured for each in found.judged] == [big.final_loss]
    assert score([path], seen).pending[0]["run_id"] == "N=2e+09"
    path = seal(tmp_path / "b.json", [new | {"method": "multi_power"}], seen)
    assert not score([path], [*seen, big]).judged


def test_data_that_changed_under_a_seal_is_named_and_not_judged(tmp_path: Path) -> None:
    seen = [curve("a", 400), curve("b", 1000)]
    path = seal(tmp_path / "a.json", [row("a", 2.1, 2.0, 2.2)], seen)
    found = score([path], [curve("a", 1000, level=2.001), curve("b", 1000)])
    assert not found.judged and [each["run_id"] for each in found.changed] == ["a"]
    found = score([path], [curve("a", 1000), curve("b", 1000, level=2.001)])
    assert len(found.judged) == 1 and [each["run_id"] for each in found.changed] == ["b"]
    found = score([path], [curve("a", 1000), curve("b", 1000)])
    assert len(found.judged) == 1 and not found.changed


@pytest.mark.parametrize("where", [("runs", 0, "loss"), ("level",), ("sealed_at",)])
def test_an_edited_seal_is_refused(tmp_path: Path, where: tuple) -> None:
    path = tmp_path / "a.json"
    seal(path, [row("a", 2.1, 2.0, 2.2)], [curve("a", 400)])
    doc = json.loads(path.read_text())
    place = doc
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = 0.5
    path.write_text(json.dumps(doc))
    with pytest.raises(RequestError, match="edited after it was sealed"):
        read_seal(path)


def test_another_file_is_no_seal(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"format": 1}')
    with pytest.raises(RequestError, match="no sealed forecast"):
        read_seal(path)
    path.write_text('{"for')
    with pytest.raises(RequestError, match="not whole JSON"):
        read_seal(path)
    with pytest.raises(RequestError, match="Cannot read"):
        read_seal(tmp_path / "none.json")


def test_the_measured_end_is_the_mean_of_the_last_two_percent() -> None:
    whole = curve("a", 1500)
    late = (whole.step >= 980) & (whole.step <= 1000)
    assert measured_at(whole, 1000.0) == whole.loss[late].mean()
    assert measured_at(curve("a", 900), 1000.0) is None
