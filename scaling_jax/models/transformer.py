"""A decoder-only Transformer with the conventions of Kaplan et al. (2020), §2.1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from scaling_jax.config import EngineConfig, ModelConfig
from scaling_jax.errors import nearest
from scaling_jax.models.attention import attend
from scaling_jax.models.kinds import KINDS
from scaling_jax.models.per_sequence import (
    affine,
    linear,
    tied_head,
    watch_tables,
    watch_tied_tables,
)

_ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu, "silu": jax.nn.silu}
_PLAIN = EngineConfig(attention="xla", layers="unrolled")
_SAVED: dict[str, Callable[..., bool]] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], scale: float) -> nnx.Param:
    return nnx.Param(scale * jax.random.normal(rngs.params(), shape, jnp.float32))


def _by_rows(x_btd: jax.Array) -> jax.Array:
    # Said nothing, XLA takes the cut of the tables along d_model over into the residual stream, and
    # every device of `fsdp` then holds all rows.
    if jax.sharding.get_abstract_mesh().empty:
        return x_btd
    return jax.lax.with_sharding_constraint(x_btd, PartitionSpec("fsdp", None, None))


class LayerNorm(nnx.Module):
    """Normalises the last axis in float32, then a gain and a bias."""

    def __init__(self, d_model: int):
        self.gain = nnx.Param(jnp.ones(d_model, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(d_model, jnp.float32))

    def __call__(self, x_btd: jax.Array, probe_b: jax.Array | None = None) -> jax.Array:
        dtype, x_btd = x_btd.dtype, x_btd.astype(jnp.float32)
        centred = x_btd - x_btd.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        normal = (centred * jax.lax.rsqrt(variance + 1e-5)).astype(dtype)
        return affine(normal, self.gain[...], self.bias[...], probe_b)


class Attention(nnx.Module):
    """Causal multi-head attention, d_attn = d_model, no biases."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, implementation: str):
        d, heads = config.d_model, config.n_head
        self.implementation = implementation
        self.qkv = _normal(rngs, (d, heads, 3, d // heads), d**-0.5)
        self.out = _normal(rngs, (heads, d // heads, d), (2 * config.n_layer * d) ** -0.5)

    def __call__(
        self,
        x_btd: jax.Array,
        segments_bt: jax.Array | None = None,
        probe_b: jax.Array | None = None,
    ) -> jax.Array:
        d, heads, _, d_head = self.qkv.shape
        qkv_bthxc = linear(x_btd, self.qkv[...].reshape(d, 3 * d), probe_b).reshape(
            *x_btd.shape[:2], heads, 3, d_head
        )
        q_bthc, k_bthc, v_bthc = jnp.unstack(qkv_bthxc, axis=3)
        mixed_bthc = attend(q_bthc, k_bthc, v_bthc, self.implementation, segments_bt)
        return linear(mixed_bthc.reshape(x_btd.shape), self.out[...].reshape(d, d), probe_b)


class FeedForward(nnx.Module):
    """d_model -> d_ff -> d_model, no biases."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        d, d_ff = config.d_model, config.d_ff
        self.activation = config.activation
        self.up = _normal(rngs, (d, d_ff), d**-0.5)
        self.down = _normal(rngs, (d_ff, d), (2 * config.n_layer * d_ff) ** -0.5)

    def __call__(self, x_btd: jax.Array, probe_b: jax.Array | None = None) -> jax.Array:
        hidden_btf = _ACTIVATIONS[self.activation](linear(x_btd, self.up[...], probe_b))
        return linear(hidden_btf, self.down[...], probe_b)


class Block(nnx.Module):
    """Pre-LayerNorm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, attention: str):
        self.norm_attention = LayerNorm(config.d_model)
        self.attention = Attention(config, rngs, attention)
        self.norm_feed_forward = LayerNorm(config.d_model)
        self.feed_forward = FeedForward(config, rngs)
        self.dropout = config.dropout

    def __call__(
        self,
        x_btd: jax.Array,
        segments_bt: jax.Array | None,
        keys_b: jax.Array | None,
        probes: Mapping[str, jax.Array],
    ) -> jax.Array:
        norms_b = probes.get("norms")
        y_btd = self.attention(
            self.norm_attention(x_btd, norms_b), segments_bt, probes.get("attention")
        )
        x_btd = _by_rows(x_btd + self._drop(y_btd, keys_b, 0))
        y_btd = self.feed_forward(
            self.norm_feed_forward(x_btd, norms_b), probes.get("feed_forward")
        )
        return _by_rows(x_btd + self._drop(y_btd, keys_b, 1))

    def _drop(self, x_btd: jax.Array, keys_b: jax.Array | None, site: int) -> jax.Array:
        return x_btd if keys_b is None else dropout(x_btd, self.dropout, keys_b, site)


class Transformer(nnx.Module):
    """Tokens to logits: learned positions, pre-LayerNorm blocks, a last LayerNorm, a linear head.

    Linear maps have no biases. The matrices that write to the residual stream start smaller by
    sqrt(2 n_layer); an untied head starts at zero, so that the first loss is ln(n_vocab). The
    parameters of the blocks are stacked along a leading axis of layers, whether they are scanned
    or not.

    Where the config has a `document_mask`, `separator` is the token that ends a document. It is the
    input that the next document's first token is predicted from, and belongs to that document.
    Positions stay those of the row.
    """

    def __init__(
        self,
        config: ModelConfig,
        rngs: nnx.Rngs,
        engine: EngineConfig = _PLAIN,
        separator: int | None = None,
    ):
        d = config.d_model
        self.config = config
        self.engine = engine
        self.separator = separator

        @nnx.split_rngs(splits=config.n_layer)
        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs, engine.attention or "xla")

        self.embedding = _normal(rngs, (config.n_vocab, d), d**-0.5)
        self.position = _normal(rngs, (config.n_ctx, d), 0.1 * d**-0.5)
        self.blocks = stack(rngs)
        self.norm = LayerNorm(d)
        if not config.tied_embeddings:
            self.head = nnx.Param(jnp.zeros((d, config.n_vocab), jnp.float32))

    def __call__(
        self,
        tokens_bt: jax.Array,
        dropout_keys_b: jax.Array | None = None,
        probes: Mapping[str, jax.Array] | None = None,
    ) -> jax.Array:
        """Logits [b, t, n_vocab] of `tokens_bt`; dropout acts where a key a row is given.

        `probes` maps some of `KINDS` to float32 zeros [b]. The gradient of a loss with respect to
        a probe is each row's squared norm, in that kind, of what the row adds to the gradient of
        the parameters (see `per_sequence`). A tied model has nothing of the kind `head`.
        Raises `ValueError` for a probe of another name, and without the separator of a mask.
        """
        probes = _checked(probes or {})
        segments_bt = self._segments(tokens_bt)
        tables_b, tied, zeros_btd = probes.get("embedding"), self.config.tied_embeddings, None
        x_btd = self.embedding[...][tokens_bt] + self.position[None, : tokens_bt.shape[1]]
        if tables_b is not None and tied:
            x_btd, zeros_btd = watch_tied_tables(x_btd, tokens_bt, tables_b)
        elif tables_b is not None:
            x_btd = watch_tables(x_btd, tokens_bt, tables_b)
        x_btd = _by_rows(x_btd)
        keys_b = dropout_keys_b if self.config.dropout else None
        if keys_b is not None:
            x_btd = dropout(x_btd, self.config.dropout, keys_b, 0)
        x_btd = self._through_blocks(x_btd, segments_bt, keys_b, probes)
        x_btd = self.norm(x_btd, probes.get("norms"))
        if tied and tables_b is not None:
            return tied_head(x_btd, self.embedding[...].T, tokens_bt, zeros_btd, tables_b)
        if tied:
            return linear(x_btd, self.embedding[...].T)
        return linear(x_btd, self.head[...], probes.get("head"))

    def _segments(self, tokens_bt: jax.Array) -> jax.Array | None:
        """Documents of a row, counted from its first: int32 [b, t]; None where nothing hides."""
        if not self.config.document_mask:
            return None
        if self.separator is None:
            raise ValueError("a document mask needs the id of the separator")
        return jnp.cumsum((tokens_bt == self.separator).astype(jnp.int32), axis=1)

    def _through_blocks(
        self,
        x_btd: jax.Array,
        segments_bt: jax.Array | None,
        keys_b: jax.Array | None,
        probes: Mapping[str, jax.Array],
    ) -> jax.Array:
        graph, params_l = nnx.split(self.blocks)

        def layer(x_btd: jax.Array, index_params: tuple[Any, Any]) -> tuple[jax.Array, None]:
            index, params = index_params
            layer_keys_b = None if keys_b is None else _fold_in(keys_b, index + 1)
            return nnx.merge(graph, params)(x_btd, segments_bt, layer_keys_b, probes), None

        if self.engine.remat != "none":
            layer = jax.checkpoint(layer, policy=_SAVED[self.engine.remat])
        n_layer = self.config.n_layer
        if self.engine.layers == "scan":
            return jax.lax.scan(layer, x_btd, (jnp.arange(n_layer), params_l))[0]
        leaves, structure = jax.tree.flatten(params_l)
        by_layer = zip(*(jax.lax.split(leaf, (1,) * n_layer) for leaf in leaves), strict=True)
        for index, leaves in enumerate(by_layer):
            params = jax.tree.unflatten(structure, [leaf[0] for leaf in leaves])
            x_btd, _ = layer(x_btd, (index, params))
        return x_btd


def _checked(probes: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
    unknown = sorted(set(probes) - set(KINDS))
    if unknown:
        raise ValueError(
            f"no parameters are of the kind {unknown[0]!r}.{nearest(unknown[0], KINDS)}"
        )
    return probes


def dropout(x_btd: jax.Array, rate: float, keys_b: jax.Array, site: int) -> jax.Array:
    """Zeroes a `rate` of the features and scales the rest by 1/(1 - rate).

    Each row draws from its own key, so that a row's mask does not depend on how a batch is cut.
    """
    keep_btd = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x_btd.shape[1:]))(
        _fold_in(keys_b, site)
    )
    return jnp.where(keep_btd, x_btd / (1.0 - rate), 0.0)


def _fold_in(keys_b: jax.Array, data: jax.Array | int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys_b)
