from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding

from scaling_jax.config import EngineConfig, MeshConfig
from scaling_jax.models.transformer import Transformer
from scaling_jax.noise import two_point
from scaling_jax.training.curvature import (
    cross_entropy_forms,
    cross_entropy_loss,
    curvature_moments,
)
from scaling_jax.training.mesh import make_mesh
from scaling_jax.training.sharding import partition_specs
from scaling_jax.training.step import make_model

N_CTX, N_VOCAB = 5, 7
WINDOWS = np.random.default_rng(3).integers(0, N_VOCAB, (24, N_CTX + 1), np.int32)
METRICS = ("euclidean", "hessian", "gauss_newton")


@pytest.fixture(scope="module")
def config(tiny):
    return tiny(model={"d_model": 4, "d_ff": 8, "n_vocab": N_VOCAB, "n_ctx": N_CTX})


@pytest.fixture(scope="module")
def params(config, some_parameters):
    return some_parameters(config.model)


@pytest.fixture(scope="module")
def predict(config):
    model = make_model(config, EngineConfig(attention="blocks", layers="unrolled"))
    return lambda params, window_bt: (model(params, window_bt[:, :-1]), window_bt[:, 1:])


@pytest.fixture(scope="module")
def moments(predict, quick_jit):
    """`moments(params, gradient_rows, curvature_rows)`."""
    return quick_jit(
        functools.partial(
            curvature_moments, cross_entropy_loss(predict), cross_entropy_forms(predict)
        )
    )


class Truth:
    """Gradients and curvature of every window, in float64, as plain vectors and matrices."""

    def __init__(self, config, params, jit):
        with jax.enable_x64(True):
            params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), params)
            vector, unravel = ravel_pytree(params)
            graph = nnx.graphdef(nnx.eval_shape(lambda: Transformer(config.model, nnx.Rngs(0))))

            def logits(vector, window):
                return nnx.merge(graph, unravel(vector))(window[None, :-1])[0]

            def loss(vector, window):
                log_p_tv = jax.nn.log_softmax(logits(vector, window))
                return -jnp.take_along_axis(log_p_tv, window[1:, None], axis=-1).mean()

            def gauss_newton(vector, window):
                jacobian_tvp = jax.jacrev(logits)(vector, window)
                p_tv = jax.nn.softmax(logits(vector, window))
                inner_tvw = p_tv[:, :, None] * jnp.eye(p_tv.shape[1])[None]
                inner_tvw -= p_tv[:, :, None] * p_tv[:, None, :]
                product = jnp.einsum("tvp,tvw,twq->pq", jacobian_tvp, inner_tvw, jacobian_tvp)
                return product / p_tv.shape[0]

            def of_all(fn):
                found = jit(lambda vector, w: jax.lax.map(functools.partial(fn, vector), w))
                return np.asarray(found(vector, jnp.asarray(WINDOWS)))

            self.gradient_n = of_all(jax.grad(loss))
            self.metrics_n = {
                "euclidean": np.broadcast_to(
                    np.eye(len(vector)), (len(WINDOWS), *2 * (len(vector),))
                ),
                "hessian": of_all(jax.hessian(loss)),
                "gauss_newton": of_all(gauss_newton),
            }

    def form(self, metric, gradient_rows, curvature_rows):
        g = self.gradient_n[gradient_rows].mean(0)
        return g @ self.metrics_n[metric][curvature_rows].mean(0) @ g

    def two(self, metric):
        """G^T P G and tr(P Sigma) of the windows as a population, a window."""
        g, p = self.gradient_n.mean(0), self.metrics_n[metric].mean(0)
        apart = self.gradient_n - g
        return g @ p @ g, np.einsum("np,pq,nq->n", apart, p, apart).mean()


@pytest.fixture(scope="module")
def truth(config, params, quick_jit):
    return Truth(config, params, quick_jit)


