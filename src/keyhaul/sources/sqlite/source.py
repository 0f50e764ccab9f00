"""SQLite behind the seam: a private copy of the file, what it says of a table, and readers of it."""

from __future__ import annotations

import math
import sqlite3
import threading
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from keyhaul.config.job import SqliteSource as Wanted
from keyhaul.differing import difference
from keyhaul.errors import CancelledError, ConfigError, RefusedError, StopRunError
from keyhaul.model import RECORD, Column, Plan
from keyhaul.postgres import pgtypes
from keyhaul.postgres.definition import ColumnDefinition, ConstraintDefinition, TableDefinition
from keyhaul.quoting import quote_name
from keyhaul.sources.columns import column_of
from keyhaul.sources.cuts import batches, chunks_between
from keyhaul.sources.source import Abilities, Description, Sample, Ticket
from keyhaul.sources.sqlite import catalog
from keyhaul.sources.sqlite.bounds import Walk
from keyhaul.sources.sqlite.catalog import MADE, ROWID, Field, Table
from keyhaul.sources.sqlite.copying import Copy, check_file
from keyhaul.sources.sqlite.declared import Declared
from keyhaul.sources.sqlite.reading import Rows, SqliteReader
from keyhaul.workfolder import open_work_folder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from keyhaul.postgres.definition import TypeDefinition
    from keyhaul.sources.source import Opening

MOMENT: Final = "all chunks are read from a private copy of the file, made in one moment"
RESUMED: Final = "the file has the same contents as then, so its remaining chunks are the same records"
MOST_KEYS: Final = 2_000
"""Keys of one batch of a replay: a statement of SQLite has at most a million bytes, and a key may have hundreds."""

_PROBES: Final = 10
_PROBED_ROWS: Final = 20
_ROWID_FIELD: Final = Field(name=ROWID, text="INTEGER", declared=Declared(kind="integer"), not_null=True)


def open_source(opening: Opening) -> SqliteSource:
    """Copy the file and describe what will be read; see `sources.kinds.open_source`."""
    wanted, job = opening.job.source, opening.job
    if not isinstance(wanted, Wanted):
        msg = "open source: it is of another kind, expected a SQLite file"
        raise ConfigError(msg)
    path = Path(wanted.path).expanduser().absolute()
    check_file(path)
    base = open_work_folder(job.work_dir)
    cancelled = threading.Event()
    with ExitStack() as stack:
        copy = Copy.make(path, base, wait_seconds=job.lock_timeout_seconds, cancelled=cancelled)
        stack.callback(copy.remove)
        conn = stack.enter_context(closing(catalog.connect(copy.path)))
        try:
            made = (
                catalog.put_down(conn, wanted.query, "read source.query")
                if wanted.query is not None
                else catalog.find_table(conn, wanted.table or "")
            )
            table = catalog.read_table(conn, made)
            label = "query" if wanted.query is not None else (wanted.table or "") if made == MADE else made
            key = _check_key(table, label, job.key)
            _index_key(conn, table, key)
        except sqlite3.Error as error:
            msg = f"read source {path}: {error}, expected a SQLite database without damage"
            raise ConfigError(msg) from error
        source = SqliteSource(copy, conn, table, key, label=label, path=path, cancelled=cancelled)
        stack.pop_all()
        return source


def join(ticket: Ticket, environ: Mapping[str, str]) -> SqliteReader:
    """Open a reader of the private copy that another process of this user holds; see `sources.kinds.join`."""
    del environ
    state = ticket.state
    copy = Path(state["copy"])
    with closing(catalog.connect(copy)) as conn:
        table = catalog.read_table(conn, state["table"])
    return SqliteReader(_rows(copy, table, tuple(state["key"]), ticket.columns))


