"""PostgreSQL as a source: one exported snapshot, boundaries in the key's own order, one query for each chunk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import errors, sql

from keyhaul.errors import ConfigError, RefusedError
from keyhaul.model import Plan
from keyhaul.postgres import catalog
from keyhaul.postgres.definition import read_definition
from keyhaul.sources.cuts import Key, chunks_between
from keyhaul.sources.postgres.ranges import KeyRanges
from keyhaul.sources.postgres.stability import check_stable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import LiteralString

    from keyhaul.postgres.catalog import Relation
    from keyhaul.postgres.definition import TableDefinition

EXACT_ROWS: Final = 20_000_000
"""Up to this many rows (by the statistics) boundaries are exact. Walking an index costs about 40 ms for
each million rows (PostgreSQL 18, 2 cores), so this is under a second; beyond it a sample decides."""

_HIDDEN_ORDER: Final = """
select distinct t.typname, n.nspname
  from pg_opclass c join pg_am a on a.oid = c.opcmethod
  join pg_amop m on m.amopfamily = c.opcfamily and m.amoplefttype = c.opcintype and m.amoprighttype = c.opcintype
  join pg_operator o on o.oid = m.amopopr join pg_namespace n on n.oid = o.oprnamespace
  join pg_type t on t.oid = c.opcintype
 where a.amname = 'btree' and c.opcdefault and c.opcintype = any(%(types)s::oid[]) and m.amopstrategy = 1
   and not pg_operator_is_visible(o.oid)
"""
"""Key types (domains resolved) that ORDER BY sorts with an operator that `<` in a query would not find: citext
in a schema off the search_path is sorted without regard to case, but `<` would compare it as text."""

_UNIQUE: Final = """
select exists (
    select from pg_index i
     where i.indrelid = %(oid)s and i.indisunique and i.indisvalid and i.indpred is null and i.indexprs is null
       and not exists (
           select from unnest(i.indkey::int2[]) with ordinality as k(attnum, n)
             join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
            where k.n <= i.indnkeyatts and a.attname <> all(%(key)s::name[])
       )
) and (%(kind)s = 'p' or %(only)s or not exists (select from pg_inherits where inhparent = %(oid)s))
"""
"""A unique index of a table does not look at the tables that inherit from it, but a SELECT does."""

_WALK: Final = """
with recursive walk as (
    (select {columns}, 0::bigint as _rows from {item} s where {present} order by {order} limit 1)
    union all
    select {next}, case when at._tied
                        then (select count(*) from {item} s where {present} and {key} = row({walk})) else {step} end
      from walk
     cross join lateral (
         select {columns}, {key} = row({walk}) as _tied from {item} s
          where {present} and {key} >= row({walk}) order by {order} offset {step} limit 1
     ) at
     cross join lateral (
         select {keys} from (
             select {at}
             union all
             (select {columns} from {item} s where {present} and {key} > row({walk}) order by {order} limit 1)
         ) either order by {downwards} limit 1
     ) next
     where row({next}) > row({walk})
)
select {texts}, _rows from walk order by {walk}
"""
"""Each step goes to the entry that stands `step` further. Where that has the same key (more rows of one value than a
chunk holds, which stay together) it goes to the next value, the greater of the two, and counts the rows."""

_HEIRS: Final = """
with recursive reads(oid) as (
    select %s::oid
    union
    select d.refobjid from reads join pg_rewrite w on w.ev_class = reads.oid join pg_class v on v.oid = reads.oid
      join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = w.oid and d.refclassid = 'pg_class'::regclass
     where v.relkind in ('v', 'm')
), heirs(parent, heir) as (
    select reads.oid, i.inhrelid from reads join pg_class c on c.oid = reads.oid and c.relkind = 'r'
      join pg_inherits i on i.inhparent = reads.oid
    union
    select heirs.parent, i.inhrelid from heirs join pg_inherits i on i.inhparent = heirs.heir
), names as (
    select c.oid, n.nspname || '.' || c.relname as name
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
)
select p.name, array_agg(h.name order by h.name)
  from heirs join names p on p.oid = parent join names h on h.oid = heir
 group by 1 order by 1
