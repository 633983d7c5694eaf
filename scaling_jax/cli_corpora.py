"""The commands on what is measured beside the mean loss: other corpora, and positions."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import arg

from scaling_jax.cli_common import (
    Json,
    Level,
    Plot,
    Source,
    Where,
    analysis,
    draw_picture,
    print_json,
    require_picture,
    roles,
)
from scaling_jax.errors import RequestError, WorkError


def transfer(
    source: Source,
    other: Annotated[
        str,
        arg(
            metavar="COLUMN,...", help="Columns of the loss on other corpora; every loss_<corpus>."
        ),
    ] = "",
    columns: Annotated[
        str, arg(metavar="loss=...,run=...", help="The table's names of the columns.")
    ] = "",
    where: Where = None,
    level: Level = 0.9,
    plot: Plot = None,
    json: Json = False,
) -> int:
    """Fit the line of the loss on other corpora against the loss on the training one."""
    require_picture(plot)
    others = [word.strip() for word in other.split(",") if word.strip()]
    if other and not others:
        raise RequestError(f"--other takes columns, not {other!r}")
    laws, records = analysis(source)
    found = laws.measure_transfer(records, others, roles(columns), where=where, level=level)
    lines = [each for each in found.corpora if each.line is not None]
    if plot is not None and lines:
        from scaling_jax.report.figures import transfer as draw
        from scaling_jax.report.figures import transfer_corpora

        if len(found.corpora) > 1:
            draw_picture(transfer_corpora(found), plot)
        else:
            (one,) = lines
            phase = one.points["phase"] if one.line.phase_test is not None else None
            draw_picture(
                draw(one.line, one.points["loss"], one.points["other"], phase, one.name), plot
            )
    if json:
        print_json(found.to_json())
    elif lines:
        print(laws.describe_transfer(found))
    if not lines:
        raise WorkError(". ".join(f"{each.column}: {each.refusal}" for each in found.corpora))
    return 0


def positions(
    source: Source,
    step: Annotated[
        int | None,
        arg(metavar="STEP", help="Each run's last evaluation up to here, not its last of all."),
    ] = None,
    where: Where = None,
    level: Level = 0.9,
    plot: Plot = None,
    json: Json = False,
) -> int:
    """Fit the loss along the context, L(T) = a + b T^-c, of every run."""
    require_picture(plot)
    laws, records = analysis(source)
    try:
        found = laws.measure_positions(records, step=step, where=where, level=level)
    except WorkError as error:
        if json:
            print_json({"positions": [], "level": level, "refused": str(error)})
        raise
    if plot is not None:
        from scaling_jax.report.figures import loss_by_position

        draw_picture(loss_by_position(found), plot)
    if json:
        print_json(found.to_json())
    else:
        print(laws.describe_positions(found))
    if all(run.refusal for run in found.runs):
        raise WorkError(f"No run's positions fix the form: {found.runs[0].refusal}")
    return 0
