from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scaling_jax.config import OptimizerConfig
from scaling_jax.training.optimizers import make_optimizer

DRAWS = np.random.default_rng(2)
PARAMS = {
    "matrix": DRAWS.standard_normal((2, 3)).astype(np.float32),
    "gain": DRAWS.standard_normal(3).astype(np.float32),
}
GRADIENTS = [
    {name: DRAWS.standard_normal(leaf.shape).astype(np.float32) for name, leaf in PARAMS.items()}
    for _ in range(3)
]


@pytest.fixture(autouse=True)
def _promotion_as_optax_wants_it() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"):
        yield


def updated(config: OptimizerConfig, lrs: list[float], weight_decay: float = 0.0) -> Any:
    """Parameters after one update a rate, the optimizer made anew for each as the trainer does."""
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = make_optimizer(config, 0.0, 0.0).init(params)
    for lr, gradient in zip(lrs, GRADIENTS, strict=False):
        optimizer = make_optimizer(config, lr, weight_decay)
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradient), state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(found: dict, expected: dict) -> None:
    for name in PARAMS:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "weight_decay"), [("adam", 0.0), ("adamw", 0.0), ("adamw", 0.3)])
def test_adam_by_hand(name, weight_decay):
    lrs, b1, b2, eps = [0.1, 0.03, 0.01], 0.8, 0.9, 1e-3
    expected = {leaf: array.astype(np.float64) for leaf, array in PARAMS.items()}
    for leaf in expected:
        m, v = np.zeros(()), np.zeros(())
        for t, lr in enumerate(lrs, start=1):
            g = GRADIENTS[t - 1][leaf].astype(np.float64)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            step = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
            decay = weight_decay * expected[leaf] if leaf == "matrix" else 0.0
            expected[leaf] = expected[leaf] - lr * (step + decay)
    config = OptimizerConfig(name=name, beta1=b1, beta2=b2, eps=eps)
    assert_close(updated(config, lrs, weight_decay), expected)


def test_weight_decay_acts_on_matrices_only():
    config = OptimizerConfig(name="adamw")
    with_decay, without = updated(config, [0.1], 0.3), updated(config, [0.1], 0.0)
    np.testing.assert_array_equal(with_decay["gain"], without["gain"])
    np.testing.assert_allclose(
        without["matrix"] - with_decay["matrix"], 0.03 * PARAMS["matrix"], rtol=1e-4, atol=1e-6
    )


def test_sgd_is_a_step_down_the_gradient():
    expected = {
        leaf: PARAMS[leaf] - 0.1 * GRADIENTS[0][leaf] - 0.02 * GRADIENTS[1][leaf] for leaf in PARAMS
    }
    assert_close(updated(OptimizerConfig(name="sgd"), [0.1, 0.02]), expected)


def test_sgd_with_momentum():
    expected = {
        leaf: PARAMS[leaf]
        - 0.1 * GRADIENTS[0][leaf]
        - 0.02 * (GRADIENTS[1][leaf] + 0.5 * GRADIENTS[0][leaf])
        for leaf in PARAMS
    }
    assert_close(updated(OptimizerConfig(name="sgd", momentum=0.5), [0.1, 0.02]), expected)


def blocks(draw: Any) -> dict[str, Any]:
    """Parameters named and stacked as those of a model of two layers are."""
    shapes = {
        "embedding": (29, 16),
        "blocks": {
            "norm": {"gain": (2, 16), "bias": (2, 16)},
            "qkv": (2, 16, 4, 3, 4),
            "out": (2, 4, 4, 16),
            "up": (2, 16, 64),
            "down": (2, 64, 16),
        },
    }
    return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))


def first_update(config: OptimizerConfig, gradient: Any, params: Any, lr: Any, decay: Any) -> Any:
    optimizer = make_optimizer(config, lr, decay)
    return optimizer.update(gradient, optimizer.init(params), params)


def drawn_blocks(seed: int) -> dict[str, Any]:
    draws = np.random.default_rng(seed)
    return blocks(lambda shape: jnp.asarray(draws.standard_normal(shape, np.float32)))


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_what_is_stacked_over_layers_decays_as_what_it_is(name):
    config, params, gradient = OptimizerConfig(name=name), drawn_blocks(0), drawn_blocks(1)
    plain, decayed = (first_update(config, gradient, params, 0.1, d)[0] for d in (0.0, 0.3))
    decay = jax.tree.map(lambda a, b: (a - b) / 0.03, plain, decayed)
    for path, leaf in jax.tree.leaves_with_path(decay):
        vector = path[-1].key in ("gain", "bias")
        expected: Any = params
        for key in path:
            expected = expected[key.key]
        np.testing.assert_allclose(leaf, 0.0 if vector else expected, atol=1e-4)


