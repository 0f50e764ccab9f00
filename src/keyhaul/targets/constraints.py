"""What the target's constraints say of many rows at once, without a write.

That a row breaks a constraint in a query is no proof that the target refuses it: a trigger may change the row, the
constraint may not be enforced, its triggers may be disabled, a policy may hide the rows that are referred to, a rival
may be refused itself. So it is a suspicion, which says what is tried first; it is an answer only in `surely_refused`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import polars as pl
from psycopg import sql

from keyhaul.errors import ChunkError
from keyhaul.model import RECORD
from keyhaul.targets.rows import CHUNK, INVALID, cast_column, fill_temporary
from keyhaul.targets.session import taken_back

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyhaul.targets.rows import Destination
    from keyhaul.targets.session import Session

_AS_WRITTEN: Final = """
select current_setting('session_replication_role') <> 'replica' and not exists (
    select from (select t.o from unnest({tables}::regclass[]) as t(o)
                  union select p.relid from unnest({tables}::regclass[]) as t(o), pg_partition_tree(t.o) as p) as parts
      join pg_class k on k.oid = parts.o left join pg_trigger g on g.tgrelid = k.oid
     where k.relhasrules
        or case when g.tgisinternal then g.tgenabled not in ('O', 'A') else g.tgenabled <> 'D' end)
"""

_CONSTRAINTS: Final = """
select c.conname::text, c.contype::text, pg_get_expr(c.conbin, c.conrelid),
       (select array_agg(a.attname::text order by k.n) from unnest(c.conkey) with ordinality k(num, n)
          join pg_attribute a on a.attrelid = c.conrelid and a.attnum = k.num and a.attnum > 0),
       (select array_agg(a.attname::text order by k.n) from unnest(c.confkey) with ordinality k(num, n)
          join pg_attribute a on a.attrelid = c.confrelid and a.attnum = k.num),
       case when c.contype = 'f' then c.confrelid::regclass::text end
  from pg_constraint c
 where c.conrelid = {table}::regclass and c.contype in ('f', 'c')
   and coalesce((to_jsonb(c) ->> 'conenforced')::boolean, true)
   and not coalesce((to_jsonb(c) ->> 'conperiod')::boolean, false)
   and 0 < all(c.conkey)
   and not exists (select from pg_depend d where d.classid = 'pg_constraint'::regclass and d.objid = c.oid
                      and d.refclassid in ('pg_proc'::regclass, 'pg_operator'::regclass))
   and (c.contype = 'c' or has_table_privilege(c.confrelid, 'select') and not row_security_active(c.confrelid)
        and not exists (select from pg_attribute a join pg_collation l on l.oid = a.attcollation
                         where (a.attrelid = c.conrelid and a.attnum = any(c.conkey)
                                or a.attrelid = c.confrelid and a.attnum = any(c.confkey))
                           and not l.collisdeterministic)
        and {reference})
"""

_ELSEWHERE: Final = """not exists (select from unnest({tables}::regclass[]) as t(o)
                         where coalesce(pg_partition_root(t.o), t.o)
                             = coalesce(pg_partition_root(c.confrelid), c.confrelid))"""

_UNIQUE: Final = """
select distinct (select array_agg(a.attname::text order by k.n) from unnest(x.indkey::int2[]) with ordinality k(num, n)
                   join pg_attribute a on a.attrelid = x.indrelid and a.attnum = k.num where k.n <= x.indnkeyatts),
       x.indpred is null and x.indexprs is null and not x.indisexclusion
       and not coalesce((to_jsonb(x) ->> 'indnullsnotdistinct')::boolean, false)
       and not exists (select from unnest(x.indclass::oid[]) as o(o) join pg_opclass c on c.oid = o.o
                        where not c.opcdefault)
       and not exists (select from unnest(x.indcollation::oid[]) as o(o) join pg_collation l on l.oid = o.o
                        where not l.collisdeterministic)
  from pg_index x
 where (x.indisunique or x.indisexclusion)
   and x.indrelid in (select {table}::regclass union select relid from pg_partition_tree({table}::regclass))
