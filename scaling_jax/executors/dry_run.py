"""What a study would train, and how long it would take here."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax

from scaling_jax.data.corpus import Corpus
from scaling_jax.data.training_set import targets_an_epoch
from scaling_jax.executors.placement import Cohort
from scaling_jax.models.counts import counts
from scaling_jax.training.batch_size import most_tokens
from scaling_jax.training.mesh import describe_mesh, make_mesh
from scaling_jax.training.program import compile_program
from scaling_jax.training.windows import evaluation_steps

COLUMNS = (
    "cohort", "name", "N", "N_total", "steps", "tokens", "epochs", "masked", "flops_exact", "mesh",
    "GiB", "seconds",
)  # fmt: skip


def describe_runs(cohorts: list[Cohort], corpus: Corpus) -> list[dict[str, Any]]:
    """One row a run, in the order of training.

    `masked` is the share of targets that do not count. `GiB` is the estimated need of its cohort
    on each device, `seconds` its share of the cohort's time. Of a run that chooses its batch
    itself, all are the most that it may take; of a branch, what it takes beyond its parent.
    """
    rows = []
    for number, (cohort, seconds) in enumerate(
        zip(cohorts, estimate_seconds(cohorts, corpus), strict=True), start=1
    ):
        for name, config in cohort.runs.items():
            tally, tokens = counts(config.model), most_tokens(config)
            targets, counted = targets_an_epoch(config, corpus)
            rows.append(
                {
                    "cohort": number,
                    "name": name,
                    "N": tally.params_non_embedding,
                    "N_total": tally.params_total,
                    "steps": config.steps,
                    "tokens": tokens,
                    "epochs": tokens / targets,
                    "masked": 1 - counted / targets,
                    "flops_exact": float(tokens) * tally.training_flops_per_token_exact,
                    "mesh": describe_mesh(cohort.mesh),
                    "GiB": cohort.memory.total / 2**30,
                    "seconds": seconds / len(cohort.runs),
                }
            )
    return rows


class SecondsAToken(NamedTuple):
    """What a token costs that is trained on, and one that is only evaluated."""

    trained: float
    evaluated: float


def estimate_seconds(cohorts: list[Cohort], corpus: Corpus) -> list[float]:
    """Seconds that each cohort will train and be evaluated for, compilation apart.

    The cheapest and the dearest shape are compiled and timed for a few updates and an evaluation;
    the others are placed on the straight line between them in exact FLOPs a token.
    """
    flops = [counts(cohort.config.model).training_flops_per_token_exact for cohort in cohorts]
    cheapest, dearest = flops.index(min(flops)), flops.index(max(flops))
    timed = {flops[i]: _seconds_a_token(cohorts[i], corpus) for i in {cheapest, dearest}}
    low, high = min(timed), max(timed)
    seconds = []
    for f, cohort in zip(flops, cohorts, strict=True):
        share = (f - low) / (high - low) if high > low else 0.0
        cost = [a + share * (b - a) for a, b in zip(timed[low], timed[high], strict=True)]
        seconds.append(cost[0] * cohort.tokens + cost[1] * _evaluated_tokens(cohort))
    return seconds


def _evaluated_tokens(cohort: Cohort) -> int:
    """Tokens that all lanes are evaluated on, whenever one of them is."""
    evaluation = cohort.config.evaluation
    steps = {step for config in cohort.runs.values() for step in evaluation_steps(config)}
    corpora = 2 + len(evaluation.corpora)  # validation and test
    return len(cohort.runs) * len(steps) * corpora * evaluation.tokens


def _seconds_a_token(cohort: Cohort, corpus: Corpus) -> SecondsAToken:
    configs, updates, taken = list(cohort.runs.values()), 16, []
    program = compile_program(configs, corpus, make_mesh(cohort.mesh))
    numbers = program.place(configs)
    state = program.init(numbers)
    evaluated = []
    with program.feed(configs, 0, 4 * updates) as feed:
        for i in range(4):
            began = time.perf_counter()
            state, window = program.chunk(state, i * updates, updates, numbers, feed)
            jax.block_until_ready(window)
            taken.append(time.perf_counter() - began)
    for _ in range(2):
        began = time.perf_counter()
        losses = jax.block_until_ready(program.evaluate(state))
        evaluated.append((time.perf_counter() - began) / losses.size)
    trained = min(taken) / (updates * cohort.config.batch_tokens * len(configs))
    return SecondsAToken(trained, min(evaluated))
