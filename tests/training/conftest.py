"""A corpus, configs and programs small enough to compile in seconds, each compiled once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scaling_jax.config import MeshConfig, ModelConfig, RunConfig
from scaling_jax.data.corpus import Corpus, build
from scaling_jax.data.training_set import largest_set
from scaling_jax.models.transformer import Transformer
from scaling_jax.settings import parse_config
from scaling_jax.study import program_key
from scaling_jax.training.mesh import make_mesh
from scaling_jax.training.program import Program, compile_program
from scaling_jax.training.step import Measured, TrainState
from tests.quick_compile import QUICK, compiling_quickly


class BruteForce(NamedTuple):
    """What a batch gives, in float64, one group of rows at a time."""

    loss: float
    gradient: list[np.ndarray]
    grad_sq_small: float
    grad_sq_big: float


@pytest.fixture(scope="session", autouse=True)
def _compile_quickly() -> Iterator[None]:
    with compiling_quickly():
        yield


@pytest.fixture(scope="session")
def quick_jit() -> Callable[..., Any]:
    return functools.partial(jax.jit, compiler_options=QUICK)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Documents of words of uneven frequency, so that there is something to learn."""
    draws = np.random.default_rng(0)
    words = [bytes(draws.integers(97, 123, draws.integers(2, 7)).tolist()) for _ in range(40)]
    documents = [
        (f"file{i}", b" ".join(words[j % 40] for j in draws.zipf(1.5, draws.integers(10, 60))))
        for i in range(200)
    ]
    return build("tiny", documents, tmp_path_factory.mktemp("tiny_corpus"))


@pytest.fixture(scope="session")
def tiny() -> Callable[..., RunConfig]:
    """`tiny(section={field: value}, field=value)`: a small RunConfig with those fields changed."""

    def make(**changes: Any) -> RunConfig:
        doc: dict[str, Any] = {
            "model": {"n_layer": 1, "d_model": 8, "n_head": 2, "n_ctx": 8, "n_vocab": 257},
            "batch": {"sequences": 8, "microbatches": 2},
            "optimizer": {"lr_peak": 1e-2},
            "evaluation": {"tokens": 800},
            "steps": 60,
        }
        for name, value in changes.items():
            doc[name] = {**doc.get(name, {}), **value} if isinstance(value, dict) else value
        return parse_config(doc)

    return make


@pytest.fixture(scope="session")
def compiled(corpus: Corpus) -> Callable[..., Program]:
    """`compiled(config, lanes=1, data=2, ...)`: the program, compiled when first asked for."""
    programs: dict[Any, Program] = {}

    def get(config: RunConfig, lanes: int = 1, **axes: int) -> Program:
        n_tokens = largest_set([config], corpus)
        key = (program_key(config), lanes, n_tokens, tuple(sorted(axes.items())))
        if key not in programs:
            mesh = make_mesh(MeshConfig(**axes))
            with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to an integer
                programs[key] = compile_program([config] * lanes, corpus, mesh)
        return programs[key]

    return get


@pytest.fixture(scope="session")
def train() -> Callable[..., tuple[TrainState, Measured]]:
    """`train(program, configs, lengths)`: state and `[lanes, steps]` after chunks of `lengths`."""

    def run(
        program: Program, configs: Sequence[RunConfig], lengths: Sequence[int]
    ) -> tuple[TrainState, Measured]:
        numbers = program.place(configs)
        state, step, windows = program.init(numbers), 0, []
        with program.feed(configs, 0, sum(lengths)) as feed:
            for n in lengths:
                state, window = program.chunk(state, step, n, numbers, feed)
                windows.append(jax.tree.map(lambda x, n=n: np.asarray(x)[:, :n], window))
                step += n
        return state, jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *windows)

    return run


@pytest.fixture(scope="session")
def some_parameters() -> Callable[[ModelConfig], Any]:
    """Parameters none of which is zero, as the head at step 0 is, so that all gradients count."""

    def draw(config: ModelConfig) -> Any:
        state = nnx.state(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))
        draws = np.random.default_rng(5)
        return jax.tree.map(
            lambda leaf: jnp.asarray(0.5 * draws.standard_normal(leaf.shape, np.float32)), state
        )

    return draw


@pytest.fixture(scope="session")
def brute_force() -> Callable[[ModelConfig, Any, np.ndarray, np.ndarray], BruteForce]:
    """`brute_force(config, params, window_bt, groups)`, groups being the rows of each, `[g, b]`."""

    def compute(
        config: ModelConfig, params: Any, window_bt: np.ndarray, groups: np.ndarray
    ) -> BruteForce:
        with jax.enable_x64(True):
            params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), params)
            losses, gradients = [], []
            for rows in groups:
                weights = np.zeros(len(window_bt))
                weights[rows] = 1 / len(rows)
                loss, gradient = _weighted(config, params, jnp.asarray(window_bt), weights)
                losses.append(float(loss))
                gradients.append([np.asarray(leaf) for leaf in jax.tree.leaves(gradient)])
        mean = [np.mean(leaves, axis=0) for leaves in zip(*gradients, strict=True)]
        return BruteForce(
            loss=float(np.mean(losses)),
            gradient=mean,
            grad_sq_small=float(np.mean([_sq_norm(gradient) for gradient in gradients])),
            grad_sq_big=_sq_norm(mean),
        )

    return compute


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
@functools.partial(jax.value_and_grad, argnums=1)
def _weighted(
    config: ModelConfig, params: Any, window_bt: jax.Array, weights_b: jax.Array
) -> jax.Array:
    graph = nnx.graphdef(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))
    log_p_btv = jax.nn.log_softmax(nnx.merge(graph, params)(window_bt[:, :-1]))
    assert log_p_btv.dtype == jnp.float64
    log_p_bt = jnp.take_along_axis(log_p_btv, window_bt[:, 1:, None], axis=-1)[..., 0]
    return -(weights_b * log_p_bt.mean(1)).sum()


def _sq_norm(leaves: list[np.ndarray]) -> float:
    return float(sum(np.square(leaf).sum() for leaf in leaves))
