"""The command that reduces the curves of all sizes to one: parse, call, print."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import arg

from scaling_jax.cli_common import (
    Json,
    Plot,
    Source,
    Where,
    analysis,
    draw_picture,
    print_json,
    require_picture,
    roles,
)
from scaling_jax.cli_forecast import Columns


def collapse(
    source: Source,
    columns: Columns = "",
    where: Where = None,
    floor: Annotated[
        float | None,
        arg(metavar="L0", help="The irreducible loss, where it is known; else fitted to the ends."),
    ] = None,
    plot: Plot = None,
    json: Json = False,
) -> int:
    """Say how far finished curves of all sizes are from one curve, and which size leaves it."""
    require_picture(plot)
    _, records = analysis(source)
    from scaling_jax.laws.forecast import collapse as reduce
    from scaling_jax.laws.forecast.curve import curves_of
    from scaling_jax.laws.forecast.questions import is_finished

    curves, _ = curves_of(records, roles(columns), where)
    found = reduce.collapse([curve for curve in curves if is_finished(curve)], floor)
    if plot is not None:
        from scaling_jax.report.figures.collapse import collapsed_curves

        draw_picture(collapsed_curves(found), plot)
    if json:
        print_json(found.to_json())
    else:
        print(reduce.describe_collapse(found))
    return 0
