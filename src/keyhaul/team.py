"""Threads that take parts from one queue until none is left; the first error, or Ctrl-C, ends all of them."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

P = TypeVar("P")
P_contra = TypeVar("P_contra", contravariant=True)

CANCEL_SECONDS: Final = 5.0
"""How long statements under way are cancelled before the threads are left to end with the process."""


class Hand(Protocol[P_contra]):
    """What one thread has, such as connections of its own."""

    def do(self, part: P_contra) -> None:
        """Do one part."""

    def close(self) -> None:
        """Give back what it has."""


class Team(Generic[P]):
    """One queue of parts, and the threads that work on it.

    Attributes:
        stopping: set when no further part is to be done.
    """

    def __init__(self, name: str, hire: Callable[[int], Hand[P]], cancel: Callable[[], None]) -> None:
        """Say how the threads are called, what each has, and how to end what they wait for.

        Args:
            name: of the threads.
            hire: called in each thread with its number, from 1.
            cancel: ends the statements under way at the servers; called until the threads have ended.
        """
        self.stopping = threading.Event()
        self._name = name
        self._hire = hire
        self._cancel = cancel
        self._lock = threading.Lock()
        self._left: deque[P] = deque()
        self._failure: BaseException | None = None

    def work(self, parts: Iterable[P], workers: int) -> None:
        """Do all parts; raises the first error of a thread when all have ended."""
        self._left.extend(parts)
        threads = [
            threading.Thread(target=self._run, args=(number,), name=f"{self._name}-{number}", daemon=True)
            for number in range(1, workers + 1)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(timeout=0.1)
        except BaseException:
            self._end(threads)
            raise
        if self._failure is not None:
            raise self._failure

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        """End what the servers do for these threads, before their connections are closed."""
        self.stopping.set()
        deadline = time.monotonic() + CANCEL_SECONDS
        while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
            self._cancel()
            time.sleep(0.2)

    def _run(self, number: int) -> None:
        """Take parts until none is left; runs in a thread of its own."""
        hand = None
        try:
            hand = self._hire(number)
            while not self.stopping.is_set():
                with self._lock:
                    if not self._left:
                        break
                    part = self._left.popleft()
                hand.do(part)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            with self._lock:
                self._failure = self._failure or error
            self.stopping.set()
        finally:
            if hand is not None:
                hand.close()
