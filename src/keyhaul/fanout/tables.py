"""The entries under `targets`, compiled against the columns of the record and of the tables that are there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from keyhaul.config.parts import Target
from keyhaul.config.steps import Step
from keyhaul.errors import ConfigError, RefusedError
from keyhaul.fanout.unnest import element_schema
from keyhaul.model import RECORD, Column
from keyhaul.postgres import catalog
from keyhaul.postgres.pgtypes import route
from keyhaul.targets.modes import with_mode
from keyhaul.targets.postgres import TargetTable, inspect_target
from keyhaul.targets.sheets import Given, Sheet
from keyhaul.transform.compiled import OutputColumn, compile_transform
from keyhaul.transform.mapping import as_text, build_mapping

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import psycopg

    from keyhaul.config.tablestep import TableEntry, Value
    from keyhaul.transform.compiled import Transform
    from keyhaul.transform.mapping import WriteColumn

_UUID: Final = "\0uuid"
_SEQUENCE: Final = "\0sequence"
_NAMED: Final = "_keyhaul_uuid_{}"

_OWN_SEQUENCE: Final = """
select has_sequence_privilege(s, 'usage') from (select pg_get_serial_sequence(%s, %s)) as own(s) where s is not null
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One entry as the workers use it.

    Attributes:
        entry: as the job file has it.
        target: what is there, with the entry's mode.
        transform: from the record, or one of its elements, to the table's columns: where, then the expressions.
        named: column that the expressions see → columns whose values name its UUID.
        copies: column → source column of a plain copy.
        columns: all that is written.
        given: those of them that come from a parent.
        allocated: those whose values come from their sequences, because a child needs them.
        asked: what children take from the table after the write.
        looks_at: columns of the record whose values an expression looks at.
    """

    entry: TableEntry
    target: TargetTable
    transform: Transform
    named: Mapping[str, tuple[str, ...]]
    copies: Mapping[str, str]
    columns: tuple[WriteColumn, ...]
    given: tuple[Given, ...]
    allocated: tuple[str, ...]
    asked: tuple[str, ...]
    looks_at: frozenset[str]

    def in_text(self, text: frozenset[str], sources: Mapping[str, Column], zone: str | None) -> Table:
        """Return the table for a chunk in which some source columns hold PostgreSQL's own text."""
        copied = {name: source for name, source in self.copies.items() if source in text}
        if not copied:
            return self
        columns = as_text(self.columns, sources, copied, zone)
        by_name = {column.name: column for column in columns}
        given = tuple(
            replace(one, column=by_name[one.column.name], dtype=pl.String()) if one.column.name in copied else one
            for one in self.given
        )
        return replace(self, columns=columns, given=given)

    @property
    def own_columns(self) -> tuple[WriteColumn, ...]:
        """The columns whose values are known before the write."""
        later = {one.column.name for one in self.given} | set(self.allocated)
        return tuple(column for column in self.columns if column.name not in later)

    def sheet(self, frame: pl.DataFrame) -> Sheet:
        """Return these rows for the write."""
        return Sheet(
            label=self.target.label,
            destination=self.target.destination(self.columns),
            frame=frame,
            given=self.given,
            allocated=self.allocated,
            asked=self.asked,
        )


def compile_tables(
    conn: psycopg.Connection[Any],
    entries: Sequence[TableEntry],
    record: Mapping[str, OutputColumn],
    sources: Mapping[str, Column],
    zone: str | None,
) -> tuple[Table, ...]:
    """Compile the entries of a job. Changes nothing.

    Args:
        conn: to the target.
        entries: in the order of the writes.
        record: the columns after the transform.
        sources: the source's columns by name.
        zone: in which the source's local times are, if the job says so.

    Raises:
        ConfigError: an expression does not fit, or a table is missing or has no place for a column; all
            offenders, each with its place.
    """
    tables: list[Table] = []
    problems: list[str] = []
    for entry in entries:
        wanted = {
            value.column: other.table
            for other in entries
            for value in other.columns.values()
            if value.parent == entry.table
        }
        try:
            tables.append(_Compiler(conn, entry, record, sources, zone, tables).compile(tuple(wanted)))
        except RefusedError as error:
            problems += [f"{entry.at}: {line}" for line in str(error).splitlines()]
            break  # a later entry may refer to this one
        except ConfigError as error:
            problems.append(str(error))
            break
    labels = [table.target.label for table in tables]
    problems += [
        f"{table.entry.at}: load {table.target.label}: it is in the list twice. Leave one of them out"
        for number, table in enumerate(tables)
        if table.target.label in labels[:number]
    ]
    if problems:
        raise RefusedError("\n".join(problems))
    return tuple(tables)


