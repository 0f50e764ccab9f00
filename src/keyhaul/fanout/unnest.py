"""From a column with JSON arrays or lists to one row for each element; whole columns at a time.

DuckDB parses JSON, but would turn 1.10 into 1.1 and 0.12345678901234567890 into a double. So each number is
made a string first, behind a character that does not occur in the chunk, and comes out as it was written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import duckdb
import polars as pl

from keyhaul.errors import ChunkError, safe_message
from keyhaul.model import RECORD
from keyhaul.quoting import quote_text
from keyhaul.staging.rules import CHUNK, register

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyhaul.config.tablestep import Unnest

VALUE: Final = "_keyhaul_value"

_MARKS: Final = tuple(chr(code) for code in range(0xE000, 0xE100))
"""Characters of the private use area: text that has all 256 of them is not met."""

_STRING: Final = r'"(?:[^"\\]|\\.)*"'
_NUMBER: Final = r"-?[0-9][0-9.eE+-]*"
_TOKEN: Final = rf"({_STRING})|({_NUMBER})"
"""Strings are matched whole, so that what looks like a number in one is not found."""

_LENIENT: Final = r"(?i),\s*[\]}]|nan|inf"
"""What DuckDB takes for JSON and PostgreSQL does not, looked for outside strings."""

REJECTED: Final = pl.Schema({RECORD: pl.Int64(), "message": pl.String()})


def element_schema(unnest: Unnest, dtype: pl.DataType) -> Mapping[str, pl.DataType]:
    """Return the columns that an element adds to its record; fields of JSON are text.

    Raises:
        TypeError: a column of this type holds no elements, or has no fields.
    """
    numbered = {unnest.number: pl.Int64()}
    if isinstance(dtype, pl.String):
        return {**numbered, **dict.fromkeys(unnest.names or (unnest.prefix,), pl.String())}
    if isinstance(dtype, pl.List) and not unnest.fields:
        inner = dtype.inner
        return {**numbered, unnest.prefix: inner if isinstance(inner, pl.DataType) else inner()}
    what = "fields of JSON objects" if unnest.fields else "a JSON array or a list"
    msg = f"its type is {dtype}, expected {what}"
    raise TypeError(msg)


def unnest_rows(
    con: duckdb.DuckDBPyConnection, frame: pl.DataFrame, unnest: Unnest
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return one row for each element, and the records whose value cannot be taken apart.

    Args:
        con: the worker's.
        frame: records, with `RECORD`.
        unnest: what to take apart.

    Returns:
        The record's columns and those of `element_schema`, in the order of records and elements: a JSON
        string's text, a number, true or false as written, a nested value as JSON; NULL for null and for
        what is missing; of a repeated name the first. A NULL or empty array gives no row. Then the rejected
        records as `RECORD` and ``message``: no JSON, no array, or an element that is no object.
    """
    if isinstance(frame.schema[unnest.column], pl.List):
        return _from_lists(frame, unnest), pl.DataFrame(schema=REJECTED)
    values = frame.select(RECORD, pl.col(unnest.column).alias(VALUE)).drop_nulls(VALUE)
    try:
        values, rejected = _arrays(con, values)
        elements = _elements(con, values, unnest)
    except duckdb.Error as error:
        msg = f"unnest {unnest.column}: {safe_message(error)}"
        raise ChunkError(msg) from error
    if unnest.fields:
        strange = elements.filter(~pl.col("whole")).select(RECORD).unique(maintain_order=True)
        message = pl.lit(f"{unnest.column}: an element is no JSON object")
        rejected = pl.concat([rejected, strange.with_columns(message.alias("message"))])
    rows = frame.join(elements.drop("whole"), on=RECORD, how="inner", maintain_order="right")
    return rows.filter(~pl.col(RECORD).is_in(rejected[RECORD].implode())), rejected


def _from_lists(frame: pl.DataFrame, unnest: Unnest) -> pl.DataFrame:
    element = pl.col(unnest.column)
    filled = frame.filter(element.list.len() > 0)
    numbers = pl.int_ranges(1, element.list.len() + 1, dtype=pl.Int64)
    both = filled.with_columns(element.alias(unnest.prefix), numbers.alias(unnest.number))
    return both.explode(unnest.prefix, unnest.number)


