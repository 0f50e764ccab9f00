"""The two drivers that read a query as Arrow: connectorx and ADBC."""

from __future__ import annotations

import contextlib
import importlib
import re
import threading
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from keyhaul.config.job import PostgresSource
from keyhaul.errors import ChunkError, RefusedError, StopRunError, TransientError, first_line, without_values
from keyhaul.quoting import quote_text
from keyhaul.sessions.links import awaiting, settling

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    from keyhaul.config.job import Job
    from keyhaul.postgres.dsn import Dsn

_TRANSIENT = re.compile(
    r"connection (?:closed|reset|refused|to server|was closed|terminated|abort)|server closed|broken pipe|timed out"
    r"|terminating connection|starting up|shutting down|recovery|deadlock|could not serialize|too many clients"
    r"|remaining connection slots|unexpected eof|unexpected message|io error|error communicating",
    re.IGNORECASE,
)
_UNREADABLE = re.compile(r"value too large to decode|out of range|PanicException", re.IGNORECASE)


class UnreadableValueError(ChunkError):
    """The driver met a value that its Arrow type cannot hold; the chunk is read again as text."""


class Reader(Protocol):
    """Reads one query at a time into Arrow; a reader belongs to one worker thread."""

    def read(self, query: str, uri: str) -> pa.Table:
        """Run `query` in the run's snapshot, read-only, and return all its rows."""

    def close(self) -> None:
        """Give the connection back, whatever its state."""


class ConnectorxReader:
    """connectorx: one connection for each query (3 to 5 ms), the GIL released while it reads."""

    def __init__(self, snapshot: str) -> None:
        """Remember the exported snapshot that every query joins."""
        self._begin = _begin_statements(snapshot)

    def read(self, query: str, uri: str) -> pa.Table:
        """Run `query` through a connection of its own.

        Raises:
            TransientError: the connection was lost or the server is busy; worth another try.
            UnreadableValueError: a value (±infinity, a far year) that connectorx cannot hold.
            StopRunError: the run's snapshot is gone.
            ChunkError: anything else, a panic of the driver included.
        """
        import connectorx  # 70 ms, and only for this reader

        try:
            with awaiting("source", uri):
                return connectorx.read_sql(
                    uri,
                    query,
                    return_type="arrow",
                    protocol="binary",
                    pre_execution_query=[settling(uri), *self._begin],
                )
        except BaseException as error:
            # A panic is a PanicException, which derives from BaseException, not from Exception.
            if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
                raise
            raise translate(error, "connectorx") from error

    def close(self) -> None:
        """Nothing is kept between reads."""


class AdbcReader:
    """ADBC: one connection for all the chunks of a worker."""

    def __init__(self, snapshot: str) -> None:
        """Remember the exported snapshot; the connection is opened by the first read."""
        self._begin = _begin_statements(snapshot)[1:]
        self._connection: Any = None
        self._uri = ""

    def read(self, query: str, uri: str) -> pa.Table:
        """Run `query` in the worker's transaction; the same errors as `ConnectorxReader.read`."""
        import adbc_driver_postgresql.dbapi as adbc  # 300 ms, and only for this reader

        try:
            if self._connection is None:
                self._uri = uri  # the session keeps the name of its first chunk
            with awaiting("source", self._uri):
                if self._connection is None:
                    self._connection = adbc.connect(uri)
                    self._execute(settling(uri))
                    self._connection.commit()  # else they would be taken back with the transaction
                    self._execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                    for statement in self._begin:
                        self._execute(statement)
                with self._connection.cursor() as cursor:
                    cursor.execute(query)
                    return cursor.fetch_arrow_table()
        except Exception as error:
            self.close()
            raise translate(error, "ADBC") from error

    def _execute(self, statement: str) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(statement)

    def close(self) -> None:
        """Close the connection; one that is broken already is only dropped."""
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._connection.close()
            self._connection = None


READERS: dict[str, Callable[[str], Reader]] = {"connectorx": ConnectorxReader, "adbc": AdbcReader}

_PACKAGES: Final = {"connectorx": "connectorx", "adbc": "adbc_driver_postgresql.dbapi"}


def choose_reader(job: Job, dsn: Dsn) -> Literal["connectorx", "adbc"]:
    """Return the reader for a database: the job's, else connectorx, which cannot verify a server; ADBC can.

    Raises:
        RefusedError: the job demands connectorx for a server that is to be verified.
    """
    wished = job.source.reader if isinstance(job.source, PostgresSource) else None
    mode = dsn.options.get("sslmode", "")
    if not mode.startswith("verify"):
        return wished or "connectorx"
    if wished == "connectorx":
        msg = (
            f"read source: connectorx cannot do sslmode={mode} (with sslmode=require and sslrootcert it checks the CA, "
            "but not the host's name). Give --reader adbc, which verifies fully"
        )
        raise RefusedError(msg)
    return "adbc"


def preload(reader: str) -> None:
    """Begin to import a reader's driver in the background, while the run waits for the databases' answers."""

    def load() -> None:
        # The first read imports it again, and tells. RuntimeError: the process ends meanwhile, and waits for this.
        with contextlib.suppress(ImportError, RuntimeError):
            importlib.import_module(_PACKAGES[reader])

    threading.Thread(target=load, name="keyhaul-import").start()


def _begin_statements(snapshot: str) -> list[str]:
    return [
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        f"SET TRANSACTION SNAPSHOT {quote_text(snapshot)}",
    ]


def translate(error: BaseException, driver: str) -> Exception:
    """Turn a driver's error or panic into one of ours."""
    text = without_values(first_line(error))[:400]
    if "invalid snapshot identifier" in text or ("snapshot" in text and "does not exist" in text):
        return StopRunError(
            "read chunk: the run's snapshot is gone, because the connection that holds it was lost. "
            "Run the same command again: it goes on with the chunks that are left, from a newer snapshot"
        )
    if _UNREADABLE.search(text) or _UNREADABLE.search(type(error).__name__):
        return UnreadableValueError(f"read chunk with {driver}: {text}")
    if _TRANSIENT.search(text):
        return TransientError(f"read chunk with {driver}: {text}")
    return ChunkError(f"read chunk with {driver}: {text}")
