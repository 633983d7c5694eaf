"""The same network in plain Flax, written for the reader and not for speed: what is beaten."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from scaling_jax.config import RunConfig
from tools.benchmarks.timing import Candidate


class Attention(nnx.Module):
    """Causal attention over the full square, masked."""

    def __init__(self, d_model: int, n_head: int, rngs: nnx.Rngs):
        self.n_head = n_head
        self.qkv = nnx.Linear(d_model, 3 * d_model, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(d_model, d_model, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        b, t, d = x.shape
        d_head = d // self.n_head
        q, k, v = jnp.split(self.qkv(x).reshape(b, t, 3 * self.n_head, d_head), 3, axis=2)
        scores = jnp.einsum("bthc,bshc->bhts", q, k) / d_head**0.5
        scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, -jnp.inf)
        mixed = jnp.einsum("bhts,bshc->bthc", nnx.softmax(scores, axis=-1), v)
        return self.out(mixed.reshape(b, t, d))


class Block(nnx.Module):
    """Pre-LayerNorm attention and feed-forward."""

    def __init__(self, d_model: int, n_head: int, d_ff: int, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(d_model, epsilon=1e-5, rngs=rngs)
        self.attention = Attention(d_model, n_head, rngs)
        self.norm2 = nnx.LayerNorm(d_model, epsilon=1e-5, rngs=rngs)
        self.up = nnx.Linear(d_model, d_ff, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(d_ff, d_model, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm1(x))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class PlainTransformer(nnx.Module):
    """Tokens to logits, with GELU and an untied head."""

    def __init__(self, config: RunConfig, rngs: nnx.Rngs):
        model = config.model
        d = model.d_model
        self.embedding = nnx.Embed(model.n_vocab, d, rngs=rngs)
        self.position = nnx.Embed(model.n_ctx, d, rngs=rngs)
        self.blocks = nnx.List(
            [Block(d, model.n_head, model.d_ff, rngs) for _ in range(model.n_layer)]
        )
        self.norm = nnx.LayerNorm(d, epsilon=1e-5, rngs=rngs)
        self.head = nnx.Linear(d, model.n_vocab, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embedding(tokens) + self.position(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def train_plainly(config: RunConfig, tokens: np.ndarray) -> Candidate:
    """A loop in Python around one jitted step, its batches gathered by NumPy on the host."""
    graph, params = nnx.split(PlainTransformer(config, nnx.Rngs(config.seed)))
    optimizer = optax.adamw(config.optimizer.lr_peak, b2=config.optimizer.beta2, weight_decay=0.0)
    opt_state = optimizer.init(params)
    rng = np.random.default_rng(config.data.seed)
    batch, n_ctx = config.batch.sequences, config.model.n_ctx

    @jax.jit(donate_argnums=(0, 1))
    def step(params: Any, opt_state: Any, window: jax.Array) -> tuple[Any, Any, jax.Array]:
        def loss_fn(params: Any) -> jax.Array:
            logits = nnx.merge(graph, params)(window[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, window[:, 1:]).mean()

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    def run(n: int) -> None:
        nonlocal params, opt_state
        # An accelerator would else take float32 products in fewer bits than ours.
        with jax.default_matmul_precision(config.matmul_precision):
            for _ in range(n):
                starts = rng.integers(0, len(tokens) - n_ctx, batch)
                window = tokens[starts[:, None] + np.arange(n_ctx + 1)].astype(np.int32)
                params, opt_state, _ = step(params, opt_state, window)
        jax.block_until_ready(params)

    return Candidate(run, config.batch_tokens)
