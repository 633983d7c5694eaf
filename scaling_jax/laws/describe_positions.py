"""Loss by position in plain text, for people."""

from __future__ import annotations

from scaling_jax.laws.describe import aligned, exclusions, wrapped
from scaling_jax.laws.noise_scale import short_number
from scaling_jax.laws.position_law import FIRST, Between
from scaling_jax.laws.positions import Positions, RunPositions

_MOST_OCTAVES = 9  # beside each other
_NAME = 20  # letters of a run's


def describe_positions(found: Positions) -> str:
    """The form of every run, its loss around powers of two, and what was refused and left out."""
    lines = [
        *wrapped(
            f"L(T) = a + b T^-c, nats a token, of the target after T tokens of context, T from "
            f"{FIRST} on; validation losses weighted by tokens; {found.level:.0%} intervals"
        ),
        "",
        *aligned([["run", "N", "step", "a", "b", "c", "rms"], *map(_row, found.runs)]),
        "",
        *wrapped(
            "The intervals are of the scatter between positions. All runs read the same documents, "
            "so that runs differ by less than their intervals say; other documents would move a."
        ),
        *_steepening(found),
        "",
        "Loss around positions, means over octaves:",
        *_octaves(found),
    ]
    notes = [f"{run.name}: refused, {run.refusal}" for run in found.runs if run.refusal]
    notes += [f"{run.name}: {flag}" for run in found.runs if run.law for flag in run.law.flags]
    if notes:
        lines += ["", *(line for note in notes for line in wrapped(note))]
    if found.excluded:
        lines += ["", "Left out:", *exclusions(found.excluded)]
    return "\n".join(line.rstrip() for line in lines)


def _steepening(found: Positions) -> list[str]:
    grows = found.steepening()
    if grows is None:
        return []
    return wrapped(f"With each tenfold N, c grows by {_between(grows)}.")


def _row(run: RunPositions) -> list[str]:
    head = [run.name[:_NAME], "-" if run.N is None else short_number(run.N), str(run.step)]
    if run.law is None:
        return [*head, "-", "-", "-", "-"]
    law = run.law
    slope = "-" if law.b.value is None else f"{law.b.value:.3g}"
    return [*head, _between(law.a), slope, _between(law.c), f"{law.rms_residual:.3f}"]


def _between(number: Between) -> str:
    value, low, high = number
    if value is not None:
        return f"{value:.3g} ({low:.3g} to {high:.3g})"
    if low is None:
        return "-" if high is None else f"< {high:.3g}"
    return f"> {low:.3g}" if high is None else f"{low:.3g} to {high:.3g}"


def _octaves(found: Positions) -> list[str]:
    tables = [found.at_step(run) for run in found.runs]
    bands: dict[float, str] = {}
    for table in tables:
        for octave, first, last in table.select("octave", "position_start", "position").iter_rows():
            bands[octave] = octave_name(first, last)
    shown = sorted(bands)
    if len(shown) > _MOST_OCTAVES:
        shown = shown[:1] + shown[-1:0:-2][::-1]
    rows = [["run", *(bands[octave] for octave in shown)]]
    for run, table in zip(found.runs, tables, strict=True):
        loss = dict(table.select("octave", "loss").iter_rows())
        cells = (f"{loss[octave]:.3f}" if octave in loss else "-" for octave in shown)
        rows.append([run.name[:_NAME], *cells])
    return aligned(rows)


def octave_name(first: int, last: int) -> str:
    """The positions of an octave: `1`, `3-5`."""
    return str(first) if first == last else f"{first}-{last}"
