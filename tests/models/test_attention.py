from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling_jax.config import MeshConfig
from scaling_jax.errors import RequestError
from scaling_jax.models.attention import attend, attend_splash, choose_attention
from scaling_jax.training.mesh import make_mesh

Arrays = tuple[jax.Array, jax.Array, jax.Array]


def draw(*shape: int) -> Arrays:
    draws = np.random.default_rng(0)
    q, k, v = (jnp.asarray(draws.standard_normal(shape, np.float32)) for _ in range(3))
    return q, k, v


def with_gradients(attention: Callable[..., jax.Array]) -> Callable[..., Any]:
    """The mixed values, and gradients of something that is not linear in them."""

    def both(*qkv: jax.Array) -> Any:
        def value(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
            mixed = attention(*qkv)
            return jnp.sin(mixed).sum(), mixed

        return jax.grad(value, argnums=(0, 1, 2), has_aux=True)(*qkv)

    return both


def compute(attention: Callable[..., Any], qkv: Arrays) -> list[np.ndarray]:
    outputs = jax.jit(attention)(*qkv)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(outputs)]


def by_hand(q: jax.Array, k: jax.Array, v: jax.Array) -> np.ndarray:
    """A softmax a position, in float64."""
    q64, k64, v64 = (np.asarray(x, np.float64) for x in (q, k, v))
    mixed = np.zeros_like(q64)
    for b, t, h in np.ndindex(q.shape[:3]):
        weights = np.exp(k64[b, : t + 1, h] @ q64[b, t, h] / np.sqrt(q.shape[3]))
        mixed[b, t, h] = weights @ v64[b, : t + 1, h] / weights.sum()
    return mixed


@pytest.mark.parametrize("implementation", ["xla", "blocks"])
@pytest.mark.parametrize("n_ctx", [5, 128])
def test_each_position_mixes_what_is_up_to_it(implementation, n_ctx):
    qkv = draw(1, n_ctx, 2, 8)
    (found,) = compute(functools.partial(attend, implementation=implementation), qkv)
    np.testing.assert_allclose(found, by_hand(*qkv), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_ctx", [64, 128, 200])
def test_blocks_are_the_whole(n_ctx):
    qkv = draw(2, n_ctx, 2, 8)
    whole, blocks = (
        compute(with_gradients(functools.partial(attend, implementation=name)), qkv)
        for name in ("xla", "blocks")
    )
    assert len(whole) == 4
    for one, other in zip(whole, blocks, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


SEGMENTS = np.sort(np.random.default_rng(3).integers(0, 9, (2, 128)), axis=1).astype(np.int32)


@pytest.mark.parametrize("implementation", ["xla", "blocks"])
def test_segments_are_apart(implementation):
    q, k, v = draw(2, 128, 2, 8)

    def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q, k, v, implementation, jnp.asarray(SEGMENTS))

    (found,) = compute(attention, (q, k, v))
    for row in range(2):
        for segment in np.unique(SEGMENTS[row]):
            own = SEGMENTS[row] == segment
            expected = by_hand(*(x[row : row + 1, own] for x in (q, k, v)))
            np.testing.assert_allclose(found[row, own], expected[0], rtol=1e-5, atol=1e-6)


def test_scores_and_softmax_are_float32_in_bfloat16():
    qkv = draw(1, 128, 2, 8)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), qkv)
    for name in ("xla", "blocks"):
        (found,) = compute(functools.partial(attend, implementation=name), narrow)
        assert found.dtype == jnp.bfloat16
        expected = by_hand(*(x.astype(jnp.float32) for x in narrow))
        np.testing.assert_allclose(found.astype(np.float32), expected, atol=0.02)
    text = jax.jit(functools.partial(attend, implementation="xla")).lower(*narrow).as_text()
    assert re.search(r"stablehlo.exponential .*xf32>", text)


def over(*axes: str) -> Callable[[Any], Any]:
    """Wraps a function in a vmap an axis, laid over the mesh as the trainer lays groups."""

    def wrap(function: Any) -> Any:
        for axis in axes:
            function = jax.vmap(function, spmd_axis_name=axis)
        return function

    return wrap


