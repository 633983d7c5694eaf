"""Optimizers from optax, with rates that may be traced and so differ by lane."""

from __future__ import annotations

import jax
import optax

from scaling_jax.config import OptimizerConfig


def make_optimizer(
    config: OptimizerConfig, lr: jax.Array | float, weight_decay: jax.Array | float
) -> optax.GradientTransformation:
    """The optimizer at one learning rate; its state does not depend on `lr` or `weight_decay`.

    Making it inside the traced update, with that update's rate, is what lets every lane and every
    step have its own. Weight decay is decoupled (Loshchilov & Hutter 2019) and acts on matrices.
    """
    parts = []
    if config.grad_clip is not None:
        parts.append(optax.clip_by_global_norm(config.grad_clip))
    if config.name == "sgd":
        parts.append(optax.trace(decay=config.momentum) if config.momentum else optax.identity())
    else:
        parts.append(optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.eps))
    if config.name == "adamw":
        parts.append(optax.add_decayed_weights(weight_decay, mask=_is_matrix))
    return optax.chain(*parts, optax.scale_by_learning_rate(lr))


def _is_matrix(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
