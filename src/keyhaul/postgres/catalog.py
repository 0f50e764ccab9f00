"""What pg_catalog says of a table or a query: its columns, its key, its size. Source and target both ask here."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from psycopg import errors, pq, sql

from keyhaul.errors import ConfigError, first_line
from keyhaul.model import Column
from keyhaul.postgres.pgtypes import MODIFIED_TIME
from keyhaul.quoting import quote_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import psycopg

_VARHDRSZ = 4
"""What PostgreSQL adds to a declared length or precision in a type modifier; a modifier below it is none."""

_COLUMNS = """
with recursive given as (
    select * from unnest(%(names)s::text[], %(types)s::oid[], %(mods)s::int[])
        with ordinality as g(name, typ, mod, position)
), chain as (
    select position, typ, mod, 0 as depth from given
    union all
    select c.position, t.typbasetype, case when c.mod = -1 then t.typtypmod else c.mod end, c.depth + 1
      from chain c join pg_type t on t.oid = c.typ where t.typtype = 'd'
)
select distinct on (g.position) g.name, format_type(g.typ, g.mod), t.typname, t.typcategory, t.typtype, c.mod,
       outermost.typtype = 'd' and outermost.typnotnull, g.typ::bigint, format_type(g.typ, -1), format_type(c.typ, -1),
       c.typ::bigint
  from given g join pg_type outermost on outermost.oid = g.typ
  join chain c using (position) join pg_type t on t.oid = c.typ
 order by g.position, c.depth desc
"""

_TABLE_COLUMNS = """
select a.attname, a.atttypid, a.atttypmod, nullif(a.attcollation, 0)::regcollation::text,
       a.attnotnull and not exists (select from pg_constraint k where k.conrelid = a.attrelid and k.contype = 'n'
                                       and a.attnum = any(k.conkey) and not k.convalidated),
       a.atthasdef or a.attidentity <> '', a.attgenerated <> ''
  from pg_attribute a
 where a.attrelid = %(oid)s and a.attnum > 0 and not a.attisdropped
 order by a.attnum
"""

_LABELS = """
select enumtypid::bigint, array_agg(enumlabel::text order by enumsortorder)
  from pg_enum where enumtypid = any(%(types)s::oid[]) group by 1
"""

_COLLATIONS = """
with given as (
    select * from unnest(%(names)s::text[], %(collations)s::text[]) as g(name, called)
), database as (
    select coalesce(to_jsonb(d)->>'datlocprovider', 'c') as provider, d.datcollate as locale
      from pg_database d where datname = current_database()
)
select g.name,
       case when not coalesce((to_jsonb(c)->>'collisdeterministic')::boolean, true) then 'equality'
            when case when c.collprovider = 'd' then d.provider else c.collprovider::text end = 'b' then ''
            when case when c.collprovider = 'd' then d.provider else c.collprovider::text end = 'c'
                 and case when c.collprovider = 'd' then d.locale else c.collcollate end
                     ~* '^(C|POSIX|C[.]utf-?8)$' then ''
            else 'order' end
  from given g join pg_collation c on c.oid = g.called::regcollation cross join database d
"""
"""A collation that orders by bytes, or by code points, which is the same in UTF-8, is told apart from others."""

_PRIMARY_KEY = """
select array_agg(a.attname order by k.position)
  from pg_index i cross join unnest(i.indkey::int2[]) with ordinality as k(attnum, position)
  join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
 where i.indrelid = %(oid)s and i.indisprimary and k.position <= i.indnkeyatts
