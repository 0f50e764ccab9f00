"""Past runs and their chunks, as the ledger has them.

Every function takes an open connection to the target's database and the name of the ledger's schema;
none of them writes there.
"""

from __future__ import annotations

import difflib
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import errors as pg
from psycopg.rows import scalar_row

from keyhaul.errors import ConfigError, ConnectError, RefusedError, first_line
from keyhaul.ledger.rows import tables_of
from keyhaul.ledger.statements import statement
from keyhaul.model import Counts, Timings, fact
from keyhaul.text import one_line, per_second

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from psycopg._cursor_base import BaseCursor
    from psycopg.rows import BaseRowFactory

    from keyhaul.model import TableCounts

T = TypeVar("T")
Facts = TypeVar("Facts", "RunRow", "ChunkRow")
Connection = psycopg.Connection[Any]

CHUNKS_SHOWN = 50
ROWS_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """The facts of a run as the ledger has it, with its chunks summed up.

    This is the only list of them: the statement ``runs`` gives each by its name, the frame of `keyhaul.runs` has them
    in this order, and `etl show` and the page print those that have a word for it (docs/contributing.md).
    """

    run_id: str = fact("the run's name; sorts by time")
    job: str = fact("the job's name", shown="job")
    kind: str = fact("`run` or `replay`")
    replay_of: str | None = fact("the run whose records a replay sent again", shown="replay of")
    status: str = fact("what the run's process wrote last", framed=False)
    alive: bool = fact("a process holds the job's lock", framed=False)
    source: str = fact("what was read, and where", shown="source")
    target_table: str = fact("the table loaded", shown="target")
    key: list[str] = fact("columns that the chunks are cut by")
    chunk_rows: int = fact(
        "of a chunk of the plan, as the job says or memory allows; with `chunk: auto` of a cut", "rows"
    )
    auto: bool = fact("chunks were merged from cuts of `chunk_rows` rows", framed=False)
    chunks_planned: int = fact(
        "chunks of the plan; with `chunk: auto` those that were loaded, and the cuts that were not", "chunks"
    )
    chunks_done: int = fact("committed", "chunks")
    chunks_failed: int = fact("given up so far", "chunks")
    chunks_retried: int = fact("that needed more than one try", "chunks")
    estimated_rows: int = fact("expected by the plan", "rows")
    sittings: int = fact("1, and 1 more for each resumption")
    workers: int = fact("chunks at a time, at the end of the last sitting")
    workers_reason: str | None = fact("why so many; NULL if the job says how many", shown="workers")
    counts: Counts = fact("the balance of the committed chunks")
    rows_resolved: int = fact("of those quarantined, how many a replay has resolved since", "rows")
    rows_unresolved: int = fact(
        "of those quarantined, how many are left; 0 of a replay, whose records are its run's", "rows"
    )
    bytes_read: int = fact("size of what was read, as Arrow buffers", "bytes")
    timings: Timings = fact("summed over the workers")
    seconds: float = fact("of all sittings, without the time between them", "s")
    started_at: datetime = fact("when the run was planned", "UTC")
    ended_at: datetime | None = fact("when it ended; NULL while it has not", "UTC")
    incremental: str | None = fact("the column that an incremental job reads by")
    since: str | None = fact("its lowest value that was read; NULL if all rows were")
    watermark: str | None = fact("where the next run begins, less its lag, once this one is done")
    run_checks: list[dict[str, Any]] = fact(
        "the rules across the run (`run_rules`), when it was done; `on_fail` is `error` or `warn`"
    )
    limits: dict[str, dict[str, Any]] = fact(
        "what the job's limits were and did, written when a sitting ends: how long workers waited for each, in all "
        "sittings, and what else it changed"
    )
    late_passes: int | None = fact(
        "passes over rows that had waited for a row of a later chunk, which they refer to; NULL if none loaded any",
        shown="late passes",
    )
    late_rows: int | None = fact("the rows that they loaded", "rows", shown="late rows")
    gathered: dict[str, int] = fact("how far a dedup across chunks has come before it loads any", framed=False)
    stop_reason: str | None = fact("why it stopped", shown="stopped")
    host: str = fact("the machine of the last sitting's process")
    pid: int = fact("that process")
    version: str = fact("keyhaul's version in the last sitting")
    fingerprint: str = fact("equal for jobs that may resume each other (SHA-256)")
    config: str = fact("what makes it the same job, as JSON, without secrets")

    @property
    def state(self) -> str:
        """The status for people: ``interrupted`` if it says running and no process is there."""
        return "interrupted" if self.status == "running" and not self.alive else self.status

    @property
    def rows_per_second(self) -> float:
        """Rows read by second of the sittings; 0 if no time has passed."""
        return per_second(self.counts.read, self.seconds)

    def shown(self) -> dict[str, str]:
        """Return the facts that are printed as they stand, by the word for each; without those that have no value."""
        words = {one.metadata["shown"]: getattr(self, one.name) for one in fields(self)}
        return {word: str(value) for word, value in words.items() if word and value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRow:
    """The facts of a chunk as the ledger has it, in the order of the frame of `keyhaul.chunks`."""

    run_id: str = fact("the run's name")
    chunk: int = fact("its number in the plan, from 1 in key order; that of its first cut")
    kind: str = fact("`range`, `nulls` (NULL keys) or `keys` (a batch of a replay)")
    lower_bound: list[str] | None = fact("the key's lowest values as PostgreSQL text, inclusive; NULL is open")
    upper_bound: list[str] | None = fact("the same, exclusive; NULL is open")
    cuts: int = fact("cuts of the plan that it was merged from; 1 without `chunk: auto`")
    estimated_rows: int = fact("expected by the plan", "rows")
    status: str = fact("`planned`, `done` or `failed`")
    attempts: int = fact("tries so far; more than 1 after a transient error", "tries")
    counts: Counts = fact("its balance")
    warned: dict[str, int] = fact("rows that failed a rule with `on_fail: warn`, by rule; they are loaded", "rows")
    bytes_read: int = fact("size of what was read, as Arrow buffers", "bytes")
    place: str = fact("where in a file its records stand, for people; empty unless done, and where the key says it")
    timings: Timings = fact("the worker's")
    worker: int | None = fact("who moved it, from 1; NULL as long as nobody has")
    sitting: int | None = fact("in which sitting, from 1; NULL as long as none")
    started_at: datetime | None = fact("when its last try began; NULL unless done", "UTC")
    ended_at: datetime | None = fact("when it was committed or given up; NULL as long as neither", "UTC")
    error: str | None = fact("why it was given up")

    @property
    def range(self) -> str:
        """The key range: ``1 to 50001``, the upper end exclusive; ``…`` is open."""
        if self.kind == "nulls":
            return "NULL keys"
        if self.kind == "keys":
            return "quarantined keys"
        if self.kind == "part":
            return one_line(self.place or f"part {'.'.join(self.lower_bound or ())}")
        lower, upper = (", ".join(b) if b else "…" for b in (self.lower_bound, self.upper_bound))
        return one_line(f"{lower} to {upper}")


def facts_of(kind: type[Facts]) -> BaseRowFactory[Facts]:
    """Return a row factory for `RunRow` or `ChunkRow`: the terms of a balance as one value, and the seconds."""
    known = {one.name for one in fields(kind)} - {"counts", "timings"}

    def of(cursor: BaseCursor[Any, Any]) -> Callable[[Sequence[Any]], Facts]:
        names = [column.name for column in cursor.description or ()]

        def made(values: Sequence[Any]) -> Facts:
            row = dict(zip(names, values, strict=True))  # of two columns of one name the later
            return kind(
                counts=Counts(**{term.name: row[f"rows_{term.name}"] for term in fields(Counts)}),
                timings=Timings(**{step.name: row[step.name] for step in fields(Timings)}),
                **{name: row[name] for name in known},
            )

        return made

    return of


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDetail:
    """One run with its chunks, or with those worth a look if there are many."""

    run: RunRow
    chunks: tuple[ChunkRow, ...]
    tables: tuple[TableCounts, ...] = ()


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


def find_named(conn: Connection, schema: str, run: str, job: str | None, verb: str = "verify") -> str:
    """Return the name of the run that is meant: itself, or for ``last`` the newest of a job that is no replay.

    Args:
        conn: to the database with the ledger.
        schema: the ledger's.
        run: a run's name, or ``last``.
        job: whose runs alone are meant; None: those of any.
        verb: what it is for, for messages.

    Raises:
        RefusedError: there is no such run, it is a replay, or it is another job's.
    """
    newest = find_run(conn, schema, run)  # raises when there is none
    row = conn.execute(statement("run_named", schema, run=run, job=job)).fetchone()
    if row is None:
        what = f"job {job}: no run of this job" if job else "last: no run that is not a replay"
        raise RefusedError(f"{verb} {what} is in the ledger, the newest is {newest}. `etl runs` lists them")
    run_id, its_job, replay_of = row
    what = f"{verb} run {run_id}"
    if replay_of:
        raise RefusedError(f"{what}: it is a replay of run {replay_of}. Name that run")
    if job not in {None, its_job}:
        raise RefusedError(f"{what}: it is of job {its_job}, expected {job}. Give that job, or --job {its_job}")
    return str(run_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenJob:
    """The job of a run as its ledger has it: its name, its identity, and the text that `Job.given` had."""

    job: str
    config: Mapping[str, Any]
    text: str


def job_of(conn: Connection, schema: str, run_id: str) -> GivenJob:
    """Return the job of a run, or of its newest replay that is done: a person may have mended it in between."""
    job, config, text = conn.execute(statement("job_of_run", schema, run_id=run_id)).fetchall()[0]
    return GivenJob(job=job, config=config, text=text)


def list_runs(conn: Connection, schema: str, limit: int = ROWS_SHOWN) -> tuple[RunRow, ...]:
    """Return the newest `limit` runs, the newest first; an empty ledger gives none.

    Raises:
        RefusedError: there is no ledger.
    """
    values = {"run_id": None, "limit": limit, "schema": schema}
    return tuple(fetch(conn, schema, "runs", facts_of(RunRow), values))


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
    runs = fetch(conn, schema, "runs", facts_of(RunRow), values)
    if not runs:
        raise RefusedError(_no_run(conn, schema))
    values = {"run_id": run_id, "chunk_limit": chunk_limit}
    chunks = tuple(fetch(conn, schema, "run_chunks", facts_of(ChunkRow), values))
    return RunDetail(run=runs[0], chunks=chunks, tables=read_tables(conn, schema, run_id))


def read_tables(conn: Connection, schema: str, run_id: str) -> tuple[TableCounts, ...]:
    """Return what became of the rows of each table, in the order of the job; empty for a job with one table."""
    with ledger_errors(conn, schema):
        return tables_of(conn.execute(statement("sum_tables", schema, run_id=run_id)).fetchall())


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
        raise ConnectError(f"read the ledger in {_place(conn)}: {first_line(error)}. Try again.") from error
    except psycopg.Error as error:
        raise ConfigError(
            f"read the ledger {schema} in {_place(conn)}: {first_line(error)}, expected a ledger that this login may "
            f"read. Check the login, or --target."
        ) from error


def _place(conn: Connection) -> str:
    info = conn.info
    return f"{info.host}:{info.port}/{info.dbname}"


def _no_run(conn: Connection, schema: str) -> str:
    return (
        f"look back: no run is recorded in {_place(conn)} (schema {schema}), expected a ledger with a run. "
        f"Name the database that a run has loaded with --target."
    )
