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
    "vector": DRAWS.standard_normal(3).astype(np.float32),
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
    np.testing.assert_array_equal(with_decay["vector"], without["vector"])
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


@pytest.mark.parametrize("clip", [0.5, 100.0])
def test_clipping_is_by_the_global_norm(clip):
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in GRADIENTS[0].values()))
    scale = min(1.0, clip / norm)
    expected = {leaf: PARAMS[leaf] - 0.1 * scale * GRADIENTS[0][leaf] for leaf in PARAMS}
    assert_close(updated(OptimizerConfig(name="sgd", grad_clip=clip), [0.1]), expected)


def test_lanes_have_rates_and_decays_of_their_own(quick_jit):
    config = OptimizerConfig(name="adamw")
    params, gradient = jax.tree.map(jnp.asarray, (PARAMS, GRADIENTS[0]))

    def one(lr: jax.Array, weight_decay: jax.Array) -> optax.Params:
        optimizer = make_optimizer(config, lr, weight_decay)
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    lrs, decays = jnp.array([0.1, 0.02, 0.3]), jnp.array([0.0, 0.5, 0.1])
    lanes = quick_jit(jax.vmap(one))(lrs, decays)
    for i, (lr, decay) in enumerate(zip(lrs.tolist(), decays.tolist(), strict=True)):
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], lanes), updated(config, [lr], decay))
