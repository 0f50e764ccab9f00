"""From a frame's columns to the target's: for each column the one exact Arrow type, and what does not fit.

A column that is a plain copy of a source column is never rounded; a computed one is rounded as
PostgreSQL rounds on assignment. A value that does not fit is told from those that do, row by row
in one vectorised pass; a column that cannot be fed is refused by name before the first row moves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import polars as pl

from keyhaul.errors import RefusedError
from keyhaul.model import RECORD
from keyhaul.postgres.pgtypes import DIRECT_WIRE, TEXT_WIRE, Encoder, names_objects
from keyhaul.transform import casts
from keyhaul.transform.computed import NoRouteError, write_computed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from keyhaul.model import Column
    from keyhaul.transform.compiled import OutputColumn


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteColumn:
    """How one column of a frame becomes one column of the target.

    Attributes:
        name: in the frame and in the target.
        target: the target's column.
        value: the expression that gives the exact Arrow type.
        wire: ``direct`` goes into the column as it is; any other is the type of a temporary column that
            the target casts from.
        fits: true for a row whose value fits; None when every value does. NULL always fits, unless the
            target is NOT NULL.
        encoder: how a string becomes the binary form.
        may_fail: a text that the target's type may not take; asked row by row before it is cast.
        note: one sentence for `etl plan` when the value is rounded.
    """

    name: str
    target: Column
    value: pl.Expr
    wire: str = DIRECT_WIRE
    fits: pl.Expr | None = None
    encoder: Encoder = "plain"
    may_fail: bool = False
    note: str = ""


def build_mapping(
    output: Mapping[str, OutputColumn],
    sources: Mapping[str, Column],
    targets: Iterable[Column],
    table: str,
    *,
    time_zone: str | None = None,
) -> tuple[WriteColumn, ...]:
    """Match the transform's columns with the target's by name.

    Args:
        output: the frame's columns after the transform.
        sources: the source's columns by name, for those that are plain copies.
        targets: the target's columns, in order.
        table: the target's name, for messages.
        time_zone: in which the source's local times are, if the job says so.

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
        origin = sources.get(column.source) if column.source else None
        if target.generated and origin is not None and origin.generated:
            continue  # both ends compute it
        if target.generated:
            problems.append(f"write {table}.{name}: the target computes this column itself. Drop it in the job")
            continue
        try:
            numeric = column.meaning is not None and column.meaning.kind == "numeric"
            mapped.append(write_column(name, column.dtype, origin, target, time_zone=time_zone, numeric=numeric))
        except NoRouteError as error:
            have = origin.pg_type if origin else f"a computed {column.dtype}"
            problems.append(f"write {table}.{name}: got {have}, expected {target.pg_type}. {error}")
    for name, target in existing.items():
        required = target.not_null or target.null_refused
        if name not in output and required and not target.has_default and not target.generated:
            problems.append(
                f"write {table}.{name}: it is NOT NULL without a default, and the source has no such column. "
                f"Compute it (transform: - set: {{{name}: …}}) or give it a default"
            )
    if problems:
        raise RefusedError("\n".join(problems))
    return tuple(mapped)


def write_column(
    name: str,
    dtype: pl.DataType,
    origin: Column | None,
    target: Column,
    *,
    time_zone: str | None = None,
    numeric: bool = False,
) -> WriteColumn:
    """Return how a column of type `dtype`, copied from `origin` or computed, is written into `target`.

    Args:
        name: of the column, in the frame and in the target.
        dtype: in the frame.
        origin: what it is a plain copy of.
        target: the target's column.
        time_zone: in which the source's local times are, if the job says so.
        numeric: a computed text holds numbers without a declared precision.

    Raises:
        NoRouteError: there is no way that changes no value; the text says what would do it.
    """
    if origin is None:
        computed = write_computed(name, dtype, target, numeric=numeric)
        written = WriteColumn(
            name=name,
            target=target,
            value=computed.value,
            wire=computed.wire,
            fits=computed.fits,
            may_fail=computed.wire == TEXT_WIRE and computed.may_fail,
            note=computed.note,
        )
    else:
        pair = casts.Pair(name=name, dtype=dtype, origin=origin, target=target, time_zone=time_zone)
        cast = casts.find_cast(pair)
        if cast is None:
            raise NoRouteError(casts.suggestion(pair))
        how = cast.write(pair)
        written = WriteColumn(
            name=name,
            target=target,
            value=how.value,
            wire=how.wire,
            fits=how.fits,
            encoder=how.encoder,
            may_fail=names_objects(target) and how.wire == TEXT_WIRE,
        )
    if (target.not_null or target.null_refused) and not (origin and origin.not_null):
        present = pl.col(name).is_not_null()
        written = replace(written, fits=present if written.fits is None else present & written.fits)
    return written


def as_text(
    columns: Sequence[WriteColumn], sources: Mapping[str, Column], copied: Mapping[str, str], time_zone: str | None
) -> tuple[WriteColumn, ...]:
    """Return the mapping for a chunk in which some columns hold PostgreSQL's own text.

    Args:
        columns: the run's mapping.
        sources: the source's columns by name.
        copied: column of the frame → source column, for those that are text in this chunk.
        time_zone: in which the source's local times are, if the job says so.
    """
    return tuple(_in_text(c, sources[copied[c.name]], time_zone) if c.name in copied else c for c in columns)


def _in_text(column: WriteColumn, origin: Column, time_zone: str | None) -> WriteColumn:
    return write_column(column.name, pl.String(), origin, column.target, time_zone=time_zone)


def split(frame: pl.DataFrame, columns: Sequence[WriteColumn]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Separate the rows of which every value fits the target from the others.

    Returns:
        The frame without them, and the others as `misfitting` gives them.
    """
    rejected = misfitting(frame, columns)
    if not rejected.height:
        return frame, rejected
    return frame.filter(~pl.col(RECORD).is_in(rejected[RECORD].implode())), rejected


def misfitting(frame: pl.DataFrame, columns: Sequence[WriteColumn]) -> pl.DataFrame:
    """Return the records with a value that does not fit the target: `RECORD`, ``rules`` list[str], ``message``."""
    checks = {f"type:{c.name}": c.fits.fill_null(value=True) for c in columns if c.fits is not None}
    none = pl.DataFrame(schema={RECORD: pl.Int64, "rules": pl.List(pl.String), "message": pl.String})
    if not checks:
        return none
    bad = frame.select(pl.any_horizontal(~check for check in checks.values())).to_series()
    if not bad.any():
        return none
    flags = frame.filter(bad).select(RECORD, *(~check.alias(name) for name, check in checks.items()))
    wanted = {f"type:{c.name}": c.target for c in columns}
    rules = pl.concat_list(pl.when(pl.col(name)).then(pl.lit(name)) for name in checks).list.drop_nulls()
    messages = pl.concat_list(
        pl.when(pl.col(name)).then(pl.lit(f"{wanted[name].name} does not fit {_described(wanted[name])}"))
        for name in checks
    ).list.drop_nulls()
    return flags.select(RECORD, rules.alias("rules"), messages.list.join("; ").alias("message"))


def _described(target: Column) -> str:
    return f"{target.pg_type} not null" if target.not_null or target.null_refused else target.pg_type
