"""The validity panel: each lamp a stated threshold, a value, and a plain sentence.

A small residual proves nothing; what makes a fit worth printing is that these are green.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl

from scaling_jax.laws.selection import SHAPE, Selection

if TYPE_CHECKING:
    from scaling_jax.laws.slopes import Slopes

# Learning rate: lower and higher neighbour of the best, at the smallest and at the largest size.
RATE_SIDES = 4
# B_crit / B at the end of Kaplan's own runs: 2^19 tokens against 2.1e6 at 2.6 nats (eq. 5.3).
MAX_NOISE_RATIO = 4.0
# Losses on data seen before fall for another reason.
MAX_EPOCHS = 1.0
# 1 - 10^-0.5: half a decade of steps lies below the floor.
MIN_BELOW_FLOOR = 0.68
# Two terms of one decade and of half a decade can still be told apart at 1 % noise.
MIN_DECADES_N = 1.0
MIN_DECADES_S = 0.5
# Sizes, values of an input, or runs: of fewer, the spread of an exponent is mostly chance.
ENOUGH = 5
# Twice the scatter that curves of this kind have around a law that holds.
MAX_RMS = 0.02
# A law that misses its own next doubling by more is no use for a forecast.
MAX_HELD_OUT = 0.05
# A quarter of an exponent: beyond it the number belongs to the choice as much as to the models.
MAX_SHIFT = 0.25
# The objective of the next minimum over that of the best.
MIN_RIVAL = 1.25
# Exponents that are one differ this much by chance in one table of a hundred.
MIN_CHANCE = 0.01
# Half of what the residuals may be.
MAX_SEED_NOISE = 0.01
_NAMED = 3  # runs of a list that is told


class HeldOut(NamedTuple):
    """Relative errors, in absolute value, of losses that a fit had not seen."""

    worst: float
    median: float
    final: float  # at the last step of a predicted run, the worst of them
    n_points: int


class Lamp(NamedTuple):
    """`ok` is None where the lamp could not be measured; `value` then is None too."""

    name: str
    value: float | None
    threshold: float
    ok: bool | None
    text: str


def at_most(name: str, value: float, threshold: float, text: str) -> Lamp:
    return Lamp(name, float(value), threshold, bool(value <= threshold), text)


def at_least(name: str, value: float, threshold: float, text: str) -> Lamp:
    return Lamp(name, float(value), threshold, bool(value >= threshold), text)


def not_measurable(name: str, threshold: float, why: str) -> Lamp:
    return Lamp(name, None, threshold, None, f"not measurable: {why}")


def lr_bracketed(selection: Selection) -> Lamp:
    """Is the best learning rate of the smallest and of the largest N between two worse ones?"""
    name, sides = "lr_bracketed", RATE_SIDES
    if why := selection.table.missing("lr"):
        return not_measurable(name, sides, why)
    points = selection.points
    found, said = 0, []
    for label, size in (("smallest", points["N"].min()), ("largest", points["N"].max())):
        fitted = points.filter(pl.col("N") == size)
        best_rate = fitted["lr"][0]
        shape = [role for role in SHAPE if role in points.columns]
        group = selection.candidates.join(
            fitted.select(shape).unique(), on=shape, how="semi", nulls_equal=True
        )
        best = group.filter(
            (pl.col("lr") == best_rate) & pl.col("run").is_in(fitted["run"].unique().to_list())
        )
        rates = group["lr"].unique()
        lower = rates.filter(rates < best_rate).max()
        higher = rates.filter(rates > best_rate).min()
        words = []
        for rate in (lower, higher):
            if rate is None:
                continue
            worse = _worse_by(group.filter(pl.col("lr") == rate), best)
            found += worse > 0
            words.append(f"{rate:.3g} {'diverges' if math.isinf(worse) else f'{worse:+.1%}'}")
        if lower is None:
            words.insert(0, "none lower")
        if higher is None:
            words.append("none higher")
        said.append(f"{label} N: {best_rate:.3g} against {', '.join(words)}")
    return at_least(name, found, sides, "loss at the last common step, " + "; ".join(said))


def _worse_by(neighbour: pl.DataFrame, best: pl.DataFrame) -> float:
    """Relative excess loss of a neighbouring rate at the last step it shares with the best."""
    if "status" in neighbour.columns and (neighbour["status"] == "diverged").any():
        return math.inf
    neighbour = neighbour.filter(pl.col("loss").is_finite())
    if "seed" in neighbour.columns:
        twins = best.filter(pl.col("seed").is_in(neighbour["seed"].unique().to_list()))
        best = best if twins.is_empty() else twins
    ends = pl.concat(frame.select(S=pl.col("S").max().over("run")) for frame in (neighbour, best))
    last = ends["S"].to_numpy().min()
    return math.exp(_log_loss_at(neighbour, last) - _log_loss_at(best, last)) - 1.0


def _log_loss_at(curves: pl.DataFrame, step: float) -> float:
    losses = [
        np.interp(np.log(step), np.log(run["S"]), np.log(run["loss"]))
        for run in curves.filter(pl.col("S") > 0).sort("S").partition_by("run")
    ]
    return float(np.mean(losses))


def batch_vs_noise(points: pl.DataFrame, noise: pl.DataFrame | str) -> Lamp:
    """B_simple over B at the end of the window; `noise` is a frame or why there is none."""
    name = "batch_vs_noise"
    if isinstance(noise, str):
        return not_measurable(name, MAX_NOISE_RATIO, noise)
    ends = points.group_by("run").agg(pl.col("S").max().alias("end"))
    last = (
        noise.join(ends, left_on="run_id", right_on="run")
        .with_columns(scale=pl.coalesce("b_simple", "b_simple_low"))
        .filter(pl.col("scale").is_not_null() & (pl.col("step_start") < pl.col("end")))
        .sort("step")
        .group_by("run_id")
        .last()
        .with_columns(ratio=pl.col("scale") / pl.col("batch_tokens"))
        .sort("ratio")
    )
    if last.is_empty():
        return not_measurable(name, MAX_NOISE_RATIO, "the noise scale is undetermined in every run")
    worst = last.row(-1, named=True)
    bound = "at least " if worst["b_simple"] is None else ""
    unknown = ends.height - last.height
    return at_most(
        name,
        worst["ratio"],
        MAX_NOISE_RATIO,
        f"batch {worst['batch_tokens']} tokens, noise scale {bound}{worst['scale']:.0f} at the "
        f"window's end: S is about {1 + worst['ratio']:.1f} S_min"
        + (f" ({unknown} runs undetermined)" if unknown else ""),
    )


def epochs(selection: Selection) -> Lamp:
    """The most epochs over the training data that a point of the fit has seen."""
    points = selection.points
    if "epochs" in points.columns:
        seen = points["epochs"].cast(pl.Float64).max()
    elif {"tokens", "unique_tokens"} <= set(points.columns):
        seen = (points["tokens"].cast(pl.Float64) / points["unique_tokens"]).max()
    else:
        return not_measurable("epochs", MAX_EPOCHS, "column epochs missing")
    return at_most("epochs", float(seen), MAX_EPOCHS, f"{seen:.2g} epochs at the last point")  # pyright: ignore


def below_floor(selection: Selection) -> Lamp:
    """The smallest share of a size's steps that lies below the bigram floor."""
    name = "below_floor"
    if selection.below_floor is None:
        why = selection.table.missing("bigram_nats") or "no floor"
        return not_measurable(name, MIN_BELOW_FLOOR, f"{why}, no floor was applied")
    sizes = set(selection.points["N"])
    size, share = min(
        ((n, share) for n, share in selection.below_floor.items() if n in sizes),
        key=lambda pair: pair[1],
    )
    return at_least(
        name,
        share,
        MIN_BELOW_FLOOR,
        f"{share:.0%} of the steps below the bigram floor, N={size:.4g}",
    )


