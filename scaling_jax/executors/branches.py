"""What a run needs that branches from another: the same state, and a checkpoint to begin from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
from etils import epath

from scaling_jax.config import BranchConfig, RunConfig
from scaling_jax.errors import RequestError
from scaling_jax.records.files import is_there, read_record
from scaling_jax.records.requests import STOP_FILE
from scaling_jax.records.status import run_status
from scaling_jax.settings import parse_config
from scaling_jax.study import Study
from scaling_jax.training.checkpoints import Shelf
from scaling_jax.training.saving import flatten
from scaling_jax.training.step import init_state, numbers_of


def require_same_state(runs: Mapping[str, RunConfig]) -> None:
    """Raises `RequestError` for a branch with other arrays than its parent has, if that is here."""
    for name, config in runs.items():
        if config.branch is not None and config.branch.run in runs:
            _require_same_arrays(name, config, config.branch.run, runs[config.branch.run])


def require_parents(out: epath.Path, study: Study) -> None:
    """Raises `RequestError` where a run branches from one outside the study that `out` lacks.

    That one needs a checkpoint of the step, which it had reached, and arrays like the branch's.
    """
    for name, config in study.runs.items():
        branch = config.branch
        if branch is None or branch.run in study.runs:
            continue
        path = out / branch.run / "config.json"
        if not is_there(path):
            raise RequestError(f"run {name!r} branches from {branch.run}, which is not in {out}")
        parent = parse_config(read_record(path)["config"])
        _require_same_arrays(name, config, branch.run, parent)
        known = Shelf(out).steps_of(branch.run)
        if branch.step not in known:
            stopped = (run_status(out, branch.run) or {}).get("status") == "stopped"
            early = f"; it was stopped early: {undo_stop(out, branch.run)}" if stopped else ""
            raise RequestError(f"run {name!r}: {no_checkpoint(branch, known)}{early}")


def no_checkpoint(branch: BranchConfig, known: Sequence[int]) -> str:
    """Says that a run was not kept at the step that another branches from."""
    steps = ", ".join(map(str, known)) or "none"
    return (
        f"run {branch.run} has no checkpoint of step {branch.step} to branch from; there are: "
        f"{steps}. Branch from one of these, or train both in one study with another --out"
    )


def undo_stop(out: epath.Path, run_id: str) -> str:
    """Says how a run that was stopped for good goes on after all."""
    return f"remove {out / run_id / STOP_FILE} and run its study again, which trains it to the end"


def _require_same_arrays(name: str, config: RunConfig, parent: str, there: RunConfig) -> None:
    own, its = _arrays(config), _arrays(there)
    for place in sorted(own.keys() | its.keys()):
        if own.get(place) != its.get(place):
            raise RequestError(
                f"run {name!r} cannot branch from {parent!r}: {place} is {_shape(own.get(place))} "
                f"here and {_shape(its.get(place))} there; a branch has the model and the kind of "
                "optimizer of its parent"
            )


def _arrays(config: RunConfig) -> dict[str, tuple[tuple[int, ...], str]]:
    state = jax.eval_shape(lambda: init_state(config, numbers_of(config, n_tokens=1)))
    return {place: (leaf.shape, str(leaf.dtype)) for place, leaf in flatten(state).items()}


def _shape(array: tuple[tuple[int, ...], str] | None) -> str:
    return "nothing" if array is None else f"{array[1]}{list(array[0])}"
