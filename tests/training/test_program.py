from __future__ import annotations

import re

import jax
import numpy as np
import pytest

from scaling_jax.training.program import CHUNK_STEPS

COLLECTIVES = ("all-reduce", "all-gather", "collective-permute", "all-to-all", "reduce-scatter")
MEASURED = ("loss", "grad_sq_small", "grad_sq_big")
# Eight groups a batch over any mesh of up to four data shards; all dimensions divide by four.
WIDE = {
    "model": {"n_layer": 2, "d_model": 16, "n_head": 4, "n_vocab": 260},
    "batch": {"sequences": 32},
    "noise": {"groups": 8},
    "optimizer": {"grad_clip": 1.0},
}


def assert_bitwise(one, other) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def lane_of(tree, i: int):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[i], tree)


def collectives(executable) -> list[str]:
    """The collective operations of a compiled program, an entry each."""
    found = re.findall(rf"\b({'|'.join(COLLECTIVES)})(?:-start)?\(", executable.as_text())
    assert bool(found) == any(name in executable.as_text() for name in COLLECTIVES)
    return found


@pytest.fixture(scope="module")
def pair(tiny):
    """Two runs of one shape that differ in every number that a lane may have of its own."""
    other = tiny(
        seed=1,
        data={"seed": 3},
        optimizer={"lr_peak": 3e-3, "weight_decay": 0.1},
        schedule={"warmup_steps": 20},
    )
    return [tiny(), other]


@pytest.fixture(scope="module")
def together(pair, compiled, train):
    """Fifty updates of the pair, a lane on each of two devices."""
    return train(compiled(pair[0], lanes=2, lane=2), pair, [50])


def test_the_length_of_chunks_changes_no_bit(tiny, compiled, train):
    program, configs = compiled(tiny()), [tiny()]
    whole = train(program, configs, [7])
    for lengths in ([7], [3, 4], [1] * 7):
        assert_bitwise(train(program, configs, lengths), whole)
    assert (np.diff(whole[1].loss[0]) != 0).all()


def test_a_chunk_fills_what_it_was_asked_for(tiny, compiled):
    program = compiled(tiny())
    numbers = program.place([tiny()])
    _, window = program.chunk(program.init(numbers), 0, 3, numbers)
    assert window.loss.shape == (1, CHUNK_STEPS)
    assert (np.asarray(window.loss)[:, :3] > 0).all()
    assert (np.asarray(window.loss)[:, 3:] == 0).all()


def test_it_learns(tiny, compiled, train):
    _, window = train(compiled(tiny()), [tiny()], [100, 100])
    assert window.loss[0, 0] == pytest.approx(np.log(257), rel=1e-5)
    assert window.loss[0, -20:].mean() < 3.5
    assert window.alive.all()


@pytest.fixture(scope="module")
def unlike(tiny):
    """Eight runs of one shape and every number different, one of which diverges."""
    data = {"unique_tokens": 3000}
    return [
        tiny(steps=100, data=data),
        tiny(steps=100, data=data, seed=1),
        tiny(steps=100, data=data | {"seed": 3}),
        tiny(steps=100, data={"unique_tokens": 300}),
        tiny(steps=100, data=data, optimizer={"lr_peak": 3e-3, "weight_decay": 0.1}),
        tiny(steps=100, data=data, schedule={"warmup_steps": 20}),
        tiny(steps=100, data=data, optimizer={"lr_peak": 1e30}),
        tiny(steps=70, seed=2, data={"seed": 5, "unique_tokens": 2000}),
    ]


def test_a_lane_is_its_run_alone(unlike, compiled, train):
    state, window = train(compiled(unlike[0], lanes=8, lane=8), unlike, [100])
    for i, config in enumerate(unlike):
        steps = config.steps
        state_alone, alone = train(compiled(unlike[0]), [config], [steps])
        np.testing.assert_array_equal(window.alive[i, :steps], alone.alive[0])
        living = int(alone.alive[0].sum())
        assert living < 10 if config.optimizer.lr_peak == 1e30 else living == steps
        for name in ("lr", *MEASURED):
            # squared norms of gradients magnify rounding; a loss is a mean
            tolerance = 1e-4 if name.startswith("grad") else 1e-5
            np.testing.assert_allclose(
                getattr(window, name)[i, :living], getattr(alone, name)[0, :living], rtol=tolerance
            )
        if living < steps:
            continue
        for one, other in zip(
            jax.tree.leaves(lane_of(state.params, i)),
            jax.tree.leaves(lane_of(state_alone.params, 0)),
            strict=True,
        ):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    # no two lanes are the same run
    losses = window.loss[:6, 20:]
    assert all(np.abs(losses[i] - losses[:i]).max(1).min() > 1e-3 for i in range(1, 6))


