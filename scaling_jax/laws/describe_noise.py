"""The gradient noise scale in plain text, for people."""

from __future__ import annotations

from typing import Any

import polars as pl

from scaling_jax.errors import counted
from scaling_jax.laws.describe import wrapped
from scaling_jax.laws.describe_points import describe_points
from scaling_jax.laws.hyperbola import Bounded
from scaling_jax.laws.noise_law import NoiseLaw
from scaling_jax.laws.noise_parts import NoiseRatio
from scaling_jax.laws.noise_report import NoiseReport
from scaling_jax.laws.noise_scale import LOSS_MOVE, interval_words, noise_interval, short_number

_POINT_HEADS = ["steps", "tokens", "loss", "B_simple", "seqs", "interval", "lr", "batch", "ended"]
_MOST_RUNS = 3  # whose ratios are listed one by one


def describe_noise(found: NoiseReport) -> str:
    """Tables of the points by model size, of the parts, the law, and B_crit, under 100 columns."""
    lines = []
    for (size,), table in (
        found.main.sort("params_non_embedding", "name", "step", nulls_last=True)
        .group_by("params_non_embedding", maintain_order=True)
    ):  # fmt: skip
        lines += [f"N = {short_number(size)}", *_points(table), ""]
    lines += wrapped(
        f"B_simple = tr(Sigma)/|G|^2 in tokens and in sequences{_measured(found.main)}, with "
        f"{found.level:.0%} intervals. Without a number it is undetermined: |G|^2 is not above "
        "zero, and only a lower bound (> x) is known. A point takes as many updates as make it "
        f"precise, a factor {found.precision:g} either way, and no more than the loss takes to "
        f"move by a factor {LOSS_MOVE:g}. Loss in nats a token, training loss of the point; tokens "
        "seen after it."
    )
    if found.ratios:
        lines += ["", *_ratios(found)]
    if found.checkpoints is not None:
        lines += [
            "",
            "At checkpoints:",
            *describe_points(found.checkpoints, found.level).splitlines(),
        ]
    said = [line for sentence in describe_noise_law(found.law) for line in wrapped(sentence)]
    lines += ["", *said]
    if found.critical or found.critical_reason:
        lines += ["", *_critical(found)]
    return "\n".join(line.rstrip() for line in lines)


def _measured(main: pl.DataFrame) -> str:
    """What was measured, where it is not groups of the batch in total."""
    source, part = (", ".join(main[name].unique().sort()) for name in ("source", "part"))
    said = f" from {source}" if source != "groups" else ""
    return said + (f" of {part} alone" if part != "total" else "")


def _points(table: pl.DataFrame) -> list[str]:
    """One line a point, under the name of its run where there are several."""
    heads, *points = _right([_POINT_HEADS, *(_point(row) for row in table.iter_rows(named=True))])
    runs = table["run_id"].to_list()
    if len(set(runs)) == 1:
        return [heads, *points]
    names = [name or run_id for name, run_id in zip(table["name"], runs, strict=True)]
    lines = [heads]
    for i, point in enumerate(points):
        if i == 0 or runs[i] != runs[i - 1]:
            lines.append(names[i])
        lines.append(point)
    return lines


def _point(row: dict[str, Any]) -> list[str]:
    scale, n_ctx = row["b_simple"], row["n_ctx"]
    return [
        f"{row['step_start'] + 1}-{row['step']}",
        short_number(row["tokens"]),
        "?" if row["loss"] is None else f"{row['loss']:.3f}",
        "-" if scale is None else short_number(scale),
        "-" if scale is None or not n_ctx else short_number(scale / n_ctx),
        noise_interval(row),
        "?" if row["lr"] is None else f"{row['lr']:.2g}",
        short_number(row["batch_tokens"]),
        row["ended_by"],
    ]


def _ratios(found: NoiseReport) -> list[str]:
    rows = [["run", "source", "metric", "part", "ratio", "interval", "", "rank corr.", "points"]]
    for each in _shown(found.ratios):
        rows.append(
            [
                "all runs" if each.run_id is None else (each.name or each.run_id)[:20],
                each.source,
                each.metric,
                each.part,
                "-" if each.ratio is None else f"{each.ratio:.3g}",
                "-" if each.low is None or each.high is None
                else f"{each.low:.3g} .. {each.high:.3g}",
                _verdict(each),
                "-" if each.rank_correlation is None else f"{each.rank_correlation:.2f}",
                f"{each.n_points} of {each.n_all}",
            ]
        )  # fmt: skip
    lines = ["Noise scale of the other measurements over the one above, at its points:"]
    lines += _right(rows)
    said = (
        "Ratio: one number over all points, and its interval; rank correlation is Spearman's, over "
        "the points at which both are determined. Parts are kinds of parameters: norms is the "
        "estimate from LayerNorms alone."
    )
    if any(each.metric == "adam" for each in found.ratios):
        said += " Of the metric adam it is tr(P Sigma)/G^T P G, P being that of Adam's update."
    return [*lines, *wrapped(said)]


