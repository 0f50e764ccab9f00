"""Everything that is settled before the first row moves: both ends are asked, and every mistake is told.

Nothing is written here, in the source or in the target.
"""

from __future__ import annotations

import difflib
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from zoneinfo import available_timezones

import psycopg
from psycopg import errors

from keyhaul import catalog, embedded, pgtypes
from keyhaul.config import EMBEDDED
from keyhaul.copies import check_dedup
from keyhaul.dsn import Dsn, redact
from keyhaul.errors import ConfigError, ConnectError, RefusedError
from keyhaul.ledger import session_name
from keyhaul.mapping import build_mapping
from keyhaul.model import RECORD
from keyhaul.shapes import differences
from keyhaul.sources.lookups import LookupSource
from keyhaul.sources.sql import SqlSource
from keyhaul.stage import compile_rules
from keyhaul.targets.modes import with_mode
from keyhaul.targets.postgres import TargetTable, inspect_target
from keyhaul.transform import Transform, compile_transform

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from keyhaul.config import Job
    from keyhaul.definition import TableDefinition
    from keyhaul.mapping import WriteColumn
    from keyhaul.model import Column
    from keyhaul.pgtypes import Route
    from keyhaul.stage import Check

MAX_NAME_BYTES = 63
"""NAMEDATALEN - 1: PostgreSQL cuts a longer name with no more than a notice."""

CONNECT_TIMEOUT_SECONDS = 2
"""How long a first connection may take (the URI's own connect_timeout wins); a wrong address is told at once."""


@dataclass(slots=True, kw_only=True)
class Ends:
    """Both databases of a job, found and reachable.

    Attributes:
        source, target: their connection strings.
        embedded_target: whether the target is the embedded server's.
        filled: the flights were loaded into the embedded source just now.
    """

    source: Dsn
    target: Dsn
    embedded_target: bool
    filled: bool = False


def find_ends(job: Job) -> Ends:
    """Parse both URIs; start the embedded server when one of them is ``embedded``.

    Raises:
        ConfigError: a URI cannot be read, or the embedded server cannot be started.
    """
    source_embedded, target_embedded = job.source.uri == EMBEDDED, job.target.uri == EMBEDDED
    filled = False
    if source_embedded or target_embedded:
        server = embedded.start(Path(job.home) if job.home else None)
        filled = embedded.ensure_flights(server)
        here = Dsn.parse(server.uri(embedded.SOURCE), "embedded")
        there = Dsn.parse(server.uri(embedded.WAREHOUSE), "embedded")
    return Ends(
        source=here if source_embedded else Dsn.parse(job.source.uri, "source.uri (flag --source)"),
        target=there if target_embedded else Dsn.parse(job.target.uri, "target.uri (flag --target)"),
        embedded_target=target_embedded,
        filled=filled,
    )


def find_target(uri: str, home: str | None) -> Dsn:
    """Return the connection string of the target to look back at; starts the embedded server if that is meant."""
    if uri != EMBEDDED:
        return Dsn.parse(uri, "target.uri (flag --target)")
    server = embedded.start(Path(home) if home else None)
    embedded.ensure_databases(server, [embedded.WAREHOUSE])
    return Dsn.parse(server.uri(embedded.WAREHOUSE), "embedded")


def connect(dsn: Dsn, end: str, *, application_name: str, settings: Mapping[str, str]) -> psycopg.Connection[Any]:
    """Connect in autocommit mode.

    Args:
        dsn: which database.
        end: ``source``, ``target`` or ``lookup``, for messages.
        application_name: shown in pg_stat_activity.
        settings: of the session.

    Raises:
        ConnectError: it cannot be reached or refuses the login; the message has no password.
    """
    conninfo = dsn.conninfo(
        application_name=application_name, options=settings, connect_timeout_seconds=CONNECT_TIMEOUT_SECONDS
    )
    try:
        # No prepared statements: a pooler between us and the server may not keep them.
        return psycopg.connect(conninfo, autocommit=True, prepare_threshold=None, client_encoding="UTF8")
    except psycopg.Error as error:
        text = redact(" ".join(str(error).split()), dsn)
        raise ConnectError(f"connect to {end} {dsn.label}: {_reason(error, text, end)}") from None


def _reason(error: psycopg.Error, text: str, end: str) -> str:
    flag = "source.uri of the lookup" if end == "lookup" else f"--{end} (or ETL_{end.upper()}_URL, or {end}.uri)"
    lowered = text.lower()
    causes = (
        (
            isinstance(error, errors.InvalidPassword) or "password authentication failed" in lowered,
            f"the server refuses the user or password. Change them in {flag}",
        ),
        (
            "no password supplied" in lowered,
            f"the server wants a password and none was given. Put it into {flag}",
        ),
        (
            "does not exist" in lowered and "database" in lowered,
            f"there is no such database. Change {flag}",
        ),
        (
            "could not translate host name" in lowered or "name or service not known" in lowered,
            f"there is no such host. Change {flag}",
        ),
        (
            "refused" in lowered,
            f"nothing listens there (connection refused). Is the server running? Else change {flag}",
        ),
        (
            "timeout" in lowered or "timed out" in lowered,
            (
                f"no answer within {CONNECT_TIMEOUT_SECONDS} s. Check host and port in {flag}; "
                "a slow link wants ?connect_timeout=SECONDS there"
            ),
        ),
    )
    return next((told for holds, told in causes if holds), f"{text}. Check {flag}")


