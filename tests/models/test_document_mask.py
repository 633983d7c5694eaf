from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scaling_jax.config import EngineConfig, ModelConfig
from scaling_jax.models.kinds import KINDS
from scaling_jax.models.transformer import Transformer

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
SEPARATOR, N_CTX = 28, 130
ENGINES = [
    EngineConfig(attention="xla", layers="unrolled"),
    EngineConfig(attention="blocks", layers="scan", remat="full"),
]


def shape(**changes: Any) -> ModelConfig:
    base = {"n_layer": 2, "d_model": 8, "n_head": 2, "n_ctx": N_CTX, "n_vocab": 29, "d_ff": 20}
    return ModelConfig(**{**base, **changes})


def graph_of(
    model: ModelConfig, engine: EngineConfig = ENGINES[0], separator: int | None = SEPARATOR
) -> Any:
    return nnx.graphdef(nnx.eval_shape(lambda: Transformer(model, nnx.Rngs(0), engine, separator)))


def parameters(model: ModelConfig) -> Any:
    state = nnx.state(nnx.eval_shape(lambda: Transformer(model, nnx.Rngs(0))))
    draws = np.random.default_rng(5)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * draws.standard_normal(leaf.shape, np.float32)), state
    )


def packed() -> np.ndarray:
    """Rows with separators at the very first place, side by side, and at the last."""
    rows = np.random.default_rng(1).integers(0, SEPARATOR, (3, N_CTX), np.int32)
    rows[0, [0, 7, 8, 60, 129]] = SEPARATOR
    rows[1, [64, 100]] = SEPARATOR
    return rows


@functools.cache
def forward(masked: bool, engine: EngineConfig = ENGINES[0]) -> Any:
    """Compiled: logits of parameters and rows."""
    graph = graph_of(shape(document_mask=masked), engine)
    return jax.jit(lambda params, rows: nnx.merge(graph, params)(rows), compiler_options=QUICK)


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_a_packed_row_is_its_documents_one_by_one(engine):
    params, rows = parameters(shape()), packed()
    found = forward(True, engine)(params, rows)
    for row in range(3):
        # A separator begins what is predicted from it.
        starts = np.unique(np.append(0, np.flatnonzero(rows[row] == SEPARATOR)))
        for start, end in zip(starts, [*starts[1:], N_CTX], strict=True):
            own = jax.tree.map(lambda x: x, params)
            own["position"] = jax.tree.map(lambda x, s=start: np.roll(x, -s, 0), own["position"])
            # What follows a document changes nothing in it.
            document = np.roll(rows[row], -start)[None]
            alone = forward(False)(own, np.repeat(document, 3, 0))
            np.testing.assert_allclose(
                found[row, start:end], alone[0, : end - start], rtol=1e-4, atol=2e-5
            )


def test_without_separators_nothing_is_hidden():
    params, rows = parameters(shape()), packed()
    found, plain = (np.asarray(forward(m)(params, rows)) for m in (True, False))
    np.testing.assert_array_equal(found[2], plain[2])
    np.testing.assert_array_equal(found[1, :64], plain[1, :64])
    assert np.abs(found - plain)[1, 64:].max(-1).min() > 1e-4


@pytest.mark.parametrize("tied", [False, True])
def test_norms_of_rows_are_those_of_their_own_gradients(tied):
    model = shape(document_mask=True, tied_embeddings=tied)
    params, rows, graph = parameters(model), jnp.asarray(packed()), graph_of(model)
    kinds = [kind for kind in KINDS if kind != "head" or not tied]

    def loss(params: Any, probes: Any, rows: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, params)(rows, None, probes)
        return jax.nn.logsumexp(logits, -1).mean(1).sum()

    zeros = {kind: jnp.zeros(3, jnp.float32) for kind in kinds}
    sq_norms = jax.jit(jax.grad(loss, 1), compiler_options=QUICK)(params, zeros, rows)
    one_row = jax.jit(jax.grad(loss), compiler_options=QUICK)
    for row in range(3):
        gradient = one_row(params, None, rows[row : row + 1])
        expected = sum(
            np.square(np.asarray(g, np.float64)).sum() for g in jax.tree.leaves(gradient)
        )
        found = sum(float(sq_b[row]) for sq_b in sq_norms.values())
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_mask_needs_the_separator():
    model = shape(document_mask=True)
    with pytest.raises(ValueError, match="needs the id of the separator"):
        nnx.merge(graph_of(model, separator=None), parameters(model))(jnp.asarray(packed()))
