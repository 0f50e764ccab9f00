"""Which chunk a worker takes next: those of the plan in their order, of an auto chunk merged to the sitting's pace."""

from __future__ import annotations

from collections import deque
from math import inf
from statistics import median
from typing import TYPE_CHECKING

from keyhaul.sources.cuts import halved, merged, to_merge

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from keyhaul.limits.pace import Pace
    from keyhaul.model import Chunk, ChunkResult


class Dispatch:
    """The chunks that nobody has taken. Not locked: the pool's lock is held.

    A chunk as it was planned goes out as it is; with a `pace` neighbouring ones go out as one. What fails comes back
    in halves, until the cut that is guilty stands alone.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        pace: Pace | None = None,
        *,
        alone: Collection[int] = (),
        most_rows: Callable[[], float] | None = None,
    ) -> None:
        """Take the chunks of a sitting.

        Args:
            chunks: in the order in which they are taken.
            pace: says how many rows a chunk should have; None: chunks are taken as they are.
            alone: numbers of cuts that are not merged: they failed in an earlier sitting.
            most_rows: how many rows memory allows, asked for each chunk.
        """
        self._pace = pace
        self._alone = frozenset(alone)
        self._most_rows = most_rows
        # A NULL chunk cannot be cut: at the end, the other workers would wait for it.
        uncut = [chunk for chunk in chunks if chunk.kind == "nulls"] if pace is not None else []
        self._left = deque([*uncut, *(chunk for chunk in chunks if chunk not in uncut)])
        self._halves: deque[Chunk] = deque()
        estimates = [chunk.estimated_rows for chunk in chunks if chunk.kind == "range" and chunk.estimated_rows > 0]
        # A sampled plan may leave its last cuts without an estimate, though there are rows in them.
        self._usual = median(estimates) if estimates else 1
        self._rows = sum(self._rows_of(chunk) for chunk in self._left)

    def __len__(self) -> int:
        """How many there are, each cut counted."""
        return len(self._left) + sum(max(len(chunk.cuts), 1) for chunk in self._halves)

    @property
    def rows(self) -> float:
        """Rows expected in them."""
        return self._rows + sum(chunk.estimated_rows for chunk in self._halves)

    def take(self, workers: int) -> Chunk | None:
        """Return the next chunk, or None when none is left; `workers` share what is left."""
        if self._halves:
            return self._halves.popleft()
        if not self._left:
            return None
        chosen = [self._left[0]]
        if self._pace is not None:
            wanted, most = self._pace.rows(
                left=self._rows, workers=workers, most=self._most_rows() if self._most_rows else inf
            )
            chosen = to_merge(self._left, wanted=wanted, most=most, rows_of=self._rows_of, alone=self._is_alone)
        for chunk in chosen:
            self._left.popleft()
            self._rows -= self._rows_of(chunk)
        return merged(chosen)

    def measure(self, result: ChunkResult) -> None:
        """Take the pace of a chunk that is moved."""
        if self._pace is not None:
            self._pace.measure(result.counts.read, result.timings.busy_seconds)

    def halve(self, chunk: Chunk) -> None:
        """Give a merged chunk back that failed: its halves are the next ones to be taken, and never merged again."""
        self._halves.extendleft(reversed(halved(chunk)))

    def sort_out(self, chunk: Chunk, still_open: Collection[int]) -> None:
        """Give a merged chunk back of which somebody else has loaded a part: what is open of it can be taken again.

        Args:
            chunk: that was taken.
            still_open: the numbers of all cuts of the run that the ledger has as open.
        """
        back = [cut for cut in chunk.cuts or (chunk,) if cut.number in still_open]
        kept = [cut for cut in self._left if cut.number in still_open]
        descending = len(kept) > 1 and kept[0].number > kept[-1].number
        self._left = deque([*(reversed(back) if descending else back), *kept])
        self._rows = sum(self._rows_of(cut) for cut in self._left)

    def _is_alone(self, chunk: Chunk) -> bool:
        return chunk.number in self._alone

    def _rows_of(self, chunk: Chunk) -> float:
        return max(chunk.estimated_rows, self._usual) if chunk.kind == "range" else chunk.estimated_rows
