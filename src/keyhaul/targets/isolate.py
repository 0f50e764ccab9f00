"""Which records of a chunk does the target reject? Halves inside savepoints until they stand alone.

With g guilty records among n this costs at most about 2·g·log2(n) further COPYs, most of them short,
because a COPY ends at the first guilty row. When many fail, the constraints are asked as sets first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import polars as pl
from psycopg import sql

from keyhaul.errors import ChunkError, RejectedError
from keyhaul.faults import pass_point
from keyhaul.model import RECORD
from keyhaul.targets.rows import CHUNK, INVALID, Placed, cast_column, fill_temporary, write_rows

if TYPE_CHECKING:
    from collections.abc import Collection

    from keyhaul.targets.rows import Destination
    from keyhaul.targets.session import Session

FAILED_COPIES_BEFORE_SETS: Final = 48
"""Failed COPYs after which the constraints are asked as sets: three records of 50,000 are found by halving
before (3·log2(50,000) = 47); 5,000 of 50,000 would cost 40,000 COPYs of 0.3 ms each."""

_CONSTRAINTS: Final = """
select c.conname, c.contype::text, pg_get_expr(c.conbin, c.conrelid),
       (select array_agg(a.attname::text order by k.n) from unnest(c.conkey) with ordinality k(num, n)
          join pg_attribute a on a.attrelid = c.conrelid and a.attnum = k.num),
       (select array_agg(a.attname::text order by k.n) from unnest(c.confkey) with ordinality k(num, n)
          join pg_attribute a on a.attrelid = c.confrelid and a.attnum = k.num),
       (select format('%I.%I', n.nspname, f.relname) from pg_class f join pg_namespace n on n.oid = f.relnamespace
         where f.oid = c.confrelid)
  from pg_constraint c
 where c.conrelid = {table}::regclass and c.contype in ('f', 'c')
union all
select i.relname, 'u', null,
       (select array_agg(a.attname::text order by k.n) from unnest(x.indkey::int2[]) with ordinality k(num, n)
          join pg_attribute a on a.attrelid = x.indrelid and a.attnum = k.num where k.n <= x.indnkeyatts), null, null
  from pg_index x join pg_class i on i.oid = x.indexrelid
 where x.indrelid = {table}::regclass and x.indisunique and x.indpred is null and x.indexprs is null