class SqliteSource:
    """See `sources.source.Source`; the copy goes when it is closed, or, after a kill, with the next run."""

    def __init__(
        self,
        copy: Copy,
        conn: sqlite3.Connection,
        table: Table,
        key: tuple[str, ...],
        *,
        label: str,
        path: Path,
        cancelled: threading.Event,
    ) -> None:
        """Take the copy with a connection to it.

        Raises:
            RefusedError: a column has a name of our own.
        """
        self._copy = copy
        self._conn = conn
        self._table = table
        self._key = key
        self._path = path
        self._cancelled = cancelled
        self._description = _described(table, key, label, path)
        catalog_of = None if table.name == MADE else _Catalog(table)
        self._abilities = Abilities(aggregates=_Aggregates(self), catalog=catalog_of)

    @property
    def abilities(self) -> Abilities:
        """Aggregates, and the table's definition."""
        return self._abilities

    def describe(self) -> Description:
        """Return what is read."""
        return self._description

    def identity(self, columns: Sequence[str] = ()) -> Mapping[str, Any]:
        """Return the size and the checksum of the contents.

        The date is left out: a checkpoint of the WAL, a copy or ``touch`` changes it, and no record.
        """
        del columns  # what is in it says it all
        return {"bytes": self._copy.size, "sha256": self._copy.checksum}

    def differs(self, was: Mapping[str, Any], columns: Sequence[str]) -> Sequence[str]:
        """Return each part that is another one, with both."""
        return difference(was, self.identity(columns))

    def sample(self, columns: Sequence[str]) -> Sample:
        """Measure some rows at ten places of the table."""
        batch = SqliteReader(self._rows(columns)).read_where(self._probed())
        rows = -1.0
        if self._table.rowid:
            with self._asked("sample"):
                last = self._conn.execute(f"select max({self._table.rowid}) from {self._from}").fetchone()
            rows = float(last[0] or 0)
        read = batch.frame.height + batch.rejected.height
        return Sample(row_bytes=batch.bytes_read / read if read else 0.0, rows=rows)

    def plan(self, chunk_rows: int) -> Plan:
        """Walk the key's index, `chunk_rows` entries at a step."""
        rows = self._rows(self._key)
        names = [rows.expression(field) for field in rows.fields]
        nullable = not all(field.not_null for field in rows.fields)
        with self._asked("plan chunks"):
            bounds, total = Walk(self._conn, self._table.name, names, self._table.encoding).bounds(chunk_rows)
            everything = self._conn.execute(f"select count(*) from {self._from}").fetchone()[0] if nullable else total
        return Plan(
            chunks=chunks_between(
                bounds, total_rows=total, chunk_rows=chunk_rows, null_rows=everything - total if nullable else None
            ),
            estimated_rows=everything,
            estimated_bytes=self._copy.size,
            exact=True,
        )

    def reread(self, keys: Sequence[str], chunk_rows: int) -> Plan:
        """Return batches of keys."""
        return batches(keys, min(chunk_rows, MOST_KEYS), 0)

    def open(self, worker: int, columns: Sequence[str]) -> SqliteReader:
        """Return a reader; it opens the copy for each read."""
        del worker
        return SqliteReader(self._rows(columns))

    def ticket(self, columns: Sequence[str]) -> Ticket:
        """Return the copy's path, its table and the key."""
        state = {"copy": str(self._copy.path), "table": self._table.name, "key": list(self._key)}
        return Ticket(kind="sqlite", columns=tuple(columns), state=state)

    def touch(self) -> None:
        """Look whether the copy is still there."""
        if not self._copy.path.exists():
            msg = f"read source: the run's private copy {self._copy.path} is gone. Run the same command again"
            raise StopRunError(msg)

    def cancel(self) -> None:
        """Interrupt what the copy is asked; a chunk's read ends by itself, it waits for nobody."""
        self._cancelled.set()
        self._conn.interrupt()

    def close(self) -> None:
        """Remove the copy."""
        self._conn.close()
        self._copy.remove()

    def compute(self, expression: str) -> str | None:
        """Return an aggregate over all records as text; see `sources.source.Aggregates`."""
        try:
            row = self._conn.execute(f"select {expression} from {self._from}").fetchone() or (None,)
        except sqlite3.Error as error:
            if self._cancelled.is_set():
                msg = f"compute {expression} in the source: cancelled"
                raise CancelledError(msg) from error
            raise RefusedError(str(error)) from error
        return None if row[0] is None else str(row[0])

    def bind(self, expression: str) -> None:
        """Compile an aggregate without reading a row; see `sources.source.Aggregates`."""
        try:
            self._conn.execute(f"explain select {expression} from {self._from}")
        except sqlite3.Error as error:
            raise ConfigError(str(error)) from error

    @property
    def _from(self) -> str:
        return quote_name(self._table.name)

    def _rows(self, columns: Sequence[str]) -> Rows:
        return _rows(self._copy.path, self._table, self._key, columns)

    def _probed(self) -> str:
        """Return a condition for some rows at ten places, which are found by their rowid."""
        name = self._table.rowid
        if not name:
            return f"true limit {_PROBES * _PROBED_ROWS}"
        with self._asked("sample"):
            first, last = self._conn.execute(f"select min({name}), max({name}) from {self._from}").fetchone()
        if first is None:
            return "false"
        step = max(1, math.ceil((last - first + 1) / _PROBES))
        parts = " union ".join(
            f"select * from (select {name} from {self._from} where {name} >= {place} order by 1 limit {_PROBED_ROWS})"
            for place in range(first, last + 1, step)
        )
        return f"{name} in ({parts})"

    @contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if self._cancelled.is_set():
                msg = f"{what}: cancelled"
                raise CancelledError(msg) from error
            msg = f"{what}: {error}, expected a SQLite database without damage ({self._path})"
            raise ConfigError(msg) from error


