"""Records whose rows go into several tables: each record whole or not at all, inside the chunk's transaction.

When a table rejects rows, the records are halved inside savepoints, over all tables, until the guilty ones
stand alone; see `isolate`, which does the same for one table.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import polars as pl
from psycopg import sql

from keyhaul.errors import RejectedError
from keyhaul.model import RECORD, TableCounts
from keyhaul.targets.constraints import surely_refused
from keyhaul.targets.rows import INVALID, Placed, fill_temporary, invalid_texts
from keyhaul.targets.sheets import append_rows, ask_parent, merge_rows, with_given
from keyhaul.targets.singly import verdicts
from keyhaul.transform.mapping import split

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from keyhaul.targets.session import Session
    from keyhaul.targets.sheets import Sheet

FAILED_TRIES: Final = 48
"""Failed tries after which the constraints are asked as sets: some records of a chunk are found by halving before."""

_WITHIN: Final = (
    "select conname::text from pg_constraint where contype = 'f' and conrelid = any({tables}::regclass[])"
    " and confrelid = any({tables}::regclass[])"
)


@dataclass(slots=True)
class _Search:
    """What is left to try, what was stored, and what was rejected."""

    pending: list[pl.Series]
    counts: list[TableCounts]
    rejected: list[pl.DataFrame] = field(default_factory=list)
    stored: set[int] = field(default_factory=set)
    failed: int = 0
    asked_sets: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    counts: list[TableCounts]
    stored: set[int]
    misfits: pl.DataFrame


def write_records(session: Session, sheets: Sequence[Sheet]) -> Placed:
    """Write the rows of a chunk's records, parents first; a record that any table rejects is in none of them.

    Args:
        session: in a transaction that has locked the chunk's ledger row; one that recovers from errors.
        sheets: in the order of the writes.

    Returns:
        Numbers of records: ``inserted`` are those of which at least one row was stored, as the target says,
        ``unchanged`` those that had rows and none to be stored. Rows are in ``tables``; the rejected records
        in ``invalid``, each once.

    Raises:
        ChunkError: an error that is not about the rows, or a trigger that drops or adds rows.
    """
    everyone = _records(sheets)
    sheets, rejected = _without_invalid(session, sheets)
    sheets = [_allocate(session, sheet) for sheet in sheets]
    search = _Search(
        pending=[_records(sheets)], counts=[TableCounts(table=s.label) for s in sheets], rejected=[rejected]
    )
    _halve(session, sheets, search)
    _try_orphans(session, sheets, search)
    invalid = merge_rejected(search.rejected)
    return Placed(
        inserted=len(search.stored),
        unchanged=everyone.len() - invalid.height - len(search.stored),
        invalid=invalid,
        tables=tuple(search.counts),
    )


def merge_rejected(parts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Return rejected records (`INVALID`), each once, with all their rules and messages and the first stage."""
    whole = pl.concat([pl.DataFrame(schema=INVALID), *(part.select(INVALID.names()) for part in parts)])
    return (
        whole.group_by(RECORD, maintain_order=True)
        .agg(
            pl.col("stage").first(),
            pl.col("rules").list.explode(keep_nulls=False, empty_as_null=False).unique(maintain_order=True),
            pl.col("message").unique(maintain_order=True).str.join("; "),
        )
        .cast(INVALID)
        .select(INVALID.names())
    )


def _records(sheets: Iterable[Sheet]) -> pl.Series:
    return pl.concat([sheet.frame[RECORD] for sheet in sheets]).unique().sort()


def _keep(sheet: Sheet, records: pl.Series) -> pl.DataFrame:
    return sheet.frame.filter(pl.col(RECORD).is_in(records.implode()))


# --- before the first write --------------------------------------------------------------------------


def _without_invalid(session: Session, sheets: Sequence[Sheet]) -> tuple[list[Sheet], pl.DataFrame]:
    """Ask the target which texts its types do not take, and leave out their records in all tables."""
    found = []
    for sheet in sheets:
        doubtful = [c for c in sheet.destination.columns if c.may_fail and c.name in sheet.frame.columns]
        if not doubtful or not sheet.frame.height:
            continue
        rows = sheet.frame.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias(RECORD))
        fill_temporary(session, doubtful, rows, numbered=True)
        bad = invalid_texts(session, doubtful)
        records = sheet.frame[RECORD].gather(bad[RECORD])
        found.append(bad.with_columns(records.alias(RECORD), pl.format(f"{sheet.label}: {{}}", "message")))
    rejected = merge_rejected(found)
    if not rejected.height:
        return list(sheets), rejected
    out = rejected[RECORD].implode()
    return [replace(s, frame=s.frame.filter(~pl.col(RECORD).is_in(out))) for s in sheets], rejected


def _allocate(session: Session, sheet: Sheet) -> Sheet:
    """Take the values of identity and serial columns from their sequences, so that the children know them."""
    frame = sheet.frame
    for name in sheet.allocated:
        query = sql.SQL(
            "select nextval(s) from (select pg_get_serial_sequence({table}, {column})::regclass as s) as own,"
            " generate_series(1, {rows})"
        ).format(
            table=sql.Literal(sheet.destination.table.as_string(None)),
            column=sql.Literal(name),
            rows=sql.Literal(frame.height),
        )
        values = [row[0] for row in session.execute(query)] if frame.height else []
        frame = frame.with_columns(pl.Series(name, values, dtype=pl.Int64))
    return replace(sheet, frame=frame)


