"""The kinds of parameters that a measurement is split into."""

from __future__ import annotations

from typing import Any

KINDS = ("embedding", "attention", "feed_forward", "norms", "head")
"""Token and position tables; the matrices of attention; those of the feed-forward layers; every
LayerNorm's gain and bias; the matrix of the logits, where it is not the token table."""

_KIND_OF = {
    "embedding": "embedding",
    "position": "embedding",
    "qkv": "attention",
    "out": "attention",
    "up": "feed_forward",
    "down": "feed_forward",
    "gain": "norms",
    "bias": "norms",
    "head": "head",
}


def kind_of(path: tuple[Any, ...]) -> str:
    """The kind of the parameter at a tree path of a model's parameters, by its own name.

    Raises `ValueError` for a parameter that belongs to no kind.
    """
    names = [entry.key for entry in path if isinstance(getattr(entry, "key", None), str)]
    name = names[-1] if names else ""
    if name not in _KIND_OF:
        raise ValueError(f"no kind is known for the parameter {'.'.join(names)!r}: add it to kinds")
    return _KIND_OF[name]
