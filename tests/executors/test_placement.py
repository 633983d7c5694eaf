from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from scaling_jax.config import RunConfig
from scaling_jax.data.corpus import Corpus, Split, build
from scaling_jax.errors import RequestError
from scaling_jax.executors import placement
from scaling_jax.executors.placement import MEMORY_SHARE, Cohort, plan_cohorts
from scaling_jax.settings import parse_config
from scaling_jax.study import Study
from scaling_jax.training.memory import estimate_memory
from scaling_jax.training.mesh import sizes

GIB = 2**30


def config(**changes: Any) -> RunConfig:
    doc: dict[str, Any] = {
        "model": {"n_layer": 1, "d_model": 8, "n_head": 2, "n_ctx": 8},
        "batch": {"sequences": 8, "microbatches": 2},
        "steps": 20,
    }
    for name, value in changes.items():
        doc[name] = {**doc.get(name, {}), **value} if isinstance(value, dict) else value
    return parse_config(doc)


# A model of 1.3 M parameters, which a batch of eight rows gives next to no activations.
LARGE: dict[str, Any] = {"model": {"n_layer": 6, "d_model": 128}, "batch": {"microbatches": 1}}


class Device:
    """A device of a machine that is not here."""

    def __init__(self, platform: str) -> None:
        self.platform = platform


Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """`machine(memory, platform, devices)` is what cohorts are planned for; nothing compiles."""

    def fake(memory: float, platform: str = "cpu", devices: int = 8) -> None:
        monkeypatch.setattr(placement, "device_memory", lambda: int(memory))
        monkeypatch.setattr(jax, "devices", lambda: [Device(platform)] * devices)
        monkeypatch.setattr(jax.stages.Lowered, "compile", None)

    return fake


@pytest.fixture
def plan(tiny_corpus: Corpus) -> Callable[..., list[Cohort]]:
    """`plan(5, **changes)`: the cohorts of so many seeds of a run."""

    def planned(n_runs: int, **changes: Any) -> list[Cohort]:
        runs = {f"s{seed}": config(seed=seed, **changes) for seed in range(n_runs)}
        cohorts = plan_cohorts(Study("s", runs), tiny_corpus)
        assert [name for cohort in cohorts for name in cohort.runs] == list(runs)
        return cohorts

    return planned


def laid(cohorts: list[Cohort]) -> list[tuple[int, tuple[int, ...]]]:
    return [(len(cohort.runs), sizes(cohort.mesh)) for cohort in cohorts]


def test_a_cpu_takes_a_lane_a_device_and_gives_the_rest_to_data(plan: Any) -> None:
    assert len(jax.devices()) == 8
    assert laid(plan(10)) == [(8, (8, 1, 1, 1)), (2, (2, 4, 1, 1))]
    assert laid(plan(1)) == [(1, (1, 4, 1, 1))]  # a microbatch has four rows
    assert laid(plan(4)) == [(4, (4, 2, 1, 1))]
    assert laid(plan(10, mesh={"data": 1})) == [(8, (8, 1, 1, 1)), (2, (2, 1, 1, 1))]


def test_lanes_are_at_most_those_asked_for(plan: Any) -> None:
    assert laid(plan(3, engine={"lanes": 1})) == [(1, (1, 4, 1, 1))] * 3
    assert laid(plan(3, engine={"lanes": 2})) == [(2, (2, 4, 1, 1)), (1, (1, 4, 1, 1))]
    assert laid(plan(9, engine={"lanes": 64}))[0] == (8, (8, 1, 1, 1))


def test_runs_of_about_a_length_share_a_cohort(tiny_corpus: Corpus) -> None:
    runs = {str(steps): config(steps=steps) for steps in (60, 40, 39)}
    cohorts = plan_cohorts(Study("s", runs), tiny_corpus)
    assert [list(cohort.runs) for cohort in cohorts] == [["60", "40"], ["39"]]
    # the shorter lane is carried along
    assert [cohort.tokens for cohort in cohorts] == [2 * 60 * 64, 39 * 64]
    assert cohorts[0].config is runs["60"]


def test_an_accelerator_takes_as_many_lanes_as_help(plan: Any, machine: Machine) -> None:
    machine(80 * GIB, "gpu", devices=1)
    assert [len(cohort.runs) for cohort in plan(100)] == [64, 36]
    machine(80 * GIB, "tpu", devices=2)
    assert laid(plan(130))[0] == (128, (2, 1, 1, 1))
    assert [len(cohort.runs) for cohort in plan(10, engine={"lanes": 4})] == [4, 4, 2]


