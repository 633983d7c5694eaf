from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scaling_jax.config import EngineConfig, ModelConfig
from scaling_jax.models.transformer import Transformer, dropout

TOKENS = np.random.default_rng(1).integers(0, 29, (4, 12), np.int32)
# These tests compile more than they compute.
KEYS = jax.random.split(jax.random.key(2), 4)


def config(**changes: Any) -> ModelConfig:
    shape = {"n_layer": 2, "d_model": 16, "n_head": 4, "n_ctx": 12, "n_vocab": 29, "d_ff": 40}
    return ModelConfig(**{**shape, **changes})


def some_parameters(**changes: Any) -> tuple[Any, Any]:
    """Graph of a small model, and parameters none of which is zero, so that logits tell something.

    Drawn by numpy, which compiles nothing.
    """
    graph, state = nnx.split(nnx.eval_shape(lambda: Transformer(config(**changes), nnx.Rngs(0))))
    draws = np.random.default_rng(5)
    return graph, jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * draws.standard_normal(leaf.shape, np.float32)), state
    )


@functools.partial(jax.jit, static_argnums=0)
def initial(config: ModelConfig, seed: jax.Array) -> Any:
    return nnx.state(Transformer(config, nnx.Rngs(jax.random.key(seed))))


@functools.partial(jax.jit, static_argnums=0)
def forward(graph: Any, params: Any, tokens_bt: jax.Array, keys_b: jax.Array | None) -> jax.Array:
    return nnx.merge(graph, params)(tokens_bt, keys_b)


def logits(tokens_bt: np.ndarray, keys_b: jax.Array | None = None, **changes: Any) -> np.ndarray:
    return np.asarray(forward(*some_parameters(**changes), jnp.asarray(tokens_bt), keys_b))


@pytest.mark.parametrize(("activation", "tied"), [("relu", False), ("gelu", True), ("silu", False)])
def test_a_later_token_changes_nothing_before_it(activation, tied):
    other = TOKENS.copy()
    other[:, 7] = (other[:, 7] + 1) % 29
    before = logits(TOKENS, tied_embeddings=tied, activation=activation)
    after = logits(other, tied_embeddings=tied, activation=activation)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (np.abs(before - after)[:, 7:].max(-1) > 1e-4).all()


def test_logits_are_one_row_a_token_and_shorter_rows_are_prefixes():
    whole = logits(TOKENS)
    assert whole.shape == (4, 12, 29)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(logits(TOKENS[:, :5]), whole[:, :5], rtol=1e-4, atol=1e-4)


def test_the_order_of_earlier_tokens_matters():
    swapped = TOKENS.copy()
    swapped[:, :2] = [3, 4]
    other = swapped.copy()
    other[:, :2] = [4, 3]
    assert np.abs(logits(swapped) - logits(other))[:, -1].max() > 1e-4


def test_the_first_loss_is_that_of_the_uniform_distribution():
    graph, _ = some_parameters()
    params = initial(config(), jnp.int32(0))
    losses = -jax.nn.log_softmax(forward(graph, params, jnp.asarray(TOKENS), None))
    np.testing.assert_allclose(losses, np.log(29), rtol=1e-6)


def test_a_tied_model_has_no_head_and_reads_the_token_table():
    graph, params = some_parameters(tied_embeddings=True)
    assert "head" not in params
    unseen = next(token for token in range(29) if token not in TOKENS)
    table = params["embedding"][...].at[unseen].set(jnp.zeros(16, jnp.float32))
    emptied = nnx.State({**params, "embedding": nnx.Param(table)})
    before, after = (
        np.asarray(forward(graph, state, jnp.asarray(TOKENS), None)) for state in (params, emptied)
    )
    assert np.abs(before[..., unseen]).max() > 0.01
    np.testing.assert_array_equal(after[..., unseen], 0.0)


def test_the_seed_makes_the_parameters():
    first, again, other = (
        jax.tree.leaves(initial(config(), jnp.int32(seed))) for seed in (0, 0, 1)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_dropout_needs_keys_and_a_rate():
    np.testing.assert_array_equal(logits(TOKENS, dropout=0.3), logits(TOKENS))
    np.testing.assert_array_equal(logits(TOKENS, KEYS), logits(TOKENS))
    assert np.abs(logits(TOKENS, KEYS, dropout=0.3) - logits(TOKENS)).max() > 0.1


def test_a_row_is_dropped_the_same_however_the_batch_is_cut():
    whole = logits(TOKENS, KEYS, dropout=0.3)
    for row in (0, 2):
        cut = slice(row, row + 1)
        alone = logits(TOKENS[cut], KEYS[cut], dropout=0.3)
        np.testing.assert_allclose(alone, whole[cut], rtol=1e-4, atol=1e-4)


ENGINES = [
    EngineConfig(layers="scan"),
    EngineConfig(layers="scan", remat="dots"),
    EngineConfig(layers="unrolled", remat="full"),
]


@functools.partial(jax.jit, static_argnums=0)
def forward_and_gradients(graph: Any, params: Any) -> Any:
    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = nnx.merge(graph, params)(jnp.asarray(TOKENS), KEYS)
        return jax.nn.logsumexp(logits, -1).mean(), logits

    return jax.grad(loss, has_aux=True)(params)


@functools.cache
def plain_forward_and_gradients() -> Any:
    return forward_and_gradients(*some_parameters(dropout=0.3, n_layer=3))


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_the_engine_changes_no_number(engine: EngineConfig):
    shape = config(dropout=0.3, n_layer=3)
    graph = nnx.graphdef(nnx.eval_shape(lambda: Transformer(shape, nnx.Rngs(0), engine)))
    _, params = some_parameters(dropout=0.3, n_layer=3)
    found = jax.tree.leaves(forward_and_gradients(graph, params))
    expected = jax.tree.leaves(plain_forward_and_gradients())
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        scale = float(jnp.abs(other).max())
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6 * scale)


def test_layers_have_parameters_of_their_own_and_one_stack():
    params = initial(config(n_layer=3), jnp.int32(0))
    for leaf in jax.tree.leaves(params["blocks"]):
        assert leaf.shape[0] == 3
    up = np.asarray(params["blocks"]["feed_forward"]["up"][...])
    assert np.abs(up[0] - up[1]).max() > 0.01
    assert np.abs(up[1] - up[2]).max() > 0.01


def test_rows_draw_apart():
    same = np.repeat(TOKENS[:1], 4, axis=0)
    found = logits(same, KEYS, dropout=0.3)
    assert np.abs(found[0] - found[1]).max() > 0.1


def test_dropout_keeps_the_mean_and_its_sites_draw_apart():
    ones = jnp.ones((4, 100, 50), jnp.float32)
    first, second = (np.asarray(dropout(ones, 0.25, KEYS, site)) for site in (0, 1))
    assert set(np.unique(first).tolist()) == {0.0, np.float32(1 / 0.75).item()}
    # 20,000 draws: the standard error of the mean is 0.004
    assert first.mean() == pytest.approx(1.0, abs=0.02)
    assert not np.array_equal(first, second)