def _shown(ratios: list[NoiseRatio]) -> list[NoiseRatio]:
    """Of many runs only what holds over all of them, where several measured it."""
    if len({each.run_id for each in ratios if each.run_id is not None}) <= _MOST_RUNS:
        return ratios
    together = {each[2:5] for each in ratios if each.run_id is None}
    return [each for each in ratios if each.run_id is None or each[2:5] not in together]


def _verdict(each: NoiseRatio) -> str:
    """Whether another source of the same quantity agrees with the main one."""
    if (each.metric, each.part) != ("euclidean", "total") or each.agrees is None:
        return ""
    return "agrees" if each.agrees else "differs"


def describe_noise_law(found: NoiseLaw) -> list[str]:
    """The law with its intervals, or why there is none, what N does, flags and what was left out.

    One sentence each.
    """
    law, size = found.law, found.size
    said = []
    if law is None:
        said.append(f"No law B_simple = B_star / L^(1 / alpha_B): {found.reason}.")
    else:
        chi2 = "" if law.chi2 is None else f", chi2 {law.chi2:.3g} of {law.df}"
        said.append(
            f"Law: B_simple = B_star / L^(1 / alpha_B), B_star {_both(law.B_star)} tokens, "
            f"alpha_B {_both(law.alpha_B)}; {counted(law.n_levels, 'point')}, rms "
            f"{law.rms_log_residual:.1%}{chi2}; {law.level:.0%} intervals by {law.method}."
        )
    if size is not None:
        said.append(
            f"N at equal loss: B_simple goes as N^{size.exponent:.3g} ({size.exponent_low:.3g} .. "
            f"{size.exponent_high:.3g}), a factor {size.factor:.3g} ({size.factor_low:.3g} .. "
            f"{size.factor_high:.3g}) from N = {short_number(size.N[0])} to "
            f"{short_number(size.N[1])}."
        )
    elif law is not None:
        said.append(f"Whether N matters at equal loss is not known: {found.size_reason}.")
    said += [f"Flag: {flag}." for flag in found.flags]
    left = "; ".join(
        f"{row['rule']}: {counted(row['n_points'], 'point')} of {counted(row['n_runs'], 'run')}"
        for row in found.excluded
    )
    return said + ([f"Left out of the law: {left}."] if left else [])


def _critical(found: NoiseReport) -> list[str]:
    if not found.critical:
        why = found.critical_reason or "no loss level has a critical batch"
        return wrapped(f"No critical batch to compare with: {why}")
    several = len({rung.N for rung in found.critical}) > 1
    rows = [["loss", "N" if several else "", "B_crit", "B_simple", "over B_crit", "its mean",
             "over B_crit", "runs"]]  # fmt: skip
    for rung in found.critical:
        cells = [f"{rung.loss:.4g}", short_number(rung.N) if several else "", _both(rung.b_crit)]
        for scale, ratio in ((rung.b_simple, rung.ratio), (rung.b_mean, rung.mean_ratio)):
            cells += ["-" if scale.value is None else short_number(scale.value), _both(ratio)]
        rows.append([*cells, str(rung.n_runs)])
    reasons = [f"{rung.loss:.4g} nats: {rung.reason}" for rung in found.critical if rung.reason]
    return [
        "Beside the critical batch that the same runs measure directly (E_min / S_min):",
        *_right(rows),
        *wrapped(
            "B_simple at the loss, and its mean over the way there, by progress, which is what it "
            "predicts B_crit to be; both of a run at the critical batch, off a line in ln B "
            "through the runs that pass the loss."
        ),
        *(line for reason in reasons for line in wrapped(f"No ratio at {reason}.")),
    ]


def _both(each: Bounded) -> str:
    """An estimate with its interval."""
    if each.value is None:
        return "-"
    return f"{short_number(each.value)} ({interval_words(each.low, each.high)})"


def _right(rows: list[list[str]]) -> list[str]:
    """Rows of cells as lines of columns, each flush right, without columns that are empty."""
    columns = [column for column in zip(*rows, strict=True) if any(column)]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in zip(*columns, strict=True)
    ]
