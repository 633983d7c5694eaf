"""Forecasts that were written down while a study trained.

<study>/forecasts/<time, UTC>.json      one look: a sealed prediction of every run under way
"""

from __future__ import annotations

from datetime import UTC, datetime

from etils import epath

from scaling_jax.records.files import reading

_TIME = "%Y%m%dT%H%M%SZ"


def forecasts_folder(study: epath.Path) -> epath.Path:
    """Where a study's forecasts lie, which need not be there."""
    return study / "forecasts"


def forecast_files(study: epath.Path) -> list[epath.Path]:
    """The forecasts of a study, the oldest first."""
    folder = forecasts_folder(study)
    with reading(folder):
        found = list(folder.iterdir()) if folder.is_dir() else []
    return sorted(
        (path for path in found if _written(path) is not None), key=lambda path: path.name
    )


def written_at(path: epath.Path) -> str:
    """When a forecast was written, in ISO 8601, UTC."""
    time = _written(path)
    assert time is not None
    return time.isoformat()


def file_now(study: epath.Path, suffix: str = ".json") -> epath.Path:
    """The name of a file that is written now among the forecasts."""
    return forecasts_folder(study) / f"{datetime.now(UTC).strftime(_TIME)}{suffix}"


def _written(path: epath.Path) -> datetime | None:
    try:
        return datetime.strptime(path.name, f"{_TIME}.json").replace(tzinfo=UTC)
    except ValueError:
        return None
