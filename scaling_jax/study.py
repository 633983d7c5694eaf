"""What a study is: named runs and the laws they are to feed, and how runs share a program."""

from __future__ import annotations

import json
import re
import runpy
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ValidationError

from scaling_jax.config import READ_FROM, DataConfig, RunConfig
from scaling_jax.errors import RequestError
from scaling_jax.lineage import generations
from scaling_jax.settings import explain, override

# Config fields that are only numbers to the compiled program: runs that differ in nothing else
# can share one.
_NUMBER_FIELDS = (
    ("steps",),
    ("seed",),
    ("data", "seed"),
    ("data", "unique_tokens"),
    ("data", "subset_seed"),
    ("optimizer", "lr_peak"),
    ("optimizer", "weight_decay"),
    ("schedule", "warmup_steps"),
    ("schedule", "final_fraction"),
    ("schedule", "decay_fraction"),
    ("evaluation", "per_decade"),
    ("branch",),
)
# A lane that is at its end stands still until its cohort is: the shortest has this share of the
# longest's steps, or trains in another cohort.
LEAST_SHARE_OF_STEPS = 2 / 3


@dataclass(frozen=True)
class Study:
    """A named set of runs and the slugs of the laws they are to feed.

    Raises `RequestError` for a name that cannot be a folder and for two names of one run.
    """

    name: str
    runs: Mapping[str, RunConfig]
    laws: tuple[str, ...] = ()
    description: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise RequestError(
                f"study name {self.name!r} is to be a folder: letters, digits, '_', '.', '-'"
            )
        if not self.runs:
            raise RequestError(f"study {self.name!r} declares no runs")
        names: dict[str, str] = {}
        for name, config in self.runs.items():
            if not isinstance(config, RunConfig):
                raise RequestError(f"run {name!r} is a {type(config).__name__}, not a RunConfig")
            twin = names.setdefault(config.run_id(""), name)
            if twin != name:
                raise RequestError(f"runs {twin!r} and {name!r} are the same run")

    def override(self, settings: Mapping[str, str]) -> Study:
        """The study with dotted config fields replaced in every run."""
        return replace(
            self, runs={name: override(run, settings) for name, run in self.runs.items()}
        )


def what_is_read(study: Study) -> tuple[DataConfig, dict[str, str]]:
    """The corpus of the study's runs and, by name, the others that they are evaluated on.

    Raises `RequestError` for runs that read different ones.
    """
    (first, config), *others = study.runs.items()
    for name, other in others:
        for part in READ_FROM:
            if getattr(other.data, part) != getattr(config.data, part):
                raise RequestError(_two_corpora(study, first, name, f"data.{part}"))
        if other.evaluation.corpora != config.evaluation.corpora:
            raise RequestError(_two_corpora(study, first, name, "evaluation.corpora"))
    return config.data, config.evaluation.corpora


def load_study(path: str | Path) -> Study:
    """The `study` that an experiment file declares, described by the file's docstring.

    Raises `RequestError` for a file that is missing, fails, or declares no study.
    """
    path = Path(path)
    if not path.is_file():
        raise RequestError(f"No experiment file {path}")
    try:
        # Run and not imported, which would leave bytecode beside the user's file.
        declared = runpy.run_path(str(path), run_name=f"experiment_{path.stem}")
    except (Exception, SystemExit) as error:
        raise RequestError(f"{path}{_line_in(path, error)}: {_told(error)}") from error
    study = declared.get("study")
    if not isinstance(study, Study):
        raise RequestError(f"{path} declares no study: it needs `study = Study(name, runs, ...)`")
    return replace(study, description=study.description or (declared["__doc__"] or "").strip())


def pack(study: Study, max_lanes: Callable[[RunConfig], int]) -> list[dict[str, RunConfig]]:
    """The study's cohorts: runs of one program and about one length, `max_lanes(run)` at most.

    In declared order, those that share a program one after another and the longer first; what
    branches from a run comes after it, with what begins at the same step. A run that chooses its
    own batch trains alone. A pure function of the declared study and of `max_lanes`.
    """
    generation = generations(study.runs)
    programs: dict[tuple[int, str], dict[int, list[str]]] = {}
    for name, config in study.runs.items():
        program = programs.setdefault((generation[name], program_key(config)), {})
        program.setdefault(config.begin_step, []).append(name)
    in_turn = (programs[key] for key in sorted(programs, key=lambda key: key[0]))
    cohorts: list[dict[str, RunConfig]] = []
    for names in (names for program in in_turn for names in program.values()):
        first = study.runs[names[0]]
        most = 1 if first.batch.policy.name == "noise_scale" else max_lanes(first)
        open_cohort: dict[str, RunConfig] = {}
        for name in sorted(names, key=lambda name: -study.runs[name].steps):
            config = study.runs[name]
            longest = next(iter(open_cohort.values()), config).steps
            if len(open_cohort) == most or config.steps < LEAST_SHARE_OF_STEPS * longest:
                cohorts.append(open_cohort)
                open_cohort = {}
            open_cohort[name] = config
        cohorts.append(open_cohort)
    return cohorts


def program_key(config: RunConfig) -> str:
    """Equal for runs that one compiled program serves, or one sequence of programs."""
    doc = config.model_dump(mode="json")
    for *parents, leaf in _NUMBER_FIELDS:
        part = doc
        for name in parents:
            part = part[name]
        del part[leaf]
    # Runs of one subset, of whatever size, read one array of tokens.
    if config.data.unique_tokens is not None:
        doc["data"]["subset_of"] = config.data.subset_seed
    return json.dumps(doc, sort_keys=True)


def _two_corpora(study: Study, first: str, other: str, field: str) -> str:
    return (
        f"the runs of a study read one corpus, and {first!r} and {other!r} of {study.name!r} "
        f"differ in {field}: declare two studies"
    )


def _line_in(path: Path, error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f" line {error.lineno}" if error.lineno else ""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f" line {lines[-1]}" if lines else ""


def _told(error: BaseException) -> str:
    if isinstance(error, RequestError):
        return str(error)
    if isinstance(error, ValidationError):
        return explain(error)
    message = error.msg if isinstance(error, SyntaxError) else error
    return " ".join(f"{type(error).__name__}: {message}".split())
