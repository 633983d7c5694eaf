"""What JAX is told before it looks for devices."""

from __future__ import annotations

import os

import jax

from scaling_jax.cache import keep_compiled

_MOST_CPU_DEVICES = 8


def start_jax() -> None:
    """One device a CPU core, and compiled programs kept from one process to the next.

    Leaves alone what the environment says of either. Has no effect on the devices once JAX has
    looked for them.
    """
    # One small model does not keep two cores busy; two lanes, or two data shards, do.
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not (chosen or "JAX_NUM_CPU_DEVICES" in os.environ):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        jax.config.update("jax_num_cpu_devices", min(cores, _MOST_CPU_DEVICES))
    keep_compiled()
