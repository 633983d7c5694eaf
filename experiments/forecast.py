"""The end of the largest model is known from smaller ones and the beginning of its own curve.

Claim     from twelve runs of six smaller sizes and the beginning of the curve of the largest, of
          four times the parameters, the loss that it ends with under a cosine is forecast while it
          trains, and sealed
Expect    every sealed forecast of its end within 0.05 nats and inside its 90 % interval, from a
          fifth of the curve on; there the last value is 0.6 nats off, a power law plus offset 0.1
Cost      5 minutes on two CPU cores
Run       scaling-jax run experiments/forecast.py --monitor
          scaling-jax score runs/forecast/forecasts/*.json runs/forecast

The largest is trained last. The smaller sizes have two seeds each, since a 90 % interval rests on
nine finished curves or more.
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

SMALLER = {8: 1, 12: 1, 16: 1, 24: 2, 32: 2, 48: 3}  # d_model: n_head
LARGEST = {96: 6}


def run(d_model: int, n_head: int, seed: int = 0) -> RunConfig:
    """Two layers, 8 sequences of 64 bytes an update, a cosine down to a tenth of the peak."""
    return RunConfig(
        model=ModelConfig(n_layer=2, d_model=d_model, n_head=n_head, n_ctx=64, activation="relu"),
        data=DataConfig(seed=seed),
        batch=BatchConfig(sequences=8),
        noise=NoiseConfig(enabled=False),
        optimizer=OptimizerConfig(
            lr_peak=8e-3 * min(1.0, 16 / d_model) ** 1.2, beta2=0.99, grad_clip=1.0
        ),
        schedule=ScheduleConfig(name="cosine", warmup_steps=100, final_fraction=0.1),
        evaluation=EvaluationConfig(tokens=65_536, per_decade=24),
        steps=5_000,
        seed=seed,
    )


study = Study(
    "forecast",
    {f"d{d}-seed{seed}": run(d, n_head, seed) for d, n_head in SMALLER.items() for seed in (0, 1)}
    | {f"d{d}": run(d, n_head) for d, n_head in LARGEST.items()},
    laws=("l_n",),
)
