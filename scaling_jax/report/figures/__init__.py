"""The figures of a report, each a matplotlib Figure of its own; nothing goes through pyplot."""

from scaling_jax.report.figures.batches import batch_over_training, critical_both_ways
from scaling_jax.report.figures.comparison import form_comparison, transfer
from scaling_jax.report.figures.compute import (
    allocations,
    curve_slopes,
    envelope,
    sample_efficiency,
)
from scaling_jax.report.figures.corpora import transfer_corpora
from scaling_jax.report.figures.curves import learning_curves, loss_against_compute, size_colours
from scaling_jax.report.figures.frontier import (
    contradiction,
    early_stopping,
    efficient_frontier,
    loss_at_fixed_compute,
    required_data,
    suboptimal_size,
)
from scaling_jax.report.figures.laws import l_ns_fit, law_fit, overfitting, profile
from scaling_jax.report.figures.noise import noise_against_loss, noise_parts
from scaling_jax.report.figures.positions import (
    loss_against_size,
    loss_by_position,
    position_over_training,
)
from scaling_jax.report.figures.style import SizeColours, render
from scaling_jax.report.figures.sweeps import critical_batch, isoflop

__all__ = [
    "SizeColours",
    "allocations",
    "batch_over_training",
    "contradiction",
    "critical_batch",
    "critical_both_ways",
    "curve_slopes",
    "early_stopping",
    "efficient_frontier",
    "envelope",
    "form_comparison",
    "isoflop",
    "l_ns_fit",
    "law_fit",
    "learning_curves",
    "loss_against_compute",
    "loss_against_size",
    "loss_at_fixed_compute",
    "loss_by_position",
    "noise_against_loss",
    "noise_parts",
    "overfitting",
    "position_over_training",
    "profile",
    "render",
    "required_data",
    "sample_efficiency",
    "size_colours",
    "suboptimal_size",
    "transfer",
    "transfer_corpora",
]
