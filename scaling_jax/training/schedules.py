"""The learning rate of an update, as a pure function of numbers that may differ by lane."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Horizon(NamedTuple):
    """The numbers of a schedule; scalars, or arrays over lanes."""

    lr_peak: jax.Array
    steps: jax.Array
    warmup_steps: jax.Array
    final_fraction: jax.Array
    decay_fraction: jax.Array


def learning_rate(name: str, update: jax.Array, horizon: Horizon) -> jax.Array:
    """The rate of the update that leads from step `update` to step `update + 1`.

    Warm-up rises linearly to `lr_peak` at update `warmup_steps - 1`. A decaying schedule reaches
    `final_fraction * lr_peak` at the last update; `wsd` falls linearly over its last
    `decay_fraction * steps` updates (MiniCPM; Hu et al. 2024).
    """
    step = jnp.asarray(update + 1, jnp.float32)
    steps, warmup = horizon.steps, horizon.warmup_steps
    decay_steps = {
        "constant": jnp.inf,
        "cosine": steps - warmup,
        "linear": steps - warmup,
        "wsd": jnp.minimum(horizon.decay_fraction * steps, steps - warmup),
    }[name]
    done = jnp.clip(1.0 - (steps - step) / decay_steps, 0.0, 1.0)
    left = {
        "constant": jnp.ones_like(done),
        "cosine": 0.5 * (1.0 + jnp.cos(jnp.pi * done)),
        "linear": 1.0 - done,
        "wsd": 1.0 - done,
    }[name]
    warm = jnp.minimum(1.0, step / jnp.maximum(warmup, 1.0))
    final = horizon.final_fraction
    return horizon.lr_peak * warm * (final + (1.0 - final) * left)
