"""The workers of a sitting: a bounded pool over chunks, retry after a look in the ledger, stop and cancel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import psycopg

from keyhaul import events
from keyhaul.errors import (
    CancelledError,
    ChunkError,
    ConfigError,
    ConnectError,
    RefusedError,
    StaleChunkError,
    StopRunError,
    TransientError,
)
from keyhaul.execution.chunk import ChunkRunner, Shared
from keyhaul.execution.halting import Cancelling
from keyhaul.execution.heartbeat import Doubt, Heartbeat
from keyhaul.limits.dispatch import Dispatch
from keyhaul.memory import cpu_percent
from keyhaul.model import Counts, FailedChunk, Timings
from keyhaul.postgres.dsn import redact

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from keyhaul.before.context import RunContext
    from keyhaul.before.prepare import Prepared
    from keyhaul.control import Control
    from keyhaul.ledger.store import Ledger
    from keyhaul.limits.hiring import Staffing
    from keyhaul.limits.limiter import Limits
    from keyhaul.limits.pace import Pace
    from keyhaul.model import Chunk, ChunkResult, Observer


Hire = Callable[["RunContext", int, Shared], ChunkRunner]
"""Makes what moves a worker's chunks, with a number from 1."""

FAILURES_IN_A_ROW: Final = 10
"""After this many failed chunks with none loaded between them, the cause is not in the chunks: the run stops."""


