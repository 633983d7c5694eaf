"""The critical batch size by branches of one run, beside the one of a whole batch sweep.

Claim     from a checkpoint, the largest batch whose branch loses less than a tolerance after as
          many tokens (Merrill et al. 2025) grows as the loss falls, as B_crit does, for a fortieth
          of the tokens of the sweep of experiments/critical_batch.py, whose model, corpus and
          optimizer these are
Expect    with 0.05 nats, B* of 256, 512, 512, 2,048, 4,096 and 4,096 tokens at 3.36, 2.95, 2.71,
          2.44, 2.26 and 2.09 nats, where the sweep has 985 at 2.6 and 4,390 at 2.0; with the 0.01
          of the paper, whose branches are short beside what went before, 256 up to 2.44 nats and
          512 at the last two
Cost      5 minutes on two CPU cores, of 9 million tokens
Run       scaling-jax run experiments/branched_batch.py
          scaling-jax branched-batch runs/branched_batch --tolerance 0.05

A long run at 256 tokens a batch, and from six of its checkpoints branches of 1 to 32 times that
batch, at a learning rate sqrt(k) times as high, for 65,536 tokens each; three seeds.
"""

from math import sqrt

from scaling_jax.config import (
    BatchConfig,
    BranchConfig,
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)
from scaling_jax.study import Study

N_CTX = 64
BATCH = 256  # tokens
BRANCH_AT = (64, 128, 256, 512, 1024, 2048)
MULTIPLES = (1, 2, 4, 8, 16, 32)
BUDGET = 65_536  # tokens
SEEDS = (0, 1, 2)
LR = 0.8 * 0.016 / sqrt(1 + 1200 / BATCH)  # the rule of the sweep


def run(seed: int, k: int = 1, branch: BranchConfig | None = None) -> RunConfig:
    """The long run, or a branch of k times its batch."""
    begin, updates = (branch.step, BUDGET // (k * BATCH)) if branch else (0, max(BRANCH_AT))
    steps = begin + updates
    return RunConfig(
        model=ModelConfig(n_layer=2, d_model=16, n_head=2, n_ctx=N_CTX, activation="relu"),
        data=DataConfig(seed=seed),
        batch=BatchConfig(sequences=k * BATCH // N_CTX, microbatches=max(1, k * BATCH // 4096)),
        optimizer=OptimizerConfig(
            lr_peak=LR * sqrt(k), beta1=0.8, beta2=1 - sqrt(BATCH / 128) / 640, grad_clip=1.0
        ),
        schedule=ScheduleConfig(
            name="wsd" if branch else "constant", warmup_steps=20, decay_fraction=updates / steps
        ),
        evaluation=EvaluationConfig(tokens=65_536, per_decade=4),
        checkpoint=CheckpointConfig(kept_per_decade=0),
        branch=branch,
        steps=steps,
        seed=seed,
    )


study = Study(
    "branched_batch",
    {f"long-seed{seed}": run(seed) for seed in SEEDS}
    | {
        f"at{step}-k{k}-seed{seed}": run(seed, k, BranchConfig(run=f"long-seed{seed}", step=step))
        for k in MULTIPLES
        for step in BRANCH_AT
        for seed in SEEDS
    },
)
