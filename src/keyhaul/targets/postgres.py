"""PostgreSQL as a target: what is there, what must be created, and one transaction for each chunk."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import polars as pl
from psycopg import sql

from keyhaul import catalog
from keyhaul.errors import ChunkError, ConfigError, RefusedError
from keyhaul.mapping import WriteColumn, creatable
from keyhaul.model import RECORD, ChunkResult, Column, Counts, Timings
from keyhaul.pgtypes import ddl_type
from keyhaul.sql import statement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import psycopg

    from keyhaul.model import Staged
    from keyhaul.targets.session import Session
    from keyhaul.transform import OutputColumn


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetTable:
    """The table that a job loads.

    Attributes:
        schema, table: as stored, not quoted.
        columns: what it has, or what `ddl` will give it.
        ddl: the statements that create it, in order; empty when it is there.
        holds_rows: at least one row is there now.
    """

    schema: str
    table: str
    columns: tuple[Column, ...]
    ddl: tuple[str, ...] = ()
    holds_rows: bool = False

    @property
    def identifier(self) -> sql.Identifier:
        """Return the quoted ``schema.table``."""
        return sql.Identifier(self.schema, self.table)

    @property
    def label(self) -> str:
        """Return ``schema.table`` for people."""
        return f"{self.schema}.{self.table}"


def inspect_target(
    conn: psycopg.Connection[Any],
    name: str,
    *,
    output: Mapping[str, OutputColumn],
    sources: Mapping[str, Column],
    primary_key: Sequence[str],
) -> TargetTable:
    """Describe the target table, or what would be created for it. Changes nothing.

    Args:
        conn: a connection to the target.
        name: as a person gives it: SQL syntax, or ``schema.table`` taken literally.
        output: the columns after the transform.
        sources: the source's columns by name.
        primary_key: the source's primary key, for a table that is to be created.

    Raises:
        RefusedError: the name is not a table's, or a column has no type that can be created.
    """
    found = catalog.resolve(conn, name)
    if found is not None:
        oid, schema, table = found
        relation = catalog.describe_table(conn, oid, schema, table)
        if relation.kind not in {"r", "p"}:
            msg = f"load {relation.label}: it is not a table. Rows go into tables only; change --into or target.table"
            raise RefusedError(msg)
        _may_insert(conn, relation.from_item, relation.label)
        held = conn.execute(sql.SQL("select exists (select from {})").format(relation.from_item)).fetchone()
        return TargetTable(schema=schema, table=table, columns=relation.columns, holds_rows=bool(held and held[0]))
    schema, table = _new_name(conn, name)
    columns = _new_columns(output, sources)
    copies = {column.source: name for name, column in output.items() if column.source}
    key = [copies[k] for k in primary_key if k in copies] if all(k in copies for k in primary_key) else []
    ddl = _create_table(schema, table, columns, key, conn)
    return TargetTable(schema=schema, table=table, columns=columns, ddl=ddl)


def _may_insert(conn: psycopg.Connection[Any], item: sql.Composable, label: str) -> None:
    row = conn.execute("select has_table_privilege(%s, 'insert')", [item.as_string(conn)]).fetchone()
    if not (row and row[0]):
        msg = f"load {label}: this user may not insert into it. Grant INSERT on it"
        raise ConfigError(msg)


def _new_name(conn: psycopg.Connection[Any], name: str) -> tuple[str, str]:
    row = conn.execute("select current_schema()").fetchone()
    current = row[0] if row and row[0] else "public"
    try:
        parsed = conn.execute("select parse_ident(%s)", [name]).fetchone()
        parts = parsed[0] if parsed else [name]
    except Exception:  # noqa: BLE001 - not SQL syntax: the name is taken literally
        conn.rollback()
        schema, _, table = name.rpartition(".")
        parts = [schema, table] if schema else [table]
    if len(parts) > 2:  # noqa: PLR2004 - schema and table
        msg = f"load {name}: expected schema.table. Change --into or target.table"
        raise RefusedError(msg)
    return (parts[0], parts[1]) if len(parts) == 2 else (current, parts[0])  # noqa: PLR2004


def _new_columns(output: Mapping[str, OutputColumn], sources: Mapping[str, Column]) -> tuple[Column, ...]:
    columns: list[Column] = []
    problems = []
    for name, column in output.items():
        origin = sources.get(column.source) if column.source else None
        if origin is not None:
            if not creatable(origin):
                problems.append(
                    f"create column {name}: type {origin.pg_type} is not built in, and keyhaul creates no types. "
                    "Create the target table yourself, or cast the column to text in a query"
                )
            columns.append(replace(origin, name=name, has_default=False, generated=False))
            continue
        pg_type = ddl_type(column.dtype)
        if pg_type is None:
            problems.append(f"create column {name}: no PostgreSQL type for {column.dtype}. Cast it in its expression")
            continue
        columns.append(_computed_column(name, pg_type, column.dtype))
    if problems:
        raise RefusedError("\n".join(problems))
    return tuple(columns)


_BASE_TYPES = {
    "bigint": "int8", "timestamp with time zone": "timestamptz", "timestamp without time zone": "timestamp",
    "real": "float4", "double precision": "float8", "boolean": "bool", "time without time zone": "time",
}  # fmt: skip


def _computed_column(name: str, pg_type: str, dtype: pl.DataType) -> Column:
    if isinstance(dtype, pl.Decimal):
        return Column(name=name, pg_type=pg_type, base_type="numeric", precision=dtype.precision, scale=dtype.scale)
    return Column(name=name, pg_type=pg_type, base_type=_BASE_TYPES.get(pg_type, pg_type))


def _create_table(
    schema: str, table: str, columns: Sequence[Column], key: Sequence[str], conn: psycopg.Connection[Any]
) -> tuple[str, ...]:
    lines = [
        sql.SQL("    {} {}{}").format(
            sql.Identifier(column.name),
            sql.SQL(column.pg_type),  # type: ignore[arg-type]  # format_type's own spelling
            sql.SQL(" not null" if column.not_null else ""),
        )
        for column in columns
    ]
    if key:
        names = sql.SQL(", ").join(map(sql.Identifier, key))
        lines.append(sql.SQL("    primary key ({})").format(names))
    body = sql.SQL(",\n").join(lines)
    statements = []
    there = conn.execute("select to_regnamespace(quote_ident(%s)) is not null", [schema]).fetchone()
    if not (there and there[0]):
        statements.append(sql.SQL("create schema {}").format(sql.Identifier(schema)).as_string(conn))
    statements.append(
        sql.SQL("create table {} (\n{}\n)").format(sql.Identifier(schema, table), body).as_string(conn)
    )
    return tuple(statements)


def prepare(conn: psycopg.Connection[Any], target: TargetTable) -> None:
    """Create the target table when it is missing, in one transaction.

    Raises:
        RefusedError: the server does not let us.
    """
    try:
        with conn.transaction():
            for ddl in target.ddl:
                conn.execute(ddl)  # type: ignore[call-overload]  # composed from quoted parts above
    except Exception as error:
        msg = f"create {target.label}: {str(error).strip().splitlines()[0]}"
        raise RefusedError(msg) from error


# --- one chunk ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """What the chunk's ledger row will say beside the counts that SQL takes."""

    run_id: str
    chunk: int
    ledger_schema: str
    worker: int
    sitting: int
    attempts: int
    timings: Timings
    bytes_read: int


