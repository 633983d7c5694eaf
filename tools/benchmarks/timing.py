"""Candidates timed in turn, so that what disturbs one disturbs the others, and their ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_RESAMPLES = 4000


class Candidate(NamedTuple):
    """Something that trains: `run(n)` returns when `n` more steps are done on the device."""

    run: Callable[[int], None]
    tokens_per_step: int


class Interval(NamedTuple):
    """A median and its interval."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Effort:
    """How long is measured: as each measure asks, or just enough to see that it works."""

    quick: bool = False

    def rounds(self, asked: int) -> int:
        """Rounds of a measure that asks for so many."""
        return 3 if self.quick else asked

    def seconds(self, asked: float) -> float:
        """Seconds of one piece of a measure that asks for so many."""
        return 0.02 if self.quick else asked


def interleave(
    candidates: Mapping[str, Candidate], rounds: int, seconds: float
) -> dict[str, np.ndarray]:
    """Tokens/s of each candidate in each round: one piece of about `seconds` of each, in turn.

    Pieces are whole steps of a candidate that is compiled and warm. The order turns round with
    every round, so that a machine that slows down slows none more than another.
    """
    steps = {name: _steps_in(candidate, seconds) for name, candidate in candidates.items()}
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for index in range(rounds):
        for name in names if index % 2 == 0 else reversed(names):
            candidate, n = candidates[name], steps[name]
            rates[name].append(n * candidate.tokens_per_step / _seconds(candidate, n))
    return {name: np.array(each) for name, each in rates.items()}


def ratio(rates: np.ndarray, base: np.ndarray, level: float = 0.95) -> Interval:
    """The median over rounds of `rates / base`, and its interval from resampling the rounds."""
    ratios = rates / base
    drawn = np.random.default_rng(0).integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    medians = np.median(ratios[drawn], axis=1)
    low, high = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.median(ratios)), float(low), float(high))


def _steps_in(candidate: Candidate, seconds: float) -> int:
    """Steps that take about `seconds`; leaves the candidate warm."""
    candidate.run(2)
    steps = 1
    while (took := _seconds(candidate, steps)) < seconds / 4:
        steps *= 2
    return max(1, round(steps * seconds / took))


def _seconds(candidate: Candidate, steps: int) -> float:
    began = time.perf_counter()
    candidate.run(steps)
    return time.perf_counter() - began
