"""Slices by name against the vendors' tables, and what a run costs there."""

from __future__ import annotations

import pytest

from scaling_jax.errors import RequestError
from scaling_jax.laws.accelerators import ACCELERATORS, bill, find_slice


@pytest.mark.parametrize(
    ("name", "chips", "hosts", "vms"),
    [
        # TPU v4 and v5p: the number counts TensorCores, two a chip, four chips a host.
        ("v4-8", 4, 1, 1),
        ("v4-32", 16, 4, 4),
        ("v4-4096", 2048, 512, 512),
        ("v5p-8", 4, 1, 1),
        ("v5p-128", 64, 16, 16),
        ("v5p-12288", 6144, 1536, 1536),
        # TPU v5e and v6e: the number counts chips, eight a host, four a VM beyond one host.
        ("v5e-1", 1, 1, 1),
        ("v5e-8", 8, 1, 1),
        ("v5e-16", 16, 2, 4),
        ("v5litepod-16", 16, 2, 4),
        ("v6e-16", 16, 2, 4),
        ("v6e-256", 256, 32, 64),
        ("H100-8", 8, 1, 1),
        ("h200-16", 16, 2, 2),
        (" V4-32 ", 16, 4, 4),
    ],
)
def test_slices_have_the_chips_and_hosts_of_the_vendors_tables(
    name: str, chips: int, hosts: int, vms: int
) -> None:
    found = find_slice(name)
    assert (found.chips, found.hosts, found.vms) == (chips, hosts, vms)


def test_a_kind_of_chip_takes_its_count_from_chips() -> None:
    assert find_slice("v4").chips == 1
    assert find_slice("v4", 16).hosts == 4
    assert find_slice("v4-32", 16).chips == 16


@pytest.mark.parametrize(
    ("name", "chips", "says"),
    [
        ("v5x", None, "No accelerator 'v5x'. Did you mean 'v5"),
        ("H10-8", None, "Did you mean 'h100'"),
        ("", None, "No accelerator ''"),
        ("-8", None, "No accelerator '-8'"),
        ("v4-33", None, "counts TensorCores, 2 a chip"),
        ("v4-0", None, "counts TensorCores"),
        ("v6e-0", None, "counts chips, 1 or more"),
        ("v4-32", 32, "v4-32 has 16 chips"),
        ("v4", 0, "chips are 1 or more"),
        ("v5e-１６", None, "No accelerator"),
    ],
)
def test_wrong_names_and_counts_are_told(name: str, chips: int | None, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        find_slice(name, chips)


def test_every_chip_is_sourced_and_has_its_published_peak() -> None:
    peaks = {name: chip.peak_flops for name, chip in ACCELERATORS.items()}
    assert peaks == {
        "v4": 275e12,
        "v5e": 197e12,
        "v5p": 459e12,
        "v6e": 918e12,
        "H100": 989.4e12,
        "H200": 989.4e12,
    }
    assert all("tpu/docs/v" in c.source or "NVIDIA" in c.source for c in ACCELERATORS.values())


def test_time_and_money_of_a_run() -> None:
    # 1e21 FLOPs on 16 chips at 40 % of 275e12: 9.09e6 chip-seconds.
    cost = bill(1e21, find_slice("v4-32"), 0.4, 3.0)
    assert cost.chip_hours == pytest.approx(1e21 / 1.1e14 / 3600)
    assert cost.hours == pytest.approx(cost.chip_hours / 16)
    assert cost.money_usd == pytest.approx(3.0 * cost.chip_hours)
    assert bill(1e21, find_slice("v4-32"), 0.4).money_usd is None
    assert bill(1e21, find_slice("v4-32"), 0.4).to_json()["hosts"] == 4


@pytest.mark.parametrize(
    ("mfu", "price"), [(0.0, None), (1.01, None), (float("nan"), None), (0.4, -1.0), (0.4, 1e999)]
)
def test_impossible_shares_and_prices_are_refused(mfu: float, price: float | None) -> None:
    with pytest.raises(RequestError, match=r"mfu|price"):
        bill(1e21, find_slice("v4"), mfu, price)
