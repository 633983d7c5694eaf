from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling_jax.config import EngineConfig, MeshConfig
from scaling_jax.data.sampler import windows
from scaling_jax.models.kinds import kind_of
from scaling_jax.training.mesh import make_mesh
from scaling_jax.training.noise import Cut, group_rows, noise_measures
from scaling_jax.training.optimizers import make_optimizer
from scaling_jax.training.sharding import replicated
from scaling_jax.training.step import (
    TrainState,
    dropout_keys,
    init_state,
    make_model,
    make_update,
    numbers_of,
    target_weights,
    token_losses,
)

TOKENS = np.random.default_rng(4).integers(0, 29, 500).astype(np.uint16)
LR, CLIP = 0.5, 1e-3


def batch(seed: int, step: int, rows: int) -> np.ndarray:
    """The windows of a step, gathered by hand."""
    starts = np.asarray(windows(seed, step, rows, len(TOKENS), 8))
    return TOKENS[starts[:, None] + np.arange(9)].astype(np.int32)


@pytest.fixture(scope="module")
def config(tiny):
    return tiny(
        model={"n_vocab": 29},
        batch={"sequences": 24},
        optimizer={"name": "sgd", "lr_peak": LR, "grad_clip": CLIP},
        schedule={"name": "constant", "warmup_steps": 8},
        data={"seed": 3},
    )


@pytest.fixture(scope="module")
def update(config, quick_jit):
    """One update under a gradient clip that leaves next to nothing of any gradient."""
    jitted = quick_jit(make_update(config, EngineConfig(), Cut(2, 2)))

    def run(state, step):
        with jax.set_mesh(make_mesh(MeshConfig(data=2))):
            return jitted(
                state, jnp.int32(step), numbers_of(config, len(TOKENS)), batch(3, step, 24)
            )

    return run


@pytest.fixture(scope="module")
def state(config, some_parameters):
    params = some_parameters(config.model)
    optimizer = make_optimizer(config.optimizer, lr=0.0, weight_decay=0.0)
    return TrainState(params, optimizer.init(params), jnp.asarray(True))


def distance(before, after) -> float:
    leaves = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return float(np.sqrt(sum(np.square(np.subtract(b, a)).sum() for a, b in leaves)))


def test_moments_are_those_of_its_own_batch_before_clipping(config, update, state, brute_force):
    step = 5
    groups = np.asarray(group_rows(np.arange(24), Cut(2, 2))).reshape(4, 6)
    truth = brute_force(config.model, state.params, batch(3, step, 24), groups)
    after, measured = update(state, step)
    assert truth.grad_sq_big > 100 * CLIP**2
    np.testing.assert_allclose(measured.loss, truth.loss, rtol=1e-6)
    np.testing.assert_allclose(measured.grad_sq_small, [truth.grad_sq_small], rtol=1e-5)
    np.testing.assert_allclose(measured.grad_sq_big, [truth.grad_sq_big], rtol=1e-5)
    lr = LR * 6 / 8
    assert measured.lr == pytest.approx(lr)
    # what moves the parameters is clipped; that it can be seen at all bounds how small CLIP may be
    assert distance(state.params, after.params) == pytest.approx(lr * CLIP, rel=1e-2)


