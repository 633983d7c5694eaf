"""What must be the same on all hosts, compared before it can do harm."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import secrets
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from etils import epath

from scaling_jax.errors import RequestError
from scaling_jax.hosts.agreement import agreed, alone, gathered, is_writer
from scaling_jax.records.files import reading, refusals, write_atomic
from scaling_jax.study import Study

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
MARK = ".hosts"
_SEEN_S = 30.0  # a file system over a network may show late what is new


def require_same(facts: Mapping[str, str], wait_s: float | None = None) -> None:
    """Compares what this host says of itself with what the others say.

    Raises `RequestError` on every host where they differ, naming in what and on which.
    """
    said = gathered("the checks", dict(facts), *(() if wait_s is None else (wait_s,)))
    faults = []
    for name in facts:
        holders: dict[str, list[int]] = {}
        for index, each in enumerate(said):
            holders.setdefault(each.get(name, "none"), []).append(index)
        if len(holders) > 1:
            sides = "; ".join(f"{_named(who)}: {value}" for value, who in holders.items())
            faults.append(f"the hosts differ in {name} ({sides})")
    if faults:
        raise RequestError(", and ".join(faults))


def code_facts() -> dict[str, str]:
    """The versions and the source of what is run."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    versions = " ".join(f"{name} {version(name)}" for name in _PACKAGES)
    python = ".".join(platform.python_version_tuple()[:2])
    return {
        "the code of scaling_jax": f"{version('scaling_jax')} {digest.hexdigest()[:12]}",
        "packages": f"python {python} {versions}",
    }


def study_facts(study: Study) -> dict[str, str]:
    """Everything that a study declares of its runs, and how they are to be laid out."""
    runs = {name: config.model_dump(mode="json") for name, config in study.runs.items()}
    digest = hashlib.sha256(json.dumps([study.name, runs]).encode()).hexdigest()[:12]
    return {"the study": f"{study.name} of {len(runs)} run(s), {digest}"}


def require_shared(out: epath.Path) -> None:
    """That all hosts see the folder that process 0 writes to.

    Raises `RequestError` on every host where one does not.
    """
    if alone():
        return
    mark = out / MARK
    told = secrets.token_hex(8)
    if is_writer():
        write_atomic(mark, told.encode())
    told = agreed("a mark", told)
    seen = gathered("the folder", _sees(mark, told))
    if is_writer():
        with refusals(mark):
            mark.unlink(missing_ok=True)
    if blind := [index for index, sees in enumerate(seen) if not sees]:
        raise RequestError(
            f"--out {out} is another folder on {_named(blind)} than on process 0: name one that "
            "all hosts share"
        )


def _sees(mark: epath.Path, told: str) -> bool:
    deadline = time.monotonic() + _SEEN_S
    while True:
        with contextlib.suppress(OSError, RequestError), reading(mark):
            if mark.read_bytes() == told.encode():
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)


def _named(indices: list[int]) -> str:
    return ("process " if len(indices) == 1 else "processes ") + ", ".join(map(str, indices))
