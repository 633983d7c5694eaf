"""The state of cohorts on disk, written so that what is read is what was written.

    <out>/cohorts/<cohort_id>/<step>/    one checkpoint: every lane's state after `step` updates

A checkpoint is what Orbax has committed. Beside the arrays it says of itself which runs its lanes
are, what the host knew of each, and a digest of every array, all under one digest of their own.
Nothing of the data is kept: batches are a function of the step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.hosts.agreement import agreed, gathered
from scaling_jax.records.files import is_local
from scaling_jax.training.digests import digests
from scaling_jax.training.orbax_quiet import quieten_orbax

FORMAT = 1
RECENT = 2  # checkpoints that a cohort under way has beside those it keeps

Leaves = dict[str, Any]

quieten_orbax()

# What goes wrong with a checkpoint that may be whole.
_NO_DAMAGE = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)


class Damaged(WorkError):
    """A checkpoint that is not what was written."""


class Saved(NamedTuple):
    """What a checkpoint says of itself."""

    step: int
    runs: dict[str, Any]
    """The identity of each lane's run by its run_id, in the order of lanes."""
    lanes: list[dict[str, Any]]
    """What the host knew of each lane."""
    digests: dict[str, int]
    """Of each array, by its place in the state."""


def kept_steps(steps: int, per_decade: int) -> list[int]:
    """Log-spaced steps, from 10 to `steps`, whose checkpoints stay."""
    if not per_decade:
        return []
    marks, i = [], per_decade
    while (step := round(10 ** (i / per_decade))) <= steps:
        marks.append(step)
        i += 1
    return marks


def cohorts_folder(out: epath.Path) -> epath.Path:
    """Where the checkpoints of the cohorts under `out` lie; absolute, as Orbax wants it."""
    return (out.resolve() if is_local(out) else out) / "cohorts"


def cohort_folder(out: epath.Path, run_ids: Sequence[str]) -> epath.Path:
    """The folder of the cohort whose lanes are these runs, in this order."""
    name = hashlib.sha256(json.dumps(list(run_ids)).encode()).hexdigest()[:12]
    return cohorts_folder(out) / name


def committed_steps(folder: epath.Path) -> list[int]:
    """The steps of a cohort's folder that have a committed checkpoint, ascending."""
    if not folder.is_dir():
        return []
    return sorted(found.step for found in ocp.path.step.standard_name_format().find_all(folder))


