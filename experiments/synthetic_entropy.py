"""The loss of a model that is large enough falls to the entropy of a known process, and no lower.

Claim     the last losses on validation and test lie above the entropy rate that
          `scaling_jax.zipf.ZipfFacts` computes, 0.8991 nats a token, or below it by less than
          three standard errors; from d_model 8 on within three standard errors of it
Expect    d_model 2 and 4 more than five standard errors above, 8, 16 and 32 within two. Beside the
          cost of the same tokens under the true probabilities, which has no sampling error, they
          are 0.006, 0.003 and 0.002 nats above
Cost      2 minutes on two CPU cores
Run       scaling-jax run experiments/synthetic_entropy.py
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

SOURCE = "synthetic:tokens=2500000,keys=512,values=128"
STEPS = 2_000


def run(d_model: int) -> RunConfig:
    """Most of one pass, 2.0 million tokens, the learning rate falling to zero."""
    return RunConfig(
        model=ModelConfig(
            n_layer=2, d_model=d_model, n_head=1, n_ctx=32, n_vocab=641, activation="relu"
        ),
        data=DataConfig(source=SOURCE, order="epochs"),
        batch=BatchConfig(sequences=32),
        optimizer=OptimizerConfig(lr_peak=1e-2, beta2=0.99, grad_clip=1.0),
        schedule=ScheduleConfig(name="linear", warmup_steps=50),
        evaluation=EvaluationConfig(tokens=131_072, per_decade=4),
        noise=NoiseConfig(enabled=False),
        steps=STEPS,
    )


study = Study("synthetic_entropy", {f"d{d_model}": run(d_model) for d_model in (2, 4, 8, 16, 32)})
