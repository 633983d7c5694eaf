"""Runs that begin from another run's checkpoint: from which, after which, and from what step."""

from __future__ import annotations

import re
from collections.abc import Mapping

from scaling_jax.config import RunConfig
from scaling_jax.errors import RequestError, nearest

_RUN_ID = re.compile(r"[0-9a-f]{12}")

Runs = Mapping[str, RunConfig]


def generations(runs: Runs) -> dict[str, int]:
    """How many of the named runs each one descends from: it trains after all of them.

    Raises `RequestError` for a parent that is neither among the runs nor a run_id, for one that
    ends before the branch begins, and for runs that descend from themselves.
    """
    found: dict[str, int] = {}
    for name in runs:
        path = [name]
        while (parent := _parent(runs, path[-1])) is not None:
            if parent in path:
                raise RequestError(f"run {parent!r} branches from itself: {' from '.join(path)}")
            path.append(parent)
        found[name] = len(path) - 1
    return found


def by_run_id(runs: Runs, corpus_fingerprint: str) -> dict[str, RunConfig]:
    """The runs with the parents of branches named by run_id, as they are known wherever they are.

    Raises `RequestError` as `generations` does, and for two names of one run.
    """
    depth = generations(runs)
    found: dict[str, RunConfig] = {}
    names: dict[str, str] = {}
    for name in sorted(runs, key=lambda name: depth[name]):
        config = runs[name]
        if config.branch is not None and config.branch.run in runs:
            run_id = found[config.branch.run].run_id(corpus_fingerprint)
            branch = config.branch.model_copy(update={"run": run_id})
            config = config.model_copy(update={"branch": branch})
        found[name] = config
        twin = names.setdefault(config.run_id(corpus_fingerprint), name)
        if twin != name:
            raise RequestError(f"runs {twin!r} and {name!r} are the same run")
    return {name: found[name] for name in runs}


def branch_steps(runs: Runs) -> dict[str, set[int]]:
    """The steps from which runs branch, by their parent's name or run_id."""
    found: dict[str, set[int]] = {}
    for config in runs.values():
        if config.branch is not None:
            found.setdefault(config.branch.run, set()).add(config.branch.step)
    return found


def _parent(runs: Runs, name: str) -> str | None:
    """The run among these that a run branches from, if it does."""
    branch = runs[name].branch
    if branch is None:
        return None
    if branch.run in runs:
        steps = runs[branch.run].steps
        if branch.step > steps:
            raise RequestError(
                f"run {name!r} branches at step {branch.step} from {branch.run!r}, which has "
                f"{steps} steps"
            )
        return branch.run
    if not _RUN_ID.fullmatch(branch.run):
        raise RequestError(
            f"run {name!r} branches from {branch.run!r}, which is no run of the study and no "
            f"run_id.{nearest(branch.run, runs)}"
        )
    return None
