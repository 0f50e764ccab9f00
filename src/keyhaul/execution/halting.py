"""Signals: the second cancels what is under way; the first, when all chunks are loaded, is only answered."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Self

import psycopg
from psycopg import pq

from keyhaul import events
from keyhaul.errors import CancelledError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keyhaul.control import Control
    from keyhaul.model import Observer

CANCEL_SECONDS: Final = 0.5
"""How often what is under way is cancelled until it has ended: it may just have been between two statements."""

_LOOK_SECONDS: Final = 0.1


class Cancelling:
    """The second signal: told once, and passed on again and again until what is under way has ended."""

    def __init__(self, control: Control, observe: Observer, cancel: Callable[[], None]) -> None:
        """Take who is told to stop, who is told of it, and what cancels."""
        self._control = control
        self._observe = observe
        self._cancel = cancel
        self._again_at: float | None = None

    def look(self) -> None:
        """Cancel, if it is time to."""
        if not self._control.cancelled.is_set():
            return
        if self._again_at is None:
            self._observe(events.Stopping(reason=self._control.reason, at_once=True))
        if self._again_at is None or time.monotonic() >= self._again_at:
            self._cancel()
            self._again_at = time.monotonic() + CANCEL_SECONDS


class Halting:
    """Listens between ``with`` and its end, in a thread of its own, for the main one waits for a server."""

    def __init__(self, control: Control, observe: Observer) -> None:
        """Take who is told to stop, and who is told of it."""
        self._control = control
        self._observe = observe
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._conn: psycopg.Connection[Any] | None = None
        self._also: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._listen, name="keyhaul-halting", daemon=True)

    def __enter__(self) -> Self:
        """Begin to listen."""
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End; no cancel request is under way any more."""
        self._over.set()
        self._thread.join()

    @contextmanager
    def cancelling(self, conn: psycopg.Connection[Any], also: Callable[[], None] | None = None) -> Iterator[None]:
        """Cancel what this connection runs, from the second signal on, until the block is over; call `also`, too.

        Raises:
            CancelledError: a statement was cancelled, or was not begun.
        """
        self.check()
        with self._lock:
            self._conn, self._also = conn, also
        try:
            yield
        except psycopg.errors.QueryCanceled as error:  # a statement timeout is one as well
            self.check(error)
            raise
        except Exception as error:
            if isinstance(error.__cause__, psycopg.errors.QueryCanceled):
                self.check(error)
            raise
        finally:
            with self._lock:
                self._conn = self._also = None

    def check(self, error: Exception | None = None) -> None:
        """Raise CancelledError from `error` if there was a second signal."""
        if self._control.cancelled.is_set():
            raise CancelledError(f"cancelled by {self._control.reason}") from error

    def _listen(self) -> None:
        told, control = False, self._control
        cancelling = Cancelling(control, self._observe, self._cancel)
        while not self._over.wait(_LOOK_SECONDS):
            cancelling.look()
            if control.signal and not told and not control.cancelled.is_set():
                told = True
                message = (
                    f"{control.reason}: all chunks are loaded, and what comes after them goes on to its end; "
                    "the same once more cancels it"
                )
                self._observe(events.Notice(message=message, level="warning"))

    def _cancel(self) -> None:
        with self._lock:
            conn = self._conn
            with suppress(psycopg.Error):
                if conn is not None and conn.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
                    conn.cancel_safe(timeout=2)
            with suppress(ConfigError):
                if self._also is not None:
                    self._also()