"""
"""Tables that others inherit from, among those that a table or view reads. A partitioned table is not one of them."""

SAMPLED_ROWS_PER_CHUNK: Final = 200
"""Rows that a sampled plan looks at for each chunk; the sizes then vary by about a tenth."""


@dataclass(slots=True)
class SqlSource:
    """An open source: a read-only transaction that holds the run's snapshot.

    Attributes:
        conn: the transaction that exported the snapshot; it stays open for the whole run.
        relation: what is read.
        ranges: its key, by which its rows are told apart.
        snapshot: the name under which readers join.
    """

    conn: psycopg.Connection[Any]
    relation: Relation
    ranges: KeyRanges
    snapshot: str

    @classmethod
    def open(
        cls,
        conn: psycopg.Connection[Any],
        *,
        table: str | None,
        query: str | None,
        key: Sequence[str],
        only: bool = False,
    ) -> SqlSource:
        """Begin the snapshot and describe what will be read.

        Raises:
            ConfigError: there is no such table, the query does not run, or the key is not a column or has
                no order.
        """
        conn.execute("begin isolation level repeatable read read only")
        relation = catalog.describe_query(conn, query) if query is not None else find_table(conn, table or "")
        relation = _alone(relation) if only else relation
        if not relation.columns:
            msg = f"read source {relation.label}: it has no columns, expected at least one. There is nothing to move"
            raise RefusedError(msg)
        check_stable(conn, relation, query)
        _check_key(conn, relation, key)
        row = conn.execute("select pg_export_snapshot()").fetchone()
        columns = (relation.column(name) for name in key)
        ranges = KeyRanges(item=relation.from_item.as_string(conn), key=tuple(c for c in columns if c is not None))
        return cls(conn=conn, relation=relation, ranges=ranges, snapshot=row[0] if row else "")

    def plan(self, chunk_rows: int) -> Plan:
        """Cut the key's range into chunks of about `chunk_rows` rows.

        Exact when an index leads with the key and the statistics know of at most `EXACT_ROWS` rows, or
        when there is no such index (one sorted pass); from a sample of the table otherwise.
        """
        relation = self.relation
        sampled = relation.kind == "r" and relation.reltuples > EXACT_ROWS and not self.ranges.only
        if self.ranges.only:
            # A walk over the key's index would pass every row to find the few; these are sorted by themselves.
            boundaries, total = self._pass(chunk_rows)
        elif sampled:
            boundaries, total = self._sample(chunk_rows)
        elif self.indexed():
            boundaries, total = self._walk(chunk_rows)
        else:
            boundaries, total = self._pass(chunk_rows)
        null_rows = 0 if self.ranges.nullable else None
        chunks = chunks_between(boundaries, total_rows=total, chunk_rows=chunk_rows, null_rows=null_rows)
        return Plan(
            chunks=chunks,
            estimated_rows=total,
            estimated_bytes=total * relation.row_bytes,
            exact=not sampled,
        )

    def indexed(self) -> bool:
        """Whether an index leads with the key, so that a chunk is read without scanning the whole table."""
        return self.relation.oid is not None and catalog.leads_an_index(self.conn, self.relation.oid, self.ranges.names)

    # --- boundaries ------------------------------------------------------------------------------

    def _walk(self, chunk_rows: int) -> tuple[list[Key], int]:
        """Walk the index, `chunk_rows` entries at a step: 0.2 s for 5 million rows against 1.2 s for one row_number.

        The server takes all steps in one statement: a round trip for each would cost more than the step.
        """
        named = [(sql.Identifier("s", name), sql.Identifier(f"_key{n}")) for n, name in enumerate(self.ranges.names)]
        fields = {
            "item": self.relation.from_item,
            "present": self.ranges.present(),
            "columns": sql.SQL(", ").join(sql.SQL("{} as {}").format(*pair) for pair in named),
            "texts": sql.SQL(", ").join(sql.SQL("{}::text").format(key) for _, key in named),
            "key": sql.SQL("row({})").format(sql.SQL(", ").join(name for name, _ in named)),
            "keys": sql.SQL(", ").join(key for _, key in named),
            "at": sql.SQL(", ").join(sql.SQL("at.{}").format(key) for _, key in named),
            "next": sql.SQL(", ").join(sql.SQL("next.{}").format(key) for _, key in named),
            "walk": sql.SQL(", ").join(sql.SQL("walk.{}").format(key) for _, key in named),
            # By number: a name could be that of an output column.
            "order": sql.SQL(", ").join(sql.SQL(str(n)) for n in range(1, len(named) + 1)),
            "downwards": sql.SQL(", ").join(sql.SQL(f"{n} desc") for n in range(1, len(named) + 1)),
            "step": sql.Literal(chunk_rows),
        }
        rows = self.conn.execute(sql.SQL(_WALK).format(**fields)).fetchall()
        if not rows:
            return [], 0
        *_, (*last, _) = rows
        count = sql.SQL("select count(*) from {} where {} >= {} and {}").format(
            self.relation.from_item, self.ranges.row(), self.ranges.literal(last), self.ranges.present()
        )
        rest = self.conn.execute(count).fetchone()
        return [tuple(row[:-1]) for row in rows[1:]], sum(row[-1] for row in rows) + (rest[0] if rest else 0)

    def _pass(self, chunk_rows: int) -> tuple[list[Key], int]:
        """Number all rows in the key's order, for a source without a fitting index: one sort."""
        return self._numbered(self.relation.from_item, chunk_rows, 1)

    def _sample(self, chunk_rows: int) -> tuple[list[Key], int]:
        """Number a sample of the table's blocks; the last boundary stays open, so nothing can be missed."""
        total = int(self.relation.reltuples)
        percent = min(100.0, max(0.01, 100.0 * SAMPLED_ROWS_PER_CHUNK / chunk_rows))
        item = sql.SQL("{} tablesample system ({})").format(self.relation.from_item, sql.Literal(percent))
        boundaries, sampled = self._numbered(item, max(1, round(chunk_rows * percent / 100)), percent / 100)
        return boundaries, total if sampled else 0

    def _numbered(self, item: sql.Composable, step: int, share: float) -> tuple[list[Key], int]:
        names = sql.SQL(", ").join(map(sql.Identifier, self.ranges.names))
        keys, texts, before = (
            [sql.Identifier(f"_{word}{number}") for number in range(len(self.ranges.key))]
            for word in ("key", "text", "before")
        )
        inner = sql.SQL(
            "select {keys}, row_number() over (order by {names}) as _n, count(*) over () as _total"
            " from {item} where {present}"
        ).format(keys=_pairs("{} as {}", map(sql.Identifier, self.ranges.names), keys), names=names, item=item,
                 present=self.ranges.planned())  # fmt: skip
        query = sql.SQL(
            "select {texts}, _total from (select *, {befores} from ({inner}) a where mod(_n - 1, {step}) = 0) b"
            " where _n > 1 and (row({keys}) > row({before})) is not false order by _n"
        ).format(
            texts=_pairs("{}::text as {}", keys, texts),
            befores=_pairs("lag({}) over (order by _n) as {}", keys, before),
            inner=inner,
            step=sql.Literal(step),
            keys=sql.SQL(", ").join(keys),
            before=sql.SQL(", ").join(before),
        )
        rows = self.conn.execute(query).fetchall()
        if rows:
            return [tuple(row[:-1]) for row in rows], round(rows[0][-1] / share)
        count = sql.SQL("select count(*) from {} where {}").format(item, self.ranges.planned())
        counted = self.conn.execute(count).fetchone()
        return [], round((counted[0] if counted else 0) / share)

    def unique(self) -> bool:
        """Whether the database guarantees that no two rows have one key: a unique index on it or on a part of it."""
        relation = self.relation
        if relation.oid is None or relation.kind not in {"r", "p"}:
            return False
        row = self.conn.execute(
            _UNIQUE,
            {"oid": relation.oid, "kind": relation.kind, "only": relation.only, "key": list(self.ranges.names)},
        ).fetchone()
        return bool(row and row[0])

    def inherited(self) -> tuple[str, ...]:
        """Return a sentence for each table whose heirs' rows are read with its own."""
        relation = self.relation
        if relation.oid is None or relation.only:
            return ()
        direct = relation.kind == "r"
        why = "" if direct else f", which {relation.label} reads, unless it says ONLY"
        advice = "Give --only to leave them out" if direct else "Say ONLY there to leave them out"
        return tuple(
            f"the rows of {_few(heirs)} come along: {'it inherits' if len(heirs) == 1 else 'they inherit'} from "
            f"{parent}{why}. {advice}"
            for parent, heirs in self.conn.execute(_HEIRS, [relation.oid]).fetchall()
        )

    def definition(self, types: Sequence[int]) -> TableDefinition | None:
        """Return how the table is defined, with the types of the given oids; None for a view or query."""
        relation = self.relation
        if relation.oid is None or relation.kind not in {"r", "p"}:
            return None
        return read_definition(self.conn, relation.oid, types)


