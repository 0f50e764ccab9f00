"""Sequences that a load leaves behind: an application's next INSERT would take a value that is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

_OF_COLUMNS: Final = """
with owned(attnum, sequence) as (
    select d.refobjsubid, d.objid from pg_depend d
     where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = %(table)s::regclass
       and d.deptype in ('a', 'i')
    union
    select f.adnum, d.refobjid from pg_attrdef f join pg_depend d on d.classid = 'pg_attrdef'::regclass
       and d.objid = f.oid and d.refclassid = 'pg_class'::regclass
     where f.adrelid = %(table)s::regclass
)
select a.attname::text, n.nspname::text, c.relname::text, q.seqincrement > 0, q.seqmin, q.seqmax,
       has_sequence_privilege(c.oid, 'select') and has_column_privilege(a.attrelid, a.attnum, 'select'),
       has_sequence_privilege(c.oid, 'update')
  from owned o join pg_attribute a on a.attrelid = %(table)s::regclass and a.attnum = o.attnum
  join pg_sequence q on q.seqrelid = o.sequence join pg_class c on c.oid = q.seqrelid
  join pg_namespace n on n.oid = c.relnamespace
 where a.attname = any(%(columns)s) and (a.attidentity <> '' or a.atthasdef) and not a.attisdropped
   and a.atttypid = any('{int2,int4,int8,numeric}'::regtype[])
 order by a.attnum, 2, 3
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """A sequence whose next value is one that its column has already passed.

    Attributes:
        column: of the table.
        sequence: ``schema.name``, for people.
        value: the column's highest, of a descending sequence its lowest.
        statement: what brings the sequence there; it never takes one back.
        may_set: whether this user may run it.
    """

    column: str
    sequence: str
    value: int
    statement: str
    may_set: bool


def lagging(
    conn: psycopg.Connection[Any], table: sql.Identifier, columns: Sequence[str], loaded: sql.Identifier
) -> list[Lag]:
    """Return the sequences of a table's columns that the rows have passed. Changes nothing.

    Args:
        conn: to the target.
        table: whose columns and sequences.
        columns: that the job writes.
        loaded: the table that has the rows: the fresh one of mode replace.
    """
    found = conn.execute(_OF_COLUMNS, {"table": table.as_string(conn), "columns": list(columns)}).fetchall()
    lags = []
    for column, schema, name, up, low, high, readable, may_set in found:
        sequence = sql.Identifier(schema, name)
        held = sql.SQL("select floor({0}({1}))::bigint from {2} where {1} between {3} and {4}").format(
            sql.SQL("max" if up else "min"), sql.Identifier(column), loaded, sql.Literal(low), sql.Literal(high)
        )
        row = conn.execute(held).fetchone() if readable else None
        if row is None or row[0] is None:
            continue
        value = int(row[0])
        state = conn.execute(sql.SQL("select last_value, is_called from {}").format(sequence)).fetchone()
        last, called = state or (value, True)
        ahead = (last - value) if up else (value - last)
        if ahead > 0 or (ahead == 0 and called):
            continue
        literal = sql.Literal(sequence.as_string(conn))
        statement = sql.SQL(
            "select setval({0}::regclass, {1}) where coalesce(pg_sequence_last_value({0}::regclass) {2} {1}, true)"
        ).format(literal, sql.Literal(value), sql.SQL("<" if up else ">"))
        lags.append(
            Lag(
                column=column,
                sequence=f"{schema}.{name}",
                value=value,
                statement=statement.as_string(conn),
                may_set=may_set,
            )
        )
    return lags
