"""From a frame's columns to the target's: for each column the one exact Arrow type, and what does not fit.

A column that is a plain copy of a source column is never rounded; a computed one is rounded as
PostgreSQL rounds on assignment. A value that does not fit is told from those that do, row by row
in one vectorised pass; a column that cannot be fed is refused by name before the first row moves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Final, Literal

import polars as pl

from keyhaul.errors import RefusedError
from keyhaul.model import RECORD
from keyhaul.pgtypes import DIRECT, TEXT, TEXT_KINDS, Encoder, is_bounded_numeric

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from keyhaul.model import Column
    from keyhaul.transform import OutputColumn

_INTEGER_BITS: Final = {"int2": 16, "int4": 32, "int8": 64}
_INTEGER_DIGITS: Final = {"int2": 5, "int4": 10, "int8": 19}
_STRINGS: Final = frozenset({"text", "varchar", "bpchar", "name"})


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteColumn:
    """How one column of a frame becomes one column of the target.

    Attributes:
        name: in the frame and in the target.
        target: the target's column.
        value: the expression that gives the exact Arrow type.
        wire: ``direct`` goes into the column as it is; ``text`` through a temporary text column and a cast.
        fits: true for a row whose value fits; None when every value does. NULL always fits, unless the
            target is NOT NULL.
        encoder: how a string becomes the binary form.
        note: one sentence for `etl plan` when the value is rounded.
    """

    name: str
    target: Column
    value: pl.Expr
    wire: Literal["direct", "text"] = "direct"
    fits: pl.Expr | None = None
    encoder: Encoder = "plain"
    note: str = ""


class _NoRouteError(Exception):
    """There is no way from this column to that one; the text says what would do it."""


def build_mapping(
    output: Mapping[str, OutputColumn], sources: Mapping[str, Column], targets: Iterable[Column], table: str
) -> tuple[WriteColumn, ...]:
    """Match the transform's columns with the target's by name.

    Args:
        output: the frame's columns after the transform.
        sources: the source's columns by name, for those that are plain copies.
        targets: the target's columns, in order.
        table: the target's name, for messages.

    Raises:
        RefusedError: a column has no place in the target, a required target column has no value, or a
            type cannot become the target's; all offenders at once.
    """
    existing = {column.name: column for column in targets}
    problems = []
    mapped = []
    for name, column in output.items():
        target = existing.get(name)
        if target is None:
            problems.append(
                f"write {table}.{name}: the target has no such column. "
                f"Add it there, or drop it (transform: - drop: [{name}]) or rename it in the job"
            )
            continue
        if target.generated:
            problems.append(f"write {table}.{name}: the target computes this column itself. Drop it in the job")
            continue
        origin = sources.get(column.source) if column.source else None
        try:
            mapped.append(write_column(name, column.dtype, origin, target))
        except _NoRouteError as error:
            have = origin.pg_type if origin else f"a computed {column.dtype}"
            problems.append(f"write {table}.{name}: got {have}, expected {target.pg_type}. {error}")
    for name, target in existing.items():
        if name not in output and target.not_null and not target.has_default and not target.generated:
            problems.append(
                f"write {table}.{name}: it is NOT NULL without a default, and the source has no such column. "
                f"Compute it (transform: - set: {{{name}: …}}) or give it a default"
            )
    if problems:
        raise RefusedError("\n".join(problems))
    return tuple(mapped)


def write_column(name: str, dtype: pl.DataType, origin: Column | None, target: Column) -> WriteColumn:
    """Return how a column of type `dtype`, copied from `origin` or computed, is written into `target`."""
    written = _copied(name, dtype, origin, target) if origin else _computed(name, dtype, target)
    if target.not_null and not (origin and origin.not_null):
        present = pl.col(name).is_not_null()
        written = replace(written, fits=present if written.fits is None else present & written.fits)
    return written


def as_text(
    columns: Sequence[WriteColumn], sources: Mapping[str, Column], copied: Mapping[str, str]
) -> tuple[WriteColumn, ...]:
    """Return the mapping for a chunk in which some columns hold PostgreSQL's own text.

    Args:
        columns: the run's mapping.
        sources: the source's columns by name.
        copied: column of the frame → source column, for those that are text in this chunk.
    """
    return tuple(_in_text(c, sources[copied[c.name]]) if c.name in copied else c for c in columns)


def _in_text(column: WriteColumn, origin: Column) -> WriteColumn:
    if origin.base_type == "numeric":
        return write_column(column.name, pl.String(), origin, column.target)
    present = pl.col(column.name).is_not_null() if column.target.not_null and not origin.not_null else None
    return replace(column, value=pl.col(column.name), wire="text", fits=present, encoder="plain")


def split(frame: pl.DataFrame, columns: Sequence[WriteColumn]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Separate the rows of which every value fits the target from the others.

    Returns:
        The frame without them, and the others as ``_record``, ``rules`` list[str] and ``message``.
    """
    checks = {f"type:{c.name}": c.fits.fill_null(value=True) for c in columns if c.fits is not None}
    none = pl.DataFrame(schema={RECORD: pl.Int64, "rules": pl.List(pl.String), "message": pl.String})
    if not checks:
        return frame, none
    flags = frame.select(~check.alias(name) for name, check in checks.items())
    bad = flags.select(pl.any_horizontal(pl.all())).to_series()
    if not bad.any():
        return frame, none
    wanted = {f"type:{c.name}": c.target for c in columns}
    rules = pl.concat_list(pl.when(pl.col(name)).then(pl.lit(name)) for name in checks).list.drop_nulls()
    messages = pl.concat_list(
        pl.when(pl.col(name)).then(pl.lit(f"{wanted[name].name} does not fit {_described(wanted[name])}"))
        for name in checks
    ).list.drop_nulls()
    rejected = flags.filter(bad).select(rules.alias("rules"), messages.list.join("; ").alias("message"))
    return frame.filter(~bad), rejected.with_columns(frame.filter(bad)[RECORD]).select(RECORD, "rules", "message")


