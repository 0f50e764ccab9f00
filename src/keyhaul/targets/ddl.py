"""The statements that give a missing target the source table's definition: before the load, and after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import psycopg

from keyhaul.definition import quote_name
from keyhaul.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from keyhaul.definition import ColumnDefinition, TableDefinition, TypeDefinition
    from keyhaul.model import Column

_NAME_BYTES = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class AfterLoad:
    """A statement that runs when all chunks are loaded; one that is done already is not run again.

    Attributes:
        kind: ``constraint``, ``index``, or ``always`` for what may be repeated.
        name: of the constraint or index.
    """

    kind: Literal["constraint", "index", "always"]
    name: str
    sql: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ddl:
    """What creates a table: `before` the load, `after` it, and what was left out, one sentence each."""

    before: tuple[str, ...] = ()
    after: tuple[AfterLoad, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class _Making:
    """The DDL of one table while it is put together."""

    schema: str
    table: str
    before: list[str] = field(default_factory=list)
    after: list[AfterLoad] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def full(self) -> str:
        return quote_name(self.schema, self.table)


def compose_ddl(
    conn: psycopg.Connection[Any],
    definition: TableDefinition | None,
    *,
    schema: str,
    table: str,
    columns: Sequence[Column],
    copies: Mapping[str, str],
    key: Sequence[str],
    foreign_keys: bool,
) -> Ddl:
    """Compose the DDL for a target that is missing. Changes nothing.

    Args:
        conn: to the target, to see what is there.
        definition: of the source table; None for a view or query.
        schema: the target's.
        table: the target's name.
        columns: what it gets, in order.
        copies: column → source column, for plain copies.
        key: columns of the primary key; empty for none.
        foreign_keys: whether the source's foreign keys are created after the load.

    Raises:
        RefusedError: a type is missing in the target and cannot be created, or is there with other labels.
    """
    same = {name for name, source in copies.items() if name == source}
    made = _Making(schema=schema, table=table)
    if not _exists(conn, "select to_regnamespace(quote_ident(%s)) is not null", schema):
        made.before.append(f"create schema {quote_name(schema)}")
    if definition is not None:
        made.before += [statement for statement in _types(conn, definition.types) if statement not in made.before]
    lines = []
    for column in columns:
        source = definition.columns.get(copies.get(column.name, "")) if definition else None
        whole = column.name in same
        lines.append(_column(made, column, source if whole else None))
        if source is not None and not whole and (source.default or source.identity):
            made.left_out.append(f"{column.name}: its default is not created, because the column is renamed")
    if key:
        lines.append(f"    primary key ({', '.join(quote_name(name) for name in key)})")
    body = ",\n".join(lines)
    made.before.append(f"create table {made.full} (\n{body}\n)")
    for column in columns:
        if column.name in same and definition and _is_serial(definition.columns[column.name]):
            sequence = quote_name(schema, _sequence_name(table, column.name))
            made.before.append(f"alter sequence {sequence} owned by {quote_name(schema, table, column.name)}")
    if definition is not None:
        _indexes(made, definition, same)
        _constraints(conn, made, definition, same, foreign_keys=foreign_keys)
    return Ddl(before=tuple(made.before), after=tuple(made.after), left_out=tuple(made.left_out))


def _exists(conn: psycopg.Connection[Any], query: str, *values: str) -> bool:
    row = conn.execute(query, list(values)).fetchone()
    return bool(row and row[0])


def _types(conn: psycopg.Connection[Any], types: Sequence[TypeDefinition]) -> list[str]:
    statements = []
    problems = []
    for needed in types:
        full = quote_name(needed.schema, needed.name)
        there = _exists(conn, "select to_regtype(%s) is not null", full)
        if there and needed.kind == "enum":
            row = conn.execute(
                "select string_agg(quote_literal(enumlabel), ', ' order by enumsortorder) from pg_enum"
                " where enumtypid = to_regtype(%s)",
                [full],
            ).fetchone()
            if row and row[0] != needed.labels:
                problems.append(
                    f"create type {full}: the target's has the labels {row[0]}, expected {needed.labels}. "
                    "Make them equal, or cast the column to text"
                )
        elif not there and needed.kind == "extension":
            problems.append(
                f"create type {full}: it belongs to the extension {needed.extension}. "
                f"Run create extension {needed.extension} in the target"
            )
        elif not there and not needed.sql:
            problems.append(
                f"create type {full}: keyhaul cannot create it. Create it in the target, or cast the column to text"
            )
        elif not there:
            if not _exists(conn, "select to_regnamespace(quote_ident(%s)) is not null", needed.schema):
                create = f"create schema {quote_name(needed.schema)}"
                statements += [] if create in statements else [create]
            statements.append(needed.sql)
    if problems:
        raise RefusedError("\n".join(problems))
    return statements


def _is_serial(source: ColumnDefinition) -> bool:
    return source.sequence is not None and not source.identity and source.default.startswith("nextval(")


def _sequence_name(table: str, column: str) -> str:
    return _short(f"{table}_{column}", "_seq")


def _short(stem: str, suffix: str = "") -> str:
    """Return `stem` and `suffix` cut to the 63 bytes of a name."""
    room = _NAME_BYTES - len(suffix.encode())
    return stem.encode()[:room].decode(errors="ignore") + suffix


def _column(made: _Making, column: Column, source: ColumnDefinition | None) -> str:
    """Return the column's line of CREATE TABLE; its sequence is made before, and advanced after the load."""
    words = [f"    {quote_name(column.name)} {column.pg_type}"]
    if source is not None and source.collation:
        words.append(f"collate {source.collation}")
    if source is not None and column.generated:
        words.append(f"generated always as ({source.default}) {'virtual' if source.generated == 'v' else 'stored'}")
    elif source is not None and source.identity and source.sequence is not None:
        how = "always" if source.identity == "a" else "by default"
        words.append(f"generated {how} as identity ({source.sequence.options()})")
        _advance(made, column.name, source)
    elif source is not None and _is_serial(source) and source.sequence is not None:
        name = quote_name(made.schema, _sequence_name(made.table, column.name))
        made.before.append(f"create sequence {name} as {source.sequence.data_type} {source.sequence.options()}")
        literal = name.replace("'", "''")
        words.append(f"default nextval('{literal}'::regclass)")
        _advance(made, column.name, source)
    elif source is not None and source.default:
        words.append(f"default {source.default}")
    if column.not_null:
        words.append("not null")
    return " ".join(words)


