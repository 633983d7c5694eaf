"""Runs of this package as candidates, on tokens that are made up."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np

from scaling_jax.config import BatchConfig, MeshConfig, ModelConfig, RunConfig
from scaling_jax.data.corpus import Corpus, Split
from scaling_jax.models.counts import counts
from scaling_jax.training.mesh import make_mesh, resolve_mesh
from scaling_jax.training.program import CHUNK_STEPS, Program, compile_program
from tools.benchmarks.timing import Candidate

TRAIN_TOKENS = 2**20
VALIDATION_TOKENS = 2**16


class Shape(NamedTuple):
    """A Transformer's shape; its d_ff is 4 d_model."""

    n_layer: int
    d_model: int
    n_head: int

    def __str__(self) -> str:
        return f"{self.n_layer} x {self.d_model}, {self.n_head} head{'s' * (self.n_head > 1)}"


SMALL, MIDDLE, LARGE = Shape(2, 16, 1), Shape(2, 64, 4), Shape(4, 128, 8)


def run_config(shape: Shape, n_ctx: int = 128, n_vocab: int = 257, **fields: Any) -> RunConfig:
    """A run in float32 on batches of 16 sequences, unless `fields` say otherwise, without end."""
    model = ModelConfig(**shape._asdict(), n_ctx=n_ctx, n_vocab=n_vocab)
    return RunConfig(model=model, **{"batch": BatchConfig(sequences=16), "steps": 10**9, **fields})


def lanes_of(config: RunConfig, n: int) -> list[RunConfig]:
    """The run with `n` seeds."""
    return [config.model_copy(update={"seed": seed}) for seed in range(n)]


def flops_per_token(config: RunConfig) -> int:
    """Model FLOPs that training on one token takes, attention over the full square."""
    return counts(config.model).training_flops_per_token_exact


@cache
def made_up_corpus(n_vocab: int = 257) -> Corpus:
    """Tokens drawn at random: speed does not depend on what they say."""
    rng = np.random.default_rng(0)
    train, validation = (
        Split(rng.integers(0, n_vocab, n).astype(np.uint16), np.array([0]))
        for n in (TRAIN_TOKENS, VALIDATION_TOKENS)
    )
    return Corpus("made up", "0" * 64, n_vocab, n_vocab - 1, float("nan"), train, validation, train)


def compiled(configs: list[RunConfig], mesh: MeshConfig | None = None) -> Program:
    """The cohort's program, on the mesh that a study would choose unless one is given."""
    config = configs[0]
    chosen = mesh or resolve_mesh(config, len(configs), len(jax.devices()))
    return compile_program(configs, made_up_corpus(config.model.n_vocab), make_mesh(chosen))


def train(program: Program, configs: list[RunConfig]) -> Candidate:
    """Chunk after chunk of a cohort; its feed, if it has one, opens and closes with each piece."""
    numbers = program.place(configs)
    state, step = program.init(numbers), 0

    def run(n: int) -> None:
        nonlocal state, step
        end = step + n
        with program.feed(configs, step, end) as feed:
            while step < end:
                length = min(CHUNK_STEPS, end - step)
                state, _ = program.chunk(state, step, length, numbers, feed)
                step += length
            jax.block_until_ready(state)

    return Candidate(run, len(configs) * configs[0].batch_tokens)


def trained(configs: list[RunConfig], mesh: MeshConfig | None = None) -> Candidate:
    """A cohort, compiled and ready to train."""
    return train(compiled(configs, mesh), configs)
