"""From what a reader returns to the exact types of the routes; one way for chunks and for lookups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from keyhaul.postgres import pgtypes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa


def decode(table: pa.Table, types: Mapping[str, pl.DataType]) -> tuple[pl.DataFrame, frozenset[str]]:
    """Give every column named in `types` its exact type.

    Returns:
        The frame, and the columns in which a value is not of the type (a NaN in a numeric); these stay as read.
    """
    frame = pl.DataFrame(pl.from_arrow(table))
    changed = {name: dtype for name, dtype in types.items() if frame.schema[name] != dtype}
    decoded = frame.with_columns(_decoded(name, frame.schema[name], dtype) for name, dtype in changed.items())
    nulls, before = decoded.null_count().row(0), frame.null_count().row(0)
    odd = frozenset(name for name, n, b in zip(frame.columns, nulls, before, strict=True) if n != b)
    return decoded.with_columns(frame[name] for name in odd), odd


def any_out_of_range(column: pl.Series, dtype: pl.DataType) -> bool:
    """Whether a column holds ±infinity or another moment that the readers wrap; see `pgtypes.out_of_range`."""
    check = pgtypes.out_of_range(column.name, dtype)
    return check is not None and bool(column.to_frame().select(check).item())


def _decoded(name: str, have: pl.DataType, want: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    if isinstance(want, pl.Datetime) and isinstance(have, pl.Datetime) and want.time_zone and have.time_zone:
        return column.dt.convert_time_zone(want.time_zone).cast(want)
    return column.cast(want, strict=False)  # the caller compares the NULLs


def parsed(name: str, want: pl.DataType) -> pl.Expr:
    """Parse PostgreSQL's text form; what has no place in the type becomes NULL."""
    column = pl.col(name)
    if isinstance(want, pl.Datetime):
        form = "%Y-%m-%d %H:%M:%S%.f" + ("%#z" if want.time_zone else "")
        return column.str.to_datetime(form, time_unit="us", strict=False).cast(want)
    if isinstance(want, pl.Date):
        return column.str.to_date("%Y-%m-%d", strict=False)
    return column.cast(want, strict=False)
