"""The batch of a run from step to step: a pure function of what the run itself has measured.

A decision at a step depends on the config and on the updates up to that step alone, so that it is
the same for every length of chunk, and the same in a run that was resumed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from scaling_jax.config import RunConfig
from scaling_jax.noise import two_point

# The batch is changed where what it follows is more than this ratio away. It is then at most 4/3
# away on the other side, and does not come back.
APART = 1.5
# Standard errors by which it is to be further away than that: a run decides many times.
SURE = 3.0


class BatchState(NamedTuple):
    """What a policy carries from step to step: plain numbers, which JSON keeps exactly.

    The sums are over the `updates` since the last decision, of the estimates of |G|^2 and of
    tr Sigma of one sequence that each update gave, their squares and their product.
    """

    sequences: int
    updates: int = 0
    grad_sq: float = 0.0
    tr_sigma: float = 0.0
    grad_sq_sq: float = 0.0
    grad_sq_tr_sigma: float = 0.0
    tr_sigma_sq: float = 0.0


def start(config: RunConfig) -> BatchState:
    """The state at the step that the run begins at."""
    return decide(config, BatchState(config.batch.sequences), config.begin_step)


def next_decision(config: RunConfig, step: int) -> int:
    """The first step after `step` at which the batch may change; the last where none is left."""
    policy = config.batch.policy
    every = policy.every * (step // policy.every + 1)
    steps = [every] if policy.name == "noise_scale" else [at for at, _ in policy.ramp if at > step]
    return min([*steps, config.steps])


def most_tokens(config: RunConfig) -> int:
    """Tokens that the run trains on, or the most where it chooses its batch itself.

    Not those of the run that it branches from.
    """
    step, state, sequences = config.begin_step, start(config), 0
    while step < config.steps:
        until = next_decision(config, step)
        sequences += (until - step) * state.sequences
        step = until
        if config.batch.policy.name == "noise_scale":
            state = BatchState(min(2 * state.sequences, config.batch.sizes[-1]))
        else:
            state = decide(config, state, step)
    return sequences * config.model.n_ctx


def observe(
    state: BatchState, grad_sq_small: ArrayLike, grad_sq_big: ArrayLike, groups: int
) -> BatchState:
    """The state after the next updates: squared norms (n,) of `groups` a batch and of the batch.

    Observing updates together or one after another gives the same state to the last bit.
    """
    small, big = (np.asarray(x, np.float64) for x in (grad_sq_small, grad_sq_big))
    grad_sq, tr_sigma = two_point(small, big, state.sequences / groups, state.sequences)
    terms = [grad_sq, tr_sigma, grad_sq**2, grad_sq * tr_sigma, tr_sigma**2]
    before = np.array(state[2:])[:, None]
    # Accumulated in turn: a sum of numpy's would depend on how many there are at once.
    sums = np.cumsum(np.concatenate([before, np.stack(terms)], axis=1), axis=1)[:, -1]
    return BatchState(state.sequences, state.updates + small.size, *sums.tolist())


def decide(config: RunConfig, state: BatchState, step: int) -> BatchState:
    """The state with the batch from `step` on; at a step of no decision, or again, no other.

    `noise_scale` doubles the batch where what it follows is surely, by three standard errors, more
    than 1.5 times the batch, and halves it where the batch is surely more than 1.5 times that. It
    leaves the batch where neither is known: |G|^2 that cannot be told from zero bounds the noise
    scale below and not above, and so may double the batch and never halves it.
    """
    batch, policy = config.batch, config.batch.policy
    if policy.name == "ramp":
        begun = [sequences for at, sequences in policy.ramp if at <= step]
        return BatchState(begun[-1] if begun else batch.sequences)
    if policy.name == "fixed" or step % policy.every or not state.updates:
        return state
    now = state.sequences
    more, less = (_noise_scale_at(config, wanted) for wanted in (APART * now, now / APART))
    if 2 * now <= batch.sizes[-1] and _side(state, more) > SURE:
        return BatchState(2 * now)
    if now > batch.sequences and _side(state, less) < -SURE:
        return BatchState(now // 2)
    return BatchState(now)


def _noise_scale_at(config: RunConfig, sequences: float) -> float:
    """B_simple, in sequences, that a batch of `sequences` follows (McCandlish et al. eq. D.6)."""
    exchange = config.batch.policy.exchange
    return sequences if exchange is None else sequences**2 / exchange


def _side(state: BatchState, noise_scale: float) -> float:
    """Standard errors by which B_simple is above `noise_scale`, below where negative.

    B_simple = tr Sigma / |G|^2 is above c where tr Sigma - c |G|^2 is above zero: the mean of
    independent updates, which needs no ratio (Fieller 1954).
    """
    n, c = state.updates, noise_scale
    mean = (state.tr_sigma - c * state.grad_sq) / n
    square = (state.tr_sigma_sq - 2 * c * state.grad_sq_tr_sigma + c**2 * state.grad_sq_sq) / n
    variance = square - mean**2
    if not variance > 0:  # one update, or updates all alike
        return 0.0
    return mean / math.sqrt(variance / (n - 1))