def test_the_metric_of_adam_is_that_before_the_update(
    tiny, some_parameters, brute_force, quick_jit
):
    config = tiny(
        model={"n_vocab": 29},
        batch={"sequences": 24},
        noise={"preconditioned": True, "parts": True},
    )
    cut = Cut(2, 2)
    measures = noise_measures(config, cut)
    groups = np.asarray(group_rows(np.arange(24), cut)).reshape(4, 6)
    params = some_parameters(config.model)
    optimizer = make_optimizer(config.optimizer, lr=0.0, weight_decay=0.0)
    state = TrainState(params, optimizer.init(params), jnp.asarray(True))
    update, numbers = quick_jit(make_update(config, EngineConfig(), cut)), numbers_of(config, 500)
    found = []
    with jax.set_mesh(make_mesh(MeshConfig())), jax.numpy_dtype_promotion("standard"):
        for step in range(2):
            at = state.params
            state, measured = update(state, jnp.int32(step), numbers, batch(3, step, 24))
            found.append((at, measured))
    # After one update v_hat is the square of its gradient, so that P is 1 / (|g| + eps).
    first = brute_force(config.model, found[0][0], batch(3, 0, 24), np.arange(24)[None]).gradient
    metric = [np.where(g == 0, 0, 1 / (np.abs(g) + config.optimizer.eps)) for g in first]
    each = [
        brute_force(config.model, found[1][0], batch(3, 1, 24), group[None]).gradient
        for group in groups
    ]
    mean = [np.mean(leaves, axis=0) for leaves in zip(*each, strict=True)]
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for i, measure in enumerate(measures):
        if measure.metric != "adam":
            continue
        small, big = (
            np.mean(
                [
                    sum(
                        (p * leaf**2).sum()
                        for path, p, leaf in zip(paths, metric, gradient, strict=True)
                        if measure.part in ("total", kind_of(path))
                    )
                    for gradient in gradients
                ]
            )
            for gradients in (each, [mean])
        )
        np.testing.assert_allclose(found[1][1].grad_sq_small[i], small, rtol=2e-3)
        np.testing.assert_allclose(found[1][1].grad_sq_big[i], big, rtol=2e-3)
        assert found[0][1].grad_sq_small[i] == found[0][1].grad_sq_big[i] == 0.0


def test_another_step_is_another_batch(update, state):
    losses = [float(update(state, step)[1].loss) for step in (0, 1, 0)]
    assert losses[0] == losses[2]
    assert losses[0] != losses[1]