"""

_STATISTICS = """
select c.relkind::text, c.reltuples::float8,
       coalesce(
           (select sum(s.avg_width) from pg_stats s where s.schemaname = n.nspname and s.tablename = c.relname), 0
       )::int
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.oid = %(oid)s
"""

_LEADING_INDEX = """
select exists (
    select from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am am on am.oid = c.relam
     where i.indrelid = %(oid)s and am.amname = 'btree' and i.indisvalid and i.indpred is null
       and i.indnkeyatts >= %(width)s
       and (select array_agg(coalesce(a.attname::text, '') order by k.position)
              from unnest((i.indkey::int2[])[0:%(width)s - 1]) with ordinality as k(attnum, position)
              left join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum) = %(key)s::text[]
       and not exists (select from unnest((i.indoption::int2[])[0:%(width)s - 1]) as o(bits) where o.bits & 1 = 1)
)
"""


_RULES: Final = """
select to_jsonb(c), to_jsonb(d), pg_collation_actual_version(c.oid)
  from pg_collation c, pg_database d
 where d.datname = current_database() and c.oid = %s::regcollation
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """A table, view or query that can stand in a FROM clause.

    Attributes:
        from_item: what stands after FROM, quoted.
        label: for people, ``schema.table`` or ``query``.
        oid: of the relation; None for a query.
        kind: pg_class.relkind; ``q`` for a query.
        columns: in the relation's own order.
        primary_key: names in order, empty when there is none.
        reltuples: the statistics' row estimate, -1 when unknown.
        row_bytes: the statistics' average width of a row, 0 when unknown.
        only: without the tables that inherit from it; `from_item` says so.
    """

    from_item: sql.Composable
    label: str
    oid: int | None
    kind: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...] = ()
    reltuples: float = -1
    row_bytes: int = 0
    only: bool = False

    def column(self, name: str) -> Column | None:
        """Return the column called `name`, or None."""
        return next((column for column in self.columns if column.name == name), None)


def resolve(conn: psycopg.Connection[Any], name: str) -> tuple[int, str, str] | None:
    """Find a relation by the name a person gives: SQL syntax first, then the name taken literally.

    Returns:
        (oid, schema, table), or None when there is no such relation.
    """
    try:
        with conn.transaction():
            row = conn.execute("select to_regclass(%s)::oid", [name]).fetchone()
        oid = row[0] if row else None
    except (errors.SyntaxError, errors.InvalidName, errors.FeatureNotSupported, errors.InvalidSchemaName):
        oid = None
    if oid is None:
        schema, _, table = name.rpartition(".")
        row = conn.execute(
            "select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace"
            " where c.relname = %(table)s and n.nspname = coalesce(nullif(%(schema)s, ''), current_schema())"
            " or c.relname = %(name)s and n.nspname = current_schema()",
            {"table": table, "schema": schema, "name": name},
        ).fetchone()
        if row is None:
            return None
        oid = row[0]
    row = conn.execute(
        "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = %s",
        [oid],
    ).fetchone()
    return (oid, row[0], row[1]) if row else None


def parse_name(conn: psycopg.Connection[Any], name: str) -> list[str] | None:
    """Return the parts of a name that is SQL syntax, not cut to 63 bytes; None when it can only be meant literally."""
    try:
        with conn.transaction():
            row = conn.execute("select parse_ident(%s)", [name]).fetchone()
    except errors.InvalidParameterValue:
        return None
    return row[0] if row else None


def own_name(conn: psycopg.Connection[Any], name: str) -> str:
    """Return the name that a relation has, quoted; with its schema when `name` gives one.

    ``Flights`` may be meant literally here, but would be another name in another database.
    """
    found = resolve(conn, name)
    if found is None:
        return name
    _, schema, table = found
    alone = name == table or len(parse_name(conn, name) or ["", ""]) == 1
    return quote_name(table) if alone else quote_name(schema, table)


def describe_table(conn: psycopg.Connection[Any], oid: int, schema: str, table: str) -> Relation:
    """Read the columns, primary key and statistics of a table, view or foreign table."""
    rows = conn.execute(_TABLE_COLUMNS, {"oid": oid}).fetchall()
    columns = _columns(conn, [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])
    collations = _collations(conn, {r[0]: r[3] for r in rows if r[3] is not None})
    described = tuple(
        replace(column, not_null=row[4], has_default=row[5], generated=row[6], collation=collations.get(row[0], ""))
        for column, row in zip(columns, rows, strict=True)
    )
    head = conn.execute(_STATISTICS, {"oid": oid}).fetchone()
    key = conn.execute(_PRIMARY_KEY, {"oid": oid}).fetchone()
    kind, reltuples, row_bytes = head or ("r", -1.0, 0)
    return Relation(
        from_item=sql.Identifier(schema, table),
        label=f"{schema}.{table}",
        oid=oid,
        kind=kind,
        columns=described,
        primary_key=tuple(key[0]) if key and key[0] else (),
        reltuples=reltuples,
        row_bytes=row_bytes,
    )


