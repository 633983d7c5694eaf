from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from scaling_jax.config import EngineConfig, MeshConfig
from scaling_jax.training.evaluation import make_evaluate, rows_at_once
from scaling_jax.training.memory import Memory, estimate_memory
from scaling_jax.training.mesh import make_mesh
from scaling_jax.training.program import abstract_state

PLAIN = EngineConfig(attention="xla", layers="unrolled", feed="device")
# Large enough that no constant of the program counts.
SHAPE = {"n_layer": 2, "d_model": 64, "n_head": 4, "n_ctx": 64}
CASES: dict[str, tuple[dict[str, Any], dict[str, int], int]] = {
    "plain": ({}, {}, 1),
    "microbatches": ({"batch": {"sequences": 32, "microbatches": 8}}, {}, 1),
    "groups": ({"noise": {"groups": 8}, "model": {**SHAPE, "d_model": 128}}, {}, 1),
    "sequences": (
        {"noise": {"sequences": "all"}, "model": {**SHAPE, "n_layer": 1, "n_vocab": 2048}},
        {},
        1,
    ),
    "preconditioned": (
        {
            "noise": {"preconditioned": True},
            "model": {**SHAPE, "d_model": 128},
            "batch": {"sequences": 8, "microbatches": 4},
        },
        {},
        1,
    ),
    "lanes on a device": ({}, {}, 3),
    "lanes": ({}, {"lane": 4}, 8),
    "data": ({}, {"data": 4}, 1),
    "tensor": ({}, {"tensor": 4}, 1),
    "fsdp": ({"model": {**SHAPE, "d_model": 128}}, {"fsdp": 4}, 1),
    "bfloat16": ({"compute_dtype": "bfloat16"}, {}, 1),
    "vocabulary": ({"model": {**SHAPE, "n_layer": 1, "n_vocab": 8192}}, {}, 1),
    "scan": ({"engine": {"layers": "scan"}, "model": {**SHAPE, "n_layer": 6}}, {}, 1),
    "remat": ({"engine": {"remat": "full"}, "model": {**SHAPE, "n_layer": 6}}, {}, 1),
    "dots": ({"engine": {"remat": "dots"}, "model": {**SHAPE, "n_layer": 6}}, {}, 1),
    "remat unrolled": (
        {"engine": {"remat": "full", "layers": "unrolled"}, "model": {**SHAPE, "n_layer": 4}},
        {},
        1,
    ),
}


# The others take as long again as all other tests of a training program.
QUICK = ("groups", "fsdp")


