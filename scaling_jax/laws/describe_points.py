"""The noise scale at checkpoints in plain text, for people."""

from __future__ import annotations

import polars as pl

from scaling_jax.laws.describe import wrapped
from scaling_jax.laws.noise_scale import short_number

_NAMES = {"euclidean": "identity", "hessian": "Hessian", "gauss_newton": "Gauss-Newton"}


def describe_points(points: pl.DataFrame, level: float) -> str:
    """The frame of `noise_points` as a table, under 100 columns."""
    several = points["run_id"].n_unique() > 1
    head = [*(["run"] if several else []), "step", "loss", "P", "G^T P G", "tr(P Sigma)"]
    table = [[*head, "tokens", "seqs", "interval"]]
    for row in points.iter_rows(named=True):
        scale = row["b_simple"]
        table.append(
            [
                *([(row["name"] or row["run_id"])[:20]] if several else []),
                str(row["step"]),
                "?" if row["loss"] is None else f"{row['loss']:.3f}",
                _NAMES[row["metric"]],
                f"{row['grad_sq']:.3g}",
                f"{row['tr_sigma']:.3g}",
                "-" if scale is None else short_number(scale),
                "-" if scale is None else short_number(scale / row["n_ctx"]),
                _interval(row),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        for cells in table
    ]
    return "\n".join(
        [
            *lines,
            "",
            *wrapped(
                "Noise scales tr(P Sigma) / G^T P G at the parameters of a step, in tokens and in "
                "sequences: B_simple where P is the identity, B_noise where it is the Hessian or "
                f"its Gauss-Newton part, with {level:.0%} intervals from the draws. Without a "
                "number it is undetermined: G^T P G cannot be told from zero; more draws or larger "
                "batches make it known. Loss in nats a token, the last recorded of training."
            ),
        ]
    )


def _interval(row: dict) -> str:
    low, high = row["b_simple_low"], row["b_simple_high"]
    if low is None:
        return "unknown"
    if high is None:
        return f"> {short_number(low)}"
    return f"{short_number(low)} .. {short_number(high)}"
