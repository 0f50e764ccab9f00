"""A worker's reader of PostgreSQL: one query for each chunk, in the run's snapshot, in the types of its routes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from keyhaul.errors import ChunkError, ConfigError, RefusedError, StopRunError, TransientError
from keyhaul.model import Column
from keyhaul.postgres import pgtypes
from keyhaul.postgres.dsn import Dsn, redact
from keyhaul.sources.postgres.ranges import KeyRanges
from keyhaul.sources.postgres.readers import READERS, UnreadableValueError
from keyhaul.sources.source import Batch, Ticket
from keyhaul.transform.decoding import any_out_of_range, decode

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from keyhaul.model import Chunk
    from keyhaul.sources.postgres.readers import Reader as Driver

CONNECT_SECONDS: Final = 10
"""How long a worker's connection may take to be opened, at the most: a link that is dead is met again by each try."""

ADDRESS: Final = "ETL_SOURCE_URL"
"""The variable that has the source's address in a process that joins the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What all readers of a run have in common; plain data.

    Attributes:
        run_id: in the names of their sessions.
        snapshot: the name under which they join it.
        driver: which of `READERS`.
        ranges: which rows a chunk has.
        columns: that are read, in order.
        settings: of their sessions.
        connect_seconds: how long a connection may take.
    """

    run_id: str
    snapshot: str
    driver: str
    ranges: KeyRanges
    columns: tuple[Column, ...]
    settings: Mapping[str, str]
    connect_seconds: int

    def ticket(self, dsn: Dsn) -> Ticket:
        """Return all of it and the address without its password, JSON-ready."""
        place = {field.name: getattr(dsn, field.name) for field in fields(dsn) if field.name != "password"}
        names = tuple(column.name for column in self.columns)
        return Ticket(kind="postgres", columns=names, state={**asdict(self), "place": place}, secret=ADDRESS)


def join(ticket: Ticket, environ: Mapping[str, str]) -> PostgresReader:
    """Open a reader of a run that another process has begun.

    Raises:
        ConfigError: the address is not in `environ`.
        RefusedError: it is another database's.
    """
    state: dict[str, Any] = dict(ticket.state)
    place = state.pop("place")
    if not environ.get(ticket.secret):
        msg = f"join run {state['run_id']}: {ticket.secret} is not set in this process. Give it the run's address"
        raise ConfigError(msg)
    given = Dsn.parse(environ[ticket.secret], ticket.secret)
    dsn = Dsn(**place, password=given.password or environ.get("PGPASSWORD", ""))
    if given.identity != dsn.identity:
        msg = f"join run {state['run_id']}: {ticket.secret} is {given.label}, expected the run's source. Correct it"
        raise RefusedError(msg)
    ranges = dict(state.pop("ranges"))
    key = tuple(Column(**column) for column in ranges.pop("key"))
    columns = tuple(Column(**column) for column in state.pop("columns"))
    return PostgresReader(Reading(ranges=KeyRanges(key=key, **ranges), columns=columns, **state), dsn)


def source_application(run_id: str, chunk: int | str) -> str:
    """Return the application_name under which a chunk is read; with ``%`` a LIKE pattern for those of all chunks."""
    return f"keyhaul {run_id} chunk {chunk}"


class PostgresReader:
    """Reads chunks for one worker's thread; see `sources.source.Reader`."""

    def __init__(self, reading: Reading, dsn: Dsn) -> None:
        """Take what all readers of the run have; a connection is opened by the first read."""
        self._reading = reading
        self._dsn = dsn
        self._driver: Driver | None = None
        self._routes = {column.name: pgtypes.route(column) for column in reading.columns}
        self._text = frozenset(name for name, route in self._routes.items() if route.select_text)
        self._datetimes = frozenset(
            name
            for name, route in self._routes.items()
            if route.kind == "direct" and isinstance(route.dtype, (pl.Date, pl.Datetime))
        )
        # With a search path, a name that another schema has as well would be printed with its schema.
        names_objects = any(pgtypes.names_objects(column) for column in reading.columns)
        self._settings = {**reading.settings, **({"search_path": ""} if names_objects else {})}

    def read(self, chunk: Chunk) -> Batch:
        """Return the chunk's rows; a second time, with dates as text, when it holds values no Arrow type has.

        Raises:
            TransientError, ChunkError, StopRunError: as `readers.ConnectorxReader.read` says.
        """
        try:
            table, as_text = self._read(chunk)
        except (TransientError, ChunkError, StopRunError) as error:
            raise type(error)(redact(str(error), self._dsn)) from error
        return self._decode(table, as_text)

    def close(self) -> None:
        """Give the connection back."""
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def _read(self, chunk: Chunk) -> tuple[pa.Table, frozenset[str]]:
        try:
            table = self._query(chunk, frozenset())
        except UnreadableValueError:
            if not self._datetimes:
                raise
            return self._query(chunk, self._datetimes), self._datetimes
        far = frozenset(
            name
            for name in self._datetimes
            if any_out_of_range(pl.Series(name, pl.from_arrow(table.column(name))), self._routes[name].dtype)
        )
        return (self._query(chunk, far), far) if far else (table, far)

    def _query(self, chunk: Chunk, more_text: frozenset[str]) -> pa.Table:
        reading = self._reading
        query = reading.ranges.query(chunk, list(self._routes), more_text | self._text)
        uri = self._dsn.uri(
            application_name=source_application(reading.run_id, chunk.number),
            options=self._settings,
            connect_timeout_seconds=reading.connect_seconds,
        )
        if self._driver is None:
            self._driver = READERS[reading.driver](reading.snapshot)
        return self._driver.read(query, uri)

    def _decode(self, table: pa.Table, as_text: frozenset[str]) -> Batch:
        """Give every column the exact type of its route.

        A numeric column in which a value is not a number (NaN) stays text for this chunk.
        """
        routes = self._routes
        frame, odd = decode(table, {name: route.dtype for name, route in routes.items() if name not in as_text})
        wrong = sorted(name for name in odd if not isinstance(routes[name].dtype, pl.Decimal))
        if wrong:
            msg = f"decode chunk: {', '.join(wrong)} came from the reader with values that are not of its type"
            raise ChunkError(msg)
        return Batch(frame=frame, bytes_read=table.nbytes, as_text=as_text | odd)
