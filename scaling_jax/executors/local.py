"""Places the runs of a study on the devices of this process, one cohort after another."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol

import jax
from etils import epath

from scaling_jax.config import MeshConfig, RunConfig
from scaling_jax.data.corpus import Corpus
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.models.counts import counts
from scaling_jax.records.files import FolderLock
from scaling_jax.records.writer import RunWriter, run_status, write_study
from scaling_jax.study import Study, pack, program_key
from scaling_jax.training.mesh import make_mesh, resolve_mesh
from scaling_jax.training.noise import cut_batch
from scaling_jax.training.program import Program, compile_program
from scaling_jax.training.trainer import Observer, train_cohort

FINISHED = ("done", "diverged")


@dataclass(frozen=True)
class Cohort:
    """Runs that train together as lanes of one program, and the mesh they are laid on."""

    runs: Mapping[str, RunConfig]
    mesh: MeshConfig

    @property
    def config(self) -> RunConfig:
        """The config of the first lane: the others differ from it in numbers only."""
        return next(iter(self.runs.values()))

    @property
    def tokens(self) -> int:
        """Tokens that all lanes together train on."""
        return sum(config.steps * config.batch_tokens for config in self.runs.values())


class Reporter(Protocol):
    """Shows how a study goes."""

    def cohort(self, cohort: Cohort, number: int, of: int) -> Observer:
        """A cohort is about to be compiled; what it returns is told of each chunk."""
        ...

    def ended(self, name: str, status: str, message: str) -> None:
        """A run has ended."""
        ...


def plan_cohorts(study: Study, corpus: Corpus) -> list[Cohort]:
    """How the study is packed on this machine: as many lanes as devices, the rest to `data`.

    A pure function of the study and of the machine's devices. Raises `RequestError` for a run that
    cannot be trained here, before anything is trained.
    """
    n_devices = len(jax.devices())
    cohorts = []
    for runs in pack(study, max_lanes=n_devices):
        config = next(iter(runs.values()))
        try:
            _check_corpus(config, corpus)
            mesh = resolve_mesh(config, len(runs), n_devices)
            cut_batch(config, mesh.data or 1)
        except RequestError as error:
            raise RequestError(f"run {next(iter(runs))!r}: {error}") from None
        cohorts.append(Cohort(runs, mesh))
    return cohorts


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
            ended = _train(cohort, writers, corpus, programs, stop, observe)
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
    observe: Observer,
) -> dict[str, tuple[str, str]]:
    for name, writer in writers.items():
        config = cohort.runs[name]
        doc = {"config": config.model_dump(mode="json"), "row": run_row(config, corpus)}
        writer.begin(doc, environment(cohort.mesh), config.steps)
    try:
        program = programs.get(cohort)
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

    def get(self, cohort: Cohort) -> Program:
        key = (program_key(cohort.config), len(cohort.runs), cohort.mesh)
        if self._program is None or key != self._key:
            self._program = None  # frees the last shape's arrays before the next one's
            mesh = make_mesh(cohort.mesh)
            self._program = compile_program(list(cohort.runs.values()), self._corpus, mesh)
            self._key = key
        return self._program


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
        "unique_tokens": len(corpus.train.tokens),
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
    }


def environment(mesh: MeshConfig) -> dict[str, str]:
    """What the numbers were made with: versions, device and mesh."""
    packages = ("scaling_jax", "jax", "jaxlib", "flax", "optax", "numpy")
    versions = " ".join(f"{name} {version(name)}" for name in packages)
    device = jax.devices()[0]
    return {
        "versions": f"python {platform.python_version()} {versions}",
        "device": f"{len(jax.devices())} x {device.device_kind} ({platform.machine()})",
        "mesh": f"lane={mesh.lane} data={mesh.data}",
    }


def _check_corpus(config: RunConfig, corpus: Corpus) -> None:
    if corpus.n_vocab > config.model.n_vocab:
        raise RequestError(
            f"model.n_vocab {config.model.n_vocab} is less than the corpus's {corpus.n_vocab}"
        )
    for split, tokens, need, what in (
        ("training", corpus.train.tokens, config.batch_tokens + 1, "batch; lower batch.sequences"),
        (
            "validation",
            corpus.validation.tokens,
            config.model.n_ctx + 1,
            "window; lower model.n_ctx",
        ),
    ):
        if len(tokens) < need:
            raise RequestError(
                f"the {split} split has {len(tokens)} tokens, fewer than the {need} of one {what}"
            )
