"""A larger model from smaller ones: their losses where it is to end, and a law in N through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forecast.cleaning import clean
from scaling_jax.laws.forecast.curve import END_SHARE, Curve
from scaling_jax.laws.forecast.method import Method

# Chosen on the gemstones runs up to width 1024: the largest of them from those below 0.2B.
_ALPHA = np.geomspace(0.08, 1.0, 24)
_BETA = np.geomspace(0.1, 1.2, 12)
_USUAL_ALPHA, _SPREAD_ALPHA = np.log(0.25), 0.3
_USUAL_BETA, _SPREAD_BETA = np.log(0.35), 0.3
_REACH = 1.0  # of ln N: runs count less the further their size is from the target's
_LEAST_WEIGHT = 1e-3
_DELTA = 0.003  # Huber width of relative residuals: shapes of one size differ by about 1 %
_FLOOR = 0.002  # relative residual that no law is expected to go below
_SAME = 0.02  # relative: two numbers of tokens or steps that are one
_PARTS = (0.25, 0.5, 1.0)  # of a curve at constant rate, which are ends themselves
_ROUNDS = 6
LEAST_SIZES = 3


class Points(NamedTuple):
    """Losses y (n,) of models of sizes N (n,) after D (n,) tokens, or steps at one batch."""

    N: np.ndarray
    D: np.ndarray
    loss: np.ndarray


def predict_larger(
    finished: Sequence[Curve], size: float, horizon: float, batch: float | None
) -> float:
    """The loss (nats a token) of a model of `size` parameters after `horizon` steps.

    `batch` is its tokens a step; where it or that of the others is unknown, steps take the place of
    tokens. Runs at constant learning rate are read where the target ends, and the others, as the
    shorter ones, at their own ends. L = E + A / N^alpha through them, with B / D^beta where D
    differs, Huber of relative residuals, sizes near the target counting most; averaged over alpha
    and beta by their plausibility, about what other sets gave (Hoffmann et al. 2022, eq. 2).

    Raises `RequestError` for a size that is none, `WorkError` for fewer than 3 smaller sizes.
    """
    if not (np.isfinite(size) and size > 0):
        raise RequestError(f"A model's size is a positive number of parameters, not {size:g}")
    smaller = _smaller(finished, size)
    count = len({curve.size for curve in smaller})
    if count < LEAST_SIZES:
        raise WorkError(
            f"A larger model cannot be forecast from {count} smaller finished "
            f"size{'s' if count != 1 else ''}: the law in N needs {LEAST_SIZES}"
        )
    return _predict(smaller, size, horizon, batch)


def _smaller(finished: Sequence[Curve], size: float) -> list[Curve]:
    return [
        curve
        for curve in finished
        if curve.size is not None and curve.size < size * (1 - _SAME) and clean(curve).step.size
    ]


def _predict(smaller: Sequence[Curve], size: float, horizon: float, batch: float | None) -> float:
    points, target = _points(smaller, horizon, batch)
    here = np.abs(points.D / target - 1) <= _SAME
    if len(np.unique(points.N[here])) >= LEAST_SIZES:
        points = Points(*(part[here] for part in points))
    return _fit(points, size, target)


def _points(smaller: Sequence[Curve], horizon: float, batch: float | None) -> tuple[Points, float]:
    """What the smaller runs say, and where the target ends in the same unit."""
    batches = [_batch(curve) for curve in smaller]
    in_tokens = batch is not None and None not in batches
    scale = [each if in_tokens and each is not None else 1.0 for each in batches]
    target = horizon * (batch if in_tokens and batch is not None else 1.0)
    rows = []
    for curve, unit in zip(smaller, scale, strict=True):
        ends = [curve.end]
        if curve.constant_rate() is not False:
            reached = curve.end * unit >= (1 - _SAME) * target
            ends = [target / unit] if reached else [part * curve.end for part in _PARTS]
        for end in ends:
            value = _loss_at(curve, end)
            if value is not None:
                rows.append((curve.size, min(end, curve.end) * unit, value))
    return Points(*np.array(rows, dtype=np.float64).T), target


def _batch(curve: Curve) -> float | None:
    if curve.batch_tokens is not None or curve.tokens is None:
        return curve.batch_tokens
    return float(curve.tokens[-1] / curve.step[-1])


def _loss_at(curve: Curve, end: float) -> float | None:
    """The mean loss of the last 2 % of the steps up to `end`."""
    seen = clean(curve)
    near = (seen.step >= (1 - END_SHARE) * end) & (seen.step <= end * (1 + 1e-9))
    if near.any():
        return float(seen.loss[near].mean())
    if not seen.step[0] <= end <= seen.step[-1] * (1 + _SAME):
        return None
    return float(np.interp(np.log(end), np.log(seen.step), seen.loss))


def _fit(points: Points, size: float, target: float) -> float:
    """The plausible laws' mean loss at that size and D."""
    varied = bool(np.any(np.abs(points.D / target - 1) > _SAME))
    alpha, beta = np.meshgrid(_ALPHA, _BETA if varied else _BETA[:1], indexing="ij")
    alpha, beta = alpha.ravel(), beta.ravel()
    by_size = (points.N / size) ** -alpha[:, None]
    columns = [np.ones_like(by_size), by_size]
    if varied:
        columns.append((points.D / target) ** -beta[:, None])
    x = np.stack(columns, axis=-1) / points.loss[:, None]
    near = np.exp(-0.5 * (np.log(size / points.N) / _REACH) ** 2)
    near = near / near.max() + _LEAST_WEIGHT
    weight = np.broadcast_to(near, by_size.shape)
    ridge = 1e-9 * np.eye(x.shape[-1])  # of columns of the order of 1: where one is not seen
    for _ in range(_ROUNDS):
        weighted = x * weight[..., None]
        matrix = weighted.transpose(0, 2, 1) @ x + ridge
        found = np.linalg.solve(matrix, weighted.sum(axis=1)[..., None])[..., 0]
        residual = np.abs((x @ found[..., None])[..., 0] - 1)
        weight = near * np.minimum(1.0, _DELTA / np.maximum(residual, 1e-12))
    huber = (
        np.where(residual < _DELTA, residual**2, _DELTA * (2 * residual - _DELTA))
        @ near
        / near.sum()
    )
    count = near.sum() ** 2 / (near @ near)
    cost = count / 2 * np.log(huber + _FLOOR**2)
    cost = cost + ((np.log(alpha) - _USUAL_ALPHA) / _SPREAD_ALPHA) ** 2 / 2
    if varied:
        cost = cost + ((np.log(beta) - _USUAL_BETA) / _SPREAD_BETA) ** 2 / 2
    possible = np.all(found > 0, axis=1)
    cost = np.where(possible, cost, np.inf)
    if not possible.any():
        return float(np.mean(points.loss[points.N.max() == points.N]))
    plausible = np.exp(cost.min() - cost)
    return float(plausible @ found.sum(axis=1) / plausible.sum())


