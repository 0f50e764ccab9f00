"""The rows of a lookup in a PostgreSQL database, in one snapshot: all of them, or those with the keys of a chunk."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import polars as pl
import psycopg
from psycopg import sql

from keyhaul.errors import ChunkError, ConfigError, StopRunError, safe_message
from keyhaul.postgres import catalog, pgtypes
from keyhaul.postgres.dsn import redact
from keyhaul.semantics.meanings import meaning_of
from keyhaul.sessions.connecting import connect, noticing, session_settings, with_login
from keyhaul.sources.postgres.readers import READERS, UnreadableValueError, choose_reader
from keyhaul.sources.postgres.sql import find_table
from keyhaul.transform.decoding import any_out_of_range, decode
from keyhaul.transform.lookup import LookupTable, check_columns, check_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keyhaul.config.job import Job
    from keyhaul.config.lookupstep import Lookup
    from keyhaul.postgres.catalog import Relation
    from keyhaul.postgres.dsn import Dsn
    from keyhaul.semantics.meanings import Meaning
    from keyhaul.transform.lookup import LookupRows

SETTINGS: Final = {"default_transaction_read_only": "on", "lock_timeout": "30s"}
"""Of each session that reads a lookup."""

_FETCHED = frozenset({"int2", "int4", "int8", "text", "varchar", "uuid"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What opens a session in the snapshot.

    Attributes:
        snapshot: its name.
        dsn: of the database.
        driver: which of `READERS` reads.
        settings: of each session that reads.
    """

    snapshot: str
    dsn: Dsn
    driver: str
    settings: Mapping[str, str]


@contextmanager
def opened(job: Job, dsn: Dsn) -> Iterator[PostgresLookups]:
    """Open the lookups of a database that is not the job's source, in a snapshot of its own.

    Raises:
        ConnectError: it cannot be reached.
    """
    settings = session_settings(job, **SETTINGS)
    with connect(dsn, "lookup", application_name="keyhaul lookup", settings=settings) as conn:
        dsn = noticing(with_login(dsn, conn), conn)
        conn.execute("begin isolation level repeatable read read only")
        row = conn.execute("select pg_export_snapshot()").fetchone()
        place = Place(snapshot=row[0] if row else "", dsn=dsn, driver=choose_reader(job, dsn), settings=settings)
        yield PostgresLookups(conn=conn, place=place)


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresLookups:
    """Reads lookups in one database; see `sources.source.Lookups`.

    Attributes:
        conn: the transaction that holds the snapshot.
        place: what opens further sessions in it.
    """

    conn: psycopg.Connection[Any]
    place: Place

    def load(self, lookup: Lookup) -> LookupTable:
        """Return the lookup's rows with the columns that it names.

        Raises:
            ConfigError: there is no such table or column, it cannot be read, or it is too large.
        """
        head = f"{lookup.at}: read lookup {lookup.name}"
        try:
            with self.conn.transaction():
                relation = _described(lookup, self.conn)
                routes = _routes(lookup, relation)
                _check_before(lookup, self.conn, relation)
        except psycopg.Error as error:
            msg = f"{head}: {redact(safe_message(error), self.place.dsn)}. Change its source"
            raise ConfigError(msg) from None
        rows = _Rows(lookup=lookup, relation=relation, routes=routes, place=self.place)
        try:
            return LookupTable(frame=rows.read(None), meanings=rows.meanings)
        except (ChunkError, StopRunError) as error:
            far = isinstance(error, _FarError)
            raise ConfigError(
                str(error) if far else f"{head}: {redact(str(error), self.place.dsn)}. Change its source"
            ) from None

    def open(self, lookup: Lookup) -> LookupRows:
        """Describe a lookup of the job's source that is read for each chunk; no row is read here.

        Raises:
            ConfigError: there is no such table or column, it cannot be read, or its keys cannot be compared there.
        """
        head = f"{lookup.at}: read lookup {lookup.name}"
        try:
            with self.conn.transaction():
                relation = _described(lookup, self.conn)
                routes = _routes(lookup, relation)
        except psycopg.Error as error:
            msg = f"{head}: {redact(safe_message(error), self.place.dsn)}. Change its source"
            raise ConfigError(msg) from None
        columns = {name: relation.column(name) for name in lookup.on.values()}
        wrong = [f"{c.name} {c.pg_type}" for c in columns.values() if c and c.base_type not in _FETCHED]
        if wrong:
            msg = (
                f"{lookup.at}: compare lookup {lookup.name} for each chunk: got {', '.join(wrong)}, expected an "
                "integer, text, varchar or uuid. Leave per_chunk out, or cast the column in a query"
            )
            raise ConfigError(msg)
        return _Rows(lookup=lookup, relation=relation, routes=routes, place=self.place)