"""

_STATES: Final = {"f": "23503", "u": "23505", "c": "23514"}
_WORDS: Final = {
    "f": "violates foreign key constraint",
    "u": "violates unique constraint",
    "c": "violates check constraint",
}


@dataclass(slots=True)
class _Search:
    """The state of one search: what is left to try, what was stored, and what was rejected."""

    pending: list[pl.DataFrame]
    rejected: list[pl.DataFrame]
    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    duplicate: int = 0
    failed_copies: int = 0
    asked_sets: bool = False


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
    while search.rejected:
        # A record may have waited for another of its chunk (a reference within the table): as long as
        # rows were loaded meanwhile, those that lacked a reference get another try.
        waiting = pl.concat(search.rejected)
        orphans = waiting.filter(pl.col("message").str.contains("SQLSTATE 23503", literal=True))
        if not orphans.height or not _refers_to_itself(session, destination.table):
            break
        rest = waiting.filter(~pl.col(RECORD).is_in(orphans[RECORD].implode()))
        search.pending, search.rejected = [frame.filter(pl.col(RECORD).is_in(orphans[RECORD].implode()))], [rest]
        before = search.inserted + search.updated
        _halve(session, destination, search)
        if search.inserted + search.updated == before:
            break
    return search


def _halve(session: Session, destination: Destination, search: _Search) -> None:
    while search.pending:
        part = search.pending.pop()
        error = _try(session, destination, part, search)
        if error is None:
            continue
        if part.height == 1:
            search.rejected.append(verdict(part[RECORD][0], error))
            continue
        search.failed_copies += 1
        if search.failed_copies > FAILED_COPIES_BEFORE_SETS and not search.asked_sets:
            search.asked_sets = True
            left = pl.concat([part, *reversed(search.pending)])
            guilty = ask_sets(session, destination, left)
            if guilty.height:
                search.rejected.append(guilty)
                innocent = left.filter(~pl.col(RECORD).is_in(guilty[RECORD].implode()))
                search.pending = [innocent] if innocent.height else []
                continue
        middle = part.height // 2
        search.pending += [part[middle:], part[:middle]]


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


def verdict(record: int, error: RejectedError) -> pl.DataFrame:
    """Return a record that the target rejects, with the constraint, column or SQLSTATE as its rule."""
    rule = error.constraint or (f"not_null:{error.column}" if error.column else f"sqlstate:{error.sqlstate}")
    return pl.DataFrame([(record, "load", [rule], str(error))], schema=INVALID, orient="row")


def _refers_to_itself(session: Session, table: sql.Identifier) -> bool:
    query = sql.SQL(
        "select exists (select from pg_constraint"
        " where contype = 'f' and conrelid = confrelid and conrelid = {}::regclass)"
    )
    return bool(session.execute(query.format(sql.Literal(table.as_string(None))))[0][0])


# --- the constraints as sets -------------------------------------------------------------------------


def ask_sets(
    session: Session,
    destination: Destination,
    frame: pl.DataFrame,
    *,
    kinds: str = "fcu",
    within: Collection[str] = (),
) -> pl.DataFrame:
    """Ask each constraint for the rows that break it: an anti-join for references, a window for uniques.

    Args:
        session: in a transaction, with nothing of these rows written.
        destination: the table, and what to do with a row that is there.
        frame: the rows, with ``_record``.
        kinds: the constraints that are asked: foreign keys, checks, unique indexes.
        within: tables, as SQL has them, that are loaded with this one: references to them are not asked.
    """
    session.execute(sql.SQL("savepoint keyhaul_sets"))
    try:
        columns, table = destination.columns, destination.table
        fill_temporary(session, columns, frame, numbered=True)
        casts = sql.SQL(", ").join(sql.SQL("{} as {}").format(cast_column(c), sql.Identifier(c.name)) for c in columns)
        rows = sql.SQL("(select {}, {} from {}) as t").format(sql.Identifier(RECORD), casts, CHUNK)
        known = {column.name for column in columns}
        found: dict[int, list[tuple[str, str]]] = {}
        query = sql.SQL(_CONSTRAINTS).format(table=sql.Literal(table.as_string(None)))
        for constraint in session.execute(query):
            if constraint[1] == "u" and set(constraint[3] or ()) == set(destination.conflict):
                continue  # that a row is there already is what the mode is for
            if constraint[1] not in kinds or constraint[5] in within:
                continue
            for record in _breaking(session, table, rows, constraint, known):
                found.setdefault(record, []).append((constraint[0], constraint[1]))
    except ChunkError:
        # A cast or an expression fails for some row: halving goes on where the sets cannot.
        session.execute(sql.SQL("rollback to savepoint keyhaul_sets"))
        return pl.DataFrame(schema=INVALID)
    session.execute(sql.SQL("release savepoint keyhaul_sets"))
    verdicts = [
        (
            record,
            "load",
            [name for name, _ in broken],
            "; ".join(
                f"load chunk: {_WORDS[kind]} (SQLSTATE {_STATES[kind]}, constraint {name})" for name, kind in broken
            ),
        )
        for record, broken in sorted(found.items())
    ]
    return pl.DataFrame(verdicts, schema=INVALID, orient="row")


def _breaking(
    session: Session, table: sql.Identifier, rows: sql.Composed, constraint: tuple[Any, ...], known: set[str]
) -> list[int]:
    _, kind, expression, names, referenced, other = constraint
    if not names or not set(names) <= known:
        return []
    record = sql.SQL("t.") + sql.Identifier(RECORD)
    mine = [sql.SQL("t.") + sql.Identifier(name) for name in names]
    present = sql.SQL(" and ").join(sql.SQL("{} is not null").format(column) for column in mine)
    if kind == "c":
        query = sql.SQL("select {} from {} where not ({})").format(record, rows, sql.SQL(expression))
    elif kind == "f":
        same = sql.SQL(" and ").join(
            sql.SQL("r.{} = {}").format(sql.Identifier(theirs), column)
            for theirs, column in zip(referenced, mine, strict=True)
        )
        within: sql.Composable = sql.SQL("")
        if other == table.as_string(None).replace('"', ""):
            inner = sql.SQL(" and ").join(
                sql.SQL("s.{} = {}").format(sql.Identifier(theirs), column)
                for theirs, column in zip(referenced, mine, strict=True)
            )
            within = sql.SQL(" and not exists (select from {} as s where {})").format(CHUNK, inner)
        query = sql.SQL("select {} from {} where {} and not exists (select from {} as r where {}){}").format(
            record, rows, present, sql.SQL(other), same, within
        )
    else:
        same = sql.SQL(" and ").join(
            sql.SQL("r.{} = {}").format(sql.Identifier(name), column) for name, column in zip(names, mine, strict=True)
        )
        query = sql.SQL(
            "select {record} from {rows} where {present} and exists (select from {table} as r where {same}) union"
            " select _r from (select {record}, row_number() over (partition by {mine} order by {record}) from {rows}"
            " where {present}) as w(_r, n) where n > 1"
        ).format(record=record, rows=rows, present=present, table=table, same=same, mine=sql.SQL(", ").join(mine))
    return [row[0] for row in session.execute(query)]
