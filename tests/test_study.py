from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling_jax.config import (
    BatchConfig,
    BatchPolicyConfig,
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    MeshConfig,
    ModelConfig,
    NoiseConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)
from scaling_jax.errors import RequestError
from scaling_jax.study import Study, load_study, pack, program_key, what_is_read


def config(d_model: int = 8, **fields: Any) -> RunConfig:
    model = ModelConfig(n_layer=1, d_model=d_model, n_head=1, n_ctx=8)
    return RunConfig(**({"model": model, "steps": 20} | fields))


class Shape(NamedTuple):
    """What a program is compiled for."""

    d_model: int
    microbatches: int
    schedule: Literal["constant", "cosine"]


class Numbers(NamedTuple):
    """What a program takes as numbers."""

    steps: int
    per_decade: int
    seed: int
    lr_peak: float
    weight_decay: float
    warmup_steps: int
    unique_tokens: int


SHAPES = st.builds(
    Shape,
    st.sampled_from([8, 16]),
    st.sampled_from([1, 2]),
    st.sampled_from(["constant", "cosine"]),
)
NUMBERS = st.builds(
    Numbers,
    steps=st.sampled_from([20, 30, 31, 40]),
    per_decade=st.sampled_from([6, 12]),
    seed=st.integers(0, 3),
    lr_peak=st.sampled_from([1e-3, 2e-3]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    warmup_steps=st.integers(0, 2),
    unique_tokens=st.sampled_from([50, 100]),
)


def drawn_config(shape: Shape, numbers: Numbers) -> RunConfig:
    return config(
        shape.d_model,
        batch=BatchConfig(sequences=8, microbatches=shape.microbatches),
        schedule=ScheduleConfig(name=shape.schedule, warmup_steps=numbers.warmup_steps),
        optimizer=OptimizerConfig(lr_peak=numbers.lr_peak, weight_decay=numbers.weight_decay),
        data=DataConfig(unique_tokens=numbers.unique_tokens),
        evaluation=EvaluationConfig(tokens=64, per_decade=numbers.per_decade),
        steps=numbers.steps,
        seed=numbers.seed,
    )


@given(
    st.lists(st.tuples(SHAPES, NUMBERS), min_size=1, max_size=16, unique=True),
    st.integers(1, 5),
)
def test_pack_groups_what_shares_a_program_and_about_a_length(
    drawn: list[tuple[Shape, Numbers]], max_lanes: int
) -> None:
    shapes = {f"run{i}": shape for i, (shape, _) in enumerate(drawn)}
    study = Study("s", {f"run{i}": drawn_config(*both) for i, both in enumerate(drawn)})
    cohorts = pack(study, lambda _: max_lanes)

    assert cohorts == pack(study, lambda _: max_lanes)
    packed = [name for cohort in cohorts for name in cohort]
    assert sorted(packed) == sorted(study.runs)
    assert all(study.runs[name] is cohort[name] for cohort in cohorts for name in cohort)
    assert all(1 <= len(cohort) <= max_lanes for cohort in cohorts)
    for cohort in cohorts:
        assert len({shapes[name] for name in cohort}) == 1
        steps = [run.steps for run in cohort.values()]
        assert 3 * min(steps) >= 2 * max(steps)
    # Of a shape: the longer first, those of a length in declared order.
    for shape in set(shapes.values()):
        in_order = [name for name in packed if shapes[name] == shape]
        declared = list(study.runs)
        assert in_order == sorted(
            in_order, key=lambda name: (-study.runs[name].steps, declared.index(name))
        )
    # A cohort ends where it is full or the next run is much shorter.
    for one, after in pairwise(cohorts):
        if shapes[next(iter(one))] == shapes[next(iter(after))]:
            longest, following = next(iter(one.values())), next(iter(after.values()))
            assert len(one) == max_lanes or 3 * following.steps < 2 * longest.steps
    # One shape is compiled, used up, and left.
    order = [shapes[next(iter(cohort))] for cohort in cohorts]
    assert 1 + sum(a != b for a, b in pairwise(order)) == len(set(order))


def test_pack_follows_the_declared_order() -> None:
    runs = {f"d{d}-s{s}": config(d, seed=s) for s in range(2) for d in (16, 8)}
    assert [list(cohort) for cohort in pack(Study("s", runs), lambda _: 8)] == [
        ["d16-s0", "d16-s1"],
        ["d8-s0", "d8-s1"],
    ]


def test_pack_takes_as_many_lanes_as_it_is_told_for_the_shape() -> None:
    runs = {f"d{d}-s{s}": config(d, seed=s) for d in (8, 16) for s in range(3)}
    cohorts = pack(Study("s", runs), lambda run: 3 if run.model.d_model == 8 else 1)
    assert [len(cohort) for cohort in cohorts] == [3, 1, 1, 1]


def test_pack_leaves_runs_alone_that_choose_their_batch() -> None:
    ramp = BatchPolicyConfig(name="ramp", ramp=((5, 32),))
    follow = BatchPolicyConfig(name="noise_scale", most_sequences=64, every=10)
    runs = {
        f"{policy.name}-s{s}": config(
            batch=BatchConfig(sequences=16, policy=policy), noise=NoiseConfig(groups=2), seed=s
        )
        for policy in (ramp, follow)
        for s in range(2)
    }
    assert [list(cohort) for cohort in pack(Study("s", runs), lambda _: 8)] == [
        ["ramp-s0", "ramp-s1"],
        ["noise_scale-s0"],
        ["noise_scale-s1"],
    ]


def test_pack_parts_runs_of_very_different_lengths() -> None:
    runs = {str(steps): config(steps=steps) for steps in (100, 300, 200, 199, 132, 133)}
    assert [list(cohort) for cohort in pack(Study("s", runs), lambda _: 8)] == [
        ["300", "200"],
        ["199", "133"],
        ["132", "100"],
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"matmul_precision": "default"},
        {"optimizer": OptimizerConfig(beta2=0.9)},
        {"optimizer": OptimizerConfig(grad_clip=1.0)},
        {"evaluation": EvaluationConfig(tokens=64)},
        {"batch": BatchConfig(sequences=32)},
        {"batch": BatchConfig(policy=BatchPolicyConfig(name="ramp", ramp=((5, 32),)))},
        {"data": DataConfig(order="epochs")},
        {"data": DataConfig(unique_tokens=100)},
        {"compute_dtype": "bfloat16"},
        {"engine": EngineConfig(remat="full")},
        {"mesh": MeshConfig(tensor=2)},
    ],
)
def test_what_is_compiled_in_makes_another_program(fields: dict[str, Any]) -> None:
    assert program_key(config(**fields)) != program_key(config())


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 40},
        {"seed": 1},
        {"data": DataConfig(seed=1, subset_seed=1)},
        {"optimizer": OptimizerConfig(lr_peak=1.0, weight_decay=0.1)},
        {"schedule": ScheduleConfig(warmup_steps=2, final_fraction=0.5, decay_fraction=0.5)},
        {"evaluation": EvaluationConfig(per_decade=3)},
    ],
)
def test_what_is_a_number_shares_the_program(fields: dict[str, Any]) -> None:
    assert program_key(config(**fields)) == program_key(config())


