"""PostgreSQL as a target: what is there, what must be created, and one transaction for each chunk."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import polars as pl
import psycopg
from psycopg import errors, sql

from keyhaul import catalog
from keyhaul.errors import ChunkError, ConfigError, RefusedError
from keyhaul.faults import pass_point
from keyhaul.model import RECORD, ChunkResult, Column, Counts, Timings
from keyhaul.pgtypes import ddl_type
from keyhaul.sql import statement
from keyhaul.targets.ddl import Ddl, compose_ddl
from keyhaul.targets.isolate import write_chunk
from keyhaul.targets.records import write_records
from keyhaul.targets.replayed import lock_records, settle
from keyhaul.targets.rows import Destination

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyhaul.definition import TableDefinition
    from keyhaul.mapping import WriteColumn
    from keyhaul.model import Staged, TableCounts
    from keyhaul.targets.replayed import Batch
    from keyhaul.targets.session import Session
    from keyhaul.targets.sheets import Sheet
    from keyhaul.transform import OutputColumn


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetTable:
    """The table that a job loads.

    Attributes:
        schema, table: as stored, not quoted.
        columns: what it has, or what `ddl` will give it.
        ddl: the statements that create it and finish it; empty when it is there.
        holds_rows: at least one row is there now.
        primary_key: its columns, there or to be created.
        mode, conflict, newer_by: what becomes of a row that is there already; see `Destination`.
        fresh: in mode replace, the table that is loaded in the place of this one; empty for itself.
        others: further tables that the same records go to, after this one.
    """

    schema: str
    table: str
    columns: tuple[Column, ...]
    ddl: Ddl = field(default_factory=Ddl)
    holds_rows: bool = False
    primary_key: tuple[str, ...] = ()
    mode: str = "append"
    conflict: tuple[str, ...] = ()
    newer_by: str | None = None
    fresh: str = ""
    others: tuple[TargetTable, ...] = ()

    def destination(self, columns: Sequence[WriteColumn]) -> Destination:
        """Return where rows with these columns go."""
        return Destination(
            table=self.loaded,
            columns=tuple(columns),
            mode="append" if self.mode == "replace" else self.mode,
            conflict=self.conflict,
            newer_by=self.newer_by,
        )

    @property
    def names(self) -> tuple[str, str]:
        """Return schema and table."""
        return self.schema, self.table

    @property
    def identifier(self) -> sql.Identifier:
        """Return the quoted ``schema.table``."""
        return sql.Identifier(self.schema, self.table)

    @property
    def loaded(self) -> sql.Identifier:
        """Return the quoted ``schema.table`` that the rows go into."""
        return sql.Identifier(self.schema, self.fresh or self.table)

    @property
    def label(self) -> str:
        """Return ``schema.table`` for people; all of them, if there are several."""
        return ", ".join([f"{self.schema}.{self.table}", *(other.label for other in self.others)])


def inspect_target(
    conn: psycopg.Connection[Any],
    name: str,
    *,
    output: Mapping[str, OutputColumn],
    sources: Mapping[str, Column],
    primary_key: Sequence[str],
    definition: TableDefinition | None,
    create: bool,
    foreign_keys: bool,
) -> TargetTable:
    """Describe the target table, or what would be created for it. Changes nothing.

    Args:
        conn: a connection to the target.
        name: as a person gives it: SQL syntax, or ``schema.table`` taken literally.
        output: the columns after the transform.
        sources: the source's columns by name.
        primary_key: the source's primary key, for a table that is to be created.
        definition: of the source table; None for a view or query.
        create: whether a missing table may be created.
        foreign_keys: whether it gets the source's foreign keys.

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
        return TargetTable(
            schema=schema,
            table=table,
            columns=relation.columns,
            holds_rows=bool(held and held[0]),
            primary_key=relation.primary_key,
        )
    schema, table = _new_name(conn, name)
    if not create:
        msg = f"load {schema}.{table}: it is not there, and --no-create is given. Create it, or change --into"
        raise RefusedError(msg)
    columns = _new_columns(output, sources, definition)
    copies = {name: column.source for name, column in output.items() if column.source}
    by_source = {source: name for name, source in copies.items()}
    key = [by_source[k] for k in primary_key] if all(k in by_source for k in primary_key) else []
    ddl = compose_ddl(
        conn,
        definition,
        schema=schema,
        table=table,
        columns=columns,
        copies=copies,
        key=key,
        foreign_keys=foreign_keys,
    )
    return TargetTable(schema=schema, table=table, columns=columns, ddl=ddl, primary_key=tuple(key))


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
    except errors.InvalidParameterValue:  # not SQL syntax: the name is taken literally
        conn.rollback()
        schema, _, table = name.rpartition(".")
        parts = [schema, table] if schema else [table]
    *schemas, table = parts
    if len(schemas) > 1:
        msg = f"load {name}: expected schema.table. Change --into or target.table"
        raise RefusedError(msg)
    return (schemas[0], table) if schemas else (current, table)


def _new_columns(
    output: Mapping[str, OutputColumn], sources: Mapping[str, Column], definition: TableDefinition | None
) -> tuple[Column, ...]:
    columns: list[Column] = []
    problems = []
    untouched = definition is not None and all(n in output and output[n].source == n for n in sources)
    for name, column in output.items():
        origin = sources.get(column.source) if column.source else None
        if origin is not None:
            columns.append(replace(origin, name=name, generated=origin.generated and untouched))
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


def prepare(conn: psycopg.Connection[Any], target: TargetTable) -> None:
    """Create the target table when it is missing, in one transaction.

    Raises:
        RefusedError: the server does not let us.
    """
    try:
        with conn.transaction():
            for ddl in target.ddl.before:
                conn.execute(ddl)
    except psycopg.Error as error:
        msg = f"create {target.label}: {str(error).strip().splitlines()[0]}"
        raise RefusedError(msg) from error


