"""Places the runs of a study on the devices of this process, one cohort after another."""

from __future__ import annotations

import math
import os
import platform
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any, Protocol

import jax
from etils import epath

from scaling_jax.config import RunConfig
from scaling_jax.data.corpus import Corpus
from scaling_jax.data.training_set import largest_set
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.executors.branches import no_checkpoint, require_parents
from scaling_jax.executors.placement import Cohort, place_cohort, plan_cohorts
from scaling_jax.executors.requests import Requests
from scaling_jax.hosts.agreement import (
    agreed,
    end_all,
    failed_alike,
    gathered,
    is_writer,
    together,
)
from scaling_jax.hosts.checks import require_shared
from scaling_jax.lineage import branch_steps
from scaling_jax.models.counts import counts
from scaling_jax.records.coverage import recorded_until
from scaling_jax.records.locks import FolderLock
from scaling_jax.records.status import end_early, run_status
from scaling_jax.records.writer import RunWriter, write_study
from scaling_jax.study import Study, program_key
from scaling_jax.training.checkpoints import Restored, Shelf
from scaling_jax.training.engine import describe_engine
from scaling_jax.training.mesh import describe_mesh, make_mesh
from scaling_jax.training.program import Program, abstract_state, compile_program
from scaling_jax.training.saving import Checkpoints, kept_steps
from scaling_jax.training.trainer import Ended, Observer, train_cohort

FINISHED = ("done", "diverged")
MOST_TRIES = 3

Runs = Mapping[str, RunConfig]


