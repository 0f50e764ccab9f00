"""The two loaders behind one seam: a transaction that takes SQL and Arrow, over psycopg or over ADBC."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import psycopg
import pyarrow as pa
from psycopg import sql

from keyhaul.errors import (
    HOPELESS,
    ChunkError,
    RejectedError,
    TransientError,
    first_line,
    safe_message,
    without_values,
)
from keyhaul.faults import pass_point
from keyhaul.sessions import seats
from keyhaul.sessions.links import application_name, awaiting, blocker, settling, watch
from keyhaul.targets import sqlstates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from keyhaul.postgres.pgtypes import Encoder
    from keyhaul.sources.source import Relay

BATCH_ROWS: Final = 16_384
"""Rows that are encoded at a time: about 2 MB of COPY data for rows of 100 bytes."""

_RELAYED_BYTES: Final = 1 << 18

LOCK_TIMEOUT: Final = "55P03"

T = TypeVar("T")

Statement = sql.SQL | sql.Composed
"""SQL put together from quoted parts."""


_SERVER_SAID = re.compile(r"\b(?:ERROR|FATAL|PANIC):\s+(.+)")


class Session(Protocol):
    """One transaction at a time in the target; a session belongs to one worker thread."""

    def execute(self, query: Statement) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows, if it gives any."""

    def copy(self, table: sql.Identifier, data: pa.Table, encoders: Mapping[str, Encoder]) -> None:
        """Append all rows of `data` to the columns of the same names."""

    def commit(self) -> None:
        """Commit, and know that it was committed."""

    def close(self) -> None:
        """Roll back what is open and give the connection up."""

    def cancel(self) -> None:
        """Ask the server to stop what this session does; may be called from another thread."""

    @property
    def recovers(self) -> bool:
        """Whether a savepoint can be rolled back to after an error."""


class CopySession:
    """psycopg and a binary COPY that pgpq encodes, record batch by record batch."""

    recovers = True

    def __init__(self, conninfo: str) -> None:
        """Connect; the first statement begins a transaction."""
        try:
            self._conn: psycopg.Connection[Any] = psycopg.connect(
                conninfo, prepare_threshold=None, client_encoding="UTF8"
            )
        except psycopg.Error as error:
            raise translate(error) from error
        name = self._conn.info.get_parameters().get("application_name", "")
        watch(self._conn, "target", name)
        _sit_down(self, name, self._conn, conninfo)

    def roll_back(self) -> None:
        """End the transaction under way."""
        try:
            self._conn.rollback()
        except psycopg.Error as error:
            raise translate(error) from error

    def execute(self, query: Statement) -> list[tuple[Any, ...]]:
        """Run one statement; raises TransientError or ChunkError with the server's words."""
        try:
            cursor = self._conn.execute(query)
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise translate(error) from error

    def copy(self, table: sql.Identifier, data: pa.Table, encoders: Mapping[str, Encoder]) -> None:
        """Stream `data` as one binary COPY, encoding `BATCH_ROWS` rows at a time."""
        try:
            encoder = _encoder(data.schema, encoders)
        except (RuntimeError, TypeError, ValueError) as error:
            msg = f"encode chunk: {safe_message(error)}"
            raise ChunkError(msg) from error
        columns = sql.SQL(", ").join(map(sql.Identifier, data.schema.names))
        query = sql.SQL("copy {} ({}) from stdin (format binary)").format(table, columns)
        try:
            with self._conn.cursor() as cursor, cursor.copy(query) as copy:
                copy.write(encoder.write_header())
                pass_point("copy.begun")
                for batch in data.to_batches(max_chunksize=BATCH_ROWS):
                    copy.write(encoder.write_batch(batch))
                    pass_point("copy.half")
                copy.write(encoder.finish())
            pass_point("copy.ended")
        except psycopg.Error as error:
            raise translate(error) from error

    def relay(self, table: sql.Identifier, relay: Relay) -> None:
        """Send CSV as it stands."""
        columns = sql.SQL(", ").join(map(sql.Identifier, relay.columns))
        query = sql.SQL("copy {} ({}) from stdin (format csv, delimiter {})")
        text = memoryview(relay.text)
        try:
            with self._conn.cursor() as cursor:
                with cursor.copy(query.format(table, columns, sql.Literal(relay.delimiter))) as copy:
                    pass_point("copy.begun")
                    for begin in range(0, len(text), _RELAYED_BYTES):
                        copy.write(text[begin : begin + _RELAYED_BYTES])
                        pass_point("copy.half")
                if cursor.rowcount != relay.records:
                    raise ChunkError(f"relay chunk: COPY took {cursor.rowcount:,} records, expected {relay.records:,}")
            pass_point("copy.ended")
        except psycopg.Error as error:
            raise translate(error) from error

    @property
    def relays(self) -> bool:
        """Whether the server reads CSV as it is meant: byte by byte as UTF-8."""
        return self._conn.info.parameter_status("server_encoding") == "UTF8"

    def commit(self) -> None:
        """Commit; an error leaves it unknown whether it was, and the ledger must be asked."""
        try:
            self._conn.commit()
        except psycopg.Error as error:
            raise TransientError(f"commit chunk: {_message(error)}") from error

    def close(self) -> None:
        """Close; the server rolls back what is open."""
        with contextlib.suppress(psycopg.Error):
            self._conn.close()

    def cancel(self) -> None:
        """Send a cancel request for the running statement."""
        with contextlib.suppress(psycopg.Error):
            self._conn.cancel_safe(timeout=2)


