"""Causal attention behind one function, computed in the way that suits the platform."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec

from scaling_jax.errors import RequestError

# Rows of a block of `blocks`: of a context of 128 tokens, half of what the mask hides is left out.
BLOCK_ROWS = 64
MOST_BLOCKS = 8
SPLASH_ROWS = 128


def choose_attention(
    asked: str | None, platform: str, dtype: str, n_ctx: int, d_head: int, document_mask: bool
) -> str:
    """The implementation for a platform (`cpu`, `gpu`, `tpu`): the one asked for, or the quickest.

    Raises `RequestError` for one that the platform, the shape or the mask does not allow.
    """
    faults = {
        "xla": "",
        "blocks": "",
        "cudnn": _cudnn_fault(platform, dtype, d_head, document_mask),
        "splash": _splash_fault(platform, n_ctx),
    }
    if asked is None:
        preferred = {"gpu": "cudnn", "tpu": "splash"}.get(platform, "blocks")
        return preferred if not faults[preferred] else "xla"
    if faults[asked]:
        fitting = ", ".join(name for name, fault in faults.items() if not fault)
        raise RequestError(f"engine.attention {asked!r} {faults[asked]}; what fits: {fitting}")
    return asked


def _cudnn_fault(platform: str, dtype: str, d_head: int, document_mask: bool) -> str:
    if platform != "gpu":
        return f"needs an NVIDIA GPU, and this is a {platform}"
    if dtype != "bfloat16":
        return f"needs compute_dtype bfloat16, not {dtype}"
    if d_head % 8 or d_head > 128:
        return f"needs heads of a multiple of 8 up to 128, not {d_head}"
    if document_mask:
        return "has no model.document_mask"
    return ""


def _splash_fault(platform: str, n_ctx: int) -> str:
    if platform != "tpu":
        return f"needs a TPU, and this is a {platform}"
    if n_ctx % SPLASH_ROWS:
        return f"needs n_ctx to be a multiple of {SPLASH_ROWS}, not {n_ctx}"
    return ""


def attend(
    q_bthc: jax.Array,
    k_bthc: jax.Array,
    v_bthc: jax.Array,
    implementation: str,
    segments_bt: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention to positions up to each one's own, scores over sqrt(c): `[b, t, h, c]`.

    Where `segments_bt` are given, to those of one's own segment alone.
    """
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(
            q_bthc, k_bthc, v_bthc, is_causal=True, implementation="cudnn"
        )
    if implementation == "splash":
        return attend_splash(q_bthc, k_bthc, v_bthc, segments_bt)
    n_ctx = q_bthc.shape[1]
    blocks = 1 if implementation == "xla" else max(1, min(n_ctx // BLOCK_ROWS, MOST_BLOCKS))
    return _attend_in_blocks(q_bthc, k_bthc, v_bthc, segments_bt, blocks)


def _attend_in_blocks(
    q_bthc: jax.Array,
    k_bthc: jax.Array,
    v_bthc: jax.Array,
    segments_bt: jax.Array | None,
    blocks: int,
) -> jax.Array:
    # Scores are [.., s, t], keys before queries: XLA sums over a leading axis in vector
    # instructions and over the last one number by number.
    n_ctx, d_head = q_bthc.shape[1], q_bthc.shape[3]
    q_bhtc, k_bhsc, v_bhsc = (x.swapaxes(1, 2) for x in (q_bthc, k_bthc, v_bthc))
    q_bhtc = q_bhtc * d_head**-0.5
    ends = [n_ctx * (i + 1) // blocks for i in range(blocks)]
    mixed = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        scores_bhst = jnp.einsum(
            "bhsc,bhtc->bhst",
            k_bhsc[:, :, :end],
            q_bhtc[:, :, start:end],
            preferred_element_type=jnp.float32,
        )
        seen_st = jnp.arange(end)[:, None] <= jnp.arange(start, end)[None, :]
        seen_bhst = seen_st[None, None]
        if segments_bt is not None:
            own_bst = segments_bt[:, :end, None] == segments_bt[:, None, start:end]
            seen_bhst = seen_bhst & own_bst[:, None]
        weights_bhst = jax.nn.softmax(jnp.where(seen_bhst, scores_bhst, -jnp.inf), -2)
        mixed.append(
            jnp.einsum("bhst,bhsc->bthc", weights_bhst.astype(v_bhsc.dtype), v_bhsc[:, :, :end])
        )
    return jnp.concatenate(mixed, 1) if blocks > 1 else mixed[0]


def attend_splash(
    q_bthc: jax.Array,
    k_bthc: jax.Array,
    v_bthc: jax.Array,
    segments_bt: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """The splash kernel of JAX's Pallas library, each device on its own rows and heads.

    Runs under a mesh with axes `fsdp` and `tensor`; `interpret` computes it on any platform.
    """
    n_ctx, n_head, d_head = q_bthc.shape[1:]
    mesh = jax.sharding.get_abstract_mesh()
    heads = n_head // mesh.shape["tensor"]

    def local(
        q_bthc: jax.Array, k_bthc: jax.Array, v_bthc: jax.Array, segments_bt: jax.Array | None
    ) -> jax.Array:
        mask = splash.MultiHeadMask([splash.CausalMask((n_ctx, n_ctx)) for _ in range(heads)])
        kernel = splash.make_splash_mha(
            mask=mask, head_shards=1, q_seq_shards=1, interpret=interpret
        )
        q_bhtc, k_bhtc, v_bhtc = (x.swapaxes(1, 2) for x in (q_bthc, k_bthc, v_bthc))
        segments = None if segments_bt is None else splash.SegmentIds(segments_bt, segments_bt)
        mixed_bhtc: Any = jax.vmap(kernel)(q_bhtc * d_head**-0.5, k_bhtc, v_bhtc, segments)
        return mixed_bhtc.swapaxes(1, 2)

    spec = PartitionSpec("fsdp", None, "tensor", None)
    rows = None if segments_bt is None else PartitionSpec("fsdp", None)
    return jax.shard_map(
        local, mesh=mesh, in_specs=(spec, spec, spec, rows), out_specs=spec, check_vma=False
    )(q_bthc, k_bthc, v_bthc, segments_bt)
