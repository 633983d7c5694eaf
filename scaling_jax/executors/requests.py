"""Runs that are asked to stop for good, and when that stops them."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence

from etils import epath

from scaling_jax.errors import RequestError
from scaling_jax.hosts.agreement import agreed, is_writer
from scaling_jax.records.requests import stop_requests

LOOK_S = 20.0  # between two looks for requests while a cohort trains


class Requests:
    """What process 0 finds asked of the runs, by name; all hosts hear the same.

    Lanes share a program, so that one that stopped alone would save nothing and could not go on
    exactly: runs stop once all of their cohort that are open are asked to.
    """

    def __init__(self, out: epath.Path, run_ids: Mapping[str, str], names: Sequence[str]):
        """`names` are the runs that are open; raises `RequestError` naming a request to one of
        them that is damaged or another run's."""
        self._out = out
        self._ids = run_ids
        self._void: set[str] = set()
        self._told: set[str] = set()
        self._known = self._find(names) if is_writer() else {}
        self._looked = -math.inf

    def ignore(self, names: Sequence[str]) -> None:
        """What these were asked up to now does not count."""
        self._void.update(self._known.keys() & set(names))

    def all_asked(self, names: Sequence[str], anew: bool = False) -> dict[str, str] | None:
        """Why each of the runs is to stop; None where one of them is not asked to, or none is left.

        What was found is at most 20 s old, or found `anew`.
        """
        if is_writer() and (anew or time.monotonic() - self._looked >= LOOK_S):
            self._look(names)
        asked = self._known.keys() - self._void
        known = {name: self._known[name] for name in names if name in asked}
        known = agreed("the requests to stop", known)
        return known if names and len(known) == len(names) else None

    def _look(self, names: Sequence[str]) -> None:
        try:
            self._known = self._find(names)
        except RequestError as error:  # the next start refuses it; what is trained goes on
            if str(error) not in self._told:
                print(f"scaling-jax: {error}", file=sys.stderr)
            self._told.add(str(error))
        self._looked = time.monotonic()

    def _find(self, names: Sequence[str]) -> dict[str, str]:
        found = stop_requests(self._out, [self._ids[name] for name in names])
        return {
            name: f"{request.law}: {request.reason}"
            for name in names
            if (request := found.get(self._ids[name])) is not None
        }
