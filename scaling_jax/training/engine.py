"""How a cohort is computed on the platform at hand: the automatic fields of `engine` filled in."""

from __future__ import annotations

import os

import jax

from scaling_jax.config import EngineConfig, RunConfig
from scaling_jax.errors import RequestError
from scaling_jax.hosts.agreement import agreed
from scaling_jax.models.attention import choose_attention

# A layer is traced once and scanned from this depth on. Below, layers side by side make the
# quicker step; but on a CPU the compiler merges what unrolled layers are to compute
# anew with what they computed, so that `remat` saves nothing.
SCAN_FROM = {"cpu": 16, "gpu": 8, "tpu": 8}
# Share of a device's memory that the corpus may take before the host feeds the program instead.
TOKENS_SHARE = 0.25
MOST_DEVICE_TOKENS = 2**31 - 1


def resolve_engine(
    config: RunConfig, n_tokens: int, itemsize: int, platform: str, memory: int
) -> EngineConfig:
    """The engine of runs on devices of `platform` (`cpu`, `gpu`, `tpu`) with `memory` bytes each.

    `n_tokens` of `itemsize` bytes are what the runs draw from.

    Raises `RequestError` for an attention that the platform lacks, and for a corpus that is asked
    to lie on the device and cannot be addressed there.
    """
    asked, model = config.engine, config.model
    fits = n_tokens <= MOST_DEVICE_TOKENS
    if asked.feed == "device" and not fits:
        raise RequestError(
            f"engine.feed 'device' addresses {MOST_DEVICE_TOKENS:,} tokens at most, and the "
            f"training set has {n_tokens:,}: leave it out, or set engine.feed=host"
        )
    deep = model.n_layer >= SCAN_FROM.get(platform, 8)
    feed = "device" if fits and n_tokens * itemsize <= TOKENS_SHARE * memory else "host"
    return asked.model_copy(
        update={
            "attention": choose_attention(
                asked.attention,
                platform,
                config.compute_dtype,
                model.n_ctx,
                model.d_model // model.n_head,
                model.document_mask,
            ),
            "layers": asked.layers or ("scan" if deep or asked.remat != "none" else "unrolled"),
            "feed": asked.feed or feed,
        }
    )


def describe_engine(engine: EngineConfig) -> str:
    """As in `attention=blocks layers=unrolled feed=device remat=none`."""
    fields = ("attention", "layers", "feed", "remat")
    return " ".join(f"{name}={getattr(engine, name)}" for name in fields)


def device_memory() -> int:
    """Bytes that one device has for programs; on a CPU, its share of the machine's memory."""
    devices = jax.local_devices()
    stats = devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return agreed("the memory of a device", stats["bytes_limit"])
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return agreed("the memory of a device", whole // len(devices))