@pytest.mark.parametrize(
    ("changes", "axes", "lanes"),
    [
        pytest.param(*case, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, case in CASES.items()
    ],
)
def test_the_estimate_is_about_what_the_compiler_reports(tiny, compiled, changes, axes, lanes):
    batch = {"sequences": 8, "microbatches": 1}
    config = tiny(**{"model": SHAPE, "batch": batch, **changes})
    program = compiled(config, lanes, **axes)
    tokens = program.corpus.train.tokens.nbytes
    estimate = estimate_memory(config, program.engine, MeshConfig(**axes), lanes, tokens)
    assert 0.7 < (estimate.total - estimate.evaluation) / program.memory < 1.5


def memory(config: Any, engine: EngineConfig = PLAIN, lanes: int = 1, **axes: int) -> Memory:
    return estimate_memory(config, engine, MeshConfig(**axes), lanes, 1000)


def test_each_axis_cuts_what_it_is_for(tiny):
    config = tiny(batch={"sequences": 16, "microbatches": 1}, noise={"groups": 4})
    whole = memory(config)
    lanes, data = memory(config, lanes=4, lane=4), memory(config, data=4)
    assert lanes == whole
    assert data.state == whole.state
    assert data.activations == pytest.approx(whole.activations / 4, rel=0.01)
    fsdp, tensor = memory(config, fsdp=4), memory(config, tensor=2)
    assert fsdp.state == pytest.approx(whole.state / 4, rel=0.01)
    assert fsdp.activations == pytest.approx(whole.activations / 4, rel=0.01)
    assert tensor.state == pytest.approx(whole.state / 2, rel=0.01)
    assert whole.activations / 2 < tensor.activations < whole.activations
    assert {one.tokens for one in (whole, lanes, data, fsdp, tensor)} == {1000}
    parts = whole.state + whole.gradients + whole.activations + whole.evaluation + 1000
    assert whole.total == parts


EVALUATED: dict[str, tuple[dict[str, Any], int, dict[str, int]]] = {
    "vocabulary": ({"model": {**SHAPE, "n_vocab": 4096}}, 1, {}),
    "lanes": ({"model": {**SHAPE, "n_vocab": 4096}}, 3, {}),
    "context": ({"model": {**SHAPE, "n_ctx": 256}}, 1, {}),
    "data": ({"model": {**SHAPE, "n_vocab": 4096}}, 1, {"data": 4}),
}


@pytest.mark.parametrize(
    ("changes", "lanes", "axes"), [pytest.param(*case, id=name) for name, case in EVALUATED.items()]
)
def test_an_evaluation_needs_about_what_the_compiler_reports(tiny, quick_jit, changes, lanes, axes):
    config = tiny(
        **changes, evaluation={"tokens": 20000}, batch={"sequences": 4, "microbatches": 1}
    )
    rows = rows_at_once(config, 10**9, axes.get("data", 1))
    n_ctx = config.model.n_ctx
    batches = 2 * 20000 // (rows * n_ctx)
    evaluate = jax.vmap(make_evaluate(config, PLAIN), in_axes=(0, None), spmd_axis_name="lane")
    mesh = make_mesh(MeshConfig(**axes))
    state = abstract_state(config, lanes, mesh)
    window_nbt = jax.ShapeDtypeStruct((batches, rows, n_ctx + 1), jnp.int32)
    with jax.set_mesh(mesh):
        compiled = quick_jit(evaluate).lower(state.params, window_nbt).compile()
    reported = compiled.memory_analysis()
    needed = reported.temp_size_in_bytes + reported.output_size_in_bytes
    estimate = memory(config, lanes=lanes, **axes)
    assert estimate.evaluation > 0
    of_update = estimate.gradients + estimate.activations
    assert 0.6 < (of_update + estimate.evaluation) / needed < 1.7


def test_lanes_of_one_device_add_up(tiny):
    one, five = memory(tiny()), memory(tiny(), lanes=5)
    assert five.total - five.tokens == pytest.approx(5 * (one.total - one.tokens), rel=1e-6)


def test_microbatches_and_remat_save_activations(tiny):
    deep = {"model": {"n_layer": 8}, "batch": {"microbatches": 1}}
    scan = PLAIN.model_copy(update={"layers": "scan"})
    none, dots, full = (
        memory(tiny(**deep), scan.model_copy(update={"remat": remat})).activations
        for remat in ("none", "dots", "full")
    )
    assert none > dots > full
    split = memory(tiny(model={"n_layer": 8}, batch={"microbatches": 4}), scan)
    assert split.activations == pytest.approx(none / 4, rel=0.01)


def test_what_is_measured_takes_memory(tiny):
    plain = memory(tiny())
    metric = memory(tiny(noise={"preconditioned": True}))
    assert metric.gradients - plain.gradients == pytest.approx(plain.state / 3, abs=1)
    assert metric._replace(gradients=plain.gradients, evaluation=plain.evaluation) == plain
    own = memory(tiny(noise={"sequences": "all"}))
    assert own.activations > plain.activations
    assert own._replace(activations=plain.activations, evaluation=plain.evaluation) == plain


def test_the_state_is_that_of_the_optimizer(tiny):
    def state(**optimizer: Any) -> int:
        return memory(tiny(optimizer=optimizer)).state

    params = state(name="sgd")
    assert state(name="sgd", momentum=0.9) == 2 * params
    assert state(name="adamw") == state(name="muon") == 3 * params
