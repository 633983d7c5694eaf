"""Places the runs of a study on the devices of this process, one cohort after another."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, Protocol

import jax
from etils import epath

from scaling_jax.config import RunConfig
from scaling_jax.data.corpus import Corpus
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.executors.placement import Cohort, plan_cohorts
from scaling_jax.models.counts import counts
from scaling_jax.records.files import FolderLock
from scaling_jax.records.writer import RunWriter, run_status, write_study
from scaling_jax.study import Study, program_key
from scaling_jax.training.engine import describe_engine
from scaling_jax.training.mesh import describe_mesh, make_mesh
from scaling_jax.training.program import Program, compile_program
from scaling_jax.training.trainer import Observer, train_cohort

FINISHED = ("done", "diverged")


class Reporter(Protocol):
    """Shows how a study goes."""

    def cohort(self, cohort: Cohort, number: int, of: int) -> Observer:
        """A cohort is about to be compiled; what it returns is told of each chunk."""
        ...

    def compiled(self, seconds: float) -> None:
        """The program of the cohort is compiled, and was not before."""
        ...

    def ended(self, name: str, status: str, message: str) -> None:
        """A run has ended."""
        ...


def run_study(
    study: Study,
    out: epath.Path,
    corpus: Corpus,
    reporter: Reporter,
    stop: Callable[[], str | None],
) -> dict[str, str]:
    """Trains what is not finished and returns the status of every run by name.

    A run that fails or diverges does not stop the others. Raises `RequestError` where `out` is no
    folder or another process writes in it.
    """
    if out.exists() and not out.is_dir():
        raise RequestError(f"--out {out} is a file; name a folder")
    cohorts = plan_cohorts(study, corpus)
    run_ids = {name: config.run_id(corpus.fingerprint) for name, config in study.runs.items()}
    statuses: dict[str, str] = {}
    with FolderLock(out):
        write_study(out, study.name, study.description, list(study.laws), run_ids)
        for name, run_id in run_ids.items():
            known = run_status(out, run_id)
            statuses[name] = known["status"] if known else "queued"
        open_cohorts = [
            cohort
            for cohort in cohorts
            if any(statuses[name] not in FINISHED for name in cohort.runs)
        ]
        programs = _Programs(corpus)
        for number, cohort in enumerate(open_cohorts, start=1):
            if stop() is not None:
                break
            observe = reporter.cohort(cohort, number, len(open_cohorts))
            fresh = [name for name in cohort.runs if statuses[name] not in FINISHED]
            writers = {name: RunWriter(out, run_ids[name]) for name in fresh}
            ended = _train(cohort, writers, corpus, programs, stop, reporter, observe)
            for name in fresh:
                statuses[name] = ended[name][0]
                reporter.ended(name, *ended[name])
    return statuses


def _train(
    cohort: Cohort,
    writers: Mapping[str, RunWriter],
    corpus: Corpus,
    programs: _Programs,
    stop: Callable[[], str | None],
    reporter: Reporter,
    observe: Observer,
) -> dict[str, tuple[str, str]]:
    for name, writer in writers.items():
        config = cohort.runs[name]
        doc = {"config": config.model_dump(mode="json"), "row": run_row(config, corpus)}
        writer.begin(doc, environment(cohort), config.steps)
    try:
        program, fresh = programs.get(cohort)
        if fresh:
            reporter.compiled(program.compile_s)
        ended = train_cohort(cohort.runs, program, writers, stop, observe)
        return {name: (ended[name].status, ended[name].message) for name in writers}
    except (WorkError, jax.errors.JaxRuntimeError, MemoryError) as error:
        message = " ".join(str(error).split())[:500]
        for writer in writers.values():
            writer.finish("failed", message)
        return {name: ("failed", message) for name in writers}


class _Programs:
    """Compiled programs by shape, so that cohorts that share one compile it once."""

    def __init__(self, corpus: Corpus):
        self._corpus = corpus
        self._key: Any = None
        self._program: Program | None = None

    def get(self, cohort: Cohort) -> tuple[Program, bool]:
        """The cohort's program, and whether it was compiled just now."""
        key = (program_key(cohort.config), len(cohort.runs), cohort.mesh)
        if self._program is not None and key == self._key:
            return self._program, False
        self._program = None  # frees the last shape's arrays before the next one's
        mesh = make_mesh(cohort.mesh)
        self._program = compile_program(list(cohort.runs.values()), self._corpus, mesh)
        self._key = key
        return self._program, True


def run_row(config: RunConfig, corpus: Corpus) -> dict[str, Any]:
    """The run's entries of the `runs` table that its config and corpus determine."""
    model, batch, optimizer = config.model, config.batch, config.optimizer
    tally = counts(model)
    return {
        "run_id": config.run_id(corpus.fingerprint),
        "seed": config.seed,
        "data_seed": config.data.seed,
        **model.model_dump(),
        "params_non_embedding": tally.params_non_embedding,
        "params_embedding": tally.params_embedding,
        "params_head": tally.params_head,
        "params_other": tally.params_other,
        "params_total": tally.params_total,
        "flops_per_token_blocks": tally.flops_per_token_blocks,
        "flops_per_token_attention": tally.flops_per_token_attention,
        "flops_per_token_head": tally.flops_per_token_head,
        "flops_per_token_embedding": tally.flops_per_token_embedding,
        "data_source": config.data.source,
        "data_fingerprint": corpus.fingerprint,
        "unique_tokens": config.unique_tokens(len(corpus.train.tokens)),
        "bigram_nats": corpus.bigram_nats if math.isfinite(corpus.bigram_nats) else None,
        "batch_tokens": config.batch_tokens,
        "batch_sequences": batch.sequences,
        "microbatches": batch.microbatches,
        "steps": config.steps,
        "optimizer": optimizer.name,
        **optimizer.model_dump(exclude={"name", "eps"}),
        "schedule": config.schedule.name,
        **config.schedule.model_dump(exclude={"name"}),
        "matmul_precision": config.matmul_precision,
        "compute_dtype": config.compute_dtype,
    }


def environment(cohort: Cohort) -> dict[str, str]:
    """What the numbers were made with: versions, device, mesh and engine."""
    packages = ("scaling_jax", "jax", "jaxlib", "flax", "optax", "numpy")
    versions = " ".join(f"{name} {version(name)}" for name in packages)
    device = jax.devices()[0]
    return {
        "versions": f"python {platform.python_version()} {versions}",
        "device": f"{len(jax.devices())} x {device.device_kind} ({platform.machine()})",
        "mesh": describe_mesh(cohort.mesh),
        "engine": describe_engine(cohort.engine),
    }
