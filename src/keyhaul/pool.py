"""The workers of a sitting: a bounded pool over chunks, retry after a look in the ledger, stop and cancel."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import psycopg
import tenacity

from keyhaul import events
from keyhaul.connecting import connect
from keyhaul.dsn import redact
from keyhaul.errors import (
    CancelledError,
    ChunkError,
    ConfigError,
    ConnectError,
    RefusedError,
    StopRunError,
    TransientError,
)
from keyhaul.memory import cpu_percent
from keyhaul.model import Counts, FailedChunk, Timings
from keyhaul.task import source_application
from keyhaul.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyhaul.control import Control
    from keyhaul.ledger import Ledger
    from keyhaul.limits import Limits
    from keyhaul.model import Chunk, ChunkResult, Observer
    from keyhaul.task import Task

FAILURES_IN_A_ROW: Final = 10
"""After this many failed chunks with none loaded between them, the cause is not in the chunks: the run stops."""

HEARTBEAT_SECONDS: Final = 10.0
GATHERED_SECONDS: Final = 1.0
"""How often a run that gathers writes how far it is: nothing else in the ledger says so."""
"""How often the connection that holds the snapshot is touched, so that its loss is noticed early."""

CANCEL_SECONDS: Final = 0.5
"""How often what is under way is cancelled, until the workers have ended."""


class Pool:
    """The workers of one sitting, a thread for each, and what they have moved so far.

    Attributes:
        counts: the balance of the chunks that this pool has committed.
        timings: the seconds of their steps, summed over the workers.
        chunks: how many they are.
        limits: what the workers ask before they begin a chunk.
        gathered: chunks that are put down and their rows, of earlier sittings about.
    """

    def __init__(self, task: Task, ledger: Ledger, observe: Observer, control: Control, limits: Limits) -> None:
        """Start with nothing moved; `observe` is called from the workers' threads."""
        self.limits = limits
        self._task = task
        self._ledger = ledger
        self._observe = observe
        self._control = control
        self._lock = threading.Lock()
        self._left: deque[Chunk] = deque()
        self._workers: list[Worker] = []
        self._in_a_row = 0
        self._fatal: BaseException | None = None
        self.counts = Counts()
        self.timings = Timings()
        self.chunks = 0
        self.gathered = (0, 0)

    def move(
        self,
        chunks: Sequence[Chunk],
        workers: int,
        hire: Callable[[Task, int, Observer], Worker] = Worker,
    ) -> None:
        """Move the chunks in their order, at most `workers` at a time, until none is left or the run is told to stop.

        Args:
            chunks: in the order in which they are taken.
            workers: at a time.
            hire: makes a worker with a number from 1.

        Raises:
            BaseException: what a worker met that is not one of our own errors; the others are stopped first.
        """
        self._left.extend(chunks)
        self._in_a_row = 0
        self.limits.begin(workers)
        self._workers = [hire(self._task, number, self._observe) for number in range(1, workers + 1)]
        threads = [
            threading.Thread(target=self._work, args=(worker,), name=f"keyhaul-worker-{worker.number}", daemon=True)
            for worker in self._workers
        ]
        for thread in threads:
            thread.start()
        self._watch(threads)
        if self._fatal is not None:
            raise self._fatal

    def _watch(self, threads: Sequence[threading.Thread]) -> None:
        """Wait for the workers; pass a cancellation on; touch the snapshot's connection now and then."""
        announced = cancelled = False
        beat = cancel_at = time.monotonic()
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
                if cancelled and time.monotonic() >= cancel_at:
                    # Again and again: a worker may just have been between two statements.
                    self._cancel()
                    cancel_at = time.monotonic() + CANCEL_SECONDS
                self._look_at_cpu()
                if time.monotonic() - beat > (HEARTBEAT_SECONDS if self._loads() else GATHERED_SECONDS):
                    beat = time.monotonic()
                    self._touch_snapshot()
                    self._touch_ledger()
        if not self._loads():
            self._touch_ledger()

    def _loads(self) -> bool:
        return all(worker.loads for worker in self._workers)

    def _touch_snapshot(self) -> None:
        if not any(worker.reads for worker in self._workers):
            return
        try:
            self._task.source.conn.execute("select 1")
        except psycopg.Error:
            self._control.stop(
                "the connection that holds the source's snapshot was lost; the next sitting reads from a newer one"
            )

    def _touch_ledger(self) -> None:
        """Touch the connection that holds the job's lock; a lost one is opened, and the lock taken, again."""
        with self._lock:
            chunks, rows = self.gathered
        told = None if self._loads() else {"run_id": self._task.run_id, "chunks": chunks, "rows": rows}
        try:
            self._ledger.touch(told)
        except RefusedError as error:
            self._control.stop(self._clean(error))
        except (ConnectError, psycopg.Error):
            return  # the next beat tries again, and a worker's own statement says what is wrong

    def _cancel(self) -> None:
        """Cancel what runs on both servers, by way of connections of their own."""
        for worker in self._workers:
            worker.cancel()
        try:
            with connect(self._task.source_dsn, "source", application_name="keyhaul cancel", settings={}) as conn:
                conn.execute(
                    "select pg_cancel_backend(pid) from pg_stat_activity where application_name like %s",
                    [source_application(self._task.run_id, "%")],
                )
        except (ConfigError, psycopg.Error) as error:
            message = f"cancel the source's queries: {self._clean(error)}; they end at their statement timeout"
            self._observe(events.Notice(message=message, level="warning"))

    def _work(self, worker: Worker) -> None:
        """Take chunks to their end until none is left or the run stops; runs in a thread of its own."""
        try:
            while not self._control.stopping.is_set():
                with self._lock:
                    if not self._left:
                        break
                    chunk = self._left.popleft()
                self._observe(
                    events.ChunkStarted(chunk=chunk.number, worker=worker.number, estimated_rows=chunk.estimated_rows)
                )
                self._take(worker, chunk)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            with self._lock:
                self._fatal = self._fatal or error
            self._control.stop("an unexpected error")
        finally:
            worker.close()

    def _take(self, worker: Worker, chunk: Chunk) -> None:
        attempts, worker.waited_seconds = 0, 0.0
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
            already = self._after_all(worker, chunk) if isinstance(error, TransientError) else None
            if already is None:
                self._failed(worker, FailedChunk(chunk=chunk.number, attempts=attempts, error=self._clean(error)))
                return
            result = already
        with self._lock:
            self._in_a_row = 0
        self._announce(worker, result, attempts)

    def _announce(self, worker: Worker, result: ChunkResult, attempts: int) -> None:
        """Count and tell a chunk that is committed; of one that is only gathered, nothing counts yet."""
        if not worker.loads:
            rows = result.counts.read
            with self._lock:
                self.gathered = (self.gathered[0] + 1, self.gathered[1] + rows)
            self._observe(events.ChunkGathered(chunk=result.chunk, worker=worker.number, rows=rows, attempts=attempts))
            return
        with self._lock:
            self.counts += result.counts
            self.timings += result.timings
            self.chunks += 1
        self._observe(
            events.ChunkDone(
                chunk=result.chunk,
                worker=worker.number,
                counts=result.counts,
                timings=result.timings,
                attempts=attempts,
                bytes_read=result.bytes_read,
            )
        )

    def _after_all(self, worker: Worker, chunk: Chunk) -> ChunkResult | None:
        """Ask the ledger after the last try, too: perhaps only the answer to its COMMIT was lost."""
        try:
            return worker.committed(chunk)
        except ChunkError:
            return None

    def _try(self, worker: Worker, chunk: Chunk, attempt: int) -> ChunkResult:
        """Move a chunk; after a doubt, ask the ledger first."""
        if attempt > 1:
            already = worker.committed(chunk)
            if already is not None:
                return already
        return self._move(worker, chunk, attempt)

    def _move(self, worker: Worker, chunk: Chunk, attempt: int) -> ChunkResult:
        """Move a chunk as soon as the limits let it in."""
        limits, number = self.limits, chunk.number

        def tell(limit: str) -> None:
            self._observe(events.ChunkHeld(chunk=number, worker=worker.number, limit=limit))

        waited = limits.enter(
            number, chunk.estimated_rows, reads=worker.reads, halted=self._control.stopping.is_set, tell=tell
        )
        if waited:
            worker.waited_seconds += waited
            self._observe(events.ChunkReleased(chunk=number, worker=worker.number, seconds=waited))
        result: ChunkResult | None = None
        try:
            result = worker.move(chunk, attempt)
        finally:
            if result is None:
                limits.leave(number)
            else:
                limits.leave(number, rows=result.counts.read, size_bytes=result.bytes_read)
        return result

    def _look_at_cpu(self) -> None:
        """Let the limit of the machine's CPU see it, once a second."""
        if not self.limits.sample_due():
            return
        percent = cpu_percent()
        governor = self.limits.governor
        if governor.sample(percent):
            self._observe(
                events.WorkersAllowed(active=governor.allowed, workers=len(self._workers), cpu_percent=percent)
            )

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

        def sleep(seconds: float) -> None:
            began = time.monotonic()
            self._control.cancelled.wait(seconds)
            worker.waited_seconds += time.monotonic() - began

        return tenacity.Retrying(
            stop=tenacity.stop_any(
                tenacity.stop_after_attempt(self._task.job.retries + 1),
                tenacity.stop_when_event_set(self._control.cancelled),
            ),
            wait=tenacity.wait_exponential(multiplier=0.2, max=10) + tenacity.wait_random(0, 0.5),
            retry=tenacity.retry_if_exception_type(TransientError),
            sleep=sleep,
            before_sleep=announce,
            reraise=True,
        )

    def _failed(self, worker: Worker, failed: FailedChunk) -> None:
        self._ledger.chunk_failed(self._task.run_id, failed, worker=worker.number, sitting=self._task.sitting)
        self._observe(
            events.ChunkFailed(chunk=failed.chunk, worker=worker.number, attempts=failed.attempts, error=failed.error)
        )
        with self._lock:
            self._in_a_row += 1
            in_a_row = self._in_a_row
        if self._task.job.stop_on_error:
            self._control.stop(f"chunk {failed.chunk} failed, and --stop-on-error is given")
        elif in_a_row >= FAILURES_IN_A_ROW:
            self._control.stop(f"{FAILURES_IN_A_ROW} chunks in a row failed, the last with: {failed.error}")

    def _clean(self, error: BaseException) -> str:
        return redact(str(error), self._task.source_dsn, self._task.target_dsn)
