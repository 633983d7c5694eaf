"""The critical batch size, measured directly and by the gradient noise scale of the same runs.

Claim     S = S_min (1 + B_crit/B) (McCandlish et al. 2018, eq. 2.11) from 128 to 65,536 tokens a
          batch, with B_crit = B_*/L^(1/alpha_B) (Kaplan et al. 2020, eq. 5.3), on Python source
Expect    at three losses or more: steps at the largest batch below 1.5 S_min, tokens at the
          smallest below 1.5 E_min, rms of ln S at most 0.05, the 90 % interval of B_crit within a
          factor 1.5 either way, the best learning rate inside its grid; B_crit within a factor 1.3
          of 1,070, 1,580, 3,040 and 4,370 tokens at 2.6, 2.4, 2.2 and 2.0 nats, alpha_B 0.15 to
          0.21. B_simple / B_crit is printed and not expected: on the way down from 2.7 to 2.1 nats
          it fell from about 1.4 to 0.5 in the search
Cost      15 to 30 minutes on two CPU cores, of 351 million tokens
Run       scaling-jax run experiments/critical_batch.py
          scaling-jax critical-batch runs/critical_batch --levels 2.6,2.5,2.4,2.3,2.2,2.1,2.05,2
          scaling-jax noise runs/critical_batch

Four learning rates a batch, a factor 1.6 apart, about eps / sqrt(1 + B_*/B) (McCandlish et al.,
eq. A.3), and three seeds, the same at every batch: what a seed does to all its runs leaves B_crit
alone. The constants were found by a search of 1,321 runs on a GPU, over factors of sqrt(2) in the
rate. There beta2 mattered little between a quarter of and four times the memory below, and beta1
much: a longer memory of gradients adds steps that no batch size saves, and middle batches lie up to
15 % above the hyperbola at 0.9, 9 % at 0.8. Two heads halve the variance between seeds. The warm-up
is of as many steps at every batch, which adds to S_min and keeps the form.
"""

from math import sqrt

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

N_CTX = 64
BATCHES = (*(128 * 2**k for k in range(8)), 65_536)  # tokens
RATES = (0.5, 0.8, 1.25, 2.0)  # of the centre
SEEDS = (0, 1, 2)
# About the fewest steps and tokens to 2.0 nats, and how much further runs go: the slowest seed of
# the best rate has to get there.
LEAST_STEPS, LEAST_TOKENS, FURTHER = 170, 740_000, 1.25
AT_ONCE = 4096  # tokens of a microbatch: what they leave in memory stays in a core's cache


def centre(batch: int) -> float:
    """About the best learning rate at a batch of so many tokens."""
    return 0.016 / sqrt(1 + 1200 / batch)


def run(batch: int, rate: float, seed: int) -> RunConfig:
    """Two layers of width 16; Adam forgets squares over as many steps as sqrt(1 / batch) goes."""
    sequences = batch // N_CTX
    return RunConfig(
        model=ModelConfig(n_layer=2, d_model=16, n_head=2, n_ctx=N_CTX, activation="relu"),
        data=DataConfig(seed=seed),
        batch=BatchConfig(sequences=sequences, microbatches=max(1, batch // AT_ONCE)),
        noise=NoiseConfig(groups=min(sequences, 8)),
        optimizer=OptimizerConfig(
            lr_peak=rate * centre(batch),
            beta1=0.8,
            beta2=1 - sqrt(batch / 128) / 640,
            grad_clip=1.0,
        ),
        schedule=ScheduleConfig(warmup_steps=20),
        evaluation=EvaluationConfig(tokens=16_384, per_decade=32),
        steps=round(FURTHER * (LEAST_STEPS + LEAST_TOKENS / batch)),
        seed=seed,
    )


study = Study(
    "critical_batch",
    {
        f"b{batch}-lr{rate:g}-seed{seed}": run(batch, rate, seed)
        for batch in BATCHES
        for rate in RATES
        for seed in SEEDS
    },
    laws=("b_crit",),
)
