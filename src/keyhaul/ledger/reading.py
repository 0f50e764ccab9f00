"""Past runs and their chunks, as the ledger has them.

Every function takes an open connection to the target's database and the name of the ledger's schema;
none of them writes there.
"""

from __future__ import annotations

import difflib
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import errors as pg
from psycopg.rows import class_row, dict_row, scalar_row

from keyhaul.errors import ConfigError, ConnectError, RefusedError
from keyhaul.ledger.statements import statement
from keyhaul.model import Counts, TableCounts, Timings
from keyhaul.text import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from psycopg.rows import BaseRowFactory

T = TypeVar("T")
Connection = psycopg.Connection[Any]

CHUNKS_SHOWN = 50
ROWS_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """A run as the ledger has it, with its chunks summed up.

    Attributes:
        alive: a process holds the job's lock; a run that says ``running`` without it was interrupted.
        seconds: of all sittings, without the time between them.
        chunks_planned: those of the plan; of an auto chunk the cuts that are open count with the chunks that are not.
        auto: whether chunks were merged from cuts of `chunk_rows` rows.
        rows_read: as the other sums of rows, of committed chunks only.
        incremental: the column that the run reads by; `since` its lowest value that is read (None: all rows are),
            `watermark` where the next run begins, once this one is done.
        run_checks: the rules across the run, each with name, on_fail, passed, offenders and message.
        workers_reason: why there were so many at last; None when the job says how many.
        kind: ``run`` or ``replay``; a replay is one of the run `replay_of`.
        rows_resolved, rows_unresolved: of the records that it quarantined; a replay has none of its own.
    """

    run_id: str
    job: str
    source: str
    target_table: str
    status: str
    key: list[str]
    chunk_rows: int
    chunks_planned: int
    auto: bool
    estimated_rows: int
    sittings: int
    workers: int
    pid: int
    host: str
    version: str
    started_at: datetime
    ended_at: datetime | None
    stop_reason: str | None
    alive: bool
    kind: str
    replay_of: str | None
    workers_reason: str | None
    incremental: str | None
    since: str | None
    watermark: str | None
    run_checks: list[dict[str, Any]]
    limits: dict[str, dict[str, Any]]
    gathered: dict[str, int]
    rows_resolved: int
    rows_unresolved: int
    chunks_done: int
    chunks_failed: int
    rows_read: int
    rows_loaded: int
    rows_unchanged: int
    rows_duplicate: int
    rows_filtered: int
    rows_quarantined: int
    seconds: float

    @property
    def state(self) -> str:
        """The status for people: ``interrupted`` if it says running and no process is there."""
        return "interrupted" if self.status == "running" and not self.alive else self.status

    @property
    def counts(self) -> Counts:
        """The balance of the committed chunks."""
        return Counts(
            read=self.rows_read,
            loaded=self.rows_loaded,
            unchanged=self.rows_unchanged,
            duplicate=self.rows_duplicate,
            filtered=self.rows_filtered,
            quarantined=self.rows_quarantined,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRow:
    """A chunk as the ledger has it; the worker is None as long as nobody has taken it."""

    chunk: int
    kind: str
    lower_bound: list[str] | None
    upper_bound: list[str] | None
    status: str
    attempts: int
    rows_read: int
    rows_loaded: int
    rows_quarantined: int
    read_seconds: float
    transform_seconds: float
    stage_seconds: float
    load_seconds: float
    wait_seconds: float
    worker: int | None
    sitting: int | None
    error: str | None

    @property
    def range(self) -> str:
        """The key range: ``1 to 50001``, the upper end exclusive; ``…`` is open."""
        if self.kind == "nulls":
            return "NULL keys"
        if self.kind == "keys":
            return "quarantined keys"
        lower, upper = (", ".join(b) if b else "…" for b in (self.lower_bound, self.upper_bound))
        return one_line(f"{lower} to {upper}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDetail:
    """One run with its chunks, or with those worth a look if there are many."""

    run: RunRow
    chunks: tuple[ChunkRow, ...]
    tables: tuple[TableCounts, ...] = ()
    timings: Timings = field(default_factory=Timings)


def find_run(conn: Connection, schema: str, run: str) -> str:
    """Return the run_id that `run` names: itself, or that of the newest run for ``last``.

    Raises:
        RefusedError: there is no such run (the message names the nearest ones), or no ledger.
    """
    names = fetch(conn, schema, "run_names", scalar_row)
    if not names:
        raise RefusedError(_no_run(conn, schema))
    if run == "last":
        return str(names[0])
    if run in names:
        return run
    known = difflib.get_close_matches(run, names[:1000], n=3, cutoff=0.7) or names[:3]
    raise RefusedError(
        f"find run {one_line(run)!r}: it is not in the ledger of {_place(conn)}, expected 'last' or a run's name "
        f"such as {', '.join(known)}. `etl runs` lists them."
    )


def list_runs(conn: Connection, schema: str, limit: int = ROWS_SHOWN) -> tuple[RunRow, ...]:
    """Return the newest `limit` runs, the newest first; an empty ledger gives none.

    Raises:
        RefusedError: there is no ledger.
    """
    values = {"run_id": None, "limit": limit, "schema": schema}
    return tuple(fetch(conn, schema, "runs", class_row(RunRow), values))


def show_run(conn: Connection, schema: str, run_id: str, *, chunk_limit: int | None = CHUNKS_SHOWN) -> RunDetail:
    """Return a run and its chunks in key order.

    Args:
        conn: to the target's database.
        schema: the ledger's.
        run_id: from `find_run`.
        chunk_limit: with more chunks than this, only the slowest ten, the failed and the retried; None: all.

    Raises:
        RefusedError: there is no such run, or no ledger.
    """
    values = {"run_id": run_id, "limit": 1, "schema": schema}
    runs = fetch(conn, schema, "runs", class_row(RunRow), values)
    if not runs:
        raise RefusedError(_no_run(conn, schema))
    values = {"run_id": run_id, "chunk_limit": chunk_limit}
    chunks = tuple(fetch(conn, schema, "run_chunks", class_row(ChunkRow), values))
    sums = fetch(conn, schema, "run_sums", dict_row, {"run_id": run_id})
    timings = Timings(**{one.name: sums[0][one.name] for one in fields(Timings)}) if sums else Timings()
    return RunDetail(run=runs[0], chunks=chunks, tables=read_tables(conn, schema, run_id), timings=timings)


def read_tables(conn: Connection, schema: str, run_id: str) -> tuple[TableCounts, ...]:
    """Return what became of the rows of each table, in the order of the job; empty for a job with one table."""
    with ledger_errors(conn, schema):
        found = conn.execute(statement("sum_tables", schema, run_id=run_id)).fetchall()
    names = ("table", "inserted", "updated", "unchanged", "duplicate")
    return tuple(TableCounts(**dict(zip(names, row, strict=True))) for row in found)


def fetch(
    conn: Connection, schema: str, name: str, rows: BaseRowFactory[T], values: Mapping[str, object] | None = None
) -> list[T]:
    """Return all rows of the ledger's statement `name`, as `rows` forms them; errors as `ledger_errors`."""
    with ledger_errors(conn, schema), conn.cursor(row_factory=rows) as cursor:
        return cursor.execute(statement(name, schema), values).fetchall()


@contextmanager
def ledger_errors(conn: Connection, schema: str) -> Iterator[None]:
    """Turn the driver's errors into ours.

    Raises:
        RefusedError: there is no ledger; the connection stays usable.
        ConnectError: the connection is lost.
        ConfigError: the ledger cannot be read.
    """
    try:
        yield
    except (pg.UndefinedTable, pg.InvalidSchemaName) as error:
        conn.rollback()
        raise RefusedError(_no_run(conn, schema)) from error
    except psycopg.OperationalError as error:
        raise ConnectError(f"read the ledger in {_place(conn)}: {_first_line(error)}. Try again.") from error
    except psycopg.Error as error:
        raise ConfigError(
            f"read the ledger {schema} in {_place(conn)}: {_first_line(error)}, expected a ledger that this login may "
            f"read. Check the login, or --target."
        ) from error


def _first_line(error: psycopg.Error) -> str:
    return error.diag.message_primary or str(error).partition("\n")[0]


def _place(conn: Connection) -> str:
    info = conn.info
    return f"{info.host}:{info.port}/{info.dbname}"


def _no_run(conn: Connection, schema: str) -> str:
    return (
        f"look back: no run is recorded in {_place(conn)} (schema {schema}), expected a ledger with a run. "
        f"Name the database that a run has loaded with --target."
    )
