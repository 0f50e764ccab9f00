"""Rows that wait for a row of a later chunk: a chunk puts them down; when all are loaded, they are loaded together.

A row may come before the one that it refers to in a table of the run. What the target refused for that is in the
quarantine as any other record, so that nothing is lost whatever happens, and its rows lie in the ledger's table
``late`` beside it, bit for bit, until the run is over.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import polars as pl
from psycopg import sql

from keyhaul.errors import RejectedError, StopRunError, TransientError
from keyhaul.faults import pass_point
from keyhaul.ledger.rows import chunk_of, lost
from keyhaul.ledger.statements import statement
from keyhaul.model import RECORD
from keyhaul.targets.constraints import as_stored, drop_lost, references_within
from keyhaul.targets.isolate import write_chunk
from keyhaul.targets.records import leave_out, lost_records, write_records
from keyhaul.targets.rowhash import Place, Renewal
from keyhaul.targets.rows import appended, fill_temporary, stored_rows
from keyhaul.targets.session import attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyhaul.model import Chunk
    from keyhaul.targets.postgres import TargetTable
    from keyhaul.targets.rowhash import Hashing
    from keyhaul.targets.rows import Destination, Placed
    from keyhaul.targets.session import CopySession, Session
    from keyhaul.targets.sheets import Sheet
    from keyhaul.transform.mapping import WriteColumn

    Columns = Callable[[frozenset[str]], Sequence[WriteColumn]]
    Spread = Callable[[pl.DataFrame, frozenset[str]], Sequence[Sheet]]

PIECE_BYTES: Final = 8_000_000
"""So much of the rows that wait is put down as one value, and taken into memory at a time."""

LATE: Final = sql.Identifier("pg_temp", "_keyhaul_late")
"""All rows that wait, in the target's types; `RECORD` is the record times the number of chunks, plus the chunk.

Not the chunk in the upper half and the record in the lower: PostgreSQL hashes a bigint by both halves folded into one,
so that records of many chunks had the same hash (200,000 rows took minutes).
"""


def park(session: Session, entry: LateRun, chunk: int, accepted: pl.DataFrame, invalid: pl.DataFrame) -> None:
    """Put down those of a chunk's records that the target refused for a reference to a row which this run may bring.

    Args:
        session: in the chunk's transaction.
        entry: of the run.
        chunk: its number.
        accepted: the chunk's records, before they become rows of several tables.
        invalid: what the target refused.
    """
    if not invalid["message"].str.contains("SQLSTATE 23503", literal=True).any():
        return
    names = references_within(session, entry.tables)
    waits = invalid.filter(
        (pl.col("stage") == "load") & pl.col("rules").list.eval(pl.element().is_in(names)).list.any()
    )
    frame = accepted.filter(pl.col(RECORD).is_in(waits[RECORD].implode()))
    if not frame.height:
        return
    rows = max(int(frame.height * PIECE_BYTES / max(frame.estimated_size(), 1)), 1)
    pieces = [_written(part) for part in frame.iter_slices(rows)]
    data = pl.DataFrame(
        {
            "run_id": [entry.run_id] * len(pieces),
            "chunk": pl.Series([chunk] * len(pieces), dtype=pl.Int32),
            "piece": pl.Series(range(len(pieces)), dtype=pl.Int32),
            "text_columns": pl.Series([sorted(entry.text_columns)] * len(pieces), dtype=pl.List(pl.String)),
            "data": pl.Series(pieces, dtype=pl.Binary),
        }
    )
    session.copy(sql.Identifier(entry.ledger_schema, "late"), data.to_arrow(compat_level=pl.CompatLevel.oldest()), {})
    pass_point("late.parked")


def _written(frame: pl.DataFrame) -> bytes:
    file = io.BytesIO()
    frame.write_ipc(file, compression="lz4", compat_level=pl.CompatLevel.newest())
    return file.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class LateRun:
    """Of which run rows wait, and where they belong.

    Attributes:
        tables: all that the run loads.
        text_columns: source columns that travel as text in the chunk at hand.
        hashing: how the parts of its chunks are hashed; None without checksums.
    """

    run_id: str
    sitting: int
    ledger_schema: str
    tables: Sequence[sql.Identifier]
    text_columns: frozenset[str] = frozenset()
    hashing: Hashing | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some rows of a chunk that wait; they are in memory only while they are looked at."""

    chunk: Chunk
    number: int
    text_columns: frozenset[str]


