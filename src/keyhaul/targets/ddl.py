"""The statements that give a missing target the source table's definition: before the load, and after it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import chain, count
from typing import TYPE_CHECKING, Any, Literal

import psycopg
from psycopg import errors

from keyhaul.errors import RefusedError, first_line
from keyhaul.postgres.definition import read_types
from keyhaul.quoting import quote_name, quote_text

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from keyhaul.model import Column
    from keyhaul.postgres.definition import ColumnDefinition, ConstraintDefinition, TableDefinition, TypeDefinition

_NAME_BYTES = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class AfterLoad:
    """A statement that runs when all chunks are loaded; one that is done already is not run again.

    Attributes:
        kind: ``constraint``, ``index``, or ``sequence``, which every sitting advances again.
        name: of the constraint or index, or of the column that has the sequence.
    """

    kind: Literal["constraint", "index", "sequence"]
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
    """The DDL of one table while it is put together.

    Attributes:
        conn: to the target.
        moved: it gets another name or schema than the source's.
        same: its columns that are plain copies under their own name.
        names: of the relations that the statements create.
    """

    conn: psycopg.Connection[Any]
    schema: str
    table: str
    moved: bool
    same: Collection[str]
    names: set[str] = field(default_factory=set)
    before: list[str] = field(default_factory=list)
    after: list[AfterLoad] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def full(self) -> str:
        return quote_name(self.schema, self.table)

    def free(self, stem: str, suffix: str = "", *, wanted: str = "") -> str:
        """Return a name that no relation of the schema has: `wanted`, or `stem` and `suffix` cut to 63 bytes.

        Indexes and sequences share the names of a schema with its tables; a cut name may be taken, too.
        """
        numbered = (_short(stem, f"{suffix}{number or ''}") for number in count())
        for name in chain([wanted] if wanted and not self.moved else [], numbered):
            there = _exists(self.conn, "select to_regclass(%s) is not null", quote_name(self.schema, name))
            if name not in self.names and not there:
                break
        if wanted and not self.moved and name != wanted:
            self.left_out.append(f"{wanted}: called {name}, because the target has another {wanted}")
        self.names.add(name)
        return name


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
        RefusedError: a type or collation is missing in the target and cannot be created, or a type of that
            name is another one there.
    """
    made = _Making(
        conn=conn,
        schema=schema,
        table=table,
        moved=definition is not None and (schema, table) != (definition.schema, definition.table),
        same={name for name, source in copies.items() if name == source},
        names={table},
    )
    if not _exists(conn, "select to_regnamespace(quote_ident(%s)) is not null", schema):
        made.before.append(f"create schema {quote_name(schema)}")
    if definition is None:
        _table(made, [_column(made, column, None) for column in columns], [])
        return Ddl(before=tuple(made.before))
    made.before += [statement for statement in _types(conn, definition.types) if statement not in made.before]
    _check_collations(conn, definition, made.same)
    lines, owners = _columns(made, definition, columns, copies)
    _table(made, [*lines, *_primary_key(made, definition, key)], owners)
    made.after += sequence_steps(definition, schema, table, made.same)
    made.left_out += [
        f"{name}: its sequence cannot be read by this user, so the new one begins at its start. Grant SELECT on it"
        for name in sorted(made.same)
        if (sequence := definition.columns[name].sequence) is not None and sequence.last_value is None
    ]
    _indexes(made, definition)
    _constraints(made, definition, foreign_keys=foreign_keys)
    return Ddl(before=tuple(made.before), after=tuple(made.after), left_out=(*made.left_out, *definition.extras))


