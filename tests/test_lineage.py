from __future__ import annotations

from typing import Any

import pytest

from scaling_jax.config import BranchConfig, ModelConfig, RunConfig
from scaling_jax.errors import RequestError
from scaling_jax.lineage import branch_steps, by_run_id, generations

CORPUS = "a-corpus"


def run(parent: str | None = None, step: int = 10, **fields: Any) -> RunConfig:
    branch = None if parent is None else BranchConfig(run=parent, step=step)
    return RunConfig(model=ModelConfig(), branch=branch, steps=100, **fields)


FAMILY = {
    "c": run("b", 20),
    "a": run(),
    "b": run("a", 10),
    "adopted": run("0123456789ab", 10),
}


def test_a_run_is_as_many_generations_down_as_it_has_ancestors_here() -> None:
    assert generations(FAMILY) == {"c": 2, "a": 0, "b": 1, "adopted": 0}


def test_parents_are_known_by_run_id() -> None:
    found = by_run_id(FAMILY, CORPUS)
    assert list(found) == list(FAMILY)
    assert found["a"] == FAMILY["a"] and found["adopted"] == FAMILY["adopted"]
    for child, parent in (("b", "a"), ("c", "b")):
        branch = found[child].branch
        assert branch is not None and branch.run == found[parent].run_id(CORPUS)
    assert by_run_id(found, CORPUS) == found


def test_what_a_run_descends_from_is_part_of_what_it_is() -> None:
    other = FAMILY | {"a": run(seed=1)}
    here, there = by_run_id(FAMILY, CORPUS), by_run_id(other, CORPUS)
    assert here["c"].run_id(CORPUS) != there["c"].run_id(CORPUS)


def test_the_steps_at_which_a_run_is_branched_from() -> None:
    assert branch_steps(FAMILY | {"d": run("a", 30)}) == {
        "a": {10, 30},
        "b": {20},
        "0123456789ab": {10},
    }


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ({"a": run("a")}, "'a' branches from itself"),
        ({"a": run("b"), "b": run("c"), "c": run("a")}, "branches from itself: a from b from c"),
        ({"a": run("long_one"), "long": run()}, "no run of the study and no run_id. Did you mean"),
        ({"a": run("b", 90), "b": RunConfig(model=ModelConfig(), steps=80)}, "which has 80 steps"),
    ],
)
def test_wrong_parents_are_refused(runs: dict[str, RunConfig], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        generations(runs)
