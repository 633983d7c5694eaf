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
from scaling_jax.models.kinds import KINDS, kind_of
from scaling_jax.noise import two_point
from scaling_jax.training.mesh import make_mesh
from scaling_jax.training.noise import (
    Cut,
    Measure,
    adam_metric,
    cut_batch,
    group_rows,
    grouped_gradient,
    noise_measures,
)
from scaling_jax.training.optimizers import make_optimizer
from scaling_jax.training.sharding import partition_specs
from scaling_jax.training.step import make_model, token_losses

ROWS, N_VOCAB, DRAWS = 24, 29, 4000
WINDOWS = np.random.default_rng(3).integers(0, N_VOCAB, (ROWS, 9), np.int32)
PARTS = ("total", *KINDS)
ALL = tuple(
    Measure(source, metric, part)
    for source, metric in (
        ("groups", "euclidean"),
        ("groups", "adam"),
        ("sequences", "euclidean"),
    )
    for part in PARTS
)

# (mesh, microbatches, noise.groups, groups that come of it)
CUTS = [
    ({}, 1, 4, 4),
    ({}, 3, None, 3),
    ({"data": 2}, 2, None, 4),
    ({"fsdp": 2}, 1, 6, 6),
    ({"tensor": 2}, 3, None, 3),
    ({"data": 2, "fsdp": 2, "tensor": 2}, 2, None, 4),
]
MORE_CUTS = [
    ({}, 8, None, 8),
    ({}, 1, 24, 24),
    ({"data": 2}, 1, 8, 8),
    ({"data": 8}, 1, None, 8),
    ({"data": 8}, 3, None, 24),
    ({"fsdp": 4}, 2, None, 2),
]


@pytest.fixture(scope="module")
def config(tiny):
    return tiny(model={"n_vocab": N_VOCAB}, batch={"sequences": ROWS})


@pytest.fixture(scope="module")
def params(config, some_parameters):
    return some_parameters(config.model)


@pytest.fixture(scope="module")
def rows_gradients(config, params, brute_force):
    """The gradient of every row of WINDOWS alone, float64, a list of leaves each."""
    return [
        brute_force(config.model, params, WINDOWS, np.array([[row]])).gradient
        for row in range(ROWS)
    ]


@pytest.fixture(scope="module")
def metric(params):
    """Some positive weights, of which a few are zero."""
    draws = np.random.default_rng(6)
    return jax.tree.map(
        lambda leaf: jnp.asarray(np.maximum(draws.normal(1.0, 1.0, leaf.shape), 0), jnp.float32),
        params,
    )


@pytest.fixture(scope="module")
def loss_fn(config):
    model = make_model(config, EngineConfig())

    def mean_loss(params, window_bt, probes):
        logits_btv = model(params, window_bt[:, :-1], probes=probes)
        return token_losses(logits_btv, window_bt[:, 1:]).mean()

    return mean_loss


@pytest.fixture(scope="module")
def measure(params, metric, loss_fn, quick_jit):
    """`measure(cut, axes, window_bt)`, compiled once a cut, parameters laid as the trainer does."""

    @functools.cache
    def program(cut, mesh, measures):
        return quick_jit(
            lambda params, metric, rows: grouped_gradient(
                loss_fn, params, rows, cut, measures, metric
            )
        )

    def run(cut, axes, window_bt, measures=ALL):
        mesh = make_mesh(MeshConfig(**axes))
        laid = jax.tree.map(
            lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)),
            (params, metric),
            partition_specs((params, metric), mesh),
        )
        with jax.set_mesh(mesh):
            return program(cut, mesh, measures)(*laid, jnp.asarray(window_bt))

    return run


