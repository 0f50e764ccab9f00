"""What a run may use: memory by the chunks in flight, the machine's CPU, rows of the source in a second.

A worker asks `Limits.enter` before each try of a chunk and says `Limits.leave` after it. One chunk may always be
under way: a limit slows a run down and never ends it.
"""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, Final, Literal

from keyhaul.errors import CancelledError

if TYPE_CHECKING:
    from collections.abc import Callable

Limit = Literal["memory_limit", "cpu_limit", "rate_limit"]

PEAK_FACTOR: Final = 4.0
"""Bytes of the process for each byte of Arrow of a chunk in flight, at the most. Measured with VmHWM, rows of 1 MB,
chunks of 10 to 80: connectorx 2.9, and 3.6 for a second worker; ADBC 1.3 and 3.0. Steps that copy columns add to it."""

FIRST_USE_BYTES: Final = 100_000_000
"""What drivers and DuckDB take once the first chunks are under way, and allocators keep between chunks. Measured
with rows of 1 MB, 2 workers and a limit of 300 MB: with 64 MB set aside 277 MB after 400 rows and 303 MB after 2,000,
with 100 MB 272 MB after 2,000."""

SMALLEST_BUDGET_BYTES: Final = 32_000_000
"""Left to the chunks where the process alone takes the limit up: less would mean a query for each few rows."""

TICK_SECONDS: Final = 0.05
SAMPLE_SECONDS: Final = 1.0


class Governor:
    """How many workers may be active, by the machine's CPU."""

    def __init__(self, limit_percent: float | None, workers: int) -> None:
        """Start with all workers; without a limit it stays so."""
        self._limit = limit_percent
        self._workers = workers
        self.allowed = workers
        self.fewest = workers

    def change_workers(self, workers: int) -> None:
        """Take another number of workers; those who are hired are allowed, and those let go keep nobody waiting."""
        unheld = self.fewest == self._workers
        self.allowed += max(workers - self._workers, 0)
        self._workers = workers
        if unheld:
            self.fewest = self.allowed

    def sample(self, percent: float) -> bool:
        """Take the machine's CPU, from 0 to 100, over the last second; returns whether `allowed` has changed."""
        if self._limit is None:
            return False
        before = self.allowed
        if percent > self._limit:
            self.allowed = max(1, before - 1)
        elif percent < self._limit:
            self.allowed = max(before, min(self._workers, before + 1))
        self.fewest = min(self.fewest, self.allowed)
        return self.allowed != before


class Rate:
    """A bucket of rows over all workers: the chunks that were let through pay for themselves before the next one."""

    def __init__(self, rows_per_second: float | None) -> None:
        """Start with nothing owed."""
        self._rate = rows_per_second
        self._free_at = 0.0

    def wait_seconds(self, now: float) -> float:
        """Return how long nothing may be read."""
        return max(self._free_at - now, 0.0) if self._rate else 0.0

    def take(self, rows: float, now: float) -> None:
        """Count rows as read from `now` on; negative ones give back what was taken too much."""
        if self._rate:
            begin = max(self._free_at, now) if rows > 0 else self._free_at
            self._free_at = begin + rows / self._rate


