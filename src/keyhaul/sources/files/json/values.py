"""From the texts of JSON values to values of PostgreSQL types, and the types that the values of a sample seem to be.

A JSON string is read by the rule of `values` for its content, a number by that for its digits. 1e2 and 1.0 are whole
numbers as well, as JSON has only one kind of number; in a text column each stays as it is written.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final

import msgspec
import polars as pl

from keyhaul.sources.files.infer import MOMENTS, NUMBERS, Inferred, infer
from keyhaul.sources.files.values import Typed, typed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyhaul.model import Column

_WHOLE: Final[dict[str, pl.DataType]] = {"int2": pl.Int16(), "int4": pl.Int32(), "int8": pl.Int64()}
_JSON: Final = frozenset({"json", "jsonb"})
_MOST_ZEROS: Final = 140_000
"""PostgreSQL's numeric has fewer digits; an exponent beyond is no number of any type but text."""


def typed_values(values: pl.DataFrame, columns: Mapping[str, Column], *, time_zone: str | None) -> Typed:
    """Give the texts of JSON values the types of PostgreSQL columns.

    Args:
        values: a String column for each of `columns`: the values as they stand in the file; NULL: no such key.
        columns: name → type.
        time_zone: of moments without an offset; None: those are none.
    """
    made: dict[str, pl.Series] = {}
    texts: dict[str, pl.Series] = {}
    for name, column in columns.items():
        given = values.get_column(name)
        numbers = _plain_integers(given, column)
        if numbers is not None:
            made[name] = numbers
        else:
            texts[name] = content(given, column.base_type).alias(name)
    others = {name: columns[name] for name in texts}
    found = typed(pl.DataFrame(list(texts.values())), others, time_zone=time_zone)
    frame = pl.DataFrame([made[name] if name in made else found.frame.get_column(name) for name in columns])
    return Typed(frame=frame, wrong=found.wrong)


def _plain_integers(values: pl.Series, column: Column) -> pl.Series | None:
    """Return the values of an integer column without a look at their texts; None when one is not just digits."""
    if column.base_type not in _WHOLE:
        return None
    found = values.cast(_WHOLE[column.base_type], strict=False)
    return found if found.null_count() == (values == "null").sum() else None


def content(values: pl.Series, base_type: str) -> pl.Series:
    """Return what JSON values hold for a column of a type: a string's characters, a number's digits, else the JSON."""
    null = (values == "null").fill_null(value=False)
    present = values.set(null, None) if null.any() else values
    if base_type in _JSON:
        return present
    quoted = present.str.starts_with('"').fill_null(value=False)
    plain = _unquoted(present, quoted) if quoted.any() else present
    if base_type in _WHOLE or base_type == "numeric":
        plain = _digits(plain, numbers=~quoted & present.is_not_null(), whole=base_type in _WHOLE)
    return plain


def _unquoted(texts: pl.Series, quoted: pl.Series) -> pl.Series:
    """Return the characters of JSON strings; the others as they are."""
    plain = texts.zip_with(~quoted, texts.str.strip_prefix('"').str.strip_suffix('"'))
    escaped = (quoted & texts.str.contains("\\", literal=True)).fill_null(value=False)
    if not escaped.any():
        return plain
    rows = escaped.arg_true()
    return plain.scatter(rows, msgspec.json.decode(f"[{','.join(texts.gather(rows))}]", type=list[str]))


def _digits(texts: pl.Series, *, numbers: pl.Series, whole: bool) -> pl.Series:
    """Return JSON numbers without an exponent, and whole ones without a fraction of zeros."""
    if whole and texts.str.contains(".", literal=True).any():
        texts = texts.zip_with(~numbers, texts.str.replace(r"^(-?[0-9]+)\.0+$", "$1"))
    powers = (numbers & texts.str.contains(r"[eE]")).fill_null(value=False)
    powers &= texts.str.contains(r"^-?[0-9]").fill_null(value=False)
    if not powers.any():
        return texts
    rows = powers.arg_true()
    return texts.scatter(rows, [_written_out(text, whole=whole) for text in texts.gather(rows)])


def _written_out(text: str, *, whole: bool) -> str:
    if len(text.lower().partition("e")[2].lstrip("+-0")) > 6 or len(text) > _MOST_ZEROS:  # noqa: PLR2004
        return text
    number = Decimal(text)
    if abs(number.adjusted()) > _MOST_ZEROS:
        return text
    plain = f"{number:f}"
    return plain.rstrip("0").rstrip(".") if whole and "." in plain else plain


def infer_values(values: pl.Series) -> Inferred:
    """Return the type that every value of a sample fits, unchanged.

    Objects and arrays are jsonb, with whatever stands beside them. Strings are text, unless all are dates, moments or
    uuids: one that looks like a number was meant to be none. Numbers are bigint, numeric or double precision.
    """
    present = values.drop_nulls()
    present = present.filter(present != "null")
    looked = f"{present.len():,} value{'s' * (present.len() != 1)} looked at"
    if present.is_empty():
        return Inferred(pg_type="text", evidence=f"{looked}: nothing says more")
    first = present.str.slice(0, 1)
    if first.is_in(["{", "["]).any():
        return Inferred(pg_type="jsonb", evidence=f"{looked}, some are objects or arrays")
    if (first == '"').all():
        return infer(content(present, "text"), MOMENTS)
    if first.is_in(["t", "f"]).all():
        return Inferred(pg_type="boolean", evidence=f"{looked}, as {present[0]}")
    if not first.is_in(["t", "f", '"']).any():
        return infer(present, NUMBERS)
    return Inferred(pg_type="text", evidence=f"{looked}, of several kinds")