def sq_norm_of(measure, gradient, params, metric):
    """A squared norm by hand: of a list of leaves, float64."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    weights = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(metric)]
    return sum(
        float(np.sum((weight if measure.metric == "adam" else 1.0) * leaf**2))
        for path, leaf, weight in zip(paths, gradient, weights, strict=True)
        if measure.part in ("total", kind_of(path))
    )


def mean_of(gradients):
    return [np.mean(leaves, axis=0) for leaves in zip(*gradients, strict=True)]


def cut_of(tiny, axes: dict[str, int], microbatches: int, groups: int | None) -> Cut:
    batch = {"sequences": ROWS, "microbatches": microbatches}
    return cut_batch(tiny(batch=batch, noise={"groups": groups}), MeshConfig(**axes))


@pytest.mark.parametrize(
    ("axes", "microbatches", "groups", "expected"),
    [*CUTS, *(pytest.param(*cut, marks=pytest.mark.slow) for cut in MORE_CUTS)],
)
def test_every_moment_loss_and_gradient_is_that_of_brute_force(
    tiny, params, metric, measure, rows_gradients, axes, microbatches, groups, expected
):
    cut = cut_of(tiny, axes, microbatches, groups)
    assert cut.groups == expected
    rows = np.asarray(group_rows(jnp.arange(ROWS), cut)).reshape(expected, -1)
    of_groups = [mean_of([rows_gradients[row] for row in group]) for group in rows]
    whole = mean_of(rows_gradients)
    found = measure(cut, axes, WINDOWS)
    for i, one in enumerate(ALL):
        small = rows_gradients if one.source == "sequences" else of_groups
        true_small = np.mean([sq_norm_of(one, each, params, metric) for each in small])
        true_big = sq_norm_of(one, whole, params, metric)
        assert true_small > 1.1 * true_big
        np.testing.assert_allclose(found.grad_sq_small[i], true_small, rtol=1e-5, err_msg=str(one))
        np.testing.assert_allclose(found.grad_sq_big[i], true_big, rtol=1e-5, err_msg=str(one))
    for leaf, true_leaf in zip(jax.tree.leaves(found.gradient), whole, strict=True):
        np.testing.assert_allclose(leaf, true_leaf, rtol=1e-5, atol=1e-6)

    same = measure(cut, axes, np.repeat(WINDOWS[:1], ROWS, axis=0))
    np.testing.assert_allclose(same.grad_sq_small, same.grad_sq_big, rtol=1e-5)


def test_the_loss_is_the_mean_over_the_batch(config, params, measure, brute_force):
    truth = brute_force(config.model, params, WINDOWS, np.arange(ROWS)[None])
    for cut, axes in ((Cut(3, 1), {}), (Cut(2, 2), {"data": 2})):
        np.testing.assert_allclose(measure(cut, axes, WINDOWS).loss, truth.loss, rtol=1e-6)


def test_the_small_norm_depends_on_the_cut_and_the_big_one_does_not(measure):
    three, four = (measure(cut, {}, WINDOWS) for cut in (Cut(3, 1), Cut(1, 4)))
    assert three.grad_sq_small[0] < four.grad_sq_small[0]
    np.testing.assert_allclose(three.grad_sq_big, four.grad_sq_big, rtol=1e-5)


def test_one_set_of_groups_has_one_norm_as_shards_as_microbatches_and_on_one_device(measure):
    cuts = [(Cut(1, 4), {"data": 4}), (Cut(4, 1), {}), (Cut(1, 4), {}), (Cut(2, 2), {"data": 2})]
    found = [measure(cut, axes, WINDOWS) for cut, axes in cuts]
    for one in found[1:]:
        np.testing.assert_allclose(one.grad_sq_small, found[0].grad_sq_small, rtol=1e-5)
        np.testing.assert_allclose(one.grad_sq_big, found[0].grad_sq_big, rtol=1e-5)


def test_groups_of_one_row_are_single_sequences(measure):
    found = measure(Cut(1, ROWS), {"data": 2}, WINDOWS)
    for i, one in enumerate(ALL):
        if one.source == "sequences":
            j = ALL.index(one._replace(source="groups"))
            np.testing.assert_allclose(found.grad_sq_small[i], found.grad_sq_small[j], rtol=1e-4)
            np.testing.assert_array_equal(found.grad_sq_big[i], found.grad_sq_big[j])


def test_lanes_measure_each_their_own(tiny, compiled, train):
    batch, noise = {"sequences": 4, "microbatches": 1}, {"groups": 4, "sequences": "all"}
    config = tiny(batch=batch, noise={**noise, "parts": True})
    program = compiled(config, lanes=2, lane=2, data=2)
    _, window = train(program, [config, config.model_copy(update={"seed": 1})], [6])
    measures = noise_measures(config, program.cut)
    for i, one in enumerate(measures):
        if one.source == "sequences":
            j = measures.index(one._replace(source="groups"))
            small = window.grad_sq_small
            np.testing.assert_allclose(small[..., i], small[..., j], rtol=1e-4, err_msg=str(one))
    assert (window.grad_sq_small[0, 1:] != window.grad_sq_small[1, 1:]).all()
    assert (window.grad_sq_small[:, 1:] > window.grad_sq_big[:, 1:]).all()


def test_what_is_not_measured_is_absent_and_the_rest_the_same(measure):
    cut = Cut(1, 4)
    nothing, everything = (measure(cut, {}, WINDOWS, measures) for measures in ((), ALL))
    assert nothing.grad_sq_small.shape == nothing.grad_sq_big.shape == (0,)
    np.testing.assert_allclose(nothing.loss, everything.loss, rtol=1e-6)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        nothing.gradient,
        everything.gradient,
    )


def test_the_mean_over_draws_is_the_truth_of_all_rows(
    params, metric, loss_fn, rows_gradients, quick_jit
):
    cut, measures = Cut(1, 8), tuple(one for one in ALL if one.part in ("total", "norms"))

    def norms(draw):
        # With replacement, so that rows are independent however few there are.
        key = jax.random.fold_in(jax.random.key(0), draw)
        rows = jnp.asarray(WINDOWS)[jax.random.randint(key, (ROWS,), 0, ROWS)]
        return grouped_gradient(loss_fn, params, rows, cut, measures, metric)[2:]

    with jax.set_mesh(make_mesh(MeshConfig())):
        found = quick_jit(lambda draws: jax.lax.map(norms, draws))(jnp.arange(DRAWS))
    small, big = (np.asarray(x, np.float64).mean(0) for x in found)
    mean = mean_of(rows_gradients)
    for i, one in enumerate(measures):
        each = [sq_norm_of(one, gradient, params, metric) for gradient in rows_gradients]
        grad_sq = sq_norm_of(one, mean, params, metric)
        batch_small = 1 if one.source == "sequences" else ROWS // cut.groups
        estimate = two_point(small[i], big[i], batch_small, ROWS)
        np.testing.assert_allclose(estimate.grad_sq, grad_sq, rtol=0.01, err_msg=str(one))
        tr_sigma = np.mean(each) - grad_sq
        np.testing.assert_allclose(estimate.tr_sigma, tr_sigma, rtol=0.01, err_msg=str(one))


def named(measures):
    return ["/".join(measure) for measure in measures]


@pytest.mark.parametrize(
    ("noise", "cut", "expected"),
    [
        ({}, Cut(1, 1), []),
        ({}, Cut(2, 1), ["groups/euclidean/total"]),
        ({"enabled": False, "groups": 4, "parts": True}, Cut(2, 2), []),
        (
            {"parts": True},
            Cut(1, 2),
            [f"groups/euclidean/{part}" for part in PARTS],
        ),
        ({"sequences": "norms"}, Cut(1, 1), ["sequences/euclidean/norms"]),
        ({"sequences": "all"}, Cut(1, 1), [f"sequences/euclidean/{part}" for part in PARTS]),
        (
            {"sequences": "norms", "preconditioned": True},
            Cut(1, 2),
            ["groups/euclidean/total", "groups/adam/total", "sequences/euclidean/norms"],
        ),
        ({"sequences": "all", "parts": True, "preconditioned": True}, Cut(2, 2), named(ALL)),
    ],
)
def test_measures_are_those_asked_for(tiny, noise, cut, expected):
    assert named(noise_measures(tiny(noise=noise), cut)) == expected


def test_a_tied_model_has_no_head_to_measure(tiny):
    config = tiny(model={"tied_embeddings": True}, noise={"parts": True})
    parts = [measure.part for measure in noise_measures(config, Cut(1, 2))]
    assert parts == ["total", "embedding", "attention", "feed_forward", "norms"]


def test_the_metric_is_that_of_adam_and_absent_where_no_gradient_was(tiny):
    config = tiny(optimizer={"grad_clip": 1.0, "beta2": 0.9, "eps": 1e-3}).optimizer
    optimizer = make_optimizer(config, lr=0.1, weight_decay=0.0)
    params = {"up": jnp.zeros(3)}
    state = optimizer.init(params)
    np.testing.assert_array_equal(adam_metric(config, state)["up"], 0.0)
    gradients, v = np.array([[0.3, 0.0, -0.1], [0.5, 0.0, 0.2]], np.float32), 0.0
    for gradient in gradients:  # below the clip
        with jax.numpy_dtype_promotion("standard"):
            _, state = optimizer.update({"up": jnp.asarray(gradient)}, state, params)
        v = 0.9 * v + 0.1 * np.float64(gradient) ** 2
    expected = 1 / (np.sqrt(v / (1 - 0.9**2)) + 1e-3)
    found = adam_metric(config, state)["up"]
    np.testing.assert_allclose(found, np.where(v > 0, expected, 0.0), rtol=1e-5)
    assert found[1] == 0.0


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


@pytest.mark.parametrize("asked", ["parts", "preconditioned"])
def test_what_one_group_cannot_tell_is_refused(tiny, asked):
    config = tiny(batch={"sequences": ROWS, "microbatches": 1}, noise={asked: True})
    with pytest.raises(RequestError, match=rf"noise.{asked} needs more than one group.*groups=2"):
        cut_batch(config, MeshConfig())
    assert cut_batch(config, MeshConfig(data=2)).groups == 2
    silent = tiny(
        batch={"sequences": ROWS, "microbatches": 1}, noise={asked: True, "enabled": False}
    )
    assert cut_batch(silent, MeshConfig()).groups == 1
