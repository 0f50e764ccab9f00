"""One chunk's transaction in the target: its ledger row locked, rows, quarantine, the ledger row, COMMIT."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING

import polars as pl
from psycopg import sql

from keyhaul.errors import HOPELESS, ChunkError, StaleChunkError, StopRunError, TransientError
from keyhaul.faults import pass_point
from keyhaul.ledger.rows import lost
from keyhaul.ledger.statements import assigned, statement
from keyhaul.model import RECORD, ChunkResult, Counts, Timings
from keyhaul.targets.isolate import write_chunk
from keyhaul.targets.late import Late, LateRun, Piece, park
from keyhaul.targets.records import write_records
from keyhaul.targets.replayed import lock_records, settle
from keyhaul.targets.rowhash import Place, Renewal, store
from keyhaul.targets.rows import INVALID, appended, stored_rows
from keyhaul.targets.shape import check_shape
from keyhaul.targets.sqlstates import whose
from keyhaul.targets.writable import writable
from keyhaul.text import plural

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyhaul.model import Chunk, Staged, TableCounts
    from keyhaul.sources.source import Relay
    from keyhaul.targets.postgres import TargetTable
    from keyhaul.targets.replayed import Batch
    from keyhaul.targets.rowhash import Hashing
    from keyhaul.targets.session import CopySession, Session
    from keyhaul.targets.sheets import Sheet
    from keyhaul.transform.mapping import WriteColumn

__all__ = ["Late", "LateRun", "LedgerEntry", "Piece", "claim", "late_run", "load", "relay"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """What the chunk's ledger row will say beside the counts that SQL takes.

    Attributes:
        chunk: of a merged chunk the whole range, with its cuts.
        batch: for a chunk of a replay: its records are in the quarantine already.
        hashing: how the chunk's part of the target is hashed; None when it gets no checksum. For a chunk of a
            replay that of the run it replays, whose checksums are kept true.
        text_columns: source columns that travel as text in the chunk.
        place: where its records stand, for people; see `sources.source.Batch`.
    """

    run_id: str
    chunk: Chunk
    ledger_schema: str
    worker: int
    sitting: int
    attempts: int
    timings: Timings
    bytes_read: int
    place: str = ""
    batch: Batch | None = None
    hashing: Hashing | None = None
    text_columns: frozenset[str] = frozenset()

    @property
    def cuts(self) -> int:
        """How many cuts of the plan the chunk has."""
        return self.chunk.last - self.chunk.number + 1


def claim(session: Session, entry: LedgerEntry) -> ChunkResult | float:
    """Lock the chunk's ledger row; return what it says of a committed chunk, else the seconds waited for the lock.

    Of a merged chunk all its cuts are locked, in their order. Waits for another transaction that holds a row, so that
    an answer is never early.

    Raises:
        StaleChunkError: some of its cuts are committed, in a chunk that is another one.
        StopRunError: the run is gone from the ledger, or another process has taken it over or given it up.
    """
    first, last = entry.chunk.number, entry.chunk.last
    which = {"run_id": entry.run_id, "chunk": first, "last": last}
    rows = session.execute(statement("claim_chunk", entry.ledger_schema, **which, sitting=entry.sitting))
    if len(rows) == entry.cuts and all(row[2] != "done" for row in rows):
        return float(rows[-1][-1])  # the last lock came last
    if not rows or tuple(rows[0][:3]) != (first, entry.cuts, "done"):
        if session.execute(statement("covering", entry.ledger_schema, **which))[0][0]:
            msg = f"ask ledger: of the cuts {first} to {last} some are loaded already, in another chunk"
            raise StaleChunkError(msg)
        raise StopRunError(_why_not(session, entry))
    size, attempts, *numbers, _ = rows[0][3:]
    counts = Counts(**dict(zip((term.name for term in fields(Counts)), numbers, strict=True)))
    return ChunkResult(chunk=entry.chunk.number, counts=counts, timings=Timings(), attempts=attempts, bytes_read=size)


def _why_not(session: Session, entry: LedgerEntry) -> str:
    """Say why a chunk cannot be claimed, though no other transaction holds it."""
    found = session.execute(statement("holder_of_run", entry.ledger_schema, run_id=entry.run_id))
    if not found or tuple(found[0]) == (entry.sitting, "running"):
        return lost(entry.run_id)
    sitting, status = found[0]
    return (
        f"ask ledger: run {entry.run_id} is another process's by now ({status}, sitting {sitting}; this is "
        f"{entry.sitting}). `etl show {entry.run_id}` tells what became of it"
    )


def load(
    session: Session,
    target: TargetTable,
    columns: Sequence[WriteColumn],
    staged: Staged,
    entry: LedgerEntry,
    sheets: Sequence[Sheet] = (),
) -> ChunkResult:
    """Load one chunk, its quarantined records and its ledger row in one transaction.

    Rows are counted by the server's own statistics of this transaction, not by what was sent. With `sheets`
    the records go there, and not into `target`.

    Returns:
        What the ledger now holds; if the chunk was there already, what it held before, and nothing is done.

    Raises:
        TransientError: the outcome is unknown or another try may help; ask the ledger first.
        ChunkError: the target rejects the rows, or stored another number than was sent.
    """
    claimed = claim(session, entry)
    if isinstance(claimed, ChunkResult):
        return claimed
    pass_point("claim.after")
    batch = entry.batch
    renewal = _renewal(session, target, entry)
    if batch is not None:
        lock_records(session, batch)
        pass_point("records.locked")
    if sheets:
        placed = write_records(session, sheets)
    else:
        placed = write_chunk(session, target.destination(columns), staged.accepted)
    _refuse_if_all_alike(placed.invalid, len(staged.accepted))
    rejected = pl.concat([staged.rejected, staged.describe(_by_own_names(session, target, placed.invalid))])
    _send_rejected(session, rejected)
    if batch is not None:
        settle(session, batch, staged, rejected)
        pass_point("records.settled")
        _resolve_elsewhere(session, batch)
        quarantined = rejected.height
    else:
        quarantined = _write_quarantine(session, rejected, entry)
        tables = [sheet.destination.table for sheet in sheets] or [target.loaded]
        park(session, late_run(entry, tables), entry.chunk.number, staged.accepted, placed.invalid)
    pass_point("quarantine.written")
    _hash(session, target, entry, renewal)
    missing = len(batch.missing) if batch is not None else 0
    counts = replace(
        staged.counts,
        read=staged.counts.read + missing,
        filtered=staged.counts.filtered + missing,
        loaded=placed.inserted + placed.updated,
        updated=placed.updated,
        unchanged=placed.unchanged,
        duplicate=staged.counts.duplicate + placed.duplicate,
        quarantined=quarantined,
    )
    return _commit(session, counts, staged.warned, entry, placed.tables, lock_seconds=claimed)


def relay(session: CopySession, target: TargetTable, given: Relay, entry: LedgerEntry) -> ChunkResult | None:
    """Load one chunk as the CSV in which it stands, and its ledger row, in one transaction.

    Returns:
        As `load`; None when the target does not take all of it just so, and nothing is done.

    Raises:
        TransientError, StaleChunkError, StopRunError: as `load`.
    """
    claimed = claim(session, entry)
    if isinstance(claimed, ChunkResult):
        return claimed
    pass_point("claim.after")
    check_shape(session.execute, target.loaded, target.shape, given.columns)
    try:
        before = stored_rows(session, target.loaded)
        session.relay(target.loaded, given)
        placed = appended(session, target.loaded, before, given.records, pl.DataFrame(schema=INVALID))
        session.execute(sql.SQL("set constraints all immediate"))
    except TransientError:
        raise
    except ChunkError:
        session.roll_back()
        return None
    counts = Counts(read=given.records, loaded=placed.inserted)
    return _commit(session, counts, {}, entry, placed.tables, lock_seconds=claimed)


def late_run(entry: LedgerEntry, tables: Sequence[sql.Identifier]) -> LateRun:
    """Return what is known of the run of whose rows some may wait for a row of a later chunk."""
    return LateRun(
        run_id=entry.run_id,
        sitting=entry.sitting,
        ledger_schema=entry.ledger_schema,
        tables=tables,
        text_columns=entry.text_columns,
        hashing=entry.hashing,
    )


def _refuse_if_all_alike(invalid: pl.DataFrame, records: int) -> None:
    """Fail the chunk when no record of it loads, all for one error that need not be a row's.

    Raises:
        ChunkError: that error.
    """
    if not records or invalid.height < records:
        return
    states = invalid["message"].str.extract(r"SQLSTATE ([0-9A-Z]{5})").unique().to_list()
    if len(states) == 1 and states[0] is not None and whose(states[0]) in {"perhaps", "statement"}:
        msg = f"{invalid['message'][0]}, for each of its {plural(records, 'record')}. {HOPELESS}"
        raise ChunkError(msg)


def _by_own_names(session: Session, target: TargetTable, invalid: pl.DataFrame) -> pl.DataFrame:
    """Name the table and indexes that records broke as the target has them; `carry` calls the fresh ones otherwise."""
    if not target.fresh or not invalid.height:
        return invalid
    query = sql.SQL(
        "select format('%s_%s', {fresh}, left(md5(i.relname), 10)), i.relname::text"
        " from pg_index x join pg_class i on i.oid = x.indexrelid where x.indrelid = {table}::regclass"
    ).format(
        fresh=sql.Literal(target.fresh), table=sql.Literal(sql.Identifier(target.schema, target.table).as_string(None))
    )
    own = dict(session.execute(query))
    message = pl.col("message")
    if own:
        invalid = invalid.with_columns(
            pl.col("rules").list.eval(pl.element().replace(own)), message.str.replace_many(own)
        )
    return invalid.with_columns(message.str.replace_all(target.fresh, target.table, literal=True))


def _renewal(session: Session, target: TargetTable, entry: LedgerEntry) -> Renewal | None:
    """Hash what a replay's records will change, before anything is written."""
    if entry.hashing is None or entry.batch is None:
        return None
    place = Place(table=target.loaded, ledger_schema=entry.ledger_schema, run_id=entry.batch.run_id)
    return Renewal.of_records(session, place, entry.hashing, sorted(entry.batch.asked))


