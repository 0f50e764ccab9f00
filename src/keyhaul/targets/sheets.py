"""One table's rows of a chunk whose records go into several: the parents' keys, the write, what was stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import polars as pl
from psycopg import sql

from keyhaul.errors import ChunkError
from keyhaul.model import RECORD, TableCounts
from keyhaul.postgres.pgtypes import DIRECT_WIRE
from keyhaul.targets.rows import (
    CHUNK,
    INVALID,
    appended,
    arrow_rows,
    cast_column,
    fill_temporary,
    on_conflict,
    stored_rows,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyhaul.targets.rows import Destination
    from keyhaul.targets.session import Session
    from keyhaul.transform.mapping import WriteColumn

RANKED: Final = sql.Identifier("pg_temp", "_keyhaul_ranked")
"""The conflict columns of the rows in `CHUNK`, as the target will have them; the row with n = 1 is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A column whose values are those of the record's row in an earlier table.

    Attributes:
        column: how it is written.
        parent: place of the parent in the list of sheets.
        of: the parent's column.
        dtype: of the values, whatever they come as: what is asked comes as text.
    """

    column: WriteColumn
    parent: int
    of: str
    dtype: pl.DataType


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """One table's rows of a chunk.

    Attributes:
        label: ``schema.table``.
        destination: the table, all columns that are written, and what to do with a row that is there.
        frame: `RECORD` (repeated when a record has several rows) and the columns, in the order of records.
        given: columns that `frame` lacks, because they come from a parent's rows.
        allocated: columns of `frame` that it lacks until their values are taken from their sequences.
        asked: columns that a child takes from what the table holds after the write, by the conflict columns.
    """

    label: str
    destination: Destination
    frame: pl.DataFrame
    given: tuple[Given, ...] = ()
    allocated: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()


def with_given(frame: pl.DataFrame, given: Sequence[Given], parents: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Add the parents' values; NULL where the record has no row there."""
    for one in given:
        values = parents[one.parent].select(RECORD, pl.col(one.of).cast(one.dtype).alias(one.column.name))
        frame = frame.join(values, on=RECORD, how="left", maintain_order="left")
    return frame


def append_rows(session: Session, sheet: Sheet, frame: pl.DataFrame) -> tuple[TableCounts, set[int]]:
    """Append; returns the rows that the server counted, which are all, and their records."""
    columns, table = sheet.destination.columns, sheet.destination.table
    before = stored_rows(session, table)
    if all(column.wire == DIRECT_WIRE for column in columns):
        session.copy(table, arrow_rows(frame, columns), {c.name: c.encoder for c in columns})
    else:
        fill_temporary(session, columns, frame, numbered=False)
        names = sql.SQL(", ").join(sql.Identifier(c.name) for c in columns)
        casts = sql.SQL(", ").join(cast_column(column) for column in columns)
        insert = sql.SQL("insert into {} ({}) overriding system value select {} from {}")
        session.execute(insert.format(table, names, casts, CHUNK))
    placed = appended(session, table, before, frame.height, pl.DataFrame(schema=INVALID))
    return TableCounts(table=sheet.label, inserted=placed.inserted), set(frame[RECORD].to_list())


