"""An exponent that is known beforehand is recovered from early-stopped losses on subsets.

Claim     on Zipf-distributed facts, p_i ~ i^-(1 + alpha), L(D) = E + (D_c/D)^alpha_D with
          alpha_D = alpha / (1 + alpha) (Hutter 2021, arXiv 2102.04074), here 1/2, over 2.1 decades
          of unique tokens; E is known, too
Expect    1/2 inside the 90 % interval of alpha_D; measured 0.520 (0.475 to 0.568), with E 0.884
          (0.876 to 0.891). The same fit to the exact curve of an ideal learner, four times as high,
          gives 0.502, and an E 0.011 nats below the entropy of 0.899: that its 512 keys run out
          looks like a lower floor. E has the sampling error of the test set besides, whose tokens
          cost 0.013 nats less than the entropy under the true probabilities
Cost      4 minutes on two CPU cores
Run       scaling-jax run experiments/synthetic.py
          scaling-jax fit runs/synthetic --law l_d_offset

The exponent is that of every learner to which keys are alike that were seen equally often. This one
has four to five times the excess of the ideal learner of `scaling_jax.zipf` up to 64,000 tokens,
about two fifths of it for the frequencies of keys. With E held at the entropy the fit reads the
mean slope of a curve that bends: 0.551 of the exact one, from 0.519 at its beginning to 0.813.

Keys do not run out, and alpha_D is 0.6 (measured 0.575, 0.517 to 0.640; of the exact curve 0.599),
with another folder for --out and

          --set data.source=synthetic:tokens=1500000,keys=512,values=128,alpha=1.5
"""

from scaling_jax.config import (
    BatchConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    NoiseConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)
from scaling_jax.study import Study

SOURCE = "synthetic:tokens=1500000,keys=512,values=128"
TOKENS = tuple(1000 * 2**k for k in range(8))
SEEDS = range(5)


def run(tokens: int, seed: int) -> RunConfig:
    """A subset of its own for every seed; steps until the validation loss has turned up."""
    return RunConfig(
        model=ModelConfig(
            n_layer=2, d_model=16, n_head=1, n_ctx=32, n_vocab=641, activation="relu"
        ),
        data=DataConfig(source=SOURCE, unique_tokens=tokens, subset_seed=seed, seed=seed),
        batch=BatchConfig(sequences=16),
        optimizer=OptimizerConfig(lr_peak=1e-2, beta2=0.99, grad_clip=1.0),
        schedule=ScheduleConfig(warmup_steps=20),
        evaluation=EvaluationConfig(tokens=32_768, per_decade=10),
        noise=NoiseConfig(enabled=False),
        steps=round(180 * (tokens / TOKENS[0]) ** 0.5),
        seed=seed,
    )


study = Study(
    "synthetic",
    {f"D{tokens}-seed{seed}": run(tokens, seed) for seed in SEEDS for tokens in TOKENS},
    laws=("l_d_offset",),
)
