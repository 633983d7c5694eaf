"""Whether the curves of all sizes are one curve, and which size leaves the bundle.

Qiu et al. 2025 (arXiv 2507.02119): of runs whose ends lie on L = L0 + a C^-b, the reducible loss
over its own end, against the share of the run that is done, is one curve for all sizes where the
learning rate, the batch and the horizon were scaled well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.describe import aligned, count_runs, wrapped
from scaling_jax.laws.fitting import fit_points
from scaling_jax.laws.forecast.cleaning import FEWEST_POINTS, clean
from scaling_jax.laws.forecast.curve import Curve
from scaling_jax.laws.forms import find_law
from scaling_jax.laws.result import plain

LEAST_SIZES = 3
FROM, UNTIL = 0.1, 0.9  # shares of a run between which curves are compared: at 1 all are equal
_POINTS = 33
_LONGEST = 0.9  # of the steps of the longest run of a size
_SAME_RATE = 0.01  # relative: two peaks that are one
_SAME_HORIZON = 0.1  # likewise, of two lengths of training
_LEAVES = 0.5  # of the deviation, that is left without a size that leaves the bundle
_FEWEST_WITH_OUTLIER = 4  # sizes: of three any one may be the one that is off
_SHOWN = (0.1, 0.25, 0.5, 0.75, 0.9)


class Reduced(NamedTuple):
    """One run: `ell` (m,) is (L(x) - L0) / (L(1) - L0) at the shares x of its steps."""

    run_id: str
    N: float
    ell: np.ndarray


@dataclass(frozen=True)
class Collapse:
    """`floor` is L0 (nats a token), fitted to the ends or given. At shares `x` (m,) of the runs
    `deviation` (m,) is sd / mean of ell over all runs (Qiu et al. eq. 2), and `noise` (m,) that of
    the reducible loss over seeds, the mean of the sizes with several (eq. 3), None without any.
    `leaves` is N of the size without which less than half of the deviation is left, with that
    share, or None. `one_horizon`: all sizes were trained for about as long."""

    floor: float
    fitted: bool
    x: np.ndarray
    runs: tuple[Reduced, ...]
    deviation: np.ndarray
    noise: np.ndarray | None
    leaves: tuple[float, float] | None
    one_horizon: bool
    excluded: tuple[dict[str, str], ...]

    @property
    def sizes(self) -> list[float]:
        return sorted({run.N for run in self.runs})

    @property
    def below_noise(self) -> float | None:
        """The share of x at which the deviation is below the noise: supercollapse where it is 1."""
        return None if self.noise is None else float(np.mean(self.deviation < self.noise))

    def to_json(self) -> dict[str, Any]:
        return plain(
            {
                "L0": self.floor,
                "fitted": self.fitted,
                "sizes": self.sizes,
                "x": self.x.tolist(),
                "deviation": self.deviation.tolist(),
                "noise": None if self.noise is None else self.noise.tolist(),
                "below_noise": self.below_noise,
                "leaves": None
                if self.leaves is None
                else {"N": self.leaves[0], "deviation_left": self.leaves[1]},
                "one_horizon": self.one_horizon,
                "runs": [
                    {"run_id": run.run_id, "N": run.N, "ell": run.ell.tolist()} for run in self.runs
                ],
                "excluded": list(self.excluded),
            }
        )


def collapse(finished: Sequence[Curve], floor: float | None = None) -> Collapse:
    """Reduce finished runs of several sizes to one curve, and say how far they are from it.

    Of each size the longest runs enter, at the peak rate whose ends are lowest. `floor` is L0 where
    it is known; else L = L0 + a C^-b is fitted to the ends, C being 6 N D, or N times the steps
    where tokens are not known. Raises `RequestError` for a floor that is none, `WorkError` for
    fewer than 3 sizes, and where the ends do not tell L0.
    """
    chosen, excluded = _chosen(finished)
    sizes = {curve.size for curve in chosen}
    if len(sizes) < LEAST_SIZES:
        out = Counter(row["reason"] for row in excluded).most_common(1)
        raise WorkError(
            f"A collapse needs finished runs of {LEAST_SIZES} sizes, and there "
            f"{'is' if len(sizes) == 1 else 'are'} {len(sizes)}; N=COLUMN names the sizes"
            + "".join(f". Left out: {count_runs(count)}: {reason}" for reason, count in out)
        )
    least = min(float(curve.loss.min()) for curve in chosen)
    if floor is None:
        L0 = _fitted_floor(chosen)
    elif 0 <= floor < least:
        L0 = floor
    else:
        raise RequestError(f"floor is a loss below the lowest measured, {least:.4g}: not {floor:g}")
    x = np.geomspace(FROM, UNTIL, _POINTS)
    runs = tuple(
        Reduced(curve.run_id, float(curve.size or 0), (_at(curve, x) - L0) / (_end(curve) - L0))
        for curve in chosen
    )
    ell = np.stack([run.ell for run in runs])
    noise = [
        _spread(np.stack([_at(curve, x) - L0 for curve in chosen if curve.size == size]))
        for size in sorted(size for size in sizes if size)
        if sum(curve.size == size for curve in chosen) > 1
    ]
    return Collapse(
        floor=L0,
        fitted=floor is None,
        x=x,
        runs=runs,
        deviation=_spread(ell),
        noise=np.mean(noise, axis=0) if noise else None,
        leaves=_leaves(runs),
        one_horizon=bool(np.ptp(np.log(_lengths(chosen))) < _SAME_HORIZON),
        excluded=tuple(excluded),
    )


def describe_collapse(found: Collapse) -> str:
    """The deviation along the runs beside the noise, and what leaves the bundle, in plain text."""
    of = "fitted to the ends" if found.fitted else "as given"
    lines = wrapped(
        f"{count_runs(len(found.runs))} of {len(found.sizes)} sizes over their own ends, above "
        f"L0 = {found.floor:.4f} nats a token, {of}:"
    )
    rows = [["share of the run", *(f"{share:g}" for share in _SHOWN)]]
    curves = {"ell": np.mean([run.ell for run in found.runs], axis=0)}
    curves["deviation"] = found.deviation
    if found.noise is not None:
        curves["noise of seeds"] = found.noise
    for name, values in curves.items():
        at = np.interp(np.log(_SHOWN), np.log(found.x), values)
        rows.append([name, *(f"{v:.3f}" if name == "ell" else f"{v:.2%}" for v in at)])
    lines += aligned(rows)
    if found.below_noise is None:
        lines += wrapped("No size has two seeds: whether the deviation is noise is not known.")
    elif found.below_noise == 1:
        lines += wrapped("The deviation is below the noise of seeds throughout: supercollapse.")
    else:
        lines += wrapped(f"It is below the noise of seeds on {found.below_noise:.0%} of the way.")
    if found.leaves is not None:
        size, left = found.leaves
        lines += wrapped(
            f"N = {size:.4g} leaves the bundle: without it {left:.0%} of the deviation is left. "
            "Its learning rate, batch or horizon may not be scaled as the others' are."
        )
    if found.one_horizon:
        lines += wrapped(
            "All sizes were trained for as many tokens: curves become one where the horizon grows "
            "with the size, as that of compute-optimal runs does."
        )
    reasons = Counter(row["reason"] for row in found.excluded)
    lines += [f"  left out: {count_runs(n)}: {reason}" for reason, n in reasons.items()]
    return "\n".join(line.rstrip() for line in lines)


def _chosen(finished: Sequence[Curve]) -> tuple[list[Curve], list[dict[str, str]]]:
    """The runs that enter, and why the others do not."""
    excluded = []
    sized: dict[float, list[Curve]] = {}
    for curve in finished:
        seen = clean(curve)
        if curve.size is None:
            reason = "its size is not known"
        elif seen.step.size < FEWEST_POINTS or seen.step[0] > FROM * seen.end:
            reason = f"its points begin after {FROM:.0%} of its steps, or are too few"
        else:
            sized.setdefault(curve.size, []).append(seen)
            continue
        excluded.append({"run_id": curve.run_id, "reason": reason})
    chosen = []
    for _, curves in sorted(sized.items()):
        longest = max(curve.end for curve in curves)
        long = [curve for curve in curves if curve.end >= _LONGEST * longest]
        best = _best_rate(long)
        chosen += best
        kept = {curve.run_id for curve in best}
        for curve in curves:
            if curve.run_id not in kept:
                short = curve.end < _LONGEST * longest
                reason = "a longer run" if short else "runs at a better learning rate"
                excluded.append({"run_id": curve.run_id, "reason": f"its size has {reason}"})
    return chosen, excluded


def _best_rate(curves: Sequence[Curve]) -> list[Curve]:
    """The runs at the peak rate whose mean end is lowest; all where no rate is known."""
    if any(curve.lr is None for curve in curves):
        return list(curves)
    peaks = np.array([float(np.max(curve.lr)) for curve in curves if curve.lr is not None])
    ends = np.array([curve.final_loss for curve in curves])
    alike = np.abs(np.log(peaks[:, None] / peaks)) <= _SAME_RATE
    best = int(np.argmin(alike @ ends / alike.sum(axis=1)))
    return [curve for curve, same in zip(curves, alike[best], strict=True) if same]


def _fitted_floor(curves: Sequence[Curve]) -> float:
    """L0 of L = L0 + a C^-b through the ends."""
    cost = 6.0 * _lengths(curves) * np.array([curve.size or 0.0 for curve in curves])
    law = find_law("l_c_offset")
    try:
        return fit_points(law, {"C": cost}, [_end(curve) for curve in curves]).params["E"]
    except WorkError as error:
        raise WorkError(f"{error}. Or --floor gives L0, where it is known from elsewhere") from None


def _lengths(curves: Sequence[Curve]) -> np.ndarray:
    """Tokens at the ends (n,), or steps where a batch is not known."""
    batches = [curve.batch_tokens for curve in curves]
    known = [batch for batch in batches if batch is not None]
    unit = np.array(known if len(known) == len(batches) else np.ones(len(batches)))
    return unit * np.array([curve.end for curve in curves])


def _end(curve: Curve) -> float:
    """The run's own end: another run's, or a law's, would not take its noise along."""
    return curve.final_loss


def _at(curve: Curve, x: np.ndarray) -> np.ndarray:
    return np.interp(np.log(x * curve.end), np.log(curve.step), curve.loss)


def _spread(values: np.ndarray) -> np.ndarray:
    """Standard deviation over mean of rows (n, m), as (m,)."""
    return np.std(values, axis=0, ddof=1) / np.mean(values, axis=0)


def _leaves(runs: Sequence[Reduced]) -> tuple[float, float] | None:
    sizes = sorted({run.N for run in runs})
    if len(sizes) < _FEWEST_WITH_OUTLIER:
        return None
    whole = _rms(_spread(np.stack([run.ell for run in runs])))
    left = [
        _rms(_spread(np.stack([run.ell for run in runs if size != run.N]))) / whole
        for size in sizes
    ]
    least = int(np.argmin(left))
    return (sizes[least], left[least]) if left[least] < _LEAVES else None


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
