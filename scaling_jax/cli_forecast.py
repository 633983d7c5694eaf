"""The commands of forecasting: parse, call, print. They leave the accelerator alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from scaling_jax.cli_common import (
    Json,
    Level,
    Plot,
    Source,
    Where,
    analysis,
    draw_picture,
    numbers,
    print_json,
    require_picture,
    roles,
)
from scaling_jax.errors import RequestError, WorkError

Columns = Annotated[
    str,
    arg(
        metavar="run=...,S=...,loss=...,lr=...,N=...",
        help="The table's names of the columns; D=... where steps are not counted.",
    ),
]


def forecast(
    source: Source,
    columns: Columns = "",
    where: Where = None,
    horizon: Annotated[
        float | None,
        arg(metavar="STEPS", help="The step to forecast, where it is not the declared end."),
    ] = None,
    backtest: Annotated[
        bool, arg(help="Repeat such forecasts on the finished runs, beside baselines.")
    ] = False,
    observed: Annotated[
        str, arg(metavar="F,F", help="Shares of a finished run that --backtest sees.")
    ] = "",
    larger: Annotated[
        float | None,
        arg(metavar="N", help="Forecast a model of so many parameters from the smaller ones."),
    ] = None,
    schedule: Annotated[
        str | None,
        arg(
            metavar="FILE|NAME",
            help="Forecast every model under a schedule: constant, cosine, linear, wsd, or a table "
            "of step, lr. Unfinished runs go on under it.",
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        arg(
            metavar="SOURCE",
            help="Where the finished runs are too few, intervals from the errors on those of "
            "another study or table, widened.",
        ),
    ] = None,
    may_stop: Annotated[
        str | None,
        arg(
            metavar="SLUG",
            help="Say which unfinished runs cannot change the fit of this law, instead of the one "
            "that the study declares.",
        ),
    ] = None,
    seal: Annotated[
        Path | None, arg(metavar="FILE", help="Write the forecasts down, to be judged by score.")
    ] = None,
    level: Level = 0.9,
    plot: Plot = None,
    json: Json = False,
) -> int:
    """Forecast the final loss of every unfinished run, with an interval, and say which may stop."""
    require_picture(plot)
    shares = numbers(observed, "--observed")
    if shares is not None and not backtest:
        raise RequestError("--observed says what --backtest sees; give --backtest too")
    _, records = analysis(source)
    from scaling_jax.laws.forecast import backtest as tests
    from scaling_jax.laws.forecast import describe
    from scaling_jax.laws.forecast import seal as seals
    from scaling_jax.laws.forecast.run import forecast as make
    from scaling_jax.laws.forecast.stop import law_of_loss, stops_by
    from scaling_jax.records.store import declared_laws, load

    if may_stop is not None:
        law_of_loss(may_stop)
    if seal is not None:
        seals.require_new(seal)
    found = make(
        records,
        roles(columns),
        where=where,
        horizon=horizon,
        larger=larger,
        schedule=schedule,
        backtest=backtest,
        observed=shares or tests.OBSERVED,
        calibration=None if calibration is None else load(calibration),
        level=level,
    )
    stops, no_stops = stops_by(records, found, declared_laws(source), may_stop)
    if seal is not None:
        seals.write_seal(seal, found.to_seal(), found.curves, level, source)
    if plot is not None:
        from scaling_jax.report.figures import forecast as figures

        draw_picture(figures.everything(found), plot)
    if json:
        print_json(found.to_json() | {"stops": None if stops is None else stops.to_json()})
        if no_stops is not None:
            print(f"scaling-jax: {no_stops}", file=sys.stderr)
    else:
        print(describe.describe_forecasts(found, stops, no_stops))
    return 0


def score(
    files: Annotated[
        Positional[tuple[str, ...]],
        arg(metavar="SEALS... SOURCE", help="Files of --seal, and the study or table since then."),
    ],
    columns: Columns = "",
    where: Where = None,
    json: Json = False,
) -> int:
    """Judge sealed forecasts by what came: errors, coverage, and the baselines."""
    if len(files) < 2:
        raise RequestError("score takes one sealed file or more, and then the source")
    *sealed, source = files
    _, records = analysis(source)
    from scaling_jax.laws.forecast import describe
    from scaling_jax.laws.forecast import seal as seals
    from scaling_jax.laws.forecast.curve import curves_of

    curves, _ = curves_of(records, roles(columns), where)
    names = {curve.run_id: curve.name for curve in curves}
    found = seals.score(sealed, curves)
    if json:
        print_json(found.to_json())
    else:
        print(describe.describe_score(found, names))
    if found.changed:
        changed = dict.fromkeys(row["run_id"] for row in found.changed)
        runs = ", ".join(names.get(run, run) for run in changed)
        raise WorkError(f"Data changed under a seal: {runs}")
    return 0
