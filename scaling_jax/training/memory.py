"""Bytes that a cohort's program needs on a device, known before anything is compiled."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from scaling_jax.config import EngineConfig, MeshConfig, RunConfig
from scaling_jax.models.counts import counts
from scaling_jax.training.evaluation import rows_at_once
from scaling_jax.training.noise import cut_batch

_F32 = 4
# Parameter-sized arrays of an optimizer's state.
_MOMENTS = {"adamw": 2, "adam": 2, "muon": 2, "adafactor": 1, "sgd": 1}
# What scanned layers keep, copied into stacked arrays, over what unrolled layers keep.
_STACKING = 1.4
# A layer that is computed anew, once at a time, over what it keeps where nothing is.
_ANEW = 0.6


class Memory(NamedTuple):
    """Bytes on one device, in parts."""

    state: int
    """Parameters and optimizer state."""
    gradients: int
    """Gradients by group, their sums, the updates, and what weighs their norms."""
    activations: int
    """What the forward pass keeps for the backward pass, logits included."""
    evaluation: int
    """What an evaluation needs beyond an update's gradients and activations, gone by then."""
    tokens: int
    """The corpus, or the batches of a chunk that the host sends."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


def estimate_memory(
    config: RunConfig,
    engine: EngineConfig,
    mesh: MeshConfig,
    n_lanes: int,
    tokens_nbytes: int,
) -> Memory:
    """What `n_lanes` runs like `config` need on each device of `mesh`."""
    lanes = ceil(n_lanes / (mesh.lane or 1))
    shards, fsdp, tensor = mesh.data or 1, mesh.fsdp or 1, mesh.tensor or 1
    cut = cut_batch(config, mesh)
    params = _F32 * counts(config.model).params_total / (fsdp * tensor)
    optimizer = config.optimizer
    moments = _MOMENTS[optimizer.name] if optimizer.name != "sgd" or optimizer.momentum else 0
    groups = cut.width / shards
    rows = config.batch.sequences / (cut.microbatches * shards * fsdp)
    copies = groups * (2 if cut.microbatches > 1 else 1) + (2 if shards > 1 else 0) + 1
    copies += config.noise.preconditioned  # Adam's metric
    gradients = lanes * params * copies
    activations = lanes * rows * _activations(config, engine, tensor)
    evaluated = _evaluation(config, engine, shards * fsdp, lanes)
    return Memory(
        state=int(lanes * params * (1 + moments)),
        gradients=int(gradients),
        activations=int(activations),
        evaluation=int(max(0.0, evaluated - gradients - activations)),
        tokens=tokens_nbytes,
    )


def _evaluation(config: RunConfig, engine: EngineConfig, shards: int, lanes: int) -> float:
    """Bytes of one batch of an evaluation, going forward, and of the loss of every token."""
    model, corpora = config.model, 2 + len(config.evaluation.corpora)
    windows = corpora * ceil(config.evaluation.tokens / model.n_ctx)
    rows = rows_at_once(config, windows, shards) / shards
    width = model.n_vocab + 6 * model.d_model + model.d_ff
    if engine.attention in ("xla", "blocks"):
        width += 2 * model.n_head * model.n_ctx
    return _F32 * lanes * model.n_ctx * (rows * width + windows)


def _activations(config: RunConfig, engine: EngineConfig, tensor: int) -> float:
    """Bytes that one row of a batch keeps."""
    model = config.model
    width = 2 if config.compute_dtype == "bfloat16" else _F32
    features = 6 * model.d_model + (4 * model.d_model + 3 * model.d_ff) / tensor
    residual = width * model.d_model
    weights = 0.0
    if engine.attention in ("xla", "blocks"):
        weights = (_F32 + width) * model.n_head * model.n_ctx / tensor
    layer = width * features + weights
    logits = 3 * _F32 * model.n_vocab
    if config.noise.sequences == "all":  # the head's norms, while all else is still kept
        own = min(model.d_model * model.n_vocab / model.n_ctx, 2 * model.n_ctx)
        logits += _F32 * own / tensor
    if engine.layers != "scan":  # where remat may save nothing, as on a CPU
        return model.n_ctx * (model.n_layer * layer + logits + 4 * residual)
    products = width * (3 * model.d_model + model.d_ff) / tensor
    kept = {"none": _STACKING * layer, "dots": products + residual, "full": residual}
    anew = 0.0 if engine.remat == "none" else _ANEW * layer
    return model.n_ctx * (model.n_layer * kept[engine.remat] + anew + logits + 4 * residual)
