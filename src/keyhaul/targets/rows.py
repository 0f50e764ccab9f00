"""The rows of one chunk into the target's table: straight, or through a temporary table that casts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl
from psycopg import sql

from keyhaul.errors import ChunkError
from keyhaul.model import RECORD
from keyhaul.pgtypes import DIRECT_WIRE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyhaul.mapping import WriteColumn
    from keyhaul.targets.session import Session

INVALID: Final = pl.Schema(
    {RECORD: pl.Int64(), "stage": pl.String(), "rules": pl.List(pl.String()), "message": pl.String()}
)

CHUNK: Final = sql.Identifier("pg_temp", "_keyhaul_chunk")
"""The temporary table through which rows go that the target has to cast."""


def write_rows(
    session: Session, table: sql.Identifier, columns: Sequence[WriteColumn], frame: pl.DataFrame
) -> pl.DataFrame:
    """Write a chunk's rows into the target's table, inside the session's transaction.

    Args:
        session: the worker's.
        table: the target.
        columns: how each column is written.
        frame: the accepted rows, with ``_record``.

    Returns:
        The records with a text that the target's type does not take, as ``_record``, ``stage``, ``rules``
        and ``message``; they are not written.

    Raises:
        ChunkError: the target rejects the rows; or holds such a text and is older than PostgreSQL 16,
            which has no way to ask for one without an error.
    """
    none = pl.DataFrame(schema=INVALID)
    if not frame.height:
        return none
    if all(column.wire == DIRECT_WIRE for column in columns):
        session.copy(table, _arrow(frame, columns), {c.name: c.encoder for c in columns})
        return none
    doubtful = [column for column in columns if column.may_fail]
    fill_temporary(session, columns, frame, numbered=bool(doubtful))
    invalid = _invalid(session, doubtful) if doubtful else none
    if invalid.height:
        records = sql.SQL(", ").join(map(sql.Literal, invalid[RECORD]))
        session.execute(sql.SQL("delete from {} where {} in ({})").format(CHUNK, sql.Identifier(RECORD), records))
    names = sql.SQL(", ").join(sql.Identifier(c.name) for c in columns)
    casts = sql.SQL(", ").join(cast_column(column) for column in columns)
    insert = sql.SQL("insert into {} ({}) overriding system value select {} from {}")
    session.execute(insert.format(table, names, casts, CHUNK))
    return invalid


def fill_temporary(session: Session, columns: Sequence[WriteColumn], frame: pl.DataFrame, *, numbered: bool) -> None:
    """Copy a chunk into the temporary table, with ``_record`` if it is to be `numbered`."""
    definitions = [
        sql.SQL("{} {}").format(sql.Identifier(c.name), sql.SQL(c.target.pg_type if c.wire == DIRECT_WIRE else c.wire))
        for c in columns
    ]
    data = _arrow(frame, columns)
    if numbered:
        definitions.append(sql.SQL("{} bigint").format(sql.Identifier(RECORD)))
        data = data.append_column(RECORD, frame[RECORD].to_arrow())
    session.execute(sql.SQL("drop table if exists {}").format(CHUNK))
    create = sql.SQL("create temp table {} ({}) on commit drop")
    session.execute(create.format(sql.Identifier("_keyhaul_chunk"), sql.SQL(", ").join(definitions)))
    session.copy(CHUNK, data, {c.name: c.encoder for c in columns})


def _invalid(session: Session, doubtful: Sequence[WriteColumn]) -> pl.DataFrame:
    """Ask the target which texts its types do not take; one pass over the temporary table."""
    known = session.execute(sql.SQL("select to_regproc('pg_catalog.pg_input_is_valid') is not null"))
    if not known[0][0]:
        return pl.DataFrame(schema=INVALID)
    tests = [
        sql.SQL("coalesce(not pg_input_is_valid({}, {}), false)").format(
            sql.Identifier(c.name), sql.Literal(c.target.pg_type)
        )
        for c in doubtful
    ]
    query = sql.SQL("select * from (select {}, {} from {}) as t(_record, {}) where {}").format(
        sql.Identifier(RECORD),
        sql.SQL(", ").join(tests),
        CHUNK,
        sql.SQL(", ").join(sql.Identifier(f"bad{number}") for number in range(len(tests))),
        sql.SQL(" or ").join(sql.Identifier(f"bad{number}") for number in range(len(tests))),
    )
    found = []
    for record, *flags in session.execute(query):
        bad = [column for column, flag in zip(doubtful, flags, strict=True) if flag]
        rules = [f"type:{column.name}" for column in bad]
        message = "; ".join(f"{column.name} is no {column.target.pg_type}" for column in bad)
        found.append((record, "type", rules, message))
    return pl.DataFrame(found, schema=INVALID, orient="row")


def cast_column(column: WriteColumn) -> sql.Composable:
    """Return what is selected from the temporary table; the assignment that follows checks the modifier."""
    name = sql.Identifier(column.name)
    if column.wire == DIRECT_WIRE:
        return name
    if column.target.base_type == "regclass":
        # The cast from text, unlike the type's input, does not know that - is no relation.
        return sql.SQL("case when {0} = '-' then 0::oid::regclass else {0}::regclass end").format(name)
    return sql.SQL("{}::{}").format(name, sql.SQL(column.target.cast_type))


def _arrow(frame: pl.DataFrame, columns: Sequence[WriteColumn]) -> Any:  # noqa: ANN401 - a pyarrow Table
    """Return the rows with the exact Arrow type of each column's wire."""
    import pyarrow as pa

    values = frame.select(_wire_value(column).alias(column.name) for column in columns)
    data = values.to_arrow(compat_level=pl.CompatLevel.newest())
    for index, column in enumerate(columns):
        cells = data.column(index)
        if column.encoder == "uuid" and column.wire == DIRECT_WIRE:
            try:
                data = data.set_column(index, column.name, cells.cast(pa.binary()).cast(pa.binary(16)))
            except pa.ArrowInvalid as error:
                msg = f"encode chunk: {column.name} holds a text that is no uuid"
                raise ChunkError(msg) from error
        elif cells.type == pa.binary_view():
            data = data.set_column(index, column.name, cells.cast(pa.large_binary()))
    return data


def _wire_value(column: WriteColumn) -> pl.Expr:
    if column.encoder == "uuid" and column.wire == DIRECT_WIRE:
        return column.value.str.replace_all("-", "", literal=True).str.decode("hex")
    return column.value
