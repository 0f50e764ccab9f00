"""The rows of one chunk into the target's table: straight, or through a temporary table that casts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import polars as pl
from psycopg import sql

from keyhaul.errors import ChunkError
from keyhaul.model import RECORD, TableCounts
from keyhaul.postgres.pgtypes import DIRECT_WIRE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyhaul.targets.session import Session
    from keyhaul.targets.shape import Shape
    from keyhaul.transform.mapping import WriteColumn

INVALID: Final = pl.Schema(
    {RECORD: pl.Int64(), "stage": pl.String(), "rules": pl.List(pl.String()), "message": pl.String()}
)

CHUNK: Final = sql.Identifier("pg_temp", "_keyhaul_chunk")
"""The temporary table through which rows go that the target has to cast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where a job's rows go, and what becomes of one that is there already.

    Attributes:
        table: the target.
        columns: how each column is written.
        mode: ``append``, ``skip`` (what is there stays) or ``upsert`` (what differs is updated).
        conflict: the columns of the unique index that says what is there already; empty for append.
        rewritten: conflict columns of which equal values can differ (1.0 and 1.00): upsert writes them anew.
        newer_by: upsert only a row whose value here is greater than the one that is there.
        shape: of the table when the run began; None: nothing is known of it.
    """

    table: sql.Identifier
    columns: tuple[WriteColumn, ...]
    mode: str = "append"
    conflict: tuple[str, ...] = ()
    newer_by: str | None = None
    rewritten: tuple[str, ...] = ()
    shape: Shape | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What became of the rows of one write, counted by the target.

    Attributes:
        inserted, updated: stored.
        unchanged: there already, and kept (skip) or equal or newer (upsert).
        duplicate: another row of the same write has their conflict columns and was preferred.
        invalid: records with a text that the target's type does not take, as `RECORD`, ``stage``,
            ``rules`` and ``message``; not written.
        tables: of a job with several: what became of each one's rows. The other numbers are records then.
    """

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    duplicate: int = 0
    invalid: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=INVALID))
    tables: tuple[TableCounts, ...] = ()

    def __add__(self, other: Placed) -> Placed:
        """Return the numbers and the rejected records of both writes."""
        return Placed(
            inserted=self.inserted + other.inserted,
            updated=self.updated + other.updated,
            unchanged=self.unchanged + other.unchanged,
            duplicate=self.duplicate + other.duplicate,
            invalid=pl.concat([self.invalid, other.invalid]),
        )


def write_rows(session: Session, destination: Destination, frame: pl.DataFrame) -> Placed:
    """Write rows into the target's table, inside the session's transaction.

    Args:
        session: the worker's.
        destination: the table, and what to do with a row that is there.
        frame: the accepted rows, with `RECORD`.

    Raises:
        RejectedError: the target does not take a row.
        ChunkError: a trigger drops or adds rows; or a text is not of its type and the server is older
            than PostgreSQL 16, which has no way to ask for one without an error.
    """
    if not frame.height:
        return Placed()
    columns, table = destination.columns, destination.table
    before = stored_rows(session, table)
    if destination.mode == "append" and all(column.wire == DIRECT_WIRE for column in columns):
        session.copy(table, arrow_rows(frame, columns), {c.name: c.encoder for c in columns})
        return appended(session, table, before, frame.height, pl.DataFrame(schema=INVALID))
    doubtful = any(column.may_fail for column in columns)
    fill_temporary(session, columns, frame, numbered=doubtful or destination.mode == "upsert")
    invalid = leave_out_invalid(session, columns)
    sent = frame.height - invalid.height
    duplicate = _drop_rivals(session, destination) if destination.mode == "upsert" else 0
    names = sql.SQL(", ").join(sql.Identifier(c.name) for c in columns)
    casts = sql.SQL(", ").join(cast_column(column) for column in columns)
    insert = sql.SQL("insert into {} as _there ({}) overriding system value select {} from {}{}")
    session.execute(insert.format(table, names, casts, CHUNK, on_conflict(destination)))
    if destination.mode == "append":
        return appended(session, table, before, sent, invalid)
    after = stored_rows(session, table)
    inserted, updated = after[0] - before[0], after[1] - before[1]
    return Placed(
        inserted=inserted,
        updated=updated,
        unchanged=sent - duplicate - inserted - updated,
        duplicate=duplicate,
        invalid=invalid,
    )


def appended(
    session: Session, table: sql.Identifier, before: tuple[int, int, int], sent: int, invalid: pl.DataFrame
) -> Placed:
    """Return what an append stored; a ChunkError when that is another number of rows than were sent."""
    now = stored_rows(session, table)
    stored = now[0] - before[0] - (now[2] - before[2])
    if stored != sent:
        msg = (
            f"load chunk: {table.as_string(None).replace(chr(34), '')} stored {stored:,} of {sent:,} rows; "
            "a trigger or rule there drops or adds rows. Disable it for the load"
        )
        raise ChunkError(msg)
    return Placed(inserted=stored, invalid=invalid)