class _FarError(ChunkError):
    """A value that has no place in its type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """The rows of a lookup in a snapshot: all of them, or those with some keys; each read has its own connection."""

    lookup: Lookup
    relation: Relation
    routes: Mapping[str, pgtypes.Route]
    place: Place

    @property
    def schema(self) -> dict[str, pl.DataType]:
        """The columns that the lookup names."""
        return {name: route.dtype for name, route in self.routes.items()}

    @property
    def meanings(self) -> dict[str, Meaning]:
        """What their texts mean, for those whose type in a frame does not say it."""
        named = (column for column in self.relation.columns if column.name in self.routes)
        return {column.name: meaning for column in named if (meaning := meaning_of(column)) is not None}

    @property
    def uuids(self) -> frozenset[str]:
        """The columns that are uuids: other text cannot be compared with them."""
        return frozenset(c.name for c in self.relation.columns if c.base_type == "uuid")

    def fetch(self, keys: pl.DataFrame) -> pl.DataFrame:
        """Return the rows with one of these keys."""
        arrays = []
        for name in keys.columns:
            column = self.relation.column(name)
            texts = keys[name].cast(pl.String).to_list()
            # The bare type: a modifier would cut a key, a domain might refuse it.
            pg_type = sql.SQL("pg_catalog.{}[]").format(sql.Identifier(column.base_type if column else "text"))
            arrays.append(sql.SQL("{}::pg_catalog.text[]::{}").format(sql.Literal(texts), pg_type))
        names = sql.SQL(", ").join(map(sql.Identifier, keys.columns))
        if len(arrays) == 1:
            return self.read(sql.SQL("{} = any({})").format(names, arrays[0]))
        return self.read(sql.SQL("({}) in (select * from unnest({}))").format(names, sql.SQL(", ").join(arrays)))

    def read(self, where: sql.Composable | None) -> pl.DataFrame:
        """Return the rows for which `where` holds.

        Raises:
            ChunkError, TransientError, StopRunError: as the reader says, or a value has no place in its type.
        """
        lookup, routes = self.lookup, self.routes
        head = f"{lookup.at}: read lookup {lookup.name}"
        selected = sql.SQL(", ").join(
            sql.SQL("{0}::text as {0}" if route.select_text else "{0}").format(sql.Identifier(name))
            for name, route in routes.items()
        )
        statement = sql.SQL("select {} from {}").format(selected, self.relation.from_item)
        if where is not None:
            statement += sql.SQL(" where {}").format(where)
        named = any(pgtypes.names_objects(column) for column in self.relation.columns if column.name in routes)
        options = {**self.place.settings, **({"search_path": ""} if named else {})}
        reader = READERS[self.place.driver](self.place.snapshot)
        far = f"{head}: got a date, time or number that has no place in its type (infinity, NaN), expected finite ones"
        hint = "Leave these rows out, or cast the column to text, in a query"
        try:
            uri = self.place.dsn.uri(application_name="keyhaul lookup", options=options)
            table = reader.read(statement.as_string(None), uri)
        except UnreadableValueError:
            msg = f"{far}. {hint}"
            raise _FarError(msg) from None
        finally:
            reader.close()
        frame, odd = decode(table, self.schema)
        wrapped = [
            name for name, route in routes.items() if name not in odd and any_out_of_range(frame[name], route.dtype)
        ]
        if odd or wrapped:
            msg = f"{far} in {', '.join(sorted({*odd, *wrapped}))}. {hint}"
            raise _FarError(msg)
        return frame


def _described(lookup: Lookup, conn: psycopg.Connection[Any]) -> Relation:
    what = f"lookup {lookup.name}"
    try:
        if lookup.query is not None:
            relation = catalog.describe_query(conn, lookup.query, what)
        else:
            relation = find_table(conn, lookup.table or "", what, "source.table of the lookup")
    except ConfigError as error:
        msg = f"{lookup.at}: {error}"
        raise ConfigError(msg) from None
    return relation


def _routes(lookup: Lookup, relation: Relation) -> dict[str, pgtypes.Route]:
    """Return how each column travels that the lookup names; refuse those that cannot be carried or compared."""
    check_columns(lookup, [column.name for column in relation.columns])
    routes: dict[str, pgtypes.Route] = {}
    problems = []
    for name in lookup.columns:
        column = relation.column(name)
        if column is None:  # pragma: no cover - they were all found above
            continue
        routes[name] = route = pgtypes.route(column)
        if route.kind == "refused":
            problems.append(f"{lookup.at}: read lookup {lookup.name}.{name}: {route.reason}")
        # Text that is equal here need not be equal there (1.0 and 1.00), nor sorted so (9 and 10).
        compared = name in lookup.on.values() and pgtypes.family(column) != "enum"
        if route.kind == "text" and (compared or name == lookup.first):
            problems.append(
                f"{lookup.at}: compare lookup {lookup.name}.{name}: {column.pg_type} travels as text "
                f"({route.reason}), expected a type that can be compared. Cast it in a query, for example {name}::text"
            )
    if problems:
        raise ConfigError("\n".join(problems))
    return routes


def _check_before(lookup: Lookup, conn: psycopg.Connection[Any], relation: Relation) -> None:
    """Refuse what is too large before it is read: by the statistics of a table, else as the server counts it."""
    if relation.kind == "r" and relation.reltuples >= 0 and relation.row_bytes > 0:
        width = sum(column.name in lookup.columns for column in relation.columns) / len(relation.columns)
        check_size(lookup, relation.reltuples * relation.row_bytes * width)
        return
    columns = sql.SQL(", ").join(map(sql.Identifier, lookup.columns))
    counted = sql.SQL("select coalesce(sum(pg_column_size(row({}))), 0)::bigint from {}")
    row = conn.execute(counted.format(columns, relation.from_item)).fetchone()
    check_size(lookup, row[0] if row else 0)
