"""Which records of a chunk does the target reject? Halves inside savepoints until they stand alone.

With g guilty records among n this costs at most about 2·g·log2(n) further COPYs, most of them short,
because a COPY ends at the first guilty row. When many fail, the server tries each record alone; see `singly`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import polars as pl
from psycopg import sql

from keyhaul.errors import RejectedError
from keyhaul.faults import pass_point
from keyhaul.model import RECORD
from keyhaul.targets.constraints import lost_references, own_references, suspected
from keyhaul.targets.rows import INVALID, Placed, write_rows
from keyhaul.targets.singly import refused_singly, verdicts

if TYPE_CHECKING:
    from keyhaul.targets.rows import Destination
    from keyhaul.targets.session import Session

FAILED_COPIES: Final = 48
"""Failed COPYs after which halving is given up: three records of 50,000 are found by it (3·log2(50,000) = 47);
5,000 of 50,000 would cost 40,000 COPYs of 0.3 ms each."""


@dataclass(slots=True)
class _Search:
    """The state of one search: what is left to try, what was stored, and what was rejected."""

    pending: list[pl.DataFrame]
    rejected: list[pl.DataFrame]
    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    duplicate: int = 0


def write_chunk(session: Session, destination: Destination, frame: pl.DataFrame) -> Placed:
    """Write a chunk's rows; if the target rejects some, load the others and return those with the reason.

    Args:
        session: in a transaction that has locked the chunk's ledger row.
        destination: the table, and what to do with a row that is there.
        frame: the accepted rows, with ``_record``.

    Returns:
        What became of the rows; `invalid` has the rejected records as well.

    Raises:
        RejectedError: a row is rejected, and this session cannot go on after an error (`Session.recovers`).
        ChunkError: an error that is not about a row, or a trigger that drops or adds rows.
    """
    search = _Search(pending=[], rejected=[])
    error = _try(session, destination, frame, search) if frame.height else None
    if error is not None:
        search = isolate(session, destination, frame)
    return Placed(
        inserted=search.inserted,
        updated=search.updated,
        unchanged=search.unchanged,
        duplicate=search.duplicate,
        invalid=pl.concat(search.rejected) if search.rejected else pl.DataFrame(schema=INVALID),
    )


def isolate(session: Session, destination: Destination, frame: pl.DataFrame) -> _Search:
    """Load all records of a chunk that the target takes, and find the reason for each of the others.

    Args:
        session: in a transaction, with nothing of this chunk written.
        destination: the table, and what to do with a row that is there.
        frame: the accepted rows, with ``_record``.

    Returns:
        The finished search: the rows stored, and the rejected records.

    Raises:
        ChunkError: an error that is not about the rows.
    """
    search = _Search(pending=[frame], rejected=[])
    _halve(session, destination, search)
    if search.rejected and (own := own_references(session, destination.table)):
        _try_orphans(session, destination, frame, search, own)
    return search


def _try_orphans(
    session: Session, destination: Destination, frame: pl.DataFrame, search: _Search, own: list[str]
) -> None:
    """Try records again that lacked a reference within the table, as long as that changes anything.

    A record may have waited for another of its chunk. Those that refer to what is neither in the table nor among the
    waiting ones are left out, so that the others can be loaded as one part.
    """
    before = -1
    while True:
        rejected = pl.concat(search.rejected)
        orphans = rejected.filter(pl.col("rules").list.eval(pl.element().is_in(own)).list.any())
        waiting = frame.filter(pl.col(RECORD).is_in(orphans[RECORD].implode()))
        lost = lost_references(session, destination, waiting) if waiting.height else set()
        waiting = waiting.filter(~pl.col(RECORD).is_in(lost))
        if waiting.height in {0, before}:
            return
        before = waiting.height
        search.rejected = [rejected.filter(~pl.col(RECORD).is_in(waiting[RECORD].implode()))]
        search.pending = [waiting]
        _halve(session, destination, search)


def _halve(session: Session, destination: Destination, search: _Search) -> None:
    """Load what is pending, the earlier records first, halving what the target rejects.

    After `FAILED_COPIES` those that no constraint suspects go first, then each suspect alone; when as many fail again,
    or anything may have to do with the order of the records, each is tried alone.
    """
    failed = 0
    suspects: list[pl.DataFrame] = []
    while search.pending or suspects:
        if not search.pending:
            search.pending = [_without_refused(session, destination, search, suspects.pop())]
        part = search.pending.pop()
        error = _try(session, destination, part, search)
        if error is None:
            continue
        if part.height == 1:
            search.rejected.append(verdicts([(part[RECORD][0], error)]))
            continue
        failed += 1
        if failed in {FAILED_COPIES, 2 * FAILED_COPIES}:
            left = pl.concat([part, *reversed(search.pending)])
            doubtful = suspected(session, destination, left) if failed == FAILED_COPIES else None
            if doubtful:
                suspects = [left.filter(pl.col(RECORD).is_in(doubtful))]
                search.pending = [left.filter(~pl.col(RECORD).is_in(doubtful))]
            else:
                search.pending = [_without_refused(session, destination, search, left)]
            continue
        middle = part.height // 2
        search.pending += [part[middle:], part[:middle]]


def _without_refused(session: Session, destination: Destination, search: _Search, frame: pl.DataFrame) -> pl.DataFrame:
    """Try each record alone; return those that are taken, still to be loaded."""
    refused = refused_singly(session, destination, frame)
    search.rejected.append(refused)
    return frame.filter(~pl.col(RECORD).is_in(refused[RECORD].implode()))


def _try(session: Session, destination: Destination, part: pl.DataFrame, search: _Search) -> RejectedError | None:
    """Write a part inside a savepoint; return the error for which it was taken back."""
    session.execute(sql.SQL("savepoint keyhaul_part"))
    try:
        placed = write_rows(session, destination, part)
        # Deferred constraints are asked now: at COMMIT it would be too late to find the guilty row.
        session.execute(sql.SQL("set constraints all immediate"))
    except RejectedError as error:
        if not session.recovers:
            raise
        session.execute(sql.SQL("rollback to savepoint keyhaul_part"))
        session.execute(sql.SQL("release savepoint keyhaul_part"))
        pass_point("isolate.halved")
        return error
    session.execute(sql.SQL("release savepoint keyhaul_part"))
    search.inserted += placed.inserted
    search.updated += placed.updated
    search.unchanged += placed.unchanged
    search.duplicate += placed.duplicate
    if placed.invalid.height:
        search.rejected.append(placed.invalid)
    return None
