"""Loss falls as a power law in model size and training time.

Claim     L(N, S) = (N_c/N)^alpha_N + (S_c/S)^alpha_S (Kaplan et al. 2020, eq. 1.6) over 1.4 decades
          of N, trained at one batch size and a constant learning rate on Python source text
Expect    the largest N predicted from the rest within 5 %, the second half of every curve from the
          first half within 5 %, rms log residual below 2 %
Cost      9 minutes on two CPU cores
Run       scaling-jax run experiments/quickstart.py
"""

from scaling_jax.config import (
    BatchConfig,
    DataConfig,
    ModelConfig,
    NoiseConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)
from scaling_jax.study import Study

STEPS = 9_000
SIZES = {8: 1, 12: 1, 16: 1, 24: 2, 32: 2, 48: 3, 64: 4}  # d_model: n_head
SEEDS = (0, 1)
# d_model: steps at which the long runs, too, are evaluated; 12 in case the law leaves out 8.
BRACKETS = {8: 2_154, 12: 4_642, 64: 2_154}


def peak(d_model: int) -> float:
    """Constant up to d_model 16 and falling above, near the best found at 8, 16, 32 and 64."""
    return 8e-3 * min(1.0, 16 / d_model) ** 1.2


def run(d_model: int, seed: int = 0, lr_factor: float = 1.0, steps: int = STEPS) -> RunConfig:
    """Two layers, 8 sequences of 64 bytes an update, noise moments from two groups of four."""
    return RunConfig(
        model=ModelConfig(
            n_layer=2,
            d_model=d_model,
            n_head=SIZES[d_model],
            d_ff=4 * d_model,
            n_ctx=64,
            activation="relu",
        ),
        data=DataConfig(seed=seed),
        batch=BatchConfig(sequences=8),
        noise=NoiseConfig(groups=2),
        optimizer=OptimizerConfig(lr_peak=lr_factor * peak(d_model), beta2=0.99, grad_clip=1.0),
        schedule=ScheduleConfig(warmup_steps=100),
        steps=steps,
        seed=seed,
    )


runs = {f"d{d}-seed{seed}": run(d, seed) for d in SIZES for seed in SEEDS}
for d, steps in BRACKETS.items():
    for label, factor in (("half", 0.5), ("double", 2.0)):
        runs[f"d{d}-lr-{label}"] = run(d, lr_factor=factor, steps=steps)

study = Study("quickstart", runs, laws=("l_ns",))