"""

_COLLATIONS: Final = """
select a.attname::text, format('%I.%I', n.nspname, l.collname)
  from pg_attribute a join pg_collation l on l.oid = a.attcollation join pg_namespace n on n.oid = l.collnamespace
 where a.attrelid = {table}::regclass and a.attnum > 0
"""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A foreign key or check that the server asks as it stands.

    Attributes:
        expression: of a check, in SQL; None for a foreign key.
        columns: of the table that the constraint looks at.
        referenced: the other table's columns, in the same order.
        other: the table that is referred to, as SQL has it.
    """

    name: str
    expression: str | None
    columns: tuple[str, ...]
    referenced: tuple[str, ...] = ()
    other: str = ""


def surely_refused(
    session: Session, destination: Destination, frame: pl.DataFrame, tables: Sequence[sql.Identifier]
) -> pl.DataFrame:
    """Return the records with a row that a foreign key or check surely refuses, if it is appended.

    Args:
        session: in a transaction, with nothing of these rows written.
        destination: the table; only `frame`'s columns of it are looked at.
        frame: the rows, with `RECORD`.
        tables: all tables that are loaded together: references to them are not asked.
    """
    if not _as_written(session, tables):
        return pl.DataFrame(schema=INVALID)
    elsewhere = sql.SQL(_ELSEWHERE).format(tables=sql.Literal([_text(table) for table in tables]))

    def ask(rows: sql.Composable) -> list[tuple[int, Constraint]]:
        known = _constraints(session, destination, elsewhere)
        return [(record, one) for one in known for record in _breaking(session, rows, one)]

    found: dict[int, list[Constraint]] = {}
    for record, one in _asked(session, destination, frame, ask):
        found.setdefault(record, []).append(one)
    verdicts = [
        (record, "load", [one.name for one in broken], "; ".join(map(_sentence, broken)))
        for record, broken in sorted(found.items())
    ]
    return pl.DataFrame(verdicts, schema=INVALID, orient="row")


def suspected(session: Session, destination: Destination, frame: pl.DataFrame) -> set[int] | None:
    """Return the records that may be refused: the others can be loaded before them without harm to any.

    That is so when none of the others has an earlier rival among all of them.

    Args:
        session: in a transaction, with nothing of these rows written.
        destination: the table, and what to do with a row that is there.
        frame: the rows, with `RECORD`.

    Returns:
        None where the order of the records decides what is refused, in ways that cannot be asked: an update frees a
        value for another row, a trigger, an index of expressions, a reference within the table.
    """
    table = destination.table
    known = {column.name for column in destination.columns}
    unique = session.execute(sql.SQL(_UNIQUE).format(table=sql.Literal(_text(table))))
    plain = all(simple and names and set(names) <= known for names, simple in unique)
    if (
        destination.mode == "upsert"
        or not plain
        or not _as_written(session, [table])
        or references_within(session, [table])
    ):
        return None

    def ask(rows: sql.Composable) -> list[set[int]]:
        asked = _constraints(session, destination, sql.SQL("true"))
        breaking = [record for one in asked for record in _breaking(session, rows, one)]
        return [{*breaking, *(record for names, _ in unique for record in _rivals(session, destination, rows, names))}]

    return next(iter(_asked(session, destination, frame, ask)), None)


def references_within(session: Session, tables: Sequence[sql.Identifier]) -> list[str]:
    """Return the names of the foreign keys by which tables refer to themselves and to each other."""
    query = sql.SQL(
        "select distinct conname::text from pg_constraint where contype = 'f'"
        " and conrelid = any({tables}::regclass[]) and confrelid = any({tables}::regclass[]) order by 1"
    )
    names = sql.Literal([_text(table) for table in tables])
    return [row[0] for row in session.execute(query.format(tables=names))]


def lost_references(session: Session, destination: Destination, frame: pl.DataFrame) -> set[int]:
    """Return the records that refer to a row of their own table that is neither there nor among these.

    A record that refers only to such records is one of them.
    """
    own = sql.SQL("c.confrelid = c.conrelid")

    def ask(rows: sql.Composable) -> list[int]:
        known = [one for one in _constraints(session, destination, own) if one.expression is None]
        if not known:
            return []
        _find_lost(session, known, rows)
        return [row[0] for row in session.execute(sql.SQL("select distinct record from pg_temp._keyhaul_lost"))]

    return set(_asked(session, destination, frame, ask))