def spans(points: pl.DataFrame) -> list[Lamp]:
    """Decades of N and of S, and how many sizes there are to resample."""
    sizes = points["N"].unique()
    decades_n = math.log10(sizes.max() / sizes.min())  # pyright: ignore
    runs = points.group_by("run").agg((pl.col("S").max() / pl.col("S").min()).log10().alias("d"))
    decades_s = float(runs["d"].min())  # pyright: ignore
    count = sizes.len()
    return [
        at_least("sizes", count, ENOUGH, f"{count} sizes to resample for the intervals"),
        at_least("decades_N", decades_n, MIN_DECADES_N, f"{decades_n:.2f} decades of N"),
        at_least("decades_S", decades_s, MIN_DECADES_S, f"{decades_s:.2f} decades of S or more"),
    ]


def complete_rows(selection: Selection) -> Lamp:
    """Rows that had no number where the law needs one."""
    rows = [row for row in selection.excluded if row["rule"] == "incomplete"]
    count = sum(max(row["n_points"], 1) for row in rows)
    text = f"{count} rows left out: {rows[0]['reason']}" if rows else "every row has its numbers"
    return at_most("complete_rows", count, 0, text)


def stopped(points: pl.DataFrame) -> list[Lamp]:
    """Of a law of runs that stop early: did every run reach its lowest validation loss?"""
    if "stopped" not in points.columns:
        return []
    runs = points.group_by("run", maintain_order=True).last().drop_nulls("stopped")
    if runs.is_empty():
        return [not_measurable("stopped", 0, "one loss a run")]
    label = "name" if "name" in runs.columns else "run"
    going = runs.filter(~pl.col("stopped"))[label].to_list()
    text = "every run went on from its lowest loss"
    if going:
        named = ", ".join(going[:_NAMED]) + (", ..." if len(going) > _NAMED else "")
        text = (
            f"{len(going)} of {runs.height} runs have their lowest loss at their last evaluation "
            f"({named}): their minimum was not reached, and their losses are upper bounds"
        )
    return [at_most("stopped", len(going), 0, text)]