def last_size(finished: Sequence[Curve], size: float, horizon: float) -> float | None:
    """The loss of the largest smaller model where the target ends, or at its own end."""
    smaller = _smaller(finished, size)
    if not smaller:
        return None
    largest = max(smaller, key=lambda curve: curve.size or 0.0)
    return _loss_at(largest, min(horizon, largest.end))


def power_in_size(finished: Sequence[Curve], size: float, horizon: float) -> float | None:
    """ln L on a line in ln N through the smaller models' losses there, without a constant."""
    smaller = _smaller(finished, size)
    points = [
        (curve.size, value)
        for curve in smaller
        if (value := _loss_at(curve, min(horizon, curve.end))) is not None
    ]
    if len({N for N, _ in points}) < 2:
        return None
    N, loss = np.log(np.array(points, dtype=np.float64)).T
    at_size = np.polyfit(N - np.log(size), loss, 1)[-1]
    return float(np.exp(at_size))


def _larger(
    observed: Curve, horizon: float, finished: Sequence[Curve], lr: np.ndarray | None
) -> float | None:
    if observed.size is None:
        return None
    try:
        return predict_larger(finished, observed.size, horizon, _batch_or_none(observed))
    except WorkError:
        return None


def _batch_or_none(curve: Curve) -> float | None:
    return _batch(curve) if curve.step.size else curve.batch_tokens


LARGER = Method("larger_model", _larger)
LAST_SIZE = Method(
    "last_size",
    lambda observed, horizon, finished, lr: (
        None if observed.size is None else last_size(finished, observed.size, horizon)
    ),
)
POWER_IN_SIZE = Method(
    "power_in_size",
    lambda observed, horizon, finished, lr: (
        None if observed.size is None else power_in_size(finished, observed.size, horizon)
    ),
)
METHODS = (LARGER,)
BASELINES = (LAST_SIZE, POWER_IN_SIZE)
