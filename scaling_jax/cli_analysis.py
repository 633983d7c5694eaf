"""The commands of the analysis: parse, call, print. They leave the accelerator alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from scaling_jax.cli_common import (
    Json,
    Level,
    Plot,
    Source,
    Where,
    analysis,
    constants,
    draw_picture,
    leave_the_accelerator,
    numbers,
    pairs,
    print_json,
    require_picture,
    roles,
)
from scaling_jax.errors import RequestError, WorkError

Columns = Annotated[
    str, arg(metavar="N=...,D=...,loss=...", help="The table's names of the law's columns.")
]


def fit(
    source: Source,
    law: Annotated[str, arg(metavar="SLUG", help="The law's slug, as l_nd_chinchilla.")] = "l_ns",
    columns: Columns = "",
    where: Where = None,
    objective: Annotated[
        Literal["huber", "log_squares", "squares"] | None,
        arg(help="Huber or squares of log residuals, or squares of residuals; the law's usual."),
    ] = None,
    delta: Annotated[
        float | None, arg(help="Width of Huber in log residuals; the law's usual.")
    ] = None,
    fix: Annotated[
        str, arg(metavar="NAME=VALUE,...", help="Parameters held at a value; an offset may be 0.")
    ] = "",
    tie: Annotated[
        str, arg(metavar="NAME=NAME,...", help="Parameters held equal, as beta=alpha.")
    ] = "",
    critical_batch: Annotated[
        str,
        arg(
            metavar="B_star=...,alpha_B=...",
            help="Constants of B_crit(L), as critical-batch prints them: steps then become S_min "
            "(Kaplan eq. 5.4).",
        ),
    ] = "",
    level: Level = 0.9,
    bootstrap: Annotated[
        int,
        arg(metavar="K", help="Intervals from K resamples of whole runs, not from Student's t."),
    ] = 0,
    plot: Plot = None,
    json: Json = False,
) -> int:
    """Fit a scaling law, with intervals and the panel that says what it is worth."""
    require_picture(plot)
    laws, records = analysis(source)
    try:
        fitted = laws.fit(
            records,
            law=law,
            columns=roles(columns),
            where=where,
            objective=laws.find_objective(laws.find_law(law), objective, delta),
            fix=constants(fix, "--fix"),
            tie=pairs(tie.split(","), "--tie") if tie else None,
            critical_batch=constants(critical_batch, "--critical-batch"),
            level=level,
            resamples=bootstrap,
        )
    except WorkError as error:
        if json:
            print_json({"law": law, "refused": str(error), "flags": ["refused"]})
        raise
    if plot is not None:
        from scaling_jax.report import figures

        draw_picture(figures.law_fit(fitted), plot)
    if json:
        print_json(fitted.to_json())
    else:
        print(laws.describe(fitted))
    return 0


def noise(
    source: Source,
    precision: Annotated[
        float,
        arg(
            metavar="FACTOR",
            help="Half-width asked of the intervals: a point takes as many updates as that needs.",
        ),
    ] = 1.25,
    level: Level = 0.9,
    json: Json = False,
) -> int:
    """Show the gradient noise scale against tokens and loss, with intervals, parts and law."""
    laws, records = analysis(source)
    try:
        found = laws.measure_noise(records, level, precision)
    except WorkError as error:
        if json:
            print_json({"runs": [], "level": level, "precision": precision, "refused": str(error)})
        raise
    if json:
        print_json(found.to_json())
    else:
        print(laws.describe_noise(found))
    return 0


def critical_batch(
    source: Source,
    columns: Annotated[
        str,
        arg(
            metavar="B=...,S=...,L=...",
            help="The table's names of batch, steps and the loss they lead to; of curves, run=..., "
            "B=..., S=..., loss=... and, where rates were swept, lr=...; N=... of several sizes.",
        ),
    ] = "",
    levels: Annotated[
        str, arg(metavar="L1,L2,...", help="Losses to read steps off curves at.")
    ] = "",
    definition: Annotated[
        Literal["kaplan", "zhang"],
        arg(help="kaplan: E_min / S_min; zhang: largest batch within 1.2 times linear scaling."),
    ] = "kaplan",
    reference_batch: Annotated[
        float, arg(metavar="TOKENS", help="The batch that zhang's linear scaling starts from.")
    ] = 0.0,
    where: Where = None,
    level: Level = 0.9,
    plot: Plot = None,
    json: Json = False,
) -> int:
    """Measure the critical batch size from a batch sweep, at each loss and as B_crit(L)."""
    require_picture(plot)
    laws, records = analysis(source)
    try:
        found = laws.measure_critical_batch(
            records,
            roles(columns),
            levels=numbers(levels, "--levels"),
            definition=definition,
            reference_batch=reference_batch,
            where=where,
            level=level,
        )
    except WorkError as error:
        if json:
            print_json({"levels": [], "law": None, "definition": definition,
                        "reason": str(error), "excluded": [], "flags": ["refused"]})  # fmt: skip
        raise
    if plot is not None:
        from scaling_jax.report import figures

        draw_picture(figures.critical_batch(found.ladder, found.unit), plot)
    if json:
        print_json(found.to_json())
    else:
        print(laws.describe_critical_batch(found))
    if not found.identified:
        raise WorkError("No loss level has a critical batch size: the sweep shows one side of it")
    return 0


def branched_batch(
    source: Source,
    tolerance: Annotated[
        float, arg(metavar="NATS", help="What a larger batch may lose and still count.")
    ] = 0.01,
    level: Level = 0.9,
    json: Json = False,
) -> int:
    """Measure the critical batch size from branches of a run: the largest that loses nothing."""
    laws, records = analysis(source)
    found = laws.measure_branched_batch(records, tolerance, level)
    if json:
        print_json(found.to_json())
    else:
        print(laws.describe_branched_batch(found))
    if all(point.k_star is None for point in found.points):
        raise WorkError(f"No critical batch: {found.points[0].reason}")
    return 0


def allocate(
    source: Source,
    columns: Annotated[
        str,
        arg(
            metavar="N=...,D=...,C=...,budget=...,loss=...,run=...",
            help="The table's names of the columns; a budget makes isoFLOP curves.",
        ),
    ] = "",
    where: Where = None,
    critical_batch: Annotated[
        str,
        arg(
            metavar="B_star=...,alpha_B=...",
            help="Constants of B_crit(L), as critical-batch prints them: the compute of learning "
            "curves then becomes C_min (Kaplan eq. 5.5).",
        ),
    ] = "",
    level: Level = 0.9,
    plot: Plot = None,
    json: Json = False,
) -> int:
    """Say how compute divides between N and D, by every approach that the runs carry."""
    require_picture(plot)
    laws, records = analysis(source)
    try:
        found = laws.allocate(
            records,
            roles(columns),
            where=where,
            critical_batch=constants(critical_batch, "--critical-batch"),
            level=level,
        )
    except WorkError as error:
        if json:
            print_json({"allocations": [], "refused": {"all": str(error)}})
        raise
    if plot is not None and found.allocations:
        from scaling_jax.report.figures.compute import allocations as draw

        spent = found.points["C"]
        draw_picture(draw(found.allocations, (spent.min(), spent.max())), plot)
    if json:
        print_json(found.to_json())
    elif found.allocations:
        print(laws.describe_allocations(found))
    if not found.allocations:
        refused = ". ".join(f"{method}: {reason}" for method, reason in found.refused.items())
        raise WorkError(f"No approach is left. {refused}")
    return 0


def plan(
    flops: Annotated[float, arg(help="Compute to spend, in FLOPs.")],
    constants: Annotated[
        str | None, arg(metavar="NAME", help="A published set; kaplan2020 unless --fit is given.")
    ] = None,
    fit: Annotated[
        Path | None, arg(metavar="FILE", help="What fit --json printed, instead of a set.")
    ] = None,
    batch: Annotated[
        str,
        arg(
            metavar="critical|small|TOKENS",
            help="critical: B = B_crit, so C = 2 C_min; small: B far below it; or tokens.",
        ),
    ] = "critical",
    accelerator: Annotated[
        str | None, arg(metavar="NAME", help="v4, v5e, v5p, v6e, H100, H200, or a slice: v4-32.")
    ] = None,
    chips: Annotated[int | None, arg(help="How many, where the name does not say.")] = None,
    mfu: Annotated[float, arg(help="Assumed share of the peak.")] = 0.4,
    price: Annotated[float | None, arg(metavar="USD", help="Of one chip for one hour.")] = None,
    advise: Annotated[
        str | None,
        arg(
            metavar="SOURCE",
            help="Measured runs: say which runs to add to them, so that the plan's loss is known "
            "better. Without --constants and --fit the plan is made on their fit.",
        ),
    ] = None,
    columns: Annotated[
        str, arg(metavar="N=...,D=...,loss=...", help="The names of --advise's columns.")
    ] = "",
    where: Where = None,
    json: Json = False,
) -> int:
    """Say what to train with so many FLOPs, with intervals, time and money."""
    if advise is None and (columns or where):
        raise RequestError("--columns and --where are of the runs that --advise names")
    leave_the_accelerator()
    from scaling_jax.laws.describe_plan import describe_plan
    from scaling_jax.laws.plan import plan as make

    records, basis = None, fit
    if advise is not None:
        laws, records = analysis(advise)
        from scaling_jax.laws.forecast import advise as advice

        if constants is None and fit is None:
            basis = laws.fit(records, advice.LAW, roles(columns), where=where).to_json()
    made = make(
        flops,
        constants=constants,
        fit=basis,
        batch=batch,
        accelerator=accelerator,
        chips=chips,
        mfu=mfu,
        usd_per_chip_hour=price,
    )
    found = None
    if records is not None:
        found = advice.advise(records, made.params, made.tokens, roles(columns), where=where)
    if json:
        print_json(made.to_json() | ({} if found is None else {"advice": found.to_json()}))
    else:
        print(describe_plan(made))
        if found is not None:
            print("", advice.describe_advice(found), sep="\n")
    return 0


def report(
    folder: Annotated[Positional[Path], arg(metavar="DIR", help="A study folder.")],
    json: Json = False,
) -> int:
    """Fit, draw the figures and write the HTML page, into the study's folder."""
    laws, records = analysis(str(folder))
    from scaling_jax.report.study_report import write_study_report

    written = write_study_report(records, folder / "report")
    if json:
        print_json({"report": str(written.page), "refused": written.refusal})
    else:
        if written.fit is not None:
            print(laws.describe(written.fit), end="\n\n")
        print(f"Report: {written.page}")
    if written.refusal is not None:
        raise WorkError(written.refusal)
    return 0
