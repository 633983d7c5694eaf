"""Where what can be made again is kept: prepared corpora and compiled programs."""

from __future__ import annotations

import os
from pathlib import Path

# Below it a program is compiled as fast as it is read.
_LEAST_SECONDS = 0.3


def default_cache() -> Path:
    """The folder of what can be made again: `SCALING_JAX_CACHE`, or one in the home folder."""
    named = os.environ.get("SCALING_JAX_CACHE")
    return Path(os.path.expanduser(named or "~/.cache/scaling_jax"))


def keep_compiled() -> None:
    """Keep compiled programs from one process to the next, unless the environment says where."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(default_cache() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
