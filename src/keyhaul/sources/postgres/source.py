"""PostgreSQL behind the seam: a read-only transaction that holds the run's snapshot, and what it says and does."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import pq

from keyhaul.config.job import PostgresSource as Asked
from keyhaul.errors import ConfigError, RefusedError, StopRunError, first_line
from keyhaul.model import RECORD
from keyhaul.postgres import catalog, pgtypes, shapes
from keyhaul.postgres.dsn import redact
from keyhaul.sessions.capacity import free_connections, room_of_run
from keyhaul.sessions.connecting import connect, decimals, describe_tls, noticing, session_settings, with_login
from keyhaul.sources.cuts import batches
from keyhaul.sources.postgres import sameness
from keyhaul.sources.postgres.increments import PostgresIncrements
from keyhaul.sources.postgres.lookups import SETTINGS, Place, PostgresLookups
from keyhaul.sources.postgres.readers import choose_reader
from keyhaul.sources.postgres.reading import CONNECT_SECONDS, PostgresReader, Reading, source_application
from keyhaul.sources.postgres.sampling import sampled_row_bytes
from keyhaul.sources.postgres.sql import SqlSource
from keyhaul.sources.source import Abilities, Description, Sample

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from keyhaul.config.job import Job
    from keyhaul.model import Column, Plan
    from keyhaul.postgres.definition import TableDefinition, TypeDefinition
    from keyhaul.postgres.dsn import Dsn
    from keyhaul.sources.source import Opening, Ticket

MOMENT: Final = "all chunks are read from one snapshot"
RESUMED: Final = "its remaining chunks are read from a newer snapshot"
LOST: Final = "the connection that holds the source's snapshot was lost; the next sitting reads from a newer one"


def open_source(opening: Opening) -> PostgresSource:
    """Connect, take the snapshot, and describe what will be read; see `sources.kinds.open_source`.

    Raises:
        psycopg.Error: what the server says besides; whoever prepares a job tells it.
    """
    job, dsn = opening.job, opening.dsn
    if dsn is None or not isinstance(job.source, Asked):
        msg = "open source: no address, expected one of a PostgreSQL database"
        raise ConfigError(msg)
    driver = choose_reader(job, dsn)
    with ExitStack() as stack:
        conn = connect(
            dsn,
            "source",
            application_name=f"keyhaul {opening.run_id} snapshot",
            settings=session_settings(job, idle_in_transaction_session_timeout="0", default_transaction_read_only="on"),
        )
        stack.callback(conn.close)
        dsn = noticing(with_login(dsn, conn), conn)
        source = SqlSource.open(conn, table=job.source.table, query=job.source.query, key=job.key, only=job.source.only)
        opened = PostgresSource(job, opening.run_id, dsn, driver, source)
        stack.pop_all()
        return opened


class PostgresSource:
    """See `sources.source.Source`; one connection for what is asked of it, and each reader has its own."""

    def __init__(self, job: Job, run_id: str, dsn: Dsn, driver: str, source: SqlSource) -> None:
        """Take the open snapshot and describe it.

        Raises:
            RefusedError: a column has a name of our own.
        """
        self._job = job
        self._run_id = run_id
        self._dsn = dsn
        self._driver = driver
        self._source = source
        self._conn = source.conn
        self._description = _described(source, job, dsn, driver)
        place = Place(snapshot=source.snapshot, dsn=dsn, driver=driver, settings=session_settings(job, **SETTINGS))
        self._abilities = Abilities(
            seats=PostgresSeats(source.conn, dsn),
            increments=PostgresIncrements(source, self._limit),
            aggregates=_Aggregates(source),
            lookups=PostgresLookups(conn=source.conn, place=place),
            catalog=_Catalog(source, dsn),
        )

    @property
    def abilities(self) -> Abilities:
        """All of them."""
        return self._abilities

    def describe(self) -> Description:
        """Return what is read, as it was when the snapshot was taken."""
        return self._description

    def identity(self, columns: Sequence[str]) -> Mapping[str, Any]:
        """Return which table or view it is, the files that its rows are in, and the types of these columns."""
        found = (self._description.column(name) for name in columns)
        return sameness.identity(self._conn, self._source.relation, [column for column in found if column is not None])

    def differs(self, was: Mapping[str, Any], columns: Sequence[str]) -> Sequence[str]:
        """Return what has changed of the table and of its columns; that rows have is no difference."""
        return sameness.difference(was, self.identity(columns)) if was else ()

    def sample(self, columns: Sequence[str]) -> Sample:
        """Return the mean width of some rows, and the statistics' number of all of them."""
        relation, described = self._source.relation, self._description
        found = [column for name in columns if (column := described.column(name)) is not None]
        # Of an incremental run's rows the statistics know nothing.
        rows = -1.0 if self._source.ranges.only else relation.reltuples
        return Sample(row_bytes=sampled_row_bytes(self._conn, relation, found), rows=rows)

    def plan(self, chunk_rows: int) -> Plan:
        """Cut the key's range into chunks of about `chunk_rows` rows; see `SqlSource.plan`."""
        return self._source.plan(chunk_rows)

    def reread(self, keys: Sequence[str], chunk_rows: int) -> Plan:
        """Return batches of keys."""
        return batches(keys, chunk_rows, self._source.relation.row_bytes)

    def open(self, worker: int, columns: Sequence[str]) -> PostgresReader:
        """Return a reader with a connection of its own."""
        del worker  # a session is named after its chunk
        return PostgresReader(self._reading(columns), self._dsn)

    def ticket(self, columns: Sequence[str]) -> Ticket:
        """Return the snapshot's name, the key, and the columns."""
        return self._reading(columns).ticket(self._dsn)

    def touch(self) -> None:
        """Ask the connection that holds the snapshot for an answer."""
        try:
            self._conn.execute("select 1")
        except psycopg.errors.QueryCanceled:
            return  # by `cancel`: the connection is there
        except psycopg.Error as error:
            raise StopRunError(LOST) from error

    def cancel(self) -> None:
        """Cancel the readers' queries by way of a connection of its own, and what the snapshot's connection runs."""
        with suppress(psycopg.Error):
            if self._conn.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
                self._conn.cancel_safe(timeout=2)
        try:
            with connect(self._dsn, "source", application_name="keyhaul cancel", settings={}) as conn:
                query = "select pg_cancel_backend(pid) from pg_stat_activity where application_name like %s"
                conn.execute(query, [source_application(self._run_id, "%")])
        except psycopg.Error as error:
            raise ConfigError(redact(first_line(error), self._dsn)) from None

    def close(self) -> None:
        """Close the connection, and with it the snapshot."""
        with suppress(psycopg.Error):
            self._conn.close()

    def _limit(self, only: str) -> None:
        self._source.ranges = replace(self._source.ranges, only=only)

    def _reading(self, columns: Sequence[str]) -> Reading:
        job, described = self._job, self._description
        return Reading(
            run_id=self._run_id,
            snapshot=self._source.snapshot,
            driver=self._driver,
            ranges=self._source.ranges,
            columns=tuple(column for name in columns if (column := described.column(name)) is not None),
            settings={
                **pgtypes.SESSION_SETTINGS,
                "default_transaction_read_only": "on",
                "statement_timeout": f"{job.statement_timeout_seconds}s",
                "lock_timeout": f"{job.lock_timeout_seconds}s",
            },
            connect_seconds=min(job.network_timeout_seconds, CONNECT_SECONDS),
        )


