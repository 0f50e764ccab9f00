"""Which records does the target refuse? Each is tried alone, in the order of records, inside the server.

A block of PL/pgSQL inserts them one by one, each in a subtransaction of its own: 15 µs a record instead of a COPY
of half a millisecond. What it stored is taken back; what it was told is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl
from psycopg import sql

from keyhaul.errors import RejectedError
from keyhaul.model import RECORD
from keyhaul.targets.rows import CHUNK, INVALID, cast_column, fill_temporary, leave_out_invalid, on_conflict
from keyhaul.targets.session import refusal, taken_back
from keyhaul.targets.sqlstates import not_of_rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyhaul.targets.rows import Destination
    from keyhaul.targets.session import Session

_REFUSED: Final = sql.Identifier("pg_temp", "_keyhaul_refused")

_MAY_LOOP: Final = (
    "select exists (select from pg_language where lanname = 'plpgsql' and has_language_privilege(oid, 'usage'))"
)

# What is of the connection or the server's state ends the block. plpgsql_error: others leaves a failed ASSERT out.
_LOOP: Final = """
#variable_conflict use_column
declare
    _one record;
    _state text;
    _constraint text;
    _column text;
    _table text;
    _said text;
begin
    set constraints all immediate;
    for _one in select ctid as place, {record} as record from {chunk} order by {record} loop
        begin
            insert into {table} as _there ({names}) overriding system value
                select {casts} from {chunk} where ctid = _one.place {conflict};
        exception when plpgsql_error or others then
            get stacked diagnostics _state = returned_sqlstate, _constraint = constraint_name,
                _column = column_name, _table = table_name, _said = message_text;
            if _state like any ({not_of_rows}) then
                raise;
            end if;
            insert into {refused} values (_one.record, _said, _state, _constraint, _column, _table);
        end;
    end loop;
end
"""


def refused_singly(session: Session, destination: Destination, frame: pl.DataFrame) -> pl.DataFrame:
    """Try each record alone and return those that the target refuses, with its own words; nothing stays written.

    A record is tried after those before it that were taken, so of two that cannot both be there the first stays.

    Args:
        session: in a transaction, one that recovers from errors.
        destination: the table, and what to do with a row that is there.
        frame: the accepted rows, with `RECORD`.

    Returns:
        The refused records (`INVALID`). None where the role may not use PL/pgSQL, or where a text cannot even be
        sent: that must be found by other means.
    """
    if not session.execute(sql.SQL(_MAY_LOOP))[0][0]:
        return pl.DataFrame(schema=INVALID)
    found: list[tuple[int, RejectedError]] = []
    with taken_back(session, RejectedError):
        fill_temporary(session, destination.columns, frame, numbered=True, bare=True)
        leave_out_invalid(session, destination.columns)
        found = _loop(session, destination)
    return verdicts(found)


def _loop(session: Session, destination: Destination) -> list[tuple[int, RejectedError]]:
    columns = destination.columns
    session.execute(sql.SQL("drop table if exists {}").format(_REFUSED))
    session.execute(
        sql.SQL(
            "create temp table _keyhaul_refused (record bigint, said text, state text,"
            " constraint_name text, column_name text, table_name text) on commit drop"
        )
    )
    body = sql.SQL(_LOOP).format(
        record=sql.Identifier(RECORD),
        chunk=CHUNK,
        table=destination.table,
        names=sql.SQL(", ").join(sql.Identifier(column.name) for column in columns),
        casts=sql.SQL(", ").join(map(cast_column, columns)),
        conflict=on_conflict(destination),
        refused=_REFUSED,
        not_of_rows=sql.Literal(list(not_of_rows())),
    )
    session.execute(sql.SQL("do {}").format(sql.Literal(body.as_string(None))))
    rows = session.execute(sql.SQL("select * from {} order by record").format(_REFUSED))
    return [(row[0], refusal(*row[1:])) for row in rows]


def verdicts(refused: Iterable[tuple[int, RejectedError]]) -> pl.DataFrame:
    """Return records that the target rejects (`INVALID`), each with the constraint, column or SQLSTATE as its rule."""
    rows = [(record, "load", [_rule(error)], str(error)) for record, error in refused]
    return pl.DataFrame(rows, schema=INVALID, orient="row")


def _rule(error: RejectedError) -> str:
    return error.constraint or (f"not_null:{error.column}" if error.column else f"sqlstate:{error.sqlstate}")