def test_muon_turns_each_matrix_of_each_layer_into_an_orthogonal_one():
    gradient = drawn_blocks(1)
    config = OptimizerConfig(name="muon", momentum=0.0)
    updates, _ = first_update(config, gradient, drawn_blocks(0), 1.0, 0.0)
    found = {name: np.asarray(leaf) for name, leaf in updates["blocks"].items() if name != "norm"}
    qkv = found["qkv"].transpose(0, 3, 1, 2, 4).reshape(6, 16, 16)  # three matrices a layer
    out = found["out"].reshape(2, 16, 16)
    for matrices in (qkv, out, found["up"], found["down"]):
        for matrix in matrices:
            values = np.linalg.svd(matrix, compute_uv=False)
            assert values.max() < 2.0 * values.min()
            # the root mean square of an AdamW update, whatever the matrix
            assert np.sqrt(np.square(matrix).mean()) == pytest.approx(0.2, rel=0.25)
    raw = np.asarray(gradient["blocks"]["up"])[0]
    values = np.linalg.svd(raw, compute_uv=False)
    assert values.max() > 2.0 * values.min()
    assert np.vdot(found["up"][0], raw) < 0  # down the gradient


def test_muon_leaves_all_but_the_blocks_to_adam():
    params, gradient = drawn_blocks(0), drawn_blocks(1)
    muon, adam = (
        first_update(OptimizerConfig(name=name), gradient, params, 0.1, 0.0)[0]
        for name in ("muon", "adamw")
    )
    np.testing.assert_allclose(muon["embedding"], adam["embedding"], rtol=1e-4, atol=1e-6)
    for name in ("gain", "bias"):
        one, other = (tree["blocks"]["norm"][name] for tree in (muon, adam))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert np.abs(muon["blocks"]["up"] - adam["blocks"]["up"]).max() > 0.01


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "adafactor", "muon"])
def test_the_state_does_not_know_the_rate_or_the_decay(name):
    momentum = {"momentum": 0.9} if name == "sgd" else {}
    config, params, gradient = OptimizerConfig(name=name, **momentum), drawn_blocks(0), None
    states = []
    for lr, decay in ((0.0, 0.0), (0.3, 0.1)):
        state, moved = make_optimizer(config, lr, decay).init(params), params
        for seed in (1, 2):
            gradient = drawn_blocks(seed)
            _, state = make_optimizer(config, lr, decay).update(gradient, state, moved)
        states.append(state)
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("clip", [0.5, 100.0])
def test_clipping_is_by_the_global_norm(clip):
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in GRADIENTS[0].values()))
    scale = min(1.0, clip / norm)
    expected = {leaf: PARAMS[leaf] - 0.1 * scale * GRADIENTS[0][leaf] for leaf in PARAMS}
    assert_close(updated(OptimizerConfig(name="sgd", grad_clip=clip), [0.1]), expected)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "adafactor", "muon"])
def test_lanes_have_rates_and_decays_of_their_own(name, quick_jit):
    config, params, gradient = OptimizerConfig(name=name), drawn_blocks(0), drawn_blocks(1)

    def one(lr: jax.Array, weight_decay: jax.Array) -> Any:
        return first_update(config, gradient, params, lr, weight_decay)[0]

    lrs, decays = jnp.array([0.1, 0.02, 0.3]), jnp.array([0.0, 0.5, 0.1])
    lanes = quick_jit(jax.vmap(one))(lrs, decays)
    for i, (lr, decay) in enumerate(zip(lrs.tolist(), decays.tolist(), strict=True)):
        alone = one(jnp.float32(lr), jnp.float32(decay))
        for lane, expected in zip(jax.tree.leaves(lanes), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(lane[i], expected, rtol=1e-4, atol=1e-5)
    # The decay is seen exactly where the optimizer has one.
    again = quick_jit(jax.vmap(one))(lrs, decays + 1.0)
    same = np.array_equal(again["embedding"], lanes["embedding"])
    assert same == (name in ("adam", "sgd"))