def test_lanes_of_large_batches_are_fewer(
    plan: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(80 * GIB, "gpu", devices=1)
    monkeypatch.setattr(placement, "MOST_TOKENS_IN_FLIGHT", 10 * 64)
    assert [len(cohort.runs) for cohort in plan(25)] == [10, 10, 5]


def test_lanes_are_halved_until_they_fit(plan: Any, machine: Machine, tiny_corpus: Corpus) -> None:
    machine(80 * GIB, "gpu", devices=1)
    (of_16,) = plan(16)
    room = of_16.memory.total / MEMORY_SHARE
    machine(room + 1, "gpu", devices=1)
    assert [len(cohort.runs) for cohort in plan(64)] == [16] * 4
    machine(room - 1, "gpu", devices=1)
    assert [len(cohort.runs) for cohort in plan(64)] == [8] * 8


def test_a_run_too_large_for_a_device_is_spread(
    plan: Any, machine: Machine, tiny_corpus: Corpus
) -> None:
    machine(80 * GIB)
    (whole,) = plan(1, **LARGE)
    assert sizes(whole.mesh) == (1, 8, 1, 1)
    for fsdp in (2, 4, 8):
        nbytes = tiny_corpus.train.tokens.nbytes
        mesh = whole.mesh.model_copy(update={"data": 8 // fsdp, "fsdp": fsdp})
        need = estimate_memory(whole.config, whole.engine, mesh, 1, nbytes).total
        machine(need / MEMORY_SHARE + 1)
        (spread,) = plan(1, **LARGE)
        assert sizes(spread.mesh) == (1, 8 // fsdp, fsdp, 1)
        assert spread.memory.total == need < whole.memory.total
        assert [len(cohort.runs) for cohort in plan(3, **LARGE)] == [1, 1, 1]


def test_a_run_that_no_spread_makes_fit_is_refused_by_name(plan: Any, machine: Machine) -> None:
    for changes, devices in (
        ({}, 8),  # all of the machine is not enough
        ({"mesh": {"fsdp": 2}}, 2),  # the config says how far it is spread
        ({"batch": {"microbatches": 1, "sequences": 9}}, 1),  # nine rows do not divide by two
    ):
        machine(4e6)
        with pytest.raises(RequestError) as refusal:
            plan(1, **{**LARGE, **changes})
        told = str(refusal.value)
        assert told.startswith("run 's0': about 0.0 GiB are needed on each of "), told
        assert told.endswith("set engine.remat=full, or take more devices")
        assert f"each of {devices} device(s)" in told or devices != 8


def test_the_host_feeds_what_the_device_cannot_hold(
    plan: Any, machine: Machine, tiny_corpus: Corpus
) -> None:
    resident, fed = (plan(1, engine={"feed": feed})[0] for feed in ("device", "host"))
    assert (resident.engine.feed, fed.engine.feed) == ("device", "host")
    assert resident.memory.tokens == tiny_corpus.train.tokens.nbytes
    assert 128 * 8 * 9 * 2 <= fed.memory.tokens < resident.memory.tokens
    machine(3 * tiny_corpus.train.tokens.nbytes)
    assert plan(1, evaluation={"tokens": 64})[0].engine.feed == "host"


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "product": (
        {"mesh": {"data": 3}},
        "the mesh asks for data 3 = 3 device(s) and there are 8; the nearest product that fits",
    ),
    "lane": ({"mesh": {"lane": 2}}, "mesh.lane 2 does not divide the 1 lane(s) of a cohort"),
    "fsdp": ({"mesh": {"fsdp": 8}}, "a microbatch has 4 row(s), which mesh.fsdp 8 does not"),
    "tensor": ({"mesh": {"tensor": 4}}, "mesh.tensor 4 does not divide model.n_head 2"),
    "attention": (
        {"engine": {"attention": "cudnn"}},
        "engine.attention 'cudnn' needs an NVIDIA GPU, and this is a cpu; what fits: xla, blocks",
    ),
    "groups": ({"noise": {"groups": 16}}, "batch.sequences 8 does not divide into"),
    "n_vocab": (
        {"model": {"n_vocab": 256}},
        "model.n_vocab 256 is less than the corpus's 257",
    ),
    "unique_tokens": (
        {"data": {"unique_tokens": 10**9}},
        "data.unique_tokens 1000000000 is more than the ",
    ),
    "few unique_tokens": (
        {"data": {"unique_tokens": 64}},
        "data.unique_tokens leaves 64 tokens, fewer than the 65 of one batch; lower batch",
    ),
    "epochs": (
        {"data": {"order": "epochs", "unique_tokens": 50}},
        "an epoch has 7 windows, fewer than the 8 of one batch; lower batch.sequences",
    ),
    "documents": (
        {"data": {"order": "documents", "unique_tokens": 50}},
        "an epoch has 7 windows, fewer than the 8 of one batch; lower batch.sequences",
    ),
    "windows": (
        {"data": {"order": "epochs"}, "steps": 2**31},
        "17,179,869,184 windows are more than the 4,294,967,296 that are numbered in epochs",
    ),
    "policy": (
        {
            "data": {"order": "epochs"},
            "batch": {"policy": {"name": "ramp", "ramp": [[5, 16]]}},
        },
        "data.order epochs numbers its windows by one size of the batch: set batch.policy.name",
    ),
    "batch": (
        {"batch": {"sequences": 10**6}},
        "tokens, fewer than the 8000001 of one batch; lower batch.sequences",
    ),
    "n_ctx": (
        {"model": {"n_ctx": 4000}},
        "tokens, fewer than the 4001 of one window; lower model.n_ctx",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_trained_here_is_refused_by_name_and_nothing_compiled(
    tiny_corpus: Corpus,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)
    study = Study("s", {"good": config(), "bad": config(**{"steps": 21, **changes})})
    with pytest.raises(RequestError) as refusal:
        plan_cohorts(study, tiny_corpus)
    told = str(refusal.value)
    assert told.startswith("run 'bad': ")
    assert message in told
    assert "\n" not in told


def test_a_corpus_to_be_evaluated_on_without_a_window_is_refused(tiny_corpus: Corpus) -> None:
    law = Split(np.zeros(8, np.uint16), np.array([0]))
    study = Study("s", {"a": config(evaluation={"corpora": {"law": "/law"}})})
    with pytest.raises(RequestError, match=r"^run 'a': evaluation\.corpora 'law' has 8 tokens"):
        plan_cohorts(study, replace(tiny_corpus, evaluations={"law": law}))


def test_a_corpus_smaller_than_a_batch_is_refused(tmp_path: Path) -> None:
    corpus = build("small", [("abc.py", b"x" * 63), ("functools.py", b"y" * 63)], tmp_path)
    with pytest.raises(RequestError, match="the training split has 64 tokens, fewer than the 65"):
        plan_cohorts(Study("s", {"a": config()}), corpus)
