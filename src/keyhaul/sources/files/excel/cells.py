"""Cells as texts: what a cell holds, written as its kind's values are read again.

A number is written with as few digits as say it exactly, a whole one without a fraction (a workbook keeps 3 as 3.0); a
date as 2024-02-29, a moment as 2024-02-29 10:00:00.123, a time as 10:30:00, a duration as 30:15:00.
"""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from keyhaul.sources.files.infer import MOMENTS, Inferred, infer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NUMBER: Final = "numbers"
WHOLE: Final = "whole numbers"
TEXT: Final = "texts"
DATE: Final = "dates"
MOMENT: Final = "moments"
TIME: Final = "times"
SPAN: Final = "durations"
TRUTH: Final = "booleans"

EMPTY: Final = "all cells are empty"

_MOST_WHOLE: Final = 2.0**53
_MOST_PLACES: Final = 30


def as_texts(cells: Sequence[Any], kinds: set[str]) -> pl.Series:
    """Return the cells of a column as texts, NULL for empty ones, and add to `kinds` what was there."""
    found = set(map(type, cells))
    made = []
    for kind in _KINDS:
        if kind not in found:
            continue
        values = cells if found == {kind} else [cell if type(cell) is kind else None for cell in cells]
        texts = _KINDS[kind](values, kinds)
        made.append(texts)
    if not made:
        return pl.repeat(None, len(cells), dtype=pl.String, eager=True)
    return made[0] if len(made) == 1 else pl.select(pl.coalesce(made)).to_series()


def _numbers(values: Sequence[Any], kinds: set[str]) -> pl.Series:
    numbers = pl.Series(values, dtype=pl.Float64)
    whole = (numbers == numbers.floor()) & (numbers.abs() < _MOST_WHOLE)
    kinds.add(WHOLE if whole.all() else NUMBER)
    texts = (
        numbers.cast(pl.Int64, strict=False).cast(pl.String).zip_with(whole.fill_null(value=False), _digits(numbers))
    )
    return texts.set(numbers.is_null(), None)


def _digits(numbers: pl.Series) -> pl.Series:
    texts = numbers.cast(pl.String).str.strip_suffix(".0")
    powers = texts.str.contains("e", literal=True).fill_null(value=False)
    if not powers.any():
        return texts
    rows = powers.arg_true()
    return texts.scatter(rows, [_written_out(text) for text in texts.gather(rows)])


def _written_out(text: str) -> str:
    number = Decimal(text)
    return f"{number:f}" if abs(number.adjusted()) < _MOST_PLACES else text


def _texts(values: Sequence[Any], kinds: set[str]) -> pl.Series:
    texts = pl.Series(values, dtype=pl.String)
    texts = texts.set((texts == "").fill_null(value=False), None)
    if texts.null_count() < texts.len():
        kinds.add(TEXT)
    return texts


def _truths(values: Sequence[Any], kinds: set[str]) -> pl.Series:
    kinds.add(TRUTH)
    return pl.Series(values, dtype=pl.Boolean).cast(pl.String)


def _dates(values: Sequence[Any], kinds: set[str]) -> pl.Series:
    kinds.add(DATE)
    return pl.Series(values, dtype=pl.Date).dt.to_string("%Y-%m-%d")


def _moments(values: Sequence[Any], kinds: set[str]) -> pl.Series:
    kinds.add(MOMENT)
    return pl.Series(values, dtype=pl.Datetime("us")).dt.to_string("%Y-%m-%d %H:%M:%S%.f")


def _times(values: Sequence[Any], kinds: set[str]) -> pl.Series:
    kinds.add(TIME)
    return pl.Series(values, dtype=pl.Time).dt.to_string("%H:%M:%S%.f")


def _spans(values: Sequence[Any], kinds: set[str]) -> pl.Series:
    kinds.add(SPAN)
    return pl.Series([None if value is None else _span(value) for value in values], dtype=pl.String)


def _span(value: timedelta) -> str:
    """Return a duration as PostgreSQL reads it, its days as hours."""
    micro = value // timedelta(microseconds=1)
    seconds, rest = divmod(abs(micro), 1_000_000)
    text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{'-' * (micro < 0)}{text}{f'.{rest:06}' if rest else ''}"


_KINDS: Final = {
    float: _numbers,
    int: _numbers,
    str: _texts,
    bool: _truths,
    date: _dates,
    datetime: _moments,
    time: _times,
    timedelta: _spans,
}
"""Python type of a cell → how it is written; the types are told apart exactly: a datetime is a date as well."""

_TYPES: Final = (
    ({WHOLE}, "bigint"),
    ({WHOLE, NUMBER}, "double precision"),
    ({TRUTH}, "boolean"),
    ({DATE}, "date"),
    ({DATE, MOMENT}, "timestamp without time zone"),
    ({TIME}, "time without time zone"),
    ({TIME, SPAN}, "interval"),
)


def infer_kinds(kinds: set[str], texts: pl.Series) -> Inferred:
    """Return the type of a column that is not declared, from what all its cells are.

    Args:
        kinds: of all cells that are not empty.
        texts: some of them.
    """
    if not kinds:
        return Inferred(pg_type="text", evidence=EMPTY)
    if kinds == {TEXT}:
        return infer(texts, MOMENTS)
    told = " and ".join(sorted(kinds))
    for among, pg_type in _TYPES:
        if kinds <= among:
            return Inferred(pg_type=pg_type, evidence=f"all cells are {told}")
    return Inferred(pg_type="text", evidence=f"cells are {told}")


def column_letters(number: int) -> str:
    """Return the letters of a column, numbered from 0: A, B … Z, AA."""
    letters = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters


def first_twice(names: Iterable[str]) -> list[str]:
    """Return the names that stand more than once."""
    seen, twice = set[str](), dict[str, None]()
    for name in names:
        if name in seen:
            twice[name] = None
        seen.add(name)
    return list(twice)
