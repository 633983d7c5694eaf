"""Measure `mfu`: model FLOP/s as a share of the ceiling."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import jax
import numpy as np

from scaling_jax.config import BatchConfig, EngineConfig, RunConfig
from scaling_jax.errors import RequestError
from scaling_jax.models.counts import counts
from scaling_jax.training.engine import describe_engine, device_memory
from scaling_jax.training.memory import estimate_memory
from scaling_jax.training.mesh import resolve_mesh
from tools.benchmarks.ceiling import measured_ceiling
from tools.benchmarks.ours import (
    LARGE,
    Shape,
    compiled,
    flops_per_token,
    made_up_corpus,
    run_config,
    train,
)
from tools.benchmarks.tables import Table
from tools.benchmarks.timing import Effort, interleave

ROUNDS = 7
PIECE_S = 2.0
BIG = Shape(12, 896, 7)  # N = 1.16e8
N_CTX = 1024
N_VOCABS = (257, 32768)
MOST_SEQUENCES = 64  # a device
MEMORY_SHARE = 0.7

_UNITS = {
    "layers x d_model": "",
    "engine": "",
    "n_vocab": "",
    "sequences": "",
    "tokens/s": "",
    "model": "FLOP/s",
    "MFU": "%",
    "causal model": "FLOP/s",
    "causal MFU": "%",
    "memory": "GiB a device",
    "compile": "s",
    "fault": "",
}


def mfu(effort: Effort) -> Iterator[Table]:
    """On accelerators a model of N >= 1e8 in bfloat16, by engine; on a CPU a small one."""
    cpu = jax.default_backend() == "cpu"
    dtype = "float32" if cpu else "bfloat16"
    highest = measured_ceiling(dtype, effort)
    configs = [run_config(LARGE)] if cpu else _grid(effort)
    rows = [_row(config, highest.flops_per_s, effort) for config in configs]
    if not cpu and not effort.quick:
        best = max(range(len(rows)), key=lambda index: rows[index].get("tokens/s", 0.0))
        wide = big_config(configs[best].engine, n_vocab=N_VOCABS[1])
        rows.append(_row(wide, highest.flops_per_s, effort))
    faults = any("fault" in row for row in rows)
    yield Table(
        f"Model FLOP/s in {dtype}, of a ceiling of {highest.flops_per_s:.3g} FLOP/s",
        {name: unit for name, unit in _UNITS.items() if faults or name != "fault"},
        rows,
        "Three times the forward pass's matrix products: blocks, logits, and attention over the "
        "full square, or over what the causal mask leaves of it. Noise moments on. Medians of "
        f"{effort.rounds(ROUNDS)} pieces of {effort.seconds(PIECE_S)} s.",
    )


def big_config(engine: EngineConfig, n_vocab: int = N_VOCABS[0], **fields: Any) -> RunConfig:
    """A model of N = 1.16e8 in bfloat16 on as many sequences as fit."""
    config = run_config(
        BIG, n_ctx=N_CTX, n_vocab=n_vocab, compute_dtype="bfloat16", engine=engine, **fields
    )
    microbatches = config.batch.microbatches
    room = MEMORY_SHARE * device_memory()
    n_devices, sequences = len(jax.devices()), MOST_SEQUENCES
    while sequences > microbatches:
        sized = _with_sequences(config, sequences * n_devices)
        mesh = resolve_mesh(sized, 1, n_devices)
        nbytes = made_up_corpus(n_vocab).train.tokens.nbytes
        if estimate_memory(sized, engine, mesh, 1, nbytes).total <= room:
            break
        sequences //= 2
    return _with_sequences(config, sequences * n_devices)


def _with_sequences(config: RunConfig, sequences: int) -> RunConfig:
    batch = BatchConfig(sequences=sequences, microbatches=config.batch.microbatches)
    return config.model_copy(update={"batch": batch})


def _grid(effort: Effort) -> list[RunConfig]:
    kernel = {"gpu": "cudnn", "tpu": "splash"}[jax.default_backend()]
    engines = [
        EngineConfig.model_validate({"attention": attention, "remat": remat, "layers": layers})
        for attention, remat, layers in product(
            (kernel, "xla"), ("none", "dots"), ("unrolled", "scan")
        )
    ]
    return [big_config(engine) for engine in (engines[:1] if effort.quick else engines)]


def _row(config: RunConfig, highest: float, effort: Effort) -> dict[str, Any]:
    row: dict[str, Any] = {
        "layers x d_model": f"{config.model.n_layer} x {config.model.d_model}",
        "n_vocab": config.model.n_vocab,
        "sequences": config.batch.sequences,
    }
    try:
        program = compiled([config])
        candidates = {"ours": train(program, [config])}
        rates = interleave(candidates, effort.rounds(ROUNDS), effort.seconds(PIECE_S))["ours"]
    except (jax.errors.JaxRuntimeError, RequestError) as error:
        # One engine may need more memory than there is, and the others none the more.
        first_line = str(error).splitlines()[0][:80]
        return {**row, "engine": describe_engine(config.engine), "fault": first_line}
    rate = float(np.median(rates))
    part = counts(config.model)
    unseen = part.flops_per_token_attention - part.flops_per_token_attention_causal
    exact = rate * flops_per_token(config)
    causal = exact - rate * 3 * unseen
    return {
        **row,
        "engine": describe_engine(program.engine),
        "tokens/s": rate,
        "model": exact,
        "MFU": 100 * exact / highest,
        "causal model": causal,
        "causal MFU": 100 * causal / highest,
        "memory": program.memory / 2**30,
        "compile": program.compile_s,
    }
