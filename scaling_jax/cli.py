"""The `scaling-jax` command: parse, call, print. No logic lives here.

Exit status 0 done, 1 the work failed, 2 the request was wrong.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from contextlib import nullcontext
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from scaling_jax.cli_analysis import (
    allocate,
    branched_batch,
    critical_batch,
    fit,
    noise,
    plan,
    report,
)
from scaling_jax.cli_collapse import collapse
from scaling_jax.cli_common import (
    Json,
    leave_the_accelerator,
    pairs,
    print_json,
    print_table,
)
from scaling_jax.cli_corpora import positions, transfer
from scaling_jax.cli_curvature import curvature
from scaling_jax.cli_data import PreparationProgress, data
from scaling_jax.cli_forecast import forecast, score
from scaling_jax.cli_monitor import MonitorBeside, StopFor, monitor, written_forecasts
from scaling_jax.errors import RequestError, WorkError

if TYPE_CHECKING:
    from scaling_jax.records.store import Records


def run(
    experiment: Annotated[Positional[Path], arg(metavar="EXPERIMENT.py")],
    out: Annotated[str, arg(help="Folder of the records and checkpoints, gs:// too.")] = "runs",
    dry_run: Annotated[bool, arg(help="Show what would be trained, and train nothing.")] = False,
    set: Annotated[
        UseAppendAction[tuple[str, ...]],
        arg(metavar="KEY=VALUE", help="A dotted config field, in every run. May be repeated."),
    ] = (),
    budget: Annotated[
        str | None, arg(metavar="TIME", help="Stop at a checkpoint after so long: 90s, 30m, 2h.")
    ] = None,
    hosts: Annotated[
        str | None,
        arg(
            metavar="auto|ADDRESS:PORT,INDEX/COUNT",
            help="Train together with other hosts: where process 0 is, which this is, of how many.",
        ),
    ] = None,
    monitor: Annotated[
        bool, arg(help="Forecast the runs while they train, in a process of its own.")
    ] = False,
    stop_for: StopFor = None,
    json: Json = False,
) -> int:
    """Train what is not finished of the study that an experiment file declares."""
    from scaling_jax.study import load_study, what_is_read

    study = load_study(experiment).override(pairs(set, "--set"))
    from scaling_jax.data.corpus import load_corpus
    from scaling_jax.executors.local import run_study
    from scaling_jax.executors.placement import plan_cohorts
    from scaling_jax.executors.progress import StudyProgress
    from scaling_jax.executors.startup import start_jax
    from scaling_jax.executors.stopping import StopOnRequest, parse_time
    from scaling_jax.hosts.agreement import is_writer, together
    from scaling_jax.hosts.checks import code_facts, require_same, study_facts
    from scaling_jax.hosts.start import many_hosts
    from scaling_jax.records.files import as_path

    stopping = StopOnRequest(None if budget is None else parse_time(budget, "--budget"))
    place = as_path(out)
    folder = place / study.name
    beside = MonitorBeside(folder, stop_for) if monitor or stop_for else None
    start_jax()
    with many_hosts(hosts, code_facts() | study_facts(study)):
        messages = Console(stderr=json, quiet=not is_writer())
        with PreparationProgress(messages) as preparing:
            corpus = load_corpus(*what_is_read(study), told=preparing.told)
        require_same({"the corpus": corpus.fingerprint[:16]}, wait_s=inf)
        if dry_run:
            return _dry_run(plan_cohorts(study, corpus), corpus, json, is_writer())
        watching = beside if beside and is_writer() else nullcontext()
        with stopping as stop, watching, StudyProgress(messages) as progress:
            statuses = run_study(study, place, corpus, progress, stop)
        stopped = together(stop)()
        writer = is_writer()
    tally = Counter(statuses.values())
    if beside is not None:
        messages.print(f"monitor: {beside.said}", highlight=False, markup=False, soft_wrap=True)
    if json and writer:
        print_json({"study": study.name, "folder": str(folder), "runs": statuses})
    else:
        states = ", ".join(f"{count} {status}" for status, count in tally.items())
        messages.print(f"{folder}: {states}", highlight=False, soft_wrap=True)
    if tally["stopped"]:
        messages.print(
            f"{tally['stopped']} stopped early for good; to train them to the end, remove stop.json"
            f" from their folders in {place} and run the same command again",
            highlight=False,
            soft_wrap=True,
        )
    if stopped is not None:
        raise WorkError(f"{stopped}; the same command goes on with what is not finished")
    return 0 if tally["done"] + tally["stopped"] == len(statuses) else 1


def status(
    folder: Annotated[Positional[str], arg(metavar="DIR")] = "runs",
    may_stop: Annotated[
        str | None,
        arg(metavar="SLUG", help="Say which runs under way cannot change the fit of this law."),
    ] = None,
    json: Json = False,
) -> int:
    """Show what is done, running, failed and left, and how the runs under way will end."""
    from scaling_jax.records.store import load, overview

    records = load(folder)
    frame = overview(records)
    ahead = _look_ahead(records, may_stop)
    written = written_forecasts(folder, frame["study"].unique(maintain_order=True))
    if json:
        doc = {"runs": frame.to_dicts(), "written": written}
        print_json(doc | ({} if ahead is None else ahead.to_json()))
        return 0
    columns = {} if ahead is None else ahead.columns(records.runs["run_id"].to_list())
    told = frame.select("name", "message").drop_nulls()
    frame = frame.drop("message", *(name for name in _RARE if frame[name].is_null().all()))
    shown = [*frame.rows()]
    if columns:
        more = zip(*columns.values(), strict=True)
        shown = [(*row, *beside) for row, beside in zip(shown, more, strict=True)]
    print_table([*frame.columns, *columns], shown)
    for name, message in told.rows():
        print(f"{name}: {message}")
    for place, of in written.items():
        print(f"{place}: forecasts written: {of['count']}, the newest {of['newest']}")
    if ahead is not None:
        without = "no forecast" if ahead.forecasts is None else "it is not known yet what may stop"
        for reason in ahead.reasons:
            print(f"scaling-jax: {without}: {reason}", file=sys.stderr)
    return 0


_RARE = ("heard_s", "left_s")  # shown where some run has one

COMMANDS = {
    "data": data,
    "run": run,
    "monitor": monitor,
    "status": status,
    "fit": fit,
    "forecast": forecast,
    "score": score,
    "collapse": collapse,
    "noise": noise,
    "curvature": curvature,
    "critical-batch": critical_batch,
    "branched-batch": branched_batch,
    "allocate": allocate,
    "transfer": transfer,
    "positions": positions,
    "plan": plan,
    "report": report,
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; every fault a user can cause ends in a message and a status."""
    try:
        return tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="scaling-jax",
            description="Train families of Transformers and fit their scaling laws.",
            args=argv,
            config=(FlagCreatePairsOff,),
        )
    except RequestError as error:
        print(f"scaling-jax: {error}", file=sys.stderr)
        return 2
    except WorkError as error:
        print(f"scaling-jax: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("scaling-jax: interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _look_ahead(records: Records, may_stop: str | None) -> Any:
    from scaling_jax.records.schema import UNDER_WAY

    if may_stop is None and not set(records.runs["status"]) & set(UNDER_WAY):
        return None  # the analysis takes a second to import
    leave_the_accelerator()
    from scaling_jax.laws.forecast.monitor import look_ahead

    return look_ahead(records, may_stop)


def _dry_run(cohorts: list, corpus: Any, as_json: bool, shown: bool) -> int:
    from scaling_jax.executors.dry_run import COLUMNS, describe_runs

    print("timing the smallest and the largest shape", file=sys.stderr)
    rows = describe_runs(cohorts, corpus)
    if not shown:
        return 0
    if as_json:
        print_json({"runs": rows, "seconds": sum(row["seconds"] for row in rows)})
        return 0
    print_table(COLUMNS, [tuple(row[name] for name in COLUMNS) for row in rows])
    print(f"about {sum(row['seconds'] for row in rows):,.0f} s of training, compilation apart")
    if any(cohort.config.batch.policy.name == "noise_scale" for cohort in cohorts):
        print("of runs that follow their noise scale, the most that they may take")
    return 0


if __name__ == "__main__":
    sys.exit(main())
