"""JAX as strict as it can be: eight CPU devices, and no silent promotion of dtype or rank."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest

os.environ["JAX_PLATFORMS"] = "cpu"  # also for the processes that tests start

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The first example compiles; a deadline would measure that.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")


@pytest.fixture(scope="session", autouse=True)
def corpus_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One corpus cache for all tests, and never the user's."""
    folder = str(tmp_path_factory.mktemp("corpus_cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALING_JAX_CACHE", folder)
        yield folder
