"""The target beside the checksums that a load has stored in the ledger; no source is needed, and nothing is written.

All is read in one snapshot of the target, ledger and table alike, so that it may be loaded meanwhile.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self

import psycopg
from psycopg import sql

from keyhaul import events
from keyhaul.comparison.checksummed import NULL_KEYS, find_checksummed
from keyhaul.comparison.differences import broken_off
from keyhaul.config.job import load_job
from keyhaul.errors import ChunkError, StopRunError, first_line
from keyhaul.ledger.reading import find_named
from keyhaul.ledger.store import new_run_id
from keyhaul.limits.crew import DEFAULT_WORKERS
from keyhaul.postgres import pgtypes
from keyhaul.postgres.dsn import redact
from keyhaul.retrying import attempts
from keyhaul.sessions.capacity import free_connections
from keyhaul.sessions.connecting import LedgerPlace, connect, find_ledger, noticing, with_login
from keyhaul.sessions.watchdog import Watchdog
from keyhaul.targets.rowhash import hash_part
from keyhaul.targets.session import CopySession
from keyhaul.team import Team

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyhaul.comparison.checksummed import Checksummed, Part
    from keyhaul.config.job import Job
    from keyhaul.model import Observer
    from keyhaul.postgres.dsn import Dsn

Connection = psycopg.Connection[Any]


_LIMITS: Final = ("statement_timeout_seconds", "lock_timeout_seconds", "network_timeout_seconds", "retries")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run is recorded and its target is, and within what limits both are asked.

    Attributes:
        job: only runs of this job are meant; None: of any.
        workers: parts at a time; None: one for each core, at most four.
    """

    ledger: LedgerPlace
    job: str | None = None
    workers: int | None = None
    statement_timeout_seconds: int = 3600
    lock_timeout_seconds: int = 60
    network_timeout_seconds: int = 60
    retries: int = 5

    @classmethod
    def of(cls, job: Job) -> Self:
        """Return the place of a job's runs; its source is not looked at."""
        return cls(
            ledger=find_ledger(job.target.uri, job.home, job.ledger_schema, {}),
            job=job.job,
            workers=job.workers,
            statement_timeout_seconds=job.statement_timeout_seconds,
            lock_timeout_seconds=job.lock_timeout_seconds,
            network_timeout_seconds=job.network_timeout_seconds,
            retries=job.retries,
        )

    def within(self, environ: Mapping[str, str]) -> Self:
        """Return the same place, asked within the limits that the variables of a job say.

        Raises:
            ConfigError: one of them does not fit.
        """
        known = {f"ETL_{name.upper()}": name for name in _LIMITS}
        given = {variable: environ[variable] for variable in known if variable in environ}
        # What a job must have beside them is no matter here.
        job = load_job(None, {"table": "none", "key": "none"}, given)
        return replace(self, **{name: getattr(job, name) for name in known.values()})

    def settings(self) -> dict[str, str]:
        """Return what the sessions set."""
        return {
            **pgtypes.SESSION_SETTINGS,
            "statement_timeout": f"{self.statement_timeout_seconds}s",
            "lock_timeout": f"{self.lock_timeout_seconds}s",
            "idle_session_timeout": "0",
            "idle_in_transaction_session_timeout": "0",
            "default_transaction_read_only": "on",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkDifference:
    """A chunk whose part of the target is not what it was when the chunk was loaded.

    Attributes:
        chunk: of the run's plan; `NULL_KEYS` for rows with a NULL key that no chunk has.
        rows_stored: that the target had in the chunk's key range then.
        rows_found: that it has now; as many, when other values stand in them.
        lower, upper: the key range, upper end exclusive, None is open; None as well unless values were asked for.
    """

    chunk: int
    rows_stored: int
    rows_found: int
    lower: tuple[str, ...] | None = None
    upper: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerComparison:
    """What a comparison with the ledger found.

    Attributes:
        rows: that the target had in the key ranges of the chunks when these were loaded, with rows of others there.
        chunks: compared.
        unloaded: chunks of the run that were never loaded; they are not compared, and count as a difference.
        by_chunk: the chunks that differ.
        ranges: whether they have their key ranges, so that None is an open end there.
    """

    run_id: str
    job: str
    target: str
    rows: int
    chunks: int
    unloaded: int
    by_chunk: tuple[ChunkDifference, ...]
    ranges: bool
    seconds: float

    @property
    def different(self) -> int:
        """Return the number of chunks that differ."""
        return len(self.by_chunk)

    @property
    def equal(self) -> bool:
        """Whether every chunk of the run is loaded and none differs."""
        return not self.different and not self.unloaded


def compare_ledger(place: Place, run: str, observe: Observer, *, show_values: bool = False) -> LedgerComparison:
    """Compare the target with what a run has left there, chunk by chunk.

    Args:
        place: of the ledger.
        run: its name, or ``last`` for the newest that is no replay.
        observe: called with events, from the threads where they happen.
        show_values: whether the chunks that differ have their key ranges.

    Raises:
        ConfigError: there is no such run, it has no checksums, or they cannot be compared any more.
        StopRunError: the database was lost, or a chunk could not be compared.
    """
    started = time.perf_counter()
    watchdog = Watchdog({"target": place.ledger.dsn}, place.network_timeout_seconds)
    watchdog.observe = observe
    comparison, conn = None, None
    what = f"verify run {run} against the ledger"
    try:
        settings = place.settings()
        name = f"keyhaul {new_run_id()}"
        conn = connect(place.ledger.dsn, "target", application_name=f"{name} snapshot", settings=settings)
        dsn = noticing(with_login(place.ledger.dsn, conn), conn)
        run_id = find_named(conn, place.ledger.schema, run, place.job)
        conn.execute("begin isolation level repeatable read, read only")
        found = find_checksummed(conn, place.ledger.schema, run_id)
        comparison = _Comparison(conn, place, dsn, f"{name} worker", settings, found)
        differences = comparison.execute(observe)
    except (psycopg.Error, ChunkError) as error:
        differing = len(comparison.differences) if comparison else 0
        raise StopRunError(redact(broken_off(what, first_line(error), differing), place.ledger.dsn)) from error
    finally:
        watchdog.stop()
        if conn is not None:
            conn.close()  # no rollback: on a connection that is dead it would wait for an answer
    return LedgerComparison(
        run_id=found.run_id,
        job=found.job,
        target=found.label,
        rows=sum(part.rows for part in found.parts),
        chunks=sum(part.chunk.number != NULL_KEYS for part in found.parts),
        unloaded=found.unloaded,
        by_chunk=tuple(differences if show_values else map(_without_range, differences)),
        ranges=show_values,
        seconds=time.perf_counter() - started,
    )


def _without_range(one: ChunkDifference) -> ChunkDifference:
    return ChunkDifference(chunk=one.chunk, rows_stored=one.rows_stored, rows_found=one.rows_found)


# --- all parts ---------------------------------------------------------------------------------------


class _Comparison:
    """One comparison: the threads, and what they have found."""

    def __init__(
        self, conn: Connection, place: Place, dsn: Dsn, name: str, settings: dict[str, str], run: Checksummed
    ) -> None:
        self.place = place
        self.run = run
        self._free = free_connections(conn)
        self._snapshot = conn.execute("select pg_export_snapshot()").fetchall()[0][0]
        self._uri = dsn.uri(
            application_name=name, options=settings, connect_timeout_seconds=place.network_timeout_seconds
        )
        self.team: Team[Part] = Team("keyhaul-verify", lambda _number: _Hand(self), self._cancel)
        self.sessions: set[CopySession] = set()
        self.differences: list[ChunkDifference] = []

    def execute(self, observe: Observer) -> list[ChunkDifference]:
        """Compare all parts; returns those that differ, in the order of the chunks."""
        parts, hashing = self.run.parts, self.run.hashing
        if len(parts) > 1 and not hashing.indexed:
            names = ", ".join(column.name for column in hashing.key)
            message = (
                f"no index of {self.run.label} leads with {names}: each of the {len(parts)} chunks scans it whole. "
                "An index on the key helps"
            )
            observe(events.Notice(message=message, level="warning"))
        wanted = max(1, min(self.place.workers or DEFAULT_WORKERS, len(parts)))
        self.team.work(parts, max(1, min(wanted, self._free)))
        return sorted(self.differences, key=lambda one: one.chunk)

    def open(self) -> CopySession:
        """Return a new session in the snapshot of all."""
        session = CopySession(self._uri)
        self.sessions.add(session)
        session.execute(sql.SQL("set transaction isolation level repeatable read, read only"))
        try:
            session.execute(sql.SQL("set transaction snapshot {}").format(sql.Literal(self._snapshot)))
        except ChunkError as error:
            if "does not exist" not in str(error):
                raise
            raise ChunkError("the snapshot is gone, because the session that held it was ended") from error
        return session

    def _cancel(self) -> None:
        for session in list(self.sessions):
            session.cancel()


class _Hand:
    """What one thread has: a session in the snapshot."""

    def __init__(self, comparison: _Comparison) -> None:
        self._comparison = comparison
        self._session: CopySession | None = None

    def do(self, part: Part) -> None:
        try:
            for attempt in attempts(self._comparison.place.retries, self._comparison.team.stopping):
                with attempt:
                    self._compare(part)
        except ChunkError as error:
            text = str(error).removeprefix("load chunk: ")
            name = f"chunk {part.chunk.number}" if part.chunk.number != NULL_KEYS else "NULL keys"
            raise ChunkError(f"{name}: {text}") from error

    def _compare(self, part: Part) -> None:
        comparison, run = self._comparison, self._comparison.run
        try:
            self._session = self._session or comparison.open()
            rows, total = hash_part(self._session, run.table, run.hashing, part.chunk)
        except BaseException:
            self.close()
            raise
        if (rows, total) != (part.rows, part.hash):
            chunk = part.chunk
            difference = ChunkDifference(
                chunk=chunk.number, rows_stored=part.rows, rows_found=rows, lower=chunk.lower, upper=chunk.upper
            )
            comparison.differences.append(difference)

    def close(self) -> None:
        if self._session is not None:
            self._comparison.sessions.discard(self._session)
            self._session.close()
            self._session = None
