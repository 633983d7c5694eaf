from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from scaling_jax.config import EngineConfig, MeshConfig
from scaling_jax.errors import RequestError
from scaling_jax.training.mesh import make_mesh
from scaling_jax.training.noise import Cut, cut_batch, group_rows, grouped_gradient
from scaling_jax.training.sharding import partition_specs
from scaling_jax.training.step import make_model, token_losses

ROWS, N_VOCAB = 24, 29
WINDOWS = np.random.default_rng(3).integers(0, N_VOCAB, (ROWS, 9), np.int32)

# (mesh, microbatches, noise.groups, groups that come of it)
CUTS = [
    ({}, 1, 4, 4),
    ({}, 3, None, 3),
    ({}, 8, None, 8),
    ({}, 1, 24, 24),  # single sequences
    ({"data": 2}, 2, None, 4),
    ({"data": 2}, 1, 8, 8),
    ({"data": 8}, 1, None, 8),
    ({"data": 8}, 3, None, 24),
    ({"fsdp": 4}, 2, None, 2),
    ({"fsdp": 2}, 1, 6, 6),
    ({"tensor": 2}, 3, None, 3),
    ({"data": 2, "fsdp": 2, "tensor": 2}, 2, None, 4),
]


@pytest.fixture(scope="module")
def config(tiny):
    return tiny(model={"n_vocab": N_VOCAB}, batch={"sequences": ROWS})


@pytest.fixture(scope="module")
def params(config, some_parameters):
    return some_parameters(config.model)


@pytest.fixture(scope="module")
def measure(config, params, quick_jit):
    """`measure(cut, axes, window_bt)`, compiled once a cut, parameters laid as the trainer does."""
    model = make_model(config, EngineConfig())

    def loss_fn(params, window_bt):
        return token_losses(model(params, window_bt[:, :-1]), window_bt[:, 1:]).mean()

    @functools.cache
    def program(cut, mesh):
        return quick_jit(lambda params, rows: grouped_gradient(loss_fn, params, rows, cut))

    def run(cut, axes, window_bt):
        mesh = make_mesh(MeshConfig(**axes))
        laid = jax.tree.map(
            lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)),
            params,
            partition_specs(params, mesh),
        )
        with jax.set_mesh(mesh):
            return program(cut, mesh)(laid, jnp.asarray(window_bt))

    return run


def cut_of(tiny, axes: dict[str, int], microbatches: int, groups: int | None) -> Cut:
    batch = {"sequences": ROWS, "microbatches": microbatches}
    return cut_batch(tiny(batch=batch, noise={"groups": groups}), MeshConfig(**axes))


@pytest.mark.parametrize(("axes", "microbatches", "groups", "expected"), CUTS)
def test_moments_loss_and_gradient_are_those_of_brute_force(
    tiny, config, params, measure, brute_force, axes, microbatches, groups, expected
):
    cut = cut_of(tiny, axes, microbatches, groups)
    assert cut.groups == expected
    rows = np.asarray(group_rows(jnp.arange(ROWS), cut)).reshape(expected, -1)
    truth = brute_force(config.model, params, WINDOWS, rows)
    found = measure(cut, axes, WINDOWS)
    np.testing.assert_allclose(found.grad_sq_small, truth.grad_sq_small, rtol=1e-5)
    np.testing.assert_allclose(found.grad_sq_big, truth.grad_sq_big, rtol=1e-5)
    assert truth.grad_sq_small > 1.1 * truth.grad_sq_big
    whole = brute_force(config.model, params, WINDOWS, np.arange(ROWS)[None])
    np.testing.assert_allclose(found.loss, whole.loss, rtol=1e-6)
    for leaf, true_leaf in zip(jax.tree.leaves(found.gradient), whole.gradient, strict=True):
        np.testing.assert_allclose(leaf, true_leaf, rtol=1e-5, atol=1e-6)

    same = measure(cut, axes, np.repeat(WINDOWS[:1], ROWS, axis=0))
    assert abs(same.grad_sq_small - same.grad_sq_big) <= 1e-5 * same.grad_sq_big


def test_the_small_norm_depends_on_the_cut_and_the_big_one_does_not(tiny, measure):
    found = [
        measure(cut_of(tiny, {}, microbatches, groups), {}, WINDOWS)
        for microbatches, groups in ((3, None), (8, None), (1, 24))
    ]
    small = [float(one.grad_sq_small) for one in found]
    assert small[0] < small[1] < small[2]
    np.testing.assert_allclose([one.grad_sq_big for one in found], found[0].grad_sq_big, rtol=1e-5)


def test_what_is_not_measured_is_zero_and_the_rest_the_same(config, params, measure, quick_jit):
    model, cut = make_model(config, EngineConfig()), Cut(1, 4)

    def loss_fn(params, window_bt):
        return token_losses(model(params, window_bt[:, :-1]), window_bt[:, 1:]).mean()

    with jax.set_mesh(make_mesh(MeshConfig())):
        found = quick_jit(lambda p, rows: grouped_gradient(loss_fn, p, rows, cut, measure=False))(
            params, jnp.asarray(WINDOWS)
        )
    measured = measure(cut, {}, WINDOWS)
    assert (found.grad_sq_small, found.grad_sq_big) == (0.0, 0.0)
    np.testing.assert_allclose(found.loss, measured.loss, rtol=1e-6)


@settings(max_examples=10)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_every_row_is_in_one_group_and_neighbours_are_apart(microbatches, width, each):
    cut = Cut(microbatches, width)
    n = cut.groups * each
    pairs = np.asarray(group_rows(np.arange(2 * n).reshape(n, 2), cut))
    assert pairs.shape == (microbatches, width, each, 2)
    np.testing.assert_array_equal(pairs[..., 1], pairs[..., 0] + 1)
    rows = np.sort(pairs[..., 0] // 2, axis=-1)
    np.testing.assert_array_equal(np.sort(rows, axis=None), np.arange(n))
    assert (np.diff(rows, axis=-1) == cut.groups).all()


@pytest.mark.parametrize(
    ("axes", "microbatches", "noise", "cut"),
    [
        ({}, 1, {}, Cut(1, 1)),
        ({"data": 4}, 2, {}, Cut(2, 4)),
        ({}, 2, {"groups": 8}, Cut(2, 4)),
        ({"data": 2}, 3, {"groups": 7}, Cut(3, 4)),  # at least as many as asked for
        ({"data": 4}, 2, {"groups": 3}, Cut(2, 4)),
        ({"data": 2}, 1, {"groups": 24, "enabled": False}, Cut(1, 2)),
        ({"lane": 2, "data": 2, "fsdp": 4, "tensor": 2}, 3, {}, Cut(3, 2)),  # data alone counts
    ],
)
def test_cuts(tiny, axes, microbatches, noise, cut):
    config = tiny(batch={"sequences": ROWS, "microbatches": microbatches}, noise=noise)
    assert cut_batch(config, MeshConfig(**axes)) == cut


@pytest.mark.parametrize(
    ("axes", "groups"),
    [({}, 5), ({"data": 5}, None), ({}, 48), ({"data": 8}, 9), ({"fsdp": 5}, None)],
)
def test_rows_that_do_not_divide_are_refused(tiny, axes, groups):
    with pytest.raises(RequestError, match=r"batch.sequences 24 does not divide"):
        cut_of(tiny, axes, 1, groups)