_NAMED: Final = 5
"""So many heirs are named."""


def _few(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _alone(relation: Relation) -> Relation:
    """Return a table without those that inherit from it.

    Raises:
        RefusedError: it is no plain table.
    """
    if relation.kind != "r":
        what = "partitioned, and has no rows of its own" if relation.kind == "p" else "no table"
        msg = f"read source table: only is given, and {relation.label} is {what}. Leave --only out"
        raise RefusedError(msg)
    return replace(relation, from_item=sql.SQL("only {}").format(relation.from_item), only=True)


def _pairs(form: LiteralString, left: Iterable[sql.Identifier], right: Iterable[sql.Identifier]) -> sql.Composed:
    return sql.SQL(", ").join(sql.SQL(form).format(*pair) for pair in zip(left, right, strict=True))


def find_table(
    conn: psycopg.Connection[Any], table: str, what: str = "source table", flag: str = "--table or source.table"
) -> Relation:
    """Describe a table or view that this user may read; `what` and `flag` are for messages.

    Raises:
        ConfigError: there is none of that name, it is something else, or this user may not read it.
    """
    found = catalog.resolve(conn, table)
    if found is None:
        near = conn.execute(
            "select string_agg(t, ', ') from (select table_schema || '.' || table_name as t"
            " from information_schema.tables where table_schema not in ('pg_catalog', 'information_schema')"
            " order by 1 limit 10) s"
        ).fetchone()
        listed = near[0] if near and near[0] else "none that this user may see"
        msg = f"read {what}: {table} is not there. Tables in this database: {listed}. Change {flag}"
        raise ConfigError(msg)
    oid, schema, name = found
    relation = catalog.describe_table(conn, oid, schema, name)
    if relation.kind not in {"r", "p", "v", "m", "f"}:
        msg = f"read {what}: {relation.label} is not a table or view. Change {flag}"
        raise ConfigError(msg)
    try:
        conn.execute(sql.SQL("select from {} limit 0").format(relation.from_item))
    except errors.InsufficientPrivilege as error:
        if "row-level security" in str(error):
            msg = (
                f"read {what}: row-level security hides rows of {relation.label} from this user. Read as its "
                "owner or a user with BYPASSRLS, or select what may be seen in a query over a view"
            )
        else:
            msg = f"read {what}: this user may not read {relation.label}. Grant SELECT on it"
        raise ConfigError(msg) from error
    return relation


def _check_key(conn: psycopg.Connection[Any], relation: Relation, key: Sequence[str]) -> None:
    names = [column.name for column in relation.columns]
    unknown = [name for name in key if name not in names]
    if unknown:
        msg = (
            f"cut chunks by key: {relation.label} has no column {', '.join(unknown)}, expected one of "
            f"{', '.join(names)}. Change --key"
        )
        raise ConfigError(msg)
    if len(set(key)) < len(key):
        msg = f"cut chunks by key: a column is named twice in {', '.join(key)}. Change --key"
        raise RefusedError(msg)
    order = sql.SQL(", ").join(map(sql.Identifier, key))
    try:
        with conn.transaction():
            empty = sql.SQL("select {1} from {0} order by {1} limit 0").format(relation.from_item, order)
            result = conn.execute(empty).pgresult
            oids = [result.ftype(number) for number in range(result.nfields)] if result else []
            strange = conn.execute(_HIDDEN_ORDER, {"types": oids}).fetchall()
    except errors.UndefinedFunction as error:
        types = ", ".join(f"{c.name} {c.pg_type}" for name in key if (c := relation.column(name)))
        msg = f"cut chunks by key: {types} has no order. Choose a key of a type that can be sorted"
        raise RefusedError(msg) from error
    if strange:
        listed = ", ".join(f"{kind} (schema {schema})" for kind, schema in strange)
        msg = (
            f"cut chunks by key: the operators that compare {listed} are not in this user's search_path, so another "
            "comparison would be made than the one that sorts. Add the schema: alter role … set search_path = …"
        )
        raise RefusedError(msg)
