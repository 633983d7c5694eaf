"""What was measured of a run apart from its training, at the parameters after one step.

<run_id>/curvature/<attempt>-<step>-<digest>.parquet     the rows of one step, in NOISE_COLUMNS
"""

from __future__ import annotations

from typing import Any

from etils import epath

from scaling_jax.records.files import read_record, refusals
from scaling_jax.records.schema import AT_CHECKPOINT, NOISE_COLUMNS
from scaling_jax.records.segments import SegmentWriter, segments

MEASURED = "curvature"


def write_measured(out: epath.Path, run_id: str, step: int, rows: list[dict[str, Any]]) -> None:
    """Write rows of NOISE_COLUMNS measured after `step` updates, in the place of earlier ones.

    `run_id`, `attempt`, the steps and the source AT_CHECKPOINT are filled in. May be called while
    the run trains: nothing else writes in this folder. Raises `WorkError` where the disk refuses.
    """
    folder = out / run_id / MEASURED
    before = _of_step(folder, step)
    attempt = read_record(out / run_id / "status.json")["attempt"]
    place = {"run_id": run_id, "attempt": attempt, "step_start": step, "step": step}
    writer = SegmentWriter(folder, NOISE_COLUMNS, attempt, first=step)
    for row in rows:
        writer.keep({**row, **place, "source": AT_CHECKPOINT})
    writer.flush()
    if _of_step(folder, step) != before:  # as where the same was measured again
        for path in before:
            with refusals(path):
                path.unlink(missing_ok=True)


def _of_step(folder: epath.Path, step: int) -> list[epath.Path]:
    return [each.path for each in segments(folder) if int(each.piece) == step]
