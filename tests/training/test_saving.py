from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from scaling_jax.config import MeshConfig
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.training import saving
from scaling_jax.training.mesh import make_mesh
from scaling_jax.training.saving import (
    Checkpoints,
    Damaged,
    cohort_folder,
    committed_steps,
    describe,
    flatten,
    kept_steps,
    load,
    unflatten,
)

RUNS = {"a1": {"config": {"seed": 1}}, "b2": {"config": {"seed": 2}}}
LANES = [{"recorder": {"step": 7, "lr_sum": 0.1 + 0.2}}, {"recorder": {"step": 3}}]


def state_at(step: int) -> dict:
    """A state of two lanes with arrays of every kind."""
    draws = np.random.default_rng(step)
    return {
        "params": {"w": jnp.asarray(draws.standard_normal((2, 4, 6)), jnp.float32)},
        "count": (jnp.full(2, step, jnp.int32), -jnp.zeros((2, 3))),
        "half": jnp.asarray(draws.standard_normal((2, 5)), jnp.bfloat16),
        "alive": jnp.asarray([True, False]),
    }


def abstract(state: dict) -> dict:
    return {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        for name, x in flatten(state).items()
    }


def equal(one: dict, other: dict) -> bool:
    return all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@pytest.fixture
def out(tmp_path) -> epath.Path:
    return epath.Path(tmp_path)


def save_all(out: epath.Path, steps: list[int], kept: tuple[int, ...] = ()) -> Checkpoints:
    written = Checkpoints(out, RUNS, kept)
    for step in steps:
        written.save(step, state_at(step), LANES)
    written.wait()
    return written


@pytest.mark.parametrize(
    ("steps", "per_decade", "kept"),
    [
        (60, 0, []),
        (9, 1, []),
        (10, 1, [10]),
        (2000, 1, [10, 100, 1000]),
        (100, 3, [10, 22, 46, 100]),
    ],
)
def test_kept_steps_are_log_spaced(steps, per_decade, kept):
    assert kept_steps(steps, per_decade) == kept


def test_what_is_read_is_what_was_written(out):
    save_all(out, [7]).close()
    folder = cohort_folder(out, ["a1", "b2"])
    saved = describe(folder, 7)
    assert (saved.step, saved.runs, saved.lanes) == (7, RUNS, LANES)
    assert list(saved.runs) == ["a1", "b2"]
    state = state_at(7)
    assert equal(unflatten(state, load(folder, saved, abstract(state))), state)
    one = {"params.w": abstract(state)["params.w"]}
    assert equal(load(folder, saved, one), {"params.w": state["params"]["w"]})


def test_arrays_may_be_overwritten_once_they_are_saved(out):
    written, state = Checkpoints(out, RUNS, ()), state_at(7)
    written.save(7, state, LANES)
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    written.wait()
    written.close()
    folder = written.folder
    assert load(folder, describe(folder, 7), abstract(state_at(7)))


def test_another_mesh_reads_the_same(out):
    laid = {"w": ("lane", "fsdp"), "v": ("lane",)}
    state = {"w": state_at(1)["params"]["w"], "v": state_at(2)["half"]}

    def on(axes: dict[str, int]) -> dict:
        mesh = make_mesh(MeshConfig(**axes))
        return {
            name: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*laid[name])))
            for name, x in state.items()
        }

    written = Checkpoints(out, RUNS, ())
    written.save(1, on({"lane": 2, "fsdp": 4}), LANES)
    written.wait()
    written.close()
    for axes in ({"lane": 2}, {"fsdp": 2, "data": 2}, {"lane": 1}):
        there = on(axes)
        found = load(written.folder, describe(written.folder, 1), abstract(there))
        assert equal(found, there)
        assert all(found[name].sharding == there[name].sharding for name in there)


def test_the_newest_two_and_those_to_keep_stay(out):
    written = save_all(out, [10, 20, 30, 40, 50], kept=(10, 30))
    assert committed_steps(written.folder) == [10, 30, 40, 50]
    written.finish(50)
    written.close()
    assert committed_steps(written.folder) == [10, 30, 50]


def test_a_cohort_that_goes_on_keeps_what_it_goes_on_from(out):
    save_all(out, [10, 20, 30]).close()
    again = Checkpoints(out, RUNS, ())
    again.go_on_from(20)  # 30 was not to be used
    again.save(20, state_at(99), LANES)  # it is there
    again.save(25, state_at(25), LANES)
    again.wait()
    assert committed_steps(again.folder) == [20, 25]
    again.save(30, state_at(30), LANES)
    again.finish(30)
    again.close()
    assert committed_steps(again.folder) == [30]
    found = load(again.folder, describe(again.folder, 30), abstract(state_at(30)))
    assert equal(unflatten(state_at(30), found), state_at(30))


