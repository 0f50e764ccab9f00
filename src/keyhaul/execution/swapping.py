"""The end of a run in mode replace: the swap and the ledger's word, with what a person is told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

from keyhaul.errors import CancelledError
from keyhaul.targets import replace as replacing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyhaul.control import Control
    from keyhaul.execution.halting import Halting
    from keyhaul.ledger.store import Ledger
    from keyhaul.targets.postgres import TargetTable


def swap_in(
    ledger: Ledger,
    target: TargetTable,
    run_id: str,
    last: Sequence[str],
    control: Control,
    halting: Halting,
    tell: Callable[[str], None],
) -> None:
    """Put the fresh table in the target's place, and write that the run is done, in one transaction.

    Args:
        ledger: of the job.
        target: with its fresh table.
        run_id: whose chunks are all committed.
        last: statements for the table when it has its name: they advance sequences.
        control: a person who stops the run ends the waiting for locks.
        halting: one who does so again cancels the statement under way; a COMMIT is not taken back.
        tell: takes a sentence for a person.

    Raises:
        RefusedError, CancelledError: the target stays as it was; the same command tries again.
        psycopg.OperationalError: the connection was lost, and nothing was done.
    """
    conn = ledger.connection
    with halting.cancelling(conn):
        created = replacing.complete(conn, target)
    if created:
        tell(f"created {created} indexes and constraints of the fresh {target.label}")
    loaded = ledger.totals(run_id).counts.loaded
    rows = -1

    def done(conn: psycopg.Connection[tuple[object, ...]]) -> None:
        ledger.end_within(conn, run_id)
        halting.check()

    conn = ledger.connection
    try:
        with halting.cancelling(conn):
            rows = replacing.swap(conn, target, last, done, control.stopping.wait)
    except (psycopg.OperationalError, CancelledError):
        if not ledger.is_done(run_id):  # the answer to the COMMIT may be all that was lost
            raise
    was = f"{rows:,} rows by its statistics" if rows >= 0 else "rows not counted"
    tell(f"replaced {target.label} (old: {was} → new: {loaded:,} rows)")
