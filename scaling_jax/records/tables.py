"""Bytes of a table to a polars frame with the types of the schema, or one clear message."""

from __future__ import annotations

import csv
import io

import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from scaling_jax.errors import RequestError
from scaling_jax.records.schema import CURVE_COLUMNS, RUN_COLUMNS

DTYPES = {int: pl.Int64, float: pl.Float64, str: pl.String, bool: pl.Boolean}
_NULLS = ["", "NA", "N/A", "n/a", "null", "NULL", "None"]
_NOUNS = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}
_WORDS = {"true": True, "false": False, "1": True, "0": False}
_AMOUNTS = ("tokens", "unique_tokens", "batch_tokens", "params", "flops", "steps")
_Table = dict[str, type]


def read_parquet(data: bytes, source: str) -> pl.DataFrame:
    """The Parquet table; raises `RequestError` where it is cut or no Parquet."""
    try:
        frame = pl.from_arrow(pq.read_table(pa.BufferReader(data)))
    except (pa.ArrowException, OSError, pl.exceptions.PolarsError):
        raise RequestError(f"{source} is cut, or no Parquet table.") from None
    assert isinstance(frame, pl.DataFrame)
    return frame


def read_csv(data: bytes, source: str) -> pl.DataFrame:
    """The comma-separated table, every column as text and empty fields null.

    Raises `RequestError` where a row is cut. A cut between two rows, or inside the last value,
    cannot be seen.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RequestError(f"{source} is not text in UTF-8, so no CSV table.") from None
    text = text.lstrip("\r\n")
    try:
        header = next(csv.reader(io.StringIO(text)), [])
    except csv.Error:
        raise RequestError(f"{source} is no CSV table.") from None
    names = [name.strip() for name in header]
    if not names:
        raise RequestError(f"{source} is empty.")
    if len(names) == 1 and (mark := next((m for m in (";", "\t") if m in names[0]), None)):
        raise RequestError(f"{source} is separated by {mark!r}: write it with commas.")
    if again := sorted({name for name in names if names.count(name) > 1}):
        raise RequestError(f"{source} has two columns named {again[0]!r}.")
    if data.count(b'"') % 2:
        raise RequestError(f"{source} is cut: a quoted value does not end.")
    try:
        table = pyarrow.csv.read_csv(
            io.BytesIO(text.encode()),
            read_options=pyarrow.csv.ReadOptions(block_size=len(data) + 1),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()),
                strings_can_be_null=True,
                null_values=_NULLS,
            ),
        )
    except pa.ArrowInvalid as error:
        fault = str(error).splitlines()[0].removeprefix("CSV parse error: ")
        raise RequestError(f"{source} is cut, or no CSV table: {fault}.") from None
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame.rename(dict(zip(header, names, strict=True)))


def typed(frame: pl.DataFrame, columns: _Table, source: str, foreign: bool = False) -> pl.DataFrame:
    """The frame with `columns` first, of their types and null where absent, and the rest kept.

    In a `foreign` table amounts (tokens, parameters, steps of a run) may have been computed, and
    so be no whole numbers: they stay floats. Raises `RequestError` naming the column, and the row,
    that holds something else.
    """
    known = [
        as_type(frame[name], _kind(frame[name], kind, foreign), source)
        if name in frame.columns
        else pl.Series(name, [None] * frame.height, DTYPES[kind])
        for name, kind in columns.items()
    ]
    return pl.DataFrame(known + [frame[name] for name in frame.columns if name not in columns])


def typed_flat(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """The columns there are, with the types of both tables; other text as numbers where it is."""
    kinds: _Table = RUN_COLUMNS | CURVE_COLUMNS
    series = []
    for column in frame.get_columns():
        kind = kinds.get(column.name)
        if kind is None and (column.name == "loss" or column.name.startswith("loss_")):
            kind = float
        kind = kind and _kind(column, kind, foreign=True)
        series.append(as_type(column, kind, source) if kind else _guessed(column))
    return pl.DataFrame(series)


def _kind(series: pl.Series, kind: type, foreign: bool) -> type:
    if kind is not int or not foreign or not series.name.startswith(_AMOUNTS):
        return kind
    try:
        number = _cast(series, float)
    except pl.exceptions.PolarsError:
        return kind
    whole = (number == number.floor()) & (number.abs() < 2**63)
    return int if whole.fill_null(True).all() else float


def as_type(series: pl.Series, kind: type, source: str) -> pl.Series:
    """The series as int, float, str or bool, without loss; raises `RequestError`."""
    if series.dtype == DTYPES[kind]:
        return series
    try:
        result = _cast(series, kind)
    except pl.exceptions.PolarsError:
        raise RequestError(
            f"{source}: column {series.name!r} holds {series.dtype}, where {_NOUNS[kind]} is due."
        ) from None
    lost = (result.is_null() & series.is_not_null()).arg_true()
    if len(lost):
        raise RequestError(
            f"{source}: column {series.name!r} holds {series[lost[0]]!r} in row {lost[0] + 1}, "
            f"where {_NOUNS[kind]} is due."
        )
    return result


def _cast(series: pl.Series, kind: type) -> pl.Series:
    if kind is str:
        return series.cast(pl.String)
    text = series.dtype in (pl.String, pl.Categorical)
    if text:
        series = series.cast(pl.String).str.strip_chars()
    if kind is bool and text:
        return series.str.to_lowercase().replace_strict(_WORDS, default=None)
    if kind is int:
        whole = series.cast(pl.Int64, strict=False)
        if not text and series.dtype.is_integer():
            return whole
        number = series.cast(pl.Float64, strict=False)
        # beyond 2^53 a float names no one integer
        exact = (number == number.floor()) & (number.abs() < 2**53)
        from_float = number.to_frame().select(
            pl.when(exact).then(pl.first()).cast(pl.Int64, strict=False)
        )
        return whole.fill_null(from_float.to_series()) if text else from_float.to_series()
    return series.cast(DTYPES[kind], strict=False)


def _guessed(series: pl.Series) -> pl.Series:
    if series.dtype != pl.String or series.null_count() == len(series):
        return series
    if series.drop_nulls().str.to_lowercase().is_in(["true", "false"]).all():
        return series.str.to_lowercase() == "true"
    for dtype in (pl.Int64, pl.Float64):
        number = series.str.strip_chars().cast(dtype, strict=False)
        if number.null_count() == series.null_count():
            return number
    return series
