"""The compiled program of a cohort: lanes of runs that differ only in numbers.

`step` counts updates: a state at step s has had s updates, and `chunk` leads from `step0` to
`step0 + n`. Everything that an update needs, its batch included, is computed inside.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from scaling_jax.config import RunConfig
from scaling_jax.data.corpus import Corpus
from scaling_jax.training.evaluation import EvaluationSet, evaluation_set, make_evaluate
from scaling_jax.training.mesh import over_lanes, replicated
from scaling_jax.training.noise import Cut, cut_batch
from scaling_jax.training.step import (
    Measured,
    Numbers,
    TrainState,
    init_state,
    make_update,
    numbers_of,
)

CHUNK_STEPS = 128

# The initial draw runs once and each of its shapes costs as much to optimise as many updates to
# run: it is compiled the quick way.
_COMPILE_QUICKLY: dict[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
# On a CPU the second level of optimisation doubles the time to compile and makes no step faster.
_COMPILE_FOR_CPU: dict[str, Any] = {"xla_backend_optimization_level": 1}


@dataclass(frozen=True)
class Program:
    """Functions compiled for one shape, number of lanes and mesh, and the data they read."""

    cut: Cut
    mesh: Mesh
    tokens: jax.Array
    evaluation: EvaluationSet
    compile_s: float
    _init: Any
    _chunk: Any
    _evaluate: Any
    _evaluation_arrays: tuple[jax.Array, ...]

    def place(self, configs: Sequence[RunConfig]) -> Numbers:
        """The numbers of the cohort's runs, stacked over lanes and laid on the mesh."""
        return _stack_numbers(configs, self.mesh)

    def init(self, numbers: Numbers) -> TrainState:
        """The stacked state at step 0."""
        return self._init(numbers)

    def chunk(
        self, state: TrainState, step0: int, n: int, numbers: Numbers
    ) -> tuple[TrainState, Measured]:
        """`n <= CHUNK_STEPS` updates; what they measured is `[lanes, CHUNK_STEPS]`, n filled.

        `state` is donated.
        """
        return self._chunk(state, np.int32(step0), np.int32(n), numbers, self.tokens)

    def evaluate(self, state: TrainState) -> jax.Array:
        """Validation loss summed by document, `[lanes, documents]`."""
        return self._evaluate(state.params, *self._evaluation_arrays)


def compile_program(configs: Sequence[RunConfig], corpus: Corpus, mesh: Mesh) -> Program:
    """Compiles for a cohort whose runs share one shape."""
    config, shards = configs[0], mesh.shape["data"]
    began = time.perf_counter()
    cut = cut_batch(config, shards)
    evaluation = evaluation_set(
        corpus.validation, config.model.n_ctx, config.evaluation.tokens, shards
    )
    on_lanes, everywhere = over_lanes(mesh), replicated(mesh)
    tokens = jax.device_put(np.asarray(corpus.train.tokens), everywhere)
    evaluation_arrays = jax.device_put(tuple(evaluation[:3]), everywhere)
    numbers = _stack_numbers(configs, mesh)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    options = _COMPILE_FOR_CPU if mesh.devices.flat[0].platform == "cpu" else None
    with jax.set_mesh(mesh), jax.default_matmul_precision(config.matmul_precision):
        init = jax.jit(
            jax.vmap(lambda n: init_state(config, n), spmd_axis_name="lane"),
            out_shardings=on_lanes,
        )
        state = jax.eval_shape(init, numbers)
        chunk = (
            jax.jit(
                _make_chunk(config, cut),
                donate_argnums=0,
                in_shardings=(on_lanes, everywhere, everywhere, on_lanes, everywhere),
                out_shardings=on_lanes,
            )
            .lower(state, count, count, numbers, tokens)
            .compile(compiler_options=options)
        )
        evaluate = jax.vmap(
            make_evaluate(config, len(evaluation.document_tokens)),
            in_axes=(0, None, None, None),
            spmd_axis_name="lane",
        )
        evaluate = (
            jax.jit(
                evaluate,
                in_shardings=(on_lanes, everywhere, everywhere, everywhere),
                out_shardings=on_lanes,
            )
            .lower(state.params, *evaluation_arrays)
            .compile(compiler_options=options)
        )
        init = init.lower(numbers).compile(compiler_options=_COMPILE_QUICKLY)
    return Program(
        cut=cut,
        mesh=mesh,
        tokens=tokens,
        evaluation=evaluation,
        compile_s=time.perf_counter() - began,
        _init=init,
        _chunk=chunk,
        _evaluate=evaluate,
        _evaluation_arrays=evaluation_arrays,
    )


def _stack_numbers(configs: Sequence[RunConfig], mesh: Mesh) -> Numbers:
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *[numbers_of(config) for config in configs])
    return jax.device_put(stacked, over_lanes(mesh))


def _make_chunk(config: RunConfig, cut: Cut) -> Any:
    # A loop with a traced bound, not a scan, so that one compilation serves chunks of any length.
    update = jax.vmap(make_update(config, cut), in_axes=(0, None, 0, None), spmd_axis_name="lane")

    def chunk(
        state: TrainState, step0: jax.Array, n: jax.Array, numbers: Numbers, tokens: jax.Array
    ) -> tuple[TrainState, Measured]:
        abstract = jax.eval_shape(update, state, step0, numbers, tokens)[1]
        window = jax.tree.map(lambda x: jnp.zeros((x.shape[0], CHUNK_STEPS), x.dtype), abstract)

        def body(i: jax.Array, carry: tuple[TrainState, Measured]) -> tuple[TrainState, Measured]:
            state, window = carry
            state, measured = update(state, step0 + i, numbers, tokens)
            return state, jax.tree.map(lambda w, x: w.at[:, i].set(x), window, measured)

        return jax.lax.fori_loop(0, n, body, (state, window))

    return chunk
