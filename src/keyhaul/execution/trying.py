"""How one chunk is tried: again after an error that another try may get past, never without a look in the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyhaul import events
from keyhaul.errors import ChunkError, StopRunError, TransientError
from keyhaul.execution.heartbeat import Doubt
from keyhaul.postgres.dsn import redact
from keyhaul.retrying import attempts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import tenacity

    from keyhaul.control import Control
    from keyhaul.execution.task import Task
    from keyhaul.execution.worker import Worker
    from keyhaul.ledger.store import Ledger
    from keyhaul.model import Chunk, ChunkResult, Observer


class Tries:
    """The tries of a pool's chunks; safe to use from its workers' threads.

    Attributes:
        doubt: whether the snapshot may be lost, since a try has failed.
    """

    def __init__(
        self,
        task: Task,
        ledger: Ledger,
        observe: Observer,
        control: Control,
        move: Callable[[Worker, Chunk, int], ChunkResult],
    ) -> None:
        """Take what the pool has; `move` moves a chunk once."""
        self._task = task
        self._ledger = ledger
        self._observe = observe
        self._control = control
        self._move = move
        self.doubt = Doubt()

    def of(self, worker: Worker, chunk: Chunk) -> Iterable[tenacity.AttemptManager]:
        """Return the attempts at a chunk; the waits between them are told, and counted as the worker's."""

        def announce(attempt: int, wait_seconds: float, error: BaseException | None) -> None:
            self.doubt.there.set()
            self._observe(
                events.ChunkRetried(
                    chunk=chunk.number,
                    worker=worker.number,
                    attempt=attempt,
                    wait_seconds=wait_seconds,
                    error=self._clean(error) if error else "",
                )
            )

        def waited(seconds: float) -> None:
            worker.waited_seconds += seconds

        return attempts(self._task.job.retries, self._control.hopeless, announce, waited)

    def one(self, worker: Worker, chunk: Chunk, attempt: int) -> ChunkResult:
        """Move a chunk; after a doubt, ask the ledger first.

        Raises:
            TransientError, ChunkError, StopRunError: as the worker says.
            CancelledError: what is read would be read in vain.
        """
        if attempt > 1:
            already = self._committed(worker, chunk)
            if already is not None:
                return already
            if worker.reads:
                self.doubt.wait(self._control.hopeless)
        return self._move(worker, chunk, attempt)

    def after_all(self, worker: Worker, chunk: Chunk) -> ChunkResult | None:
        """Ask the ledger after the last try, too: perhaps only the answer to its COMMIT was lost."""
        try:
            return self._committed(worker, chunk)
        except StopRunError as error:
            self._control.stop(self._clean(error))
        except ChunkError:
            pass
        return None

    def _committed(self, worker: Worker, chunk: Chunk) -> ChunkResult | None:
        """Ask the ledger for a chunk; the target counts as gone for all workers when it cannot be asked for long."""
        try:
            return worker.committed(chunk)
        except TransientError as error:
            self._ledger.patience.lose(error)
            raise

    def _clean(self, error: BaseException) -> str:
        return redact(str(error), self._task.target_dsn)
