from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from scaling_jax.config import MeshConfig, RunConfig
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.training.checkpoints import Restored, Shelf, checkpoint_steps, load_run
from scaling_jax.training.mesh import make_mesh
from scaling_jax.training.program import abstract_state
from scaling_jax.training.saving import Checkpoints, cohort_folder, committed_steps, flatten
from scaling_jax.training.step import TrainState

LANES = ["r0", "r1", "r2", "r3"]


@pytest.fixture
def out(tmp_path) -> epath.Path:
    return epath.Path(tmp_path)


@pytest.fixture
def runs(tiny) -> dict[str, RunConfig]:
    return {run_id: tiny(seed=i) for i, run_id in enumerate(LANES)}


def identities(runs: dict[str, RunConfig]) -> dict[str, Any]:
    return {run_id: {"config": config.identity(), "corpus": "c"} for run_id, config in runs.items()}


def shapes(runs: dict[str, RunConfig], **axes: int) -> TrainState:
    return abstract_state(next(iter(runs.values())), len(runs), make_mesh(MeshConfig(**axes)))


def state_of(runs: dict[str, RunConfig], step: int, **axes: int) -> TrainState:
    """A state that is drawn for each run by itself, whatever lanes are beside it."""
    draws = [np.random.default_rng([LANES.index(run_id), step]) for run_id in runs]

    def leaf(like: jax.ShapeDtypeStruct) -> jax.Array:
        drawn = np.stack([each.standard_normal(like.shape[1:]) * 9 for each in draws])
        return jax.device_put(drawn.astype(like.dtype), like.sharding)

    return jax.tree.map(leaf, shapes(runs, **axes))


def lane_docs(runs: dict[str, RunConfig], step: int) -> list[dict[str, Any]]:
    return [
        {"recorder": {"step": step, "step_start": step - 1}, "of": [run_id, step]}
        for run_id in runs
    ]


def write(out: epath.Path, runs: dict[str, RunConfig], steps: list[int], **axes: int) -> epath.Path:
    written = Checkpoints(out, identities(runs), kept=steps)
    for step in steps:
        written.save(step, state_of(runs, step, **axes), lane_docs(runs, step))
    written.wait()
    written.close()
    return written.folder


def equal(one: Any, other: Any) -> bool:
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def only(runs: dict[str, RunConfig], *run_ids: str) -> dict[str, RunConfig]:
    return {run_id: runs[run_id] for run_id in run_ids}


def is_that_of(restored: Restored | None, runs: dict[str, RunConfig], step: int) -> bool:
    assert restored is not None
    return (
        restored.step == step
        and restored.lanes == lane_docs(runs, step)
        and equal(restored.state, state_of(runs, step))
    )


def test_each_run_has_the_newest_of_all_cohorts(out, runs):
    write(out, runs, [10, 20])
    write(out, only(runs, "r1"), [15])
    write(out, only(runs, "r3", "r2"), [30])
    newest = Shelf(out).newest([*LANES, "other"])
    assert newest == {"r0": 20, "r1": 20, "r2": 30, "r3": 30, "other": 0}


def test_nothing_is_looked_for_where_there_is_nothing(out):
    assert Shelf(out).newest(["r0"]) == {"r0": 0}
    assert list(out.iterdir()) == []


def test_a_cohort_goes_on_from_its_own(out, runs):
    write(out, runs, [10], lane=4)
    restored = Shelf(out).restore(identities(runs), 10, shapes(runs, lane=4), {})
    assert restored is not None and restored.own
    assert is_that_of(restored, runs, 10)


def test_it_goes_on_over_another_mesh(out, runs):
    write(out, runs, [10], lane=2, fsdp=4)
    for axes in ({"lane": 4}, {"fsdp": 2}, {"data": 8}, {}):
        like = shapes(runs, **axes)
        restored = Shelf(out).restore(identities(runs), 10, like, {})
        assert restored is not None and is_that_of(restored, runs, 10)
        for leaf, wanted in zip(
            jax.tree.leaves(restored.state), jax.tree.leaves(like), strict=True
        ):
            assert leaf.sharding == wanted.sharding


