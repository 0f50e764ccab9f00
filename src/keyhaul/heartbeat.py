"""The connections that a sitting holds while its workers are busy: touched now and then, so that a loss is noticed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import psycopg

from keyhaul.dsn import redact
from keyhaul.errors import ConnectError, RefusedError

if TYPE_CHECKING:
    from keyhaul.control import Control
    from keyhaul.ledger import Ledger
    from keyhaul.task import Task

HEARTBEAT_SECONDS: Final = 10.0
"""How often the connections are touched: that of the source's snapshot, and that of the job's lock."""

GATHERED_SECONDS: Final = 1.0
"""How often a run that gathers writes how far it is: nothing else in the ledger says so."""


class Heartbeat:
    """The beats of one sitting; from the thread that waits for the workers."""

    def __init__(self, task: Task, ledger: Ledger, control: Control, *, reads: bool, loads: bool) -> None:
        """Begin to count the time.

        Args:
            task: what all chunks have in common.
            ledger: of the job, over the connection that holds its lock.
            control: told to stop when one of the connections is lost for good.
            reads: whether the workers read from the source, in its snapshot.
            loads: whether they load; if not, they gather, and the ledger is told how far they are.
        """
        self._task = task
        self._ledger = ledger
        self._control = control
        self._reads = reads
        self._loads = loads
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time for another beat."""
        return time.monotonic() - self._last > (HEARTBEAT_SECONDS if self._loads else GATHERED_SECONDS)

    def beat(self, gathered: tuple[int, int]) -> None:
        """Touch the connections; `gathered` are chunks and rows."""
        self._last = time.monotonic()
        self._touch_snapshot()
        self._touch_ledger(gathered)

    def last(self, gathered: tuple[int, int]) -> None:
        """Write how many chunks and rows are gathered in the end."""
        if not self._loads:
            self._touch_ledger(gathered)

    def _touch_snapshot(self) -> None:
        if not self._reads:
            return
        try:
            self._task.source.conn.execute("select 1")
        except psycopg.Error:
            self._control.stop(
                "the connection that holds the source's snapshot was lost; the next sitting reads from a newer one"
            )

    def _touch_ledger(self, gathered: tuple[int, int]) -> None:
        """Touch the connection that holds the job's lock; a lost one is opened, and the lock taken, again."""
        chunks, rows = gathered
        task = self._task
        told = None if self._loads else {"run_id": task.run_id, "chunks": chunks, "rows": rows}
        try:
            self._ledger.touch(told)
        except RefusedError as error:
            self._control.stop(redact(str(error), task.source_dsn, task.target_dsn))
        except (ConnectError, psycopg.Error):
            return  # the next beat tries again, and a worker's own statement says what is wrong