def _check_key(table: Table, label: str, key: Sequence[str]) -> tuple[str, ...]:
    """Return the key: the job's, else the primary key, else the rowid.

    Raises:
        ConfigError: the job's is not a column.
        RefusedError: there is none of these, or a column has a name of our own.
    """
    names = [field.name for field in table.fields]
    if unknown := [name for name in key if name not in names]:
        msg = (
            f"cut chunks by key: {label} has no column {', '.join(unknown)}, expected one of {', '.join(names)}. "
            "Change --key"
        )
        raise ConfigError(msg)
    if key or table.primary_key:
        return tuple(key or table.primary_key)
    if not table.rowid or ROWID in (name.lower() for name in names):
        msg = f"cut chunks by key: {label} has neither a primary key nor a rowid that can be read. Give --key"
        raise RefusedError(msg)
    return (ROWID,)


def _index_key(conn: sqlite3.Connection, table: Table, key: Sequence[str]) -> None:
    """Give the copy an index on the key, where it has none for sure: each chunk reads its own rows alone."""
    if key == (ROWID,) or key in {table.primary_key, (table.rowid_column,)}:
        return
    columns = ", ".join(map(quote_name, key))
    conn.execute(f"create index _keyhaul_key on {quote_name(table.name)} ({columns})")


def _rows(copy: Path, table: Table, key: tuple[str, ...], columns: Sequence[str]) -> Rows:
    found = [_ROWID_FIELD if name == ROWID else table.field(name) for name in columns]
    return Rows(
        copy=copy,
        table=table.name,
        rowid=table.rowid,
        fields=tuple(field for field in found if field is not None),
        key=key,
        encoding=table.encoding,
    )


def _described(table: Table, key: tuple[str, ...], label: str, path: Path) -> Description:
    taken = [field.name for field in table.fields if field.name.lower() == RECORD]
    if taken:
        msg = f"read {label}: a column is called {taken[0]}, which is keyhaul's own. Rename it in a query"
        raise RefusedError(msg)
    columns = tuple(_column(field) for field in table.fields)
    own = (ROWID,) if key == (ROWID,) else ()
    fields = {field.name: field for field in (*table.fields, *((_ROWID_FIELD,) if own else ()))}
    routes = {name: _route(field) for name, field in fields.items()}
    present = all(fields[name].not_null for name in key)
    return Description(
        label=label,
        place=str(path),
        table="" if label == "query" else quote_name(label),
        driver="connectorx",
        columns=columns,
        routes=routes,
        key=key,
        own=own,
        primary_key=table.primary_key,
        key_unique=bool(own) or (present and any(columns <= set(key) for columns in table.unique)),
        ranged=key == (table.rowid_column,),
        moment=MOMENT,
        resumed=RESUMED,
    )


def _column(field: Field) -> Column:
    if field.declared.kind == "observed":
        return replace(column_of(field.name, "text"), pg_type="no type")
    return column_of(field.name, field.declared.pg_type, not_null=field.not_null)


def _route(field: Field) -> pgtypes.Route:
    route = pgtypes.route(_column(field))
    if field.declared.kind != "observed":
        return route
    classes = ", ".join(sorted(field.classes))
    reason = (
        f"{field.name} is declared {field.text or 'without a type'}, and its values are {classes}: no one type holds "
        f"them. Drop it (transform: - drop: [{field.name}]), or give it a type in a query (cast({field.name} as text))"
    )
    return replace(route, kind="refused", reason=reason)


class _Aggregates:
    """See `sources.source.Aggregates`."""

    def __init__(self, source: SqliteSource) -> None:
        self.check = source.bind
        self.compute = source.compute


class _Catalog:
    """See `sources.source.Catalog`: the primary key, and what is left out."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def definition(self, columns: Collection[str]) -> TableDefinition | None:
        del columns  # none of its types has to be created
        table = self._table
        key = ", ".join(map(quote_name, table.primary_key))
        primary = ConstraintDefinition(
            name=f"{table.name}_pkey", kind="p", sql=f"PRIMARY KEY ({key})", columns=frozenset(table.primary_key)
        )
        return TableDefinition(
            schema="",
            table=table.name,
            columns={field.name: ColumnDefinition(name=field.name) for field in table.fields},
            constraints=(primary,) if table.primary_key else (),
            extras=table.left_out,
        )

    def shapes(self, column: Column) -> Sequence[TypeDefinition]:
        del column
        return ()

    def decimals(self, columns: Sequence[Column]) -> Mapping[str, int]:
        del columns
        return {}
