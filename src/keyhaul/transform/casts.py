"""From one PostgreSQL type to another, for a column that is copied as it is: exact, checked, or refused.

Each pair of types that may meet stands in `CASTS`, with what happens to a value; docs/types.md is made
from it. Nothing here rounds: a checked value either arrives unchanged or its record is quarantined.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from keyhaul.postgres.pgtypes import DIRECT, DIRECT_WIRE, MODIFIED_TIME, TEXT_WIRE, Encoder, family

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyhaul.model import Column

_BITS: Final = {"int2": 16, "int4": 32, "int8": 64}
_DIGITS: Final = {"int2": 5, "int4": 10, "int8": 19}
_EXACT_FLOAT_BITS: Final = {"float4": 24, "float8": 53}
STRINGS: Final = ("text", "varchar", "bpchar", "name")
_NAME_BYTES: Final = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """How a value is written.

    Attributes:
        value: gives the exact Arrow type of the wire.
        wire: ``direct`` into the column, else the type of the temporary column that the target casts from.
        fits: true for a value that arrives unchanged; None when every one does.
        encoder: how a string becomes the binary form.
    """

    value: pl.Expr
    wire: str = DIRECT_WIRE
    fits: pl.Expr | None = None
    encoder: Encoder = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A column on its way: its name and type in the frame, the source's column and the target's."""

    name: str
    dtype: pl.DataType
    origin: Column
    target: Column
    time_zone: str | None

    @property
    def column(self) -> pl.Expr:
        """Return the column in the frame."""
        return pl.col(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """What becomes of the values of one type in a column of another.

    Attributes:
        does: ``exact``, or ``checked: …`` with what a value must be to arrive.
        write: builds the expressions.
    """

    does: str
    write: Callable[[Pair], Written]


def find_cast(pair: Pair) -> Cast | None:
    """Return what carries the pair's values, or None when nothing does without changing them."""
    have, want = pair.origin.base_type, pair.target.base_type
    if have == want:
        return _same(pair)
    if (have, want) in ZONED:
        return ZONED[have, want] if pair.time_zone else None
    if have in STRINGS and want == "bpchar" and have != "bpchar":
        return _CHAR
    if family(pair.origin) == "enum" and want == "text":
        return Cast(does="exact", write=_plain)
    return CASTS.get((have, want))


def suggestion(pair: Pair) -> str:
    """Return the step of a job that would convert what is refused here."""
    have, want = pair.origin.base_type, pair.target.base_type
    name = pair.name if pair.name.isidentifier() and pair.name.islower() else f'"{pair.name}"'
    if (have, want) in ZONED:
        return "Say in which zone the local times are: source: {time_zone: Europe/Berlin}"
    precision = f"({pair.target.precision}, {pair.target.scale})" if pair.target.precision else "(38, 6)"
    expressions = {
        "int2": f"cast({name} as smallint)",
        "int4": f"cast({name} as int)",
        "int8": f"cast({name} as bigint)",
        "float4": f"cast({name} as real)",
        "float8": f"cast({name} as double)",
        "numeric": f"cast({name} as decimal{precision})",
        "bool": f"cast({name} as boolean)" if have not in _BITS else f"{name} <> 0",
        "date": f"cast({name} as date)",
        "timestamp": f"cast({name} as timestamp)",
    }
    expression = expressions.get(want, f"cast({name} as varchar)")
    return f"Convert it in the job: transform: - set: {{{pair.name}: '{expression}'}}, or in the source's query"


# --- the same type, perhaps with another modifier ---------------------------------------------------


def _same(pair: Pair) -> Cast | None:
    have = pair.origin.base_type
    if have == "numeric":
        return Cast(does="checked: no digit is lost", write=_numeric)
    if have in {"varchar", "bpchar"}:
        return _STRING
    if pair.target.modifier in {-1, pair.origin.modifier}:
        return Cast(does="exact", write=_plain)
    had, gets = pair.origin.precision, pair.target.precision
    if have in MODIFIED_TIME and gets is not None:
        if had is not None and had <= gets:
            return Cast(does="exact", write=_plain)
        return Cast(does="checked: no digit of the seconds is lost", write=_fewer_digits)
    return None


def _plain(pair: Pair) -> Written:
    direct = DIRECT.get(pair.target.base_type)
    if family(pair.target) == "enum":
        return Written(value=pair.column)  # a label's binary form is its text
    if direct is None or (isinstance(pair.dtype, pl.String) and direct.dtype != pl.String()):
        return Written(value=pair.column, wire=TEXT_WIRE)
    return Written(value=pair.column, encoder=direct.encoder)


def _fewer_digits(pair: Pair) -> Written:
    written = _plain(pair)
    digits = pair.target.precision or 0
    if isinstance(pair.dtype, pl.Datetime):
        fits = pair.column.to_physical() % 10 ** (6 - digits) == 0
    else:
        fits = ~pair.column.str.contains(rf"\.\d{{{digits}}}\d*[1-9]")
    return Written(value=written.value, wire=written.wire, fits=fits, encoder=written.encoder)


# --- numbers -------------------------------------------------------------------------------------


def _below(value: pl.Expr, digits: int) -> pl.Expr:
    return value.abs() < pl.lit(Decimal(10) ** digits)  # numeric(2,4) holds less than 0.01


def in_integer(value: pl.Expr, base_type: str) -> pl.Expr:
    """Return whether a whole number lies in the range of smallint, integer or bigint."""
    bits = _BITS[base_type] - 1
    return value.is_between(-(2**bits), 2**bits - 1)


def _integer(pair: Pair) -> Written:
    want = pair.target.base_type
    narrower = _BITS[want] < _BITS[pair.origin.base_type]
    value = pair.column.cast(direct_dtype(want), strict=False)
    return Written(value=value, fits=in_integer(pair.column, want) if narrower else None)


def _integer_to_float(pair: Pair) -> Written:
    want = pair.target.base_type
    value = pair.column.cast(direct_dtype(want))
    if _BITS[pair.origin.base_type] - 1 <= _EXACT_FLOAT_BITS[want]:
        return Written(value=value)
    # Back through 128 bits: a float just above 2^63 does not fit into 64.
    return Written(
        value=value, fits=value.cast(pl.Float64).cast(pl.Int128, strict=False) == pair.column.cast(pl.Int128)
    )


def _float_to_integer(pair: Pair) -> Written:
    want = pair.target.base_type
    wide = pair.column.cast(pl.Float64)
    limit = float(2 ** (_BITS[want] - 1))
    fits = wide.is_finite() & (wide == wide.floor()) & (wide >= -limit) & (wide < limit)
    negative_zero = (wide == 0.0) & (pl.lit(1.0) / wide < 0)
    return Written(value=wide.cast(direct_dtype(want), strict=False), fits=fits & ~negative_zero)


def _float(pair: Pair) -> Written:
    value = pair.column.cast(direct_dtype(pair.target.base_type))
    if pair.target.base_type == "float8":
        return Written(value=value)
    return Written(value=value, fits=(value.cast(pl.Float64) == pair.column) | pair.column.is_nan())


def _numeric(pair: Pair) -> Written:
    target = pair.target
    if isinstance(pair.dtype, pl.String):
        return Written(value=pair.column, wire=TEXT_WIRE, fits=_digits_in_text(pair))
    if isinstance(pair.dtype, pl.Decimal):
        whole, scale = pair.dtype.precision - pair.dtype.scale, pair.dtype.scale
        value = pair.column
    else:
        whole, scale = _DIGITS[pair.origin.base_type], 0
        value = pair.column.cast(pl.Decimal(38, 0))
    if target.precision is None or target.scale is None:
        return Written(value=value)
    fits = None
    if target.scale < scale:
        fits = _whole_hundreds(value, -target.scale) if target.scale < 0 else _same_rounded(value, target.scale)
    if target.precision - target.scale < whole:
        small = _below(value, target.precision - target.scale)
        fits = small if fits is None else fits & small
    return Written(value=value, fits=fits)


def _same_rounded(value: pl.Expr, scale: int) -> pl.Expr:
    return value.round(scale, mode="half_away_from_zero") == value


def _whole_hundreds(value: pl.Expr, zeros: int) -> pl.Expr:
    """Whether decimals are multiples of 10 to the power of `zeros`."""
    whole = value.cast(pl.Int128, strict=False)
    multiple: pl.Expr = whole % 10**zeros == 0
    return (whole.cast(pl.Decimal(38, 0), strict=False) == value) & multiple


def _digits_in_text(pair: Pair) -> pl.Expr | None:
    target = pair.target
    if target.precision is None or target.scale is None:
        return None
    if (pair.origin.precision, pair.origin.scale) == (target.precision, target.scale):
        return None
    whole, scale = max(target.precision - target.scale, 0), max(target.scale, 0)
    if target.scale < 0:  # no other digits than so many before so many zeros
        return pair.column.str.contains(rf"^-?0*(\d{{1,{target.precision}}}0{{{-target.scale}}})?(\.0*)?$|^NaN$")
    if target.scale > target.precision:  # so many zeros behind the point first
        zeros = target.scale - target.precision
        after = rf"0{{0,{zeros}}}|0{{{zeros}}}\d{{0,{target.precision}}}0*"
        return pair.column.str.contains(rf"^-?0*(\.({after}))?$|^NaN$")
    return pair.column.str.contains(rf"^-?0*\d{{0,{whole}}}(\.\d{{0,{scale}}}0*)?$|^NaN$")


def _numeric_to_integer(pair: Pair) -> Written:
    want = pair.target.base_type
    if isinstance(pair.dtype, pl.String):
        whole = pair.column.str.replace(r"\.0*$", "")
        number = whole.cast(pl.Int128, strict=False)
        fits = whole.str.contains(r"^-?\d{1,38}$") & in_integer(number, want).fill_null(value=False)
        return Written(value=number.cast(direct_dtype(want), strict=False), fits=fits)
    truncated = pair.column.round(0, mode="half_away_from_zero")
    bits = _BITS[want] - 1
    fits = (truncated == pair.column) & truncated.is_between(pl.lit(Decimal(-(2**bits))), pl.lit(Decimal(2**bits - 1)))
    return Written(value=truncated.cast(direct_dtype(want), strict=False), fits=fits)


# --- text ----------------------------------------------------------------------------------------


def _string(pair: Pair) -> Written:
    if pair.target.base_type == "name":
        return Written(value=pair.column, fits=pair.column.str.len_bytes() <= _NAME_BYTES)
    limit, had = pair.target.length, pair.origin.length
    longer = limit is not None and (had is None or had > limit)
    return Written(value=pair.column, fits=pair.column.str.len_chars() <= limit if longer else None)


def _char(pair: Pair) -> Written:
    """A blank at the end would vanish among the padding."""
    written = _string(pair)
    kept = ~pair.column.str.ends_with(" ")
    return Written(value=pair.column, fits=kept if written.fits is None else kept & written.fits)


def _text_to_text(pair: Pair) -> Written:
    return Written(value=pair.column, wire=TEXT_WIRE)


# --- dates and times -------------------------------------------------------------------------------


def _date_to_timestamp(pair: Pair) -> Written:
    if isinstance(pair.dtype, pl.String):
        return Written(value=pair.column, wire=TEXT_WIRE)
    return Written(value=pair.column.cast(pl.Datetime("us")))


def _timestamp_to_date(pair: Pair) -> Written:
    if isinstance(pair.dtype, pl.String):
        return Written(value=pair.column, wire=TEXT_WIRE, fits=pair.column.str.contains(r"infinity| 00:00:00( BC)?$"))
    midnight = pair.column.to_physical() % 86_400_000_000 == 0
    return Written(value=pair.column.cast(pl.Date), fits=midnight)


def _local_to_instant(pair: Pair) -> Written:
    """A local time that the zone has twice, or skips, is no instant."""
    given = _moment(pair, "%Y-%m-%d %H:%M:%S%.f")
    local = given.dt.replace_time_zone(pair.time_zone, ambiguous="null", non_existent="null")
    instant = local.dt.convert_time_zone("UTC")
    if isinstance(pair.dtype, pl.String):
        return _moment_text(pair, instant, "%Y-%m-%d %H:%M:%S%.6f+00")
    return Written(value=instant, fits=instant.is_not_null() | pair.column.is_null())


def _instant_to_local(pair: Pair) -> Written:
    given = _moment(pair, "%Y-%m-%d %H:%M:%S%.f%#z")
    local = given.dt.convert_time_zone(pair.time_zone or "UTC").dt.replace_time_zone(None)
    if isinstance(pair.dtype, pl.String):
        return _moment_text(pair, local, "%Y-%m-%d %H:%M:%S%.6f")
    return Written(value=local)


def _moment(pair: Pair, form: str) -> pl.Expr:
    """Return the column, parsed in a chunk in which it travels as text; what cannot be parsed is NULL."""
    if isinstance(pair.dtype, pl.String):
        return pair.column.str.to_datetime(form, time_unit="us", strict=False)
    return pair.column


def _moment_text(pair: Pair, moment: pl.Expr, form: str) -> Written:
    """Return the text of a moment in a chunk of texts; infinity stays, and other values far away do not fit."""
    infinite = pair.column.str.contains("infinity")
    value = pl.when(infinite).then(pair.column).otherwise(moment.dt.strftime(form))
    return Written(value=value, wire=TEXT_WIRE, fits=value.is_not_null() | pair.column.is_null())


def direct_dtype(base_type: str) -> Any:  # noqa: ANN401 - a Polars type, or None for numeric, which callers exclude
    """Return the Polars type of a type with a direct route."""
    return DIRECT[base_type].dtype


_STRING: Final = Cast(does="checked: not longer than the target's length", write=_string)
_CHAR: Final = Cast(does="checked: not longer than the target's length, no blank at the end", write=_char)


def _numbers() -> dict[tuple[str, str], Cast]:
    casts: dict[tuple[str, str], Cast] = {}
    for have, bits in _BITS.items():
        for want, room in _BITS.items():
            if have != want:
                does = "exact" if bits < room else f"checked: within {room} bits"
                casts[have, want] = Cast(does=does, write=_integer)
        for want, room in _EXACT_FLOAT_BITS.items():
            does = "exact" if bits - 1 <= room else "checked: the float is the same number"
            casts[have, want] = Cast(does=does, write=_integer_to_float)
            casts[want, have] = Cast(does=f"checked: a whole number within {bits} bits", write=_float_to_integer)
        casts[have, "numeric"] = Cast(does="checked: within the target's precision", write=_numeric)
        casts["numeric", have] = Cast(does=f"checked: a whole number within {bits} bits", write=_numeric_to_integer)
    casts["float4", "float8"] = Cast(does="exact", write=_float)
    casts["float8", "float4"] = Cast(does="checked: the shorter float is the same number", write=_float)
    return casts


CASTS: Final[dict[tuple[str, str], Cast]] = {
    **_numbers(),
    **{(have, want): _STRING for have in STRINGS for want in ("text", "varchar") if have != want},
    **{(have, "name"): Cast(does="checked: at most 63 bytes", write=_string) for have in STRINGS if have != "name"},
    ("citext", "text"): Cast(does="exact", write=_plain),
    ("text", "citext"): Cast(does="exact", write=_text_to_text),
    ("varchar", "citext"): Cast(does="exact", write=_text_to_text),
    ("uuid", "text"): Cast(does="exact", write=_plain),
    ("json", "text"): Cast(does="exact", write=_plain),
    ("jsonb", "text"): Cast(does="exact", write=_plain),
    ("jsonb", "json"): Cast(does="exact", write=_plain),
    ("xml", "text"): Cast(does="exact", write=_plain),
    ("inet", "text"): Cast(does="exact: as inet prints it", write=_plain),
    ("cidr", "inet"): Cast(does="exact", write=_text_to_text),
    ("oid", "int8"): Cast(does="exact", write=_text_to_text),
    ("date", "timestamp"): Cast(does="exact: midnight", write=_date_to_timestamp),
    ("timestamp", "date"): Cast(does="checked: midnight", write=_timestamp_to_date),
}
"""Source type, target type → what happens. Types of the same name are in `_same`."""

ZONED: Final[dict[tuple[str, str], Cast]] = {
    ("timestamp", "timestamptz"): Cast(
        does="checked: with source.time_zone; a local time that exists once in that zone", write=_local_to_instant
    ),
    ("timestamptz", "timestamp"): Cast(does="exact: the local time in source.time_zone", write=_instant_to_local),
}
"""Pairs that need a declared zone; without one they are refused."""
