"""A batch that follows the noise scale needs fewer tokens than any fixed batch at equal steps.

Claim     at equal steps, the tokens of a run whose batch follows B_simple lie below the hyperbola
          (S/S_min - 1)(E/E_min - 1) = 1 of fixed batches (McCandlish et al. 2018, appendix D),
          fitted for each seed to seven batch sizes from 128 to 8,192 tokens
Expect    a few per cent at the lowest loss, gamma between 0.75 and 1 (B_crit that grows as the
          square to the square root of progress); powers of two cost about 4 % of gamma, so that
          a ratio of 1 within its interval is a result
Cost      7 minutes on two CPU cores
Run       scaling-jax run experiments/batch_policy.py
Read      scaling-jax critical-batch runs/batch_policy
"""

from scaling_jax.config import (
    BatchConfig,
    BatchPolicyConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    NoiseConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)
from scaling_jax.study import Study

SEEDS = range(6)
FIRST, LAST = 2, 128  # sequences of 64 tokens
FOLLOW = BatchPolicyConfig(name="noise_scale", most_sequences=LAST, every=50)
# Enough for 1.95 nats at any batch: about 1.3 S_min (1 + B_crit / B), in sequences.
LEAST_STEPS, CRITICAL = 520, 40
FOLLOW_STEPS = 1_600


def run(seed: int, batch: BatchConfig, lr_peak: float, steps: int, noise: bool) -> RunConfig:
    """A model of 6,144 parameters at a constant learning rate."""
    return RunConfig(
        model=ModelConfig(n_layer=2, d_model=16, n_head=1, n_ctx=64, activation="relu"),
        data=DataConfig(seed=seed),
        batch=batch,
        noise=NoiseConfig(enabled=noise, groups=2 if noise else None),
        optimizer=OptimizerConfig(lr_peak=lr_peak, beta2=0.99, grad_clip=1.0),
        schedule=ScheduleConfig(warmup_steps=20),
        evaluation=EvaluationConfig(tokens=16_384, per_decade=24),
        steps=steps,
        seed=seed,
    )


def peak(sequences: int) -> float:
    """The square-root rule, near the best found at the smallest and at the largest batch."""
    return 3e-3 * (sequences / FIRST) ** 0.5


runs = {}
sequences = FIRST
while sequences <= LAST:
    steps = round(LEAST_STEPS * (1 + CRITICAL / sequences))
    for seed in SEEDS:
        batch = BatchConfig(sequences=sequences)
        runs[f"b{sequences}-seed{seed}"] = run(seed, batch, peak(sequences), steps, noise=False)
    sequences *= 2
for seed in SEEDS:
    batch = BatchConfig(sequences=FIRST, policy=FOLLOW)
    runs[f"follow-seed{seed}"] = run(seed, batch, peak(FIRST), FOLLOW_STEPS, noise=True)

study = Study("batch_policy", runs, laws=("b_crit",))