def _described(target: Column) -> str:
    return f"{target.pg_type} not null" if target.not_null else target.pg_type


# --- plain copies of a source column: never rounded ----------------------------------------------


def _copied(name: str, dtype: pl.DataType, origin: Column, target: Column) -> WriteColumn:
    column = pl.col(name)
    have, want = origin.base_type, target.base_type
    if have == want == "numeric" or (want == "numeric" and have in _INTEGER_BITS):
        return _copied_numeric(name, dtype, origin, target)
    if have in _INTEGER_BITS and want in _INTEGER_BITS:
        narrower = _INTEGER_BITS[want] < _INTEGER_BITS[have]
        return WriteColumn(
            name=name,
            target=target,
            value=column.cast(_direct_dtype(want)),
            fits=_in_integer(column, want) if narrower else None,
        )
    if have == "float4" and want == "float8":
        return WriteColumn(name=name, target=target, value=column.cast(pl.Float64))
    if have in _STRINGS and want in _STRINGS and want != "name":
        longer = target.length is not None and (origin.length is None or origin.length > target.length)
        fits = column.str.len_chars() <= target.length if longer else None
        return WriteColumn(name=name, target=target, value=column, fits=fits)
    if have != want:
        msg = f"Convert it in the job (transform: - set: {{{name}: …}}) or in the source's query"
        raise _NoRouteError(msg)
    if origin.pg_type != target.pg_type and "(" in target.pg_type:
        msg = "A copied column is never rounded or cut. Widen the target's type, or convert it in the source's query"
        raise _NoRouteError(msg)
    direct = DIRECT.get(have)
    if direct is not None and have != "numeric":
        return WriteColumn(name=name, target=target, value=column, encoder=direct.encoder)
    return WriteColumn(name=name, target=target, value=column, wire="text")


def _copied_numeric(name: str, dtype: pl.DataType, origin: Column, target: Column) -> WriteColumn:
    column = pl.col(name)
    if isinstance(dtype, pl.String):
        fits = None
        if target.precision is not None:
            whole, scale = target.precision - (target.scale or 0), target.scale or 0
            fits = column.str.contains(rf"^-?0*\d{{0,{max(whole, 0)}}}(\.\d{{0,{max(scale, 0)}}}0*)?$|^NaN$")
        return WriteColumn(name=name, target=target, value=column, wire="text", fits=fits)
    if isinstance(dtype, pl.Decimal):
        whole, scale = dtype.precision - dtype.scale, dtype.scale
        value = column
    else:
        whole, scale = _INTEGER_DIGITS[origin.base_type], 0
        value = column.cast(pl.Decimal(38, 0))
    fits = None
    if target.precision is not None:
        target_scale = target.scale or 0
        target_whole = target.precision - target_scale
        if target_scale < scale:
            fits = value.round(target_scale, mode="half_away_from_zero") == value
        if target_whole < whole:
            small = _below(value, target_whole)
            fits = small if fits is None else fits & small
    return WriteColumn(name=name, target=target, value=value, fits=fits)


def _below(value: pl.Expr, digits: int) -> pl.Expr:
    return value.abs() < pl.lit(Decimal(10) ** max(digits, 0))


def _in_integer(value: pl.Expr, base_type: str) -> pl.Expr:
    bits = _INTEGER_BITS[base_type] - 1
    return value.is_between(-(2**bits), 2**bits - 1)


def _direct_dtype(base_type: str) -> pl.DataType:
    dtype = DIRECT[base_type].dtype
    if dtype is None:
        msg = f"no single type holds {base_type}"
        raise _NoRouteError(msg)
    return dtype


# --- computed columns: rounded as PostgreSQL rounds on assignment -----------------------------------