def together(tables: Sequence[Table]) -> TargetTable:
    """Return the tables of a job as its target: the first, which knows the others."""
    first, *others = (table.target for table in tables)
    # Of several tables, no single primary key says that a record is there already.
    return replace(first, others=tuple(others), primary_key=(), holds_rows=any(t.holds_rows for t in (first, *others)))


def refuse_held(tables: Sequence[Table]) -> None:
    """Refuse a new run into tables that hold rows and have no mode; for one table the engine knows more.

    Raises:
        RefusedError: naming each of them with its place.
    """
    problems = [
        f"{table.entry.at}: load {table.target.label}: it already holds rows and no mode is given. Give mode: append "
        "to add to them, skip to keep what is there, upsert to update it; or empty the table"
        for table in tables
        if table.entry.mode is None and table.target.holds_rows
    ]
    if problems:
        raise RefusedError("\n".join(problems))


class _Compiler:
    def __init__(
        self,
        conn: psycopg.Connection[Any],
        entry: TableEntry,
        record: Mapping[str, OutputColumn],
        sources: Mapping[str, Column],
        zone: str | None,
        before: Sequence[Table],
    ) -> None:
        self._conn = conn
        self._entry = entry
        self._record = record
        self._origins = dict(sources)
        self._sources = sources
        self._zone = zone
        self._before = before

    def compile(self, wanted: tuple[str, ...]) -> Table:
        """Compile the entry, of whose rows later entries take the `wanted` columns."""
        entry = self._entry
        if catalog.resolve(self._conn, entry.table) is None:
            msg = (
                f"load {entry.table}: it is not there, and the tables under targets are not created, because nothing "
                "says what their keys are. Create it"
            )
            raise RefusedError(msg)
        target = inspect_target(
            self._conn,
            entry.table,
            output={},
            sources={},
            primary_key=(),
            definition=None,
            create=False,
            foreign_keys=False,
        )
        named = {
            _NAMED.format(number): value.uuid
            for number, value in enumerate(v for v in entry.columns.values() if v.uuid)
        }
        transform = self._expressions(named)
        output = {
            name: self._given(value) if value.parent else self._computed(transform.output[name], named)
            for name, value in entry.columns.items()
        }
        settings = Target(table=entry.table, mode=entry.mode, conflict=entry.conflict or None, newer_by=entry.newer_by)
        allocated = self._sequences(target, wanted) if (entry.mode or "append") == "append" else ()
        self._origins[_SEQUENCE] = Column(name="nextval", pg_type="bigint", base_type="int8", not_null=True)
        output |= {name: OutputColumn(dtype=pl.Int64(), source=_SEQUENCE) for name in allocated}
        columns = build_mapping(output, self._origins, target.columns, target.label, time_zone=self._zone)
        target = with_mode(self._conn, target, settings, [column.name for column in columns])
        by_name = {column.name: column for column in columns}
        return Table(
            entry=entry,
            target=target,
            transform=transform,
            named=named,
            copies=self._copies(output),
            columns=columns,
            given=tuple(
                Given(column=by_name[name], parent=self._place(value), of=value.column, dtype=output[name].dtype)
                for name, value in entry.columns.items()
                if value.parent and name in by_name
            ),
            allocated=allocated,
            asked=wanted if target.mode != "append" else (),
            looks_at=self._looks_at(transform, named),
        )

    # --- expressions -----------------------------------------------------------------------------

    def _schema(self) -> dict[str, pl.DataType]:
        """Return the columns that the expressions may name."""
        entry = self._entry
        schema = {name: column.dtype for name, column in self._record.items()}
        unnest = entry.unnest
        if unnest is None:
            return schema
        if unnest.column not in schema:
            msg = f"{entry.at}: unnest {unnest.column}: no such column, expected one of {', '.join(schema)}"
            raise ConfigError(msg)
        source = self._record[unnest.column].source
        if source is not None and self._sources[source].type_category == "A":
            msg = (
                f"{entry.at}: unnest {unnest.column}: it is a PostgreSQL array, expected a JSON array. "
                f"Select to_json({unnest.column}) in source.query"
            )
            raise ConfigError(msg)
        try:
            more = element_schema(unnest, schema[unnest.column])
        except TypeError as error:
            msg = f"{entry.at}: unnest {unnest.column}: {error}"
            raise ConfigError(msg) from None
        taken = sorted({*more} & {*schema, RECORD})
        if taken:
            msg = f"{entry.at}: unnest {unnest.column}: there is a column {', '.join(taken)} already. Change `as:`"
            raise ConfigError(msg)
        return {**schema, **more}

    def _expressions(self, named: Mapping[str, tuple[str, ...]]) -> Transform:
        """Compile the condition and the expressions; a UUID is a column that they copy."""
        entry, schema = self._entry, self._schema()
        unknown = sorted({name for columns in named.values() for name in columns if name not in schema})
        if unknown:
            msg = f"{entry.at}: uuid of {', '.join(unknown)}: no such column, expected one of {', '.join(schema)}"
            raise ConfigError(msg)
        made = iter(named)
        texts = {
            name: next(made) if value.uuid else value.expression
            for name, value in entry.columns.items()
            if not value.parent
        }
        steps = [Step(kind="where", where=entry.where, at=f"{entry.at}: where")] if entry.where else []
        if texts:
            steps.append(Step(kind="set", set=texts, at=entry.at, places=entry.places))
        meanings = {name: column.meaning for name, column in self._record.items() if column.meaning and name in schema}
        return compile_transform(steps, {**schema, **dict.fromkeys(named, pl.String())}, meanings=meanings)

    def _computed(self, column: OutputColumn, named: Mapping[str, tuple[str, ...]]) -> OutputColumn:
        """Return a column with the source column that it copies, through the record's columns."""
        if column.source in named:
            self._origins[_UUID] = Column(name="uuid", pg_type="uuid", base_type="uuid")
            return OutputColumn(dtype=pl.String(), source=_UUID)
        record = self._record.get(column.source) if column.source else None
        return OutputColumn(dtype=column.dtype, source=record.source if record else None)

    def _looks_at(self, transform: Transform, named: Mapping[str, tuple[str, ...]]) -> frozenset[str]:
        unnest = self._entry.unnest
        names = {*transform.used, *(name for columns in named.values() for name in columns)}
        if unnest is not None:
            names.add(unnest.column)
        return frozenset(name for name in names if name in self._record)

    def _copies(self, output: Mapping[str, OutputColumn]) -> dict[str, str]:
        """Return column → source column, through a parent's own columns too."""
        copies = {name: c.source for name, c in output.items() if c.source in self._sources}
        for name, value in self._entry.columns.items():
            if value.parent:
                parent = self._before[self._place(value)]
                if value.column in parent.copies and value.column not in parent.asked:
                    copies[name] = parent.copies[value.column]
        return {name: source for name, source in copies.items() if source is not None}

    # --- keys of a parent ------------------------------------------------------------------------

    def _place(self, value: Value) -> int:
        return next(n for n, table in enumerate(self._before) if table.entry.table == value.parent)

    def _given(self, value: Value) -> OutputColumn:
        """Return the column that a parent's row has, which may be NULL: the record may have no row there."""
        parent = self._before[self._place(value)]
        there = next((c for c in parent.target.columns if c.name == value.column), None)
        if there is None:
            known = ", ".join(column.name for column in parent.target.columns)
            msg = f"{self._entry.at}: take {value.column} of {value.parent}: no such column, expected one of {known}"
            raise ConfigError(msg)
        name = f"\0{value.parent}.{value.column}"
        self._origins[name] = replace(there, not_null=False, null_refused=False, generated=False)
        if value.column in parent.asked or value.column in parent.allocated:
            whole = there.base_type in {"int2", "int4", "int8"}
            if value.column in parent.allocated:
                self._origins[name] = Column(name=value.column, pg_type="bigint", base_type="int8")
                return OutputColumn(dtype=pl.Int64(), source=name)
            return OutputColumn(dtype=route(there).dtype if whole else pl.String(), source=name)
        own = parent.transform.output[value.column]
        record = self._record.get(own.source) if own.source else None
        origin = record.source if record else None
        if parent.entry.columns[value.column].uuid:
            self._origins[name] = Column(name="uuid", pg_type="uuid", base_type="uuid")
        elif origin is not None:
            self._origins[name] = replace(self._sources[origin], not_null=False, null_refused=False, generated=False)
        elif parent.entry.columns[value.column].parent:
            msg = (
                f"{self._entry.at}: take {value.column} of {value.parent}: it comes from a parent itself. Name that one"
            )
            raise ConfigError(msg)
        else:
            return OutputColumn(dtype=own.dtype, source=None)
        return OutputColumn(dtype=own.dtype, source=name)

    def _sequences(self, target: TargetTable, wanted: Sequence[str]) -> tuple[str, ...]:
        """Return the wanted columns whose values have to be taken from a sequence before the write."""
        names = [name for name in wanted if name not in self._entry.columns]
        table = target.identifier.as_string(self._conn)
        for name in names:
            if name not in {column.name for column in target.columns}:
                continue  # the child says so, with its own place
            row = self._conn.execute(_OWN_SEQUENCE, [table, name]).fetchone()
            if row is None:
                msg = (
                    f"load {target.label}: {name} is taken by a later entry, and has neither a value nor a sequence. "
                    "Give it one, for example {uuid: [columns]}, or a mode with conflict columns"
                )
                raise RefusedError(msg)
            if not row[0]:
                msg = f"load {target.label}: this user may not use the sequence of {name}. Grant USAGE on it"
                raise RefusedError(msg)
        return tuple(name for name in names if name in {column.name for column in target.columns})
