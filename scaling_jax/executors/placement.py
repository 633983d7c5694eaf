"""How a study is laid over the devices at hand: cohorts, meshes, and the memory they need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, prod

import jax

from scaling_jax.config import EngineConfig, MeshConfig, RunConfig
from scaling_jax.data.corpus import Corpus
from scaling_jax.data.epochs import require_countable
from scaling_jax.data.subsets import require_tokens
from scaling_jax.data.training_set import largest_set, targets_an_epoch
from scaling_jax.errors import RequestError
from scaling_jax.executors.branches import require_same_state
from scaling_jax.lineage import by_run_id
from scaling_jax.study import Study, pack
from scaling_jax.training.batch_size import most_tokens
from scaling_jax.training.engine import device_memory, resolve_engine
from scaling_jax.training.evaluation import require_evaluations
from scaling_jax.training.memory import Memory, estimate_memory
from scaling_jax.training.mesh import require_all_hosts, resolve_mesh, sizes
from scaling_jax.training.program import CHUNK_STEPS
from scaling_jax.training.trainer import IN_FLIGHT

# More lanes on one accelerator than this share its time and gain nothing.
MOST_LANES_A_DEVICE = 64
MOST_TOKENS_IN_FLIGHT = 2**20
# Share of a device's memory that the estimate may fill: it is right to about a third.
MEMORY_SHARE = 0.7


@dataclass(frozen=True)
class Cohort:
    """Runs that train together as lanes of one program, and how they are laid out."""

    runs: Mapping[str, RunConfig]
    mesh: MeshConfig
    engine: EngineConfig
    memory: Memory

    @property
    def config(self) -> RunConfig:
        """The config of the first lane: the others differ from it in numbers only."""
        return next(iter(self.runs.values()))

    @property
    def steps(self) -> int:
        """Updates of the program: a lane that ends early is carried along."""
        return max(config.steps for config in self.runs.values())

    @property
    def tokens(self) -> int:
        """Tokens that the program computes, the most where a run chooses its batch itself."""
        return len(self.runs) * max(most_tokens(config) for config in self.runs.values())


def plan_cohorts(study: Study, corpus: Corpus) -> list[Cohort]:
    """How the study is packed and placed on this machine.

    A pure function of the study and of the machine's devices. Raises `RequestError` for a run that
    cannot be trained here, before anything is compiled.
    """
    machine = _Machine.here(corpus)
    cohorts = []
    require_same_state(study.runs)
    known = by_run_id(study.runs, corpus.fingerprint)
    for names in pack(study, machine.most_lanes):
        runs = {name: known[name] for name in names}
        for name, run in runs.items():
            with _named(f"run {name!r}"):
                _check_corpus(run, corpus)
        with _named(f"run {next(iter(runs))!r}"):
            cohorts.append(machine.place(runs))
    return cohorts


def place_cohort(runs: Mapping[str, RunConfig], corpus: Corpus) -> Cohort:
    """A cohort of these runs of one program, laid out on this machine."""
    return _Machine.here(corpus).place(runs)


@contextmanager
def _named(what: str | None) -> Iterator[None]:
    """Puts what it is about, if anything, before what a `RequestError` says."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"{what}: {error}" if what else str(error)) from None