def ask_ledger(session: Session, entry: LedgerEntry) -> ChunkResult | None:
    """Lock the chunk's ledger row; return what it says when the chunk is committed already, else None.

    Waits for another transaction that holds the row, so that an answer is never early.

    Raises:
        ChunkError: the ledger has no such chunk.
    """
    rows = session.execute(
        statement("claim_chunk", entry.ledger_schema, run_id=entry.run_id, chunk=entry.chunk)
    )
    if not rows:
        msg = f"ask ledger: run {entry.run_id} has no chunk {entry.chunk}; someone has deleted it"
        raise ChunkError(msg)
    status, read, loaded, unchanged, duplicate, filtered, quarantined, size, attempts = rows[0]
    if status != "done":
        return None
    counts = Counts(
        read=read, loaded=loaded, unchanged=unchanged, duplicate=duplicate, filtered=filtered, quarantined=quarantined
    )
    return ChunkResult(chunk=entry.chunk, counts=counts, timings=Timings(), attempts=attempts, bytes_read=size)


def load(
    session: Session, target: TargetTable, columns: Sequence[WriteColumn], staged: Staged, entry: LedgerEntry
) -> ChunkResult:
    """Load one chunk, its quarantined records and its ledger row in one transaction.

    Rows are counted by the server's own statistics of this transaction, not by what was sent.

    Returns:
        What the ledger now holds; if the chunk was there already, what it held before, and nothing is done.

    Raises:
        TransientError: the outcome is unknown or another try may help; ask the ledger first.
        ChunkError: the target rejects the rows, or stored another number than was sent.
    """
    already = ask_ledger(session, entry)
    if already is not None:
        return already
    before = _inserted(session, target)
    if staged.accepted.height:
        _write(session, target, columns, staged.accepted)
    loaded = _inserted(session, target) - before
    if loaded != staged.accepted.height:
        msg = (
            f"load chunk: {target.label} stored {loaded:,} of {staged.accepted.height:,} rows; "
            "a trigger or rule there drops or adds rows. Disable it for the load"
        )
        raise ChunkError(msg)
    _write_quarantine(session, staged.rejected, entry)
    counts = replace(staged.counts, loaded=loaded, quarantined=_count_quarantine(session, entry))
    result = _record(session, counts, staged, entry)
    session.commit()
    return result