def _described(source: SqlSource, job: Job, dsn: Dsn, driver: str) -> Description:
    relation, conn = source.relation, source.conn
    own = [column.name for column in relation.columns if column.name.lower() == RECORD]
    if own:
        msg = f"read {relation.label}: a column is called {own[0]}, which is keyhaul's own. Rename it in a query"
        raise RefusedError(msg)
    texts = [column for column in source.ranges.key if column.base_type in {"text", "varchar", "bpchar"}]
    found = {column.name: catalog.collation_of(conn, relation.from_item, column.name) for column in texts}
    return Description(
        label=relation.label,
        place=dsn.label,
        link="" if dsn.is_local else describe_tls(dsn, conn),
        table=catalog.own_name(conn, job.source.read_table) if job.source.read_table else "",
        database=dsn.identity,
        driver=driver,
        columns=relation.columns,
        routes={column.name: pgtypes.route(column) for column in relation.columns},
        key=source.ranges.names,
        primary_key=relation.primary_key,
        key_unique=source.unique(),
        ranged=True,
        orders={name: order for name, order in found.items() if order is not None},
        indexed=source.indexed(),
        recomputed=relation.kind in {"q", "v"},
        moment=MOMENT,
        resumed=RESUMED,
        notes=source.inherited(),
    )


class PostgresSeats:
    """The connections of a PostgreSQL server; see `sources.source.Seats`."""

    def __init__(self, conn: psycopg.Connection[Any], dsn: Dsn) -> None:
        """Take a connection to ask, and the database that it is to."""
        self._conn = conn
        self.server = dsn.identity.rpartition("/")[0]

    def free(self) -> int:
        """Return how many further sessions the server would take now."""
        return free_connections(self._conn)

    def room(self, run_id: str) -> int:
        """Return how many sessions are not others'."""
        return room_of_run(self._conn, run_id)


class _Catalog:
    """See `sources.source.Catalog`."""

    def __init__(self, source: SqlSource, dsn: Dsn) -> None:
        self._source = source
        self._dsn = dsn

    def definition(self, columns: Collection[str]) -> TableDefinition | None:
        described = self._source.relation.columns
        return self._source.definition(sorted({column.type_oid for column in described if column.name in columns}))

    def shapes(self, column: Column) -> Sequence[TypeDefinition]:
        return shapes.parts(self._source.conn, column)

    def decimals(self, columns: Sequence[Column]) -> Mapping[str, int]:
        return decimals(self._source.conn, columns, self._dsn, "source")


class _Aggregates:
    """See `sources.source.Aggregates`."""

    def __init__(self, source: SqlSource) -> None:
        self._source = source

    def check(self, expression: str) -> None:
        try:
            catalog.explain(self._source.conn, catalog.aggregate(expression, self._source.relation.from_item))
        except psycopg.Error as error:
            raise ConfigError(first_line(error)) from error

    def compute(self, expression: str) -> str | None:
        query = catalog.aggregate(expression, self._source.relation.from_item)
        try:
            row = self._source.conn.execute(query).fetchone() or (None,)
        except psycopg.Error as error:
            told = first_line(error)
            if isinstance(error, (psycopg.DataError, psycopg.ProgrammingError, psycopg.InternalError)):
                raise RefusedError(told) from error
            msg = f"compute {expression} in the source: {told}. Run the same command again"
            raise StopRunError(msg) from error
        return None if row[0] is None else str(row[0])
