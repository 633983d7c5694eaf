"""Everything that the records say of the gradient noise scale, in one object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.batch_sweep import measure_critical_batch
from scaling_jax.laws.critical_batch import Ladder
from scaling_jax.laws.noise_critical import NoiseRung, noise_against_critical
from scaling_jax.laws.noise_law import NoiseLaw, fit_noise_law
from scaling_jax.laws.noise_parts import NoiseRatio, noise_ratios
from scaling_jax.laws.noise_points import noise_points
from scaling_jax.laws.noise_scale import LOSS_MOVE, PRECISION, noise_series
from scaling_jax.laws.noise_windows import SERIES
from scaling_jax.laws.result import plain
from scaling_jax.records.schema import AT_CHECKPOINT

if TYPE_CHECKING:
    from scaling_jax.records.store import Records

_FEWEST_BATCHES = 3
_POINT = ("step_start", "step", "tokens", "loss", "grad_sq", "tr_sigma", "lr", "batch_tokens",
          "noise_steps", "ended_by")  # fmt: skip


@dataclass(frozen=True)
class NoiseReport:
    """`points` is the frame of `noise_series`; `law` is of its main rows, `ratios` of the others.

    `critical` are the levels of `ladder`, the critical batch of the same runs measured directly,
    where they are a sweep of batch sizes; where a sweep gives none `critical_reason` says why.
    """

    points: pl.DataFrame
    law: NoiseLaw
    ratios: list[NoiseRatio]
    checkpoints: pl.DataFrame | None
    ladder: Ladder | None
    critical: list[NoiseRung]
    critical_reason: str
    level: float
    precision: float
    source: str

    @property
    def main(self) -> pl.DataFrame:
        """The frame of `noise_scale`."""
        return self.points.filter("main")

    def to_json(self) -> dict[str, Any]:
        """Plain data; a number that could not be had, and an open end of an interval, is null."""
        law, size = self.law.law, self.law.size
        by_run = self.points.partition_by("run_id", maintain_order=True)
        return plain(
            {
                "runs": [self._run(run) for run in by_run],
                "level": self.level,
                "precision": self.precision,
                "loss_move": LOSS_MOVE,
                "law": None if law is None else {
                    "B_star": law.B_star._asdict(),
                    "alpha_B": law.alpha_B._asdict(),
                    "chi2": law.chi2,
                    "df": law.df,
                    "rms_log_residual": law.rms_log_residual,
                    "method": law.method,
                },
                "reason": self.law.reason,
                "size": None if size is None else size._asdict(),
                "size_reason": self.law.size_reason,
                "n_points": self.law.points.height,
                "excluded": self.law.excluded,
                "flags": self.law.flags,
                "ratios": [each._asdict() | {"agrees": each.agrees} for each in self.ratios],
                "checkpoints": [] if self.checkpoints is None else self.checkpoints.to_dicts(),
                "critical": [_rung(each) for each in self.critical],
                "critical_reason": self.critical_reason,
                "source": self.source,
            }
        )  # fmt: skip

    def _run(self, rows: pl.DataFrame) -> dict[str, Any]:
        main = rows.filter("main")
        first = main.row(0, named=True)
        parts = rows.filter(~pl.col("main")).partition_by(SERIES, maintain_order=True)
        return {
            **{name: first[name] for name in ("run_id", "name", "params_non_embedding", *SERIES)},
            "points": [_point(row) for row in main.iter_rows(named=True)],
            "parts": [
                {
                    **{name: part[name][0] for name in SERIES},
                    "points": [_point(row) for row in part.iter_rows(named=True)],
                }
                for part in parts
            ],
        }


def measure_noise(
    records: Records, level: float = 0.9, precision: float = PRECISION
) -> NoiseReport:
    """The noise scale along every run, its law in the loss, its parts, and B_crit beside it.

    Parameters and errors are those of `noise_scale`. The critical batch is measured where the runs
    have three batch sizes or more.
    """
    points = noise_series(records, level, precision)
    main = points.filter("main")
    ladder, critical, reason = None, [], ""
    if main["batch_tokens"].n_unique() >= _FEWEST_BATCHES:
        try:
            sweep = measure_critical_batch(records, level=level)
            ladder = sweep.ladder
            critical = noise_against_critical(main, ladder, records.runs, sweep.sizes, level)
        except (RequestError, WorkError) as error:
            reason = str(error)
    measured = AT_CHECKPOINT in records.noise["source"]
    return NoiseReport(
        points=points,
        checkpoints=noise_points(records, level) if measured else None,
        law=fit_noise_law(main, records.runs, level),
        ratios=noise_ratios(points, level),
        ladder=ladder,
        critical=critical,
        critical_reason=reason,
        level=level,
        precision=precision,
        source=records.source,
    )


def _point(row: dict[str, Any]) -> dict[str, Any]:
    scale, n_ctx = row["b_simple"], row["n_ctx"]
    return {
        "noise_scale_tokens": scale,
        "noise_scale_sequences": None if scale is None or not n_ctx else scale / n_ctx,
        "interval": [row["b_simple_low"], row["b_simple_high"]],
        "determined": not row["undetermined"],
        **{name: row[name] for name in _POINT},
    }


def _rung(rung: NoiseRung) -> dict[str, Any]:
    names = ("b_crit", "b_simple", "ratio", "b_mean", "mean_ratio")
    return rung._asdict() | {name: getattr(rung, name)._asdict() for name in names}