@pytest.mark.parametrize(
    ("groups", "microbatches", "curvature_microbatches"), [(2, 2, 2), (16, 1, 1)]
)
def test_forms_are_those_of_brute_force(
    params, moments, truth, groups, microbatches, curvature_microbatches
):
    of_gradients, of_curvature = np.arange(16), np.arange(16, 24)
    found = moments(
        params,
        WINDOWS[of_gradients].reshape(groups, microbatches, -1, N_CTX + 1),
        WINDOWS[of_curvature].reshape(curvature_microbatches, -1, N_CTX + 1),
    )
    for metric in METRICS:
        small = np.mean(
            [truth.form(metric, g, of_curvature) for g in of_gradients.reshape(groups, -1)]
        )
        np.testing.assert_allclose(found.small[metric], small, rtol=2e-4)
        big = truth.form(metric, of_gradients, of_curvature)
        np.testing.assert_allclose(found.big[metric], big, rtol=2e-4)


def test_the_mean_over_draws_is_the_truth_of_the_population(params, moments, truth, quick_jit):
    draws, groups = 2500, 12  # of one sequence each; the curvature is that of four others

    @quick_jit
    def measure(params, index_db):
        def draw(index_b):
            rows_b = jnp.asarray(WINDOWS)[index_b]
            return moments.__wrapped__(params, rows_b[:groups, None, None], rows_b[None, groups:])

        return jax.lax.map(draw, index_db, batch_size=200)

    index_db = np.random.default_rng(0).integers(0, len(WINDOWS), (draws, groups + 4))
    found = measure(params, jnp.asarray(index_db))
    for metric in METRICS:
        small, big = (np.asarray(x[metric], np.float64) for x in (found.small, found.big))
        estimates = two_point(small, big, batch_small=1, batch_big=groups)
        for estimate, true in zip(estimates, truth.two(metric), strict=True):
            error = estimate.std(ddof=1) / np.sqrt(draws)
            assert abs(estimate.mean() - true) < 3 * error
            assert error < 0.03 * abs(true)


def test_gauss_newton_is_positive_where_the_hessian_is_not(params, predict, truth, quick_jit):
    vector, unravel = ravel_pytree(params)
    values, vectors = np.linalg.eigh(truth.metrics_n["hessian"].mean(0))
    assert values[0] < -0.01
    forms = quick_jit(cross_entropy_forms(predict))
    downwards = forms(params, unravel(jnp.asarray(vectors[:, 0], vector.dtype)), WINDOWS)
    np.testing.assert_allclose(downwards["hessian"], values[0], rtol=1e-3)
    assert downwards["gauss_newton"] > 0
    uniform = jnp.ones_like(vector)  # moves the logits of a position together, by the last bias
    assert forms(params, unravel(uniform), WINDOWS)["gauss_newton"] >= 0


def test_gauss_newton_is_the_hessian_of_a_linear_model(quick_jit):
    draws = np.random.default_rng(1)
    x_bti, targets_bt = draws.standard_normal((16, 3, 4), np.float32), draws.integers(0, 5, (16, 3))
    weights_io, v_io = draws.standard_normal((2, 4, 5), np.float32)

    def predict(weights_io, rows):
        x_bti, targets_bt = rows
        return x_bti @ weights_io, targets_bt

    found = quick_jit(cross_entropy_forms(predict))(weights_io, v_io, (x_bti, targets_bt))
    assert found["gauss_newton"] > 0.01
    np.testing.assert_allclose(found["hessian"], found["gauss_newton"], rtol=1e-6)


@pytest.mark.parametrize("axes", [{"data": 4}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_a_mesh_changes_nothing_but_rounding(params, moments, axes):
    rows = WINDOWS[:16].reshape(2, 2, 4, -1), WINDOWS[16:].reshape(2, 4, -1)
    alone = moments(params, *rows)
    mesh = make_mesh(MeshConfig(**axes))
    laid = jax.tree.map(
        lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)),
        params,
        partition_specs(params, mesh),
    )
    with jax.set_mesh(mesh):
        found = moments(laid, *rows)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4), found, alone)