class Reporter(Protocol):
    """Shows how a study goes."""

    def cohort(self, cohort: Cohort, number: int, of: int, step: int) -> Observer:
        """A cohort goes on from `step`; what is returned is told of each chunk."""
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

    Each run goes on from its newest whole checkpoint. A run that fails or diverges does not stop
    the others; what failed is tried again once they are through, `MOST_TRIES` times in all. Runs
    that were begun and are asked to stop are `stopped` and not trained, once all of their cohort
    are. Raises `RequestError` where `out` is no folder that checkpoints can be written to, another
    process writes in it, or a request to stop is damaged.
    """
    if os.fspath(out).startswith("s3://"):
        # Orbax takes no such path for an absolute one.
        raise RequestError(
            f"--out {out}: checkpoints cannot be written to s3://; name a folder or gs://, and "
            "copy the records when the study has ended"
        )
    if out.exists() and not out.is_dir():
        raise RequestError(f"--out {out} is a file; name a folder")
    cohorts = plan_cohorts(study, corpus)
    run_ids = {
        name: config.run_id(corpus.fingerprint)
        for cohort in cohorts
        for name, config in cohort.runs.items()
    }
    run_ids = {name: run_ids[name] for name in study.runs}
    require_parents(out, study)
    with FolderLock(out) if is_writer() else nullcontext() as lock:
        statuses = {}
        if is_writer():
            write_study(out, study.name, study.description, list(study.laws), run_ids)
            known = {name: run_status(out, run_id) for name, run_id in run_ids.items()}
            statuses = {
                name: state["status"] if state else "queued" for name, state in known.items()
            }
        require_shared(out)
        statuses = dict(agreed("the status of the runs", statuses))
        stop_all = together(lambda: (lock.lost() if lock else None) or stop())
        return _Training(cohorts, out, corpus, reporter, stop_all, statuses).run()


class _Training:
    """The work that a study leaves to do, cohort after cohort."""

    def __init__(
        self,
        cohorts: list[Cohort],
        out: epath.Path,
        corpus: Corpus,
        reporter: Reporter,
        stop: Callable[[], str | None],
        statuses: dict[str, str],
    ):
        self._out = out
        self._corpus = corpus
        self._reporter = reporter
        self._stop = stop
        self._statuses = statuses
        self._programs = _Programs(corpus)
        self._ids = {
            name: config.run_id(corpus.fingerprint)
            for cohort in cohorts
            for name, config in cohort.runs.items()
        }
        configs = {name: config for each in cohorts for name, config in each.runs.items()}
        self._branches = branch_steps(configs)
        open_runs = self._open(configs)
        self._awaited = branch_steps({name: configs[name] for name in open_runs})
        self._requests = Requests(out, self._ids, open_runs)
        self._shelf = Shelf(out, [[self._ids[name] for name in cohort.runs] for cohort in cohorts])
        self._waiting = deque((cohort, 1) for cohort in cohorts if self._open(cohort.runs))
        self._number = 0

    def run(self) -> dict[str, str]:
        """Trains until nothing is left, or there is a reason to stop."""
        while self._waiting and self._stop() is None:
            cohort, tries = self._waiting.popleft()
            if self._closed(cohort.runs) or self._without_parent(cohort, tries):
                continue
            parts = self._by_step(cohort.runs)
            if len(parts) > 1:
                placed = [place_cohort(runs, self._corpus) for _, runs in parts if self._open(runs)]
                self._waiting.extendleft((part, tries) for part in reversed(placed))
                continue
            restored = self._restore(cohort, parts[0][0])
            if restored is None and parts[0][0]:
                self._waiting.appendleft((cohort, tries))
                continue
            self._number += 1
            self._train(cohort, restored, tries)
        return self._statuses

    def _open(self, runs: Runs) -> list[str]:
        """Those that are not finished."""
        return [name for name in runs if self._statuses[name] not in FINISHED]

    def _closed(self, runs: Runs) -> bool:
        """Whether all that are open are asked to stop, which they then are.

        The rule judges no run that was never begun: such a one is trained.
        """
        open_runs = self._open(runs)
        asked = self._requests.all_asked(open_runs, anew=True)
        begun = [name for name in open_runs if self._statuses[name] != "queued"]
        self._requests.ignore([name for name in open_runs if name not in begun])
        if asked is None or len(begun) < len(open_runs) or self._is_awaited(self._newest(runs)):
            return False
        for name, reason in asked.items():
            if self._statuses[name] == "stopped":
                continue
            if is_writer():
                end_early(self._out, self._ids[name], reason)
            self._statuses[name] = "stopped"
            self._reporter.ended(name, "stopped", reason)
        return True

    def _is_awaited(self, steps: Mapping[str, int]) -> bool:
        """Whether a run of the study is to branch from one of these, which has not come so far."""
        return any(
            at > step
            for name, step in steps.items()
            for at in self._awaited.get(self._ids[name], ())
        )

    def _by_step(self, runs: Runs) -> list[tuple[int, dict[str, RunConfig]]]:
        """The runs by the step of their newest checkpoint: from one step, one program goes on."""
        newest = self._newest(runs)
        parts: dict[int, dict[str, RunConfig]] = {}
        for name, config in runs.items():
            parts.setdefault(newest[name] or config.begin_step, {})[name] = config
        return sorted(parts.items())

    def _newest(self, runs: Runs) -> dict[str, int]:
        """The step of each run's own newest checkpoint, 0 where it has none."""
        newest = self._shelf.newest([self._ids[name] for name in runs])
        return {name: newest[self._ids[name]] for name in runs}

    def _without_parent(self, cohort: Cohort, tries: int) -> bool:
        """Whether a run has no checkpoint to branch from: it waits for its parent, or fails."""
        newest, lost = self._newest(cohort.runs), {}
        waiting = {self._ids[name] for each, _ in self._waiting for name in each.runs}
        for name in self._open(cohort.runs):
            branch = cohort.runs[name].branch
            if branch is None or newest[name]:
                continue
            known = self._shelf.steps_of(branch.run)
            if branch.step not in known and branch.run in waiting:
                self._waiting.append((cohort, tries))
                return True
            if branch.step not in known:
                lost[name] = no_checkpoint(branch, known)
        for name, message in lost.items():
            self._statuses[name] = "failed"
            self._reporter.ended(name, "failed", message)
        rest = {name: config for name, config in cohort.runs.items() if name not in lost}
        if lost and self._open(rest):
            self._waiting.appendleft((place_cohort(rest, self._corpus), tries))
        return bool(lost)

    def _restore(self, cohort: Cohort, step: int) -> Restored | None:
        if step == 0:
            return None
        return self._shelf.restore(
            self._identities(cohort.runs),
            step,
            abstract_state(cohort.config, len(cohort.runs), make_mesh(cohort.mesh)),
            agreed(
                "the records",
                {
                    self._ids[name]: recorded_until(
                        self._out, self._ids[name], cohort.runs[name].begin_step
                    )
                    for name in self._open(cohort.runs)
                },
            ),
            {
                self._ids[name]: branch.run
                for name, step in self._newest(cohort.runs).items()
                if not step and (branch := cohort.runs[name].branch)
            },
        )

    def _train(self, cohort: Cohort, restored: Restored | None, tries: int) -> None:
        step = restored.step if restored else 0
        observe = self._reporter.cohort(
            cohort, self._number, self._number + len(self._waiting), step
        )
        open_runs = self._open(cohort.runs)
        writers = {}
        if is_writer():
            writers = {name: RunWriter(self._out, self._ids[name]) for name in open_runs}
        begins = dict(zip(cohort.runs, restored.begins, strict=True)) if restored else {}
        for name, writer in writers.items():
            config = cohort.runs[name]
            doc = {"config": config.model_dump(mode="json"), "row": run_row(config, self._corpus)}
            anew = step == 0 or begins[name]
            writer.begin(doc, environment(cohort), config.steps, None if anew else step)
        kept = {
            *kept_steps(cohort.steps, cohort.config.checkpoint.kept_per_decade),
            *(at for name in cohort.runs for at in self._branches.get(self._ids[name], ())),
        }
        checkpoints = Checkpoints(self._out, self._identities(cohort.runs), kept)
        if restored is not None and restored.own:
            checkpoints.go_on_from(step)
        try:
            program, fresh = self._programs.get(cohort)
            gathered("the compiled program", "")  # the collectives wait for no one long
            if fresh:
                self._reporter.compiled(program.compile_s)
            ended = train_cohort(
                cohort.runs,
                program,
                writers,
                checkpoints,
                restored,
                self._stop,
                lambda going, step: self._asked([n for n in going if n in open_runs], step),
                observe,
            )
        except (WorkError, jax.errors.JaxRuntimeError, MemoryError) as error:
            message = " ".join(str(error).split())[:500]
            alike = failed_alike(message)
            ended = dict.fromkeys(open_runs, Ended("failed", message))
            for writer in writers.values():
                writer.finish("failed", message)
            if not alike:
                end_all(message, 1)
            if tries < MOST_TRIES:
                self._waiting.append((cohort, tries + 1))
        finally:
            checkpoints.close()
        for name in open_runs:
            self._statuses[name] = ended[name].status
            self._reporter.ended(name, *ended[name])

    def _asked(self, names: Sequence[str], step: int) -> dict[str, str] | None:
        awaited = self._is_awaited(dict.fromkeys(names, step))
        return None if awaited else self._requests.all_asked(names)

    def _identities(self, runs: Runs) -> dict[str, Any]:
        return {
            self._ids[name]: {"config": config.identity(), "corpus": self._corpus.fingerprint}
            for name, config in runs.items()
        }