class AdbcSession:
    """The ADBC driver and its bulk ingestion.

    Attributes:
        closed: whether it is given up.
    """

    recovers = False  # after an error, ROLLBACK TO SAVEPOINT does not bring the driver back

    def __init__(self, uri: str) -> None:
        """Connect; autocommit is off."""
        import adbc_driver_postgresql.dbapi as adbc  # 300 ms, and only for this loader

        self._uri = uri
        self.closed = False
        try:
            with awaiting("target", uri):
                self._conn = adbc.connect(uri)
        except Exception as error:
            raise translate(error) from error
        _sit_down(self, application_name(uri), self, uri)

    def roll_back(self) -> None:
        """End the transaction under way."""
        try:
            self._conn.rollback()
        except Exception as error:
            raise translate(error) from error

    def execute(self, query: Statement) -> list[tuple[Any, ...]]:
        """Run one statement; raises TransientError or ChunkError with the server's words."""
        try:
            with awaiting("target", self._uri), self._conn.cursor() as cursor:
                cursor.execute(query.as_string(None))
                return [tuple(row) for row in cursor.fetchall()] if cursor.description else []
        except Exception as error:
            raise translate(error) from error

    def copy(self, table: sql.Identifier, data: pa.Table, encoders: Mapping[str, Encoder]) -> None:
        """Ingest `data`; a jsonb string gets the version byte that the wire format wants in front."""
        for name, encoder in encoders.items():
            if encoder == "jsonb":
                data = _with_version_byte(data, name)
        schema, name = table._obj if len(table._obj) > 1 else (None, table._obj[0])  # noqa: SLF001 - no public getter
        target: dict[str, Any] = {"temporary": True} if schema == "pg_temp" else {"db_schema_name": schema}
        try:
            pass_point("copy.begun")
            # A new cursor each time: the schema set on one sticks to it.
            with awaiting("target", self._uri), self._conn.cursor() as cursor:
                cursor.adbc_ingest(name, data, mode="append", **target)
            pass_point("copy.ended")
        except Exception as error:
            raise translate(error) from error

    def commit(self) -> None:
        """Commit. It would hide a failed ingest, so a session with an error never comes here: it is closed."""
        try:
            with awaiting("target", self._uri):
                self._conn.commit()
        except Exception as error:
            raise TransientError(f"commit chunk: {_message(error)}") from error

    def close(self) -> None:
        """Close; the server rolls back what is open."""
        self.closed = True
        with contextlib.suppress(Exception):
            self._conn.close()

    def cancel(self) -> None:
        """Ask the driver to cancel the running statement."""
        with contextlib.suppress(Exception):
            self._conn.adbc_cancel()


def _sit_down(session: CopySession | AdbcSession, name: str, holder: seats.Holder, conninfo: str) -> None:
    """Take the seat of a session that was just opened; a chunk's transaction begins with its own first statement."""
    try:
        session.execute(sql.SQL(settling(conninfo)))
        session.commit()  # else the settings would be taken back with the transaction
        seats.take(name, holder, session.execute)
        session.roll_back()
    except BaseException:
        session.close()
        raise


SESSIONS: dict[str, Callable[[str], Session]] = {"copy": CopySession, "adbc": AdbcSession}


def _encoder(schema: pa.Schema, encoders: Mapping[str, Encoder]) -> Any:  # noqa: ANN401 - pgpq has no public type
    import pgpq  # only for this loader
    from pgpq import schema as output

    chosen = {}
    for field in schema:
        builder: Any = pgpq.ArrowToPostgresBinaryEncoder.infer_encoder(field)
        if encoders.get(field.name) == "jsonb":
            builder = type(builder).new_with_output(field, output.Jsonb())
        chosen[field.name] = builder
    return pgpq.ArrowToPostgresBinaryEncoder.new_with_encoders(schema, chosen)