def drop_lost(session: Session, destination: Destination, rows: sql.Identifier) -> None:
    """Delete the rows of a temporary table that lead to what is neither in the destination nor among them.

    Their `RECORD` is unique.
    """
    own = sql.SQL("c.confrelid = c.conrelid")
    known = [one for one in _constraints(session, destination, own) if one.expression is None]
    if known:
        _find_lost(session, known, rows)
        query = sql.SQL("delete from {} where {} in (select record from pg_temp._keyhaul_lost)")
        session.execute(query.format(rows, sql.Identifier(RECORD)))


def _find_lost(session: Session, known: Sequence[Constraint], rows: sql.Composable) -> None:
    """Make the temporary table ``_keyhaul_lost`` of the rows that lead to what is neither there nor among them.

    They may be millions, and the way there long. So each step is a set that the planner knows the size of, and what
    follows from a row is found by an index: in one recursive statement 10,000 rows took 15 s.
    """
    record = sql.Identifier(RECORD)
    missing = []
    for number, one in enumerate(known):
        name = f"_keyhaul_missing{number}"
        create = sql.SQL("create temp table {} on commit drop as select t.* from {} as t where {}")
        session.execute(create.format(sql.Identifier(name), rows, _missing(one)))
        place = sql.Identifier("pg_temp", name)
        session.execute(sql.SQL("analyze {}").format(place))
        missing.append((one, place))
    # Where several rows have the key that is referred to, one of them may come: no edge then.
    edges = sql.SQL(" union all ").join(
        sql.SQL(
            "select t.{0} as child, min(r.{0}) as parent from {1} as t join {2} as r on {3}"
            " group by 1 having count(*) = 1"
        ).format(record, place, rows, _same(one))
        for one, place in missing
    )
    nowhere = sql.SQL(" union ").join(
        sql.SQL("select t.{0} as record from {1} as t where not exists (select from {2} as r where {3})").format(
            record, place, rows, _same(one)
        )
        for one, place in missing
    )
    for query in (
        sql.SQL("set local enable_nestloop = off"),
        sql.SQL("create temp table _keyhaul_edges on commit drop as {}").format(edges),
        sql.SQL("create temp table _keyhaul_lost on commit drop as {}").format(nowhere),
        sql.SQL("set local enable_nestloop to default"),
        sql.SQL("create index on pg_temp._keyhaul_edges (parent)"),
        sql.SQL("analyze pg_temp._keyhaul_edges, pg_temp._keyhaul_lost"),
        sql.SQL("set local enable_hashjoin = off"),
        sql.SQL("set local enable_mergejoin = off"),
        sql.SQL(
            "with recursive lost as (select record from pg_temp._keyhaul_lost union"
            " select child from lost join pg_temp._keyhaul_edges on parent = record)"
            " insert into pg_temp._keyhaul_lost select record from lost"
        ),
        sql.SQL("set local enable_hashjoin to default"),
        sql.SQL("set local enable_mergejoin to default"),
        sql.SQL("analyze pg_temp._keyhaul_lost"),
    ):
        session.execute(query)


def _as_written(session: Session, tables: Sequence[sql.Identifier]) -> bool:
    """Say whether rows go into the tables as they are sent, and every foreign key there is asked."""
    names = sql.Literal([_text(table) for table in tables])
    return bool(session.execute(sql.SQL(_AS_WRITTEN).format(tables=names))[0][0])


def _asked(
    session: Session, destination: Destination, frame: pl.DataFrame, ask: Callable[[sql.Composable], list[Answer]]
) -> list[Answer]:
    """Put the rows into the temporary table and ask; no answer when a cast or an expression fails for any of them."""
    answers: list[Answer] = []
    with taken_back(session, ChunkError):
        fill_temporary(session, destination.columns, frame, numbered=True)
        # Without statistics the planner would join the rows with themselves by a nested loop.
        session.execute(sql.SQL("analyze {}").format(CHUNK))
        answers += ask(as_stored(session, destination))
    return answers


