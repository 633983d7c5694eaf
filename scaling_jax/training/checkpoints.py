"""Which checkpoint each run has, and what is read from it: a cohort to go on with, or one run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import SingleDeviceSharding

from scaling_jax.config import RunConfig
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.hosts.agreement import agreed, gathered, is_writer
from scaling_jax.records.files import as_path
from scaling_jax.settings import parse_config
from scaling_jax.training.saving import (
    Damaged,
    Leaves,
    Saved,
    cohort_folder,
    cohorts_folder,
    committed_steps,
    describe,
    flatten,
    load,
    unflatten,
)
from scaling_jax.training.sharding import lay
from scaling_jax.training.step import TrainState, init_state, numbers_of

Warn = Callable[[str], None]


class Restored(NamedTuple):
    """The state of a cohort after `step` updates, and what the host knew of each lane."""

    step: int
    state: TrainState
    lanes: list[dict[str, Any]]
    own: bool
    """Whether it is one checkpoint, of this very cohort."""
    begins: list[bool]
    """Of each lane whether its run begins here, from the state of another run."""


class Unusable(Exception):
    """A checkpoint that is not to be used, and why."""

    def __init__(self, folder: epath.Path, step: int, why: str):
        super().__init__(why)
        self.place = (folder, step)


def warn_on_stderr(message: str) -> None:
    """One line of warning, of several hosts once."""
    if is_writer():
        print(f"scaling-jax: {message}", file=sys.stderr)


class Shelf:
    """The checkpoints of all cohorts under `out`, found by run.

    `cohorts`, each the run_ids of its lanes, are known without a look. What cannot be used is told
    to `warn` once and then passed over.
    """

    def __init__(
        self,
        out: epath.Path,
        cohorts: Iterable[Sequence[str]] = (),
        warn: Warn = warn_on_stderr,
    ):
        self._out = out
        self._warn = warn
        self._unusable: set[tuple[epath.Path, int]] = set()
        self._lanes = {cohort_folder(out, lanes): tuple(lanes) for lanes in cohorts}

    def places(self, run_ids: Collection[str]) -> dict[str, dict[int, list[epath.Path]]]:
        """For each run the steps of the checkpoints that hold it, and the folders they are in."""
        found: dict[str, dict[int, list[epath.Path]]] = {run_id: {} for run_id in run_ids}
        for folder in self._folders():
            held = found.keys() & self._lanes_of(folder)
            for step in self._steps(folder) if held else ():
                for run_id in held:
                    found[run_id].setdefault(step, []).append(folder)
        return found

    def newest(self, run_ids: Collection[str]) -> dict[str, int]:
        """The step of the newest checkpoint of each run, 0 where it has none."""
        places = self.places(run_ids)
        newest = {run_id: max(places[run_id], default=0) for run_id in run_ids}
        return dict(agreed("the newest checkpoints", newest))

    def restore(
        self,
        runs: Mapping[str, Any],
        step: int,
        abstract: TrainState,
        recorded: Mapping[str, int],
        origins: Mapping[str, str] = MappingProxyType({}),
    ) -> Restored | None:
        """The cohort of `runs` after `step` updates, laid as `abstract`; None if it cannot be had.

        `runs` are the identities of the lanes by run_id, and `recorded` tells of some of them up to
        which step their rows are on the disk: a checkpoint without the rows before it is not used.
        `origins` are the runs that begin here, each with the run that it branches from. After None,
        ask for `newest` again. Raises `RequestError` for a checkpoint of another config or format.
        """
        own = cohort_folder(self._out, list(runs))
        held_as = {run_id: origins.get(run_id, run_id) for run_id in runs}
        sources = self._sources(held_as, step, own)
        saved: dict[epath.Path, Saved] = {}
        lanes: list[dict[str, Any]] = []
        fault = None
        try:
            saved = {folder: self._describe(folder, step) for folder in sources.values()}
            lanes = [
                _origin(folder, saved[folder], origins[run_id])
                if run_id in origins
                else _lane(folder, saved[folder], run_id, runs[run_id], recorded.get(run_id))
                for run_id, folder in sources.items()
            ]
        except Unusable as error:
            fault = [error.place[0].name, str(error)]
        # What one host cannot use, none does.
        if faults := [each for each in gathered("what checkpoints say", fault) if each]:
            name, why = faults[0]
            self._pass_over(Unusable(own.parent / name, step, why))
            return None
        try:
            is_own = list(saved) == [own] and not origins
            if is_own:
                state = unflatten(abstract, _load(own, saved[own], flatten(abstract)))
            else:
                places_in = [(folder, held_as[run_id]) for run_id, folder in sources.items()]
                state = _assemble(places_in, saved, abstract)
        except Unusable as error:
            self._pass_over(error)
            return None
        return Restored(step, state, lanes, is_own, [run_id in origins for run_id in runs])

    def steps_of(self, run_id: str) -> list[int]:
        """The steps, ascending, of the checkpoints that a run can be branched from.

        Not those of its cohort after it had diverged or was at its end.
        """
        found = {saved.step for _, saved in self.of_run(run_id) if _has_reached(saved, run_id)}
        return agreed("the checkpoints of a run", sorted(found))

    def _sources(
        self, held_as: Mapping[str, str], step: int, own: epath.Path
    ) -> dict[str, epath.Path]:
        """The folder that each run is restored from, if it can be from `own`."""
        names: dict[str, str] = {}
        if is_writer():  # another host may see late what is new in a folder
            places = self.places(held_as.values())
            for run_id, held in held_as.items():
                folders = places[held][step]
                names[run_id] = (own if own in folders else folders[0]).name
        names = agreed("the folders of checkpoints", names)
        return {run_id: own.parent / name for run_id, name in names.items()}

    def of_run(self, run_id: str) -> list[tuple[epath.Path, Saved]]:
        """The checkpoints that hold a run, by what they say of themselves; the newest first."""
        places = self.places([run_id])[run_id]
        found = []
        for step in sorted(places, reverse=True):
            for folder in places[step]:
                try:
                    found.append((folder, self._describe(folder, step)))
                except Unusable as error:
                    self._pass_over(error)
        return found

    def _folders(self) -> list[epath.Path]:
        folder = cohorts_folder(self._out)
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def _steps(self, folder: epath.Path) -> list[int]:
        return [step for step in committed_steps(folder) if (folder, step) not in self._unusable]

    def _lanes_of(self, folder: epath.Path) -> tuple[str, ...]:
        while folder not in self._lanes and (steps := self._steps(folder)):
            try:
                self._lanes[folder] = tuple(_describe(folder, steps[-1]).runs)
            except Unusable as error:
                self._pass_over(error)
        return self._lanes.get(folder, ())

    def _describe(self, folder: epath.Path, step: int) -> Saved:
        saved = _describe(folder, step)
        if tuple(saved.runs) != self._lanes_of(folder):
            raise Unusable(folder, step, f"checkpoint {folder / str(step)} is one of other runs")
        return saved

    def _pass_over(self, error: Unusable) -> None:
        self._unusable.add(error.place)
        self._warn(f"{error}; going on without it")


def checkpoint_steps(out: str | os.PathLike[str], run_id: str) -> list[int]:
    """The steps of one run, ascending, at which its state was kept."""
    found = Shelf(as_path(out)).of_run(run_id)
    return sorted({_own_step(saved, run_id) for _, saved in found})


def load_run(out: str | os.PathLike[str], run_id: str, step: int | None = None) -> tuple[int, Any]:
    """A run's step and its parameters then: those of `step`, or the newest that are whole.

    The tree is that of one run, without an axis of lanes, on the default device. Raises
    `RequestError` where there is no such checkpoint, and `WorkError` where none of them is whole.
    """
    found = Shelf(as_path(out)).of_run(run_id)
    known = sorted({_own_step(saved, run_id) for _, saved in found})
    if not known:
        raise RequestError(f"run {run_id} has no checkpoint under {out}")
    if step is not None and step not in known:
        raise RequestError(
            f"run {run_id} has no checkpoint of step {step}; there are {', '.join(map(str, known))}"
        )
    for folder, saved in found:
        own_step = _own_step(saved, run_id)
        if step is None or step == own_step:
            try:
                return own_step, _params(folder, saved, run_id)
            except Damaged as error:
                warn_on_stderr(str(error))
    raise WorkError(f"no checkpoint of run {run_id} that was asked for is whole")


def _describe(folder: epath.Path, step: int) -> Saved:
    try:
        return describe(folder, step)
    except Damaged as error:
        raise Unusable(folder, step, str(error)) from None


def _load(folder: epath.Path, saved: Saved, abstract: Leaves) -> Leaves:
    try:
        return load(folder, saved, abstract)
    except Damaged as error:
        raise Unusable(folder, saved.step, str(error)) from None


def _lane(
    folder: epath.Path, saved: Saved, run_id: str, identity: Any, recorded: int | None
) -> dict[str, Any]:
    """What the host knew of a lane, once it is clear that its run can go on from there."""
    path = folder / str(saved.step)
    if differing := _differing(saved.runs[run_id], identity):
        raise RequestError(
            f"checkpoint {path} is one of another config of run {run_id}: {', '.join(differing)}; "
            "remove it, or choose another --out"
        )
    lane = _lane_of(saved, run_id)
    if recorded is not None and recorded < lane["recorder"]["step_start"]:
        end = f"end at step {recorded}" if recorded >= 0 else "are gone"
        why = f"checkpoint {path} is not used: the records of run {run_id} {end}"
        raise Unusable(folder, saved.step, why)
    return lane


def _origin(folder: epath.Path, saved: Saved, parent: str) -> dict[str, Any]:
    """What the host knew of the run that another one branches from."""
    if not _has_reached(saved, parent):
        why = f"run {parent} had ended in checkpoint {folder / str(saved.step)}"
        raise Unusable(folder, saved.step, why)
    return _lane_of(saved, parent)


def _has_reached(saved: Saved, run_id: str) -> bool:
    """Whether a run had reached the step of a checkpoint, and its numbers were finite."""
    return _own_step(saved, run_id) == saved.step and not _lane_of(saved, run_id)["diverged"]


def _assemble(
    places: Sequence[tuple[epath.Path, str]],
    saved: Mapping[epath.Path, Saved],
    abstract: TrainState,
) -> TrainState:
    """Lanes of several cohorts, or another choice of one's, stacked anew through the host."""
    like = flatten(abstract)
    here = SingleDeviceSharding(jax.local_devices()[0])
    stacks = {}
    for folder, said in saved.items():
        stack = {
            name: jax.ShapeDtypeStruct((len(said.runs), *leaf.shape[1:]), leaf.dtype, sharding=here)
            for name, leaf in like.items()
        }
        stacks[folder] = jax.device_get(_load(folder, said, stack))
    lanes = [(stacks[folder], list(saved[folder].runs).index(run_id)) for folder, run_id in places]
    leaves = {
        name: lay(np.stack([stack[name][i] for stack, i in lanes]), leaf.sharding)
        for name, leaf in like.items()
    }
    return unflatten(abstract, leaves)


