"""Compilation for tests, which compile far more than they compute: four times quicker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import pytest

QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}


@contextmanager
def compiling_quickly() -> Iterator[None]:
    """Inside, what is lowered and compiled is compiled the quick way."""
    plain = jax.stages.Lowered.compile

    def quick(self: Any, compiler_options: dict[str, Any] | None = None, **rest: Any) -> Any:
        return plain(self, {**QUICK, **(compiler_options or {})}, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", quick)
        yield