def connect_ledger(job: Job, target: Dsn, run_id: str) -> psycopg.Connection[Any]:
    """Connect to the target for the ledger, with the ledger's schema out of the search path.

    A user who is called like the ledger's schema has it first in the path, by way of ``"$user"``: a
    table named without a schema would be looked for, and created, among the ledger's.

    Raises:
        ConnectError: it cannot be reached.
    """
    conn = connect(target, "target", application_name=session_name(run_id), settings=session_settings(job))
    try:
        conn.execute(
            "select set_config('search_path', coalesce((select string_agg(quote_ident(s), ', ' order by n)"
            " from unnest(current_schemas(false)) with ordinality as path(s, n) where s <> %s), ''), false)",
            [job.ledger_schema],
        )
    except psycopg.Error:
        conn.close()
        raise
    return conn


def session_settings(job: Job, **more: str) -> dict[str, str]:
    """Return what every session of ours sets."""
    return {
        **pgtypes.SESSION_SETTINGS,
        "statement_timeout": f"{job.statement_timeout_seconds}s",
        "idle_session_timeout": "0",
        **more,
    }


@dataclass(slots=True, kw_only=True)
class Prepared:
    """An open job: both ends connected, the snapshot taken, everything compiled; nothing written yet.

    A context manager: leaving it closes both connections and with them the snapshot and the job's lock.
    """

    job: Job
    ends: Ends
    source_conn: psycopg.Connection[Any]
    target_conn: psycopg.Connection[Any]
    source: SqlSource
    target: TargetTable
    definition: TableDefinition | None
    routes: Mapping[str, Route]
    sources: Mapping[str, Column]
    transform: Transform
    checks: tuple[Check, ...]
    columns: tuple[WriteColumn, ...]
    read_columns: tuple[str, ...]

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close both connections."""
        self.close()

    def close(self) -> None:
        """Close both connections."""
        self.source_conn.close()
        self.target_conn.close()


def prepare(job: Job, ends: Ends, *, run_id: str = "plan") -> Prepared:
    """Connect to both ends, take the snapshot, and compile the job against what is really there.

    Raises:
        ConnectError: an end cannot be reached.
        ConfigError: a table, key, column, expression or rule does not fit.
        RefusedError: a column cannot be carried, or has no place in the target.
    """
    _check_tls(job, ends.source)
    with ExitStack() as stack:
        source_conn = connect(
            ends.source,
            "source",
            application_name=f"keyhaul {run_id} snapshot",
            settings=session_settings(job, idle_in_transaction_session_timeout="0", default_transaction_read_only="on"),
        )
        stack.callback(source_conn.close)
        target_conn = connect_ledger(job, ends.target, run_id)
        stack.callback(target_conn.close)
        ends = replace(ends, source=_with_login(ends.source, source_conn), target=_with_login(ends.target, target_conn))
        try:
            prepared = _compile(job, ends, source_conn, target_conn)
        except psycopg.Error as error:
            msg = f"prepare job {job.job}: {redact(str(error).strip().splitlines()[0], ends.source, ends.target)}"
            raise ConfigError(msg) from None
        stack.pop_all()
        return prepared


def _check_tls(job: Job, dsn: Dsn) -> None:
    mode = dsn.options.get("sslmode", "")
    if job.source.reader == "connectorx" and mode.startswith("verify"):
        msg = (
            f"read source: connectorx cannot do sslmode={mode} (with sslmode=require and sslrootcert it checks the CA, "
            "but not the host's name). Give --reader adbc, which verifies fully"
        )
        raise RefusedError(msg)


def _with_login(dsn: Dsn, conn: psycopg.Connection[Any]) -> Dsn:
    """Return `dsn` with the user and password that libpq found; connectorx does not look at PGPASSWORD or ~/.pgpass."""
    return replace(dsn, user=dsn.user or conn.info.user, password=dsn.password or conn.info.password)


def _compile(
    job: Job, ends: Ends, source_conn: psycopg.Connection[Any], target_conn: psycopg.Connection[Any]
) -> Prepared:
    source = _open_source(job, source_conn)
    routes = source.routes()
    sources = {column.name: column for column in source.relation.columns}
    load = _lookups(job, ends.source, source).load
    transform = compile_transform(job.transform, {name: route.dtype for name, route in routes.items()}, load)
    read_columns = tuple(name for name in routes if name in transform.needed or name in job.key)
    _refuse_routes(routes, read_columns)
    checks = compile_rules(job.rules, {name: column.dtype for name, column in transform.output.items()})
    check_dedup(job, transform, sources)
    definition = source.definition(_types_of(transform, sources))
    into = job.target.table
    if into == job.source.table:
        into = catalog.own_name(source_conn, into)
    target = inspect_target(
        target_conn,
        into,
        output=transform.output,
        sources=sources,
        primary_key=source.relation.primary_key,
        definition=definition,
        create=not job.target.no_create,
        foreign_keys=job.target.with_foreign_keys,
    )
    _refuse_itself(ends, source, target)
    given = [part for name in (job.source.table, into) if name for part in _parts(target_conn, name)]
    _check_names([*given, target.schema, target.table, *transform.output])
    columns = build_mapping(transform.output, sources, target.columns, target.label, time_zone=_check_zone(job))
    target = with_mode(target_conn, target, job.target, [column.name for column in columns])
    _check_shapes(source_conn, target_conn, target, transform, sources, columns)
    if not columns:
        msg = f"load {target.label}: no column is left after the transform. Drop fewer"
        raise RefusedError(msg)
    return Prepared(
        job=job,
        ends=ends,
        source_conn=source_conn,
        target_conn=target_conn,
        source=source,
        target=target,
        definition=definition,
        routes=routes,
        sources=sources,
        transform=transform,
        checks=checks,
        columns=columns,
        read_columns=read_columns,
    )


def _lookups(job: Job, dsn: Dsn, source: SqlSource) -> LookupSource:
    settings = session_settings(job, default_transaction_read_only="on", lock_timeout="30s")

    def open_other(other: Dsn) -> tuple[psycopg.Connection[Any], Dsn]:
        _check_tls(job, other)
        conn = connect(other, "lookup", application_name="keyhaul lookup", settings=settings)
        return conn, _with_login(other, conn)

    return LookupSource(
        conn=source.conn,
        snapshot=source.snapshot,
        dsn=dsn,
        reader=job.source.reader,
        settings=settings,
        open_other=open_other,
    )


def _open_source(job: Job, conn: psycopg.Connection[Any]) -> SqlSource:
    source = SqlSource.open(conn, table=job.source.table, query=job.source.query, key=job.key)
    own = [column.name for column in source.relation.columns if column.name.lower() == RECORD]
    if own:
        msg = f"read {source.relation.label}: a column is called {own[0]}, which is keyhaul's own. Rename it in a query"
        raise RefusedError(msg)
    return source


def _refuse_itself(ends: Ends, source: SqlSource, target: TargetTable) -> None:
    if ends.source.identity == ends.target.identity and source.relation.label == target.label:
        msg = f"load {target.label}: it is the table that is read. Give another one in --into, or another --target"
        raise RefusedError(msg)


def _types_of(transform: Transform, sources: Mapping[str, Column]) -> list[int]:
    copied = {column.source for column in transform.output.values() if column.source}
    return sorted({sources[name].type_oid for name in copied})


def _check_shapes(
    source_conn: psycopg.Connection[Any],
    target_conn: psycopg.Connection[Any],
    target: TargetTable,
    transform: Transform,
    sources: Mapping[str, Column],
    columns: Sequence[WriteColumn],
) -> None:
    """Refuse an enum that lacks a label, and a type of the same name that is made of something else."""
    if target.ddl.before:
        return  # its types were compared, or will be created
    copied = {name: sources[column.source] for name, column in transform.output.items() if column.source}
    pairs = [(copied[column.name], column.target) for column in columns if column.name in copied]
    problems = [
        f"write {target.label}.{problem}. Change the type there, or cast the column to text in both"
        for problem in differences(source_conn, target_conn, pairs)
    ]
    if problems:
        raise RefusedError("\n".join(problems))


def _parts(conn: psycopg.Connection[Any], table: str) -> Sequence[str]:
    return catalog.parse_name(conn, table) or table.rpartition(".")[::2]


def _check_names(names: Iterable[str]) -> None:
    """Refuse names that PostgreSQL would cut, or that break its own tools' scripts."""
    problems = []
    for name in dict.fromkeys(names):
        if len(name.encode()) > MAX_NAME_BYTES:
            problems.append(
                f"use name {name!r}: it has {len(name.encode())} bytes, expected at most {MAX_NAME_BYTES}. Rename it"
            )
        if any(character in name for character in "\r\n\0"):
            problems.append(
                f"use name {name!r}: it has a line break, which keyhaul does not carry. Rename it in a query"
            )
    if problems:
        raise RefusedError("\n".join(problems))


def _check_zone(job: Job) -> str | None:
    zone = job.source.time_zone
    if zone is not None and zone not in available_timezones():
        near = difflib.get_close_matches(zone, available_timezones(), n=3)
        msg = f"read source.time_zone: {zone} is no zone, expected one such as {', '.join(near) or 'Europe/Berlin'}"
        raise ConfigError(msg)
    return zone


def _refuse_routes(routes: Mapping[str, Route], read: Sequence[str]) -> None:
    refused = [f"read column {name}: {routes[name].reason}" for name in read if routes[name].kind == "refused"]
    if refused:
        raise RefusedError("\n".join(refused))