@dataclass(frozen=True)
class _Machine:
    corpus: Corpus
    n_devices: int
    platform: str
    memory: int

    @classmethod
    def here(cls, corpus: Corpus) -> _Machine:
        devices = jax.devices()
        return cls(corpus, len(devices), devices[0].platform, device_memory())

    def most_lanes(self, config: RunConfig) -> int:
        """One lane a CPU core, which is busy with it; on an accelerator as many as help and fit."""
        asked = config.engine.lanes
        most = self.n_devices
        if self.platform != "cpu":
            busy = max(1, MOST_TOKENS_IN_FLIGHT // config.batch_tokens)
            most *= min(MOST_LANES_A_DEVICE, busy)
        most = min(most, asked) if asked else most
        while most > 1 and not self._fits(config, most):
            most //= 2
        return most

    def _fits(self, config: RunConfig, n_lanes: int) -> bool:
        try:
            n_tokens = largest_set([config], self.corpus)
            return self._place(config, n_lanes, 1, n_tokens)[2].total <= self._room
        except RequestError:
            return False

    @property
    def _room(self) -> float:
        return MEMORY_SHARE * self.memory

    def place(self, runs: Mapping[str, RunConfig]) -> Cohort:
        """The cohort of `runs`, a run too large for one device spread over as few as hold it."""
        config = next(iter(runs.values()))
        n_tokens = largest_set(list(runs.values()), self.corpus)
        fsdp = config.mesh.fsdp or 1
        while True:
            mesh, engine, memory = self._place(config, len(runs), fsdp, n_tokens)
            if memory.total <= self._room:
                return Cohort(runs, mesh, engine, memory)
            fsdp *= 2
            if config.mesh.fsdp or not self._divides(config, fsdp):
                raise RequestError(
                    f"about {memory.total / 2**30:,.1f} GiB are needed on each of "
                    f"{prod(sizes(mesh))} device(s), and {self._room / 2**30:,.1f} GiB of "
                    f"{self.memory / 2**30:,.1f} are free for it: raise batch.microbatches, set "
                    "engine.remat=full, or take more devices"
                )

    def _divides(self, config: RunConfig, fsdp: int) -> bool:
        rows = config.batch.sequences // config.batch.microbatches
        others = (config.mesh.lane or 1) * (config.mesh.data or 1) * (config.mesh.tensor or 1)
        return (
            self.n_devices % (fsdp * others) == 0
            and config.model.d_model % fsdp == 0
            and rows % fsdp == 0
        )

    def _place(
        self, config: RunConfig, n_lanes: int, fsdp: int, n_tokens: int
    ) -> tuple[MeshConfig, EngineConfig, Memory]:
        itemsize = self.corpus.train.tokens.dtype.itemsize
        mesh = resolve_mesh(config, n_lanes, self.n_devices, fsdp)
        require_all_hosts(mesh)
        engine = resolve_engine(config, n_tokens, itemsize, self.platform, self.memory)
        nbytes = n_tokens * itemsize
        if engine.feed == "host":
            lanes = ceil(n_lanes / (mesh.lane or 1))
            windows = CHUNK_STEPS * lanes * config.batch.sizes[-1] * (config.model.n_ctx + 1)
            nbytes = IN_FLIGHT * windows * itemsize
        memory = []
        for size in config.batch.sizes:
            with _named(f"a batch of {size}" if len(config.batch.sizes) > 1 else None):
                memory.append(estimate_memory(config.at_batch(size), engine, mesh, n_lanes, nbytes))
        return mesh, engine, max(memory, key=lambda each: each.total)


def _check_corpus(config: RunConfig, corpus: Corpus) -> None:
    if corpus.n_vocab > config.model.n_vocab:
        raise RequestError(
            f"model.n_vocab {config.model.n_vocab} is less than the corpus's {corpus.n_vocab}"
        )
    _check_training_set(config, corpus)
    n_tokens, need = len(corpus.validation.tokens), config.model.n_ctx + 1
    if n_tokens < need:
        raise RequestError(
            f"the validation split has {n_tokens} tokens, fewer than the {need} of one window; "
            "lower model.n_ctx"
        )
    require_evaluations(config, corpus)


def _check_training_set(config: RunConfig, corpus: Corpus) -> None:
    n_tokens, n_ctx = config.unique_tokens(len(corpus.train.tokens)), config.model.n_ctx
    require_tokens(corpus.train, n_tokens)
    if config.data.order == "random":
        need = config.batch.sizes[-1] * n_ctx + 1
        if n_tokens < need:
            told = (
                "the training split has"
                if config.data.unique_tokens is None
                else "data.unique_tokens leaves"
            )
            raise RequestError(
                f"{told} {n_tokens} tokens, fewer than the {need} of one batch; lower "
                "batch.sequences"
            )
        return
    if config.batch.policy.name != "fixed":
        raise RequestError(
            f"data.order {config.data.order} numbers its windows by one size of the batch: set "
            "batch.policy.name=fixed, or data.order=random"
        )
    windows, sequences = targets_an_epoch(config, corpus)[0] // n_ctx, config.batch.sequences
    require_countable(config.steps * sequences, windows)
    if windows < sequences:
        raise RequestError(
            f"an epoch has {windows} windows, fewer than the {sequences} of one batch; lower "
            "batch.sequences"
        )
