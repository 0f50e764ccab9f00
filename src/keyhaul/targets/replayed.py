"""What becomes of quarantined records that were sent again: resolved, or kept with the new reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import polars as pl
from psycopg import sql

from keyhaul.errors import ChunkError, TransientError
from keyhaul.ledger.statements import statement
from keyhaul.model import RECORD
from keyhaul.text import one_line, plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from keyhaul.model import Staged
    from keyhaul.targets.session import Session

KEYS_SHOWN: Final = 5
"""So many keys a warning names; `etl quarantine` shows the others."""

LOADED: Final = "loaded"
CLOSED: Final = {
    "gone": "the record is not in the source any more",
    "filtered": "the job filters this record now",
    "duplicate": "the record is a copy of another one now",
    "doubtful": "of the rows with this key some are loaded, and the job leaves out others",
}
"""The ways in which a record is resolved without being loaded, as ``resolved_as`` has them, and what is said of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The quarantined records that one chunk of a replay sends again.

    Attributes:
        run_id: the run that quarantined them.
        replay_id: the replay's own run.
        ledger_schema: where they are.
        asked: their keys, each once, as the quarantine has them; `crowded` are those that several records have.
        found: the rows that the source has for these keys: `RECORD` and ``key``.
    """

    run_id: str
    replay_id: str
    ledger_schema: str
    asked: frozenset[str]
    crowded: frozenset[str]
    found: pl.DataFrame

    @property
    def missing(self) -> frozenset[str]:
        """The keys that the source does not have any more."""
        return self.asked - frozenset(self.found["key"])

    def without_strange(self, *, unique: bool) -> tuple[Batch, str]:
        """Leave out rows that came with another key than asked for, and records that nothing came for.

        The source answers so when a key's text changed (7 → 7.0, or another reader): then no record may be taken for
        missing, and which one a strange row belongs to, nobody knows.

        Args:
            unique: whether no two rows of the source, or of the target, have one key. Where they may, a strange row
                can belong to a record for whose key another row came.

        Returns:
            The batch of the others, and what to warn of; nothing when no row is strange.

        Raises:
            ChunkError: there is such a row, and keys may be there twice.
        """
        strange = sorted(frozenset(self.found["key"]) - self.asked)
        if not strange:
            return self, ""
        rows = self.found.filter(pl.col("key").is_in(strange)).height
        came = f"{plural(rows, 'row')} came with a key whose text is not the quarantine's ({_few(strange)})"
        advice = "Give the --reader and key of the run, or move these rows with a run of their own"
        if not unique:
            raise ChunkError(f"read records again: {came}. {advice}")
        left = sorted(self.missing | self.crowded)
        asked = self.asked - frozenset(left)
        found = self.found.filter(pl.col("key").is_in(sorted(asked)))
        told = (
            f"read records again: {came}, and {plural(len(left), 'key')} got none or have several records: left out, "
            f"unresolved ({_few(left)}). {advice}"
        )
        return replace(self, asked=asked, found=found), told


def _few(keys: Sequence[str]) -> str:
    shown = [one_line(key) for key in keys[:KEYS_SHOWN]]
    return ", ".join([*shown, "…"] if len(keys) > KEYS_SHOWN else shown)


def open_keys(session: Session, run_id: str, ledger_schema: str, keys: Iterable[str]) -> dict[str, int]:
    """Return those of `keys` that have unresolved records, in their order, and how many; leaves no transaction open."""
    wanted = list(keys)
    rows = session.execute(statement("open_records", ledger_schema, run_id=run_id, keys=wanted))
    session.commit()
    unresolved = Counter(row[0] for row in rows)
    return {key: unresolved[key] for key in wanted if key in unresolved}


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


def settle(session: Session, batch: Batch, staged: Staged, rejected: pl.DataFrame) -> None:
    """Write what became of the batch's records, in the transaction that loaded them.

    Args:
        session: its temporary table ``_keyhaul_quarantine`` holds `rejected`, if there are any.
        batch: locked.
        staged: the rows that transform, rules and dedup left, and those that the dedup left out.
        rejected: the rows that were rejected there or by the target, with ``key``.

    Of a key that several records have, as many stay unresolved as rows with it fail.
    """
    ids = {"run_id": batch.run_id, "replay_id": batch.replay_id}
    if rejected.height:
        # Fresh tables have no statistics: the planner would take the join for one of a few rows.
        session.execute(sql.SQL("set local enable_nestloop = off"))
        session.execute(statement("records_failed_again", batch.ledger_schema, crowded=sorted(batch.crowded), **ids))
        session.execute(sql.SQL("set local enable_nestloop to default"))
    for state, keys in _resolved(batch, staged, rejected).items():
        if keys:
            why = CLOSED.get(state, "")
            query = statement("resolve_records", batch.ledger_schema, keys=sorted(keys), why=why, state=state, **ids)
            session.execute(query)


def _resolved(batch: Batch, staged: Staged, rejected: pl.DataFrame) -> dict[str, frozenset[str]]:
    """Return the keys of the records that did not fail, by what these are resolved as."""

    def among(records: pl.Series) -> frozenset[str]:
        return frozenset(batch.found.filter(pl.col(RECORD).is_in(records.implode()))["key"])

    accepted, refused = staged.accepted[RECORD], rejected[RECORD]
    copied = staged.duplicates if staged.duplicates is not None else refused.clear()
    passed = accepted.filter(~accepted.is_in(refused.implode()))
    everyone = batch.found[RECORD]
    left_out = everyone.filter(~everyone.is_in(pl.concat([accepted, refused, copied]).implode()))
    loaded, copies, filtered, failed = (among(records) for records in (passed, copied, left_out, refused))
    return {
        LOADED: loaded - copies - filtered,
        "doubtful": loaded & (copies | filtered),
        "duplicate": copies - loaded,
        "filtered": filtered - copies - loaded,
        # Where fewer rows have a key than records, and all of them fail.
        "gone": batch.missing | ((failed & batch.crowded) - loaded - copies - filtered),
    }