# --- isolation ---------------------------------------------------------------------------------------


def _halve(session: Session, sheets: Sequence[Sheet], search: _Search) -> None:
    while search.pending:
        part = search.pending.pop()
        if not part.len():
            continue
        outcome = _try(session, sheets, part, search)
        if outcome is None:
            continue
        if isinstance(outcome, pl.DataFrame):
            search.rejected.append(outcome)
            search.pending.append(part.filter(~part.is_in(outcome[RECORD].implode())))
            continue
        if part.len() == 1:
            search.rejected.append(verdicts([(part[0], outcome)]))
            continue
        search.failed += 1
        if search.failed > FAILED_TRIES and not search.asked_sets:
            search.asked_sets = True
            left = pl.concat([part, *reversed(search.pending)])
            guilty = _ask_sets(session, sheets, left)
            if guilty.height:
                search.rejected.append(guilty)
                search.pending = [left.filter(~left.is_in(guilty[RECORD].implode()))]
                continue
        middle = part.len() // 2
        search.pending += [part[middle:], part[:middle]]


def _try(
    session: Session, sheets: Sequence[Sheet], records: pl.Series, search: _Search
) -> RejectedError | pl.DataFrame | None:
    """Write some records inside a savepoint; return the error, or the misfits, for which it was taken back."""
    session.execute(sql.SQL("savepoint keyhaul_part"))
    try:
        written = _write(session, sheets, records)
        if not written.misfits.height:
            # Deferred constraints are asked now: at COMMIT it would be too late to find the guilty record.
            session.execute(sql.SQL("set constraints all immediate"))
            session.execute(sql.SQL("release savepoint keyhaul_part"))
            search.stored |= written.stored
            search.counts = [one + more for one, more in zip(search.counts, written.counts, strict=True)]
            return None
        outcome: RejectedError | pl.DataFrame = written.misfits
    except RejectedError as error:
        outcome = error
    session.execute(sql.SQL("rollback to savepoint keyhaul_part"))
    session.execute(sql.SQL("release savepoint keyhaul_part"))
    return outcome


def _try_orphans(session: Session, sheets: Sequence[Sheet], search: _Search) -> None:
    """Try records again that lacked a reference to a table of the job, as long as others are loaded meanwhile.

    A record may have waited for another of its chunk, which a later half brought.
    """
    waiting = merge_rejected(search.rejected)
    if not waiting["message"].str.contains("SQLSTATE 23503", literal=True).any():
        return
    tables = sql.Literal([sheet.destination.table.as_string(None) for sheet in sheets])
    names = [row[0] for row in session.execute(sql.SQL(_WITHIN).format(tables=tables))]
    while True:
        waiting = merge_rejected(search.rejected)
        orphans = waiting.filter(
            (pl.col("stage") == "load") & pl.col("rules").list.eval(pl.element().is_in(names)).list.any()
        )
        if not orphans.height:
            return
        search.rejected = [waiting.filter(~pl.col(RECORD).is_in(orphans[RECORD].implode()))]
        search.pending = [orphans[RECORD].sort()]
        before = len(search.stored)
        _halve(session, sheets, search)
        if len(search.stored) == before:
            return


def _ask_sets(session: Session, sheets: Sequence[Sheet], records: pl.Series) -> pl.DataFrame:
    """Ask the foreign keys and checks of the tables that are appended to, where the answer is certain.

    Not the unique indexes, nor the other modes: which of several rows is written is only known by writing.
    """
    tables = [sheet.destination.table for sheet in sheets]
    found = []
    for sheet in sheets:
        destination, frame = sheet.destination, _keep(sheet, records)
        if destination.mode == "append" and frame.height:
            known = tuple(c for c in destination.columns if c.name in frame.columns)
            found.append(surely_refused(session, replace(destination, columns=known), frame, tables))
    return merge_rejected(found)


# --- one write ---------------------------------------------------------------------------------------


def _write(session: Session, sheets: Sequence[Sheet], records: pl.Series) -> _Written:
    """Write the rows of some records into all tables; stops at the first table whose given values do not fit."""
    counts: list[TableCounts] = []
    stored: set[int] = set()
    parents: list[pl.DataFrame] = []
    for sheet in sheets:
        frame = with_given(_keep(sheet, records), sheet.given, parents)
        frame, misfits = split(frame, [one.column for one in sheet.given])
        if misfits.height:
            message = pl.format(f"{sheet.label}: {{}}", "message")
            whole = misfits.with_columns(message, pl.lit("type").alias("stage"))
            return _Written(counts=[], stored=set(), misfits=merge_rejected([whole]))
        if not frame.height:
            counts.append(TableCounts(table=sheet.label))
            parents.append(frame.with_columns(pl.lit(None, pl.String).alias(name) for name in sheet.asked))
            continue
        place = append_rows if sheet.destination.mode == "append" else merge_rows
        count, rows = place(session, sheet, frame)
        counts.append(count)
        stored |= rows
        parents.append(ask_parent(session, sheet, frame) if sheet.asked else frame)
    return _Written(counts=counts, stored=stored, misfits=pl.DataFrame(schema=INVALID))