def as_stored(session: Session, destination: Destination) -> sql.Composable:
    """Return the rows as the target would hold them: rounded, in its types, compared as there."""
    query = sql.SQL(_COLLATIONS).format(table=sql.Literal(_text(destination.table)))
    collations = {row[0]: row[1] for row in session.execute(query)}
    columns = [
        sql.SQL("({})::{}{} as {}").format(
            cast_column(column),
            sql.SQL(column.target.pg_type),
            sql.SQL(f" collate {collations[column.name]}" if column.name in collations else ""),
            sql.Identifier(column.name),
        )
        for column in destination.columns
    ]
    return sql.SQL("(select {}, {} from {})").format(sql.Identifier(RECORD), sql.SQL(", ").join(columns), CHUNK)


def _constraints(session: Session, destination: Destination, reference: sql.Composable) -> list[Constraint]:
    """Return those whose columns are all written."""
    known = {column.name for column in destination.columns}
    query = sql.SQL(_CONSTRAINTS).format(table=sql.Literal(_text(destination.table)), reference=reference)
    return [
        Constraint(
            name=name,
            expression=expression if kind == "c" else None,
            columns=tuple(columns),
            referenced=tuple(referenced or ()),
            other=other or "",
        )
        for name, kind, expression, columns, referenced, other in session.execute(query)
        if columns and set(columns) <= known
    ]


def _breaking(session: Session, rows: sql.Composable, one: Constraint) -> list[int]:
    """Ask for the records that break a constraint."""
    record = sql.SQL("t.") + sql.Identifier(RECORD)
    if one.expression is not None:
        query = sql.SQL("select {} from {} as t where not ({})").format(record, rows, sql.SQL(one.expression))
        return [row[0] for row in session.execute(query)]
    query = sql.SQL("select {} from {} as t where {}").format(record, rows, _missing(one))
    return [row[0] for row in session.execute(query)]


def _missing(one: Constraint) -> sql.Composable:
    """Return the condition that the row t refers to what is not in the other table."""
    present = [sql.SQL("t.{} is not null").format(sql.Identifier(name)) for name in one.columns]
    absent = sql.SQL("not exists (select from {} as r where {})").format(sql.SQL(one.other), _same(one))
    return sql.SQL(" and ").join([*present, absent])


def _rivals(session: Session, destination: Destination, rows: sql.Composable, names: Sequence[str]) -> list[int]:
    """Ask for the records whose unique columns are those of an earlier one, or of a row that is there."""
    mine = [sql.SQL("t.{}").format(sql.Identifier(name)) for name in names]
    present = sql.SQL(" and ").join(sql.SQL("{} is not null").format(column) for column in mine)
    query = sql.SQL(
        "select _record from (select t.{record}, row_number() over (partition by {mine} order by t.{record})"
        " from {rows} as t where {present}) as ranked(_record, n) where n > 1"
    ).format(record=sql.Identifier(RECORD), mine=sql.SQL(", ").join(mine), rows=rows, present=present)
    if set(names) != set(destination.conflict):  # that a row is there already is what the mode is for
        there = sql.SQL(" and ").join(
            sql.SQL("r.{} = {}").format(sql.Identifier(name), column) for name, column in zip(names, mine, strict=True)
        )
        query += sql.SQL(" union select t.{} from {} as t where exists (select from {} as r where {})").format(
            sql.Identifier(RECORD), rows, destination.table, there
        )
    return [row[0] for row in session.execute(query)]


def _same(one: Constraint) -> sql.Composable:
    pairs = zip(one.referenced, one.columns, strict=True)
    return sql.SQL(" and ").join(
        sql.SQL("r.{} = t.{}").format(sql.Identifier(theirs), sql.Identifier(mine)) for theirs, mine in pairs
    )


def _sentence(one: Constraint) -> str:
    if one.expression is None:
        return f"load chunk: violates foreign key constraint (SQLSTATE 23503, constraint {one.name})"
    return f"load chunk: violates check constraint (SQLSTATE 23514, constraint {one.name})"


def _text(table: sql.Identifier) -> str:
    return table.as_string(None)