class _Programs:
    """Compiled programs by shape, so that cohorts that share one compile it once."""

    def __init__(self, corpus: Corpus):
        self._corpus = corpus
        self._key: Any = None
        self._program: Program | None = None

    def get(self, cohort: Cohort) -> tuple[Program, bool]:
        """The cohort's program, and whether it was compiled just now."""
        configs = list(cohort.runs.values())
        n_tokens = largest_set(configs, self._corpus)
        key = (program_key(cohort.config), len(configs), cohort.mesh, n_tokens)
        if self._program is not None and key == self._key:
            return self._program, False
        self._program = None  # frees the last shape's arrays before the next one's
        mesh = make_mesh(cohort.mesh)
        self._program = compile_program(configs, self._corpus, mesh)
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
        "data_order": config.data.order,
        "tokenizer": f"{corpus.tokenizer} {corpus.n_vocab}",
        "unique_tokens": config.unique_tokens(len(corpus.train.tokens)),
        "subset_seed": config.data.subset_seed,
        "evaluation_corpora": ",".join(sorted(config.evaluation.corpora)) or None,
        "bigram_nats": corpus.bigram_nats if math.isfinite(corpus.bigram_nats) else None,
        "batch_tokens": config.batch_tokens,
        "batch_sequences": batch.sequences,
        "microbatches": batch.microbatches,
        "batch_policy": batch.policy.describe(),
        "steps": config.steps,
        "parent": config.branch.run if config.branch else None,
        "branch_step": config.branch.step if config.branch else None,
        "optimizer": optimizer.name,
        **optimizer.model_dump(exclude={"name", "eps"}),
        "schedule": config.schedule.name,
        **config.schedule.model_dump(exclude={"name"}),
        "matmul_precision": config.matmul_precision,
        "compute_dtype": config.compute_dtype,
    }


def environment(cohort: Cohort) -> dict[str, str]:
    """What the numbers were made with: versions, device, mesh and engine."""
    packages = ("scaling_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = " ".join(f"{name} {version(name)}" for name in packages)
    device = jax.devices()[0]
    return {
        "versions": f"python {platform.python_version()} {versions}",
        "device": f"{len(jax.devices())} x {device.device_kind} ({platform.machine()})",
        "mesh": describe_mesh(cohort.mesh),
        "engine": describe_engine(cohort.engine),
    }
