from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from scaling_jax.config import ModelConfig
from scaling_jax.models.counts import counts
from scaling_jax.models.transformer import Transformer

SHAPES = [
    ModelConfig(n_layer=1, d_model=8, n_head=1, n_ctx=16, d_ff=32),
    ModelConfig(
        n_layer=2, d_model=12, n_head=3, n_ctx=7, n_vocab=50, d_ff=31, tied_embeddings=True
    ),
    ModelConfig(n_layer=3, d_model=64, n_head=4, n_ctx=33, n_vocab=11, d_ff=256, activation="relu"),
    ModelConfig(n_layer=2, d_model=48, n_head=2, n_ctx=64, d_ff=100, tied_embeddings=True),
]


def kaplan(n_layer: int, d_model: int) -> ModelConfig:
    return ModelConfig(
        n_layer=n_layer, d_model=d_model, n_head=1, n_ctx=1024, n_vocab=50257, d_ff=4 * d_model
    )


def abstract_forward(config: ModelConfig) -> tuple[Callable[..., jax.Array], Any]:
    graph, params = nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))
    return lambda params, tokens_bt: nnx.merge(graph, params)(tokens_bt), params


def tokens(batch: int, config: ModelConfig) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, config.n_ctx), jnp.int32)


def inner_jaxprs(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for item in value:
            yield from inner_jaxprs(item)
    elif hasattr(value, "eqns") or hasattr(value, "jaxpr"):
        yield getattr(value, "jaxpr", value)


def dot_general_flops(jaxpr: Any) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        assert eqn.primitive.name not in ("while", "cond", "conv_general_dilated")
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * depth * math.prod(eqn.outvars[0].aval.shape)
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for value in eqn.params.values():
            total += times * sum(map(dot_general_flops, inner_jaxprs(value)))
    return total


# Kaplan et al. (2020), eq. 2.1
@pytest.mark.parametrize(
    ("n_layer", "d_model", "expected"),
    [
        (48, 1600, 1_474_560_000),
        (6, 4288, 1_323_859_968),
        (207, 768, 1_465_122_816),
        (2, 128, 393_216),
        (36, 1280, 707_788_800),
        (12, 768, 84_934_656),
        (1, 8, 768),
    ],
)
def test_parameters_of_published_shapes(n_layer, d_model, expected):
    assert counts(kaplan(n_layer, d_model)).params_non_embedding == expected


def test_flops_of_the_85m_model():
    found = counts(kaplan(12, 768))
    assert found.flops_per_token_kaplan == 2 * 84_934_656 + 2 * 12 * 1024 * 768 == 188_743_680
    assert found.flops_per_token_attention == 2 * found.flops_per_token_attention_causal
    assert found.flops_per_token_embedding == 4 * 768
    assert found.params_embedding == (50257 + 1024) * 768
    assert found.training_flops_per_token_6n == 6 * 84_934_656


@pytest.mark.parametrize(
    ("n_layer", "d_model", "ratio"), [(2, 128, 16.4), (12, 768, 0.454), (48, 1600, 0.055)]
)
def test_logits_relative_to_the_blocks(n_layer, d_model, ratio):
    found = counts(kaplan(n_layer, d_model))
    assert found.flops_per_token_head / found.flops_per_token_blocks == pytest.approx(ratio, 0.01)


def test_context_relative_to_the_blocks():
    found = counts(kaplan(12, 768))
    share = found.flops_per_token_attention_causal / found.flops_per_token_blocks
    assert share == pytest.approx(1024 / (12 * 768))


@pytest.mark.parametrize("config", SHAPES)
def test_every_array_of_the_module_is_counted_in_its_part(config):
    module = nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0)))
    found = counts(config)

    def size(*parts: Any) -> int:
        return sum(
            math.prod(leaf.shape) for part in parts for leaf in jax.tree.leaves(nnx.state(part))
        )

    blocks = module.blocks
    matrices = size(blocks.attention, blocks.feed_forward)
    norms = size(blocks.norm_attention, blocks.norm_feed_forward)
    tables = math.prod(module.embedding.shape) + math.prod(module.position.shape)
    head = 0 if config.tied_embeddings else math.prod(module.head.shape)
    assert found.params_non_embedding == matrices
    assert found.params_embedding == tables
    assert found.params_head == head
    assert found.params_other == norms + size(module.norm)
    assert found.params_total == size(module)


@pytest.mark.parametrize("config", SHAPES)
def test_dot_generals_of_the_forward_are_the_counts(config):
    forward, params = abstract_forward(config)
    jaxpr = jax.make_jaxpr(forward)(params, tokens(3, config))
    found = counts(config)
    expected = (
        found.flops_per_token_blocks + found.flops_per_token_attention + found.flops_per_token_head
    )
    assert dot_general_flops(jaxpr.jaxpr) == 3 * config.n_ctx * expected


def test_the_walk_counts_what_is_inside():
    def work(x: jax.Array) -> jax.Array:
        twice = jax.jit(lambda y: y @ y)
        return jax.lax.scan(lambda carry, _: (twice(carry) @ carry, None), x, length=5)[0]

    jaxpr = jax.make_jaxpr(work)(jnp.ones((4, 4)))
    assert dot_general_flops(jaxpr.jaxpr) == 5 * 2 * (2 * 4**3)


@pytest.mark.parametrize("tied", [False, True])
def test_xla_counts_the_same_forward(tied):
    config = ModelConfig(
        n_layer=2, d_model=256, n_head=4, n_ctx=128, d_ff=1024, tied_embeddings=tied
    )
    forward, params = abstract_forward(config)
    compiled = jax.jit(forward).lower(params, tokens(2, config)).compile()
    analysis = compiled.cost_analysis()
    assert analysis is not None
    a_token = analysis["flops"] / (2 * config.n_ctx)
    assert a_token == pytest.approx(counts(config).training_flops_per_token_exact / 3, rel=0.02)
