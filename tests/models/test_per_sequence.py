"""Norms from the probes against explicit backward passes of one example each."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from scaling_jax.config import EngineConfig, MeshConfig, ModelConfig
from scaling_jax.models.kinds import KINDS, kind_of
from scaling_jax.models.per_sequence import linear
from scaling_jax.models.transformer import Transformer
from scaling_jax.training.mesh import make_mesh
from scaling_jax.training.sharding import state_shardings

# These tests compile more than they compute.
ROWS = 4
SCANNED = EngineConfig(layers="scan", attention="xla")
UNROLLED = EngineConfig(layers="unrolled", attention="xla")


class Case(NamedTuple):
    """A model, how it is computed, and in which type."""

    model: ModelConfig
    engine: EngineConfig = UNROLLED
    dtype: str = "float32"


class Found(NamedTuple):
    """What one backward pass gave."""

    logits_btv: jax.Array
    gradient: Any
    sq_norms: dict[str, np.ndarray]


def shape(**changes: Any) -> ModelConfig:
    base = {"n_layer": 2, "d_model": 8, "n_head": 2, "n_ctx": 24, "n_vocab": 11, "d_ff": 20}
    return ModelConfig(**{**base, **changes})


def graph_and_params(case: Case, lanes: int | None = None) -> tuple[Any, Any]:
    """Parameters none of which is zero; drawn by numpy, which compiles nothing."""
    graph, state = nnx.split(
        nnx.eval_shape(lambda: Transformer(case.model, nnx.Rngs(0), case.engine))
    )
    draws = np.random.default_rng(5)
    stacked = () if lanes is None else (lanes,)
    return graph, jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * draws.standard_normal((*stacked, *leaf.shape), np.float32)),
        state,
    )


def some_windows(model: ModelConfig, rows: int = ROWS) -> np.ndarray:
    """Rows of tokens: of few kinds, so that they repeat; the second row repeats the first."""
    windows_bt = np.random.default_rng(1).integers(
        0, min(7, model.n_vocab), (rows, model.n_ctx + 1), np.int32
    )
    windows_bt[1] = windows_bt[0]
    windows_bt[2] = 3
    return windows_bt


def dropout_keys(rows: int = ROWS) -> jax.Array:
    return jax.random.split(jax.random.key(2), rows)


def mean_loss(
    graph: Any, case: Case, params: Any, probes: Any, windows_bt: jax.Array, keys_b: Any
) -> tuple[jax.Array, jax.Array]:
    """And the logits."""
    params = jax.tree.map(lambda p: p.astype(case.dtype), params)
    logits_btv = nnx.merge(graph, params)(windows_bt[:, :-1], keys_b, probes)
    logs_btv = jax.nn.log_softmax(logits_btv.astype(jnp.float32))
    return -jnp.take_along_axis(logs_btv, windows_bt[:, 1:, None], 2).mean(), logits_btv


def zeros(kinds: tuple[str, ...], rows: int = ROWS) -> dict[str, jax.Array]:
    return {kind: jnp.zeros(rows, jnp.float32) for kind in kinds}


def gradient_fn(graph: Any, case: Case, argnums: Any) -> Any:
    return jax.grad(functools.partial(mean_loss, graph, case), argnums, has_aux=True)


@functools.cache
def probed(case: Case, kinds: tuple[str, ...] = KINDS) -> Found:
    """Gradient of the mean over rows, and each row's squared norm at the scale of its own loss."""
    graph, params = graph_and_params(case)
    gradients = jax.jit(gradient_fn(graph, case, (0, 1)))
    (gradient, sq_norms), logits_btv = gradients(
        params, zeros(kinds), jnp.asarray(some_windows(case.model)), dropout_keys()
    )
    sq_norms = {kind: ROWS**2 * np.asarray(sq_b) for kind, sq_b in sq_norms.items()}
    return Found(logits_btv, gradient, sq_norms)


def by_kind(gradients_b: Any, rows: int) -> dict[str, np.ndarray]:
    """Squared norms of gradients stacked over rows, in float64."""
    sums = {kind: np.zeros(rows) for kind in KINDS}
    for path, leaf_b in jax.tree_util.tree_leaves_with_path(gradients_b):
        flat_b = np.asarray(leaf_b, np.float64).reshape(rows, -1)
        sums[kind_of(path)] += np.square(flat_b).sum(1)
    return sums