def _hash(session: Session, target: TargetTable, entry: LedgerEntry, renewal: Renewal | None) -> None:
    """Store the checksum of the chunk's part, or add to others what a replay has changed in theirs."""
    if entry.hashing is None:
        return
    if renewal is not None:
        renewal.store()
    else:
        place = Place(table=target.loaded, ledger_schema=entry.ledger_schema, run_id=entry.run_id)
        store(session, place, entry.hashing, entry.chunk)
    pass_point("checksum.written")


def _send_rejected(session: Session, rejected: pl.DataFrame) -> None:
    """Put the rejected records into a temporary table, which has those of this transaction alone.

    It is made once for a session: made for each chunk, it left 35 dead rows in the catalogs each time.
    """
    if not rejected.height:
        return
    session.execute(
        sql.SQL(
            "create temp table if not exists pg_temp._keyhaul_quarantine"
            " (record bigint, stage text, rules text[], message text, key text, data text) on commit delete rows"
        )
    )
    rejected = writable(rejected, str(session.execute(sql.SQL("select getdatabaseencoding()"))[0][0]))
    columns = rejected.select(pl.col(RECORD).alias("record"), "stage", "rules", "message", "key", "data").to_arrow(
        compat_level=pl.CompatLevel.oldest()
    )
    session.copy(sql.Identifier("pg_temp", "_keyhaul_quarantine"), columns, {})