class Pool:
    """The workers of one sitting, a thread for each, and what they have moved so far.

    Attributes:
        counts: the balance of the chunks that this pool has committed.
        timings: the seconds of their steps, summed over the workers.
        chunks: how many they are.
        limits: what the workers ask before they begin a chunk.
        gathered: chunks that are put down and their rows, of earlier sittings about.
    """

    def __init__(
        self,
        run: Prepared,
        ledger: Ledger,
        observe: Observer,
        control: Control,
        limits: Limits,
        *,
        staffing: Staffing | None = None,
    ) -> None:
        """Start with nothing moved; `observe` is called from the workers' threads.

        Args:
            run: open, with what all chunks have in common.
            ledger: of the job.
            observe: told what happens.
            control: may be told to stop.
            limits: what the workers ask.
            staffing: changes the number of workers; None: it stays.
        """
        self.limits = limits
        self._staffing = staffing
        self._run = run
        self._ledger = ledger
        self._observe = observe
        self._control = control
        self._lock = threading.Lock()
        self._left = Dispatch(())
        self._workers: list[ChunkRunner] = []
        self._threads: list[threading.Thread] = []
        self._hire: Hire = ChunkRunner
        self._wanted = 0
        self._in_a_row = 0
        self._fatal: BaseException | None = None
        self._shared = Shared(observe=observe, control=control, limits=limits, lose=ledger.patience.lose, doubt=Doubt())
        self.counts = Counts()
        self.timings = Timings()
        self.chunks = 0
        self.gathered = (0, 0)

    def move(
        self,
        chunks: Sequence[Chunk],
        workers: int,
        hire: Hire = ChunkRunner,
        *,
        pace: Pace | None = None,
        alone: Collection[int] = (),
    ) -> None:
        """Move the chunks in their order, at most `workers` at a time, until none is left or the run is told to stop.

        Args:
            chunks: in the order in which they are taken.
            workers: at a time.
            hire: makes a worker with a number from 1.
            pace: of an auto chunk: neighbouring chunks are merged to it. None: each is moved as it is.
            alone: numbers of chunks that are never merged.

        Raises:
            BaseException: what a worker met that is not one of our own errors; the others are stopped first.
        """
        if self._staffing is not None:
            workers = self._staffing.begin()
        limits = self.limits
        most_rows = (lambda: limits.most_rows(pace.most_bytes)) if pace is not None else None
        self._left = Dispatch(chunks, pace, alone=alone, most_rows=most_rows)
        self._in_a_row = 0
        limits.begin(workers)
        self._workers, self._threads, self._hire = [], [], hire
        self._employ(workers)
        self._watch()
        if self._fatal is not None:
            raise self._fatal

    def _employ(self, workers: int) -> None:
        """Have so many workers: hire the missing ones; those above the number end with their chunk."""
        self._wanted = workers
        for number in range(len(self._workers) + 1, workers + 1):
            self._start(number)

    def _start(self, number: int) -> None:
        worker = self._hire(self._run, number, self._shared)
        name = f"keyhaul-worker-{number}"
        thread = threading.Thread(target=self._work, args=(worker,), name=name, daemon=True)
        self._workers.append(worker)
        self._threads.append(thread)
        thread.start()

    def _take_up(self) -> None:
        """Have what a worker gave back that was let go moved by a new one: the others may have ended before."""
        with self._lock:
            left = len(self._left)
        if left and not self._control.stopping.is_set():
            self._start(1)

    def _watch(self) -> None:
        """Wait for the workers; pass a cancellation on; touch the snapshot's connection now and then."""
        announced = False
        cancelling = Cancelling(self._control, self._observe, self._cancel)
        reads, loads = any(worker.reads for worker in self._workers), all(worker.loads for worker in self._workers)
        heart = Heartbeat(self._run, self._ledger, self._control, self._shared.doubt, reads=reads, loads=loads)
        for thread in self._threads:  # which may become longer meanwhile
            while thread.is_alive():
                thread.join(timeout=0.1)
                control = self._control
                if control.stopping.is_set() and not announced:
                    announced = True
                    self._observe(events.Stopping(reason=control.reason))
                cancelling.look()
                self._look_at_cpu()
                self._look_at_staff()
                if heart.due:
                    heart.beat(self._gathered_so_far())
            if thread is self._threads[-1]:
                self._take_up()
        heart.last(self._gathered_so_far())

    def _gathered_so_far(self) -> tuple[int, int]:
        with self._lock:
            return self.gathered

    def _cancel(self) -> None:
        """Cancel what runs on both servers, by way of connections of their own."""
        for worker in self._workers:
            worker.cancel()
        try:
            self._run.source.cancel()
        except ConfigError as error:
            message = f"cancel the source's queries: {self._clean(error)}; they end at their statement timeout"
            self._observe(events.Notice(message=message, level="warning"))

    def _work(self, worker: ChunkRunner) -> None:
        """Take chunks to their end until none is left or the run stops; runs in a thread of its own."""
        try:
            while (chunk := self._next(worker)) is not None:
                begun_at = time.monotonic()
                try:
                    result = worker.run(chunk)
                except StopRunError as error:
                    self._control.stop(self._clean(error))
                except ChunkError as error:
                    self._unmoved(worker, chunk, error)
                else:
                    self._moved(worker, result, begun_at)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            with self._lock:
                self._fatal = self._fatal or error
            self._control.give_up("an unexpected error")
        finally:
            worker.close()

    def _next(self, worker: ChunkRunner) -> Chunk | None:
        """Return the next chunk for this worker; None when it is to end."""
        if self._control.stopping.is_set() or worker.number > self._wanted:
            return None
        with self._lock:
            chunk = self._left.take(self._wanted)
        if chunk is not None:
            self._observe(
                events.ChunkStarted(
                    chunk=chunk.number,
                    worker=worker.number,
                    estimated_rows=chunk.estimated_rows,
                    cuts=max(len(chunk.cuts), 1),
                )
            )
        return chunk

    def _unmoved(self, worker: ChunkRunner, chunk: Chunk, error: ChunkError) -> None:
        """Give back, or give up, a chunk that could not be moved; one that was cancelled is neither."""
        if (
            self._control.hopeless.is_set()
            or isinstance(error, CancelledError)
            or self._give_back(worker, chunk, error)
        ):
            return
        self._failed(
            worker, FailedChunk(chunk=chunk.number, attempts=worker.tries, error=self._clean(error)), chunk.last
        )

    def _moved(self, worker: ChunkRunner, result: ChunkResult, begun_at: float) -> None:
        """Let a chunk that is moved be measured, and tell it."""
        with self._lock:
            self._in_a_row = 0
            self._left.measure(result)
            if self._staffing is not None:
                # By the clock: of a chunk that was gathered before, the timings are of other seconds as well.
                seconds = time.monotonic() - begun_at - worker.waited_seconds
                self._staffing.measure(begun_at, result.counts.read, seconds)
        self._announce(worker, result, worker.tries)

    def _announce(self, worker: ChunkRunner, result: ChunkResult, attempts: int) -> None:
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

    def _give_back(self, worker: ChunkRunner, chunk: Chunk, error: ChunkError) -> bool:
        """Give back what can be tried in another way; returns whether anything was.

        A merged chunk that fails is halved, so that a bad cut costs itself alone. One that was lost, and not refused,
        would not fare better in halves. One of which somebody else (a killed process whose COMMIT came late) has loaded
        a part is what the ledger has as open.
        """
        if isinstance(error, StaleChunkError):
            still_open = {one.number for one in self._ledger.open_chunks(self._run.run_id)}
            with self._lock:
                self._left.sort_out(chunk, still_open)
            self._observe(events.Notice(message=f"{self._clean(error)}; the others are moved", level="warning"))
            return True
        if not chunk.cuts or isinstance(error, TransientError):
            return False
        with self._lock:
            self._left.halve(chunk)
        self._observe(
            events.ChunkHalved(chunk=chunk.number, worker=worker.number, cuts=len(chunk.cuts), error=self._clean(error))
        )
        return True

    def _look_at_cpu(self) -> None:
        """Let the limit of the machine's CPU see it, once a second."""
        if not self.limits.sample_due():
            return
        percent = cpu_percent()
        governor = self.limits.governor
        if governor.sample(percent):
            self._observe(events.WorkersAllowed(active=governor.allowed, workers=self._wanted, cpu_percent=percent))

    @property
    def workers_reason(self) -> str:
        """Why there are as many workers as there are at last; empty when the job says how many."""
        return self._staffing.reason if self._staffing is not None else ""

    def _look_at_staff(self) -> None:
        """Hire or let go, if what the last chunks have shown says so."""
        staffing = self._staffing
        if staffing is None or self._control.stopping.is_set():
            return
        before = staffing.workers
        with self._lock:
            chunks, rows = len(self._left), self._left.rows
        try:
            decision = staffing.look(held_seconds=self.limits.waited_seconds, left_chunks=chunks, left_rows=rows)
        except RefusedError as error:
            self._control.stop(self._clean(error))
            return
        except (ConnectError, psycopg.Error):
            return  # a server that cannot be asked for room: the heartbeat says what a lost connection means
        if decision is None:
            return
        self.limits.change_workers(decision.workers)
        self._employ(decision.workers)
        self._observe(events.WorkersChosen(workers=decision.workers, before=before, reason=decision.reason))

    def _failed(self, worker: ChunkRunner, failed: FailedChunk, last: int) -> None:
        """Record a chunk that is given up, of a merged one all cuts up to the `last`."""
        sitting = self._run.sitting
        self._ledger.chunk_failed(self._run.run_id, failed, last=last, worker=worker.number, sitting=sitting)
        self._observe(
            events.ChunkFailed(chunk=failed.chunk, worker=worker.number, attempts=failed.attempts, error=failed.error)
        )
        with self._lock:
            self._in_a_row += 1
            in_a_row = self._in_a_row
        if self._run.job.stop_on_error:
            self._control.stop(f"chunk {failed.chunk} failed, and --stop-on-error is given")
        elif in_a_row >= FAILURES_IN_A_ROW:
            self._control.stop(f"{FAILURES_IN_A_ROW} chunks in a row failed, the last with: {failed.error}")

    def _clean(self, error: BaseException) -> str:
        return redact(str(error), self._run.target_dsn)