@functools.cache
def one_row_gradients(case: Case) -> Any:
    """Compiled: gradients and logits of one-row batches, one after another."""
    graph, _ = graph_and_params(case)
    return jax.jit(
        lambda params, windows_b1t, keys_b1: jax.lax.map(
            lambda row: gradient_fn(graph, case, 0)(params, None, *row), (windows_b1t, keys_b1)
        )
    )


def one_by_one(model: ModelConfig, params: Any, windows_bt: np.ndarray) -> Found:
    """The same from plain backward passes of single examples, in float32."""
    gradients_b, logits_b1tv = one_row_gradients(Case(model, SCANNED))(
        params, windows_bt[:, None], dropout_keys()[:, None]
    )
    mean = jax.tree.map(lambda leaf_b: leaf_b.mean(0), gradients_b)
    return Found(logits_b1tv[:, 0], mean, by_kind(gradients_b, ROWS))


def expected_of(case: Case) -> Found:
    return one_by_one(case.model, graph_and_params(case)[1], some_windows(case.model))


def assert_same_gradient(found: Any, expected: Any, rtol: float = 1e-6) -> None:
    leaves, expected_leaves = jax.tree.leaves(found), jax.tree.leaves(expected)
    assert len(leaves) == len(expected_leaves) > 10
    for one, other in zip(leaves, expected_leaves, strict=True):
        scale = float(jnp.abs(other).max())
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * scale)