def _inserted(session: Session, target: TargetTable) -> int:
    name = target.identifier.as_string(None)
    rows = session.execute(
        sql.SQL(
            "select coalesce(sum(pg_stat_get_xact_tuples_inserted(oid)), 0)::bigint from (select {name}::regclass::oid"
            " union select relid::oid from pg_partition_tree({name}::regclass)) as parts(oid)"
        ).format(name=sql.Literal(name))
    )
    return int(rows[0][0])


def _write(session: Session, target: TargetTable, columns: Sequence[WriteColumn], frame: pl.DataFrame) -> None:
    values = frame.select(_wire_value(column).alias(column.name) for column in columns)
    data = values.to_arrow(compat_level=pl.CompatLevel.newest())
    data = _exact(data, columns)
    if all(column.wire == "direct" for column in columns):
        session.copy(target.identifier, data, {c.name: c.encoder for c in columns})
        return
    table = sql.Identifier("pg_temp", "_keyhaul_chunk")
    definitions = sql.SQL(", ").join(
        sql.SQL("{} {}").format(
            sql.Identifier(c.name),
            sql.SQL("text" if c.wire == "text" else c.target.pg_type),  # type: ignore[arg-type]
        )
        for c in columns
    )
    session.execute(sql.SQL("drop table if exists {}").format(table))
    session.execute(
        sql.SQL("create temp table {} ({}) on commit drop").format(sql.Identifier("_keyhaul_chunk"), definitions)
    )
    session.copy(table, data, {c.name: c.encoder for c in columns})
    names = sql.SQL(", ").join(sql.Identifier(c.name) for c in columns)
    casts = sql.SQL(", ").join(
        sql.SQL("{}::{}").format(sql.Identifier(c.name), sql.SQL(c.target.pg_type))  # type: ignore[arg-type]
        if c.wire == "text"
        else sql.Identifier(c.name)
        for c in columns
    )
    session.execute(
        sql.SQL("insert into {} ({}) overriding system value select {} from {}").format(
            target.identifier, names, casts, table
        )
    )


def _wire_value(column: WriteColumn) -> pl.Expr:
    if column.encoder == "uuid" and column.wire == "direct":
        return column.value.str.replace_all("-", "", literal=True).str.decode("hex")
    return column.value


def _exact(data: Any, columns: Sequence[WriteColumn]) -> Any:  # noqa: ANN401 - a pyarrow Table in and out
    """Give uuids the fixed width of 16 bytes; every other column has its exact type already."""
    import pyarrow as pa  # noqa: PLC0415

    for index, column in enumerate(columns):
        if column.encoder == "uuid" and column.wire == "direct":
            fixed = data.column(index).cast(pa.binary()).cast(pa.binary(16))
            data = data.set_column(index, column.name, fixed)
    return data


def _write_quarantine(session: Session, rejected: pl.DataFrame, entry: LedgerEntry) -> None:
    if not rejected.height:
        return
    session.execute(
        sql.SQL(
            "create temp table if not exists _keyhaul_quarantine"
            " (record bigint, stage text, rules text[], message text, key text, data text) on commit drop"
        )
    )
    columns = rejected.select(
        pl.col(RECORD).alias("record"), "stage", "rules", "message", "key", "data"
    ).to_arrow(compat_level=pl.CompatLevel.oldest())
    session.copy(sql.Identifier("pg_temp", "_keyhaul_quarantine"), columns, {})
    session.execute(statement("insert_quarantine", entry.ledger_schema, run_id=entry.run_id, chunk=entry.chunk))


def _count_quarantine(session: Session, entry: LedgerEntry) -> int:
    query = statement("count_quarantine", entry.ledger_schema, run_id=entry.run_id, chunk=entry.chunk)
    return int(session.execute(query)[0][0])


def _record(session: Session, counts: Counts, staged: Staged, entry: LedgerEntry) -> ChunkResult:
    timings = entry.timings
    elapsed = timings.read_seconds + timings.transform_seconds + timings.stage_seconds
    rows = session.execute(
        statement(
            "chunk_done",
            entry.ledger_schema,
            run_id=entry.run_id,
            chunk=entry.chunk,
            attempts=entry.attempts,
            rows_read=counts.read,
            rows_loaded=counts.loaded,
            rows_unchanged=counts.unchanged,
            rows_duplicate=counts.duplicate,
            rows_filtered=counts.filtered,
            rows_quarantined=counts.quarantined,
            warned=json.dumps(dict(staged.warned)),
            read_seconds=timings.read_seconds,
            transform_seconds=timings.transform_seconds,
            stage_seconds=timings.stage_seconds,
            bytes_read=entry.bytes_read,
            worker=entry.worker,
            sitting=entry.sitting,
            elapsed_seconds=elapsed,
        )
    )
    if not rows:
        msg = f"record chunk {entry.chunk}: its ledger row is gone or done already"
        raise ChunkError(msg)
    return ChunkResult(
        chunk=entry.chunk,
        counts=counts,
        timings=replace(timings, load_seconds=float(rows[0][0])),
        attempts=entry.attempts,
        bytes_read=entry.bytes_read,
        warned=staged.warned,
    )
