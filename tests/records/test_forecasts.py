from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from etils import epath

from scaling_jax.records.forecasts import file_now, forecast_files, forecasts_folder, written_at


def test_forecasts_are_listed_by_the_time_in_their_names(tmp_path: Path) -> None:
    study = epath.Path(tmp_path)
    assert forecast_files(study) == []
    folder = forecasts_folder(study)
    folder.mkdir()
    for name in (
        "20260102T030405Z.json",
        "20251231T235959Z.json",
        "20260102T030405Z.log",
        ".20260102T030405Z.json.12ab.whole",
        "20260199T030405Z.json",
        "notes.json",
    ):
        (folder / name).write_text("{}")
    found = forecast_files(study)
    assert [path.name for path in found] == ["20251231T235959Z.json", "20260102T030405Z.json"]
    assert written_at(found[1]) == "2026-01-02T03:04:05+00:00"


def test_what_is_written_now_is_named_by_the_second(tmp_path: Path) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    path = file_now(epath.Path(tmp_path))
    assert path.parent == forecasts_folder(epath.Path(tmp_path))
    assert before <= datetime.fromisoformat(written_at(path)) <= datetime.now(UTC)
    assert file_now(epath.Path(tmp_path), ".log").suffix == ".log"