@pytest.mark.parametrize(
    ("vmapped", "axes", "segmented"),
    [
        ((), {}, False),
        ((), {"fsdp": 2, "tensor": 2}, True),
        (("data",), {"data": 2, "fsdp": 2, "tensor": 2}, False),
        (("data", "lane"), {"lane": 2, "data": 2, "tensor": 2}, True),
    ],
)
def test_splash_is_xla_on_every_mesh(vmapped, axes, segmented):
    qkv = draw(*(2 for _ in vmapped), 2, 128, 2, 8)
    wrap = over(*vmapped)
    segments = jnp.asarray(SEGMENTS) if segmented else None
    splash = with_gradients(functools.partial(attend_splash, segments_bt=segments, interpret=True))
    on_tpu = with_gradients(functools.partial(attend_splash, segments_bt=segments))
    xla = with_gradients(functools.partial(attend, implementation="xla", segments_bt=segments))
    with (
        jax.set_mesh(make_mesh(MeshConfig(**axes))),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        found = compute(wrap(splash), qkv)
        for_tpu = jax.jit(wrap(on_tpu)).trace(*qkv)
        text = for_tpu.lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text
    expected = compute(wrap(xla), qkv)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("platform", "dtype", "n_ctx", "d_head", "chosen"),
    [
        ("cpu", "float32", 128, 16, "blocks"),
        ("cpu", "bfloat16", 100, 7, "blocks"),
        ("gpu", "bfloat16", 100, 64, "cudnn"),
        ("gpu", "float32", 128, 64, "xla"),
        ("gpu", "bfloat16", 128, 12, "xla"),
        ("gpu", "bfloat16", 128, 136, "xla"),
        ("tpu", "float32", 256, 64, "splash"),
        ("tpu", "bfloat16", 200, 64, "xla"),
        ("other", "bfloat16", 128, 64, "blocks"),
    ],
)
def test_what_is_chosen(platform, dtype, n_ctx, d_head, chosen):
    assert choose_attention(None, platform, dtype, n_ctx, d_head, False) == chosen
    for asked in ("xla", "blocks", chosen):
        assert choose_attention(asked, platform, dtype, n_ctx, d_head, False) == asked


@pytest.mark.parametrize(
    ("asked", "platform", "dtype", "n_ctx", "d_head", "message"),
    [
        ("cudnn", "cpu", "bfloat16", 128, 64, "needs an NVIDIA GPU, and this is a cpu"),
        ("cudnn", "gpu", "float32", 128, 64, "needs compute_dtype bfloat16, not float32"),
        ("cudnn", "gpu", "bfloat16", 128, 12, "needs heads of a multiple of 8 up to 128, not 12"),
        ("cudnn", "gpu", "bfloat16", 128, 136, "needs heads of a multiple of 8 up to 128, not 136"),
        ("splash", "gpu", "bfloat16", 128, 64, "needs a TPU, and this is a gpu"),
        ("splash", "tpu", "bfloat16", 200, 64, "needs n_ctx to be a multiple of 128, not 200"),
    ],
)
def test_what_does_not_fit_is_refused(asked, platform, dtype, n_ctx, d_head, message):
    with pytest.raises(RequestError) as refusal:
        choose_attention(asked, platform, dtype, n_ctx, d_head, False)
    told = str(refusal.value)
    assert told.startswith(f"engine.attention '{asked}' {message}; what fits: xla, blocks")


def test_an_attention_without_a_document_mask_is_refused_where_there_is_one():
    assert choose_attention(None, "gpu", "bfloat16", 128, 64, True) == "xla"
    assert choose_attention(None, "tpu", "bfloat16", 128, 64, True) == "splash"
    with pytest.raises(
        RequestError, match=r"'cudnn' has no model.document_mask; what fits: xla, b"
    ):
        choose_attention("cudnn", "gpu", "bfloat16", 128, 64, True)
