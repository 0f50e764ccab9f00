"""Connections: which databases a job means, how a session of ours is opened, and what is said when it cannot be."""

from __future__ import annotations

from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import errors

from keyhaul import redaction
from keyhaul.config.job import EMBEDDED, PostgresSource
from keyhaul.embedded import server as embedded
from keyhaul.errors import ConnectError
from keyhaul.ledger import versions
from keyhaul.ledger.reading import ledger_errors
from keyhaul.ledger.store import Ledger
from keyhaul.postgres import pgtypes
from keyhaul.postgres.dsn import Dsn, redact
from keyhaul.postgres.shapes import money_decimals, money_in
from keyhaul.sessions import links, poolers, seats

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from keyhaul.config.job import Job
    from keyhaul.model import Column

CONNECT_TIMEOUT_SECONDS = 2
"""How long a first connection may take (the URI's own connect_timeout wins); a wrong address is told at once."""

LEDGER_SCHEMA: Final = "keyhaul"
"""The ledger's schema where none is given, as `Job.ledger_schema` has it."""

LEAVE_SECONDS: Final = 5.0
"""How long a session of ours that is ended may take to let go of the job's lock."""


@dataclass(slots=True, kw_only=True)
class Ends:
    """Both databases of a job, found and reachable.

    Attributes:
        source, target: their connection strings; the source's is None where it is no PostgreSQL database.
        embedded_target: whether the target is the embedded server's.
        filled: the flights were loaded into the embedded source just now.
    """

    source: Dsn | None
    target: Dsn
    embedded_target: bool
    filled: bool = False

    @property
    def all(self) -> tuple[Dsn, ...]:
        """Those that there are, whose passwords no message may have."""
        return (self.target,) if self.source is None else (self.source, self.target)


