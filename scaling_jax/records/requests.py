"""A run is asked to stop for good by a file in its folder, whoever writes it and wherever.

<run_id>/stop.json      by which rule, for which law, and why

Who trains the run looks for it; to undo it, remove the file and run the study again.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

from etils import epath

from scaling_jax.errors import RequestError
from scaling_jax.records.files import (
    AbsentFile,
    DamagedRecord,
    as_path,
    is_local,
    is_there,
    read_record,
    reading,
    write_record,
)
from scaling_jax.records.many import read_each

STOP_FILE = "stop.json"


class StopRequest(NamedTuple):
    """`rule` in words for `law`, `reason` for this run; `asked_at` in ISO 8601, UTC."""

    run_id: str
    law: str
    rule: str
    reason: str
    asked_at: str


def ask_to_stop(out: epath.Path, run_id: str, law: str, rule: str, reason: str) -> bool:
    """Ask the run to stop, and whether it was not asked before: the first request stands.

    Raises `WorkError` where the disk or the bucket refuses, `RequestError` where it has no folder.
    """
    if not is_there(out / run_id / "status.json"):
        raise RequestError(f"{out} has no run {run_id} that was begun, to ask it to stop")
    path = out / run_id / STOP_FILE
    if is_there(path):
        return False
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_record(path, StopRequest(run_id, law, rule, reason, now)._asdict())
    return True


def stop_requests(out: epath.Path, run_ids: Iterable[str]) -> dict[str, StopRequest]:
    """The requests to those of the runs that are asked to stop, by run_id.

    Raises `RequestError` naming a file that is damaged, or was moved there from another run.
    """
    run_ids = list(run_ids)
    found = read_each(lambda run_id: _read(out, run_id), run_ids, is_local(out))
    return {each.run_id: each for each in found if each is not None}


def requests_beside(source: str, run_ids: Iterable[str]) -> dict[str, StopRequest]:
    """Likewise, of runs of a study's folder or of a folder of studies; none of a table."""
    folder = as_path(source)
    with reading(folder):
        if not folder.is_dir():
            return {}
        own = (folder / "study.json").exists()
    if own and is_local(folder):
        folder = folder.resolve()  # `.` has no parent
    return stop_requests(folder.parent if own else folder, run_ids)


def _read(out: epath.Path, run_id: str) -> StopRequest | None:
    path = out / run_id / STOP_FILE
    try:
        doc = read_record(path)
    except AbsentFile:
        return None
    except DamagedRecord:
        raise RequestError(
            f"{path} is no whole request to stop: it is damaged or was edited. Remove it, and the "
            "run goes on."
        ) from None
    whole = doc.keys() == set(StopRequest._fields)
    if not (whole and all(isinstance(value, str) for value in doc.values())):
        raise RequestError(f"{path} is no request to stop. Remove it, and the run goes on.")
    if doc["run_id"] != run_id:
        raise RequestError(
            f"{path} asks run {doc['run_id']} to stop, and was moved here. Remove it, and the run "
            "goes on."
        )
    return StopRequest(**doc)
