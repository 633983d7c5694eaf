"""Intervals of forecasts from how wrong held-out forecasts were, and a stated width without them.

Errors of extrapolation are bias of the form and no noise, so nothing inside one fit knows them.
Split conformal prediction (Vovk et al. 2005; Lei et al. 2018) takes them from held-out curves: the
scores |error| / difficulty of forecasts that went as far. The difficulty is what differs from curve
to curve and can be seen before the end: how far forms part that fit the seen part alike.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from scaling_jax.laws.forecast.curve import Curve

# Held-out forecasts whose ratio horizon / observed is within this factor went as far.
SAME_REACH = 1.6
# Where n curves are too few for a quantile, the largest score is widened by 1 + FEW / n; with less
# than LEAST_CURVES the half-width is at least ALONE times the difficulty. Chosen for the coverage
# of runs judged by a few others, or alone: gemstones up to width 1024, 25M of multipowerlaw.
FEW = 4.0
LEAST_CURVES = 3
ALONE = 3.0
# Curves of another set are not exchangeable with these, and scores are widened to judge them. Twice
# is more than gemstones and multipowerlaw need of each other, and not more than small models do.
OTHER_SET = 2.0


class Scale(NamedTuple):
    """What makes a forecast's difficulty: a share of its loss, of how far the methods' forecasts
    lie about their mean, and of its distance from what others say."""

    of_loss: float
    of_spread: float
    of_distance: Mapping[str, float]


# About how much of each the error was, on all curves of gemstones and multipowerlaw, and on small
# models of our own where methods differ: what is right within a set does not rest on it. Laws of
# the schedule are off by their residual, however far a rate falls; models of one size differ with
# their shapes.
CONSTANT_RATE = Scale(1e-6, 0.5, {"power_law": 0.1, "power_offset": 0.3})
CHANGING_RATE = Scale(0.001, 0.5, {"power_offset": 0.03})
LARGER_MODEL = Scale(0.005, 0.0, {"last_size": 0.1})


class Interval(NamedTuple):
    """The ends (nats a token), the curves behind it, and whether these were enough."""

    low: float
    high: float
    n_curves: int
    calibrated: bool


@dataclass(frozen=True)
class Calibration:
    """Held-out forecasts: the curve `run_ids`, the `ratio` horizon / observed (n,), and the `score`
    |error| / difficulty (n,)."""

    run_ids: tuple[str, ...]
    ratio: np.ndarray
    score: np.ndarray

    def scores(self, ratio: float, without: Collection[str] = ()) -> np.ndarray:
        """One score a curve, of its forecast that is nearest in log ratio, within `SAME_REACH`."""
        away = np.abs(np.log(self.ratio / ratio))
        nearest: dict[str, int] = {}
        for i in np.argsort(away, kind="stable"):
            if away[i] <= math.log(SAME_REACH) and self.run_ids[i] not in without:
                nearest.setdefault(self.run_ids[i], int(i))
        return self.score[list(nearest.values())]


def for_another_set(calibration: Calibration) -> Calibration:
    """The scores of one set of curves, widened by `OTHER_SET` to judge the curves of another."""
    return Calibration(calibration.run_ids, calibration.ratio, OTHER_SET * calibration.score)


def interval(
    loss: float,
    difficulty: float,
    scores: Sequence[float] | np.ndarray,
    level: float,
    own: Sequence[float] | np.ndarray = (),
) -> Interval:
    """The interval at `level` around a forecast `loss`, both ends in nats a token.

    `scores` (n,) are of other curves held out, one a curve, and `own` of parts of the same curve.
    With enough curves the half-width is difficulty times the finite-sample quantile, the
    ceil((n + 1) level)-th smallest score, which covers at least `level` of exchangeable curves.
    With fewer it is not calibrated: the largest score, widened by 1 + `FEW` / n, and no less than
    the largest of `own`, nor than `ALONE` with fewer than `LEAST_CURVES`.
    """
    n = len(scores)
    quantile = conformal_quantile(scores, level)
    calibrated = quantile is not None
    if quantile is None:
        widened = (1 + FEW / n) * float(np.max(scores)) if n else 0.0
        quantile = max([widened, *map(float, own), ALONE if n < LEAST_CURVES else 0.0])
    half = quantile * difficulty
    return Interval(loss - half, loss + half, n, calibrated)


def conformal_quantile(scores: Sequence[float] | np.ndarray, level: float) -> float | None:
    """The ceil((n + 1) level)-th smallest of n scores; None where that is beyond the largest."""
    rank = math.ceil((len(scores) + 1) * level - 1e-9)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else None


def difficulty(
    scale: Scale, observed: Curve, loss: float, others: Mapping[str, float], spread: float = 0.0
) -> float:
    """The scale (nats a token) of the error of a forecast `loss`: never zero.

    The rms sum of the scatter of the observed curve, a share of the loss and of the methods'
    `spread`, and shares of the distance from what `others` say: of a power law a small share, as
    it is a long way off. Where a curve is too short for one, it is as far as the last value.
    """
    last = others.get("last_value", loss)
    parts = [share * (loss - others.get(name, last)) for name, share in scale.of_distance.items()]
    return math.hypot(scatter(observed), scale.of_loss * loss, scale.of_spread * spread, *parts)


def scatter(curve: Curve) -> float:
    """The standard deviation (nats a token) of the later half of a curve about a smooth trend, a
    parabola in ln s: the noise of the points and the slow waves that last."""
    if not curve.step.size:
        return 0.0
    late = curve.step >= 0.5 * curve.end
    degree = min(2, int(late.sum()) - 2)
    if degree < 1:
        return 0.0
    x = np.log(curve.step[late] / curve.end)
    residual = curve.loss[late] - np.polyval(np.polyfit(x, curve.loss[late], degree), x)
    return float(np.sqrt(np.sum(residual**2) / (late.sum() - degree - 1)))
