"""What becomes of quarantined records that were sent again: resolved, or kept with the new reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import polars as pl
from psycopg import sql

from keyhaul.errors import ChunkError, TransientError
from keyhaul.model import RECORD
from keyhaul.sql import statement

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyhaul.targets.session import Session

GONE: Final = "the record is not in the source any more"
FILTERED: Final = "the job filters this record now"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The quarantined records that one chunk of a replay sends again.

    Attributes:
        run_id: the run that quarantined them.
        replay_id: the replay's own run.
        ledger_schema: where they are.
        asked: their keys, each once, as the quarantine has them.
        found: the rows that the source has for these keys: ``_record`` and ``key``.
    """

    run_id: str
    replay_id: str
    ledger_schema: str
    asked: frozenset[str]
    found: pl.DataFrame

    @property
    def missing(self) -> frozenset[str]:
        """The keys that the source does not have any more."""
        return self.asked - frozenset(self.found["key"])

    def check(self) -> None:
        """Compare what was read with what was asked for.

        Raises:
            ChunkError: the source answers with other keys (the key's text changed with its type or its
                reader); then no record may be taken for missing.
        """
        strange = frozenset(self.found["key"]) - self.asked
        if strange:
            msg = (
                f"read records again: {len(strange):,} of {self.found.height:,} rows came with a key whose text is not "
                "the quarantine's. Give the --reader and key of the run, or move these rows with a run of their own"
            )
            raise ChunkError(msg)


def open_keys(session: Session, run_id: str, ledger_schema: str, keys: Iterable[str]) -> tuple[str, ...]:
    """Return those of `keys` that have an unresolved record, in their order; leaves no transaction open."""
    wanted = list(keys)
    rows = session.execute(statement("open_records", ledger_schema, run_id=run_id, keys=wanted))
    session.commit()
    unresolved = {row[0] for row in rows}
    return tuple(key for key in wanted if key in unresolved)


def lock_records(session: Session, batch: Batch) -> None:
    """Lock the batch's records until the COMMIT.

    Raises:
        TransientError: some were resolved since the batch was read; another try reads without them.
    """
    query = statement("lock_records", batch.ledger_schema, run_id=batch.run_id, keys=sorted(batch.asked))
    unresolved = {row[0] for row in session.execute(query)}
    if unresolved != batch.asked:
        msg = f"lock records: {len(batch.asked - unresolved):,} of {len(batch.asked):,} were resolved meanwhile"
        raise TransientError(msg)


def settle(session: Session, batch: Batch, accepted: pl.DataFrame, rejected: pl.DataFrame) -> None:
    """Write what became of the batch's records, in the transaction that loaded them.

    Args:
        session: its temporary table ``_keyhaul_quarantine`` holds `rejected`, if there are any.
        batch: locked.
        accepted: the rows that transform, rules and dedup left, with ``_record``.
        rejected: those that were rejected there or by the target, with ``key``.

    Of several rows with one key, one that fails keeps the record unresolved.
    """
    ids = {"run_id": batch.run_id, "replay_id": batch.replay_id}
    failed = frozenset(rejected["key"])
    if failed:
        # Fresh tables have no statistics: the planner would take the join for one of a few rows.
        session.execute(sql.SQL("set local enable_nestloop = off"))
        session.execute(statement("records_failed_again", batch.ledger_schema, **ids))
        session.execute(sql.SQL("set local enable_nestloop to default"))
    kept = frozenset(batch.found.filter(pl.col(RECORD).is_in(accepted[RECORD].implode()))["key"])
    present = frozenset(batch.found["key"])
    for keys, why in ((kept - failed, ""), (present - kept - failed, FILTERED), (batch.missing, GONE)):
        if keys:
            query = statement("resolve_records", batch.ledger_schema, keys=sorted(keys), why=why, **ids)
            session.execute(query)