def describe_query(conn: psycopg.Connection[Any], query: str, what: str = "source.query") -> Relation:
    """Ask the server for the columns of a query, without running it; `what` is its name in messages.

    Raises:
        ConfigError: the server does not accept the query, or two of its columns have one name.
    """
    alone = without_end(query)
    item = sql.SQL("(\n{}\n) as q").format(sql.SQL(alone))
    try:
        check_statement(conn, alone)
        cursor = conn.execute(sql.SQL("select * from {} limit 0").format(item))
    except errors.Error as error:
        msg = f"read {what}: {first_line(error)}, expected one SELECT"
        raise ConfigError(msg) from error
    result = cursor.pgresult
    if result is None:
        msg = f"read {what}: it returns no columns, expected one SELECT"
        raise ConfigError(msg)
    numbers = range(result.nfields)
    names = [(result.fname(i) or b"").decode() for i in numbers]
    twice = sorted({name for name in names if names.count(name) > 1 or name == "?column?"})
    if twice:
        listed = ", ".join(twice)
        msg = f"read {what}: the column names {listed} are not unique, expected a name of its own for each"
        raise ConfigError(msg)
    columns = _columns(conn, names, [result.ftype(i) for i in numbers], [result.fmod(i) for i in numbers])
    collations = _collations(conn, _query_collations(conn, item, {column.name: column.type_oid for column in columns}))
    described = tuple(replace(column, collation=collations.get(column.name, "")) for column in columns)
    return Relation(from_item=item, label="query", oid=None, kind="q", columns=described)


def _query_collations(
    conn: psycopg.Connection[Any], item: sql.Composable, types: Mapping[str, int]
) -> Mapping[str, str]:
    """Return the collation of each column of a query that has one; the query is planned and not run."""
    query = "select oid from pg_type where oid = any(%s::oid[]) and typcollation <> 0"
    collated = {row[0] for row in conn.execute(query, [list(types.values())]).fetchall()}
    names = [name for name, oid in types.items() if oid in collated]
    asked = sql.SQL(", ").join(sql.SQL("pg_collation_for(q.{})").format(sql.Identifier(name)) for name in names)
    statement = sql.SQL("select {} from (select) as one left join {} on false").format(asked, item)
    row = conn.execute(statement).fetchone() if names else None
    return {name: found for name, found in zip(names, row or (), strict=False) if found is not None}


def _collations(conn: psycopg.Connection[Any], collations: Mapping[str, str]) -> Mapping[str, str]:
    """Return for columns by their collation's name what `Column.collation` says of it."""
    if not collations:
        return {}
    given = {"names": list(collations), "collations": list(collations.values())}
    return dict(conn.execute(_COLLATIONS, given).fetchall())


def check_statement(conn: psycopg.Connection[Any], text: str) -> None:
    """Let the server parse a text as one whole statement, and nothing more; it is not executed.

    A text that closes a parenthesis which it did not open would be another one inside of ours, and a text of several
    statements could end the read-only transaction.

    Raises:
        psycopg.Error: it is none, or more than one.
    """
    result = conn.pgconn.prepare(b"", text.encode())
    if result.status != pq.ExecStatus.COMMAND_OK:
        raise errors.error_from_result(result, "utf-8")


_TOKEN = re.compile(
    r"""(?P<blank>\s+|--[^\n]*)|(?P<comment>/\*)|(?P<end>;)
    |[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|"(?:[^"]|"")*"|(?P<tag>\$(?:[^\W\d]\w*)?\$).*?(?P=tag)|[\w$]+|.""",
    re.DOTALL | re.VERBOSE,
)
"""Enough of PostgreSQL's lexical rules to tell a semicolon or a comment from what stands in quotes."""


def without_end(query: str) -> str:
    """Return a query without the semicolons and comments at its end, so that it can stand in parentheses."""
    place = last = 0
    while (token := _TOKEN.match(query, place)) is not None:
        place = _after_comment(query, place) if token["comment"] else token.end()
        if not (token["blank"] or token["comment"] or token["end"]):
            last = place
    return query[:last]