def test_lanes_come_from_the_cohorts_that_have_them(out, runs):
    write(out, only(runs, "r0", "r1"), [10], lane=2)
    write(out, only(runs, "r2", "r3"), [10])
    for lanes in (LANES, ["r3"], ["r2", "r1"]):
        asked = only(runs, *lanes)
        restored = Shelf(out).restore(identities(asked), 10, shapes(asked), {})
        assert restored is not None and not restored.own
        assert is_that_of(restored, asked, 10)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(out, runs):
    folder = write(out, runs, [10, 20, 30])
    shutil.rmtree(folder / "30" / "state" / "d")
    warnings: list[str] = []
    shelf = Shelf(out, warn=warnings.append)
    assert shelf.newest(LANES)["r0"] == 30
    assert shelf.restore(identities(runs), 30, shapes(runs), {}) is None
    assert len(warnings) == 1
    assert warnings[0].startswith(f"checkpoint {folder / '30'} is damaged: ")
    assert shelf.newest(LANES)["r0"] == 20
    assert is_that_of(shelf.restore(identities(runs), 20, shapes(runs), {}), runs, 20)
    assert len(warnings) == 1


def test_a_checkpoint_whose_rows_are_lost_is_not_used(out, runs):
    write(out, runs, [10, 20])
    warnings: list[str] = []
    shelf = Shelf(out, warn=warnings.append)
    recorded = {"r0": 25, "r1": 12}  # the windows that were open began at 19 and 9
    assert shelf.restore(identities(runs), 20, shapes(runs), recorded) is None
    assert "the records of run r1 end at step 12" in warnings[0]
    assert shelf.newest(LANES)["r1"] == 10
    assert shelf.restore(identities(runs), 10, shapes(runs), recorded) is not None


def test_a_checkpoint_of_another_config_is_refused_by_its_fields(out, runs, tiny):
    write(out, runs, [10])
    other = runs | {"r2": tiny(seed=2, optimizer={"lr_peak": 0.5}, steps=61)}
    with pytest.raises(RequestError) as refusal:
        Shelf(out).restore(identities(other), 10, shapes(other), {})
    told = str(refusal.value)
    assert "is one of another config of run r2: " in told
    assert "config.optimizer.lr_peak 0.01 there and 0.5 here, config.steps 60 there" in told


def test_a_folder_of_another_cohort_is_passed_over(out, runs):
    one = write(out, only(runs, "r0"), [10])
    other = write(out, only(runs, "r1"), [10])
    shutil.rmtree(one)
    other.rename(one)
    warnings: list[str] = []
    shelf = Shelf(out, [["r0"]], warnings.append)
    assert shelf.newest(["r0"]) == {"r0": 10}
    asked = only(runs, "r0")
    assert shelf.restore(identities(asked), 10, shapes(asked), {}) is None
    assert "is one of other runs" in warnings[0]
    assert Shelf(out).newest(["r0", "r1"]) == {"r0": 0, "r1": 10}


def test_a_run_is_loaded_alone(out, runs):
    write(out, only(runs, "r1", "r0"), [10, 20], lane=2)
    assert checkpoint_steps(out, "r0") == [10, 20]
    asked = only(runs, "r0")
    for step in (10, 20):
        found, params = load_run(out, "r0", step)
        alone = jax.tree.map(lambda x: x[0], state_of(asked, step).params)
        assert found == step
        assert jax.tree.structure(params) == jax.tree.structure(alone)
        assert equal(params, alone)
        assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(params))
    assert load_run(str(out), "r0")[0] == 20


def test_a_run_that_ended_before_its_cohort_has_its_own_step(out, runs):
    pair = only(runs, "r0", "r1")
    written = Checkpoints(out, identities(pair), kept=())
    docs = lane_docs(pair, 30)
    docs[1]["recorder"]["step"] = 24
    written.save(30, state_of(pair, 30), docs)
    written.wait()
    written.close()
    assert (checkpoint_steps(out, "r0"), checkpoint_steps(out, "r1")) == ([30], [24])
    assert load_run(out, "r1", 24)[0] == 24


