"""PostgreSQL as a target: the table that is there, or what must be created."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import polars as pl
import psycopg
from psycopg import errors, sql

from keyhaul.errors import ConfigError, RefusedError, first_line
from keyhaul.model import Column
from keyhaul.postgres import catalog
from keyhaul.postgres.pgtypes import ddl_type
from keyhaul.targets.ddl import Ddl, compose_ddl, finish
from keyhaul.targets.rows import Destination
from keyhaul.targets.shape import shape_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyhaul.postgres.definition import TableDefinition
    from keyhaul.targets.shape import Shape
    from keyhaul.transform.compiled import OutputColumn
    from keyhaul.transform.mapping import WriteColumn


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
        null_conflict: conflict columns that can be NULL, which no unique index finds again.
        rewritten: see `Destination`.
        fresh: in mode replace, the table that is loaded in the place of this one; empty for itself.
        others: further tables that the same records go to, after this one.
        shape: of the table that is loaded, when the run began.
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
    null_conflict: tuple[str, ...] = ()
    rewritten: tuple[str, ...] = ()
    fresh: str = ""
    others: tuple[TargetTable, ...] = ()
    shape: Shape | None = None

    def destination(self, columns: Sequence[WriteColumn]) -> Destination:
        """Return where rows with these columns go."""
        return Destination(
            table=self.loaded,
            columns=tuple(columns),
            mode="append" if self.mode == "replace" else self.mode,
            conflict=self.conflict,
            newer_by=self.newer_by,
            rewritten=self.rewritten,
            shape=self.shape,
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


def with_shape(conn: psycopg.Connection[Any], target: TargetTable) -> TargetTable:
    """Return the target with the shape that its table has now, which its chunks will look for."""
    return replace(target, shape=shape_of(conn.execute, target.loaded))


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
            shape=shape_of(conn.execute, sql.Identifier(schema, table)),
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
        numeric = column.meaning is not None and column.meaning.kind == "numeric"
        pg_type = "numeric" if numeric else ddl_type(column.dtype)
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
    return Column(name=name, pg_type=pg_type, base_type=_BASE_TYPES.get(pg_type, pg_type), cast_type=pg_type)


def prepare(conn: psycopg.Connection[Any], target: TargetTable) -> None:
    """Create the target table when it is missing, in one transaction.

    Raises:
        RefusedError: the server does not let us.
    """
    try:
        with conn.transaction():
            for ddl in target.ddl.before:
                _create(conn, ddl)
    except psycopg.Error as error:
        msg = f"create {target.label}: {first_line(error)}"
        missing = isinstance(error, (errors.UndefinedTable, errors.UndefinedFunction, errors.UndefinedObject))
        hint = ". Create in the target what it needs, or the table itself" if missing else ""
        raise RefusedError(msg + hint) from error


def _create(conn: psycopg.Connection[Any], ddl: str) -> None:
    """Run a statement; a schema that another process has made meanwhile is there, as it is to be."""
    try:
        with conn.transaction():
            conn.execute(ddl)
    except (errors.DuplicateSchema, errors.UniqueViolation):
        if not ddl.startswith("create schema "):
            raise


def rehearse_end(conn: psycopg.Connection[Any], target: TargetTable) -> None:
    """Run what completes a table that was just created, and take it back.

    An index or constraint that the target can never have (a function of the user's, a table that is referred to, an
    operator class) is so refused while no row has moved. What only the rows break is found at the end.

    Raises:
        RefusedError: the server does not let a statement through.
    """
    steps = [step for step in target.ddl.after if step.kind != "sequence"]
    if steps:
        with conn.transaction(force_rollback=True):
            finish(conn, target.schema, target.table, steps)


def rehearse_all(conn: psycopg.Connection[Any], target: TargetTable) -> str:
    """Run all that creates and completes a missing table, in a transaction that is taken back.

    Returns:
        Why that could not be tried, or an empty string.

    Raises:
        RefusedError: the server does not let a statement through.
    """
    if not target.ddl.before:
        return ""
    try:
        with conn.transaction(force_rollback=True):
            conn.execute("set local lock_timeout = '100ms'")  # nobody is to wait behind a plan
            prepare(conn, target)
            rehearse_end(conn, target)
    except RefusedError as error:
        if isinstance(error.__cause__, (errors.LockNotAvailable, errors.DeadlockDetected)):
            return "what would be created could not be tried: a table that it refers to is in use"
        raise
    return ""
