"""Tables of measured numbers: as JSON, on a terminal, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from tools.benchmarks.timing import Interval

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


@dataclass(frozen=True)
class Table:
    """Rows of values by column; `units` has every column in order, with "" where there is none.

    A value is a word, a number, an `Interval`, or None where there is nothing to say.
    """

    title: str
    units: Mapping[str, str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data; an interval as its median, low and high."""
        rows = [
            {
                name: value._asdict() if isinstance(value, Interval) else value
                for name, value in row.items()
            }
            for row in self.rows
        ]
        return {"title": self.title, "units": dict(self.units), "rows": rows, "note": self.note}

    @classmethod
    def from_json(cls, doc: Mapping[str, Any]) -> Table:
        """The table that `to_json` wrote."""
        rows = [
            {
                name: Interval(**value) if isinstance(value, dict) else value
                for name, value in row.items()
            }
            for row in doc["rows"]
        ]
        return cls(doc["title"], doc["units"], rows, doc["note"])

    def headers(self) -> list[str]:
        """Each column with its unit."""
        return [f"{name} ({unit})" if unit else name for name, unit in self.units.items()]

    def cells(self) -> list[list[str]]:
        """Each row in words."""
        return [[cell(row.get(name)) for name in self.units] for row in self.rows]


def cell(value: Any) -> str:
    """A value for reading: four digits and a prefix, an interval as `median (low to high)`."""
    if value is None:
        return "-"
    if isinstance(value, Interval):
        return f"{cell(value.median)} ({cell(value.low)} to {cell(value.high)})"
    if isinstance(value, str):
        return value
    for size, prefix in _PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.4g} {prefix}"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def show(table: Table, console: Console) -> None:
    """Prints a table, whole on a narrow terminal too."""
    grid = Grid(box=None, header_style="bold", pad_edge=False)
    for index, header in enumerate(table.headers()):
        grid.add_column(header, justify="right" if index else "left", no_wrap=True)
    for row in table.cells():
        grid.add_row(*row)
    console.print(f"\n{table.title}", style="bold", highlight=False)
    console.print(grid, highlight=False)
    if table.note:
        console.print(table.note, style="dim", highlight=False, soft_wrap=True)


def as_markdown(report: Mapping[str, Any]) -> str:
    """A section of a report that `tools/benchmark` wrote."""
    machine = report["machine"]
    lines = [
        f"## {machine['processor']}, {machine['devices']} {machine['platform']} device(s), "
        f"{report['date'][:10]}",
        "",
        ", ".join(f"{name} {value}" for name, value in machine.items()) + ".",
    ]
    if report["quick"]:
        lines += ["", "**Measured with `--quick`: these numbers mean nothing.**"]
    for name, measure in report["measures"].items():
        lines += ["", f"### {name}"]
        for doc in measure["tables"]:
            lines += ["", *_markdown_table(Table.from_json(doc))]
        if measure["fault"]:
            lines += ["", f"Failed: {measure['fault']}"]
    return "\n".join(lines)


def _markdown_table(table: Table) -> list[str]:
    headers, words = table.headers(), table.cells()
    lines = [f"{table.title}:", "", _row(headers), _row(["---", *["---:"] * (len(headers) - 1)])]
    lines += [_row(row) for row in words]
    return [*lines, "", table.note] if table.note else lines


def _row(words: list[str]) -> str:
    return f"| {' | '.join(word.replace('|', chr(92) + '|') for word in words)} |"
