"""Where a run stands: what its last process said of it, and whether that can still be so."""

from __future__ import annotations

from typing import Any

from etils import epath

from scaling_jax.records.files import is_there, read_record

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


def standing(state: dict[str, Any], held: bool, now: float) -> str:
    """One of STATUSES for a run that says `state`, `now` being seconds since the epoch.

    What says `running` is `stale` where no process holds the folder, and where it was last heard
    of more than 15 minutes ago, or as long ahead: then a clock has jumped and tells nothing.
    """
    if state["status"] != "running":
        return state["status"]
    return "running" if held and abs(now - state["heartbeat"]) <= STALE_S else "stale"