def test_what_is_not_finite_leaves_the_state_as_it_was(update, state):
    arrays = jax.tree.map(np.asarray, state.params)
    spoilt = jax.tree.map(lambda leaf: np.where(leaf == leaf.max(), np.inf, leaf), arrays)
    after, measured = update(state._replace(params=spoilt), 0)
    assert not measured.alive
    assert not after.alive
    for before, now in zip(jax.tree.leaves(spoilt), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_array_equal(before, now)


def test_a_dead_lane_stays_dead_though_its_loss_be_finite(update, state):
    after, measured = update(state._replace(alive=jnp.asarray(False)), 0)
    assert np.isfinite(measured.loss)
    assert not after.alive
    assert distance(state.params, after.params) == 0.0


def test_a_lane_at_its_end_stands_still_alive(config, update, state):
    for step in (config.steps, config.steps + 40):
        after, measured = update(state, step)
        assert measured.alive and after.alive
        assert distance(state.params, after.params) == 0.0
    last, _ = update(state, config.steps - 1)
    assert distance(state.params, last.params) > 0.0


@pytest.mark.parametrize("unique", [None, 100])
def test_the_tokens_of_a_run_are_all_or_the_subset_asked_for(tiny, unique):
    numbers = numbers_of(tiny(data={"unique_tokens": unique}, seed=7), 500)
    assert int(numbers.n_tokens) == (unique or 500)
    assert int(numbers.seed) == 7


@pytest.mark.parametrize("layers", ["scan", "unrolled"])
@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor"])
def test_what_is_kept_and_measured_is_float32_in_bfloat16(tiny, name, layers):
    config = tiny(compute_dtype="bfloat16", optimizer={"name": name}, model={"dropout": 0.1})
    engine = EngineConfig(layers=layers, remat="dots")
    update, numbers = make_update(config, engine, Cut(2, 2)), numbers_of(config, 500)
    with jax.set_mesh(make_mesh(MeshConfig())), jax.numpy_dtype_promotion("standard"):
        state = jax.eval_shape(lambda numbers: init_state(config, numbers), numbers)
        window = jax.ShapeDtypeStruct((8, 9), jnp.int32)
        after, measured = jax.eval_shape(update, state, jnp.int32(0), numbers, window)
    assert after == state
    for leaf in jax.tree.leaves((after, measured)):
        assert leaf.dtype in (jnp.float32, jnp.int32, jnp.bool)
    model = make_model(config, engine)
    logits = jax.eval_shape(model, state.params, jax.ShapeDtypeStruct((8, 8), jnp.int32))
    assert logits.dtype == jnp.bfloat16


def test_dropout_draws_the_same_however_the_batch_is_cut(tiny, some_parameters, quick_jit):
    dropout = {"model": {"n_vocab": 29, "dropout": 0.2}}
    config = tiny(**dropout, optimizer={"name": "sgd", "lr_peak": 0.1})
    params = some_parameters(config.model)

    optimizer = make_optimizer(config.optimizer, lr=0.0, weight_decay=0.0)
    start = TrainState(params, optimizer.init(params), jnp.asarray(True))
    batches = [batch(0, step, 8) for step in range(50)]

    def curves(cut: Cut, shards: int, seeds: list[int]) -> list[list[float]]:
        mesh = make_mesh(MeshConfig(data=shards))
        update, losses = quick_jit(make_update(config, EngineConfig(), cut)), []
        with jax.set_mesh(mesh):
            for seed in seeds:
                state = jax.device_put(start, replicated(mesh))
                numbers = numbers_of(config, len(TOKENS))._replace(seed=jnp.uint32(seed))
                losses.append([])
                for step in range(50):
                    state, measured = update(state, jnp.int32(step), numbers, batches[step])
                    losses[-1].append(float(measured.loss))
        return losses

    whole, of_another_seed = curves(Cut(1, 1), 1, [0, 1])
    np.testing.assert_allclose(curves(Cut(2, 2), 2, [0])[0], whole, rtol=1e-5)
    assert abs(of_another_seed[0] - whole[0]) > 1e-3 * whole[0]


@pytest.mark.parametrize("cut", [Cut(1, 1), Cut(4, 1), Cut(2, 2)])
def test_a_loss_is_the_mean_over_the_targets_that_count(
    config, state, cut, quick_jit, some_parameters
):
    window_bt, valid_b = jnp.asarray(batch(3, 2, 24)), np.arange(24) % 8 + 1
    model = make_model(config, EngineConfig())

    @quick_jit
    @jax.value_and_grad
    def mean(params):
        losses_bt = token_losses(model(params, window_bt[:, :-1]), window_bt[:, 1:])
        counts_bt = jnp.arange(8)[None, :] < valid_b[:, None]
        return jnp.where(counts_bt, losses_bt, 0.0).sum() / float(valid_b.sum())

    loss, gradient = mean(state.params)
    unclipped = config.model_copy(
        update={"optimizer": config.optimizer.model_copy(update={"grad_clip": None})}
    )
    optimizer = make_optimizer(unclipped.optimizer, lr=0.0, weight_decay=0.0)
    state = state._replace(opt_state=optimizer.init(state.params))
    update = quick_jit(make_update(unclipped, EngineConfig(), cut))
    with jax.set_mesh(make_mesh(MeshConfig(data=cut.width))):
        after, measured = update(
            state, jnp.int32(7), numbers_of(config, 500), window_bt, jnp.asarray(valid_b)
        )
    np.testing.assert_allclose(measured.loss, loss, rtol=1e-6)
    for before, moved, g in zip(
        *map(jax.tree.leaves, (state.params, after.params, gradient)), strict=True
    ):
        np.testing.assert_allclose(moved - before, -LR * g, rtol=1e-3, atol=3e-6)
    # What does not count may be anything.
    other = np.where(np.arange(9) > valid_b[:, None], 5, np.asarray(window_bt))
    with jax.set_mesh(make_mesh(MeshConfig(data=cut.width))):
        _, again = update(state, jnp.int32(7), numbers_of(config, 500), other, jnp.asarray(valid_b))
    assert (other != window_bt).any()
    np.testing.assert_array_equal(again.loss, measured.loss)
    if cut.groups > 1:
        np.testing.assert_allclose(again.grad_sq_small, measured.grad_sq_small, rtol=1e-6)


def test_norms_of_single_sequences_are_those_of_what_counts(tiny, some_parameters, quick_jit):
    config = tiny(
        model={"n_vocab": 29}, batch={"sequences": 6, "microbatches": 1},
        noise={"sequences": "all"},
    )  # fmt: skip
    params = some_parameters(config.model)
    optimizer = make_optimizer(config.optimizer, lr=0.0, weight_decay=0.0)
    state = TrainState(params, optimizer.init(params), jnp.asarray(True))
    window_bt, valid_b = batch(3, 2, 6), jnp.asarray([8, 3, 1, 8, 5, 2])
    model = make_model(config, EngineConfig())

    @quick_jit
    def sq_norms(params):
        def row(params, window_t, n):
            losses_t = token_losses(model(params, window_t[None, :-1]), window_t[None, 1:])[0]
            share = 6 / valid_b.sum().astype(jnp.float32)
            return jnp.where(jnp.arange(8) < n, losses_t, 0.0).sum() * share

        gradients = jax.vmap(jax.grad(row), in_axes=(None, 0, 0))(params, window_bt, valid_b)
        return sum(jnp.square(g).sum() for g in jax.tree.leaves(gradients)) / 6

    update = quick_jit(make_update(config, EngineConfig(), Cut(1, 1)))
    with jax.set_mesh(make_mesh(MeshConfig())), jax.numpy_dtype_promotion("standard"):
        expected = sq_norms(params)
        _, measured = update(state, jnp.int32(7), numbers_of(config, 500), window_bt, valid_b)
    measures = noise_measures(config, Cut(1, 1))
    total = [m.source == "sequences" and m.part == "total" for m in measures].index(True)
    np.testing.assert_allclose(measured.grad_sq_small[total], expected, rtol=1e-5)


def test_weights_have_mean_one_and_leave_out_what_does_not_count():
    weights = np.asarray(target_weights(jnp.asarray([3, 1, 4], jnp.int32), 4))
    assert weights.dtype == np.float32
    assert weights.mean() == pytest.approx(1.0)
    np.testing.assert_array_equal(weights > 0, [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])


def test_a_run_has_the_windows_of_an_epoch_where_it_has_epochs(tiny):
    assert numbers_of(tiny(), 500).n_windows is None
    assert numbers_of(tiny(), 500, 63).n_windows == 63


def test_token_losses_are_those_of_float64(quick_jit):
    logits = 5 * np.random.default_rng(1).standard_normal((2, 3, 7))
    targets = np.random.default_rng(1).integers(0, 7, (2, 3))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(p, targets[..., None], -1))[..., 0]
    found = quick_jit(token_losses)(logits.astype(np.float32), targets.astype(np.int32))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    half = jax.ShapeDtypeStruct((2, 3, 7), jnp.bfloat16)
    assert jax.eval_shape(token_losses, half, targets.astype(np.int32)).dtype == np.float32


def test_dropout_keys_are_of_seed_step_and_row_alone():
    keys = {
        (seed, step): jax.random.key_data(dropout_keys(jnp.uint32(seed), jnp.int32(step), 4))
        for seed in (0, 1)
        for step in (0, 1)
    }
    rows = np.concatenate(list(keys.values()))
    assert len(np.unique(rows, axis=0)) == 16
    longer = jax.random.key_data(dropout_keys(jnp.uint32(0), jnp.int32(0), 6))
    np.testing.assert_array_equal(longer[:4], keys[0, 0])
