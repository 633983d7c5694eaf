"""Loss by position in the context, out of the records: the form of every run, and octaves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.columns import condition
from scaling_jax.laws.position_law import Between, PositionLaw, fit_positions
from scaling_jax.laws.regression import line_over, student
from scaling_jax.laws.request import require_level
from scaling_jax.laws.result import plain
from scaling_jax.records.schema import VALIDATION

if TYPE_CHECKING:
    from scaling_jax.records.store import Records

_LEAST_SIZES = 3
_BIN = ("position_start", "position", "loss", "tokens")


@dataclass(frozen=True)
class RunPositions:
    """One run at one of its evaluations: its `law`, or why there is none (`refusal`).

    `N` without embeddings; `loss` is the mean over all positions, nats a token, of `tokens`.
    `bins`: position_start, position (1-based, both included), loss, tokens, in order.
    """

    run_id: str
    name: str
    N: int | None
    n_ctx: int | None
    step: int
    loss: float
    tokens: int
    bins: pl.DataFrame
    law: PositionLaw | None
    refusal: str


@dataclass(frozen=True)
class Positions:
    """Every run at its last evaluation, or the last one up to a step, smallest N first.

    `octaves`: run_id, name, N, n_ctx, step, octave, position_start, position, loss, tokens of every
    evaluation: means over the positions nearest, on the logarithm, to the powers of two that
    `octave` names. `excluded`: {run_id, name, rule, reason, n_points}.
    """

    runs: list[RunPositions]
    octaves: pl.DataFrame
    level: float
    source: str
    excluded: list[dict[str, Any]]

    def best_of_size(self) -> list[RunPositions]:
        """Of each N and n_ctx the run with the lowest loss; runs of unknown N have none."""
        best: dict[tuple[int, int | None], RunPositions] = {}
        for run in self.runs:
            if run.N is not None:
                kept = best.setdefault((run.N, run.n_ctx), run)
                best[run.N, run.n_ctx] = min(kept, run, key=lambda each: each.loss)
        return list(best.values())

    def steepening(self) -> Between | None:
        """How much c grows with each tenfold N, by a line through the best runs of three sizes.

        Of the longest context, where there are several; None for fewer sizes. The interval is the
        wider one of two: of the scatter of the runs about the line, and of the scatter of the
        positions, which have the same documents in every run and so move all c together.
        """
        runs = [run for run in self.best_of_size() if run.law is not None and run.law.identified]
        longest = max((run.n_ctx or 0 for run in runs), default=0)
        runs = [run for run in runs if (run.n_ctx or 0) == longest]
        if len(runs) < _LEAST_SIZES:
            return None
        laws = [run.law for run in runs if run.law is not None]
        x = np.log10(np.array([run.N for run in runs], dtype=np.float64))
        y = np.array([law.c.value for law in laws], dtype=np.float64)
        line = line_over(x)
        level, slope = (line.gain @ y).tolist()
        df = len(laws) - 2
        squares = float(np.sum((y - level - slope * x) ** 2))
        of_runs = student(self.level, df) * math.sqrt(squares / df * line.inverse[1, 1])
        moves = pl.concat(
            pl.DataFrame({"at": [*law.c_moves], "moved": [gain * m for m in law.c_moves.values()]})
            for law, gain in zip(laws, line.gain[1].tolist(), strict=True)
        )
        together = moves.group_by("at").agg(pl.col("moved").sum())["moved"].to_numpy()
        inflation = max(law.inflation for law in laws)
        of_positions = student(self.level, together.size - 3) * math.sqrt(
            inflation * together.size / (together.size - 3) * float(together @ together)
        )
        reach = float(max(of_runs, of_positions))
        return Between(slope, slope - reach, slope + reach)

    def at_step(self, run: RunPositions) -> pl.DataFrame:
        """The octaves of a run at the evaluation that its law is of."""
        return self.octaves.filter(run_id=run.run_id, step=run.step).sort("octave")

    def to_json(self) -> dict[str, Any]:
        """Plain data; a number that could not be had is null."""
        grows = self.steepening()
        return plain(
            {
                "positions": [self._run(run) for run in self.runs],
                "c_per_decade": None if grows is None else grows._asdict(),
                "corpus": VALIDATION,
                "level": self.level,
                "excluded": self.excluded,
                "source": self.source,
            }
        )

    def _run(self, run: RunPositions) -> dict[str, Any]:
        named = ("run_id", "name", "N", "n_ctx", "step", "loss", "tokens")
        law = run.law
        fitted = {} if law is None else {
            **{name: getattr(law, name)._asdict() for name in ("a", "b", "c")},
            **{name: getattr(law, name) for name in ("rms_residual", "inflation", "n_points")},
            "flags": law.flags,
        }  # fmt: skip
        bands = self.at_step(run).select(_BIN)
        return {
            **{name: getattr(run, name) for name in named},
            **fitted,
            "refused": run.refusal or None,
            "octaves": bands.to_dicts(),
        }


def measure_positions(
    records: Records,
    *,
    step: int | None = None,
    where: str | None = None,
    level: float = 0.9,
) -> Positions:
    """L(T) = a + b T^-c of every run that recorded validation losses by position.

    Of each run the last evaluation counts, or the last one after no more than `step` updates.
    Diverged runs are left out. `where` is a condition in SQL on the columns of the runs and of the
    table of positions. A run whose positions do not fix the form is refused in `refusal`. Raises
    `RequestError` where the request is wrong or no run recorded positions, `WorkError` where none
    is left.
    Source: Kaplan et al. (2020), appendix D.5, Fig. 20 and 21.
    """
    require_level(level)
    table = records.positions
    if table.is_empty():
        raise RequestError(
            f"{records.source} has no loss by position: a study folder holds one where its runs "
            "were evaluated"
        )
    runs = records.runs.with_columns(
        N=pl.col("params_non_embedding"), name=pl.coalesce("name", "run_id")
    )
    wide = table.filter(pl.col("corpus") == VALIDATION, pl.col("tokens") > 0).join(
        runs, on="run_id", how="left", maintain_order="left"
    )
    left_out: list[dict[str, Any]] = []
    if where is not None:
        kept = condition(wide.drop("N"), where, records.source)
        _exclude(left_out, wide.filter(~kept), "where", f"not {where}")
        wide = wide.filter(kept)
    diverged = (pl.col("status") == "diverged").fill_null(False)
    finite = pl.col("loss").is_finite()
    _exclude(left_out, wide.filter(diverged), "diverged", "status diverged")
    _exclude(left_out, wide.filter(~diverged & ~finite), "incomplete", "loss not a number")
    wide = wide.filter(~diverged & finite)
    if step is not None:
        late = pl.col("step") > step
        _exclude(left_out, wide.filter(late.all().over("run_id")), "step", f"only after {step}")
        wide = wide.filter(~late.all().over("run_id"))
    if wide.is_empty():
        reasons = ", ".join(dict.fromkeys(row["reason"] for row in left_out))
        raise WorkError(f"No loss by position is left in {records.source} ({reasons})")
    upto = wide if step is None else wide.filter(pl.col("step") <= step)
    chosen = upto.filter(pl.col("step") == pl.col("step").max().over("run_id"))
    found = [_of_run(part, level) for (_,), part in chosen.group_by("run_id", maintain_order=True)]
    found.sort(key=lambda run: (run.N or 0, run.n_ctx or 0, run.name))
    octaves = coarser(wide.select("run_id", "name", "N", "n_ctx", "step", *_BIN), per_octave=1)
    return Positions(found, octaves, level, records.source, left_out)


def coarser(bins: pl.DataFrame, per_octave: int) -> pl.DataFrame:
    """Means over so many bands an octave, weighted by tokens: single positions have few tokens.

    A bin belongs to the band whose middle, a power of two, is nearest on the logarithm to its own
    geometric middle; at one an octave these are the positions 1, 2, 3-5, 6-11, 12-22, ... What else
    than the columns of bins is there (run, step) stays apart. `octave` is the band's middle.
    """
    middle = (pl.col("position_start") * pl.col("position")).cast(pl.Float64).sqrt()
    band = (middle.log(2) * per_octave).round() / per_octave
    kept = [name for name in bins.columns if name not in _BIN]
    return (
        bins.with_columns(octave=2.0**band)
        .group_by(*kept, "octave", maintain_order=True)
        .agg(
            pl.col("position_start").min(),
            pl.col("position").max(),
            loss=(pl.col("loss") * pl.col("tokens")).sum() / pl.col("tokens").sum(),
            tokens=pl.col("tokens").sum(),
        )
        .sort(*(name for name in ("run_id", "step") if name in kept), "octave")
    )


def _of_run(part: pl.DataFrame, level: float) -> RunPositions:
    bins = part.select(_BIN).sort("position_start")
    law, refusal = None, ""
    try:
        law = fit_positions(*bins.get_columns(), level=level)
        refusal = law.reason
    except WorkError as error:
        refusal = str(error)
    tokens = int(bins["tokens"].sum())
    first = part.row(0, named=True)
    return RunPositions(
        **{name: first[name] for name in ("run_id", "name", "N", "n_ctx", "step")},
        loss=float((bins["loss"] * bins["tokens"]).sum()) / tokens,
        tokens=tokens,
        bins=bins,
        law=law,
        refusal=refusal,
    )


def _exclude(excluded: list[dict[str, Any]], rows: pl.DataFrame, rule: str, reason: str) -> None:
    counts = rows.group_by("run_id", "name", maintain_order=True).len()
    excluded.extend(
        {"run_id": run, "name": name or run, "rule": rule, "reason": reason, "n_points": count}
        for run, name, count in counts.iter_rows()
    )