def test_what_is_not_committed_is_no_checkpoint(out):
    written = save_all(out, [10, 20])
    written.close()
    (written.folder / "20").rename(written.folder / "20.orbax-checkpoint-tmp")
    assert committed_steps(written.folder) == [10]
    save_all(out, [30]).close()
    assert sorted(path.name for path in written.folder.iterdir()) == ["30"]


def test_a_folder_that_cannot_be_written_is_told_in_one_message(out, capfd):
    (out / "cohorts").write_text("in the way")
    with pytest.raises(WorkError, match=r"could not write checkpoint .*/7: .*") as refusal:
        save_all(out, [7])
    assert "\n" not in str(refusal.value)
    assert capfd.readouterr() == ("", "")


def test_a_fault_while_writing_is_told_with_the_next_call(out, capfd, monkeypatch):
    monkeypatch.chdir(out)
    written = save_all(out, [10])
    folder = written.folder
    written._orbax._manager._directory = epath.Path("relative")  # pyright: ignore
    written.save(20, state_at(20), LANES)
    with pytest.raises(WorkError, match=r"could not write checkpoint .*those before are whole"):
        written.wait()
    written.close()
    assert committed_steps(folder) == [10]
    assert capfd.readouterr() == ("", "")


def edit(out: epath.Path, change) -> epath.Path:
    folder = cohort_folder(out, list(RUNS))
    path = folder / "7" / "_CHECKPOINT_METADATA"
    doc = json.loads(path.read_text())
    change(doc["custom_metadata"])
    path.write_text(json.dumps(doc))
    return folder


def test_a_checkpoint_of_another_format_is_refused_by_name(out):
    save_all(out, [7]).close()

    def newer(own):
        own["format"] = 2
        own["digest"] = saving._seal(2, own["saved"])

    with pytest.raises(RequestError, match="is of format 2 and this version reads 1; go on with"):
        describe(edit(out, newer), 7)


@pytest.mark.parametrize(
    "change",
    [
        lambda own: own.update(format=2),
        lambda own: own.update(saved=own["saved"].replace('"step": 7', '"step": 8')),
        lambda own: own.pop("digest"),
        lambda own: own.clear(),
    ],
)
def test_what_a_checkpoint_says_of_itself_is_sealed(out, change):
    save_all(out, [7]).close()
    with pytest.raises(Damaged, match=r"checkpoint .*/7 is damaged"):
        describe(edit(out, change), 7)


def test_a_checkpoint_under_another_step_is_none(out):
    save_all(out, [7]).close()
    folder = cohort_folder(out, list(RUNS))
    (folder / "7").rename(folder / "9")
    with pytest.raises(Damaged, match="it is one of step 7"):
        describe(folder, 9)


def test_arrays_of_another_checkpoint_are_told(out):
    save_all(out, [7, 8]).close()
    folder = cohort_folder(out, list(RUNS))
    saved = describe(folder, 8)
    (folder / "8" / "state").rename(folder / "away")
    (folder / "7" / "state").rename(folder / "8" / "state")
    with pytest.raises(Damaged, match=r"/8 is damaged: \S+ is not what was written"):
        load(folder, saved, abstract(state_at(8)))


def test_arrays_that_were_not_written_are_asked_for_in_vain(out):
    save_all(out, [7]).close()
    folder = cohort_folder(out, list(RUNS))
    asked = {"opt.mu": jax.ShapeDtypeStruct((2,), jnp.float32)}
    with pytest.raises(RequestError, match=r"has no opt\.mu: go on with the version"):
        load(folder, describe(folder, 7), asked)


@pytest.mark.parametrize("error", [MemoryError("full"), PermissionError(13, "not for you")])
def test_what_is_no_damage_is_not_called_so(out, monkeypatch, error):
    save_all(out, [7]).close()

    def fail(*_):
        try:
            raise error
        except Exception as cause:
            raise ValueError("incompatible handler") from cause

    folder = cohort_folder(out, list(RUNS))
    saved = describe(folder, 7)
    monkeypatch.setattr(saving.ocp, "load", fail)
    with pytest.raises(WorkError, match="could not read checkpoint") as refusal:
        load(folder, saved, abstract(state_at(7)))
    assert not isinstance(refusal.value, Damaged)