def _advance(made: _Making, column: str, source: ColumnDefinition) -> None:
    if source.sequence is None or source.sequence.last_value is None:
        return
    full = made.full.replace("'", "''")
    name = column.replace("'", "''")
    made.after.append(
        AfterLoad(
            kind="always",
            name=column,
            sql=f"select setval(pg_get_serial_sequence('{full}', '{name}'), {source.sequence.last_value}, true)",
        )
    )


def _indexes(made: _Making, definition: TableDefinition, same: Collection[str]) -> None:
    moved = (made.schema, made.table) != (definition.schema, definition.table)
    for index in definition.indexes:
        if not index.columns <= set(same):
            made.left_out.append(
                f"index {index.name}: not created, because a column of it is computed, renamed or dropped"
            )
            continue
        name = _short(f"{made.table}_{index.name}") if moved else index.name
        unique = "unique " if index.unique else ""
        statement = f"create {unique}index {quote_name(name)} on {made.full} {index.method}"
        made.after.append(AfterLoad(kind="index", name=name, sql=statement))


def _constraints(
    conn: psycopg.Connection[Any],
    made: _Making,
    definition: TableDefinition,
    same: Collection[str],
    *,
    foreign_keys: bool,
) -> None:
    moved = (made.schema, made.table) != (definition.schema, definition.table)
    for constraint in definition.constraints:
        if constraint.kind == "p":
            continue
        if constraint.kind == "f" and not foreign_keys:
            made.left_out.append(f"foreign key {constraint.name}: not created without --with-foreign-keys")
            continue
        if not constraint.columns <= set(same):
            made.left_out.append(
                f"constraint {constraint.name}: not created, because a column of it is computed, renamed or dropped"
            )
            continue
        if constraint.kind == "f" and not _exists(conn, "select to_regclass(%s) is not null", constraint.references):
            msg = (
                f"create foreign key {constraint.name}: it references {constraint.references}, which is not in the "
                "target. Move that table first, or leave out --with-foreign-keys"
            )
            raise RefusedError(msg)
        renamed = moved and constraint.kind in {"u", "x"}  # their indexes' names are the schema's, as a table's is
        name = _short(f"{made.table}_{constraint.name}") if renamed else constraint.name
        statement = f"alter table {made.full} add constraint {quote_name(name)} {constraint.sql}"
        made.after.append(AfterLoad(kind="constraint", name=name, sql=statement))


def finish(conn: psycopg.Connection[Any], schema: str, table: str, statements: Sequence[AfterLoad]) -> int:
    """Run what comes after the load and is not there yet, each in a transaction of its own; returns how many ran.

    Raises:
        RefusedError: the data or the server does not let a statement through; the others before it stay.
    """
    ran = 0
    for statement in statements:
        if _is_done(conn, schema, table, statement):
            continue
        try:
            conn.execute(statement.sql)
        except psycopg.Error as error:
            msg = f"finish {schema}.{table}: {str(error).strip().splitlines()[0]}, while running: {statement.sql}"
            raise RefusedError(msg) from error
        ran += statement.kind != "always"
    return ran


def _is_done(conn: psycopg.Connection[Any], schema: str, table: str, statement: AfterLoad) -> bool:
    full = quote_name(schema, table)
    if statement.kind == "constraint":
        query = "select exists (select from pg_constraint where conrelid = to_regclass(%s) and conname = %s)"
    elif statement.kind == "index":
        query = (
            "select exists (select from pg_index i join pg_class c on c.oid = i.indexrelid"
            " where i.indrelid = to_regclass(%s) and c.relname = %s)"
        )
    else:
        return False
    return _exists(conn, query, full, statement.name)
