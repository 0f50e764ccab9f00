"""From texts to values of a PostgreSQL type: one rule for each type, for every format whose values are texts.

What PostgreSQL itself would change (digits that are rounded off, an offset that is dropped, a time of day that is
cut) is no value of the type here; neither are 0x1F and 1_000, which only newer servers take. Blanks around a value
are no part of it, except in texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keyhaul.model import Column

_INTEGER: Final = r"^[+-]?[0-9]+$"
_DECIMAL: Final = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)$"
_UNBOUNDED: Final = r"(?i)^([+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)|[+-]?inf(inity)?|nan)$"
_FLOAT: Final = r"(?i)^[+-]?(([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?|inf(inity)?|nan)$"
_DATE: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
_TIMESTAMP: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?"
_ZONE: Final = r"(Z|z|[+-][0-9]{2}(:?[0-9]{2})?)$"
_UUID: Final = r"(?i)^(\{[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}\}|[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12})$"
_TRUE: Final = ("t", "true", "y", "yes", "on", "1")
_FALSE: Final = ("f", "false", "n", "no", "off", "0")

_BITS: Final = {"int2": pl.Int16(), "int4": pl.Int32(), "int8": pl.Int64()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Typed:
    """Texts as values.

    Attributes:
        frame: the columns in their exact types; NULL in a row that is in `wrong`.
        wrong: row → column → why its text is no value of the column's type.
    """

    frame: pl.DataFrame
    wrong: dict[int, dict[str, str]]


def with_point(texts: pl.Series, decimal: str) -> pl.Series:
    """Return numbers with a point before their fraction; where a comma stands there, a point is none (1.5 is 1,5)."""
    if decimal == ".":
        return texts
    return texts.str.replace_many([".", ","], [",", "."])


_WITH_FRACTIONS: Final = frozenset({"numeric", "float4", "float8"})


def typed(
    texts: pl.DataFrame, columns: Mapping[str, Column], *, time_zone: str | None = None, decimal: str = "."
) -> Typed:
    """Give texts the types of PostgreSQL columns.

    Args:
        texts: a String column for each of `columns`; NULL stays NULL.
        columns: name → type. A type that travels as text stays text: the target reads it.
        time_zone: what a timestamptz without an offset is in; None: it is no value.
        decimal: what stands between the whole and the fraction of a number, which has nothing between its thousands.

    Returns:
        Values and what is none, column by column: nothing is rounded, cut or guessed.
    """
    made, wrong = [], dict[int, dict[str, str]]()
    for name, column in columns.items():
        reader = _READERS.get(column.base_type)
        text = texts.get_column(name)
        if reader is None:
            made.append(text)
            continue
        given = with_point(text, decimal) if column.base_type in _WITH_FRACTIONS else text
        values, expected = reader(given, column, time_zone)
        made.append(values.alias(name))
        if values.null_count() > text.null_count():
            rows = (values.is_null() & text.is_not_null()).arg_true()
            for row in rows:
                wrong.setdefault(row, {})[name] = f"{name}: expected {expected}"
    return Typed(frame=pl.DataFrame(made), wrong=wrong)


_Read = tuple[pl.Series, str]


def _bare(text: pl.Series) -> pl.Series:
    return text.str.strip_chars(" \t\n\r\x0b\x0c")


def _only(text: pl.Series, pattern: str) -> pl.Series:
    """Return the texts that have the pattern; NULL instead of the others."""
    return text.set(~text.str.contains(pattern).fill_null(value=True), None)


def _integer(text: pl.Series, column: Column, _zone: str | None) -> _Read:
    dtype = _BITS[column.base_type]
    bits = 8 * int(column.base_type[3:])
    plain = _only(_bare(text), _INTEGER).str.strip_prefix("+")
    return plain.cast(dtype, strict=False), f"a whole number from {-(2 ** (bits - 1))} to {2 ** (bits - 1) - 1}"


def _numeric(text: pl.Series, column: Column, _zone: str | None) -> _Read:
    """Of a bounded numeric; one without bounds travels as text, in the form in which PostgreSQL writes it."""
    precision, scale = column.precision, column.scale or 0
    if precision is None or precision > _MOST_DIGITS:
        plain = _only(_bare(text), _UNBOUNDED).str.strip_prefix("+").str.replace(r"^(-?)\.", "${1}0.")
        word = plain.str.to_lowercase()
        named = pl.when(word == "nan").then(pl.lit("NaN")).when(word.str.contains("^inf")).then(pl.lit("Infinity"))
        named = named.when(word.str.contains("^-inf")).then(pl.lit("-Infinity"))
        return pl.select(named.otherwise(plain.str.strip_suffix("."))).to_series(), "a number without an exponent"
    plain = _only(_bare(text), _DECIMAL).str.strip_prefix("+")
    # Zeros behind the last digit that fits say nothing; another digit there would be rounded off.
    tail = rf"\.[0-9]{{{scale}}}[0-9]*[1-9]"
    plain = plain.set(plain.str.contains(tail).fill_null(value=False), None)
    return plain.cast(pl.Decimal(precision, scale), strict=False), f"a number of numeric({precision},{scale})"


_MOST_DIGITS: Final = 38


def _float(text: pl.Series, column: Column, _zone: str | None) -> _Read:
    dtype = pl.Float32() if column.base_type == "float4" else pl.Float64()
    plain = _only(_bare(text), _FLOAT).str.to_lowercase().str.strip_prefix("+")
    values = plain.cast(dtype, strict=False)
    overflown = values.is_infinite() & ~plain.str.contains("inf")
    lost = (values == 0) & plain.str.contains(r"^-?[0-9.]*[1-9][0-9.]*(e|$)")
    return values.set((overflown | lost).fill_null(value=False), None), f"a number of {column.pg_type}"


def _boolean(text: pl.Series, _column: Column, _zone: str | None) -> _Read:
    plain = _bare(text).str.to_lowercase()
    yes, no = (plain.is_in(pl.Series(words).implode()) for words in (_TRUE, _FALSE))
    values = pl.select(pl.when(yes).then(pl.lit(value=True)).when(no).then(pl.lit(value=False))).to_series()
    return values, "a boolean such as true, f, yes or 0"


def _date(text: pl.Series, _column: Column, _zone: str | None) -> _Read:
    return _only(_bare(text), _DATE).str.to_date("%Y-%m-%d", strict=False), "a date as 2024-02-29"


def _moment(text: pl.Series, column: Column, zone: str | None) -> _Read:
    """Of a timestamp, with or without zone; 24:00:00 is the next day's 00:00:00, as PostgreSQL reads it."""
    with_zone = column.base_type == "timestamptz"
    plain = _bare(text)
    zoned = plain.str.contains(_TIMESTAMP + r"\s?" + _ZONE).fill_null(value=False)
    naive = plain.str.contains(_TIMESTAMP + "$").fill_null(value=False)
    expected = "a moment as 2024-02-29 10:00:00.123456" + ("+02" if with_zone else ", without an offset")
    stem = plain.str.extract("(" + _TIMESTAMP + ")").str.replace("T", " ", literal=True)
    midnight = stem.str.contains(r" 24:00(:00(\.0{1,6})?)?$").fill_null(value=False)
    stem = stem.str.replace(r" 24:00(:00(?:\.0{1,6})?)?$", " 00:00$1")
    stem = stem.set((stem.str.len_bytes() == _TO_MINUTES).fill_null(value=False), None).fill_null(stem + ":00")
    local = stem.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)
    local = local + pl.select(pl.when(midnight).then(pl.duration(days=1)).otherwise(pl.duration())).to_series()
    if not with_zone:
        return local.set(~naive, None), expected
    offset = plain.str.extract(_ZONE, 1)
    minutes = (
        offset.str.extract(r"[+-]([0-9]{2})").cast(pl.Int32).fill_null(0) * 60
        + offset.str.extract(r"[+-][0-9]{2}:?([0-9]{2})").cast(pl.Int32).fill_null(0)
    ) * pl.select(pl.when(offset.str.starts_with("-")).then(-1).otherwise(1)).to_series()
    absolute = (local - (minutes.cast(pl.Int64) * _MINUTE).cast(pl.Duration("us"))).dt.replace_time_zone("UTC")
    values = absolute.set(~(zoned & (minutes.abs() < _DAY_MINUTES)), None)
    if zone is None:
        return values, expected
    # What the zone's clock shows twice or never is no moment: it would be a guess.
    known = local.to_frame("local").select(
        pl.col("local").dt.replace_time_zone(zone, ambiguous="null", non_existent="null").dt.convert_time_zone("UTC")
    )
    return values.zip_with(~naive, known.to_series()), f"{expected}, or a local time of {zone}"


