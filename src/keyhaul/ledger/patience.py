"""Patience: how long a server that is gone is waited for. One clock for all threads; who is cancelled does not wait."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

import psycopg

from keyhaul.errors import ConnectError

if TYPE_CHECKING:
    from collections.abc import Callable

RECONNECT_SECONDS: Final = 60.0
"""How long a lost connection to the ledger is tried again: a server that restarts is back by then."""

FORGET_SECONDS: Final = 30.0
"""After so long without a failure, the next one begins another outage."""

TRIED_SECONDS: Final = 5.0
"""So long after a failure, who has no patience left does not try again; each try may take seconds."""

GONE: Final = "ask the ledger: the target is gone, expected it to be back by now. Try again when it is there"


class Patience:
    """The outage of one server, as all threads have met it."""

    def __init__(self) -> None:
        """Begin with a server that is there."""
        self._lock = threading.Lock()
        self._since: float | None = None
        self._last = 0.0
        self._cancelled = threading.Event()

    def end_with(self, cancelled: threading.Event) -> None:
        """Have no patience any more as soon as `cancelled` is set."""
        self._cancelled = cancelled

    def missed(self) -> None:
        """Note that the server could not be reached: the first time begins the outage."""
        now = time.monotonic()
        with self._lock:
            if self._since is None or now - self._last > FORGET_SECONDS:
                self._since = now
            self._last = now

    def found(self) -> None:
        """Note that the server is there: the outage is over."""
        with self._lock:
            self._since = None

    @property
    def over(self) -> bool:
        """Whether the server has been gone for `RECONNECT_SECONDS`."""
        with self._lock:
            return self._since is not None and time.monotonic() - self._since >= RECONNECT_SECONDS

    def lose(self, error: BaseException) -> None:
        """Note that the server could not be reached, with this error.

        Raises:
            ConnectError: for too long by now.
        """
        self.missed()
        if self.over:
            raise ConnectError(str(error)) from error

    def wait_for(self, ask: Callable[[], object]) -> bool:
        """Ask until there is an answer; returns whether there was one before the patience was over."""
        self.missed()
        while not (self.over or self._cancelled.is_set()):
            try:
                ask()
            except (psycopg.OperationalError, ConnectError):
                self.missed()
                self._cancelled.wait(0.5)
            else:
                self.found()
                return True
        return False

    def check(self) -> None:
        """Refuse to try once more what has just been tried in vain.

        Raises:
            ConnectError: the server is given up, and somebody has tried a moment ago.
        """
        if self.over or self._cancelled.is_set():
            with self._lock:
                tried = self._since is not None and time.monotonic() - self._last < TRIED_SECONDS
            if tried:
                raise ConnectError(GONE)