def _after_comment(query: str, place: int) -> int:
    """Return where a comment that begins at `place` ends; comments nest."""
    depth = 0
    for mark in re.finditer(r"/\*|\*/", query[place:]):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return place + mark.end()
    return len(query)


def leads_an_index(conn: psycopg.Connection[Any], oid: int, key: Sequence[str]) -> bool:
    """Whether a whole ascending btree index begins with the key's columns in this order."""
    row = conn.execute(_LEADING_INDEX, {"oid": oid, "key": list(key), "width": len(key)}).fetchone()
    return bool(row and row[0])


def collation_of(conn: psycopg.Connection[Any], item: sql.Composable, name: str) -> list[Any] | None:
    """Return what decides the order of a column's texts, JSON-ready; None when it cannot be told."""
    asked = sql.SQL("select pg_collation_for(min(x)) from (select {} as x from {} limit 0) as none")
    row = conn.execute(asked.format(sql.Identifier(name), item)).fetchone()
    rules = conn.execute(_RULES, [row[0]]).fetchone() if row and row[0] else None
    if rules is None:
        return None
    collation, database, version = rules
    provider, prefix = collation["collprovider"], "coll"
    if provider == "d":
        collation, provider, prefix = database, database["datlocprovider"], "dat"
    place = collation.get(f"{prefix}locale") or collation.get(f"{prefix}iculocale")
    if provider == "c":
        place = collation[f"{prefix}collate"]
    if prefix == "dat":
        version = collation.get("datcollversion")
    fixed = provider == "b" or place in {"C", "POSIX"}
    if not fixed and not version:
        return None
    return [provider, place, None if fixed else version, collation.get(f"{prefix}icurules")]


def aggregate(expression: str, item: sql.Composable) -> sql.Composed:
    """Return a query for one value over all rows of an item, as text."""
    # HAVING makes it one group: a column outside an aggregate is refused, not taken from the first row.
    return sql.SQL("select (\n{}\n)::text from (select * from {}) as t having true").format(sql.SQL(expression), item)


def explain(conn: psycopg.Connection[Any], query: sql.Composed) -> None:
    """Let the server parse and plan one statement; no row is read.

    Raises:
        psycopg.Error: it does not fit.
    """
    with conn.transaction():
        check_statement(conn, query.as_string(conn))
        conn.execute(sql.SQL("explain {}").format(query))


def _columns(
    conn: psycopg.Connection[Any], names: Sequence[str], types: Sequence[int], mods: Sequence[int]
) -> list[Column]:
    """Resolve types to their names and, for domains, to what lies beneath; names are schema-qualified."""
    with conn.transaction():
        row = conn.execute("select current_setting('search_path')").fetchone()
        conn.execute("set local search_path = pg_catalog")
        rows = conn.execute(_COLUMNS, {"names": list(names), "types": list(types), "mods": list(mods)}).fetchall()
        enums = [row[10] for row in rows if row[4] == "e"]
        labels = dict(conn.execute(_LABELS, {"types": enums}).fetchall()) if enums else {}
        conn.execute("select set_config('search_path', %s, true)", [row[0] if row else ""])
    return [replace(_column(row[:10]), labels=tuple(labels.get(row[10], ()))) for row in rows]


def _column(row: Sequence[Any]) -> Column:
    """Return the column that one row of `_COLUMNS` describes."""
    name, pg_type, base, category, kind, mod, null_refused, oid, cast_type, bare_type = row
    precision = scale = length = None
    if base == "numeric" and mod >= _VARHDRSZ:
        precision = ((mod - _VARHDRSZ) >> 16) & 0xFFFF
        scale = (((mod - _VARHDRSZ) & 0x7FF) ^ 1024) - 1024  # 11 bits with a sign: numeric_typmod_scale in numeric.c
    elif base in MODIFIED_TIME and mod >= 0:
        precision = mod
    elif base in {"varchar", "bpchar"} and mod >= _VARHDRSZ:
        length = mod - _VARHDRSZ
    return Column(
        name=name,
        pg_type=pg_type,
        base_type=base,
        null_refused=null_refused,
        precision=precision,
        scale=scale,
        length=length,
        modifier=mod,
        type_category=category,
        type_kind=kind,
        type_oid=oid,
        cast_type=cast_type,
        bare_type=bare_type,
    )
