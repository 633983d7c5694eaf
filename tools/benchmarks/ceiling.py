"""Measure `ceiling`: the most FLOP/s that matrix products reach on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tools.benchmarks.tables import Table
from tools.benchmarks.timing import Candidate, Effort, interleave

ROUNDS = 7
PIECE_S = 0.5
# Rows by width: x [rows, width] is multiplied by [width, width] again and again.
_CPU_PRODUCTS = ((512, 512), (1024, 1024), (2048, 2048), (16384, 512), (16384, 1024))
_ACCELERATOR_PRODUCTS = ((4096, 4096), (8192, 8192), (16384, 16384), (65536, 4096), (65536, 1024))
_CHAIN = 4
# XLA has two libraries of matrix products for CPUs.
_LIBRARIES: dict[str, dict[str, Any] | None] = {
    "default": None,
    "Eigen": {"xla_cpu_experimental_ynn_fusion_type": ""},
}


class _Product(NamedTuple):
    rows: int
    width: int
    n_devices: int
    library: str

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.width**2 * self.n_devices

    def __str__(self) -> str:
        on = f"on {self.n_devices} device(s)" + ("" if self.library == "default" else ", Eigen")
        return f"{self.rows} x {self.width} x {self.width} {on}"


class Ceiling(NamedTuple):
    """The quickest product."""

    flops_per_s: float
    product: str


def ceiling(effort: Effort) -> Iterator[Table]:
    """Square and tall products, on every device at once and, on a CPU, on one with all cores."""
    dtypes = ["float32"] if jax.default_backend() == "cpu" else ["float32", "bfloat16"]
    yield Table(
        "The quickest matrix product of those tried",
        {"dtype": "", "ceiling": "FLOP/s", "product": ""},
        [
            {"dtype": dtype, "ceiling": highest.flops_per_s, "product": highest.product}
            for dtype in dtypes
            for highest in [measured_ceiling(dtype, effort)]
        ],
        "Float32 products in full precision. The median of "
        f"{effort.rounds(ROUNDS)} pieces of {effort.seconds(PIECE_S)} s each.",
    )


@cache
def measured_ceiling(dtype: str, effort: Effort) -> Ceiling:
    """The most FLOP/s of all devices together, by the product that reached it."""
    rates = {
        str(product): float(
            np.median(
                interleave(
                    {"product": _repeated(product, dtype)},
                    effort.rounds(ROUNDS),
                    effort.seconds(PIECE_S),
                )["product"]
            )
        )
        for product in _products(effort)
    }
    best = max(rates, key=lambda name: rates[name])
    return Ceiling(rates[best], best)


def _products(effort: Effort) -> list[_Product]:
    cpu, n_devices = jax.default_backend() == "cpu", len(jax.devices())
    sizes = _CPU_PRODUCTS if cpu else _ACCELERATOR_PRODUCTS
    # A CPU's devices share its cores: one of them may use all.
    counts = sorted({1, n_devices}) if cpu else [n_devices]
    libraries = list(_LIBRARIES) if cpu else ["default"]
    return [
        _Product(rows, width, count, library)
        for rows, width in (sizes[:1] if effort.quick else sizes)
        for count in counts
        for library in libraries
    ]


def _repeated(product: _Product, dtype: str) -> Candidate:
    """A candidate whose tokens are FLOPs."""
    rows, width, n_devices, library = product
    mesh = Mesh(np.array(jax.devices()[:n_devices]), ("device",))
    split, whole = (NamedSharding(mesh, PartitionSpec(axis)) for axis in ("device", None))
    rng = np.random.default_rng(0)

    def draw(shape: tuple[int, int], sharding: NamedSharding) -> jax.Array:
        # Of a size that a chain of products keeps.
        numbers = rng.standard_normal(shape, np.float32) / width**0.5
        return jax.device_put(numbers.astype(dtype), sharding)

    def chain(x: jax.Array, weights: jax.Array) -> jax.Array:
        precision = "highest" if dtype == "float32" else None
        for _ in range(_CHAIN):
            x = jnp.matmul(x, weights, precision=precision)
        return x

    x, weights = draw((n_devices * rows, width), split), draw((width, width), whole)
    multiply = (
        jax.jit(chain, out_shardings=split)
        .lower(x, weights)
        .compile(compiler_options=_LIBRARIES[library])
    )

    def run(n: int) -> None:
        done = multiply(x, weights)
        for _ in range(n - 1):
            ahead = multiply(x, weights)  # queued before the last one is waited for
            jax.block_until_ready(done)
            done = ahead
        jax.block_until_ready(done)

    return Candidate(run, _CHAIN * product.flops)