def distinct_values(values: Mapping[str, np.ndarray]) -> list[Lamp]:
    """How many values of each input there are, and over how many decades."""
    lamps = []
    for name, column in values.items():
        count = np.unique(column).size
        span = float(np.log10(column.max() / column.min()))
        lamps.append(at_least(f"values_{name}", count, ENOUGH, f"{count} values of {name}"))
        lamps.append(
            at_least(f"decades_{name}", span, MIN_DECADES_N, f"{span:.2f} decades of {name}")
        )
    return lamps


def replicates(points: pl.DataFrame, inputs: Sequence[str], output: str) -> Lamp:
    """Relative spread of points whose inputs are equal within a thousandth."""
    name = "replicates"
    place = [(pl.col(x).log() * 1000).round() for x in inputs]
    groups = (
        points.group_by(place)
        .agg(pl.col("loss").log().var().alias("var"), (pl.len() - 1).alias("df"))
        .filter(pl.col("df") > 0)
    )
    if groups.is_empty():
        return not_measurable(name, MAX_RMS, f"no two points at one {' and '.join(inputs)}")
    spread = math.sqrt(np.average(groups["var"].to_numpy(), weights=groups["df"].to_numpy()))
    text = f"{output} at one {' and '.join(inputs)} differs by {spread:.1%}"
    if spread > MAX_RMS:
        text += ": are these runs of one kind? --where keeps one"
    return at_most(name, spread, MAX_RMS, text)


def interval_promise(flag: str | None, runs: int) -> Lamp:
    """Can the intervals be trusted to cover as often as they say?"""
    text = flag or f"{runs} runs to tell chance from law"
    return Lamp("interval_coverage", float(runs), float(ENOUGH), flag is None, text)


def rms_residual(rms: float) -> Lamp:
    return at_most("rms_residual", rms, MAX_RMS, f"rms log residual {rms:.2%}")


def window_found(met: bool, rms: float, limit: float) -> Lamp:
    """Was there any window in which the law holds as well as the rule of the window asks?"""
    text = "a window meets its rule" if met else "no window does: the latest start, with all sizes"
    return Lamp("window", rms, limit, met, f"rms log residual {rms:.2%}: {text}")


