"""How a run is told to stop, from a signal handler, another thread or the run itself."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Control:
    """How a person stops a run: once lets running chunks finish, twice cancels them.

    Attributes:
        hopeless: nothing that fails is tried again: the run is cancelled, or has lost what it cannot do without.
    """

    def __init__(self) -> None:
        """Start with nothing asked."""
        self.stopping = threading.Event()
        self.cancelled = threading.Event()
        self.hopeless = threading.Event()
        self.reason = ""
        self.signal = 0

    def stop(self, reason: str) -> None:
        """Take no further chunk."""
        if not self.stopping.is_set():
            self.reason = reason
            self.stopping.set()

    def give_up(self, reason: str) -> None:
        """Take no further chunk, and try none again."""
        self.stop(reason)
        self.hopeless.set()

    def interrupt(self, number: int) -> None:
        """Take a signal: the first stops, the second cancels what is under way. Only sets flags."""
        if self.signal:
            self.cancelled.set()
            self.hopeless.set()
        self.signal = self.signal or number
        self.stop("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)


@contextmanager
def as_interrupt(raised: Callable[[], bool]) -> Iterator[None]:
    """Raise KeyboardInterrupt in the place of what a library made of one: DuckDB ends with "Query interrupted".

    Args:
        raised: whether the handler of a signal has raised a KeyboardInterrupt.
    """
    try:
        yield
    except Exception as error:
        if raised():
            raise KeyboardInterrupt from error
        raise
