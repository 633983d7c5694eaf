"""What the commands share: options of several, words to values, values to standard output."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from scaling_jax.errors import RequestError

Json = Annotated[bool, arg(help="Print one JSON object and nothing else on standard output.")]
Source = Annotated[Positional[str], arg(metavar="SOURCE", help="A study folder, CSV or Parquet.")]

Where = Annotated[
    str | None,
    arg(metavar="EXPR", help="Rows to use, a condition in SQL on the table's columns."),
]
Level = Annotated[float, arg(help="Level of the intervals.")]
Plot = Annotated[Path | None, arg(metavar="FILE.svg", help="Draw the result; .svg or .png.")]


def pairs(words: Any, option: str) -> dict[str, str]:
    """KEY=VALUE words as a dictionary; `RequestError` for another word and for a key twice."""
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.strip():
            raise RequestError(f"{option} takes KEY=VALUE, not {word!r}")
        if key.strip() in found:
            raise RequestError(f"{option} gives {key.strip()!r} twice")
        found[key.strip()] = value.strip()
    return found


def roles(text: str) -> dict[str, str] | None:
    """The words of --columns: role to column, None where there are none."""
    return pairs(text.split(","), "--columns") if text else None


def constants(text: str, option: str) -> dict[str, float] | None:
    """NAME=NUMBER,... as a dictionary, None where there is none."""
    if not text:
        return None
    try:
        return {key: float(value) for key, value in pairs(text.split(","), option).items()}
    except ValueError:
        raise RequestError(
            f"{option} takes numbers, as in NAME=0.21,NAME=2e8, not {text!r}"
        ) from None


def numbers(text: str, option: str) -> list[float] | None:
    """NUMBER,... as a list, None where there is none."""
    if not text:
        return None
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = [math.nan]
    if not all(map(math.isfinite, found)):
        raise RequestError(f"{option} takes numbers, as in 3.2,3.4, not {text!r}")
    return found


def print_json(doc: dict[str, Any]) -> None:
    """One object on one line; a NaN is an error of the program."""
    print(json.dumps(doc, allow_nan=False))


def print_table(columns: Any, rows: Any) -> None:
    """A table whose long lines wrap, and are not cut."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    rows = [[_cell(value) for value in row] for row in rows]
    for i, name in enumerate(columns):
        numeric = all(row[i][:1].isdigit() or row[i] in ("", "-") for row in rows)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=max(Console().width, 200)).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def analysis(source: str) -> tuple[Any, Any]:
    """The package of laws and the records of a source, with the accelerator left alone."""
    leave_the_accelerator()
    from scaling_jax import laws, records
    from scaling_jax.cache import keep_compiled

    keep_compiled()
    return laws, records.load(source)


def leave_the_accelerator() -> None:
    """Keep this process on the CPU: a study may be running beside it."""
    os.environ["JAX_PLATFORMS"] = "cpu"


def require_picture(path: Path | None) -> None:
    """Raises `RequestError` for a --plot of another kind or a folder, before all computing."""
    if path is not None and path.suffix not in (".svg", ".png"):
        raise RequestError(f"--plot draws .svg or .png, not {path.name!r}")
    if path is not None and path.is_dir():
        raise RequestError(f"--plot names a file, and {path} is a folder")


def draw_picture(figure: Any, path: Path) -> None:
    """Write a figure as what the name of its file says."""
    from scaling_jax.records.files import as_path, write_atomic
    from scaling_jax.report.figures import render

    picture = render(figure, "svg" if path.suffix == ".svg" else "png")
    write_atomic(as_path(path), picture)