def _arrays(con: duckdb.DuckDBPyConnection, values: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Keep the values that are JSON arrays; the others are rejected."""
    kinds = query(
        con,
        f"select {RECORD}, case when json_valid({VALUE}) then json_type({VALUE}) end as kind from {CHUNK}",
        values,
    )
    bare = values[VALUE].str.replace_all(_STRING, '""')
    kinds = values.join(kinds, on=RECORD, how="left", maintain_order="left").with_columns(
        pl.when(bare.str.contains(_LENIENT)).then(None).otherwise(pl.col("kind")).alias("kind")
    )
    wrong = kinds.filter(pl.col("kind").ne_missing("ARRAY"))
    # The JSON value null is no array, and has no elements: as NULL.
    none = pl.col("kind").eq_missing("NULL")
    message = pl.when(pl.col("kind").is_null()).then(pl.lit("it is no JSON")).otherwise(pl.lit("it is no JSON array"))
    rejected = wrong.filter(~none).select(RECORD, message.alias("message"))
    return kinds.filter(pl.col("kind").eq_missing("ARRAY")).select(RECORD, VALUE), rejected


def _elements(con: duckdb.DuckDBPyConnection, values: pl.DataFrame, unnest: Unnest) -> pl.DataFrame:
    mark, end = _marks(values[VALUE])
    between = (
        pl.col(VALUE).str.replace_all(_TOKEN, f"${{1}}{mark}${{2}}{end}").str.replace_all(mark + end, "", literal=True)
    )
    marked = values.with_columns(
        between.str.replace_all(mark, '"' + mark, literal=True).str.replace_all(end, '"', literal=True)
    )
    pointers = ["/" + name.replace("~", "~0").replace("/", "~1") for name in unnest.fields]
    names = list(unnest.names) or [unnest.prefix]
    listed = ", ".join(quote_text(pointer) for pointer in pointers)
    fields = f"json_extract_string(e, [{listed}])" if pointers else "[e ->> '$']"
    found = query(
        con,
        f"select {RECORD}, n, json_type(e) = 'OBJECT' as whole, {fields} as f from (select {RECORD}, unnest(l) as e,"
        f" generate_subscripts(l, 1) as n from (select {RECORD}, json_extract({VALUE}, '$[*]') as l from {CHUNK}))"
        f" order by {RECORD}, n",
        marked,
    )
    as_written = [
        pl.col("f").list.get(index, null_on_oob=True).cast(pl.String)
        .str.replace_all(f'"{mark}({_NUMBER})"', "${1}").str.strip_prefix(mark).alias(name)
        for index, name in enumerate(names)
    ]  # fmt: skip
    return found.select(RECORD, "whole", pl.col("n").cast(pl.Int64).alias(unnest.number), *as_written)


def _marks(values: pl.Series) -> tuple[str, str]:
    """Return two characters that no value has, as themselves or escaped."""
    free = (m for m in _MARKS if not values.str.contains(rf"(?i){m}|\\u{ord(m):04x}").any())
    mark, end = next(free, None), next(free, None)
    if mark is not None and end is not None:
        return mark, end
    raise ChunkError("unnest: the chunk's JSON has every character of U+E000 to U+E0FF. Take smaller chunks")


def query(con: duckdb.DuckDBPyConnection, text: str, frame: pl.DataFrame) -> pl.DataFrame:
    """Run a query over a frame, which it calls `CHUNK`; its `RECORD` is int64.

    Raises:
        duckdb.Error: as DuckDB raises it.
    """
    register(con, frame)
    try:
        result: Any = con.sql(text).to_arrow_table()
    finally:
        con.unregister(CHUNK)
    table = pl.from_arrow(result)
    if not isinstance(table, pl.DataFrame):  # pragma: no cover - a table never becomes a series
        raise ChunkError("unnest: DuckDB returned no table")
    return table.with_columns(pl.col(RECORD).cast(pl.Int64))
