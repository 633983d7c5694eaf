"""Accelerators by name and slice name: peak compute, memory, hosts, and what a plan costs there."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from scaling_jax.errors import RequestError, nearest

_HOUR = 3600.0


@dataclass(frozen=True)
class Accelerator:
    """One chip: dense bfloat16 peak (FLOP/s), memory (GB as the vendor prints it), and hosts.

    `cores` is how many the number in a slice's name counts for one chip. A host is one machine; a
    slice beyond one host is cut into virtual machines of `chips_per_vm`, one JAX process each.
    """

    name: str
    aliases: tuple[str, ...]
    peak_flops: float
    hbm_gb: int
    cores: int
    chips_per_host: int
    chips_per_vm: int
    source: str


def _tpu(name: str) -> str:
    return f"Google Cloud documentation, cloud.google.com/tpu/docs/{name}"


_HOPPER = (
    "NVIDIA Hopper tensor core GPU, SXM5: 1,978.9 TFLOP/s in bf16 with 2:4 sparsity, "
    "half of it dense; 8 GPUs an HGX host"
)

# One row a chip, so that a correction is made in one place. No prices: they differ by region and
# contract, and a vendor's page of prices holds only for the day on which it is read.
ACCELERATORS = {
    chip.name: chip
    for chip in (
        Accelerator(
            name="v4",
            aliases=("tpu-v4",),
            peak_flops=275e12,
            hbm_gb=32,
            cores=2,
            chips_per_host=4,
            chips_per_vm=4,
            source=_tpu("v4"),
        ),
        Accelerator(
            name="v5e",
            aliases=("v5litepod", "v5lite", "tpu-v5e"),
            peak_flops=197e12,
            hbm_gb=16,
            cores=1,
            chips_per_host=8,
            chips_per_vm=4,
            source=_tpu("v5e"),
        ),
        Accelerator(
            name="v5p",
            aliases=("tpu-v5p",),
            peak_flops=459e12,
            hbm_gb=95,
            cores=2,
            chips_per_host=4,
            chips_per_vm=4,
            source=_tpu("v5p"),
        ),
        Accelerator(
            name="v6e",
            aliases=("trillium", "tpu-v6e"),
            peak_flops=918e12,
            hbm_gb=32,
            cores=1,
            chips_per_host=8,
            chips_per_vm=4,
            source=_tpu("v6e"),
        ),
        Accelerator(
            name="H100",
            aliases=(),
            peak_flops=989.4e12,
            hbm_gb=80,
            cores=1,
            chips_per_host=8,
            chips_per_vm=8,
            source=_HOPPER,
        ),
        Accelerator(
            name="H200",
            aliases=(),
            peak_flops=989.4e12,
            hbm_gb=141,
            cores=1,
            chips_per_host=8,
            chips_per_vm=8,
            source=_HOPPER,
        ),
    )
}

_BY_NAME = {
    word.lower(): chip for chip in ACCELERATORS.values() for word in (chip.name, *chip.aliases)
}


@dataclass(frozen=True)
class Slice:
    """Some chips of one kind, the hosts they sit on, and the virtual machines they are cut into."""

    name: str
    accelerator: Accelerator
    chips: int

    @property
    def hosts(self) -> int:
        return math.ceil(self.chips / self.accelerator.chips_per_host)

    @property
    def vms(self) -> int:
        if self.chips <= self.accelerator.chips_per_host:
            return 1
        return math.ceil(self.chips / self.accelerator.chips_per_vm)


def find_slice(name: str, chips: int | None = None) -> Slice:
    """`v4`, `v4-32` (32 TensorCores: 16 chips), `v5e-16`, `v5litepod-16`, `H100-8` and the like.

    `chips` counts the chips of a name without a number (1 when left out). Raises `RequestError`
    for an unknown name, for a number of cores that makes no whole chips, and for a count that
    contradicts the slice's name.
    """
    if chips is not None and chips < 1:
        raise RequestError(f"chips are 1 or more, not {chips}")
    word = name.strip().lower()
    if word in _BY_NAME:
        return Slice(_BY_NAME[word].name, _BY_NAME[word], 1 if chips is None else chips)
    found = re.fullmatch(r"(.+)-([0-9]{1,9})", word)
    if found is None or found[1] not in _BY_NAME:
        kind = word.split("-")[0] if word.split("-")[0] else word
        raise RequestError(f"No accelerator {name!r}.{nearest(kind, _BY_NAME)}")
    chip, number = _BY_NAME[found[1]], int(found[2])
    if number < 1 or number % chip.cores:
        raise RequestError(
            f"{name}: the number counts TensorCores, {chip.cores} a chip"
            if chip.cores > 1
            else f"{name}: the number counts chips, 1 or more"
        )
    inside = number // chip.cores
    if chips is not None and chips != inside:
        raise RequestError(f"{name} has {inside} chips; leave out chips = {chips}")
    return Slice(f"{chip.name}-{number}", chip, inside)


@dataclass(frozen=True)
class Bill:
    """Time and money of `flops` on a slice at an assumed share of its peak (`mfu`).

    `money_usd` is None without a price. Hours are of training alone: no start, no evaluation.
    """

    slice: Slice
    mfu: float
    chip_hours: float
    hours: float
    usd_per_chip_hour: float | None
    money_usd: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        chip = self.slice.accelerator
        return {
            "name": self.slice.name,
            "chips": self.slice.chips,
            "hosts": self.slice.hosts,
            "vms": self.slice.vms,
            "peak_flops_per_chip": chip.peak_flops,
            "hbm_gb_per_chip": chip.hbm_gb,
            "mfu": self.mfu,
            "chip_hours": self.chip_hours,
            "hours": self.hours,
            "usd_per_chip_hour": self.usd_per_chip_hour,
            "money_usd": self.money_usd,
            "source": chip.source,
        }


def check_share(mfu: float) -> None:
    """Raises `RequestError` unless `mfu` is a share of the peak that something could run at."""
    if not 0 < mfu <= 1:
        raise RequestError(f"mfu is a share of the peak, above 0 and up to 1, not {mfu:g}")


def bill(flops: float, where: Slice, mfu: float, usd_per_chip_hour: float | None = None) -> Bill:
    """What `flops` take on a slice. Raises `RequestError` for an impossible share or price."""
    check_share(mfu)
    if usd_per_chip_hour is not None and not 0 <= usd_per_chip_hour < math.inf:
        raise RequestError(f"a price is in USD a chip and hour, not {usd_per_chip_hour:g}")
    chip_hours = flops / (where.accelerator.peak_flops * mfu) / _HOUR
    return Bill(
        slice=where,
        mfu=mfu,
        chip_hours=chip_hours,
        hours=chip_hours / where.chips,
        usd_per_chip_hour=usd_per_chip_hour,
        money_usd=None if usd_per_chip_hour is None else chip_hours * usd_per_chip_hour,
    )