class Limits:
    """The limits of one sitting, shared by its workers.

    Attributes:
        held: limit → seconds that workers have waited for it, summed.
        governor: how many workers may be active.
    """

    def __init__(
        self,
        *,
        budget_bytes: int | None = None,
        row_bytes: float = 0.0,
        cpu_percent: float | None = None,
        rows_per_second: float | None = None,
        workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Start with nothing in flight.

        Args:
            budget_bytes: of the process, for all chunks in flight together; None: no limit.
            row_bytes: of Arrow, expected before the first chunk is measured; 0 when nothing is known.
            cpu_percent: of the machine, above which a worker less is active; None: no limit.
            rows_per_second: read from the source by all workers; None: no limit.
            workers: at a time.
            clock: seconds that never run backwards.
            pause: waits for so many of them.
        """
        self._lock = threading.Lock()
        self._budget = budget_bytes
        self._row_bytes = row_bytes
        self._cpu_percent = cpu_percent
        self._workers = workers
        self._rate = Rate(rows_per_second)
        self._clock = clock
        self._pause = pause
        self._flying: dict[int, float] = {}
        self._charged: dict[int, int] = {}
        self._sampled_at = clock()
        self.held: dict[str, float] = {}
        self._begun = False
        self.governor = Governor(cpu_percent, workers)

    @property
    def waited_seconds(self) -> float:
        """What workers have waited so far, for all limits together."""
        with self._lock:
            return sum(self.held.values())

    def begin(self, workers: int) -> None:
        """Start a phase with so many workers."""
        fewest = self.governor.fewest if self._begun else workers
        self.governor, self._begun, self._workers = Governor(self._cpu_percent, workers), True, workers
        self.governor.fewest = min(fewest, workers)

    def change_workers(self, workers: int) -> None:
        """Share the limits among another number of workers from here on."""
        with self._lock:
            self._workers = workers
            self.governor.change_workers(workers)

    def workers_within(self, rows: float) -> float:
        """Return for how many chunks of so many rows at a time the memory suffices; infinite if nothing limits them."""
        with self._lock:
            taken = self.estimate(rows)
            return self._budget / taken if self._budget is not None and taken > 0 else math.inf

    def estimate(self, rows: float) -> float:
        """Return the bytes of the process that a chunk of so many rows will take."""
        return rows * self._row_bytes * PEAK_FACTOR

    def most_rows(self, size_bytes: int) -> float:
        """Return how many rows a chunk may have for `size_bytes` of Arrow, and for one worker's part of the budget.

        By the widest rows met so far; at least 1, infinite as long as no width is known.
        """
        with self._lock:
            if self._row_bytes <= 0:
                return math.inf
            allowed = float(size_bytes)
            if self._budget is not None:
                allowed = min(allowed, self._budget / self._workers / PEAK_FACTOR)
            return max(allowed / self._row_bytes, 1.0)

    def enter(
        self,
        chunk: int,
        rows: int,
        *,
        reads: bool,
        halted: Callable[[], bool],
        tell: Callable[[Limit], None],
    ) -> float:
        """Wait until the chunk may be moved; returns the seconds waited.

        Args:
            chunk: its number.
            rows: that it is expected to have.
            reads: whether it is read from the source, and not only loaded.
            halted: whether the run takes no further chunk.
            tell: called once for each limit that the chunk has to wait for, before it does.

        Raises:
            CancelledError: the run was told to stop before the chunk was begun.
        """
        began = self._clock()
        told: set[Limit] = set()
        while (limit := self._try_enter(chunk, rows, reads=reads)) is not None:
            if halted():
                msg = f"begin chunk {chunk}: the run was told to stop while it waited for {limit}"
                raise CancelledError(msg)
            if limit not in told:
                told.add(limit)
                tell(limit)
            before = self._clock()
            self._pause(TICK_SECONDS)
            with self._lock:
                self.held[limit] = self.held.get(limit, 0.0) + self._clock() - before
        return self._clock() - began if told else 0.0

    def _try_enter(self, chunk: int, rows: int, *, reads: bool) -> Limit | None:
        """Let the chunk in and return None, or return what it has to wait for."""
        with self._lock:
            now = self._clock()
            full = self._cpu_percent is not None and len(self._flying) >= self.governor.allowed
            if self._flying and full:
                return "cpu_limit"
            expected = self.estimate(rows)
            full = self._budget is not None and sum(self._flying.values()) + expected > self._budget
            if self._flying and full:
                return "memory_limit"
            if reads and self._rate.wait_seconds(now) > 0:
                return "rate_limit"
            self._flying[chunk] = expected
            if reads:
                self._rate.take(rows, now)
                self._charged[chunk] = rows
            return None

    def leave(self, chunk: int, *, rows: int | None = None, size_bytes: int = 0) -> None:
        """Say that the chunk is not under way any more; with `rows` and `size_bytes` (Arrow) what it really had."""
        with self._lock:
            self._flying.pop(chunk, None)
            charged = self._charged.pop(chunk, None)
            if rows is None:
                return
            if charged is not None:
                self._rate.take(rows - charged, self._clock())
            if rows:
                # The widest chunk so far speaks for those to come: too few in flight is the smaller mistake.
                self._row_bytes = max(self._row_bytes, size_bytes / rows)

    def sample_due(self) -> bool:
        """Whether the machine's CPU should be looked at again."""
        if self._cpu_percent is None or self._clock() - self._sampled_at < SAMPLE_SECONDS:
            return False
        self._sampled_at = self._clock()
        return True