_TO_MINUTES: Final = 16
_MINUTE: Final = 60_000_000
_DAY_MINUTES: Final = 24 * 60


def _uuid(text: pl.Series, _column: Column, _zone: str | None) -> _Read:
    plain = _only(_bare(text), _UUID).str.to_lowercase().str.replace_all(r"[{}-]", "")
    parts = [plain.str.slice(start, length) for start, length in ((0, 8), (8, 4), (12, 4), (16, 4), (20, 12))]
    return pl.select(pl.concat_str(parts, separator="-")).to_series(), "a uuid"


def _bytea(text: pl.Series, _column: Column, _zone: str | None) -> _Read:
    plain = _only(text, r"^\\x([0-9a-fA-F]{2})*$").str.strip_prefix("\\x")
    return plain.str.decode("hex", strict=False), r"bytes as \x00ff"


def _char(text: pl.Series, column: Column, _zone: str | None) -> _Read:
    if column.length is None:
        return text, ""
    # As PostgreSQL does it: only blanks behind the length may be cut.
    length = column.length
    return text.set((text.str.strip_chars_end(" ").str.len_chars() > length).fill_null(value=False), None), (
        f"at most {length} characters"
    )


_READERS: Final[Mapping[str, Callable[[pl.Series, Column, str | None], _Read]]] = {
    "int2": _integer,
    "int4": _integer,
    "int8": _integer,
    "numeric": _numeric,
    "float4": _float,
    "float8": _float,
    "bool": _boolean,
    "date": _date,
    "timestamp": _moment,
    "timestamptz": _moment,
    "uuid": _uuid,
    "bytea": _bytea,
    "varchar": _char,
    "bpchar": _char,
}
"""Base type → how its texts are read. The others stay texts."""