@pytest.mark.parametrize(
    ("axes", "lanes"),
    [
        pytest.param(*({"data": 4}, 1), marks=pytest.mark.slow),
        pytest.param(*({"fsdp": 4}, 1), marks=pytest.mark.slow),
        pytest.param(*({"tensor": 4}, 1), marks=pytest.mark.slow),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 1),
        ({"lane": 2, "data": 2, "fsdp": 2}, 2),
        pytest.param(*({"lane": 2, "tensor": 2}, 2), marks=pytest.mark.slow),
    ],
)
def test_every_mesh_gives_the_curve_of_one_device(tiny, compiled, train, axes, lanes):
    configs = [tiny(**WIDE, seed=seed) for seed in range(lanes)]
    one, many = compiled(configs[0]), compiled(configs[0], lanes, **axes)
    assert many.mesh.size > 1 and one.cut == many.cut
    state_one, expected = train(one, configs[:1], [50])
    state_many, found = train(many, configs, [50])
    for name in MEASURED:
        np.testing.assert_allclose(getattr(found, name)[0], getattr(expected, name)[0], rtol=1e-4)
    np.testing.assert_allclose(
        many.evaluate(state_many)[0], one.evaluate(state_one)[0], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("axes", [pytest.param({}, marks=pytest.mark.slow), {"lane": 2, "data": 4}])
def test_batches_of_the_host_are_those_of_the_device(tiny, compiled, train, axes):
    subsets = [{"seed": 1, "unique_tokens": 2000}, {"seed": 2, "unique_tokens": 300}]
    cut = {"batch": {"microbatches": 1}}
    losses = {}
    for feed in ("device", "host"):
        configs = [tiny(**cut, data=data, engine={"feed": feed}) for data in subsets]
        program = compiled(configs[0], lanes=2, **axes)
        assert program.engine.feed == feed
        losses[feed] = train(program, configs, [50, 1, 9])[1].loss
    np.testing.assert_array_equal(losses["host"], losses["device"])
    assert np.abs(losses["host"][0] - losses["host"][1]).max() > 0.01


EPOCHS = [
    {"seed": 1, "unique_tokens": 999},
    {"seed": 2, "unique_tokens": 300},
]


@pytest.mark.parametrize("order", [pytest.param("epochs", marks=pytest.mark.slow), "documents"])
def test_epochs_of_the_host_are_those_of_the_device(tiny, compiled, train, order):
    cut = {"batch": {"microbatches": 1}, "model": {"document_mask": order == "documents"}}
    states = {}
    for feed in ("device", "host"):
        configs = [
            tiny(**cut, data={"order": order, **data}, engine={"feed": feed}) for data in EPOCHS
        ]
        program = compiled(configs[0], lanes=2, lane=2, data=2)
        assert program.engine.feed == feed
        states[feed] = train(program, configs, [50, 1, 9])
    assert_bitwise(states["device"], states["host"])
    losses = states["host"][1].loss
    assert np.isfinite(losses).all() and np.abs(losses[0] - losses[1]).max() > 0.01
    # more than an epoch of one, and of the other less than one
    windows = [program.source.windows_an_epoch(each["unique_tokens"]) for each in EPOCHS]
    assert windows[1] < 60 * 8 and program.source.tokens.size == 999


@pytest.mark.parametrize("order", ["epochs", pytest.param("documents", marks=pytest.mark.slow)])
def test_steps_of_epochs_are_a_function_of_the_step(tiny, compiled, order):
    """From step 30 on, a state that is given there goes the same way in any chunks."""
    config = tiny(data={"order": order, "unique_tokens": 700})
    program = compiled(config)
    numbers = program.place([config])
    found = []
    for lengths in ([40], [33, 7], [1] * 40):
        state, step = program.init(numbers), 30
        for n in lengths:
            state, _ = program.chunk(state, step, n, numbers)
            step += n
        found.append(state)
    assert_bitwise(found[0], found[1])
    assert_bitwise(found[0], found[2])


def test_masked_documents_on_a_mesh_give_the_curve_of_one_device(tiny, compiled, train):
    config = tiny(**WIDE | {"model": {**WIDE["model"], "document_mask": True}},
                  data={"order": "documents"})  # fmt: skip
    curves = []
    for axes in ({}, {"data": 2, "fsdp": 2, "tensor": 2}):
        curves.append(train(compiled(config, **axes), [config], [20])[1])
    for name in MEASURED:
        np.testing.assert_allclose(
            getattr(curves[1], name)[0], getattr(curves[0], name)[0], rtol=1e-4
        )


def test_bfloat16_follows_float32(tiny, compiled, train):
    configs = {name: tiny(compute_dtype=name) for name in ("float32", "bfloat16")}
    states, windows = zip(
        *(train(compiled(config), [config], [50]) for config in configs.values()), strict=True
    )
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(states[1].params))
    assert windows[1].loss.dtype == windows[1].grad_sq_big.dtype == np.float32
    assert (windows[1].loss != windows[0].loss).any()
    np.testing.assert_allclose(windows[1].loss, windows[0].loss, rtol=0.02)
    np.testing.assert_allclose(windows[1].grad_sq_big, windows[0].grad_sq_big, rtol=0.2)


