"""Parameters and forward FLOPs of a Transformer, in parts from which every convention follows."""

from __future__ import annotations

from dataclasses import dataclass

from scaling_jax.config import ModelConfig


@dataclass(frozen=True)
class Counts:
    """Parameters, and forward FLOPs a token with a multiply-add as two (Kaplan et al. 2020, §2.1).

    The parts are recorded; the properties are the conventions that papers build from them.
    """

    params_non_embedding: int
    """Kaplan's N, eq. 2.1: the matrices of the blocks."""
    params_embedding: int
    """Token and position tables."""
    params_head: int
    """The matrix of the logits; 0 where it is the token table."""
    params_other: int
    """LayerNorm gains and biases."""
    flops_per_token_blocks: int
    """The matrices of the blocks: 2 N."""
    flops_per_token_attention: int
    """Scores and values over the full square of n_ctx by n_ctx, as they are computed."""
    flops_per_token_attention_causal: int
    """Half of the full square: Kaplan's Table 1 counts what the mask leaves."""
    flops_per_token_head: int
    """Logits, tied or not."""
    flops_per_token_embedding: int
    """Kaplan's Table 1, look-ups and their sum; no matrix product, so in no convention below."""

    @property
    def params_total(self) -> int:
        """Every number in every array of the model."""
        return (
            self.params_non_embedding + self.params_embedding + self.params_head + self.params_other
        )

    @property
    def flops_per_token_kaplan(self) -> int:
        """Forward: blocks and the causal half of attention, no logits (Kaplan eq. 2.2)."""
        return self.flops_per_token_blocks + self.flops_per_token_attention_causal

    @property
    def training_flops_per_token_6n(self) -> int:
        """6 N, neither attention nor logits (Kaplan §2.1)."""
        return 6 * self.params_non_embedding

    @property
    def training_flops_per_token_6n_head(self) -> int:
        """6 N and the logits, forward and backward; no attention."""
        return self.training_flops_per_token_6n + 3 * self.flops_per_token_head

    @property
    def training_flops_per_token_6n_total(self) -> int:
        """6 times every parameter, tables and LayerNorms too."""
        return 6 * self.params_total

    @property
    def training_flops_per_token_exact(self) -> int:
        """Every matrix product of a step: three times the forward's blocks, attention and logits.

        Attention over the full square, since that is what is computed; the causal half is in
        `flops_per_token_kaplan` alone. The backward pass is taken as twice the forward.
        """
        return 3 * (
            self.flops_per_token_blocks + self.flops_per_token_attention + self.flops_per_token_head
        )


def counts(config: ModelConfig) -> Counts:
    """The counts of a model at its full context, with d_attn = d_model."""
    d_model, n_layer, n_ctx = config.d_model, config.n_layer, config.n_ctx
    d_attn = d_model
    non_embedding = 2 * d_model * n_layer * (2 * d_attn + config.d_ff)
    head = d_model * config.n_vocab
    return Counts(
        params_non_embedding=non_embedding,
        params_embedding=(config.n_vocab + n_ctx) * d_model,
        params_head=0 if config.tied_embeddings else head,
        params_other=(2 * n_layer + 1) * 2 * d_model,
        flops_per_token_blocks=2 * non_embedding,
        flops_per_token_attention=4 * n_layer * n_ctx * d_attn,
        flops_per_token_attention_causal=2 * n_layer * n_ctx * d_attn,
        flops_per_token_head=2 * head,
        flops_per_token_embedding=4 * d_model,
    )
