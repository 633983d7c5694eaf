"""The compiled program of a cohort: lanes of runs that differ only in numbers.

`step` counts updates: a state at step s has had s updates, and `chunk` leads from `step0` to
`step0 + n`. Everything that an update needs is computed inside, its batch too where the corpus
lies on the device; elsewhere the host sends the same batches.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from scaling_jax.config import EngineConfig, RunConfig
from scaling_jax.data.corpus import Corpus
from scaling_jax.data.feed import HostFeed
from scaling_jax.data.training_set import TrainingSet, training_set
from scaling_jax.training.batches import (
    CHUNK_STEPS,
    Resident,
    abstract_fed,
    make_fetch,
    resident,
    send,
)
from scaling_jax.training.engine import device_memory, resolve_engine
from scaling_jax.training.evaluation import EvaluationSet, evaluation_set, make_evaluate
from scaling_jax.training.mesh import mesh_config
from scaling_jax.training.noise import Cut, cut_batch
from scaling_jax.training.sharding import (
    fed_sharding,
    lay,
    over_lanes,
    readable,
    replicated,
    share_of,
    state_shardings,
)
from scaling_jax.training.step import (
    Measured,
    Numbers,
    TrainState,
    init_state,
    make_update,
    numbers_of,
)

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

    sequences: int
    """Of a batch."""
    cut: Cut
    mesh: Mesh
    engine: EngineConfig
    corpus: Corpus
    source: TrainingSet
    evaluation: EvaluationSet
    compile_s: float
    memory: int
    """Bytes a device that the compiler reports for the chunk, the corpus included."""
    _resident: Resident | None
    _init: Any
    _chunk: Any
    _evaluate: Any
    _evaluation_windows: jax.Array
    _of_batch: dict[int, Program]

    def place(self, configs: Sequence[RunConfig]) -> Numbers:
        """The numbers of the cohort's runs, stacked over lanes and laid on the mesh."""
        return _stack_numbers(configs, self.source, self.mesh)

    def init(self, numbers: Numbers) -> TrainState:
        """The stacked state at step 0."""
        return self._init(numbers)

    def feed(
        self, configs: Sequence[RunConfig], start: int, stop: int
    ) -> AbstractContextManager[HostFeed | None]:
        """What to hand to `chunk` from step `start` to `stop`: None where tokens are resident."""
        if self._resident is not None:
            return nullcontext()
        n_tokens = len(self.source.tokens)
        return HostFeed(
            self.source,
            seeds=[config.data.seed for config in configs],
            n_tokens=[config.unique_tokens(n_tokens) for config in configs],
            batch=configs[0].batch.sequences,
            start_step=start,
            stop_step=stop,
            own=share_of(fed_sharding(self.mesh), len(configs), configs[0].batch.sequences),
        )

    def chunk(
        self, state: TrainState, step0: int, n: int, numbers: Numbers, feed: HostFeed | None = None
    ) -> tuple[TrainState, Measured]:
        """`n <= CHUNK_STEPS` updates; what they measured is `[lanes, CHUNK_STEPS, ...]`, n filled.

        `state` is donated; `feed` stands at `step0`.
        """
        source = (
            self._resident
            if feed is None
            else send(feed.take(n), self.mesh, len(numbers.seed), self.sequences)
        )
        return self._chunk(state, np.int32(step0), np.int32(n), numbers, source)

    def evaluate(self, state: TrainState) -> jax.Array:
        """The loss of each target of the evaluation set, nats: `[lanes, batches, rows, n_ctx]`."""
        return self._evaluate(state.params, self._evaluation_windows)

    def at_batch(self, configs: Sequence[RunConfig]) -> Program:
        """The program of these runs at another batch, with its data; compiled once for a size.

        A state of one is a state of the other.
        """
        sequences = configs[0].batch.sequences
        if sequences == self.sequences:
            return self
        if sequences not in self._of_batch:
            began = time.perf_counter()
            cut = cut_batch(configs[0], mesh_config(self.mesh))
            chunk = _compile_chunk(
                configs, self.engine, cut, self.mesh, self.source, self._resident
            )
            self._of_batch[sequences] = replace(
                self,
                sequences=sequences,
                cut=cut,
                compile_s=time.perf_counter() - began,
                memory=_compiled_bytes(chunk),
                _chunk=chunk,
                _of_batch={},
            )
        return self._of_batch[sequences]