def stored_rows(session: Session, table: sql.Identifier) -> tuple[int, int, int]:
    """Return the rows that this transaction has inserted, updated and deleted, by the server's own statistics."""
    rows = session.execute(
        sql.SQL(
            "select coalesce(sum(pg_stat_get_xact_tuples_inserted(oid)), 0)::bigint,"
            " coalesce(sum(pg_stat_get_xact_tuples_updated(oid)), 0)::bigint,"
            " coalesce(sum(pg_stat_get_xact_tuples_deleted(oid)), 0)::bigint from (select {name}::regclass::oid"
            " union select relid::oid from pg_partition_tree({name}::regclass)) as parts(oid)"
        ).format(name=sql.Literal(table.as_string(None)))
    )
    return int(rows[0][0]), int(rows[0][1]), int(rows[0][2])


def _drop_rivals(session: Session, destination: Destination) -> int:
    """Leave one row for each conflict key in the temporary table, the newest, then the last; return how many went."""
    casts = {column.name: cast_column(column) for column in destination.columns}
    keys = sql.SQL(", ").join(casts[name] for name in destination.conflict)
    present = sql.SQL(" and ").join(sql.SQL("{} is not null").format(casts[name]) for name in destination.conflict)
    order = [sql.SQL("{} desc").format(sql.Identifier(RECORD))]
    if destination.newer_by:
        order.insert(0, sql.SQL("{} desc nulls last").format(casts[destination.newer_by]))
    query = sql.SQL(
        "with ranked as (select ctid as place, row_number() over (partition by {keys} order by {order}) as n"
        " from {chunk} where {present}),"
        " gone as (delete from {chunk} where ctid in (select place from ranked where n > 1) returning 1)"
        " select count(*) from gone"
    ).format(keys=keys, order=sql.SQL(", ").join(order), chunk=CHUNK, present=present)
    return int(session.execute(query)[0][0])


def on_conflict(destination: Destination) -> sql.Composable:
    """Return the ON CONFLICT clause of the destination's mode; nothing for append."""
    if destination.mode == "append":
        return sql.SQL("")
    keys = sql.SQL(", ").join(map(sql.Identifier, destination.conflict))
    left_alone = set(destination.conflict) - set(destination.rewritten)
    others = [c.name for c in destination.columns if c.name not in left_alone]
    if destination.mode == "skip" or not others:
        return sql.SQL(" on conflict ({}) do nothing").format(keys)
    assignments = sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in others)
    # As verify compares: 1.5 is not 1.50, and json not json with other blanks.
    there, new = (
        sql.SQL(", ").join(sql.SQL(f"{table}.{{}}").format(sql.Identifier(name)) for name in others)
        for table in ("_there", "excluded")
    )
    differs = sql.SQL("row({})::record *<> row({})::record").format(there, new)
    newer: sql.Composable = sql.SQL("")
    if destination.newer_by:
        name = sql.Identifier(destination.newer_by)
        newer = sql.SQL(" and (_there.{0} is null or excluded.{0} > _there.{0})").format(name)
    return sql.SQL(" on conflict ({}) do update set {} where ({}){}").format(keys, assignments, differs, newer)


def fill_temporary(
    session: Session, columns: Sequence[WriteColumn], frame: pl.DataFrame, *, numbered: bool, bare: bool = False
) -> None:
    """Copy a chunk into the temporary table, with `RECORD` if it is to be `numbered`.

    Its columns have the target's types; `bare` ones take what a domain or a length there would refuse.
    """
    definitions = [
        sql.SQL("{} {}").format(
            sql.Identifier(c.name),
            sql.SQL(c.wire if c.wire != DIRECT_WIRE else (bare and c.target.bare_type) or c.target.pg_type),
        )
        for c in columns
    ]
    data = arrow_rows(frame, columns)
    if numbered:
        definitions.append(sql.SQL("{} bigint").format(sql.Identifier(RECORD)))
        data = data.append_column(RECORD, frame[RECORD].to_arrow())
    session.execute(sql.SQL("drop table if exists {}").format(CHUNK))
    create = sql.SQL("create temp table {} ({}) on commit drop")
    session.execute(create.format(sql.Identifier("_keyhaul_chunk"), sql.SQL(", ").join(definitions)))
    session.copy(CHUNK, data, {c.name: c.encoder for c in columns})


def leave_out_invalid(session: Session, columns: Sequence[WriteColumn]) -> pl.DataFrame:
    """Delete the rows with a text that its type does not take from the temporary table, and return their records."""
    doubtful = [column for column in columns if column.may_fail]
    invalid = invalid_texts(session, doubtful) if doubtful else pl.DataFrame(schema=INVALID)
    if invalid.height:
        records = sql.SQL(", ").join(map(sql.Literal, invalid[RECORD]))
        session.execute(sql.SQL("delete from {} where {} in ({})").format(CHUNK, sql.Identifier(RECORD), records))
    return invalid


def invalid_texts(session: Session, doubtful: Sequence[WriteColumn]) -> pl.DataFrame:
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


def arrow_rows(frame: pl.DataFrame, columns: Sequence[WriteColumn]) -> Any:  # noqa: ANN401 - a pyarrow Table
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
