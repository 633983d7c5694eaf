"""The two ways a command can end badly."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RequestError(Exception):
    """The request was wrong: unknown key, missing column, impossible shape. Exit status 2."""


class WorkError(Exception):
    """The request was right and the work failed: a fit refused, a run diverged. Exit status 1."""


def counted(count: int, noun: str) -> str:
    """`1 point`, `2 points`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or the known names when nothing is near; for the end of a message."""
    names = sorted(known)
    same = [name for name in names if name.lower() == word.lower()]
    close = [word] if word in same else same
    close = close or difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(names)}."