def held_out(name: str, what: str, errors: HeldOut | None) -> Lamp:
    """The worst relative error of losses that the fit had not seen."""
    if errors is None:
        return not_measurable(name, MAX_HELD_OUT, "too few points without the held-out ones")
    text = (
        f"{what}: worst error {errors.worst:.1%}, median {errors.median:.1%}, "
        f"last step {errors.final:.1%}"
    )
    return at_most(name, errors.worst, MAX_HELD_OUT, text)


def shift(
    name: str,
    what: str,
    params: Mapping[str, float],
    others: Sequence[Mapping[str, float]],
    why_not: str,
    exponents: Sequence[str] = ("alpha_N", "alpha_S"),
) -> Lamp:
    """The largest relative move of an exponent between `params` and the `others`."""
    if not others:
        return not_measurable(name, MAX_SHIFT, why_not)
    moved = max(abs(other[a] / params[a] - 1.0) for other in others for a in exponents)
    said = ", ".join(
        f"{a} {params[a]:.3f} to " + " and ".join(f"{other[a]:.3f}" for other in others)
        for a in exponents
    )
    return at_most(name, moved, MAX_SHIFT, f"{what}: {said}")


def single_minimum(objective: float, rivals: Sequence[Mapping]) -> Lamp:
    """Is there another solution that fits nearly as well?"""
    name = "single_minimum"
    if not rivals:
        return Lamp(name, None, MIN_RIVAL, True, "every start that converged found one minimum")
    ratio = rivals[0]["objective"] / max(objective, 1e-300)
    found = ", ".join(f"{k} {v:.3g}" for k, v in rivals[0]["params"].items())
    return at_least(
        name, ratio, MIN_RIVAL, f"another minimum, {ratio:.2f} times the objective, at {found}"
    )


def profiles(flat: Sequence[str], asked: Sequence[str]) -> Lamp:
    """Parameters that the points leave open, so that a value of them is a matter of the method."""
    text = "; ".join(flat) if flat else f"{', '.join(asked)} closed in on both sides"
    return at_most("profiles", len(flat), 0, text)


def equal_slopes(found: Slopes | str) -> Lamp:
    """Have the learning curves of all sizes one exponent, as the law says?"""
    name = "equal_slopes"
    if isinstance(found, str):
        return not_measurable(name, MIN_CHANCE, found)
    own = found.table.drop_nulls("alpha").sort("N")
    said = ", ".join(
        f"{row['alpha']:.3g} ({_end(row['alpha_low'])} to {_end(row['alpha_high'])}) at "
        f"N = {row['N']:.4g}"
        for row in own[[0, -1] if own.height > 1 else range(own.height)].iter_rows(named=True)
    )
    if found.p_value is None:
        flat = found.table.height - own.height
        why = f"{flat} of {found.table.height} sizes have no exponent of their own"
        return not_measurable(name, MIN_CHANCE, f"{why} ({said})" if said else why)
    chance = f"by chance if it is one, judged by {found.unit}: p = {found.p_value:.2g}"
    text = f"alpha of E + (S_c / S)^alpha is {said}; {chance}"
    return at_least(name, found.p_value, MIN_CHANCE, text)


def _end(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def seed_noise(points: pl.DataFrame) -> Lamp:
    """Standard deviation of the final loss over seeds, relative, pooled over the sizes."""
    name = "seed_noise"
    ends = points.filter(pl.col("S") == pl.col("S").max().over("run"))
    groups = [role for role in ("N", "batch_tokens") if role in points.columns]
    spread = (
        ends.group_by(groups)
        .agg(pl.col("loss").log().var().alias("var"), (pl.len() - 1).alias("df"))
        .filter(pl.col("df") > 0)
    )
    if spread.is_empty():
        return not_measurable(name, MAX_SEED_NOISE, "one seed a size")
    pooled = math.sqrt(np.average(spread["var"].to_numpy(), weights=spread["df"].to_numpy()))
    text = f"final losses of one size differ by {pooled:.2%} from seed to seed"
    return at_most(name, pooled, MAX_SEED_NOISE, text)
