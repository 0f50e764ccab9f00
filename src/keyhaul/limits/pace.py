"""How many rows the next chunk may have, from the measured pace of this sitting's chunks; ``chunk: auto``."""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from keyhaul.config.parts import AutoChunk

WINDOW_CHUNKS: Final = 3
"""Chunks whose median pace decides: one slow chunk changes nothing, and a change of pace is followed after two."""

GROWTH: Final = 4.0
"""A chunk has at most so many times the rows of the largest of these: the pace of small chunks may not be that of
large ones."""

TAIL_SHARE: Final = 2.0
"""Near the end a chunk is at most the rows that are left, by so many for each worker ("factoring"; with 1 a worker
whose last chunk is slow is waited for twice as long)."""

TAIL_PART: Final = 0.125
"""Part of the target time below which the end is not shared any finer: each chunk has a cost of its own."""


class Pace:
    """The pace of one sitting's chunks, all workers together. Not locked: the pool's lock is held."""

    def __init__(self, auto: AutoChunk, *, rows_per_second: int | None = None) -> None:
        """Start with nothing measured; `rows_per_second` is the job's ``rate_limit``, which all workers share."""
        self._auto = auto
        self._rate_limit = rows_per_second
        self._measured: deque[tuple[float, int]] = deque(maxlen=WINDOW_CHUNKS)

    def measure(self, rows: int, seconds: float) -> None:
        """Take a chunk: the rows read, and the seconds that one worker was busy with it, without waiting.

        One without rows, or of which no time is known (found in the ledger), says nothing of the pace.
        """
        if rows > 0 and seconds > 0:
            self._measured.append((rows / seconds, rows))

    @property
    def rows_per_second(self) -> float:
        """Rows a second of one worker: the median of the last chunks; 0 before the first one."""
        return median(pace for pace, _ in self._measured) if self._measured else 0.0

    @property
    def most_bytes(self) -> int:
        """Bytes of Arrow that a chunk should not exceed."""
        return self._auto.max_bytes.bytes or 0

    def rows(self, *, left: float, workers: int, most: float) -> tuple[float, float]:
        """Return how many rows the next chunk should have, and how many it must not exceed.

        Args:
            left: rows that are in no chunk yet.
            workers: that share them.
            most: rows that memory allows.
        """
        auto, most = self._auto, min(self._auto.max_rows, most)
        if not self._measured:
            return min(auto.min_rows, most), most
        in_time = self.rows_per_second * auto.target_seconds
        if self._rate_limit is not None:
            # Each chunk is read at once, and then waited for: the source sees the limit kept over about this time.
            in_time = min(in_time, self._rate_limit * auto.target_seconds / workers)
        share = max(left / (TAIL_SHARE * workers), in_time * TAIL_PART)
        grown = GROWTH * max(rows for _, rows in self._measured)
        return min(max(min(in_time, share, grown), auto.min_rows), most), most
