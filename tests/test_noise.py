from __future__ import annotations

import doctest
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scaling_jax.noise
from scaling_jax.errors import RequestError
from scaling_jax.noise import NoiseMoments, noise_moments, two_point


def test_the_example_runs() -> None:
    assert doctest.testmod(scaling_jax.noise) == (0, 8)


def test_moments_are_those_of_float64() -> None:
    draws = np.random.default_rng(0)
    grads = {"a": draws.standard_normal((5, 3, 4)), "b": [draws.standard_normal((5, 2))]}
    flat = np.concatenate([grads["a"].reshape(5, -1), grads["b"][0]], axis=1)
    found = jax.jit(noise_moments)(jax.tree.map(np.float32, grads))
    np.testing.assert_allclose(found.grad_sq_small, np.square(flat).sum(1).mean(), rtol=1e-6)
    np.testing.assert_allclose(found.grad_sq_big, np.square(flat.mean(0)).sum(), rtol=1e-5)


def test_moments_of_bfloat16_are_summed_in_float32() -> None:
    grads = jnp.full((2, 70000), 1.0, jnp.bfloat16)
    found = noise_moments(grads)
    assert (float(found.grad_sq_small), float(found.grad_sq_big)) == (70000.0, 70000.0)


@pytest.mark.parametrize("grads", [{}, np.ones((1, 3)), {"a": np.ones((2, 3)), "b": np.ones(3)}])
def test_leaves_without_batches_are_refused(grads: object) -> None:
    with pytest.raises(RequestError, match="share a leading axis of two batches or more"):
        noise_moments(grads)


def test_two_point_undoes_what_noise_does_to_norms() -> None:
    grad_sq, tr_sigma = np.array([2.0, 1e-3]), np.array([50.0, 3.0])
    small, big = np.array([4, 1]), np.array([16, 64])
    found = two_point(grad_sq + tr_sigma / small, grad_sq + tr_sigma / big, small, big)
    np.testing.assert_allclose(found.grad_sq, grad_sq, rtol=1e-9)
    np.testing.assert_allclose(found.tr_sigma, tr_sigma, rtol=1e-12)
    one = two_point(jnp.float32(14.5), jnp.float32(5.125), 4, 16)
    assert (float(one.grad_sq), float(one.tr_sigma)) == (2.0, 50.0)
    below = two_point(3.0, 1.0, 4, 8)
    assert below.grad_sq == -1.0  # by chance, and not clamped
    assert below.tr_sigma == 16.0


def _estimate(grads_sk: jax.Array, batch_small: int) -> tuple[float, float]:
    """tr(Sigma) and |G|^2 of `[updates, K, d]`: the means of the norms first, then the estimate."""
    moments = jax.vmap(noise_moments)(grads_sk)
    small, big = (np.asarray(x, np.float64).mean() for x in moments)
    grad_sq, tr_sigma = two_point(small, big, batch_small, batch_small * grads_sk.shape[1])
    return tr_sigma, grad_sq


def test_the_quadratic_test_bed() -> None:
    """A step of the best length at B makes 1/(1 + B_noise/B) of the progress of a noiseless one.

    McCandlish et al. (2018), eqs. 2.5 to 2.9, in 400 dimensions.
    """
    d, updates = 400, 4000
    draws = np.random.default_rng(0)
    h, sigma = (draws.uniform(0.2, 2.0, d).astype(np.float32) for _ in range(2))
    true = draws.standard_normal(d).astype(np.float32)
    noise_scale = (h * sigma**2).sum() / (h * true**2).sum()
    b_simple = (sigma**2).sum() / (true**2).sum()

    def gradients(key: jax.Array, batch: float, count: int) -> jax.Array:
        noise = jax.random.normal(key, (updates, count, d))
        return noise * (sigma / np.float32(np.sqrt(batch)))[None, None] + true[None, None]

    grads = gradients(jax.random.key(0), 1.0, 4)
    tr_sigma, grad_sq = _estimate(grads, 1)
    assert tr_sigma / grad_sq == pytest.approx(b_simple, rel=0.02)
    # In the metric of the Hessian the same two norms give B_noise, eq. 2.8.
    tr_h_sigma, ghg = _estimate(grads * np.sqrt(h)[None, None], 1)
    assert tr_h_sigma / ghg == pytest.approx(noise_scale, rel=0.02)

    best = grad_sq**2 / ghg / 2
    for share in (0.1, 1.0, 10.0):
        batch = share * tr_h_sigma / ghg
        length = grad_sq / ghg / (1 + 1 / share)
        grad = np.asarray(gradients(jax.random.key(1), batch, 1)[:, 0], np.float64)
        progress = length * grad @ true - length**2 / 2 * (h * grad**2).sum(1)
        assert progress.mean() / best == pytest.approx(1 / (1 + 1 / share), rel=0.02)


@partial(jax.jit, static_argnames=("batch", "groups", "chains", "settle", "updates"))
def _stationary_moments(
    lr: jax.Array,
    h: jax.Array,
    sigma: jax.Array,
    batch: int,
    groups: int,
    chains: int,
    settle: int,
    updates: int,
) -> NoiseMoments:
    """Mean moments of SGD on a quadratic, after `settle` updates of `chains` runs."""

    def update(theta_cd: jax.Array, step: jax.Array) -> tuple[jax.Array, NoiseMoments]:
        key = jax.random.fold_in(jax.random.key(0), step)
        noise = jax.random.normal(key, (chains, groups, len(h)))
        scale = sigma * (groups / batch) ** 0.5
        grads = (h[None] * theta_cd)[:, None] + scale[None, None] * noise
        moments = jax.tree.map(jnp.mean, jax.vmap(noise_moments)(grads))
        return theta_cd - lr * grads.mean(1), moments

    start = jnp.zeros((chains, len(h)))
    theta_cd, _ = jax.lax.scan(update, start, jnp.arange(settle))
    _, moments = jax.lax.scan(update, theta_cd, settle + jnp.arange(updates))
    return jax.tree.map(jnp.mean, moments)


def test_half_the_rate_is_twice_the_noise_scale() -> None:
    """B_simple = (2B/lr) tr(Sigma)/tr(H Sigma) where SGD has settled (ibid., appendix C)."""
    d, batch, groups = 20, 8, 8
    draws = np.random.default_rng(1)
    h = draws.uniform(0.5, 1.0, d).astype(np.float32)
    sigma = draws.uniform(0.5, 2.0, d).astype(np.float32)
    found = []
    for lr in (0.1, 0.05):
        moments = _stationary_moments(
            jnp.float32(lr), h, sigma, batch, groups, chains=512, settle=200, updates=1000
        )
        grad_sq, tr_sigma = two_point(
            float(moments.grad_sq_small), float(moments.grad_sq_big), batch // groups, batch
        )
        law = 2 * batch / lr * (sigma**2).sum() / (h * sigma**2).sum()
        # The law is of small steps: at lr the variance of each direction is 1/(1 - lr h/2) of it.
        exact = 2 * batch / lr * (sigma**2).sum() / (h * sigma**2 / (1 - lr * h / 2)).sum()
        found.append(tr_sigma / grad_sq)
        assert found[-1] == pytest.approx(exact, rel=0.05)
        assert found[-1] == pytest.approx(law, rel=0.1)
    assert found[1] / found[0] == pytest.approx(2.0, rel=0.1)
