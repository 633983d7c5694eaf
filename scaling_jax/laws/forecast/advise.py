"""Which run to train next: what narrows the prediction of the target most for its FLOPs."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from scaling_jax.errors import RequestError
from scaling_jax.laws.arrays import positive
from scaling_jax.laws.describe import WIDTH, aligned, wrapped
from scaling_jax.laws.fitting import Objective, make_points, require_identified, solve
from scaling_jax.laws.forecast.posterior import Posterior, gains, measured_more, posterior
from scaling_jax.laws.forms import find_law
from scaling_jax.laws.gather import gather
from scaling_jax.laws.identified import require_independent
from scaling_jax.laws.law import DELTA
from scaling_jax.laws.plan_flags import Flag
from scaling_jax.laws.request import require_level
from scaling_jax.laws.result import plain

if TYPE_CHECKING:
    from scaling_jax.records.store import Records

LAW = "l_nd_chinchilla"
# Wide enough that the fit is nearly least squares, as the closed form of a candidate's gain is.
ADVICE_OBJECTIVE = Objective("huber", DELTA)
_MOST_SHARE = 0.25  # of the target's compute, that one candidate may cost
_OCTAVES = 4  # rows of a curve that enter: at its end, a half, a quarter and an eighth of it
_MOST_POINTS = 400
# Of the gain of the best candidate. Chosen on Gemstones and on Porian et al.'s RefinedWeb runs at
# constant rate: of 0, .01, .03, .1, .25 and .5 the largest whose replays cost what those of 0 do.
_LEAST_GAIN = 0.03
_MOST_SIDE = 16  # of the grid of candidates
_FEW_FREEDOM = 4
_FAR = 10.0


class NextRun(NamedTuple):
    """A run to train: `N`, `D` tokens, the `batch_tokens` of the nearest measured run, `flops` 6 N
    D. `half_width` is that of the target's log loss once this run and those listed before it are
    measured, `narrowing` the share by which this one reduces it."""

    N: float
    D: float
    batch_tokens: float | None
    flops: float
    half_width: float
    narrowing: float


@dataclass(frozen=True)
class Advice:
    """What is known of the loss at the target (N, D), and the runs that would say more.

    `loss` and `interval` (nats a token, at `level`) rest on `n_runs` runs; `half_width` is of the
    log loss. `of_form` is the share of the variance that is the form's own error: it is not
    narrowed by knowing the parameters better, only by runs nearer to the target. `runs` are in the
    order in which to train them, each the best for its FLOPs once those before are measured.
    """

    N: float
    D: float
    loss: float
    interval: tuple[float, float]
    level: float
    half_width: float
    of_form: float
    n_points: int
    n_runs: int
    most_flops: float
    columns: dict[str, str]
    runs: list[NextRun] = field(default_factory=list)
    flags: list[Flag] = field(default_factory=list)

    @property
    def flops(self) -> float:
        """Of the target."""
        return 6.0 * self.N * self.D

    def to_json(self) -> dict[str, Any]:
        return plain(
            {
                "target": {"N": self.N, "D": self.D, "flops": self.flops},
                "loss": self.loss,
                "interval": list(self.interval),
                "level": self.level,
                "half_width_log": self.half_width,
                "of_form": self.of_form,
                "n_points": self.n_points,
                "n_runs": self.n_runs,
                "most_flops": self.most_flops,
                "columns": self.columns,
                "runs": [run._asdict() for run in self.runs],
                "flags": [flag.name for flag in self.flags],
                "warnings": {flag.name: flag.text for flag in self.flags},
            }
        )


def advise(
    records: Records,
    N: float,
    D: float,
    columns: Mapping[str, str] | None = None,
    *,
    where: str | None = None,
    most_flops: float | None = None,
    count: int = 6,
    level: float = 0.9,
) -> Advice:
    """The `count` runs that narrow the loss predicted at N parameters and D tokens most per FLOP.

    The measured runs fit L(N, D) = E + A / N^alpha + B / D^beta; the posterior is that of
    `posterior.posterior`, in which the form may itself be wrong, and a candidate's gain is closed
    form: no outcome needs to be known. Candidates are N and D in powers of two below the target
    that cost at most `most_flops`, by default a quarter of the target's.

    Raises `RequestError` for a wrong request, `WorkError` for data that cannot carry the law.
    """
    require_level(level)
    N, D = float(positive("N", N)), float(positive("D", D))
    most = 6.0 * N * D * _MOST_SHARE if most_flops is None else float(positive("FLOPs", most_flops))
    if count < 1:
        raise RequestError(f"advice is of one run or more, not {count}")
    law = find_law(LAW)
    selection = gather(records, law, columns, where)
    frame = _rows(selection.points, records.made_ids, N, D)
    inputs = {name: frame[name].to_numpy() for name in law.inputs}
    points = make_points(law, inputs, frame["loss"].to_numpy(), ADVICE_OBJECTIVE)
    require_independent(points, ())
    solution = solve(points, np.ones((1, points.y.size)))
    require_identified(points, solution)
    theta = solution.theta[0]

    n_runs = frame["run"].n_unique() if not records.made_ids else frame.height
    rows = max(1, round(frame.height / n_runs))
    grid = _candidates(frame, N, D, most)
    if not len(grid):
        least = 6.0 * inputs["N"].min() * inputs["D"].min()
        raise RequestError(f"no run costs {most:.3g} FLOPs or less; the measured ones {least:.3g}")
    octaves = 0.5 ** np.arange(rows)
    places = np.stack([np.repeat(grid[:, 0], rows), (grid[:, 1:] * octaves).ravel()])
    x = np.log(np.concatenate([places, [[N], [D]]], axis=1)) - points.x_centre[:, None]
    found = posterior(points, theta, np.arange(points.y.size), x)

    freedom = max(n_runs - theta.size, 1)
    half = found.half_width(-1, level, freedom)
    middle = found.middle(-1) + points.y_centre
    low, loss, high = np.exp([middle - half, middle, middle + half])
    of_form = found.share_of_form(-1)
    return Advice(
        N=N,
        D=D,
        loss=float(loss),
        interval=(float(low), float(high)),
        level=level,
        half_width=half,
        of_form=of_form,
        n_points=frame.height,
        n_runs=n_runs,
        most_flops=most,
        columns={role: selection.table.sources[role] for role in ("run", *law.inputs, "loss")},
        runs=_sequence(found, grid, rows, frame, (level, freedom), count),
        flags=_flags(of_form, freedom, n_runs, N / inputs["N"].max(), D / inputs["D"].max()),
    )


def best_run(found: Posterior, target: int, blocks: np.ndarray, flops: np.ndarray) -> int:
    """Of the candidates, rows (K, m) of places, the one that narrows the target most per FLOP.

    One that narrows it by next to nothing beside the best is not considered, however cheap.
    """
    gain = gains(found, target, blocks)
    return int(np.argmax(np.where(gain >= _LEAST_GAIN * gain.max(), gain / flops, -1.0)))


def describe_advice(advice: Advice) -> str:
    """The target, the runs to train next, and what to hold against them, in plain text."""
    low, high = advice.interval
    lines = wrapped(
        f"Known of the target (N = {advice.N:.4g}, D = {advice.D:.4g}) from {advice.n_runs} runs: "
        f"loss {advice.loss:.4f}, {advice.level:.0%} interval {low:.4f} to {high:.4f} nats a token"
    )
    lines.append("Train next, in this order (most narrowing of that interval per FLOP):")
    rows = [["N", "D", "batch", "FLOPs", "of target", "interval after", "narrower by"]]
    for run in advice.runs:
        batch = "-" if run.batch_tokens is None else f"{run.batch_tokens:.4g}"
        rows.append(
            [f"{run.N:.4g}", f"{run.D:.4g}", batch, f"{run.flops:.3g}",
             f"{run.flops / advice.flops:.2%}", f"+- {run.half_width * advice.loss:.4f}",
             f"{run.narrowing:.1%}"]
        )  # fmt: skip
    lines += aligned(rows)
    for flag in advice.flags:
        lines += textwrap.wrap(
            f"{flag.name}: {flag.text}", WIDTH, initial_indent="  ", subsequent_indent="    "
        )
    return "\n".join(line.rstrip() for line in lines)


def _rows(frame: pl.DataFrame, made_ids: bool, N: float, D: float) -> pl.DataFrame:
    """Of each curve the rows nearest to its end and to halves of it: neighbours say the same.

    Of too many points those nearest to the target are kept.
    """
    if not made_ids:
        octave = (pl.col("D").max().over("run") / pl.col("D")).log(2).round(0)
        frame = frame.with_columns(octave.alias("_octave")).filter(pl.col("_octave") < _OCTAVES)
        frame = frame.filter(pl.col("D") == pl.col("D").max().over("run", "_octave"))
    away = (pl.col("N") / N).log().pow(2) + (pl.col("D") / D).log().pow(2)
    return frame.sort(away, maintain_order=True).head(_MOST_POINTS)


def _candidates(frame: pl.DataFrame, N: float, D: float, most: float) -> np.ndarray:
    """Sizes and tokens (K, 2) in powers of two below the target, down to the least measured."""
    axes = []
    for name, top in (("N", N), ("D", D)):
        side = top * 0.5 ** np.arange(_MOST_SIDE)
        axes.append(side[side >= 0.99 * min(float(frame[name].to_numpy().min()), top)])
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    return grid[6.0 * grid.prod(axis=1) <= most]


def _sequence(
    found: Posterior,
    grid: np.ndarray,
    rows: int,
    frame: pl.DataFrame,
    certainty: tuple[float, int],
    count: int,
) -> list[NextRun]:
    blocks = np.arange(len(grid) * rows).reshape(-1, rows)
    flops = 6.0 * grid.prod(axis=1)
    chosen: list[NextRun] = []
    before = found.half_width(-1, *certainty)
    for _ in range(count):
        best = best_run(found, -1, blocks, flops)
        found = measured_more(found, blocks[best])
        after = found.half_width(-1, *certainty)
        size, tokens = grid[best]
        chosen.append(
            NextRun(
                N=float(size),
                D=float(tokens),
                batch_tokens=_batch(frame, size, tokens),
                flops=float(flops[best]),
                half_width=after,
                narrowing=1 - after / before,
            )
        )
        before = after
    return chosen


def _batch(frame: pl.DataFrame, size: float, tokens: float) -> float | None:
    if "batch_tokens" not in frame.columns:
        return None
    known = frame.drop_nulls("batch_tokens")
    if known.is_empty():
        return None
    away = (known["N"] / size).log() ** 2 + (known["D"] / tokens).log() ** 2
    return float(known["batch_tokens"][int(away.arg_min() or 0)])


def _flags(of_form: float, freedom: int, runs: int, larger: float, longer: float) -> list[Flag]:
    flags = []
    if of_form > 0.5:
        flags.append(
            Flag(
                "form_error",
                f"{of_form:.0%} of the variance at the target is the form's own error, which "
                "knowing its parameters better does not reduce; runs nearer to the target do",
            )
        )
    if freedom < _FEW_FREEDOM:
        flags.append(Flag("few_runs", f"{runs} runs are few for the five parameters of the law"))
    if max(larger, longer) > _FAR:
        axis, factor = ("N", larger) if larger > longer else ("D", longer)
        flags.append(
            Flag(
                "extrapolation",
                f"the target's {axis} is {factor:.3g} times the largest measured: the form's error "
                "there is not to be learned from the runs at hand",
            )
        )
    return flags
