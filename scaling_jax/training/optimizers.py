"""Optimizers from optax, with rates that may be traced and so differ by lane."""

from __future__ import annotations

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from scaling_jax.config import DECAYING, OptimizerConfig

_VECTORS = ("gain", "bias")
# Axes that a matrix reads and writes, in the stacked arrays of the blocks; queries, keys and values
# are three matrices.
_MUON_AXES = {
    "qkv": MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2, 4)),
    "out": MuonDimensionNumbers(reduction_axis=(1, 2), output_axis=(3,)),
    "up": MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2,)),
    "down": MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2,)),
}
# The root mean square of an AdamW update, to which Muon's are scaled (Liu et al. 2025, eq. 4).
_MUON_RMS = 0.2


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
    parts.append(_direction(config))
    if config.name in DECAYING:
        parts.append(optax.add_decayed_weights(weight_decay, mask=_matrices))
    return optax.chain(*parts, optax.scale_by_learning_rate(lr))


def _direction(config: OptimizerConfig) -> optax.GradientTransformation:
    match config.name:
        case "sgd":
            return optax.trace(decay=config.momentum) if config.momentum else optax.identity()
        case "adafactor":
            return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
        case "muon":
            # The optax alias would hand what is no matrix of a block to Adam with Nesterov's
            # momentum, so it is given those matrices alone.
            orthogonal = muon(
                learning_rate=1.0,
                beta=config.momentum,
                eps=config.eps,
                muon_weight_dimension_numbers=_muon_axes,
                consistent_rms=_MUON_RMS,
            )
            return optax.partition(
                {"muon": optax.chain(orthogonal, optax.scale(-1.0)), "adam": _adam(config)},
                _muon_or_adam,
            )
        case _:
            return _adam(config)


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.eps)


def _matrices(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: _name(path) not in _VECTORS, params)


def _muon_axes(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: _MUON_AXES.get(_name(path)), params)


def _muon_or_adam(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "muon" if _name(path) in _MUON_AXES else "adam", params
    )


def _name(path: tuple[Any, ...]) -> str:
    return [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)][-1]