def flatten(state: Any) -> Leaves:
    """The arrays of a state by their place in it, as in `params.blocks.norm.gain.value`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def unflatten(like: Any, leaves: Leaves) -> Any:
    """The state that has the structure of `like` and the arrays `leaves`."""
    structure = jax.tree.structure(like)
    return jax.tree.unflatten(structure, [leaves[name] for name in flatten(like)])


def describe(folder: epath.Path, step: int) -> Saved:
    """What a committed checkpoint says of itself.

    Raises `Damaged`, and `RequestError` where another version of scaling_jax wrote it.
    """
    path = folder / str(step)
    with _damage(path):
        doc = ocp.metadata(path).custom_metadata
    if not (isinstance(doc, dict) and {"format", "saved", "digest"} <= doc.keys()):
        raise Damaged(f"checkpoint {path} is damaged: it does not say what it is")
    if doc["digest"] != _seal(doc["format"], doc["saved"]):
        raise Damaged(f"checkpoint {path} is damaged: what it says of itself has changed")
    if doc["format"] != FORMAT:
        raise RequestError(
            f"checkpoint {path} is of format {doc['format']!r} and this version reads {FORMAT}; "
            "go on with the version of scaling_jax that wrote it, or with another --out"
        )
    saved = Saved(**json.loads(str(doc["saved"])))
    if saved.step != step:
        raise Damaged(f"checkpoint {path} is damaged: it is one of step {saved.step}")
    return saved


def load(folder: epath.Path, saved: Saved, abstract: Leaves) -> Leaves:
    """The arrays of a checkpoint, laid as `abstract` says, which may name some of them only.

    Raises `Damaged` where a bit is another than was written, and `RequestError` where it holds
    other arrays than are asked for.
    """
    path = folder / str(saved.step)
    if strange := abstract.keys() - saved.digests.keys():
        raise RequestError(
            f"checkpoint {path} has no {min(strange)}: go on with the version of scaling_jax that "
            "wrote it, or with another --out"
        )
    leaves, fault = {}, None
    try:
        leaves = _load(path, abstract)
    except Damaged as error:
        fault = str(error)
    if faults := [each for each in gathered("a checkpoint", fault) if each]:
        raise Damaged(faults[0])
    with _damage(path):
        found = digests(leaves)
    if changed := [name for name in abstract if found[name] != saved.digests[name]]:
        raise Damaged(f"checkpoint {path} is damaged: {changed[0]} is not what was written")
    return leaves


def _load(path: epath.Path, abstract: Leaves) -> Leaves:
    some = ocp.options.PyTreeOptions(loading=ocp.options.PyTreeOptions.Loading(partial_load=True))
    # Each process by itself, so that none waits for one that finds its part damaged.
    own = jax.process_index()
    by_itself = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})
    with _damage(path), ocp.Context(pytree_options=some, multiprocessing_options=by_itself):
        return ocp.load(path, dict(abstract))


class Checkpoints:
    """Writes the checkpoints of one cohort; the caller holds the lock of `out`.

    `runs` are the identities of its lanes by run_id. Checkpoints of the steps `kept` stay, and of
    the others the newest `RECENT`. Every method raises `WorkError` where the disk refuses, at the
    latest with the next call: writing goes on while the cohort trains.
    """

    def __init__(self, out: epath.Path, runs: Mapping[str, Any], kept: Collection[int]):
        self.folder = cohort_folder(out, list(runs))
        self._runs = dict(runs)
        self.kept = frozenset(kept)
        self._recent: list[int] = []
        self._orbax: ocp.training.Checkpointer | None = None

    def go_on_from(self, step: int) -> None:
        """The checkpoint of `step` in this folder is whole and the cohort goes on from it."""
        self._recent = [step]

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is still being written."""
        return self._orbax is not None and self._orbax.is_saving_in_progress()

    def save(self, step: int, state: Any, lanes: Sequence[dict[str, Any]]) -> None:
        """Copy the state and begin to write it; the caller may overwrite its arrays at once.

        `lanes` is what the host knows of each, for JSON. A checkpoint of that step which this
        cohort did not write is replaced.
        """
        if step in self._recent:
            return
        leaves = flatten(state)
        saved = Saved(step, self._runs, list(lanes), digests(leaves))
        text = json.dumps(saved._asdict())
        doc = {"format": FORMAT, "saved": text, "digest": _seal(FORMAT, text)}
        with self._refusals(step) as orbax:
            orbax.wait()
            self._recent.append(step)
            orbax.save_async(step, leaves, force=True, overwrite=True, custom_metadata=doc)

    def wait(self) -> None:
        """Until what was saved is on the disk."""
        if self._recent:
            with self._refusals(self._recent[-1]) as orbax:
                orbax.wait()

    def finish(self, step: int) -> None:
        """Once the last state, of `step`, is on the disk, remove what was only to resume from."""
        self.wait()
        if step not in self._recent:
            return
        with self._refusals(step) as orbax:
            there = agreed("the checkpoints", committed_steps(self.folder))
            for other in sorted(set(there) - self.kept - {step}):
                orbax.delete(other)

    def close(self) -> None:
        """End the threads that write; what could not be written has been told before."""
        if self._orbax is not None:
            with contextlib.suppress(Exception):
                self._orbax.close()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Orbax asks which checkpoints stay once the newest is on the disk."""
        stay = self.kept.union(self._recent[-RECENT:])
        return [checkpoint.step in stay for checkpoint in checkpoints]

    @contextlib.contextmanager
    def _refusals(self, step: int) -> Iterator[ocp.training.Checkpointer]:
        try:
            if self._orbax is None:
                self._orbax = ocp.training.Checkpointer(
                    self.folder,
                    preservation_policy=self,
                    cleanup_tmp_directories=True,
                    lightweight_initialize=True,  # which does not trip over a damaged one
                )
            yield self._orbax
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:
            raise WorkError(
                f"could not write checkpoint {self.folder / str(step)}: {_said(error)}; those "
                "before are whole"
            ) from error


def _seal(form: Any, text: Any) -> str:
    return hashlib.sha256(f"{form} {text}".encode()).hexdigest()


@contextlib.contextmanager
def _damage(path: epath.Path) -> Iterator[None]:
    """Whatever Orbax and what is below it raise where files are not what they were."""
    try:
        yield
    except (RequestError, WorkError):
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, _NO_DAMAGE):
                raise WorkError(f"could not read checkpoint {path}: {_said(cause)}") from error
            cause = cause.__cause__ or cause.__context__
        raise Damaged(f"checkpoint {path} is damaged: {_said(error)}") from error


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__
