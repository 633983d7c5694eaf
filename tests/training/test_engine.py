from __future__ import annotations

from typing import Any

import jax
import pytest

from scaling_jax.config import EngineConfig
from scaling_jax.errors import RequestError
from scaling_jax.training.engine import (
    MOST_DEVICE_TOKENS,
    describe_engine,
    device_memory,
    resolve_engine,
)

TOKENS, ITEMSIZE = 1000, 2
ROOMY = 2**34


@pytest.mark.parametrize(
    ("platform", "changes", "expected"),
    [
        ("cpu", {}, ("blocks", "unrolled", "device", "none")),
        ("cpu", {"model": {"n_layer": 15}}, ("blocks", "unrolled", "device", "none")),
        ("cpu", {"model": {"n_layer": 16}}, ("blocks", "scan", "device", "none")),
        ("gpu", {}, ("xla", "unrolled", "device", "none")),
        ("gpu", {"model": {"n_layer": 8}}, ("xla", "scan", "device", "none")),
        (
            "gpu",
            {"compute_dtype": "bfloat16", "model": {"d_model": 128}},
            ("cudnn", "unrolled", "device", "none"),
        ),
        (
            "gpu",
            {"compute_dtype": "bfloat16", "model": {"d_model": 128, "document_mask": True}},
            ("xla", "unrolled", "device", "none"),
        ),
        ("tpu", {"model": {"n_ctx": 128}}, ("splash", "unrolled", "device", "none")),
        # unrolled layers are not computed anew on a CPU
        ("cpu", {"engine": {"remat": "full"}}, ("blocks", "scan", "device", "full")),
        (
            "cpu",
            {"engine": {"remat": "dots", "layers": "unrolled", "attention": "xla", "feed": "host"}},
            ("xla", "unrolled", "host", "dots"),
        ),
    ],
)
def test_what_is_not_asked_for_is_chosen(
    tiny: Any, platform: str, changes: dict[str, Any], expected: tuple[str, ...]
) -> None:
    engine = resolve_engine(tiny(**changes), TOKENS, ITEMSIZE, platform, ROOMY)
    assert (engine.attention, engine.layers, engine.feed, engine.remat) == expected
    assert describe_engine(engine) == "attention={} layers={} feed={} remat={}".format(*expected)


def test_a_corpus_lies_on_the_device_where_it_fits(tiny: Any) -> None:
    def feed(n_tokens: int, memory: int, **asked: Any) -> str | None:
        return resolve_engine(tiny(engine=asked), n_tokens, ITEMSIZE, "cpu", memory).feed

    assert feed(TOKENS, 4 * TOKENS * ITEMSIZE) == "device"
    assert feed(TOKENS, 4 * TOKENS * ITEMSIZE - 1) == "host"
    assert feed(TOKENS, 1, feed="device") == "device"
    assert feed(TOKENS, ROOMY, feed="host") == "host"
    assert feed(MOST_DEVICE_TOKENS + 1, 2**50) == "host"
    with pytest.raises(RequestError, match=r"2,147,483,647 tokens at most.*engine.feed=host"):
        feed(MOST_DEVICE_TOKENS + 1, 2**50, feed="device")


def test_an_attention_that_the_platform_lacks_is_refused(tiny: Any) -> None:
    with pytest.raises(RequestError, match=r"engine.attention 'cudnn' needs an NVIDIA GPU"):
        resolve_engine(tiny(engine={"attention": "cudnn"}), TOKENS, ITEMSIZE, "cpu", ROOMY)


def test_lanes_stay_as_asked_for(tiny: Any) -> None:
    engine = resolve_engine(tiny(engine={"lanes": 3}), TOKENS, ITEMSIZE, "cpu", ROOMY)
    assert engine == EngineConfig(
        lanes=3, attention="blocks", layers="unrolled", feed="device", remat="none"
    )


def test_cpu_devices_share_the_memory_of_the_machine() -> None:
    with open("/proc/meminfo") as lines:
        kib = next(int(line.split()[1]) for line in lines if line.startswith("MemTotal"))
    assert device_memory() == pytest.approx(1024 * kib / len(jax.devices()), rel=1e-3)


def test_an_accelerator_tells_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        def memory_stats(self) -> dict[str, int]:
            return {"bytes_limit": 123, "bytes_in_use": 7}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()] * 4)
    assert device_memory() == 123