def test_what_cannot_be_loaded_is_told(out, runs, capsys):
    with pytest.raises(RequestError, match="run r0 has no checkpoint under"):
        load_run(out, "r0")
    folder = write(out, only(runs, "r0"), [10, 20])
    with pytest.raises(RequestError, match="no checkpoint of step 12; there are 10, 20"):
        load_run(out, "r0", 12)
    shutil.rmtree(folder / "20" / "state" / "d")
    assert load_run(out, "r0")[0] == 10
    assert capsys.readouterr().err.count("is damaged") == 1
    with pytest.raises(WorkError, match="no checkpoint of run r0 that was asked for is whole"):
        load_run(out, "r0", 20)


KINDS = ("truncate", "flip", "remove", "swap", "zero", "junk")


def damage(folder: epath.Path, kind: str, draws: np.random.Generator) -> str:
    """Damages one file of the newest checkpoint, and says how."""
    before, newest = (Path(folder) / str(step) for step in committed_steps(folder)[-2:])
    files = sorted(str(path.relative_to(newest)) for path in newest.rglob("*") if path.is_file())
    name = files[draws.integers(len(files))]
    data = bytearray((newest / name).read_bytes())
    if kind in ("truncate", "flip", "zero") and data:
        at = int(draws.integers(len(data)))
        if kind == "truncate":
            del data[at:]
        else:
            data[at] = 0 if kind == "zero" else data[at] ^ (1 << int(draws.integers(8)))
        (newest / name).write_bytes(bytes(data))
    elif kind == "remove":
        (newest / name).unlink()
    elif kind == "swap":
        others = sorted(path for path in before.rglob("*") if path.is_file())
        other = others[draws.integers(len(others))]
        (newest / name).write_bytes(other.read_bytes())
    elif kind == "junk":
        (newest / name).write_bytes(draws.bytes(64))
    return f"{kind} {name}"


@pytest.fixture
def survives(out, runs) -> Callable[[int], None]:
    """`survives(seed)`: what is restored from a folder with that damage is right.

    The seeds take the kinds of damage in turn.
    """
    pair = only(runs, "r0", "r1")
    whole = write(out / "whole", pair, [10, 20, 30])
    states = {step: state_of(pair, step) for step in (10, 20, 30)}

    def check(seed: int) -> None:
        there = out / "damaged"
        folder = cohort_folder(there, list(pair))
        shutil.copytree(whole, folder)
        how = damage(folder, KINDS[seed % len(KINDS)], np.random.default_rng(seed))
        warnings: list[str] = []
        shelf = Shelf(there, warn=warnings.append)
        restored, step = None, 30
        while restored is None:
            step = shelf.newest(list(pair))["r0"]
            assert step > 0, how
            restored = shelf.restore(identities(pair), step, shapes(pair), {})
        assert equal(restored.state, states[step]), how
        assert restored.lanes == lane_docs(pair, step), how
        assert step == 20 or not warnings, how
        assert step == 30 or len(warnings) == 1, (how, warnings)
        # and it can be written over
        written = Checkpoints(there, identities(pair), kept=())
        written.go_on_from(step)
        written.save(40, state_of(pair, 10), lane_docs(pair, 40))
        written.finish(40)
        written.close()
        assert committed_steps(folder) == [40], how
        shutil.rmtree(there)

    return check


def test_damage_is_noticed(survives):
    for seed in range(2 * len(KINDS)):
        survives(seed)


@pytest.mark.slow
def test_much_damage_is_noticed(survives):
    for seed in range(100, 400):
        survives(seed)


def test_a_state_is_flattened_by_names(runs):
    names = list(flatten(shapes(runs)))
    assert "params.blocks.attention.qkv.value" in names
    assert "alive" in names
    assert jnp.dtype(flatten(shapes(runs))["alive"].dtype) == jnp.bool_
