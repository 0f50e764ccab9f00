"""How a computed column is written: rounded as PostgreSQL rounds on assignment, overflow told row by row."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import polars as pl

from keyhaul.postgres.pgtypes import DIRECT, DIRECT_WIRE, TEXT, TEXT_WIRE, family
from keyhaul.semantics.arithmetic import unary, whole_digits
from keyhaul.transform.casts import STRINGS, direct_dtype, in_integer

if TYPE_CHECKING:
    from keyhaul.model import Column

_INTEGERS: Final = frozenset({"int2", "int4", "int8"})
_FLOATS: Final = frozenset({"float4", "float8"})
_BITS: Final = {"int2": 16, "int4": 32, "int8": 64}
_BIGINT_DIGITS: Final = 19


class NoRouteError(Exception):
    """There is no way from this column to that one; the text says what would do it."""


class Computed(NamedTuple):
    """How a computed value is written: see `keyhaul.transform.mapping.WriteColumn`."""

    value: pl.Expr
    wire: str = DIRECT_WIRE
    fits: pl.Expr | None = None
    note: str = ""
    may_fail: bool = True


def write_computed(  # noqa: PLR0911 - a case each
    name: str, dtype: pl.DataType, target: Column, *, numeric: bool = False
) -> Computed:
    """Return how a column of type `dtype`, computed by an expression, is written into `target`.

    Args:
        name: of the column.
        dtype: in the frame.
        target: the target's column.
        numeric: the texts are numbers without a declared precision.

    Raises:
        NoRouteError: PostgreSQL has no assignment cast from this type to that one.
    """
    column, want = pl.col(name), target.base_type
    if isinstance(dtype, pl.Decimal):
        return _decimal(column, dtype, target)
    if dtype.is_integer():
        return _integer(column, target)
    if dtype.is_float():
        return _float(column, target)
    if numeric:
        return _number(column, target)
    if isinstance(dtype, pl.String):
        return _string(column, target)
    if isinstance(dtype, pl.Null) or (isinstance(dtype, pl.Time) and want == "time"):
        return Computed(column.cast(pl.String), TEXT_WIRE)
    if isinstance(dtype, pl.Datetime) and want == ("timestamptz" if dtype.time_zone else "timestamp"):
        return Computed(column.cast(direct_dtype(want)))
    if isinstance(dtype, pl.Date) and want == "timestamp":
        return Computed(column.cast(direct_dtype(want)))
    if want in DIRECT and DIRECT[want].dtype == dtype:
        return Computed(column)
    raise NoRouteError(_cast_it(target))


def _cast_it(target: Column) -> str:
    return f"Cast it in its expression to a type that {target.pg_type} takes"


def _decimal(column: pl.Expr, dtype: pl.Decimal, target: Column) -> Computed:
    name, want = column.meta.output_name(), target.base_type
    if want in _FLOATS:
        return Computed(column.cast(direct_dtype(want)))
    if want in _INTEGERS:
        rounded = column.round(0, mode="half_away_from_zero")
        bits = _BITS[want] - 1
        fits = rounded.is_between(pl.lit(Decimal(-(2**bits))), pl.lit(Decimal(2**bits - 1)))
        note = f"{name} is rounded to whole numbers" if dtype.scale else ""
        return Computed(rounded.cast(direct_dtype(want), strict=False), fits=fits, note=note)
    if want != "numeric":
        raise NoRouteError(_cast_it(target))
    if target.precision is None or target.scale is None:
        return Computed(column)
    fewer = target.scale < dtype.scale
    # Tens and hundreds are rounded by the target alone: 49.5 would become 50 here, and then 100.
    rounded = column.round(target.scale, mode="half_away_from_zero") if fewer and target.scale >= 0 else column
    whole = target.precision - target.scale
    limit = Decimal(10) ** whole - (Decimal(10) ** -target.scale / 2 if target.scale < 0 else 0)
    within = rounded.abs() < pl.lit(limit) if whole <= dtype.precision - dtype.scale else None
    note = f"{name} is rounded to {target.scale} decimals" if fewer else ""
    return Computed(rounded, fits=within, note=note)


def _integer(column: pl.Expr, target: Column) -> Computed:
    want = target.base_type
    if want in _INTEGERS:
        return Computed(column.cast(direct_dtype(want), strict=False), fits=in_integer(column, want))
    if want in _FLOATS:
        return Computed(column.cast(direct_dtype(want)))
    if want == "numeric":
        value = column.cast(pl.Decimal(38, 0))
        if target.precision is None or target.scale is None or target.precision - target.scale >= _BIGINT_DIGITS:
            return Computed(value)
        return Computed(value, fits=value.abs() < pl.lit(Decimal(10) ** (target.precision - target.scale)))
    raise NoRouteError(_cast_it(target))


def _float(column: pl.Expr, target: Column) -> Computed:
    name, want = column.meta.output_name(), target.base_type
    if want == "float8":
        return Computed(column.cast(pl.Float64))
    if want == "float4":
        value = column.cast(pl.Float32)
        # As in PostgreSQL, a number too large is an error, and so is one that would become zero.
        fits: pl.Expr | None = (value.is_finite() | ~column.is_finite()) & ((value != 0) | (column == 0))
        return Computed(value, fits=fits, note=f"{name} is rounded to real")
    if want in _INTEGERS:
        rounded = column.cast(pl.Float64).round(0, mode="half_to_even")
        limit = float(2 ** (_BITS[want] - 1))
        fits = (rounded >= -limit) & (rounded < limit) & rounded.is_not_nan()
        return Computed(
            rounded.cast(direct_dtype(want), strict=False), fits=fits, note=f"{name} is rounded to whole numbers"
        )
    if want == "numeric":
        # The target itself casts: PostgreSQL takes 15 digits of a double, then rounds to the scale.
        fits = None
        note = f"{name} is rounded to the 15 digits of a double"
        if target.precision is not None and target.scale is not None:
            whole = max(target.precision - target.scale, 0)
            limit = 10.0**whole - 0.5 * 10.0 ** -max(target.scale, 0)
            fits = (column.abs() < limit) | column.is_nan()
            note = f"{name} is rounded to {target.scale} decimals"
        return Computed(column.cast(pl.Float64), "double precision", fits, note)
    raise NoRouteError("Cast it in its expression, for example cast(… as varchar)")


def _number(column: pl.Expr, target: Column) -> Computed:
    """Write texts of numbers without a declared precision."""
    name, want = column.meta.output_name(), target.base_type
    if want in _INTEGERS:
        whole = unary("round", column).cast(pl.Int128, strict=False)
        limit = 2 ** (_BITS[want] - 1)
        within = (whole >= pl.lit(-limit, pl.Int128)) & (whole < pl.lit(limit, pl.Int128))
        fits = column.is_null() | within.fill_null(value=False)
        note = f"{name} is rounded to whole numbers"
        return Computed(whole.cast(direct_dtype(want), strict=False), fits=fits, note=note)
    if want in _FLOATS:
        return Computed(column, TEXT_WIRE, note=f"{name} is read as {target.pg_type} by the target")
    if want in STRINGS:
        return _string(column, target)
    if want != "numeric":
        raise NoRouteError(_cast_it(target))
    if target.precision is None or target.scale is None:
        return Computed(column, TEXT_WIRE, may_fail=False)
    if target.scale < 0:
        return Computed(column, TEXT_WIRE, note=f"{name} is rounded by the target")
    rounded = unary("round", column, target.scale)
    fits = whole_digits(rounded) <= target.precision - target.scale
    fits = (column == "NaN") | (fits & ~column.str.ends_with("Infinity"))
    note = f"{name} is rounded to {target.scale} decimals"
    return Computed(rounded, TEXT_WIRE, fits=fits, note=note, may_fail=False)


def _string(column: pl.Expr, target: Column) -> Computed:
    want = target.base_type
    if want in STRINGS:
        limit: Any = target.length
        fits = column.str.len_chars() <= limit if limit is not None else None
        return Computed(column, fits=fits)
    if want in DIRECT or want in TEXT or want == "numeric" or family(target):
        return Computed(
            column, TEXT_WIRE, note=f"{column.meta.output_name()} is read as {target.pg_type} by the target"
        )
    raise NoRouteError(_cast_it(target))
