"""A decoder-only Transformer with the conventions of Kaplan et al. (2020), §2.1."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from scaling_jax.config import ModelConfig

_ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu, "silu": jax.nn.silu}


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], scale: float) -> nnx.Param:
    return nnx.Param(scale * jax.random.normal(rngs.params(), shape, jnp.float32))


class LayerNorm(nnx.Module):
    """Normalises the last axis, then a gain and a bias."""

    def __init__(self, d_model: int):
        self.gain = nnx.Param(jnp.ones(d_model, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(d_model, jnp.float32))

    def __call__(self, x_btd: jax.Array) -> jax.Array:
        mean = x_btd.mean(-1, keepdims=True)
        centred = x_btd - mean
        variance = jnp.square(centred).mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + 1e-5)
        return normal * self.gain[None, None, :] + self.bias[None, None, :]


class Attention(nnx.Module):
    """Causal multi-head attention over the full square, d_attn = d_model, no biases."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        d, heads = config.d_model, config.n_head
        self.qkv = _normal(rngs, (d, 3, heads, d // heads), d**-0.5)
        self.out = _normal(rngs, (heads, d // heads, d), (2 * config.n_layer * d) ** -0.5)

    def __call__(self, x_btd: jax.Array) -> jax.Array:
        q_bthc, k_bthc, v_bthc = jnp.unstack(
            jnp.einsum("btd,dxhc->xbthc", x_btd, self.qkv[...]), axis=0
        )
        n_ctx, d_head = x_btd.shape[1], q_bthc.shape[-1]
        causal = jnp.tril(jnp.ones((n_ctx, n_ctx), bool))[None, None]
        scores_bhts = jnp.einsum("bthc,bshc->bhts", q_bthc * d_head**-0.5, k_bthc)
        weights_bhts = jax.nn.softmax(jnp.where(causal, scores_bhts, -jnp.inf), axis=-1)
        mixed_bthc = jnp.einsum("bhts,bshc->bthc", weights_bhts, v_bthc)
        return jnp.einsum("bthc,hcd->btd", mixed_bthc, self.out[...])


class FeedForward(nnx.Module):
    """d_model -> d_ff -> d_model, no biases."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        d, d_ff = config.d_model, config.d_ff
        self.activation = config.activation
        self.up = _normal(rngs, (d, d_ff), d**-0.5)
        self.down = _normal(rngs, (d_ff, d), (2 * config.n_layer * d_ff) ** -0.5)

    def __call__(self, x_btd: jax.Array) -> jax.Array:
        hidden_btf = _ACTIVATIONS[self.activation](x_btd @ self.up[...])
        return hidden_btf @ self.down[...]


class Block(nnx.Module):
    """Pre-LayerNorm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.norm_attention = LayerNorm(config.d_model)
        self.attention = Attention(config, rngs)
        self.norm_feed_forward = LayerNorm(config.d_model)
        self.feed_forward = FeedForward(config, rngs)
        self.dropout = config.dropout

    def __call__(self, x_btd: jax.Array, keys_b: jax.Array | None) -> jax.Array:
        x_btd = x_btd + self._drop(self.attention(self.norm_attention(x_btd)), keys_b, 0)
        return x_btd + self._drop(self.feed_forward(self.norm_feed_forward(x_btd)), keys_b, 1)

    def _drop(self, x_btd: jax.Array, keys_b: jax.Array | None, site: int) -> jax.Array:
        return x_btd if keys_b is None else dropout(x_btd, self.dropout, keys_b, site)


class Transformer(nnx.Module):
    """Tokens to logits: learned positions, pre-LayerNorm blocks, a last LayerNorm, a linear head.

    Linear maps have no biases. The matrices that write to the residual stream start smaller by
    sqrt(2 n_layer); an untied head starts at zero, so that the first loss is ln(n_vocab).
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        d = config.d_model
        self.config = config
        self.embedding = _normal(rngs, (config.n_vocab, d), d**-0.5)
        self.position = _normal(rngs, (config.n_ctx, d), 0.1 * d**-0.5)
        self.blocks = nnx.List([Block(config, rngs) for _ in range(config.n_layer)])
        self.norm = LayerNorm(d)
        if not config.tied_embeddings:
            self.head = nnx.Param(jnp.zeros((d, config.n_vocab), jnp.float32))

    def __call__(self, tokens_bt: jax.Array, dropout_keys_b: jax.Array | None = None) -> jax.Array:
        """Logits [b, t, n_vocab] of `tokens_bt`; dropout acts where a key a row is given."""
        x_btd = self.embedding[...][tokens_bt] + self.position[None, : tokens_bt.shape[1]]
        keys_b = dropout_keys_b if self.config.dropout else None
        if keys_b is not None:
            x_btd = dropout(x_btd, self.config.dropout, keys_b, 0)
        for layer, block in enumerate(self.blocks):
            layer_keys_b = None if keys_b is None else _fold_in(keys_b, layer + 1)
            x_btd = block(x_btd, layer_keys_b)
        x_btd = self.norm(x_btd)
        if self.config.tied_embeddings:
            return jnp.einsum("btd,vd->btv", x_btd, self.embedding[...])
        return x_btd @ self.head[...]


def dropout(x_btd: jax.Array, rate: float, keys_b: jax.Array, site: int) -> jax.Array:
    """Zeroes a `rate` of the features and scales the rest by 1/(1 - rate).

    Each row draws from its own key, so that a row's mask does not depend on how a batch is cut.
    """
    keep_btd = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x_btd.shape[1:]))(
        _fold_in(keys_b, site)
    )
    return jnp.where(keep_btd, x_btd / (1.0 - rate), 0.0)


def _fold_in(keys_b: jax.Array, data: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys_b)