class Quadratic:
    """L = theta^T H theta / 2 in expectation, of rows x ~ N(0, Sigma), with diagonal H and Sigma.

    Source: the test bed of McCandlish et al. (2018), sections 2.2 and C.
    """

    def __init__(self, d, h_least, seed):
        draws = np.random.default_rng(seed)
        self.h = np.geomspace(h_least, 1.0, d)
        self.sigma = np.exp(draws.normal(size=d))

    def loss(self, theta, x_bd):
        return 0.5 * jnp.vdot(jnp.asarray(self.h, jnp.float32), theta**2) + x_bd.mean(0) @ theta

    def forms(self, theta, v, x_bd):
        along = lambda t: self.loss(theta + t * v, x_bd)  # noqa: E731
        return {"hessian": jax.grad(jax.grad(along))(0.0)}

    def noise_scale(self, thetas, groups, rows_a_group, jit):
        """tr(H Sigma) / G^T H G by `curvature_moments`, one draw at each of `thetas`."""
        shape = (groups, 1, 1, len(self.h))  # one row in the place of the mean of `rows_a_group`
        scale_d = jnp.asarray(np.sqrt(self.sigma / rows_a_group), jnp.float32)

        def draw(theta, key):
            x = jax.random.normal(key, shape) * scale_d[None, None, None, :]
            return curvature_moments(self.loss, self.forms, theta, x, x[0])

        keys = jax.random.split(jax.random.key(7), len(thetas))
        found = jit(lambda *each: jax.lax.map(lambda x: draw(*x), each, batch_size=200))(
            jnp.asarray(thetas, jnp.float32), keys
        )
        small, big = (np.asarray(x["hessian"], np.float64).mean() for x in (found.small, found.big))
        form, trace = two_point(small, big, rows_a_group, groups * rows_a_group)
        return trace / form


def test_noise_scale_predicts_the_progress_of_a_step(quick_jit):
    problem = Quadratic(d=400, h_least=1e-2, seed=0)
    draws = np.random.default_rng(1)
    theta = draws.normal(size=400)
    gradient, h, sigma = problem.h * theta, problem.h, problem.sigma
    found = problem.noise_scale(np.repeat(theta[None], 4000, axis=0), 4, 2, quick_jit)
    np.testing.assert_allclose(found, h @ sigma / (h @ gradient**2), rtol=0.02)

    batch = 8
    steps = gradient + draws.normal(size=(20000, 400)) * np.sqrt(sigma / batch)
    rate = gradient @ gradient / (h @ gradient**2) / (1 + found / batch)
    gains = rate * steps @ gradient - 0.5 * rate**2 * steps**2 @ h
    most = 0.5 * (gradient @ gradient) ** 2 / (h @ gradient**2)
    np.testing.assert_allclose(gains.mean() / most, 1 / (1 + found / batch), rtol=0.02)


def test_noise_scale_of_a_stationary_run_is_one_over_its_temperature(quick_jit):
    problem = Quadratic(d=50, h_least=0.1, seed=2)
    h, sigma, batch = problem.h, problem.sigma, 8
    found = {}
    for lr in (0.02, 0.01):
        # What theta <- theta - lr (h theta + noise) comes to, whatever lr.
        variance = lr * sigma / (batch * h * (2 - lr * h))
        thetas = np.random.default_rng(3).normal(size=(8000, 50)) * np.sqrt(variance)
        found[lr] = problem.noise_scale(thetas, 8, 500, quick_jit)
        np.testing.assert_allclose(
            found[lr], 2 * batch / lr * (h @ sigma) / (h**2 @ sigma), rtol=0.02
        )
    np.testing.assert_allclose(found[0.01] / found[0.02], 2.0, rtol=0.02)