def _columns(
    made: _Making, definition: TableDefinition, columns: Sequence[Column], copies: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Return the columns' lines of CREATE TABLE, and what makes their sequences the columns' own."""
    lines, owners = [], []
    for column in columns:
        source = definition.columns[copies[column.name]] if column.name in copies else None
        whole = source if column.name in made.same else None
        if whole is not None and _is_serial(whole):
            owner, default = _serial(made, whole)
            owners.append(owner)
            whole = replace(whole, default=default)
        lines.append(_column(made, column, whole))
        if source is not None and whole is None and (source.default or source.identity):
            made.left_out.append(f"{column.name}: its default is not created, because the column is renamed")
    return lines, owners


def _table(made: _Making, lines: Sequence[str], owners: Sequence[str]) -> None:
    body = ",\n".join(f"    {line}" for line in lines)
    made.before.append(f"create table {made.full} (\n{body}\n)")
    made.before += owners


def _exists(conn: psycopg.Connection[Any], query: str, *values: str) -> bool:
    row = conn.execute(query, list(values)).fetchone()
    return bool(row and row[0])


def _short(stem: str, suffix: str = "") -> str:
    """Return `stem` and `suffix` cut to the 63 bytes of a name."""
    room = _NAME_BYTES - len(suffix.encode())
    return stem.encode()[:room].decode(errors="ignore") + suffix


# --- types -----------------------------------------------------------------------------------------


def _types(conn: psycopg.Connection[Any], types: Sequence[TypeDefinition]) -> list[str]:
    """Return what creates the types that are missing, innermost first."""
    statements = []
    problems = []
    for needed in types:
        full = quote_name(needed.schema, needed.name)
        row = conn.execute("select to_regtype(%s)::oid", [full]).fetchone()
        oid = row[0] if row else None
        if oid is not None:
            problems += _differs(needed, read_types(conn, [oid]))
        elif needed.kind == "extension":
            problems.append(
                f"create type {full}: it belongs to the extension {needed.extension}. "
                f"Run create extension {needed.extension} in the target"
            )
        elif not needed.sql:
            problems.append(
                f"create type {full}: keyhaul cannot create it. Create it in the target, or cast the column to text"
            )
        else:
            if not _exists(conn, "select to_regnamespace(quote_ident(%s)) is not null", needed.schema):
                create = f"create schema {quote_name(needed.schema)}"
                statements += [] if create in statements else [create]
            statements.append(needed.sql)
    if problems:
        raise RefusedError("\n".join(problems))
    return statements


def _differs(needed: TypeDefinition, there: Sequence[TypeDefinition]) -> list[str]:
    """Return what is wrong with the target's type of the same name, if anything."""
    full = quote_name(needed.schema, needed.name)
    for other in there:
        if (other.schema, other.name) == (needed.schema, needed.name):
            if (other.kind, other.shape) == (needed.kind, needed.shape):
                return []
            what = {"enum": "the labels ", "composite": "the attributes "}.get(other.kind, "")
            msg = (
                f"create type {full}: the target's is of kind {other.kind} with {what}{other.shape}, "
                f"expected {needed.kind} with {needed.shape}. Make them equal, or cast the column to text"
            )
            return [msg]
    return [f"create type {full}: the target's is of another kind, expected {needed.kind}. Rename one of them"]


def _check_collations(conn: psycopg.Connection[Any], definition: TableDefinition, same: Collection[str]) -> None:
    problems = [
        f"create column {column.name}: its collation {column.collation} is not in the target. "
        "Run create collation there, or name the column in a query"
        for column in definition.columns.values()
        if column.collation
        and column.name in same
        and not _exists(conn, "select to_regcollation(%s) is not null", column.collation)
    ]
    if problems:
        raise RefusedError("\n".join(problems))


# --- columns ---------------------------------------------------------------------------------------


def _is_serial(source: ColumnDefinition) -> bool:
    return source.sequence is not None and not source.identity and source.default.startswith("nextval(")


def _serial(made: _Making, source: ColumnDefinition) -> tuple[str, str]:
    """Create the column's own sequence; returns what makes it the column's, and its default."""
    name = quote_name(made.schema, made.free(f"{made.table}_{source.name}", "_seq"))
    if source.sequence is not None:
        made.before.append(f"create sequence {name} as {source.sequence.data_type} {source.sequence.options()}")
    owned = f"alter sequence {name} owned by {quote_name(made.schema, made.table, source.name)}"
    return owned, f"nextval({quote_text(name)}::regclass)"


def _column(made: _Making, column: Column, source: ColumnDefinition | None) -> str:
    """Return the column's line of CREATE TABLE; `source` says what it has beyond its type, if it is the same."""
    words = [f"{quote_name(column.name)} {column.pg_type}"]
    if source is not None and source.collation:
        words.append(f"collate {source.collation}")
    if source is not None and column.generated:
        words.append(f"generated always as ({source.default}) {'virtual' if source.generated == 'v' else 'stored'}")
    elif source is not None and source.generated:
        made.left_out.append(
            f"{column.name}: its values are copied and not generated, because another column is not the source's"
        )
    elif source is not None and source.identity and source.sequence is not None:
        how = "always" if source.identity == "a" else "by default"
        words.append(f"generated {how} as identity ({source.sequence.options()})")
    elif source is not None and source.default:
        words.append(f"default {source.default}")
    if column.not_null:
        words.append("not null")
    return " ".join(words)


def sequence_steps(
    definition: TableDefinition, schema: str, table: str, columns: Collection[str]
) -> tuple[AfterLoad, ...]:
    """Return what brings the sequences of a table's columns to where the source's are; they never go back."""
    steps = []
    for name in columns:
        sequence = definition.columns[name].sequence
        if sequence is None or sequence.last_value is None:
            continue
        value, called = sequence.last_value, "true" if sequence.is_called else "false"
        behind = "<" if sequence.increment > 0 else ">"
        own = f"select pg_get_serial_sequence({quote_text(quote_name(schema, table))}, {quote_text(name)})::regclass"
        text = (
            f"select setval(s, {value}, {called}) from ({own}) as own(s)"  # noqa: S608 - quoted names and numbers
            f" where coalesce(pg_sequence_last_value(s) {behind} {value}, true)"
        )
        steps.append(AfterLoad(kind="sequence", name=name, sql=text))
    return tuple(sorted(steps, key=lambda step: step.name))


def _primary_key(made: _Making, definition: TableDefinition, key: Sequence[str]) -> list[str]:
    whole = next((constraint for constraint in definition.constraints if constraint.kind == "p"), None)
    if whole is not None and whole.columns <= set(made.same):
        name = made.free(made.table, "_pkey", wanted=whole.name)
        return [f"constraint {quote_name(name)} {whole.sql}"]
    if key:
        return [f"primary key ({', '.join(quote_name(name) for name in key)})"]
    if whole is not None:
        made.left_out.append(f"primary key {whole.name}: not created, because a column of it is computed or dropped")
    return []


# --- after the load --------------------------------------------------------------------------------


def _indexes(made: _Making, definition: TableDefinition) -> None:
    for index in definition.indexes:
        if not index.columns <= set(made.same):
            made.left_out.append(
                f"index {index.name}: not created, because a column of it is computed, renamed or dropped"
            )
            continue
        name = made.free(f"{made.table}_{index.name}", wanted=index.name)
        unique = "unique " if index.unique else ""
        statement = f"create {unique}index {quote_name(name)} on {made.full} {index.method}"
        made.after.append(AfterLoad(kind="index", name=name, sql=statement))


def _constraints(made: _Making, definition: TableDefinition, *, foreign_keys: bool) -> None:
    for constraint in definition.constraints:
        if constraint.kind == "p":
            continue
        if constraint.kind == "f" and not foreign_keys:
            made.left_out.append(f"foreign key {constraint.name}: not created without --with-foreign-keys")
            continue
        if not constraint.columns <= set(made.same):
            made.left_out.append(
                f"constraint {constraint.name}: not created, because a column of it is computed, renamed or dropped"
            )
            continue
        name = constraint.name
        if constraint.kind in {"u", "x"}:  # their indexes share the names of the schema
            name = made.free(f"{made.table}_{name}", wanted=name)
        text = _references(made, constraint) if constraint.kind == "f" else constraint.sql
        statement = f"alter table {made.full} add constraint {quote_name(name)} {text}"
        made.after.append(AfterLoad(kind="constraint", name=name, sql=statement))


def _references(made: _Making, constraint: ConstraintDefinition) -> str:
    """Return a foreign key's text; one that points at its own table points at the new one."""
    old = f"REFERENCES {constraint.references}("
    if constraint.to_itself:
        return constraint.sql.replace(old, f"REFERENCES {made.full}(", 1)
    if not _exists(made.conn, "select to_regclass(%s) is not null", constraint.references):
        msg = (
            f"create foreign key {constraint.name}: it references {constraint.references}, which is not in the "
            "target. Move that table first, or leave out --with-foreign-keys"
        )
        raise RefusedError(msg)
    return constraint.sql


def finish(conn: psycopg.Connection[Any], schema: str, table: str, statements: Sequence[AfterLoad]) -> int:
    """Run what comes after the load and is not there yet, each in a transaction of its own.

    Returns:
        How many indexes and constraints were created.

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
            msg = f"finish {schema}.{table}: {first_line(error)}, while running: {statement.sql}"
            if isinstance(error, (errors.UndefinedTable, errors.UndefinedFunction, errors.UndefinedObject)):
                msg += ". Create in the target what it needs, or the table itself"
            raise RefusedError(msg) from error
        ran += statement.kind != "sequence"
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
