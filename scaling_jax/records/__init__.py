"""The records of runs: two tables, `runs` and `curves`, written by training, read by analysis.

`load` and `Records` need polars and are imported when first asked for, so that a machine that
only trains does without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scaling_jax.records.store import Records, load

__all__ = ["Records", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from scaling_jax.records import store

        return getattr(store, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
