"""One update of one run: a pure function, traced once and scanned."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from scaling_jax.config import EngineConfig, RunConfig
from scaling_jax.models.transformer import Transformer
from scaling_jax.training.noise import (
    Cut,
    Probes,
    adam_metric,
    grouped_gradient,
    noise_measures,
    sq_norm,
)
from scaling_jax.training.optimizers import make_optimizer
from scaling_jax.training.schedules import Horizon, learning_rate


class Numbers(NamedTuple):
    """What may differ between the lanes of one program; scalars, or arrays over lanes."""

    seed: jax.Array
    data_seed: jax.Array
    n_tokens: jax.Array  # the run draws from the first so many tokens
    n_windows: jax.Array | None  # of an epoch of them, uint32; None where windows are random
    weight_decay: jax.Array
    horizon: Horizon


class TrainState(NamedTuple):
    """Everything that an update changes."""

    params: Any
    opt_state: optax.OptState
    alive: jax.Array  # False once a loss or gradient was not finite; the rest then stands still


class Measured(NamedTuple):
    """What one update measured, at the parameters it started from."""

    loss: jax.Array
    lr: jax.Array
    grad_sq_small: jax.Array  # [measures], in the order of `noise_measures`
    grad_sq_big: jax.Array  # [measures]
    alive: jax.Array


def numbers_of(config: RunConfig, n_tokens: int, n_windows: int | None = None) -> Numbers:
    """The numbers of one run on a training split of `n_tokens`, and `n_windows` an epoch."""
    return Numbers(
        seed=jnp.uint32(config.seed),
        data_seed=jnp.uint32(config.data.seed),
        n_tokens=jnp.int32(min(config.unique_tokens(n_tokens), 2**31 - 1)),
        n_windows=None if n_windows is None else jnp.uint32(n_windows),
        weight_decay=jnp.float32(config.optimizer.weight_decay),
        horizon=Horizon(
            lr_peak=jnp.float32(config.optimizer.lr_peak),
            steps=jnp.float32(config.steps),
            warmup_steps=jnp.float32(config.schedule.warmup_steps),
            final_fraction=jnp.float32(config.schedule.final_fraction),
            decay_fraction=jnp.float32(config.schedule.decay_fraction),
        ),
    )


def init_state(config: RunConfig, numbers: Numbers) -> TrainState:
    """The state at step 0, drawn from the run's seed."""
    key = jax.random.fold_in(jax.random.key(numbers.seed), 0)
    params = nnx.state(Transformer(config.model, nnx.Rngs(params=key)))
    optimizer = make_optimizer(config.optimizer, lr=0.0, weight_decay=0.0)
    return TrainState(params, optimizer.init(params), jnp.asarray(True))


def make_model(
    config: RunConfig, engine: EngineConfig, separator: int | None = None
) -> Callable[..., jax.Array]:
    """`model(params, tokens_bt, dropout_keys_b=None, probes=None) -> logits_btv`, plain arrays.

    `separator` is the id of the token between documents, which a `document_mask` goes by.
    """
    graph = nnx.graphdef(
        nnx.eval_shape(lambda: Transformer(config.model, nnx.Rngs(0), engine, separator))
    )

    def model(
        params: Any,
        tokens_bt: jax.Array,
        keys_b: jax.Array | None = None,
        probes: Probes | None = None,
    ) -> jax.Array:
        params = jax.tree.map(lambda p: p.astype(config.compute_dtype), params)
        return nnx.merge(graph, params)(tokens_bt, keys_b, probes)

    return model


def token_losses(logits_btv: jax.Array, targets_bt: jax.Array) -> jax.Array:
    """Cross-entropy of each token, nats, in float32."""
    return optax.softmax_cross_entropy_with_integer_labels(
        logits_btv.astype(jnp.float32), targets_bt
    )


def make_update(
    config: RunConfig, engine: EngineConfig, cut: Cut, separator: int | None = None
) -> Callable[..., tuple[TrainState, Measured]]:
    """`update(state, step, numbers, window_bt, valid_b=None)`: to `step + 1` on a batch of rows.

    Of each row the first `valid_b` targets count, or all.
    """
    model = make_model(config, engine, separator)
    measures = noise_measures(config, cut)

    def loss_fn(
        params: Any, rows: tuple[jax.Array, jax.Array | None, jax.Array | None], probes: Probes
    ) -> jax.Array:
        window_bt, keys_b, weights_bt = rows
        logits_btv = model(params, window_bt[:, :-1], keys_b, probes)
        losses_bt = token_losses(logits_btv, window_bt[:, 1:])
        return (losses_bt if weights_bt is None else losses_bt * weights_bt).mean()

    def update(
        state: TrainState,
        step: jax.Array,
        numbers: Numbers,
        window_bt: jax.Array,
        valid_b: jax.Array | None = None,
    ) -> tuple[TrainState, Measured]:
        rows, n_ctx = window_bt.shape[0], window_bt.shape[1] - 1
        weights_bt = None if valid_b is None else target_weights(valid_b, n_ctx)
        keys_b = dropout_keys(numbers.seed, step, rows) if config.model.dropout else None
        metric = None
        if config.noise.enabled and config.noise.preconditioned:
            metric = adam_metric(config.optimizer, state.opt_state)
        batch = (window_bt, keys_b, weights_bt)
        found = grouped_gradient(loss_fn, state.params, batch, cut, measures, metric)
        lr = learning_rate(config.schedule.name, step, numbers.horizon)
        optimizer = make_optimizer(config.optimizer, lr, numbers.weight_decay)
        updates, opt_state = optimizer.update(found.gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        alive = state.alive & jnp.isfinite(found.loss)
        if config.noise.enabled:  # which takes this norm anyway; the next loss would tell, too
            alive &= jnp.isfinite(sq_norm(found.gradient))
        new = TrainState(params, opt_state, alive)
        # A lane that has diverged or reached its own end stands still while its neighbours go on.
        moves = alive & (step < numbers.horizon.steps.astype(jnp.int32))
        state = jax.tree.map(partial(jnp.where, moves), new, state._replace(alive=alive))
        return state, Measured(found.loss, lr, found.grad_sq_small, found.grad_sq_big, alive)

    return update


def target_weights(valid_b: jax.Array, n_ctx: int) -> jax.Array:
    """What each target of a batch counts for: float32 [b, n_ctx], of mean 1.

    The mean over the batch of losses times these is the mean over the targets that count, however
    the batch is cut into groups of rows.
    """
    counts_bt = jnp.arange(n_ctx)[None, :] < valid_b[:, None]
    share = valid_b.sum().astype(jnp.float32) / (valid_b.size * n_ctx)
    return counts_bt.astype(jnp.float32) / share


def dropout_keys(seed: jax.Array, step: jax.Array, rows: int) -> jax.Array:
    """One key a row of the batch of `step`, apart from the keys of the initial parameters."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))
