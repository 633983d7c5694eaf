from __future__ import annotations

import jax
import numpy as np
import pytest

from scaling_jax.training.program import CHUNK_STEPS

COLLECTIVES = ("all-reduce", "all-gather", "collective-permute", "all-to-all", "reduce-scatter")


def assert_bitwise(one, other) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def lane_of(tree, i: int):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[i], tree)


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


def test_a_lane_is_its_run_alone(pair, compiled, train, together):
    state, window = together
    for i, config in enumerate(pair):
        state_alone, window_alone = train(compiled(pair[0]), [config], [50])
        for name in ("loss", "lr", "grad_sq_small", "grad_sq_big"):
            alone = getattr(window_alone, name)[0]
            tolerance = 1e-4 if name.startswith("grad") else 1e-5
            np.testing.assert_allclose(getattr(window, name)[i], alone, rtol=tolerance)
        for one, other in zip(
            jax.tree.leaves(lane_of(state.params, i)),
            jax.tree.leaves(lane_of(state_alone.params, 0)),
            strict=True,
        ):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


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
        text = executable.as_text()
        assert not [name for name in COLLECTIVES if name in text]
    assert "num_partitions=2" in lanes._chunk.as_text()
    sharded = compiled(tiny(batch={"microbatches": 1}), data=8)
    assert "all-reduce" in sharded._chunk.as_text()