def _resolve_elsewhere(session: Session, batch: Batch) -> None:
    """Resolve what other runs of the job have of the keys that the batch has resolved, in its transaction.

    The same row of the source answers them all: it is loaded once.
    """
    ids = {"run_id": batch.run_id, "replay_id": batch.replay_id, "keys": sorted(batch.asked)}
    session.execute(statement("resolve_elsewhere", batch.ledger_schema, **ids))


def _write_quarantine(session: Session, rejected: pl.DataFrame, entry: LedgerEntry) -> int:
    """Store the rejected records; return how many the chunk now has there, counted by SQL."""
    ids: dict[str, object] = {"run_id": entry.run_id, "chunk": entry.chunk.number}
    if rejected.height:
        session.execute(statement("insert_quarantine", entry.ledger_schema, **ids))
    query = statement("count_quarantine", entry.ledger_schema, **ids)
    return int(session.execute(query)[0][0])


def _commit(
    session: Session,
    counts: Counts,
    warned: Mapping[str, int],
    entry: LedgerEntry,
    tables: Sequence[TableCounts],
    *,
    lock_seconds: float,
) -> ChunkResult:
    """Write the chunk's ledger row, and commit it with all that the transaction has done."""
    result = _record(session, counts, warned, entry, tables, lock_seconds=lock_seconds)
    pass_point("ledger.written")
    pass_point("commit.before")
    session.commit()
    pass_point("commit.after")
    return result


def _record(
    session: Session,
    counts: Counts,
    warned: Mapping[str, int],
    entry: LedgerEntry,
    tables: Sequence[TableCounts],
    *,
    lock_seconds: float,
) -> ChunkResult:
    timings = replace(entry.timings, wait_seconds=entry.timings.wait_seconds + lock_seconds)
    elapsed = timings.read_seconds + timings.transform_seconds + timings.stage_seconds
    if entry.cuts > 1:
        _merge(session, entry)
    rows = session.execute(
        statement(
            "chunk_done",
            entry.ledger_schema,
            run_id=entry.run_id,
            chunk=entry.chunk.number,
            attempts=entry.attempts,
            counted=assigned(counts),
            warned=json.dumps(dict(warned)),
            tables=json.dumps([asdict(table) for table in tables]),
            read_seconds=timings.read_seconds,
            transform_seconds=timings.transform_seconds,
            stage_seconds=timings.stage_seconds,
            wait_seconds=timings.wait_seconds,
            lock_seconds=lock_seconds,
            bytes_read=entry.bytes_read,
            place=entry.place,
            worker=entry.worker,
            sitting=entry.sitting,
            elapsed_seconds=elapsed,
        )
    )
    if not rows:
        msg = f"record chunk {entry.chunk.number}: its ledger row is gone or done already"
        raise ChunkError(msg)
    return ChunkResult(
        chunk=entry.chunk.number,
        counts=counts,
        timings=replace(timings, load_seconds=float(rows[0][0])),
        attempts=entry.attempts,
        bytes_read=entry.bytes_read,
    )


def _merge(session: Session, entry: LedgerEntry) -> None:
    """Give the first cut's ledger row the whole range, and take the others away."""
    first, last = entry.chunk.number, entry.chunk.last
    query = statement("merge_chunks", entry.ledger_schema, run_id=entry.run_id, chunk=first, last=last)
    if session.execute(query) != [(entry.cuts,)]:
        msg = f"record chunk {first}: the ledger rows of its {entry.cuts} cuts are gone or done already"
        raise ChunkError(msg)
