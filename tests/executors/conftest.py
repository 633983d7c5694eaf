from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import pytest
from jax.sharding import Mesh

from scaling_jax.config import RunConfig
from scaling_jax.data.corpus import Corpus, build
from scaling_jax.data.training_set import largest_set
from scaling_jax.study import program_key
from scaling_jax.training.program import Program, compile_program

Compile = Callable[[Sequence[RunConfig], Corpus, Mesh], Program]


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    documents = [(f"file{i}.py", f"for item in range({i}):\n".encode() * 9) for i in range(200)]
    return build("tiny", documents, tmp_path_factory.mktemp("tiny_corpus"))


@pytest.fixture(scope="session")
def compile_once() -> Compile:
    """`compile_program`, which keeps what it has compiled: that is what takes the time."""
    known: dict[tuple[str, int, Mesh, str, int], Program] = {}

    def compiled(configs: Sequence[RunConfig], corpus: Corpus, mesh: Mesh) -> Program:
        n_tokens = largest_set(configs, corpus)
        key = (program_key(configs[0]), len(configs), mesh, corpus.fingerprint, n_tokens)
        if key not in known:
            with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to an integer
                known[key] = compile_program(configs, corpus, mesh)
        return known[key]

    return compiled
