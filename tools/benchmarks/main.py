"""The command behind `tools/benchmark`: chooses measures, runs each, shows and writes numbers.

Exit status 0 done, 1 some measure failed, 2 the request was wrong.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import tyro
from rich.console import Console
from tyro.conf import FlagCreatePairsOff, Positional, arg

from scaling_jax.errors import RequestError, nearest
from scaling_jax.executors.startup import start_jax
from tools.benchmarks.ceiling import ceiling
from tools.benchmarks.compilation import compilation
from tools.benchmarks.feed import feed
from tools.benchmarks.fitting import fitting
from tools.benchmarks.forecast import forecast, require_tables
from tools.benchmarks.lanes import lanes
from tools.benchmarks.mfu import mfu
from tools.benchmarks.noise import noise
from tools.benchmarks.speed import speed
from tools.benchmarks.studying import studying
from tools.benchmarks.tables import Table, as_markdown, show
from tools.benchmarks.timing import Effort

OUT = Path(__file__).parents[2] / "results" / "benchmark.json"


class Measure(NamedTuple):
    """What yields tables, and whether it is measured on a CPU without being named.

    What is `of_tables` takes the folder of `--tables` too, and is not measured without.
    """

    tables: Callable[..., Iterator[Table]]
    suits_cpu: bool = True
    of_tables: bool = False


MEASURES = {
    "speed": Measure(speed),
    "ceiling": Measure(ceiling),
    "mfu": Measure(mfu),
    "noise": Measure(noise),
    "lanes": Measure(lanes),
    "feed": Measure(feed),
    "compile": Measure(compilation),
    "fit": Measure(fitting),
    "forecast": Measure(forecast, of_tables=True),
    "study": Measure(studying, suits_cpu=False),
}


def benchmark(
    names: Annotated[
        Positional[tuple[str, ...]],
        arg(metavar="[NAME ...]", help=f"Of {', '.join(MEASURES)}; all that suit the platform."),
    ] = (),
    out: Annotated[Path, arg(metavar="FILE.json", help="Where the numbers are written.")] = OUT,
    quick: Annotated[
        bool, arg(help="Few repeats: does it work? The numbers mean nothing.")
    ] = False,
    tables: Annotated[
        Path | None,
        arg(metavar="DIR", help="The public curves of forecast: gemstones.csv and others."),
    ] = None,
    markdown: Annotated[
        Path | None, arg(metavar="FILE.json", help="Measure nothing; show this as Markdown.")
    ] = None,
) -> int:
    """Measure how fast training is on this machine, which had better be idle otherwise."""
    if markdown is not None:
        return _print_markdown(markdown)
    for name in names:
        if name not in MEASURES:
            raise RequestError(f"No measure {name!r}.{nearest(name, MEASURES)}")
        if MEASURES[name].of_tables and tables is None:
            raise RequestError(f"{name} is measured on public tables: --tables DIR is their folder")
    if tables is not None:
        require_tables(tables)
    _open_out(out)
    start_jax()
    jax.config.update("jax_enable_compilation_cache", False)  # a cached program compiles in no time
    cpu = jax.default_backend() == "cpu"
    chosen = names or tuple(
        name
        for name, measure in MEASURES.items()
        if (measure.suits_cpu or not cpu) and (tables is not None or not measure.of_tables)
    )
    return _measure(dict.fromkeys(chosen), out, Effort(quick), tables)


def _measure(names: dict[str, None], out: Path, effort: Effort, folder: Path | None) -> int:
    console = Console(width=max(Console().width, 300))  # a long line wraps, and is not cut
    report: dict[str, Any] = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "quick": effort.quick,
        "machine": _machine(),
        "measures": {},
    }
    for name in names:
        began = time.perf_counter()
        tables, fault = [], None
        try:
            measure = MEASURES[name]
            for table in measure.tables(effort, *([folder] if measure.of_tables else [])):
                tables.append(table.to_json())
                show(table, console)
        except Exception as error:  # the others are measured all the same
            fault = f"{type(error).__name__}: {error}"
            console.print(f"\n{name} failed: {fault}", style="red", markup=False, soft_wrap=True)
        took = time.perf_counter() - began
        report["measures"][name] = {"seconds": took, "tables": tables, "fault": fault}
        out.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    console.print(f"\n{out}", highlight=False, soft_wrap=True)
    return int(any(measure["fault"] for measure in report["measures"].values()))


def _machine() -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "processor": _cpu_model() if device.platform == "cpu" else device.device_kind,
        "platform": device.platform,
        "devices": len(jax.devices()),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "jaxlib", "flax")},
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _open_out(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.touch()
    except OSError as error:
        raise RequestError(f"--out {out}: {error.strerror}") from None


def _print_markdown(path: Path) -> int:
    try:
        report = json.loads(path.read_text())
        text = as_markdown(report)
    except OSError as error:
        raise RequestError(f"--markdown {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise RequestError(f"--markdown {path} is not what tools/benchmark writes") from None
    print(text)
    return 0


def main(argv: list[str] | None = None) -> int:
    """One call; every fault a user can cause ends in a message and a status."""
    try:
        return tyro.cli(benchmark, prog="tools/benchmark", args=argv, config=(FlagCreatePairsOff,))
    except RequestError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("benchmark: interrupted", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