def find_ends(job: Job) -> Ends:
    """Parse both URIs; start the embedded server when one of them is ``embedded``.

    Raises:
        ConfigError: a URI cannot be read, or the embedded server cannot be started.
    """
    uri = job.source.uri if isinstance(job.source, PostgresSource) else None
    source_embedded, target_embedded = uri == EMBEDDED, job.target.uri == EMBEDDED
    filled = False
    if source_embedded or target_embedded:
        server = embedded.start(Path(job.home) if job.home else None)
        filled = embedded.ensure_flights(server)
        here = Dsn.parse(server.uri(embedded.SOURCE), "embedded")
        there = Dsn.parse(server.uri(embedded.WAREHOUSE), "embedded")
    return Ends(
        source=here if source_embedded else Dsn.parse(uri, "source.uri (flag --source)") if uri else None,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerPlace:
    """Where a ledger is: the database and the schema in it."""

    dsn: Dsn
    schema: str


def find_ledger(target: str | None, home: str | None, schema: str | None, environ: Mapping[str, str]) -> LedgerPlace:
    """Return where the ledger is, by what is given, else by the variables, else by default.

    Args:
        target: a URI; ``ETL_TARGET_URL`` or the embedded server by default, which is started then.
        home: of the embedded server; ``ETL_HOME`` or the user's cache by default.
        schema: ``ETL_LEDGER_SCHEMA`` or ``keyhaul`` by default.
        environ: the variables; none are looked at in an empty one.
    """
    uri = target or environ.get("ETL_TARGET_URL") or EMBEDDED
    return LedgerPlace(
        dsn=find_target(uri, home or environ.get("ETL_HOME") or None),
        schema=schema or environ.get("ETL_LEDGER_SCHEMA") or LEDGER_SCHEMA,
    )


@contextmanager
def look_back(place: LedgerPlace) -> Iterator[psycopg.Connection[Any]]:
    """Yield a connection to the database with the ledger, in autocommit mode, for who only reads there.

    Raises:
        ConnectError: the database cannot be reached.
        RefusedError: the ledger is one that this keyhaul does not read.
        ConfigError: this login may not read it.
    """
    settings = {"timezone": "UTC"}
    with closing(connect(place.dsn, "target", application_name="keyhaul look back", settings=settings)) as conn:
        with ledger_errors(conn, place.schema):
            versions.check(conn, place.schema)
        yield conn


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
        conn = psycopg.connect(conninfo, autocommit=True, prepare_threshold=None, client_encoding="UTF8")
    except psycopg.Error as error:
        text = redact(" ".join(str(error).split()), dsn, _sent(dsn, error))
        raise ConnectError(f"connect to {end} {dsn.label}: {_reason(error, text, end)}") from None
    links.watch(conn, end, application_name)
    try:
        settled = conn.execute(links.settling(conninfo)).fetchone()
        if settled is not None and settled[0] != conn.info.backend_pid:
            poolers.check(conn, conninfo, dsn.identity)
    except psycopg.Error as error:
        conn.close()
        text = redact(" ".join(str(error).split()), dsn)
        msg = f"connect to {end} {dsn.label}: give the session its settings: {text}. Allow this user to set them"
        raise ConnectError(msg) from None
    except ConnectError as error:
        conn.close()
        raise ConnectError(f"connect to {end} {dsn.label}: {error} in {_flag(end)}") from None
    return conn


def _sent(dsn: Dsn, error: psycopg.Error) -> Dsn:
    """Return `dsn` with the password of a login that came to nothing, wherever libpq has found it.

    The server was given it, and may repeat it in what it says.
    """
    tried = error.pgconn
    if tried is None:
        return dsn
    found = replace(dsn, user=tried.user.decode(errors="replace"), password=tried.password.decode(errors="replace"))
    redaction.remember(found.password, found.user)
    return found


def _flag(end: str) -> str:
    return "source.uri of the lookup" if end == "lookup" else f"--{end} (or ETL_{end.upper()}_URL, or {end}.uri)"


def _reason(error: psycopg.Error, text: str, end: str) -> str:
    flag = _flag(end)
    lowered = text.lower()
    causes = (
        (
            isinstance(error, errors.InvalidPassword) or "password authentication failed" in lowered,
            f"the server refuses the user or password. Change them in {flag}",
        ),
        (
            "unsupported startup parameter" in lowered,
            (
                "the connection pooler there refuses a session's settings. Give ignore_startup_parameters = options in "
                f"its configuration (they are set by a statement then), or the server's own address in {flag}"
            ),
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
            "certificate" in lowered or "does not support ssl" in lowered,
            (
                f"{text.partition('failed: ')[2] or text}. A server on another machine must prove who it is. Give its "
                f"CA's certificate as ?sslrootcert=FILE in {flag}; ?sslmode=require encrypts without that proof, "
                "?sslmode=disable sends everything in the clear"
            ),
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

    A session of this process that held the job's lock before, and is lost, is ended if the server still has it.
    A user who is called like the ledger's schema has it first in the path, by way of ``"$user"``: a
    table named without a schema would be looked for, and created, among the ledger's.

    Raises:
        ConnectError: it cannot be reached.
    """
    settings = session_settings(job)
    conn = connect(target, "target", application_name=Ledger.session_name(run_id), settings=settings)
    try:
        conn.execute(
            "select set_config('search_path', coalesce((select string_agg(quote_ident(s), ', ' order by n)"
            " from unnest(current_schemas(false)) with ordinality as path(s, n) where s <> %s), ''), false)",
            [job.ledger_schema],
        )
        seat = f"ledger of {job.job} in {job.ledger_schema} of {target.identity}"
        seats.take(seat, conn, lambda query: conn.execute(query).fetchall(), wait_seconds=LEAVE_SECONDS)
    except psycopg.Error:
        conn.close()
        raise
    return conn


def session_settings(job: Job, **more: str) -> dict[str, str]:
    """Return what every session of ours sets."""
    return {
        **pgtypes.SESSION_SETTINGS,
        "statement_timeout": f"{job.statement_timeout_seconds}s",
        "lock_timeout": f"{job.lock_timeout_seconds}s",
        **more,
    }


def decimals(
    conn: psycopg.Connection[Any], columns: Sequence[Column], dsn: Dsn, end: str, *, sure: bool = False
) -> dict[str, int]:
    """Return those of the columns that have a money in them, with the decimals that it has in their database.

    Our own sessions say how a money is written as text; what it means is said by the database's ``lc_monetary``, or the
    login's. So a session without settings of ours is asked, where there is such a column; `sure`: each is one.
    """
    found = [column.name for column in columns] if sure else money_in(conn, columns)
    if not found:
        return {}
    with closing(connect(dsn, end, application_name="keyhaul money", settings={})) as plain:
        return dict.fromkeys(found, money_decimals(plain))


def describe_tls(dsn: Dsn, conn: psycopg.Connection[Any]) -> str:
    """Return what the TLS of a connection is worth, for people, for example ``TLS verify-full`` or ``no TLS``."""
    if not conn.pgconn.ssl_in_use:
        return "no TLS"
    mode = dsn.options.get("sslmode", "prefer")
    if mode == "verify-full":
        return "TLS verify-full"
    return f"TLS {mode}, host name not verified" if mode == "verify-ca" else "TLS, server not verified"


NOTICING: Final = {
    "client_connection_check_interval": "5s",
    "tcp_keepalives_idle": "60",
    "tcp_user_timeout": "90s",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
}
"""By which a server notices in the middle of a statement that we are gone, and leaves us alone as long as we are there
(a role may have limits of its own); not every version and system has each."""


def noticing(dsn: Dsn, conn: psycopg.Connection[Any]) -> Dsn:
    """Set on `conn` what its server has of `NOTICING`; return `dsn` for further sessions with the same."""
    known = []
    for name, value in NOTICING.items():
        try:
            conn.execute("select set_config(%s, %s, false)", [name, value])
        except (errors.UndefinedObject, errors.InvalidParameterValue):
            continue
        known.append(f"-c {name}={value}")
    # The last of two equal settings wins: what the user's URI says comes after ours.
    options = " ".join([*known, *filter(None, [dsn.options.get("options", "")])])
    return replace(dsn, options={**dsn.options, "options": options}) if options else dsn


def with_login(dsn: Dsn, conn: psycopg.Connection[Any]) -> Dsn:
    """Return `dsn` with the user and password that libpq found; connectorx does not look at PGPASSWORD or ~/.pgpass."""
    found = replace(dsn, user=dsn.user or conn.info.user, password=dsn.password or conn.info.password)
    redaction.remember(found.password, found.user)
    return found