def abstract_state(config: RunConfig, n_lanes: int, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of the state of `n_lanes` runs like `config` on a mesh."""
    one_lane = jax.eval_shape(lambda: init_state(config, numbers_of(config, n_tokens=1)))
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((n_lanes, *x.shape), x.dtype), one_lane)
    return jax.tree.map(
        lambda x, laid: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=laid),
        stacked,
        state_shardings(stacked, mesh),
    )


def compile_program(configs: Sequence[RunConfig], corpus: Corpus, mesh: Mesh) -> Program:
    """Compiles for a cohort whose runs share one shape."""
    config, sizes = configs[0], mesh_config(mesh)
    began = time.perf_counter()
    platform = mesh.devices.flat[0].platform
    source = training_set(configs, corpus)
    n_tokens, itemsize = len(source.tokens), source.tokens.dtype.itemsize
    engine = resolve_engine(config, n_tokens, itemsize, platform, device_memory())
    cut = cut_batch(config, sizes)
    evaluation = evaluation_set(config, corpus, (sizes.data or 1) * (sizes.fsdp or 1))
    everywhere = replicated(mesh)
    evaluation_windows = lay(evaluation.window_nbt, everywhere)
    held = resident(source, mesh) if engine.feed == "device" else None
    chunk = _compile_chunk(configs, engine, cut, mesh, source, held)
    numbers = _stack_numbers(configs, source, mesh)
    with jax.set_mesh(mesh), jax.default_matmul_precision(config.matmul_precision):
        init = jax.vmap(lambda n: init_state(config, n), spmd_axis_name="lane")
        state = jax.eval_shape(init, numbers)
        laid_state = state_shardings(state, mesh)
        evaluate = jax.vmap(
            make_evaluate(config, engine, corpus.separator),
            in_axes=(0, None),
            spmd_axis_name="lane",
        )
        evaluate = (
            jax.jit(
                evaluate,
                in_shardings=(laid_state.params, everywhere),
                out_shardings=readable(mesh),
            )
            .lower(state.params, evaluation_windows)
            .compile(compiler_options=_compiler_options(platform, mesh.size))
        )
        init = (
            jax.jit(init, out_shardings=laid_state)
            .lower(numbers)
            .compile(compiler_options=_COMPILE_QUICKLY if platform == "cpu" else None)
        )
    return Program(
        sequences=config.batch.sequences,
        cut=cut,
        mesh=mesh,
        engine=engine,
        corpus=corpus,
        source=source,
        evaluation=evaluation,
        compile_s=time.perf_counter() - began,
        memory=_compiled_bytes(chunk),
        _resident=held,
        _init=init,
        _chunk=chunk,
        _evaluate=evaluate,
        _evaluation_windows=evaluation_windows,
        _of_batch={},
    )


def _compile_chunk(
    configs: Sequence[RunConfig],
    engine: EngineConfig,
    cut: Cut,
    mesh: Mesh,
    source: TrainingSet,
    held: Resident | None,
) -> Any:
    """The chunk of runs of one shape, that takes its batches from `held` or from the host."""
    config, on_lanes, everywhere = configs[0], over_lanes(mesh), replicated(mesh)
    read, laid = held, everywhere
    if held is None:
        read, laid = abstract_fed(source, config, len(configs)), fed_sharding(mesh)
    state = abstract_state(config, len(configs), mesh)
    laid_state = jax.tree.map(lambda x: x.sharding, state)
    numbers, count = _stack_numbers(configs, source, mesh), jax.ShapeDtypeStruct((), jnp.int32)
    with jax.set_mesh(mesh), jax.default_matmul_precision(config.matmul_precision):
        return (
            jax.jit(
                _make_chunk(config, engine, cut, source.separator),
                donate_argnums=0,
                in_shardings=(laid_state, everywhere, everywhere, on_lanes, laid),
                out_shardings=(laid_state, readable(mesh)),
            )
            .lower(state, count, count, numbers, read)
            .compile(compiler_options=_compiler_options(mesh.devices.flat[0].platform, mesh.size))
        )


def _compiler_options(platform: str, n_devices: int) -> dict[str, Any] | None:
    if platform != "cpu":
        return None
    # Devices are the cores: a product that spreads over several waits for the other device's.
    return _COMPILE_FOR_CPU | {"xla_cpu_multi_thread_eigen": n_devices == 1}


def _compiled_bytes(compiled: Any) -> int:
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def _stack_numbers(configs: Sequence[RunConfig], source: TrainingSet, mesh: Mesh) -> Numbers:
    def numbers(config: RunConfig) -> Numbers:
        n_tokens = config.unique_tokens(len(source.tokens))
        return numbers_of(config, n_tokens, source.windows_an_epoch(n_tokens))

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *map(numbers, configs))
    return lay(stacked, over_lanes(mesh))


def _make_chunk(config: RunConfig, engine: EngineConfig, cut: Cut, separator: int) -> Any:
    # A loop with a traced bound, not a scan, so that one compilation serves chunks of any length.
    update = jax.vmap(
        make_update(config, engine, cut, separator),
        in_axes=(0, None, 0, 0, 0),
        spmd_axis_name="lane",
    )
    make_fetch_of = make_fetch(config, engine, separator)

    def chunk(
        state: TrainState, step0: jax.Array, n: jax.Array, numbers: Numbers, source: Any
    ) -> tuple[TrainState, Measured]:
        fetch = make_fetch_of(step0, numbers, source)

        def one(i: jax.Array, state: TrainState) -> tuple[TrainState, Measured]:
            return update(state, step0 + i, numbers, *fetch(i))

        abstract = jax.eval_shape(one, step0, state)[1]
        window = jax.tree.map(
            lambda x: jnp.zeros((x.shape[0], CHUNK_STEPS, *x.shape[1:]), x.dtype), abstract
        )

        def body(i: jax.Array, carry: tuple[TrainState, Measured]) -> tuple[TrainState, Measured]:
            state, window = carry
            state, measured = one(i, state)
            return state, jax.tree.map(lambda w, x: w.at[:, i].set(x), window, measured)

        return jax.lax.fori_loop(0, n, body, (state, window))

    return chunk