def _with_version_byte(data: pa.Table, name: str) -> pa.Table:
    import pyarrow.compute as pc

    index = data.schema.get_field_index(name)
    texts = data.column(index).cast(pa.large_string())
    version, separator = pa.scalar("\x01", pa.large_string()), pa.scalar("", pa.large_string())
    return data.set_column(index, name, pc.binary_join_element_wise(version, texts, separator))


def _message(error: BaseException) -> str:
    """Return the server's primary message without row values (those stand in DETAIL and CONTEXT)."""
    diagnostic: Any = getattr(error, "diag", None)
    primary = diagnostic.message_primary if diagnostic is not None else None
    if primary:
        return _said(
            primary, diagnostic.sqlstate, diagnostic.constraint_name, diagnostic.column_name, diagnostic.table_name
        )
    # ADBC puts the statement in front of what the server says.
    said = _SERVER_SAID.search(str(error))
    if said is not None:
        return _said(said[1], sqlstate(error), None, None, None)
    return first_line(error)[:400]


def _said(primary: str, state: str | None, constraint: str | None, column: str | None, table: str | None) -> str:
    """Return a message with what else is known; a driver's own error has no SQLSTATE."""
    known = (("SQLSTATE", state), ("constraint", constraint), ("column", column), ("table", table))
    told = ", ".join(f"{label} {value}" for label, value in known if value)
    return without_values(primary) + (f" ({told})" if told else "")


@dataclass(slots=True)
class Tried:
    """What became of what was written inside `trying`; `error`: for which it was taken back."""

    error: RejectedError | None = None


@contextlib.contextmanager
def trying(session: Session) -> Iterator[Tried]:
    """Write inside a savepoint; an error about a row takes it all back and is kept.

    Raises:
        RejectedError: a row is rejected, and this session cannot go on after an error.
    """
    tried = Tried()
    session.execute(sql.SQL("savepoint keyhaul_part"))
    try:
        yield tried
        # Deferred constraints are asked now: at COMMIT it would be too late to find the guilty record.
        session.execute(sql.SQL("set constraints all immediate"))
    except RejectedError as error:
        if not session.recovers:
            raise
        session.execute(sql.SQL("rollback to savepoint keyhaul_part"))
        session.execute(sql.SQL("release savepoint keyhaul_part"))
        pass_point("isolate.halved")
        tried.error = error
    else:
        session.execute(sql.SQL("release savepoint keyhaul_part"))


def attempt(session: Session, write: Callable[[], T]) -> T | RejectedError:
    """Write as `trying` does; return what `write` does, or the error for which it was taken back."""
    with trying(session) as tried:
        done = write()
    return done if tried.error is None else tried.error


@contextlib.contextmanager
def taken_back(session: Session, *failures: type[ChunkError]) -> Iterator[None]:
    """Take back all that is written inside; these `failures` end it early."""
    session.execute(sql.SQL("savepoint keyhaul_tried"))
    with contextlib.suppress(*failures):
        yield
    session.execute(sql.SQL("rollback to savepoint keyhaul_tried"))
    session.execute(sql.SQL("release savepoint keyhaul_tried"))


def refusal(primary: str, state: str, constraint: str, column: str, table: str) -> RejectedError:
    """Return the error that stands for what the server said of a row, as PL/pgSQL has its parts."""
    message = f"load chunk: {_said(primary, state, constraint, column, table)}"
    return RejectedError(message, sqlstate=state, constraint=constraint, column=column)


def sqlstate(error: BaseException) -> str:
    """Return the five letters that the server gave with an error, or an empty string."""
    return str(getattr(error, "sqlstate", None) or "")


def translate(error: BaseException) -> ChunkError:
    """Turn a driver's error into ours: `TransientError` when another try may get past it."""
    state = sqlstate(error)
    message = f"load chunk: {_message(error)}"
    lost = isinstance(error, psycopg.OperationalError) and not state
    diagnostic: Any = getattr(error, "diag", None)
    whose = sqlstates.whose(state) if state else "statement"
    if state == LOCK_TIMEOUT and (held := blocker()):
        message += f". The lock was held by {held}"
    if lost or whose == "again" or ("onnection" in message and not state):
        return TransientError(message)
    # ADBC does not say where an error arose; the session that looks for guilty records will.
    inside = bool(state) and (diagnostic is None or bool(diagnostic.context))
    if whose in {"row", "perhaps"} or (whose == "statement" and inside):
        return RejectedError(
            message,
            sqlstate=state,
            constraint=getattr(diagnostic, "constraint_name", None) or "",
            column=getattr(diagnostic, "column_name", None) or "",
        )
    if whose == "statement" and state:
        message += f". {HOPELESS}"
    return ChunkError(message)
