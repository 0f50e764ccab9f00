"""The connections that a sitting holds while its workers are busy: touched now and then, so that a loss is noticed."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

import psycopg

from keyhaul.errors import CancelledError, ConnectError, RefusedError, StopRunError
from keyhaul.postgres.dsn import redact

if TYPE_CHECKING:
    from keyhaul.before.prepare import Prepared
    from keyhaul.control import Control
    from keyhaul.ledger.store import Ledger

HEARTBEAT_SECONDS: Final = 10.0
"""How often the connections are touched: that of the source's snapshot, and that of the job's lock."""

GATHERED_SECONDS: Final = 1.0
"""How often a run that gathers writes how far it is: nothing else in the ledger says so."""

LAST_SECONDS: Final = 5.0
"""How long a beat that is under way is waited for when there are no workers any more."""


class Doubt:
    """Whether the snapshot may be lost, since a chunk has failed: it is looked at before the chunk is read again."""

    def __init__(self, *, settled: bool = True) -> None:
        """Begin without any; nothing `settled`: nobody looks after it here, and the next read will tell."""
        self.there = threading.Event()
        self._settled = settled

    def begin(self) -> None:
        """Note that a try has failed."""
        if self._settled:
            self.there.set()

    def wait(self, hopeless: threading.Event) -> None:
        """Wait until it is settled.

        Raises:
            CancelledError: the snapshot is lost, or the run is cancelled.
        """
        while self.there.is_set() and not hopeless.wait(0.05):
            pass
        if hopeless.is_set():
            raise CancelledError("read chunk: it is not tried again in this sitting")


class Heartbeat:
    """The beats of one sitting; each in a thread of its own, because a dead link holds it up for a timeout."""

    def __init__(
        self, run: Prepared, ledger: Ledger, control: Control, doubt: Doubt, *, reads: bool, loads: bool
    ) -> None:
        """Begin to count the time.

        Args:
            run: whose source is touched.
            ledger: of the job, over the connection that holds its lock.
            control: told to stop when one of the connections is lost for good.
            doubt: has the next beat come at once, which settles it.
            reads: whether the workers read from the source, in its snapshot.
            loads: whether they load; if not, they gather, and the ledger is told how far they are.
        """
        self._run = run
        self._ledger = ledger
        self._control = control
        self._reads = reads
        self._loads = loads
        self._last = time.monotonic()
        self._beat: threading.Thread | None = None
        self._doubt = doubt
        self._over = False
        ledger.patience.end_with(control.cancelled)

    @property
    def due(self) -> bool:
        """Whether it is time for another beat, and the last one is over."""
        if self._beat is not None and self._beat.is_alive():
            return False
        every = HEARTBEAT_SECONDS if self._loads else GATHERED_SECONDS
        return self._doubt.there.is_set() or time.monotonic() - self._last > every

    def beat(self, gathered: tuple[int, int]) -> None:
        """Touch the connections; `gathered` are chunks and rows."""
        self._last = time.monotonic()
        doubted = self._doubt.there.is_set()

        def work() -> None:
            self._touch_snapshot()
            if doubted:
                self._doubt.there.clear()
            self._touch_ledger(gathered)

        self._beat = threading.Thread(target=work, name="keyhaul-heartbeat", daemon=True)
        self._beat.start()

    def last(self, gathered: tuple[int, int]) -> None:
        """Write how many chunks and rows are gathered in the end; a beat that is under way does not count any more."""
        self._over = True
        if self._beat is not None:
            self._beat.join(LAST_SECONDS)
        if not self._loads:
            self._touch_ledger(gathered)

    def _touch_snapshot(self) -> None:
        if not self._reads:
            return
        try:
            self._run.source.touch()
        except StopRunError as error:
            if not self._over:  # what fails now cannot be read again
                self._control.give_up(str(error))

    def _touch_ledger(self, gathered: tuple[int, int]) -> None:
        """Touch the connection that holds the job's lock; a lost one is opened, and the lock taken, again."""
        chunks, rows = gathered
        run = self._run
        told = None if self._loads else {"run_id": run.run_id, "chunks": chunks, "rows": rows}
        try:
            self._ledger.touch(told)
        except RefusedError as error:
            self._control.give_up(redact(str(error), run.target_dsn))
        except (ConnectError, psycopg.Error):
            # The next beat tries again, and a worker's own statement says what is wrong.
            self._ledger.patience.missed()
