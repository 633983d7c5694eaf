"""One flat table of curve points under the names the laws use, whatever a table calls them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from scaling_jax.errors import RequestError, nearest
from scaling_jax.records.schema import CURVE_COLUMNS, RUN_COLUMNS

if TYPE_CHECKING:
    from scaling_jax.records.store import Records

# The columns that a role is read from, the first that is there; a role that is not here is the
# schema's column of the same name.
DEFAULTS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in (*RUN_COLUMNS, *CURVE_COLUMNS)},
    "run": ("run_id",),
    "N": ("params_non_embedding", "params_total", "params", "N"),
    "S": ("step", "S"),
    "D": ("tokens", "D"),
    "U": ("unique_tokens", "U"),
    "C": ("flops_6n", "flops", "C"),
    "budget": ("flops_budget", "budget"),
    "B": ("batch_tokens", "B"),
    "L": ("L",),
    "B_crit": ("B_crit",),
    "loss": ("val_loss", "loss", "test_loss"),
    "lr": ("lr_peak",),
    "weight": ("weight",),
}
_OF_THE_SCHEMA = {*RUN_COLUMNS, *CURVE_COLUMNS} - {"lr"}
CONVENTIONS = ("params_non_embedding", "params_total")
# Means over a window, and so placed in the middle of it; everything else is measured after `S`.
WINDOW_MEANS = ("train_loss",)
# Roles that are measured or counted, and so are numbers.
_NUMBERS = ("N", "N_other", "S", "D", "U", "C", "B", "L", "B_crit", "loss", "lr", "weight")


@dataclass(frozen=True)
class Table:
    """`points`: one row a measured loss, columns by role (`run`, `N`, `S`, `loss`, ...).

    `sources` gives the column behind each role present; a role that is absent, or null
    throughout, is not in it. `N_other` is N in the other convention, where there is one.
    `left_out` counts the rows of each run (run, n_points) that the condition took out.
    """

    points: pl.DataFrame
    sources: dict[str, str]
    left_out: pl.DataFrame

    def missing(self, role: str) -> str | None:
        """`column x missing`, or None when the role is there."""
        return None if role in self.sources else f"column {DEFAULTS[role][0]} missing"


def flat_table(
    records: Records,
    columns: Mapping[str, str] | None = None,
    required: Sequence[str] = ("run", "N", "S", "loss"),
    where: str | None = None,
    first: Mapping[str, str] | None = None,
) -> Table:
    """Both tables of `records` as one, `columns` mapping a role onto a column of the source.

    `where` is a condition in SQL on the columns of the source; `first` names columns that are
    tried before the usual ones of their roles. Where N and D are `required` and no column has D,
    it is C / 6 N, or budget / 6 N; a C that is `required` and has no column is 6 N D. Windows of a
    run without an evaluation are left out, and a window mean is placed at the geometric middle of
    its steps. Raises `RequestError` for an unknown
    role, for a column that is not there, with the nearest one, and for a condition that cannot be
    read or leaves nothing.
    """
    columns, first = dict(columns or {}), dict(first or {})
    wide = _joined(records)
    known = (*DEFAULTS, *(role for role in required if role not in DEFAULTS))
    for role, column in columns.items():
        if role not in known:
            roles = [name for name in known if name not in _OF_THE_SCHEMA]
            raise RequestError(f"No role {role!r} for a column.{nearest(role, roles)}")
        if column not in wide.columns:
            raise RequestError(
                f"No column {column!r} for {role} in {records.source}."
                f"{nearest(column, _holding(wide))}"
            )
    left_out = pl.DataFrame(schema={"run": pl.String, "n_points": pl.UInt32})
    if where is not None:
        kept = condition(wide, where, records.source)
        left_out = wide.filter(~kept).group_by(pl.col("run_id").cast(pl.String).alias("run")).agg(
            pl.len().alias("n_points")
        )  # fmt: skip
        wide = wide.filter(kept)
    sources = _sources(wide, columns, first)
    if {"N", "D"} <= set(required) and "D" not in sources and "D" not in first:
        wide, sources = _with_tokens(wide, sources)
    if "C" in required and "C" not in sources:
        wide, sources = _with_compute(wide, sources)
    for role in required:
        if role not in sources:
            wanted = columns.get(role) or DEFAULTS.get(role, (role,))[0]
            raise RequestError(
                f"No column {wanted!r} for {role} in {records.source} holds a value; "
                f"name the column with {role}=COLUMN.{nearest(wanted, _holding(wide))}"
            )
    points = wide.select(pl.col(column).alias(role) for role, column in sources.items())
    points = _one_seed(_numbers(points, sources, records.source))
    if "loss" in sources and "step_start" in sources:
        points = points.filter(pl.col("loss").is_not_null() | pl.col("step_start").is_null())
        if sources["loss"] in WINDOW_MEANS and "S" in sources:
            points = points.with_columns(S=((pl.col("step_start") + 1) * pl.col("S")).sqrt())
    order = [role for role in ("run", "S", "D") if role in sources]
    return Table(points.sort(order, maintain_order=True), sources, left_out)


def _sources(
    wide: pl.DataFrame, columns: Mapping[str, str], first: Mapping[str, str]
) -> dict[str, str]:
    def holds(column: str) -> bool:
        return column in wide.columns and wide[column].null_count() < wide.height

    sources = {}
    for role in (*DEFAULTS, *(role for role in columns if role not in DEFAULTS)):
        tried = (columns[role],) if role in columns else DEFAULTS.get(role, ())
        if role in first and role not in columns:
            tried = (first[role], *tried)
        if found := next((column for column in tried if holds(column)), None):
            sources[role] = found
    if sources.get("N") in CONVENTIONS:
        other = CONVENTIONS[1 - CONVENTIONS.index(sources["N"])]
        if holds(other):
            sources["N_other"] = other
    return sources


def _with_tokens(
    wide: pl.DataFrame, sources: dict[str, str]
) -> tuple[pl.DataFrame, dict[str, str]]:
    """D made of compute, for a table that counts FLOPs and no tokens."""
    compute = next((sources[role] for role in ("C", "budget") if role in sources), None)
    if compute is None or "N" not in sources:
        return wide, sources
    size = sources["N"]
    if not (wide.schema[compute].is_numeric() and wide.schema[size].is_numeric()):
        return wide, sources
    made = f"{compute} / (6 {size})"
    return wide.with_columns((pl.col(compute) / (6.0 * pl.col(size))).alias(made)), {
        **sources,
        "D": made,
    }


def _with_compute(
    wide: pl.DataFrame, sources: dict[str, str]
) -> tuple[pl.DataFrame, dict[str, str]]:
    """C made of sizes and tokens, for a table that counts no FLOPs."""
    size, tokens = sources.get("N"), sources.get("D")
    if size is None or tokens is None:
        return wide, sources
    if not (wide.schema[size].is_numeric() and wide.schema[tokens].is_numeric()):
        return wide, sources
    made = f"6 {size} {tokens}"
    return wide.with_columns((6.0 * pl.col(size) * pl.col(tokens)).alias(made)), {
        **sources,
        "C": made,
    }


def condition(wide: pl.DataFrame, where: str, source: str) -> pl.Series:
    """Which rows a condition in SQL keeps; `RequestError` where it has a fault or keeps none."""
    try:
        kept = wide.select(pl.sql_expr(where).alias("kept"))["kept"]
    except pl.exceptions.ColumnNotFoundError as error:
        name = str(error).split('"')[1] if '"' in str(error) else where
        if name not in where:  # made by a query inside the condition
            raise RequestError(
                f"--where {where!r} holds a query; it is a condition alone"
            ) from None
        raise RequestError(
            f"--where names {name!r}, which {source} has not.{nearest(name, _holding(wide))}"
        ) from None
    except pl.exceptions.PolarsError as error:
        said = str(error).splitlines()[0]
        raise RequestError(
            f"--where {where!r} cannot be read ({said}); it is a condition in SQL, as in "
            "--where \"n_layer > 1 AND optimizer = 'adamw'\""
        ) from None
    if kept.dtype != pl.Boolean:
        raise RequestError(f"--where {where!r} is no condition: it gives {kept.dtype}")
    if len(kept) != wide.height:
        raise RequestError(f"--where {where!r} is no condition on rows: it has one answer")
    kept = kept.fill_null(False)
    if not kept.any():
        raise RequestError(f"--where {where!r} leaves no row of {source}")
    return kept


def _holding(wide: pl.DataFrame) -> list[str]:
    """Columns to propose: those with a value, but not those that every table is given."""
    given = ("study", "name", "status", "attempt")
    return [
        name for name in wide.columns if name not in given and wide[name].null_count() < wide.height
    ]


def _joined(records: Records) -> pl.DataFrame:
    runs, curves = records.runs, records.curves
    shared = [name for name in runs.columns if name in curves.columns and name != "run_id"]
    wide = curves.join(runs, on="run_id", how="left", suffix="_of_run", maintain_order="left")
    filled = [pl.coalesce(name, f"{name}_of_run").alias(name) for name in shared]
    return wide.with_columns(filled).drop(f"{name}_of_run" for name in shared)


def _one_seed(points: pl.DataFrame) -> pl.DataFrame:
    """One number for all that a run draws, where the seed of its weights does not tell them apart.

    Runs of one seed that differ in the order or the subset of their data are replicates, as runs of
    several seeds are.
    """
    seeds = [name for name in ("seed", "data_seed", "subset_seed") if name in points.columns]
    drawn = points.select(seeds).unique()
    if "seed" not in seeds or drawn.height == drawn["seed"].n_unique():
        return points
    return points.with_columns(seed=pl.struct(seeds).rank("dense").cast(pl.Int64) - 1)


def _example(values: pl.Series) -> str:
    """The first value that is no number, or the type of all of them."""
    if values.dtype != pl.String:
        return f" holds {values.dtype}"
    odd = values.filter(values.is_not_null() & values.cast(pl.Float64, strict=False).is_null())
    return f", as in {odd[0]!r}" if len(odd) else ""


def _numbers(points: pl.DataFrame, sources: Mapping[str, str], source: str) -> pl.DataFrame:
    roles = [name for name in _NUMBERS if name in sources]
    for role in roles:
        if not points.schema[role].is_numeric():
            raise RequestError(
                f"Not numbers in {source}: column {sources[role]} ({role}){_example(points[role])}"
            )
    return points.with_columns(
        pl.col("run").cast(pl.String), *(pl.col(name).cast(pl.Float64) for name in roles)
    )