class Late:
    """What waits of one run. Each call of `together` and `alone` is a transaction, which also moves the balance."""

    def __init__(
        self, session: CopySession, run: LateRun, target: TargetTable, columns: Columns, spread: Spread | None
    ) -> None:
        """Take what loads rows.

        Args:
            session: in the target, one that recovers from errors.
            run: whose rows wait.
            target: its table.
            columns: how rows are written of which some columns travel as text.
            spread: makes them rows of several tables; None for a job with one.
        """
        self._session = session
        self._run = run
        self._target = target
        self._columns = columns
        self._spread = spread
        self._names = references_within(session, run.tables)
        session.roll_back()

    def pieces(self) -> list[Piece]:
        """Return the pieces that have a record which still waits, in the order of their chunks."""
        found = self._execute("late_pieces", names=self._names)
        self._session.roll_back()
        return [Piece(chunk=chunk_of(row[:5]), number=row[5], text_columns=frozenset(row[6])) for row in found]

    def together(self, pieces: Sequence[Piece]) -> int:
        """Load in one statement all that lead to a row which is there or among them; returns how many.

        So circles are loaded as well, and however long a chain of references is, it takes one pass. Rows whose conflict
        columns are there already, or those of a later row, are left for `alone`.

        Raises:
            RejectedError: one of them is refused for another reason; nothing is loaded.
        """
        self._hold()
        # All that waits is one statement, which no limit for a chunk is meant for.
        self._session.execute(sql.SQL("set local statement_timeout = 0"))
        chunks = max(piece.chunk.number for piece in pieces) + 1
        for number, piece in enumerate(pieces):
            self._gather(piece, chunks, create=not number)
        self._session.execute(sql.SQL("analyze {}").format(LATE))
        where = self._destination(pieces[0])
        drop_lost(self._session, where, LATE)
        if where.mode != "append":
            self._leave_conflicts(where)
        renewal = self._renewal([piece.chunk for piece in pieces])
        rows, waiting = self._execute("late_together", chunks=chunks)[0]
        if rows != waiting:
            raise TransientError("load late rows: some were resolved meanwhile")
        placed = attempt(self._session, lambda: self._insert(where, rows)) if rows else None
        if isinstance(placed, RejectedError):
            self._session.roll_back()
            raise placed
        self._end(renewal)
        return int(rows)

    def alone(self, piece: Piece, *, first: bool) -> tuple[int, int]:
        """Load what the target takes now of one piece; what it refuses for another reason does not wait any more.

        Args:
            piece: to be tried.
            first: whether nothing was loaded before in this pass.

        Returns:
            How many records were loaded, and how many are refused for another reason.
        """
        self._hold()
        at = {"chunk": piece.chunk.number}
        waiting = [row[0] for row in self._execute("late_records", names=self._names, **at)]
        frame = self._frame(piece)
        frame = frame.filter(pl.col(RECORD).is_in(waiting))
        sheets = [] if self._spread is None else self._spread(frame, piece.text_columns)
        if sheets:  # nearly all of these are refused still; tried singly, each would cost a COPY
            out = lost_records(self._session, sheets, frame[RECORD])
            frame, sheets = frame.filter(~pl.col(RECORD).is_in(out.implode())), leave_out(sheets, out)
        if not frame.height:
            self._session.roll_back()
            return 0, 0
        renewal = self._renewal([piece.chunk])
        placed = (
            write_chunk(self._session, self._destination(piece), frame)
            if self._spread is None
            else write_records(self._session, sheets)
        )
        own = pl.col("rules").list.eval(pl.element().is_in(self._names)).list.any()
        others = placed.invalid.filter(~((pl.col("stage") == "load") & own))
        loaded = frame.filter(~pl.col(RECORD).is_in(placed.invalid[RECORD].implode()))[RECORD].to_list()
        if not loaded and not others.height:
            self._session.roll_back()
            return 0, 0
        if others.height:
            self._execute("late_refused", refused=json.dumps(others.rename({RECORD: "record"}).to_dicts()), **at)
        if loaded:
            self._take_out(piece, placed, loaded, first=first)
        self._end(renewal)
        return len(loaded), others.height

    def over(self) -> None:
        """Throw away what was put down; what is left of it is in the quarantine."""
        self._hold()
        self._execute("late_over")
        self._session.commit()

    # --- steps -----------------------------------------------------------------------------------

    def _execute(self, name: str, **values: object) -> list[tuple[Any, ...]]:
        return self._session.execute(statement(name, self._run.ledger_schema, run_id=self._run.run_id, **values))

    def _hold(self) -> None:
        """Hold the run until the end of the transaction, if it is still this sitting's."""
        if not self._execute("hold_run", sitting=self._run.sitting):
            raise StopRunError(lost(self._run.run_id))

    def _frame(self, piece: Piece) -> pl.DataFrame:
        data = self._execute("late_data", chunk=piece.chunk.number, piece=piece.number)
        return pl.read_ipc(io.BytesIO(data[0][0]))

    def _destination(self, piece: Piece) -> Destination:
        return self._target.destination(self._columns(piece.text_columns))

    def _gather(self, piece: Piece, chunks: int, *, create: bool) -> None:
        """Put the rows of a piece that still wait into the temporary table of all."""
        destination = self._destination(piece)
        fill_temporary(self._session, destination.columns, self._frame(piece), numbered=True)
        names = [sql.Identifier(column.name) for column in destination.columns]
        record = sql.SQL("{} * {}::bigint + {}").format(
            sql.Identifier(RECORD), sql.Literal(chunks), sql.Literal(piece.chunk.number)
        )
        query = sql.SQL("select {} as {}, {} from {} as t").format(
            record, sql.Identifier(RECORD), sql.SQL(", ").join(names), as_stored(self._session, destination)
        )
        if create:
            made = sql.SQL("create temp table _keyhaul_late on commit drop as {} with no data")
            self._session.execute(made.format(query))
        open_records = statement(
            "late_records",
            self._run.ledger_schema,
            run_id=self._run.run_id,
            chunk=piece.chunk.number,
            names=self._names,
        )
        whole = sql.SQL("with waiting as materialized ({}) insert into {} {} where {} in (select record from waiting)")
        self._session.execute(whole.format(open_records, LATE, query, sql.Identifier(RECORD)))

    def _leave_conflicts(self, destination: Destination) -> None:
        """Take out what is there already by the conflict columns, and of several that are not all but the newest."""
        record, table = sql.Identifier(RECORD), destination.table
        keys = [sql.Identifier(name) for name in destination.conflict]
        same = sql.SQL(" and ").join(sql.SQL("t.{0} = w.{0}").format(key) for key in keys)
        self._session.execute(sql.SQL("delete from {} as w using {} as t where {}").format(LATE, table, same))
        order = [sql.SQL("{} desc").format(record)]
        if destination.newer_by:
            order.insert(0, sql.SQL("{} desc nulls last").format(sql.Identifier(destination.newer_by)))
        ranked = sql.SQL(
            "delete from {late} where {record} in (select {record} from (select {record}, row_number() over"
            " (partition by {keys} order by {order}) as n from {late} where {present}) as r where n > 1)"
        ).format(
            late=LATE,
            record=record,
            keys=sql.SQL(", ").join(keys),
            order=sql.SQL(", ").join(order),
            present=sql.SQL(" and ").join(sql.SQL("{} is not null").format(key) for key in keys),
        )
        self._session.execute(ranked)

    def _insert(self, destination: Destination, rows: int) -> None:
        names = sql.SQL(", ").join(sql.Identifier(column.name) for column in destination.columns)
        before = stored_rows(self._session, destination.table)
        insert = sql.SQL("insert into {} ({names}) overriding system value select {names} from {} order by {}")
        self._session.execute(insert.format(destination.table, LATE, sql.Identifier(RECORD), names=names))
        appended(self._session, destination.table, before, rows, pl.DataFrame())

    def _take_out(self, piece: Piece, placed: Placed, loaded: list[int], *, first: bool) -> None:
        """Take loaded records out of the quarantine, and move them in the balance of their chunk."""
        (moved,) = self._execute(
            "late_alone",
            chunk=piece.chunk.number,
            records=loaded,
            first=int(first),
            loaded=placed.inserted + placed.updated,
            updated=placed.updated,
            unchanged=placed.unchanged,
            duplicate=placed.duplicate,
            tables=json.dumps([asdict(table) for table in placed.tables]),
        )
        if moved[0] != len(loaded):
            raise TransientError("load late rows: some were resolved meanwhile")

    def _renewal(self, chunks: Sequence[Chunk]) -> Renewal | None:
        """Hash the parts to which rows will come."""
        if self._run.hashing is None:
            return None
        place = Place(table=self._run.tables[0], ledger_schema=self._run.ledger_schema, run_id=self._run.run_id)
        whole = {chunk.number: chunk for chunk in chunks}
        return Renewal(self._session, place, self._run.hashing, list(whole.values()))

    def _end(self, renewal: Renewal | None) -> None:
        if renewal is not None:
            renewal.store()
        pass_point("late.written")
        self._session.commit()
        pass_point("late.committed")