# --- one chunk ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """What the chunk's ledger row will say beside the counts that SQL takes.

    `batch` is given for a chunk of a replay: its records are in the quarantine already.
    """

    run_id: str
    chunk: int
    ledger_schema: str
    worker: int
    sitting: int
    attempts: int
    timings: Timings
    bytes_read: int
    batch: Batch | None = None


def claim(session: Session, entry: LedgerEntry) -> ChunkResult | float:
    """Lock the chunk's ledger row; return what it says of a committed chunk, else the seconds waited for the lock.

    Waits for another transaction that holds the row, so that an answer is never early.

    Raises:
        ChunkError: the ledger has no such chunk.
    """
    rows = session.execute(statement("claim_chunk", entry.ledger_schema, run_id=entry.run_id, chunk=entry.chunk))
    if not rows:
        msg = f"ask ledger: run {entry.run_id} has no chunk {entry.chunk}; someone has deleted it"
        raise ChunkError(msg)
    status, read, loaded, unchanged, duplicate, filtered, quarantined, updated, size, attempts, waited = rows[0]
    if status != "done":
        return float(waited)
    counts = Counts(
        read=read,
        loaded=loaded,
        unchanged=unchanged,
        duplicate=duplicate,
        filtered=filtered,
        quarantined=quarantined,
        updated=updated,
    )
    return ChunkResult(chunk=entry.chunk, counts=counts, timings=Timings(), attempts=attempts, bytes_read=size)


def load(
    session: Session,
    target: TargetTable,
    columns: Sequence[WriteColumn],
    staged: Staged,
    entry: LedgerEntry,
    sheets: Sequence[Sheet] = (),
) -> ChunkResult:
    """Load one chunk, its quarantined records and its ledger row in one transaction.

    Rows are counted by the server's own statistics of this transaction, not by what was sent. With `sheets`
    the records go there, and not into `target`.

    Returns:
        What the ledger now holds; if the chunk was there already, what it held before, and nothing is done.

    Raises:
        TransientError: the outcome is unknown or another try may help; ask the ledger first.
        ChunkError: the target rejects the rows, or stored another number than was sent.
    """
    claimed = claim(session, entry)
    if isinstance(claimed, ChunkResult):
        return claimed
    pass_point("claim.after")
    batch = entry.batch
    if batch is not None:
        lock_records(session, batch)
    if sheets:
        placed = write_records(session, sheets)
    else:
        placed = write_chunk(session, target.destination(columns), staged.accepted)
    rejected = pl.concat([staged.rejected, staged.describe(placed.invalid)])
    _send_rejected(session, rejected)
    if batch is not None:
        settle(session, batch, staged.accepted, rejected)
        quarantined = rejected.height
    else:
        quarantined = _write_quarantine(session, rejected, entry)
    pass_point("quarantine.written")
    missing = len(batch.missing) if batch is not None else 0
    counts = replace(
        staged.counts,
        read=staged.counts.read + missing,
        filtered=staged.counts.filtered + missing,
        loaded=placed.inserted + placed.updated,
        updated=placed.updated,
        unchanged=placed.unchanged,
        duplicate=staged.counts.duplicate + placed.duplicate,
        quarantined=quarantined,
    )
    result = _record(session, counts, staged, entry, placed.tables, lock_seconds=claimed)
    pass_point("ledger.written")
    pass_point("commit.before")
    session.commit()
    pass_point("commit.after")
    return result


def _send_rejected(session: Session, rejected: pl.DataFrame) -> None:
    """Put the rejected records into a temporary table of this transaction."""
    if not rejected.height:
        return
    session.execute(sql.SQL("drop table if exists pg_temp._keyhaul_quarantine"))
    session.execute(
        sql.SQL(
            "create temp table _keyhaul_quarantine"
            " (record bigint, stage text, rules text[], message text, key text, data text) on commit drop"
        )
    )
    columns = rejected.select(pl.col(RECORD).alias("record"), "stage", "rules", "message", "key", "data").to_arrow(
        compat_level=pl.CompatLevel.oldest()
    )
    session.copy(sql.Identifier("pg_temp", "_keyhaul_quarantine"), columns, {})


def _write_quarantine(session: Session, rejected: pl.DataFrame, entry: LedgerEntry) -> int:
    """Store the rejected records; return how many the chunk now has there, counted by SQL."""
    if rejected.height:
        session.execute(statement("insert_quarantine", entry.ledger_schema, run_id=entry.run_id, chunk=entry.chunk))
    query = statement("count_quarantine", entry.ledger_schema, run_id=entry.run_id, chunk=entry.chunk)
    return int(session.execute(query)[0][0])


def _record(
    session: Session,
    counts: Counts,
    staged: Staged,
    entry: LedgerEntry,
    tables: Sequence[TableCounts],
    *,
    lock_seconds: float,
) -> ChunkResult:
    timings = replace(entry.timings, wait_seconds=entry.timings.wait_seconds + lock_seconds)
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
            rows_updated=counts.updated,
            rows_unchanged=counts.unchanged,
            rows_duplicate=counts.duplicate,
            rows_filtered=counts.filtered,
            rows_quarantined=counts.quarantined,
            warned=json.dumps(dict(staged.warned)),
            tables=json.dumps([asdict(table) for table in tables]),
            read_seconds=timings.read_seconds,
            transform_seconds=timings.transform_seconds,
            stage_seconds=timings.stage_seconds,
            wait_seconds=timings.wait_seconds,
            lock_seconds=lock_seconds,
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
    )
