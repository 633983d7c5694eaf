"""The `scaling-jax` command: parse, call, print. No logic lives here.

Exit status 0 done, 1 the work failed, 2 the request was wrong.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from scaling_jax.errors import RequestError, WorkError

Json = Annotated[bool, arg(help="Print one JSON object and nothing else on standard output.")]
Source = Annotated[Positional[str], arg(metavar="SOURCE", help="A study folder, CSV or Parquet.")]


def run(
    experiment: Annotated[Positional[Path], arg(metavar="EXPERIMENT.py")],
    out: Annotated[Path, arg(help="Folder of the records.")] = Path("runs"),
    dry_run: Annotated[bool, arg(help="Show what would be trained, and train nothing.")] = False,
    set: Annotated[
        UseAppendAction[tuple[str, ...]],
        arg(metavar="KEY=VALUE", help="A dotted config field, in every run. May be repeated."),
    ] = (),
    json: Json = False,
) -> int:
    """Train what is not finished of the study that an experiment file declares."""
    from scaling_jax.study import load_study

    study = load_study(experiment).override(_pairs(set, "--set"))
    from scaling_jax.data.corpus import prepare
    from scaling_jax.executors.local import run_study
    from scaling_jax.executors.placement import plan_cohorts
    from scaling_jax.executors.progress import StudyProgress
    from scaling_jax.executors.startup import start_jax
    from scaling_jax.executors.stopping import StopOnSignal
    from scaling_jax.records.files import as_path

    start_jax()
    messages = Console(stderr=json)
    source = next(iter(study.runs.values())).data.source
    corpus = prepare(source)
    if dry_run:
        return _dry_run(plan_cohorts(study, corpus), corpus, json)
    with StopOnSignal() as stop, StudyProgress(messages) as progress:
        statuses = run_study(study, as_path(out), corpus, progress, stop)
    tally = Counter(statuses.values())
    folder = out / study.name
    if json:
        _print_json({"study": study.name, "folder": str(folder), "runs": statuses})
    else:
        states = ", ".join(f"{count} {status}" for status, count in tally.items())
        messages.print(f"{folder}: {states}", highlight=False, soft_wrap=True)
    if stop() is not None:
        raise WorkError(f"{stop()}; the same command goes on with what is not finished")
    return 0 if tally["done"] == len(statuses) else 1


def status(
    folder: Annotated[Positional[str], arg(metavar="DIR")] = "runs",
    json: Json = False,
) -> int:
    """Show what is done, running, failed and left."""
    from scaling_jax.records.store import load, overview

    frame = overview(load(folder))
    if json:
        _print_json({"runs": frame.to_dicts()})
    else:
        _print_table(frame.columns, frame.rows())
    return 0


def fit(
    source: Source,
    law: Annotated[str, arg(help="The law's slug.")] = "l_ns",
    columns: Annotated[
        str, arg(metavar="N=...,S=...,loss=...", help="The table's names of the law's columns.")
    ] = "",
    critical_batch: Annotated[
        str,
        arg(
            metavar="B_star=...,alpha_B=...",
            help="Constants of B_crit(L): steps then become S_min (Kaplan eq. 5.4).",
        ),
    ] = "",
    level: Annotated[float, arg(help="Level of the intervals.")] = 0.9,
    bootstrap: Annotated[int, arg(metavar="K", help="Resamples of whole runs.")] = 500,
    json: Json = False,
) -> int:
    """Fit a scaling law, with intervals and the panel that says what it is worth."""
    laws, records = _analysis(source)
    try:
        fitted = laws.fit(
            records,
            law=law,
            columns=_pairs(columns.split(","), "--columns") if columns else None,
            critical_batch=_numbers(critical_batch, "--critical-batch"),
            level=level,
            resamples=bootstrap,
        )
    except WorkError as error:
        if json:
            _print_json({"law": law, "refused": str(error), "flags": ["refused"]})
        raise
    if json:
        _print_json(fitted.to_json())
    else:
        print(laws.describe(fitted))
    return 0


def noise(
    source: Source,
    level: Annotated[float, arg(help="Level of the intervals.")] = 0.9,
    json: Json = False,
) -> int:
    """Show the gradient noise scale against loss, with intervals."""
    laws, records = _analysis(source)
    frame = laws.noise_scale(records, level=level)
    if json:
        _print_json({"level": level, "noise_scale": frame.to_dicts()})
    else:
        print(laws.describe_noise(frame))
    return 0


def report(
    folder: Annotated[Positional[Path], arg(metavar="DIR", help="A study folder.")],
    json: Json = False,
) -> int:
    """Fit, draw the figures and write the HTML page, into the study's folder."""
    laws, records = _analysis(str(folder))
    from scaling_jax.report.study_report import write_study_report

    written = write_study_report(records, folder / "report")
    if json:
        _print_json({"report": str(written.page), "refused": written.refusal})
    else:
        if written.fit is not None:
            print(laws.describe(written.fit), end="\n\n")
        print(f"Report: {written.page}")
    if written.refusal is not None:
        raise WorkError(written.refusal)
    return 0


COMMANDS = {"run": run, "status": status, "fit": fit, "noise": noise, "report": report}


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


def _analysis(source: str) -> tuple[Any, Any]:
    # The accelerator is left to a study that may be running beside this command.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from scaling_jax import laws, records

    return laws, records.load(source)


def _dry_run(cohorts: list, corpus: Any, as_json: bool) -> int:
    from scaling_jax.executors.dry_run import COLUMNS, describe_runs

    print("timing the smallest and the largest shape", file=sys.stderr)
    rows = describe_runs(cohorts, corpus)
    if as_json:
        _print_json({"runs": rows, "seconds": sum(row["seconds"] for row in rows)})
        return 0
    _print_table(COLUMNS, [tuple(row[name] for name in COLUMNS) for row in rows])
    print(f"about {sum(row['seconds'] for row in rows):,.0f} s of training, compilation apart")
    return 0


def _pairs(words: Any, option: str) -> dict[str, str]:
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.strip():
            raise RequestError(f"{option} takes KEY=VALUE, not {word!r}")
        pairs[key.strip()] = value.strip()
    return pairs


def _numbers(text: str, option: str) -> dict[str, float] | None:
    if not text:
        return None
    try:
        return {key: float(value) for key, value in _pairs(text.split(","), option).items()}
    except ValueError:
        raise RequestError(
            f"{option} takes numbers, as in {option} B_star=2e8,alpha_B=0.21, not {text!r}"
        ) from None


def _print_json(doc: dict[str, Any]) -> None:
    print(json.dumps(doc, allow_nan=False))


def _print_table(columns: Any, rows: Any) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    rows = [[_cell(value) for value in row] for row in rows]
    for i, name in enumerate(columns):
        numeric = all(row[i][:1].isdigit() or row[i] in ("", "-") for row in rows)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=max(Console().width, 200)).print(table)  # a long line wraps, and is not cut


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())