LONG = shape()
SHORT = shape(d_model=16, d_ff=40, n_ctx=5, dropout=0.3, activation="relu")
CASES = {
    # Of LONG every matrix is measured by its rows' own gradients, of SHORT none.
    "long": Case(LONG),
    "short": Case(SHORT, SCANNED.model_copy(update={"remat": "dots"})),
    "long, full": Case(LONG, UNROLLED.model_copy(update={"remat": "full"})),
    "tied, blocks": Case(
        shape(n_ctx=128, tied_embeddings=True), SCANNED.model_copy(update={"attention": "blocks"})
    ),
    "tied, short": Case(shape(tied_embeddings=True, n_ctx=4)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_norms_of_every_kind_are_those_of_one_example_alone(case: Case):
    found, expected = probed(case), expected_of(case)
    for kind in KINDS:
        if kind == "head" and case.model.tied_embeddings:
            np.testing.assert_array_equal(found.sq_norms[kind], 0.0)
        else:
            assert (expected.sq_norms[kind] > 1e-6).all()
            np.testing.assert_allclose(
                found.sq_norms[kind], expected.sq_norms[kind], rtol=1e-5, err_msg=kind
            )
    assert_same_gradient(found.gradient, expected.gradient, rtol=1e-5)
    if not case.model.dropout:
        for sq_b in found.sq_norms.values():
            np.testing.assert_allclose(sq_b[1], sq_b[0], rtol=1e-6)


def test_norms_of_a_bfloat16_model_are_summed_in_float32():
    found, expected = probed(Case(LONG, SCANNED, "bfloat16")), expected_of(CASES["long"])
    for kind in KINDS:
        assert found.sq_norms[kind].dtype == np.float32
        # Parameters, activations and their cotangents are rounded to eight bits.
        np.testing.assert_allclose(found.sq_norms[kind], expected.sq_norms[kind], rtol=0.03)


def test_probes_change_neither_logits_nor_gradients():
    found, plain = probed(CASES["long"]), probed(CASES["long"], ())
    assert plain.sq_norms == {}
    assert_same_gradient(found.gradient, plain.gradient)
    np.testing.assert_allclose(found.logits_btv, plain.logits_btv, rtol=1e-6, atol=1e-6)


def test_without_probes_nothing_of_them_is_traced():
    graph, params = graph_and_params(CASES["tied, short"])
    tokens_bt = jnp.zeros((ROWS, 4), jnp.int32)

    def traced(probes: Any) -> str:
        return str(jax.make_jaxpr(lambda p: nnx.merge(graph, p)(tokens_bt, None, probes))(params))

    assert "custom_vjp" not in traced(None)
    assert traced(None) == traced({})
    assert "custom_vjp" in traced(zeros(("norms",)))


def test_the_norms_alone_are_what_they_are_among_all():
    alone = probed(CASES["long"], ("norms",)).sq_norms
    assert set(alone) == {"norms"}
    np.testing.assert_allclose(
        alone["norms"], expected_of(CASES["long"]).sq_norms["norms"], rtol=1e-5
    )


def test_an_unknown_kind_is_refused():
    graph, params = graph_and_params(CASES["long"])
    with pytest.raises(ValueError, match="Did you mean 'norms'"):
        nnx.merge(graph, params)(jnp.zeros((ROWS, 4), jnp.int32), None, zeros(("norm",)))


def largest_array(jaxpr: Any) -> int:
    sizes = [variable.aval.size for eqn in jaxpr.eqns for variable in eqn.outvars]
    inner = [
        getattr(value, "jaxpr", value)
        for eqn in jaxpr.eqns
        for value in eqn.params.values()
        if hasattr(value, "eqns") or hasattr(value, "jaxpr")
    ]
    return max([*sizes, *map(largest_array, inner)], default=0)


@pytest.mark.parametrize(("t", "d", "e"), [(64, 8, 16), (6, 8, 24), (5, 8, 24), (2, 64, 80)])
def test_a_matrix_is_measured_exactly_and_in_the_memory_of_its_activations(t, d, e):
    draws = np.random.default_rng(0)
    x_btd, dy_bte, weights_de = (
        jnp.asarray(draws.standard_normal(size, np.float32))
        for size in [(3, t, d), (3, t, e), (d, e)]
    )
    _, pull = jax.vjp(linear, x_btd, weights_de, jnp.zeros(3, jnp.float32))
    _, _, sq_b = pull(dy_bte)
    parts_bde = np.einsum("btd,bte->bde", np.asarray(x_btd, np.float64), dy_bte)
    np.testing.assert_allclose(sq_b, np.square(parts_bde).sum((1, 2)), rtol=1e-5)
    assert largest_array(jax.make_jaxpr(pull)(dy_bte).jaxpr) <= max(3 * t * (d + e), d * e)


MESHES = [
    ({"data": 2, "fsdp": 2, "tensor": 2}, "tied, short"),
    ({"lane": 2, "data": 2, "tensor": 2}, "long"),
]
LANES, GROUPS = 2, 2


@pytest.mark.parametrize(("axes", "name"), MESHES, ids=str)
def test_norms_are_the_same_on_every_mesh_and_in_lanes_and_groups(axes: dict[str, int], name: str):
    case = CASES[name]._replace(engine=SCANNED)
    graph, params = graph_and_params(case, LANES)
    windows_lgbt = some_windows(case.model, LANES * GROUPS * ROWS).reshape(LANES, GROUPS, ROWS, -1)
    mesh = make_mesh(MeshConfig(**axes))
    laid, over_lanes = state_shardings(params, mesh), NamedSharding(mesh, PartitionSpec("lane"))

    def lane(params: Any, windows_gbt: jax.Array) -> Any:
        by_group = jax.vmap(
            gradient_fn(graph, case, (0, 1)), in_axes=(None, None, 0, None), spmd_axis_name="data"
        )
        windows_gbt = jax.lax.with_sharding_constraint(windows_gbt, PartitionSpec("data", "fsdp"))
        (_, sq_norms), _ = by_group(params, zeros(KINDS), windows_gbt, None)
        return sq_norms

    with jax.set_mesh(mesh):
        by_lane = jax.jit(
            jax.vmap(lane, spmd_axis_name="lane"),
            in_shardings=(laid, over_lanes),
            out_shardings=over_lanes,
        )
        sq_norms = by_lane(params, windows_lgbt)
    for lane_index, group in np.ndindex(LANES, GROUPS):
        own_params = jax.tree.map(lambda leaf, at=lane_index: leaf[at], params)
        expected = one_by_one(case.model, own_params, windows_lgbt[lane_index, group]).sq_norms
        for kind in set(KINDS) - ({"head"} if case.model.tied_embeddings else set()):
            found_b = ROWS**2 * np.asarray(sq_norms[kind][lane_index, group])
            np.testing.assert_allclose(found_b, expected[kind], rtol=1e-5, err_msg=kind)