def test_a_study_reads_one_corpus() -> None:
    corpora: dict[str, Any] = {"evaluation": {"corpora": {"wiki": "wiki.jsonl"}}}
    one: dict[str, Any] = {"data": {"source": "books.jsonl", "seed": 1}} | corpora
    same: dict[str, Any] = {"data": {"source": "books.jsonl", "order": "epochs"}} | corpora
    data, others = what_is_read(Study("s", {"a": config(**one), "b": config(**same)}))
    assert (data.source, others) == ("books.jsonl", {"wiki": "wiki.jsonl"})
    wrongs: dict[str, dict[str, Any]] = {
        "data.source": {"data": {"source": "laws.jsonl"}} | corpora,
        "data.split_on": {"data": {"source": "books.jsonl", "split_on": "#"}} | corpora,
        "evaluation.corpora": {"data": {"source": "books.jsonl"}},
    }
    for field, wrong in wrongs.items():
        with pytest.raises(RequestError, match=f"'a' and 'c' of 's' differ in {field}"):
            what_is_read(
                Study("s", {"a": config(**one), "b": config(**same), "c": config(**wrong)})
            )


def test_subsets_of_one_order_share_the_program() -> None:
    keys = [
        program_key(config(data=DataConfig(unique_tokens=n, subset_seed=seed)))
        for n, seed in ((100, 1), (200, 1), (100, 2))
    ]
    assert keys[0] == keys[1] != keys[2]


def test_override_is_for_every_run_and_keeps_the_rest() -> None:
    study = Study("s", {f"s{i}": config(seed=i) for i in range(2)}, ("l_ns",), "why")
    longer = study.override({"steps": "60", "optimizer.lr_peak": "2e-3"})
    assert [(run.seed, run.steps) for run in longer.runs.values()] == [(0, 60), (1, 60)]
    assert {run.optimizer.lr_peak for run in longer.runs.values()} == {2e-3}
    assert (longer.name, longer.laws, longer.description) == ("s", ("l_ns",), "why")
    assert [run.steps for run in study.runs.values()] == [20, 20]


def test_override_refuses_what_is_no_field_and_what_makes_runs_equal() -> None:
    study = Study("s", {f"s{i}": config(seed=i) for i in range(2)})
    with pytest.raises(RequestError, match=r"'step'.* Did you mean 'steps'"):
        study.override({"step": "60"})
    with pytest.raises(RequestError, match="'s0' and 's1' are the same run"):
        study.override({"seed": "7"})


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "two words", "über"])
def test_a_name_that_cannot_be_a_folder_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="folder"):
        Study(name, {"a": config()})