@pytest.mark.parametrize(
    "name",
    [
        "adamw",
        "sgd",
        "muon",
        pytest.param("adam", marks=pytest.mark.slow),
        pytest.param("adafactor", marks=pytest.mark.slow),
    ],
)
def test_every_optimizer_learns(tiny, compiled, train, name):
    config = tiny(optimizer={"name": name, "lr_peak": 1.0 if name == "sgd" else 1e-2})
    _, window = train(compiled(config), [config], [100])
    assert window.loss[0, -20:].mean() < 4.5


def test_lanes_differ(together):
    _, window = together
    assert np.abs(window.loss[0, 10:] - window.loss[1, 10:]).min() > 0
    np.testing.assert_allclose(window.lr[0], 1e-2)
    np.testing.assert_allclose(window.lr[1, [0, 19, 49]], [3e-3 / 20, 3e-3, 3e-3], rtol=1e-6)


@pytest.mark.parametrize("change", [{"seed": 1}, {"data": {"seed": 1}}])
def test_each_seed_makes_a_curve(tiny, compiled, train, change):
    program = compiled(tiny(), lanes=2, lane=2)
    _, window = train(program, [tiny(), tiny(**change)], [3])
    assert (window.loss[0, 1:] != window.loss[1, 1:]).all()
    _, window = train(program, [tiny(**change), tiny(**change)], [3])
    np.testing.assert_array_equal(window.loss[0], window.loss[1])


def test_eight_devices_give_the_curve_of_one(tiny, compiled, train):
    _, one = train(compiled(tiny()), [tiny()], [50])
    eight_config = tiny(batch={"microbatches": 1})
    eight = compiled(eight_config, data=8)
    assert eight.cut.groups == 8
    _, window = train(eight, [eight_config], [50])
    np.testing.assert_allclose(window.loss, one.loss, rtol=1e-4)
    np.testing.assert_allclose(window.grad_sq_big, one.grad_sq_big, rtol=1e-3)


@pytest.mark.parametrize("lane", [1, 2])
def test_a_diverging_lane_is_frozen_and_its_neighbour_is_not_touched(tiny, compiled, train, lane):
    program = compiled(tiny(), lanes=2, lane=lane)
    healthy, wild = tiny(seed=1), tiny(optimizer={"lr_peak": 1e30})
    state, beside_healthy = train(program, [healthy, tiny()], [40])
    state_beside_wild, beside_wild = train(program, [healthy, wild], [40])
    assert_bitwise(lane_of(beside_wild, 0), lane_of(beside_healthy, 0))
    assert_bitwise(lane_of(state_beside_wild, 0), lane_of(state, 0))

    died = int(np.argmin(beside_wild.alive[1]))
    assert 0 < died < 40
    assert beside_wild.alive[1, :died].all()
    assert not beside_wild.alive[1, died:].any()
    state_at_death, _ = train(program, [healthy, wild], [died])
    assert_bitwise(
        lane_of(state_beside_wild.params, 1),
        lane_of(state_at_death.params, 1),
    )
    assert np.asarray(state_beside_wild.alive).tolist() == [True, False]


def test_lanes_on_devices_of_their_own_need_no_communication(tiny, compiled):
    lanes = compiled(tiny(), lanes=2, lane=2)
    for executable in (lanes._init, lanes._chunk, lanes._evaluate):
        assert collectives(executable) == []
    assert "num_partitions=2" in lanes._chunk.as_text()
    eight = compiled(tiny(), lanes=8, lane=8)
    assert collectives(eight._chunk) == []
    assert "num_partitions=8" in eight._chunk.as_text()


def test_data_shards_meet_once_a_step(tiny, compiled):
    for data in (2, 8):
        sharded = compiled(tiny(batch={"microbatches": 1}), data=data)
        assert collectives(sharded._chunk) == ["all-reduce"]


def test_the_compiler_reports_the_memory_of_what_it_compiled(tiny, compiled):
    small, large = compiled(tiny()), compiled(tiny(**WIDE))
    assert small.memory > small.corpus.train.tokens.nbytes
    assert large.memory > small.memory
