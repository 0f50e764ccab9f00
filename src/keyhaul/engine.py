"""The one orchestrator: plan into the ledger, workers over chunks, retry after a look in the ledger, stop, resume."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import psycopg
import tenacity
from psycopg import sql

from keyhaul import events
from keyhaul.config import difference
from keyhaul.dsn import redact
from keyhaul.errors import CancelledError, ChunkError, ConfigError, RefusedError, StopRunError, TransientError
from keyhaul.ledger import Ledger, NewRun, new_run_id
from keyhaul.model import Counts, FailedChunk, Report, Timings
from keyhaul.prepare import Ends, Prepared, connect, find_ends, prepare, session_settings
from keyhaul.targets import postgres
from keyhaul.worker import Task, Worker, source_application

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyhaul.config import Job
    from keyhaul.ledger import Unfinished
    from keyhaul.model import Chunk, ChunkResult, Observer

DEFAULT_WORKERS: Final = max(1, min(4, os.cpu_count() or 1))
"""One for each core, at most four; docs/design.md has the measurement."""

FAILURES_IN_A_ROW: Final = 10
"""After this many failed chunks with none loaded between them, the cause is not in the chunks: the run stops."""

HEARTBEAT_SECONDS: Final = 10.0
"""How often the connection that holds the snapshot is touched, so that its loss is noticed early."""


class Control:
    """How a person stops a run: once lets running chunks finish, twice cancels them."""

    def __init__(self) -> None:
        """Start with nothing asked."""
        self.stopping = threading.Event()
        self.cancelled = threading.Event()
        self.reason = ""
        self.signal = 0

    def stop(self, reason: str) -> None:
        """Take no further chunk."""
        if not self.stopping.is_set():
            self.reason = reason
            self.stopping.set()

    def interrupt(self, number: int) -> None:
        """Take a signal: the first stops, the second cancels what is under way. Only sets flags."""
        if self.signal:
            self.cancelled.set()
        self.signal = self.signal or number
        self.stop(f"interrupted by signal {number}")


@dataclass(slots=True)
class _Board:
    """What the workers share: the chunks that are left, and how it goes. Guarded by one lock."""

    left: deque[Chunk]
    lock: threading.Lock = field(default_factory=threading.Lock)
    in_a_row: int = 0
    sitting: Counts = field(default_factory=Counts)
    timings: Timings = field(default_factory=Timings)
    done: int = 0
    fatal: BaseException | None = None
    idle: int = 0


def run(job: Job, observe: Observer, control: Control, *, fresh: bool = False) -> Report:
    """Move what the job says; start a run, or go on with the unfinished one.

    Args:
        job: validated.
        observe: called with every event, from the threads where they happen.
        control: may be told to stop from a signal handler or another thread.
        fresh: start a new run even when an unfinished one is there.

    Returns:
        The report; the ledger says the same.

    Raises:
        ConfigError: the command, job or databases do not fit; nothing was moved and nothing created.
    """
    started = time.perf_counter()
    ends = find_ends(job)
    if ends.filled:
        observe(events.Notice(message="filled the embedded database source with the bundled flights (336,776 rows)"))
    run_id = new_run_id()
    with prepare(job, ends, run_id=run_id) as prepared:
        return _Run(prepared, observe, control, run_id, started).execute(fresh=fresh)


class _Run:
    """One sitting of one run."""

    def __init__(
        self, prepared: Prepared, observe: Observer, control: Control, run_id: str, started: float
    ) -> None:
        self._prepared = prepared
        self._job = prepared.job
        self._observe = observe
        self._control = control
        self._run_id = run_id
        self._started = started
        self._sitting = 1
        self._ledger = Ledger(self._connect_ledger, self._job.ledger_schema, self._job.job)
        self._workers: list[Worker] = []
        self._reading: dict[int, int] = {}

    # --- before the first read -------------------------------------------------------------------

    def execute(self, *, fresh: bool) -> Report:
        ledger, target = self._ledger, self._prepared.target
        self._check_server()
        ledger.lock()
        unfinished = ledger.unfinished() if ledger.exists() and not fresh else None
        if unfinished is not None:
            self._check_same(unfinished)
            if target.ddl:
                msg = (
                    f"resume run {unfinished.run_id}: {target.label} is not there any more, though chunks of this run "
                    "were loaded into it. Give --fresh to start a new run"
                )
                raise RefusedError(msg)
            workers = self._count_workers(len(ledger.open_chunks(unfinished.run_id)))
            self._run_id, resumed = unfinished.run_id, True
            self._sitting = ledger.resume(self._run_id, workers)
            self._notice("going on with an unfinished run; its remaining chunks are read from a newer snapshot", "warning")
        else:
            workers, resumed = self._begin(fresh=fresh), False
        chunks = ledger.open_chunks(self._run_id)
        totals = ledger.totals(self._run_id)
        self._observe(
            events.RunStarted(
                run_id=self._run_id,
                job=self._job.job,
                source=f"{self._prepared.source.relation.label} in {self._prepared.ends.source.label}",
                target=f"{target.label} in {self._prepared.ends.target.label}",
                resumed=resumed,
                chunks_planned=totals.planned,
                chunks_done=totals.done,
                estimated_rows=totals.counts.read + sum(c.estimated_rows for c in chunks),
                done=totals.counts,
                workers=workers,
            )
        )
        board = self._move(chunks, workers)
        return self._finish(board, workers, resumed=resumed)

    def _connect_ledger(self) -> psycopg.Connection[Any]:
        """Return the connection for the ledger; a new one when the first is lost."""
        prepared = self._prepared
        if not prepared.target_conn.closed and not prepared.target_conn.broken:
            return prepared.target_conn
        prepared.target_conn = connect(
            prepared.ends.target,
            "target",
            application_name=f"keyhaul {self._run_id} ledger",
            settings=session_settings(self._job),
        )
        return prepared.target_conn

    def _notice(self, message: str, level: Any = "info") -> None:  # noqa: ANN401 - a Literal of events
        self._observe(events.Notice(message=message, level=level))

    def _check_server(self) -> None:
        row = self._prepared.target_conn.execute(
            "select current_setting('track_counts')::bool, current_setting('transaction_read_only')::bool"
        ).fetchone()
        if row and row[1]:
            msg = f"load {self._prepared.target.label}: the target is read-only (a standby?). Give the primary in --target"
            raise RefusedError(msg)
        if row and not row[0]:
            msg = "load: the target has track_counts = off, without which loaded rows cannot be counted. Switch it on"
            raise RefusedError(msg)

    def _check_same(self, unfinished: Unfinished) -> None:
        if unfinished.fingerprint == self._job.fingerprint():
            return
        changed = "; ".join(difference(unfinished.config, self._job.identity()))
        msg = (
            f"resume run {unfinished.run_id}: the job has changed since it was planned: {changed or 'its fingerprint'}. "
            "Undo the change to go on, or give --fresh to start a new run"
        )
        raise RefusedError(msg)

    def _begin(self, *, fresh: bool) -> int:
        """Plan, create what is missing, and write run and plan into the ledger; returns the number of workers."""
        prepared, job, target = self._prepared, self._job, self._prepared.target
        empty_first = target.holds_rows and job.target.mode is None
        if empty_first and not prepared.ends.embedded_target:
            msg = (
                f"load {target.label}: it already holds rows and no mode is given. Give mode: append in the job file "
                "(or ETL_MODE=append) to add to them, or empty the table"
            )
            raise RefusedError(msg)
        plan = prepared.source.plan(job.chunk)
        workers = self._count_workers(len(plan.chunks))
        self._ledger.create()
        conn = self._ledger.connection
        with conn.transaction():
            if empty_first:
                conn.execute(sql.SQL("truncate {}").format(target.identifier))
            postgres.prepare(conn, target)
            self._ledger.begin(
                NewRun(
                    run_id=self._run_id,
                    job=job.job,
                    fingerprint=job.fingerprint(),
                    config=job.identity(),
                    source=f"{prepared.source.relation.label} in {prepared.ends.source.label}",
                    target_table=target.label,
                    key=job.key,
                    chunk_rows=job.chunk,
                    workers=workers,
                ),
                plan,
                fresh=fresh,
            )
        if empty_first:
            self._notice(f"emptied {target.label} in the embedded warehouse before loading it again")
        if target.ddl:
            self._notice(f"created {target.label}")
        if not prepared.source.indexed() and len(plan.chunks) > 1:
            self._notice(
                f"no index of {prepared.source.relation.label} leads with {', '.join(job.key)}: "
                f"each of the {len(plan.chunks)} chunks scans it whole. An index on the key, or larger chunks, help",
                "warning",
            )
        return workers

    def _count_workers(self, chunks: int) -> int:
        """Return how many workers there will be, never more than chunks or free connections allow."""
        wanted = max(1, min(self._job.workers or DEFAULT_WORKERS, chunks or 1))
        for conn, end in ((self._prepared.source_conn, "source"), (self._prepared.target_conn, "target")):
            row = conn.execute(
                "select current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
                " - (select count(*) from pg_stat_activity where backend_type = 'client backend')"
            ).fetchone()
            free = int(row[0]) if row else wanted
            same = self._prepared.ends.source.identity.rsplit("/", 1)[0] == self._prepared.ends.target.identity.rsplit("/", 1)[0]
            allowed = free // 2 if same else free
            if allowed < 1:
                msg = f"connect to {end}: it has {free} free connections, expected at least {2 if same else 1}. Close some"
                raise ConfigError(msg)
            if wanted > allowed:
                self._notice(f"{wanted} workers need more connections than the {end} has free: using {allowed}", "warning")
                wanted = allowed
        return wanted

    # --- moving ----------------------------------------------------------------------------------

    def _move(self, chunks: Sequence[Chunk], workers: int) -> _Board:
        ordered = chunks if self._job.order == "asc" else tuple(reversed(chunks))
        board = _Board(left=deque(ordered))
        task = self._task()
        self._workers = [Worker(task, number, self._observe) for number in range(1, workers + 1)]
        threads = [
            threading.Thread(target=self._work, args=(worker, board), name=f"keyhaul-worker-{worker.number}", daemon=True)
            for worker in self._workers
        ]
        for thread in threads:
            thread.start()
        self._watch(threads)
        if board.fatal is not None:
            raise board.fatal
        return board

    def _task(self) -> Task:
        prepared = self._prepared
        return Task(
            job=self._job,
            run_id=self._run_id,
            sitting=self._sitting,
            source=prepared.source,
            source_dsn=prepared.ends.source,
            target=prepared.target,
            target_dsn=prepared.ends.target,
            read_columns=prepared.read_columns,
            routes=prepared.routes,
            sources=prepared.sources,
            key=self._job.key,
            transform=prepared.transform,
            checks=prepared.checks,
            dedup=self._job.dedup,
            columns=prepared.columns,
        )

    def _watch(self, threads: Sequence[threading.Thread]) -> None:
        """Wait for the workers; pass a cancellation on; touch the snapshot's connection now and then."""
        announced = cancelled = False
        beat = time.monotonic()
        for thread in threads:
            while thread.is_alive():
                thread.join(timeout=0.1)
                control = self._control
                if control.stopping.is_set() and not announced:
                    announced = True
                    self._observe(events.Stopping(reason=control.reason))
                if control.cancelled.is_set() and not cancelled:
                    cancelled = True
                    self._observe(events.Stopping(reason=control.reason, at_once=True))
                    self._cancel()
                if time.monotonic() - beat > HEARTBEAT_SECONDS:
                    beat = time.monotonic()
                    self._touch_snapshot()

    def _touch_snapshot(self) -> None:
        try:
            self._prepared.source_conn.execute("select 1")
        except psycopg.Error:
            self._control.stop(
                "the connection that holds the source's snapshot was lost; the next sitting reads from a newer one"
            )

    def _cancel(self) -> None:
        """Cancel what runs on both servers, by way of connections of their own."""
        for worker in self._workers:
            worker.cancel()
        names = [source_application(self._run_id, chunk) for chunk in self._reading.values()]
        try:
            with connect(self._prepared.ends.source, "source", application_name="keyhaul cancel", settings={}) as conn:
                conn.execute(
                    "select pg_cancel_backend(pid) from pg_stat_activity where application_name = any(%s)"
                    " or application_name like %s",
                    [names, f"keyhaul {self._run_id} chunk %"],
                )
        except (ConfigError, psycopg.Error) as error:
            self._notice(f"cancel the source's queries: {error}; they end at their statement timeout", "warning")

    def _work(self, worker: Worker, board: _Board) -> None:
        """Take chunks to their end until none is left or the run stops; runs in a thread of its own."""
        try:
            while not self._control.stopping.is_set():
                with board.lock:
                    if not board.left:
                        break
                    chunk = board.left.popleft()
                self._observe(
                    events.ChunkStarted(chunk=chunk.number, worker=worker.number, estimated_rows=chunk.estimated_rows)
                )
                self._reading[worker.number] = chunk.number
                self._take(worker, chunk, board)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            with board.lock:
                board.fatal = board.fatal or error
            self._control.stop("an unexpected error")
        finally:
            worker.close()

    def _take(self, worker: Worker, chunk: Chunk, board: _Board) -> None:
        attempts = 0
        try:
            for attempt in self._attempts(worker, chunk):
                with attempt:
                    attempts = attempt.retry_state.attempt_number
                    result = self._try(worker, chunk, attempts)
        except StopRunError as error:
            self._control.stop(self._clean(error))
            return
        except ChunkError as error:
            if self._control.cancelled.is_set() or isinstance(error, CancelledError):
                return
            self._failed(worker, FailedChunk(chunk=chunk.number, attempts=attempts, error=self._clean(error)), board)
            return
        with board.lock:
            board.in_a_row = 0
            board.done += 1
            board.sitting += result.counts
            board.timings += result.timings
        self._observe(
            events.ChunkDone(
                chunk=chunk.number,
                worker=worker.number,
                counts=result.counts,
                timings=result.timings,
                attempts=attempts,
                bytes_read=result.bytes_read,
            )
        )

    def _try(self, worker: Worker, chunk: Chunk, attempt: int) -> ChunkResult:
        """Move a chunk; after a doubt, ask the ledger first."""
        if attempt > 1:
            already = worker.committed(chunk)
            if already is not None:
                return already
        return worker.move(chunk, attempt)

    def _attempts(self, worker: Worker, chunk: Chunk) -> tenacity.Retrying:
        def announce(state: tenacity.RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            self._observe(
                events.ChunkRetried(
                    chunk=chunk.number,
                    worker=worker.number,
                    attempt=state.attempt_number,
                    wait_seconds=state.next_action.sleep if state.next_action else 0.0,
                    error=self._clean(error) if error else "",
                )
            )

        return tenacity.Retrying(
            stop=tenacity.stop_any(
                tenacity.stop_after_attempt(self._job.retries + 1), tenacity.stop_when_event_set(self._control.cancelled)
            ),
            wait=tenacity.wait_exponential_jitter(initial=0.2, max=10, jitter=0.5),
            retry=tenacity.retry_if_exception_type(TransientError),
            sleep=tenacity.sleep_using_event(self._control.cancelled),
            before_sleep=announce,
            reraise=True,
        )

    def _failed(self, worker: Worker, failed: FailedChunk, board: _Board) -> None:
        self._ledger.chunk_failed(self._run_id, failed, worker=worker.number, sitting=self._sitting)
        self._observe(
            events.ChunkFailed(chunk=failed.chunk, worker=worker.number, attempts=failed.attempts, error=failed.error)
        )
        with board.lock:
            board.in_a_row += 1
            in_a_row = board.in_a_row
        if self._job.stop_on_error:
            self._control.stop(f"chunk {failed.chunk} failed, and --stop-on-error is given")
        elif in_a_row >= FAILURES_IN_A_ROW:
            self._control.stop(f"{FAILURES_IN_A_ROW} chunks in a row failed, the last with: {failed.error}")

    def _clean(self, error: BaseException) -> str:
        ends: Ends = self._prepared.ends
        return redact(str(error), ends.source, ends.target)

    # --- the end ---------------------------------------------------------------------------------

    def _finish(self, board: _Board, workers: int, *, resumed: bool) -> Report:
        ledger = self._ledger
        totals = ledger.totals(self._run_id)
        complete = totals.done == totals.planned
        failed = ledger.failed_chunks(self._run_id)
        reason = self._control.reason
        if not complete and not reason:
            reason = f"{len(failed)} of {totals.planned} chunks failed"
        ledger.end(self._run_id, "done" if complete else "stopped", None if complete else reason)
        report = Report(
            run_id=self._run_id,
            job=self._job.job,
            outcome="done" if complete else ("interrupted" if self._control.signal else "stopped"),
            resumed=resumed,
            counts=totals.counts,
            sitting=board.sitting,
            timings=board.timings,
            chunks_planned=totals.planned,
            chunks_done=totals.done,
            failed=failed,
            seconds=time.perf_counter() - self._started,
            workers=workers,
            quarantined_by_reason=ledger.quarantined_by_rule(self._run_id),
            warned=ledger.warned(self._run_id),
            target_table=self._prepared.target.label,
            stop_reason="" if complete else reason,
            signal=self._control.signal,
        )
        self._observe(events.RunFinished(report=report))
        return report