def merge_rows(session: Session, sheet: Sheet, frame: pl.DataFrame) -> tuple[TableCounts, set[int]]:
    """Insert by ``ON CONFLICT``; which rows were stored is what RETURNING and the server's statistics agree on."""
    destination = sheet.destination
    columns, table = destination.columns, destination.table
    fill_temporary(
        session, columns, frame.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias(RECORD)), numbered=True
    )
    duplicate = _rank(session, destination)
    before = stored_rows(session, table)
    keys = [f"k{number}" for number in range(len(destination.conflict))]
    query = sql.SQL(
        "with _stored as (insert into {table} as _there ({names}) overriding system value"
        " select {casts} from {chunk} join {ranked} as _ranked on _ranked._row = {record} where _ranked._n = 1"
        " order by {order} {conflict} returning {returned})"
        " select _row from {ranked} join (select {returned} from _stored) as s({keys}) on {same} where _n = 1"
        " union all select _row from {ranked} where not _keyed and (select count(*) from _stored) >= 0"
    ).format(
        table=table,
        names=sql.SQL(", ").join(sql.Identifier(c.name) for c in columns),
        casts=sql.SQL(", ").join(cast_column(c) for c in columns),
        chunk=CHUNK,
        ranked=RANKED,
        record=sql.Identifier(RECORD),
        order=sql.SQL(", ").join(sql.SQL("_ranked.") + sql.Identifier(f"_{key}") for key in keys),
        conflict=on_conflict(destination),
        returned=sql.SQL(", ").join(map(sql.Identifier, destination.conflict)),
        keys=sql.SQL(", ").join(map(sql.Identifier, keys)),
        same=sql.SQL(" and ").join(
            sql.SQL("{} = s.{}").format(sql.Identifier(f"_{key}"), sql.Identifier(key)) for key in keys
        ),
    )
    rows = [row[0] for row in session.execute(query)]
    after = stored_rows(session, table)
    inserted, updated = after[0] - before[0], after[1] - before[1]
    if len(rows) != inserted + updated:
        msg = (
            f"load chunk: {sheet.label} returned {len(rows):,} rows and stored {inserted + updated:,}; a trigger or "
            "rule there changes, drops or adds rows. Disable it for the load"
        )
        raise ChunkError(msg)
    unchanged = frame.height - duplicate - inserted - updated
    count = TableCounts(table=sheet.label, inserted=inserted, updated=updated, unchanged=unchanged, duplicate=duplicate)
    return count, set(frame[RECORD].gather(rows).to_list())


def _rank(session: Session, destination: Destination) -> int:
    """Say which row of each conflict key is written: the newest, then the last; for skip the first.

    Returns:
        How many rows are not written, because another one has their key.
    """
    casts = {column.name: _exactly(column) for column in destination.columns}
    keys = [casts[name] for name in destination.conflict]
    last = destination.mode == "upsert"
    order = [sql.SQL("{} desc" if last else "{}").format(sql.Identifier(RECORD))]
    if destination.newer_by:
        order.insert(0, sql.SQL("{} desc nulls last").format(casts[destination.newer_by]))
    keyed = sql.SQL(" and ").join(sql.SQL("{} is not null").format(key) for key in keys)
    query = sql.SQL(
        "create temp table _keyhaul_ranked on commit drop as select {record} as _row, {keys}, {keyed} as _keyed,"
        " case when {keyed} then row_number() over (partition by {listed} order by {order}) else 1 end as _n"
        " from {chunk}"
    ).format(
        record=sql.Identifier(RECORD),
        keys=sql.SQL(", ").join(
            sql.SQL("{} as {}").format(key, sql.Identifier(f"_k{number}")) for number, key in enumerate(keys)
        ),
        keyed=keyed,
        listed=sql.SQL(", ").join(keys),
        order=sql.SQL(", ").join(order),
        chunk=CHUNK,
    )
    session.execute(sql.SQL("drop table if exists {}").format(RANKED))
    session.execute(query)
    # Without statistics the planner would scan a large table whole for the keys of a few rows.
    session.execute(sql.SQL("analyze {}").format(RANKED))
    return int(session.execute(sql.SQL("select count(*) from {} where _n > 1").format(RANKED))[0][0])


def _exactly(column: WriteColumn) -> sql.Composable:
    """Return a column's value as the target will hold it, its modifier applied."""
    return sql.SQL("({})::{}").format(cast_column(column), sql.SQL(column.target.pg_type))


def ask_parent(session: Session, sheet: Sheet, frame: pl.DataFrame) -> pl.DataFrame:
    """Return the values that the table's rows have now, for each record whose conflict columns have no NULL.

    Each in its text form.
    """
    destination = sheet.destination
    if destination.mode == "append":
        return frame
    same = sql.SQL(" and ").join(
        sql.SQL("_there.{} = {}").format(sql.Identifier(name), sql.Identifier(f"_k{number}"))
        for number, name in enumerate(destination.conflict)
    )
    query = sql.SQL("select _row, {} from {} join {} as _there on {}").format(
        sql.SQL(", ").join(sql.SQL("_there.{}::text").format(sql.Identifier(name)) for name in sheet.asked),
        RANKED,
        destination.table,
        same,
    )
    found: list[tuple[Any, ...]] = session.execute(query)
    schema = {"_row": pl.Int64(), **dict.fromkeys(sheet.asked, pl.String())}
    values = pl.DataFrame(found, schema=schema, orient="row")
    return values.select(frame[RECORD].gather(values["_row"]).alias(RECORD), *sheet.asked)
