"""Measures the curvature at checkpoints of a run, beside whatever trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from etils import epath

from scaling_jax.data.corpus import load_corpus
from scaling_jax.errors import RequestError, nearest
from scaling_jax.records.files import read_record
from scaling_jax.records.measured import write_measured
from scaling_jax.settings import parse_config
from scaling_jax.training.checkpoints import checkpoint_steps, load_run
from scaling_jax.training.curvature_draws import CurvatureProgram, Draws


def choose_run(names: Mapping[str, str], asked: str | None) -> str:
    """The run_id of a run by name or run_id, or of the only one; `names` are by run_id.

    Raises `RequestError` for a word that names no run, or several.
    """
    if asked is None:
        if len(names) > 1:
            raise RequestError(f"there are {len(names)} runs: give --run one of{_listed(names)}")
        return next(iter(names))
    if asked in names:
        return asked
    found = [run_id for run_id, name in names.items() if name == asked]
    if len(found) > 1:
        raise RequestError(
            f"{len(found)} runs are named {asked!r}; give the run_id of one: {', '.join(found)}"
        )
    if not found:
        raise RequestError(f"No run {asked!r}.{nearest(asked, [*names.values(), *names])}")
    return found[0]


def choose_steps(known: Sequence[int], asked: str) -> list[int]:
    """Steps with a checkpoint, ascending, of words as in `100,1000,last`, or `all`.

    Raises `RequestError` for a step without one, naming the nearest.
    """
    steps: set[int] = set()
    for word in (word.strip() for word in asked.split(",")):
        if word == "all":
            steps |= set(known)
        elif word == "last":
            steps.add(max(known))
        elif not word.isdecimal():
            raise RequestError(f"--steps takes steps, last or all, as in 100,last, not {word!r}")
        elif int(word) in known:
            steps.add(int(word))
        else:
            near = min(known, key=lambda step: abs(step - int(word)))
            there = ", ".join(map(str, known))
            raise RequestError(
                f"there is no checkpoint of step {word}; the nearest is of step {near} (of {there})"
            )
    return sorted(steps)


def measure_run(
    out: epath.Path, run_id: str, asked: str, draws: Draws, told: Callable[[str], None]
) -> list[int]:
    """Measures a run at the steps asked for, writes each among its records, and returns them.

    `told` is told of each step. Raises `RequestError` where the run has no checkpoint there, and
    for a corpus that is not the run's.
    """
    known = checkpoint_steps(out, run_id)
    if not known:
        raise RequestError(
            f"run {run_id} has no checkpoint under {out}; a run keeps some as it trains"
        )
    steps = choose_steps(known, asked)
    config = parse_config(read_record(out / run_id / "config.json")["config"])
    corpus = load_corpus(config.data, config.evaluation.corpora)
    if config.run_id(corpus.fingerprint) != run_id:
        raise RequestError(
            f"run {run_id} was trained on another {config.data.source!r} corpus than is here"
        )
    program = CurvatureProgram(config, corpus, draws)
    for step in steps:
        told(f"step {step}: {draws.describe()}")
        _, params = load_run(out, run_id, step)
        write_measured(out, run_id, step, program.measure(params, step))
    return steps


def _listed(names: Mapping[str, str]) -> str:
    some = list(names.values())[:10]
    return f" {', '.join(some)}" + (", ..." if len(some) < len(names) else "")
