from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from scaling_jax.config import MeshConfig, OptimizerConfig
from scaling_jax.training.mesh import make_mesh
from scaling_jax.training.optimizers import make_optimizer
from scaling_jax.training.sharding import over_lanes, partition_specs, replicated, state_shardings
from scaling_jax.training.step import init_state, numbers_of

SPECS = {
    "embedding": P("tensor", "fsdp"),
    "position": P(None, "fsdp"),
    "head": P("fsdp", "tensor"),
    "blocks/attention/qkv": P(None, "fsdp", "tensor", None, None),
    "blocks/attention/out": P(None, "tensor", None, "fsdp"),
    "blocks/feed_forward/up": P(None, "fsdp", "tensor"),
    "blocks/feed_forward/down": P(None, "tensor", "fsdp"),
    "blocks/norm_attention/gain": P(),
    "norm/bias": P(),
}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(lane=2, fsdp=2, tensor=2))


def names(path: tuple[Any, ...]) -> str:
    return "/".join(str(entry.key) for entry in path if hasattr(entry, "key"))


def specs_of(tree: Any, mesh: Any) -> dict[str, P]:
    found = partition_specs(tree, mesh)
    leaves = jax.tree.leaves_with_path(found, is_leaf=lambda x: isinstance(x, P))
    return {names(path): spec for path, spec in leaves}


@pytest.fixture(scope="module")
def state_of(tiny):
    """`state_of(**changes)`: the shapes of the state of one run of a model of two layers."""

    def shapes(**changes: Any) -> Any:
        config = tiny(**{"model": {"n_layer": 2, "d_model": 16, "n_vocab": 260}, **changes})
        with jax.numpy_dtype_promotion("standard"):
            return jax.eval_shape(lambda n: init_state(config, n), numbers_of(config, 500))

    return shapes


def test_parameters_are_cut_by_what_they_are(state_of, mesh):
    found = specs_of(state_of().params, mesh)
    assert {name: found[name] for name in SPECS} == SPECS
    assert {found[name] for name in found.keys() - SPECS.keys()} == {P()}


def test_an_axis_that_does_not_divide_is_left_out(state_of, mesh):
    odd = state_of(model={"n_layer": 2, "d_model": 16, "n_vocab": 257})
    assert specs_of(odd.params, mesh)["embedding"] == P(None, "fsdp")
    assert specs_of(odd.params, mesh)["head"] == P("fsdp", None)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "muon"])
def test_moments_lie_as_their_parameters(state_of, mesh, name):
    momentum = {"momentum": 0.9} if name == "sgd" else {}
    state = state_of(optimizer={"name": name, **momentum})
    params = specs_of(state.params, mesh)
    found = specs_of(state.opt_state, mesh)
    matched = 0
    for path, spec in found.items():
        of = next((name for name in params if path.endswith(name)), None)
        matched += of is not None
        assert spec == (params[of] if of else P()), path
    assert matched >= len(params)


def test_the_factors_of_adafactor_have_a_copy_everywhere(mesh):
    params = {"blocks": {"up": jax.ShapeDtypeStruct((2, 128, 256), jnp.float32)}}
    optimizer = make_optimizer(OptimizerConfig(name="adafactor"), 0.0, 0.0)
    state = jax.eval_shape(optimizer.init, params)
    specs = partition_specs(state, mesh)
    shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
    assert {(2, 128), (2, 256)} <= shapes
    assert set(jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P))) == {P()}


def test_a_state_over_lanes_has_the_lane_first(state_of, mesh):
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((4, *x.shape), x.dtype), state_of())
    shardings = state_shardings(stacked, mesh)
    for (path, leaf), (_, sharding) in zip(
        jax.tree.leaves_with_path(stacked), jax.tree.leaves_with_path(shardings), strict=True
    ):
        assert sharding.spec[0] == "lane", path
        sharding.shard_shape(leaf.shape)  # divides
    up = shardings.params["blocks"]["feed_forward"]["up"]
    assert jax.tree.leaves(up)[0].spec == P("lane", None, "fsdp", "tensor")


def test_what_is_laid_over_the_mesh(mesh):
    x = np.arange(8.0).reshape(4, 2)
    lanes = jax.device_put(x, over_lanes(mesh))
    shards = {shard.device: np.asarray(shard.data) for shard in lanes.addressable_shards}
    for lane, devices in enumerate(mesh.devices):
        for device in devices.ravel():
            np.testing.assert_array_equal(shards[device], x[2 * lane : 2 * lane + 2])
    assert jax.device_put(x, replicated(mesh)).is_fully_replicated
