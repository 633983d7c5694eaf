"""The end of the largest model is known from smaller ones and the beginning of its own curve.

Claim     from twelve runs of six smaller sizes and a quarter of the curve of the largest, of four
          times the parameters, the loss that it ends with under a cosine is forecast, and sealed
          before it is trained on
Expect    the end within 0.05 nats and inside its 90 % interval, from a fifth of the curve or more;
          at a quarter the last value is 0.5 nats off, and a power law with an offset 0.1
Cost      7 minutes on two CPU cores
Run       scaling-jax run experiments/forecast.py --budget 270s
          scaling-jax forecast runs/forecast --seal sealed.json
          scaling-jax run experiments/forecast.py
          scaling-jax score sealed.json runs/forecast

The largest is trained last, so that a budget can end in the midst of it: `scaling-jax status runs`
says where, and the first command with --budget 30s goes on. The smaller sizes have two seeds each,
since a 90 % interval rests on nine finished curves or more.
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
