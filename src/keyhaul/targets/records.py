"""Records whose rows go into several tables: each record whole or not at all, inside the chunk's transaction.

When a table rejects rows, the records are halved inside savepoints, over all tables, until the guilty ones
stand alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import polars as pl
from psycopg import sql

from keyhaul.errors import RejectedError
from keyhaul.halving import halve
from keyhaul.model import RECORD, TableCounts
from keyhaul.targets.constraints import lost_references, references_within, surely_refused
from keyhaul.targets.rows import INVALID, Placed, fill_temporary, invalid_texts
from keyhaul.targets.session import attempt
from keyhaul.targets.shape import check_shape
from keyhaul.targets.sheets import append_rows, ask_parent, merge_rows, with_given
from keyhaul.targets.singly import verdicts
from keyhaul.transform.mapping import split

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from keyhaul.targets.session import Session
    from keyhaul.targets.sheets import Sheet

FAILED_TRIES: Final = 48
"""Failed tries after which the constraints are asked as sets: some records of a chunk are found by halving before."""


class _MisfitError(RejectedError):
    """Values that a table would get from another do not fit its columns.

    Attributes:
        records: the rejected ones (`INVALID`).
    """

    def __init__(self, records: pl.DataFrame) -> None:
        super().__init__("load chunk: values of a parent's row do not fit", sqlstate="", constraint="", column="")
        self.records = records


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    counts: list[TableCounts]
    stored: set[int]


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
        StopRunError: a table is not the one any more that the run began with.
    """
    for where in (sheet.destination for sheet in sheets):
        check_shape(session.execute, where.table, where.shape, [column.name for column in where.columns])
    everyone = _records(sheets)
    sheets, rejected = _without_invalid(session, sheets)
    sheets = [_allocate(session, sheet) for sheet in sheets]
    search = _Search(session, sheets, rejected)
    search.load(_records(sheets))
    search.try_orphans()
    invalid = search.rejected
    return Placed(
        inserted=len(search.stored),
        unchanged=everyone.len() - invalid.height - len(search.stored),
        invalid=invalid,
        tables=tuple(search.counts),
    )


def lost_records(session: Session, sheets: Sequence[Sheet], records: pl.Series) -> pl.Series:
    """Return those of the records that lead to a row of their own table which is neither there nor among them.

    Asked in sets, where the answer is certain: of each table that is appended to.
    """
    found: set[int] = set()
    for sheet in sheets:
        destination, frame = sheet.destination, _keep(sheet, records)
        if destination.mode == "append" and frame.height:
            known = tuple(column for column in destination.columns if column.name in frame.columns)
            found |= lost_references(session, replace(destination, columns=known), frame)
    return pl.Series(RECORD, sorted(found), dtype=pl.Int64)


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
    return leave_out(sheets, rejected[RECORD]), rejected


def leave_out(sheets: Sequence[Sheet], records: pl.Series) -> list[Sheet]:
    """Return the rows of all other records."""
    out = records.implode()
    return [replace(sheet, frame=sheet.frame.filter(~pl.col(RECORD).is_in(out))) for sheet in sheets]


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


class _Search:
    """What was stored, and what was rejected."""

    def __init__(self, session: Session, sheets: Sequence[Sheet], rejected: pl.DataFrame) -> None:
        self._session = session
        self._sheets = sheets
        self.rejected = rejected
        self.stored: set[int] = set()
        self.counts = [TableCounts(table=sheet.label) for sheet in sheets]

    def load(self, records: pl.Series) -> None:
        """Load the records that all tables take, the earlier ones first."""
        if records.len():
            halve(records.to_frame(RECORD), self._try, self._fail, {FAILED_TRIES + 1: self._ask_sets})

    def _reject(self, found: pl.DataFrame) -> None:
        self.rejected = merge_rejected([self.rejected, found])

    def _fail(self, part: pl.DataFrame, error: RejectedError) -> None:
        self._reject(verdicts([(part[RECORD][0], error)]))

    def _try(self, part: pl.DataFrame) -> RejectedError | None:
        """Write some records, without those that were rejected meanwhile; return the error that speaks of others."""
        while True:
            records = part[RECORD].filter(~part[RECORD].is_in(self.rejected[RECORD].implode()))
            if not records.len():
                return None
            written = attempt(self._session, partial(_write, self._session, self._sheets, records))
            if isinstance(written, _Written):
                self.stored |= written.stored
                self.counts = [one + more for one, more in zip(self.counts, written.counts, strict=True)]
                return None
            if not isinstance(written, _MisfitError):
                return written
            self._reject(written.records)

    def _ask_sets(self, left: pl.DataFrame) -> pl.DataFrame | None:
        """Ask the foreign keys and checks of the tables that are appended to, where the answer is certain.

        Not the unique indexes, nor the other modes: which of several rows is written is only known by writing.
        """
        tables = [sheet.destination.table for sheet in self._sheets]
        found = []
        for sheet in self._sheets:
            destination, frame = sheet.destination, _keep(sheet, left[RECORD])
            if destination.mode == "append" and frame.height:
                known = tuple(c for c in destination.columns if c.name in frame.columns)
                found.append(surely_refused(self._session, replace(destination, columns=known), frame, tables))
        guilty = merge_rejected(found)
        self._reject(guilty)
        return left.filter(~pl.col(RECORD).is_in(guilty[RECORD].implode())) if guilty.height else None

    def try_orphans(self) -> None:
        """Try records again that lacked a reference to a table of the job, as long as others are loaded meanwhile.

        A record may have waited for another of its chunk, which a later half brought.
        """
        if not self.rejected["message"].str.contains("SQLSTATE 23503", literal=True).any():
            return
        names = references_within(self._session, [sheet.destination.table for sheet in self._sheets])
        while True:
            lacked = pl.col("rules").list.eval(pl.element().is_in(names)).list.any()
            orphans = self.rejected.filter((pl.col("stage") == "load") & lacked)
            lost = lost_records(self._session, self._sheets, orphans[RECORD])
            waiting = orphans[RECORD].filter(~orphans[RECORD].is_in(lost.implode())).sort()
            self.rejected = self.rejected.filter(~pl.col(RECORD).is_in(waiting.implode()))
            before = len(self.stored)
            self.load(waiting)
            if len(self.stored) == before:
                return


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
            raise _MisfitError(merge_rejected([misfits.with_columns(message, pl.lit("type").alias("stage"))]))
        if not frame.height:
            counts.append(TableCounts(table=sheet.label))
            parents.append(frame.with_columns(pl.lit(None, pl.String).alias(name) for name in sheet.asked))
            continue
        place = append_rows if sheet.destination.mode == "append" else merge_rows
        count, rows = place(session, sheet, frame)
        counts.append(count)
        stored |= rows
        parents.append(ask_parent(session, sheet, frame) if sheet.asked else frame)
    return _Written(counts=counts, stored=stored)