def test_a_study_of_nothing_or_of_one_run_twice_is_refused() -> None:
    with pytest.raises(RequestError, match="'empty' declares no runs"):
        Study("empty", {})
    with pytest.raises(RequestError, match="'a' and 'c' are the same run"):
        Study("s", {"a": config(), "b": config(seed=1), "c": config()})
    not_a_run: Any = {"steps": 20}
    with pytest.raises(RequestError, match="'a' is a dict, not a RunConfig"):
        Study("s", {"a": not_a_run})


HEAD = """\
from scaling_jax.config import ModelConfig, RunConfig
from scaling_jax.study import Study

runs = {"a": RunConfig(model=ModelConfig(d_model=8), steps=20)}
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes an experiment file into the working folder and gives its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)

    def write_text(text: str) -> Path:
        path = Path("experiment.py")
        path.write_text(text)
        return path

    return write_text


def test_an_experiment_is_described_by_its_docstring(write: Write, tmp_path: Path) -> None:
    path = write('"""Loss falls.\n\nClaim  it does\n"""\n' + HEAD + 'study = Study("s", runs)\n')
    study = load_study(path)
    assert (study.name, study.description) == ("s", "Loss falls.\n\nClaim  it does")
    assert list(study.runs) == ["a"]
    assert [found.name for found in tmp_path.iterdir()] == ["experiment.py"]


def test_an_experiment_edited_at_once_is_read_anew(write: Write) -> None:
    for name in "ab":
        assert load_study(write(HEAD + f'study = Study("{name}", runs)\n')).name == name


def test_an_experiment_may_hold_a_dataclass(write: Write) -> None:
    declared = "@dataclass\nclass Size:\n    d_model: int = 8\n"
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    assert load_study(write(head + HEAD + declared + 'study = Study("s", runs)\n')).name == "s"


def test_what_is_no_experiment_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"No experiment file .*nope.py"):
        load_study(tmp_path / "nope.py")
    with pytest.raises(RequestError, match="No experiment file"):
        load_study(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1\x15\x04\x00\x00")
    with pytest.raises(RequestError, match=r"a.parquet.*: \w+: "):
        load_study(tmp_path / "a.parquet")


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize(
    ("ending", "line", "message"),
    [
        ("\nstudy = Study(\n", 6, "SyntaxError: '(' was never closed"),
        ("\nstudy = Study('s', rums)\n", 6, "NameError: name 'rums' is not defined"),
        ("\ndef f():\n    return 1 / 0\n\nf()\n", 7, "ZeroDivisionError: division by zero"),
        ("import not_there_at_all\n", 5, "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("study = Study('s', {})\n", 5, "study 's' declares no runs"),
        ("study = Study('a/b', runs)\n", 5, "study name 'a/b' is to be a folder"),
        ("study = Study('s', runs | {'b': runs['a']})\n", 5, "'a' and 'b' are the same run"),
        ("study = runs\n", None, "declares no study: it needs `study = Study"),
        ("", None, "declares no study: it needs `study = Study"),
        ("\0", None, "null bytes"),
    ],
)
def test_an_experiment_that_fails_is_refused_with_its_line(
    write: Write, absolute: bool, ending: str, line: int | None, message: str
) -> None:
    path = write(HEAD + ending)
    path = path.absolute() if absolute else path
    with pytest.raises(RequestError) as refusal:
        load_study(path)
    told = str(refusal.value)
    assert told.startswith(f"{path} line {line}: " if line else f"{path}")
    assert (" line " in told) == (line is not None)
    assert message in told
    assert "\n" not in told
    assert told.count("experiment.py") == 1


def test_an_unknown_field_in_an_experiment_is_told_with_the_nearest_right_name(
    write: Write,
) -> None:
    wrong = HEAD.replace("d_model=8", "d_model=8, n_layers=2")
    with pytest.raises(RequestError, match=r"line 4: .*n_layers.*Did you mean '(model\.)?n_layer'"):
        load_study(write(wrong + 'study = Study("s", runs)\n'))


@pytest.mark.parametrize("wrong", ["steps='many'", "steps=20, batch=BatchConfig(4, 3)"])
def test_a_wrong_value_in_an_experiment_is_told_in_one_line(write: Write, wrong: str) -> None:
    text = HEAD.replace("steps=20", wrong).replace("ModelConfig, ", "BatchConfig, ModelConfig, ")
    with pytest.raises(RequestError, match=r"^experiment.py line 4: ") as refusal:
        load_study(write(text + 'study = Study("s", runs)\n'))
    assert "\n" not in str(refusal.value)
    assert "errors.pydantic.dev" not in str(refusal.value)
