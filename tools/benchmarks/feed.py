"""Measure `feed`: batches gathered from tokens on the device, against batches the host sends."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from scaling_jax.config import DataConfig, EngineConfig, RunConfig
from scaling_jax.data.corpus import Corpus
from scaling_jax.data.feed import Fed, HostFeed
from scaling_jax.data.splits import Split
from scaling_jax.training.mesh import make_mesh, resolve_mesh
from scaling_jax.training.program import CHUNK_STEPS, Program, compile_program
from tools.benchmarks.ours import MIDDLE, SMALL, Shape, made_up_corpus, run_config, trained
from tools.benchmarks.tables import Table
from tools.benchmarks.timing import Effort, interleave, ratio

PAIRS = 15
PIECE_S = 2.0  # long against the start of the host's threads, which is part of each piece
WAITING_S = 30.0
MAPPED_TOKENS = 2**26
DOCUMENT_TOKENS = 700
ORDERS: tuple[Literal["random", "epochs", "documents"], ...] = ("random", "epochs", "documents")


def feed(effort: Effort) -> Iterator[Table]:
    """The same batches, the same run; and how long a run waits for a file on the disk."""
    yield Table(
        "Where batches come from, 16 x 128 bytes each",
        {
            "layers x d_model": "",
            "from the device": "tokens/s",
            "from the host": "tokens/s",
            "device / host": "ratio, 95 %",
        },
        [_row(shape, effort) for shape in (SMALL, MIDDLE)],
        f"Medians of {effort.rounds(PAIRS)} interleaved pairs of {effort.seconds(PIECE_S)} s "
        "pieces; the host's threads start and end with each of theirs.",
    )
    with tempfile.TemporaryDirectory() as folder:
        corpus = _mapped_corpus(Path(folder))
        rows = [_waiting(order, corpus, effort) for order in ORDERS]
    yield Table(
        f"Waiting for batches from a mapped file of {MAPPED_TOKENS:,} tokens, {MIDDLE}",
        {
            "order": "",
            "speed": "tokens/s",
            "waiting": "% of the time, at most",
            "CPU of the host's threads": "% of the CPU time",
        },
        rows,
        f"{effort.seconds(WAITING_S)} s of training. Waiting is all the time in which the program "
        "is not handed its next batches, whether or not the device still has work; the CPU time is "
        "that of drawing and gathering, measured on its own for the same steps.",
    )


def _row(shape: Shape, effort: Effort) -> dict[str, Any]:
    rates = interleave(
        {
            "device": trained([run_config(shape, engine=EngineConfig(feed="device"))]),
            "host": trained([run_config(shape, engine=EngineConfig(feed="host"))]),
        },
        effort.rounds(PAIRS),
        effort.seconds(PIECE_S),
    )
    return {
        "layers x d_model": str(shape),
        "from the device": float(np.median(rates["device"])),
        "from the host": float(np.median(rates["host"])),
        "device / host": ratio(rates["device"], rates["host"]),
    }


def _mapped_corpus(folder: Path) -> Corpus:
    rng = np.random.default_rng(0)
    np.save(folder / "tokens.npy", rng.integers(0, 257, MAPPED_TOKENS).astype(np.uint16))
    starts = rng.choice(MAPPED_TOKENS - 1, MAPPED_TOKENS // DOCUMENT_TOKENS, replace=False) + 1
    tokens = np.load(folder / "tokens.npy", mmap_mode="r")
    train = Split(tokens, np.append(0, np.sort(starts)))
    return replace(made_up_corpus(), train=train)


def _waiting(
    order: Literal["random", "epochs", "documents"], corpus: Corpus, effort: Effort
) -> dict[str, Any]:
    config = run_config(MIDDLE, engine=EngineConfig(feed="host"), data=DataConfig(order=order))
    program = compile_program(
        [config], corpus, make_mesh(resolve_mesh(config, 1, len(jax.devices())))
    )
    steps, seconds = 8, 0.0
    _train(program, config, steps)
    while seconds < effort.seconds(WAITING_S) / 2:
        steps *= 2
        waited, seconds, cpu_s = _train(program, config, steps)
    return {
        "order": order,
        "speed": steps * config.batch_tokens / seconds,
        "waiting": 100 * waited / seconds,
        "CPU of the host's threads": 100 * _gathering_s(program, config, steps) / cpu_s,
    }


class _Timed:
    """A feed that counts the seconds in which it is asked for batches."""

    def __init__(self, feed: HostFeed) -> None:
        self._feed = feed
        self.waited = 0.0

    def take(self, n: int) -> Fed:
        began = time.perf_counter()
        fed = self._feed.take(n)
        self.waited += time.perf_counter() - began
        return fed


def _train(program: Program, config: RunConfig, steps: int) -> tuple[float, float, float]:
    """Seconds of waiting, of training, and of CPU time."""
    numbers = program.place([config])
    state = jax.block_until_ready(program.init(numbers))
    with program.feed([config], 0, steps) as opened:
        assert opened is not None
        feed: Any = _Timed(opened)
        began, cpu_began = time.perf_counter(), time.process_time()
        for step in range(0, steps, CHUNK_STEPS):
            state, _ = program.chunk(state, step, min(CHUNK_STEPS, steps - step), numbers, feed)
        jax.block_until_ready(state)
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    return feed.waited, seconds, cpu_s


def _gathering_s(program: Program, config: RunConfig, steps: int) -> float:
    """CPU seconds that drawing and gathering the batches of so many steps take."""
    began = time.process_time()
    with program.feed([config], 0, steps) as feed:
        assert feed is not None
        for step in range(0, steps, CHUNK_STEPS):
            feed.take(min(CHUNK_STEPS, steps - step))
    return time.process_time() - began
