"""Which records of a chunk does the target reject? Halves inside savepoints until they stand alone.

Most of the COPYs are short, because one ends at the first guilty row. When many fail, the server tries each record
alone; see `singly`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import polars as pl

from keyhaul.errors import RejectedError
from keyhaul.halving import halve
from keyhaul.model import RECORD
from keyhaul.targets.constraints import lost_references, references_within, suspected
from keyhaul.targets.rows import INVALID, Placed, write_rows
from keyhaul.targets.session import attempt, trying
from keyhaul.targets.shape import check_shape
from keyhaul.targets.singly import refused_singly, verdicts

if TYPE_CHECKING:
    from keyhaul.targets.rows import Destination
    from keyhaul.targets.session import Session

FAILED_COPIES: Final = 48
"""Failed COPYs after which halving is given up: three records of 50,000 are found by it (3·log2(50,000) = 47);
5,000 of 50,000 would cost 40,000 COPYs of 0.3 ms each."""


def write_chunk(session: Session, destination: Destination, frame: pl.DataFrame) -> Placed:
    """Write a chunk's rows; if the target rejects some, load the others and return those with the reason.

    Args:
        session: in a transaction that has locked the chunk's ledger row.
        destination: the table, and what to do with a row that is there.
        frame: the accepted rows, with `RECORD`.

    Returns:
        What became of the rows; `invalid` has the rejected records as well.

    Raises:
        RejectedError: a row is rejected, and this session cannot go on after an error (`Session.recovers`).
        ChunkError: an error that is not about a row, or a trigger that drops or adds rows.
        StopRunError: the table is not the one any more that the run began with.
    """
    if not frame.height:
        return Placed()
    check_shape(session.execute, destination.table, destination.shape, [column.name for column in destination.columns])
    with trying(session) as tried:
        placed = write_rows(session, destination, frame)
    if tried.error is None:
        return placed
    search = _Search(session, destination)
    search.load(frame, tried.error)
    if own := references_within(session, [destination.table]):
        search.try_orphans(frame, own)
    return replace(search.placed, invalid=search.rejected)


class _Search:
    """The state of one search: what was stored, and what was rejected."""

    def __init__(self, session: Session, destination: Destination) -> None:
        self._session = session
        self._destination = destination
        self._suspects: pl.DataFrame | None = None
        self.placed = Placed()
        self.rejected = pl.DataFrame(schema=INVALID)

    def load(self, frame: pl.DataFrame, error: RejectedError | None = None) -> None:
        """Load the records that the target takes, the earlier ones first.

        After `FAILED_COPIES` those that no constraint suspects go first, then each suspect alone; when as many fail
        again, or anything may have to do with the order of the records, each is tried alone. `error` is that of all
        together, where they were tried so before.
        """
        self._suspects = None
        steps = {FAILED_COPIES: self._unsuspected, 2 * FAILED_COPIES: self._without_refused}
        halve(frame, self._write, self._reject, steps, error)
        if self._suspects is not None:
            left = self._without_refused(self._suspects)
            halve(left, self._write, self._reject, {FAILED_COPIES: self._without_refused})

    def _write(self, part: pl.DataFrame) -> RejectedError | None:
        placed = attempt(self._session, lambda: write_rows(self._session, self._destination, part))
        if isinstance(placed, RejectedError):
            return placed
        self.placed += placed
        self.rejected = pl.concat([self.rejected, placed.invalid])
        return None

    def _reject(self, part: pl.DataFrame, error: RejectedError) -> None:
        self.rejected = pl.concat([self.rejected, verdicts([(part[RECORD][0], error)])])

    def _unsuspected(self, left: pl.DataFrame) -> pl.DataFrame:
        """Return the records that no constraint suspects, and keep the others for later; else try each alone."""
        doubtful = suspected(self._session, self._destination, left)
        if not doubtful:
            return self._without_refused(left)
        self._suspects = left.filter(pl.col(RECORD).is_in(doubtful))
        return left.filter(~pl.col(RECORD).is_in(doubtful))

    def _without_refused(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Try each record alone; return those that are taken, still to be loaded."""
        refused = refused_singly(self._session, self._destination, frame)
        self.rejected = pl.concat([self.rejected, refused])
        return frame.filter(~pl.col(RECORD).is_in(refused[RECORD].implode()))

    def try_orphans(self, frame: pl.DataFrame, own: list[str]) -> None:
        """Try records again that lacked a reference within the table, as long as that changes anything.

        A record may have waited for another of its chunk. Those that refer to what is neither in the table nor among
        the waiting ones are left out, so that the others can be loaded as one part.
        """
        before = -1
        while True:
            orphans = self.rejected.filter(pl.col("rules").list.eval(pl.element().is_in(own)).list.any())
            waiting = frame.filter(pl.col(RECORD).is_in(orphans[RECORD].implode()))
            lost = lost_references(self._session, self._destination, waiting) if waiting.height else set()
            waiting = waiting.filter(~pl.col(RECORD).is_in(lost))
            if waiting.height in {0, before}:
                return
            before = waiting.height
            self.rejected = self.rejected.filter(~pl.col(RECORD).is_in(waiting[RECORD].implode()))
            self.load(waiting)
