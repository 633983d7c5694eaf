"""Where a run stands: what its last process said of it, and whether that can still be so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from etils import epath

from scaling_jax.records.files import AbsentFile, is_local, is_there, read_record, write_record
from scaling_jax.records.many import read_each

# A process writes every 20 seconds once it trains, and compiles for minutes before that.
STALE_S = 900.0


def run_status(out: epath.Path, run_id: str) -> dict[str, Any] | None:
    """The run's `status.json`, or None where it must be begun; `RequestError` where it is damaged.

    `status` is what the run's last process wrote; `failures` has an entry with `attempt`, `step`
    and `message` for each attempt that failed.
    """
    path = out / run_id / "status.json"
    begun = is_there(path) and is_there(out / run_id / "config.json")
    return read_record(path) if begun else None


def read_statuses(out: epath.Path, run_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The `status.json` of those of the runs that have one, by run_id; raises as `run_status`."""
    run_ids = list(run_ids)

    def read(run_id: str) -> dict[str, Any] | None:
        try:
            return read_record(out / run_id / "status.json")
        except AbsentFile:
            return None

    found = zip(run_ids, read_each(read, run_ids, is_local(out)), strict=True)
    return {run_id: state for run_id, state in found if state is not None}


def standing(state: dict[str, Any], held: bool, now: float) -> str:
    """One of STATUSES for a run that says `state`, `now` being seconds since the epoch.

    What says `running` is `stale` where no process holds the folder, and where it was last heard
    of more than 15 minutes ago, or as long ahead: then a clock has jumped and tells nothing.
    """
    if state["status"] != "running":
        return state["status"]
    return "running" if held and abs(now - state["heartbeat"]) <= STALE_S else "stale"


def end_early(out: epath.Path, run_id: str, message: str) -> None:
    """Write of a run that was begun and that no process trains that it is stopped for good.

    The caller holds the lock of `out`. Raises `WorkError` where the disk or the bucket refuses.
    """
    path = out / run_id / "status.json"
    write_record(path, read_record(path) | {"status": "stopped", "message": message})