def _params(folder: epath.Path, saved: Saved, run_id: str) -> Any:
    config: RunConfig = parse_config(saved.runs[run_id]["config"])
    state = jax.eval_shape(lambda: init_state(config, numbers_of(config, n_tokens=1)))
    params = {"params": state.params}
    here, n_lanes = SingleDeviceSharding(jax.local_devices()[0]), len(saved.runs)
    stack = load(
        folder,
        saved,
        {
            name: jax.ShapeDtypeStruct((n_lanes, *leaf.shape), leaf.dtype, sharding=here)
            for name, leaf in flatten(params).items()
        },
    )
    lane = list(saved.runs).index(run_id)
    return unflatten(params, {name: leaf[lane] for name, leaf in stack.items()})["params"]


def _own_step(saved: Saved, run_id: str) -> int:
    return _lane_of(saved, run_id)["recorder"]["step"]


def _lane_of(saved: Saved, run_id: str) -> dict[str, Any]:
    return saved.lanes[list(saved.runs).index(run_id)]


def _differing(there: Any, here: Any, prefix: str = "") -> list[str]:
    if not (isinstance(there, dict) and isinstance(here, dict)):
        return [] if there == here else [f"{prefix} {there!r} there and {here!r} here"]
    return [
        fault
        for name in sorted(there.keys() | here.keys())
        for fault in _differing(
            there.get(name), here.get(name), f"{prefix}.{name}" if prefix else name
        )
    ]