def _computed(name: str, dtype: pl.DataType, target: Column) -> WriteColumn:
    want = target.base_type
    if isinstance(dtype, pl.Decimal):
        written = _computed_decimal(name, dtype, target)
    elif dtype.is_integer():
        written = _computed_integer(name, target)
    elif dtype.is_float():
        written = _computed_float(name, target)
    elif isinstance(dtype, pl.String):
        written = _computed_string(name, target)
    elif isinstance(dtype, pl.Null):
        written = WriteColumn(name=name, target=target, value=pl.col(name).cast(pl.String), wire="text")
    elif isinstance(dtype, pl.Time) and want == "time":
        written = WriteColumn(name=name, target=target, value=pl.col(name).cast(pl.String), wire="text")
    elif want in DIRECT and DIRECT[want].dtype == dtype:
        written = WriteColumn(name=name, target=target, value=pl.col(name))
    elif isinstance(dtype, pl.Datetime) and want == ("timestamptz" if dtype.time_zone else "timestamp"):
        written = WriteColumn(name=name, target=target, value=pl.col(name).cast(_direct_dtype(want)))
    else:
        msg = f"Cast it in its expression to a type that {target.pg_type} takes"
        raise _NoRouteError(msg)
    return written


def _computed_decimal(name: str, dtype: pl.Decimal, target: Column) -> WriteColumn:
    column, want = pl.col(name), target.base_type
    if want in {"float4", "float8"}:
        return WriteColumn(name=name, target=target, value=column.cast(_direct_dtype(want)))
    if want in _INTEGER_BITS:
        rounded = column.round(0, mode="half_away_from_zero")
        bits = _INTEGER_BITS[want] - 1
        fits = rounded.is_between(pl.lit(Decimal(-(2**bits))), pl.lit(Decimal(2**bits - 1)))
        note = f"{name} is rounded to whole numbers"
        return WriteColumn(name=name, target=target, value=rounded.cast(_direct_dtype(want)), fits=fits, note=note)
    if want != "numeric":
        msg = f"Cast it in its expression to a type that {target.pg_type} takes"
        raise _NoRouteError(msg)
    if target.precision is None:
        return WriteColumn(name=name, target=target, value=column)
    scale = target.scale or 0
    rounded = column.round(scale, mode="half_away_from_zero") if scale < dtype.scale else column
    whole = target.precision - scale
    fits = _below(rounded, whole) if whole < dtype.precision - dtype.scale else None
    note = f"{name} is rounded to {scale} decimals" if scale < dtype.scale else ""
    return WriteColumn(name=name, target=target, value=rounded, fits=fits, note=note)


def _computed_integer(name: str, target: Column) -> WriteColumn:
    column, want = pl.col(name), target.base_type
    if want in _INTEGER_BITS:
        fits = _in_integer(column, want)
        return WriteColumn(name=name, target=target, value=column.cast(_direct_dtype(want), strict=False), fits=fits)
    if want in {"float4", "float8"}:
        return WriteColumn(name=name, target=target, value=column.cast(_direct_dtype(want)))
    if want == "numeric":
        value = column.cast(pl.Decimal(38, 0))
        fits = _below(value, target.precision - (target.scale or 0)) if target.precision is not None else None
        return WriteColumn(name=name, target=target, value=value, fits=fits)
    msg = f"Cast it in its expression to a type that {target.pg_type} takes"
    raise _NoRouteError(msg)


def _computed_float(name: str, target: Column) -> WriteColumn:
    column, want = pl.col(name), target.base_type
    if want == "float8":
        return WriteColumn(name=name, target=target, value=column.cast(pl.Float64))
    if want == "float4":
        value = column.cast(pl.Float32)
        fits = value.is_finite() | ~column.is_finite()
        return WriteColumn(name=name, target=target, value=value, fits=fits, note=f"{name} is rounded to real")
    if want in _INTEGER_BITS:
        rounded = column.round(0, mode="half_to_even")
        bits = float(2 ** (_INTEGER_BITS[want] - 1))
        fits = (rounded >= -bits) & (rounded < bits) & rounded.is_not_nan()
        value = rounded.cast(_direct_dtype(want), strict=False)
        note = f"{name} is rounded to whole numbers"
        return WriteColumn(name=name, target=target, value=value, fits=fits, note=note)
    msg = "Cast it in its expression, for example cast(… as decimal(18, 6))"
    raise _NoRouteError(msg)


def _computed_string(name: str, target: Column) -> WriteColumn:
    column, want = pl.col(name), target.base_type
    if want in _STRINGS:
        fits = column.str.len_chars() <= target.length if target.length is not None else None
        return WriteColumn(name=name, target=target, value=column, fits=fits)
    if want in {"json", "jsonb", "uuid", "numeric"} | TEXT or target.type_kind in TEXT_KINDS:
        return WriteColumn(name=name, target=target, value=column, wire="text")
    if target.type_category == "A":
        return WriteColumn(name=name, target=target, value=column, wire="text")
    msg = f"Cast it in its expression to a type that {target.pg_type} takes"
    raise _NoRouteError(msg)


def creatable(column: Column) -> bool:
    """Whether a missing target can be given a column of this source type (built-in types, for now)."""
    return column.base_type in DIRECT or column.base_type in TEXT or is_bounded_numeric(column)
