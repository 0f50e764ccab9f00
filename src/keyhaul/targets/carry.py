"""A table's definition as pg_catalog has it, and the statements that give it to a fresh table of another name.

The texts of pg_get_indexdef and its like are qualified only with an empty search path: see `qualified`.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from keyhaul.quoting import quote_name, quote_text
from keyhaul.targets.anatomy import KNOWN_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A table, and the fresh one that is to take its place.

    Attributes:
        schema: of both.
        table, fresh: their names, not quoted; what the fresh one owns is called `fresh`, ``_`` and ten
            digits of a hash of its name to be.
        oid: of the table that is there now.
    """

    schema: str
    table: str
    fresh: str
    oid: int

    @property
    def old_name(self) -> str:
        """Return the quoted name of the table."""
        return quote_name(self.schema, self.table)

    @property
    def new_name(self) -> str:
        """Return the quoted name of the fresh table."""
        return quote_name(self.schema, self.fresh)

    def values(self) -> dict[str, object]:
        """Return the parameters of this module's queries."""
        return {
            "t": self.oid,
            "old": self.old_name,
            "new": self.new_name,
            "schema": self.schema,
            "table": self.table,
            "fresh": self.fresh,
            **KNOWN_OPTIONS,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A statement that runs when all chunks are loaded, unless the object that it makes is there.

    Attributes:
        kind: ``index``, ``constraint`` or ``statistics``.
        name: of what it makes; in the schema, a constraint's on the fresh table.
        tablespace: where it makes it; empty for the database's own.
    """

    kind: str
    name: str
    sql: str
    tablespace: str = ""


_CREATE: Final = """
select format('create %%stable %%s (like %%s including all excluding indexes excluding constraints'
              ' excluding statistics excluding comments) using %%I%%s%%s',
              case c.relpersistence when 'u' then 'unlogged ' else '' end, %(new)s::text, %(old)s::text, a.amname,
              (select ' with (' || string_agg(o, ', ') || ')'
                 from (select unnest(c.reloptions) union all
                       select 'toast.' || unnest(r.reloptions) from pg_class r where r.oid = c.reltoastrelid) as w(o)
                where a.amname <> 'heap' or split_part(o, '=', 1) = any(%(table_options)s::text[])),
              (select format(' tablespace %%I', s.spcname) from pg_tablespace s where s.oid = c.reltablespace))
  from pg_class c join pg_am a on a.oid = c.relam where c.oid = %(t)s
"""

_COLUMNS: Final = """
select format('alter table %%s alter column %%I set statistics %%s', %(new)s::text, attname, attstattarget)
  from pg_attribute where attrelid = %(t)s and attnum > 0 and not attisdropped and attstattarget >= 0
union all
select format('alter table %%s alter column %%I set (%%s)', %(new)s::text, attname, o.kept)
  from pg_attribute, lateral (select string_agg(w, ', ') from unnest(attoptions) w
                               where split_part(w, '=', 1) = any(%(column_options)s::text[])) as o(kept)
 where attrelid = %(t)s and attnum > 0 and not attisdropped and o.kept is not null
"""

# A constraint with an index bears the index's name, which must be free in the schema until the swap.
_CONSTRAINTS: Final = """
select case when n.contype in ('p', 'u', 'x') then format('%%s_%%s', %(fresh)s::text, left(md5(n.conname), 10))
            else n.conname end,
       pg_get_constraintdef(n.oid), n.contype = 'f' and n.confrelid = n.conrelid, coalesce(s.spcname, '')
  from pg_constraint n left join pg_class i on i.oid = n.conindid and n.contype in ('p', 'u', 'x')
       left join pg_tablespace s on s.oid = i.reltablespace
 where n.conrelid = %(t)s and n.contype in ('c', 'p', 'u', 'x', 'f') and n.conparentid = 0
 order by n.contype <> 'p', n.conname
"""

_INDEXES: Final = """
select format('%%s_%%s', %(fresh)s::text, left(md5(i.relname), 10)), x.indisunique,
       substr(pg_get_indexdef(x.indexrelid),
              length(format('CREATE %%sINDEX %%I ON %%s ', case when x.indisunique then 'UNIQUE ' else '' end,
                            i.relname, x.indrelid::regclass)) + 1),
       coalesce(s.spcname, '')
  from pg_index x join pg_class i on i.oid = x.indexrelid left join pg_tablespace s on s.oid = i.reltablespace
 where x.indrelid = %(t)s and not exists (select from pg_constraint n
       where n.conindid = x.indexrelid and n.conrelid = x.indrelid and n.contype in ('p', 'u', 'x'))
 order by i.relname
"""

_TRIGGERS: Final = """
select pg_get_triggerdef(oid), case tgenabled when 'D' then format('disable trigger %%I', tgname)
       when 'R' then format('enable replica trigger %%I', tgname)
       when 'A' then format('enable always trigger %%I', tgname) end
  from pg_trigger where tgrelid = %(t)s and not tgisinternal order by tgname
"""

_STATISTICS: Final = """
select quote_ident(n.nspname), format('%%s_%%s', %(fresh)s::text, left(md5(s.stxname), 10)),
       pg_get_statisticsobjdef_columns(s.oid),
       (select string_agg(case k when 'd' then 'ndistinct' when 'f' then 'dependencies' else 'mcv' end, ', ')
          from unnest(s.stxkind) k where k <> 'e'), s.stxstattarget
  from pg_statistic_ext s join pg_namespace n on n.oid = s.stxnamespace where s.stxrelid = %(t)s order by s.oid
"""

_IDENTITIES: Final = """
select a.attname, pg_get_serial_sequence(%(new)s, a.attname), o.oid::regclass::text, o.relname, o.oid,
       q.seqtypid::regtype::text
  from pg_attribute a join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = a.attrelid
       and d.refobjsubid = a.attnum and d.classid = 'pg_class'::regclass and d.deptype = 'i'
       join pg_class o on o.oid = d.objid and o.relkind = 'S' join pg_sequence q on q.seqrelid = o.oid
 where a.attrelid = %(t)s and a.attidentity <> ''
"""


@contextmanager
def qualified(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """Empty the search path of the transaction under way; the path before comes back when all went well."""
    row = conn.execute("select current_setting('search_path'), set_config('search_path', '', true)").fetchone()
    yield  # after an error the rollback restores it
    if row is not None:
        conn.execute("select set_config('search_path', %s, true)", [row[0]])


def creation(conn: psycopg.Connection[Any], pair: Pair) -> tuple[list[str], list[Step]]:
    """Return what creates the fresh table, and what completes it when its rows are there.

    Checks, keys, unique indexes, references to other tables and triggers are there during the load, so that
    a record that breaks one is isolated as in mode append. Other indexes, references of the table to itself
    (a row may come before the one that it refers to) and statistics objects wait.
    """
    values = pair.values()
    before = [_tablespace("")]  # what the role or the database prefers is not the table's
    before += [row[0] for query in (_CREATE, _COLUMNS) for row in conn.execute(query, values)]
    after = []
    for name, text, to_itself, tablespace in conn.execute(_CONSTRAINTS, values).fetchall():
        moved = text.replace(f"REFERENCES {_plain(conn, pair)}(", f"REFERENCES {pair.new_name}(", 1)
        statement = f"alter table {pair.new_name} add constraint {quote_name(name)} {moved if to_itself else text}"
        if to_itself:
            after.append(Step(kind="constraint", name=name, sql=statement))
        else:
            before += [_tablespace(tablespace), statement]
    for name, unique, rest, tablespace in conn.execute(_INDEXES, values).fetchall():
        statement = f"create {'unique ' if unique else ''}index {quote_name(name)} on {pair.new_name} {rest}"
        if unique:
            before += [_tablespace(tablespace), statement]
        else:
            after.append(Step(kind="index", name=name, sql=statement, tablespace=tablespace))
    for text, state in conn.execute(_TRIGGERS, values).fetchall():
        before.append(text.replace(f" ON {_plain(conn, pair)} ", f" ON {pair.new_name} ", 1))
        before += [f"alter table {pair.new_name} {state}"] if state else []
    before += [_tablespace("")]
    before += [
        row[0]
        for row in conn.execute(
            "select format('alter table %%s owner to %%s', %(new)s::text, relowner::regrole) from pg_class"
            " where oid = %(t)s",
            values,
        )
    ]
    return before, after + _statistics(conn, pair)


def _plain(conn: psycopg.Connection[Any], pair: Pair) -> str:
    """Return the table's name as the server writes it: quoted only where that is needed."""
    row = conn.execute("select %s::oid::regclass::text", [pair.oid]).fetchone()
    return str(row[0]) if row else ""


def _tablespace(name: str) -> str:
    return f"select set_config('default_tablespace', {quote_text(name)}, true)"


def _statistics(conn: psycopg.Connection[Any], pair: Pair) -> list[Step]:
    steps = []
    for schema, name, columns, kinds, wanted in conn.execute(_STATISTICS, pair.values()).fetchall():
        full = f"{schema}.{quote_name(name)}"
        text = f"create statistics {full} {f'({kinds}) ' if kinds else ''}on {columns} from {pair.new_name}"
        more = f"; alter statistics {full} set statistics {wanted}" if wanted is not None and wanted >= 0 else ""
        steps.append(Step(kind="statistics", name=name, sql=text + more))
    return steps


def identities(conn: psycopg.Connection[Any], pair: Pair) -> list[str]:
    """Return what brings the fresh table's identity sequences to where the table's are; never back.

    Run once before the load, because a job that leaves the column out takes its values from there, and once
    at the swap.
    """
    steps = []
    for _, fresh, old, _, _, kind in conn.execute(_IDENTITIES, pair.values()).fetchall():
        steps.append(f"alter sequence {fresh} as {kind}")  # LIKE makes a bigint of every one
        steps.append(
            f"select setval({quote_text(fresh)}, o.last_value, o.is_called)"  # noqa: S608 - quoted names
            f" from {old} o, {fresh} f, pg_catalog.pg_sequence q"
            f" where q.seqrelid = {quote_text(old)}::regclass"
            " and (not f.is_called or (o.last_value - f.last_value) * sign(q.seqincrement) > 0)"
        )
    return steps


# --- the swap --------------------------------------------------------------------------------------

_OWNED: Final = """
select format('alter sequence %%s owned by %%s.%%I', d.objid::regclass, %(new)s::text, a.attname)
  from pg_depend d join pg_class s on s.oid = d.objid and s.relkind = 'S'
       join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
 where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = %(t)s
   and d.deptype = 'a'
"""

_RENAMES: Final = """
select format('alter table %%s rename to %%I', %(new)s::text, %(table)s::text)
union all
select format('alter index %%I.%%I rename to %%I', %(schema)s::text,
              format('%%s_%%s', %(fresh)s::text, left(md5(i.relname), 10)), i.relname)
  from pg_index x join pg_class i on i.oid = x.indexrelid where x.indrelid = %(t)s
union all
select format('alter statistics %%I.%%I rename to %%I', n.nspname,
              format('%%s_%%s', %(fresh)s::text, left(md5(s.stxname), 10)), s.stxname)
  from pg_statistic_ext s join pg_namespace n on n.oid = s.stxnamespace where s.stxrelid = %(t)s
"""

_MARKS: Final = """
select format('alter table %%s enable row level security', %(old)s::text) from pg_class
 where oid = %(t)s and relrowsecurity
union all
select format('alter table %%s force row level security', %(old)s::text) from pg_class
 where oid = %(t)s and relforcerowsecurity
union all
select format('create policy %%I on %%s as %%s for %%s to %%s%%s%%s', p.polname, %(old)s::text,
              case when p.polpermissive then 'permissive' else 'restrictive' end,
              case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update'
                            when 'd' then 'delete' else 'all' end,
              (select string_agg(case r when 0 then 'public' else r::regrole::text end, ', ')
                 from unnest(p.polroles) r),
              ' using (' || pg_get_expr(p.polqual, p.polrelid) || ')',
              ' with check (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')')
  from pg_policy p where p.polrelid = %(t)s
union all
select case when c.relreplident = 'f' then format('alter table %%s replica identity full', %(old)s::text)
            when c.relreplident = 'n' then format('alter table %%s replica identity nothing', %(old)s::text)
            else format('alter table %%s replica identity using index %%I', %(old)s::text, i.relname) end
  from pg_class c left join pg_index x on x.indrelid = c.oid and x.indisreplident
       left join pg_class i on i.oid = x.indexrelid
 where c.oid = %(t)s and c.relreplident <> 'd' and (c.relreplident <> 'i' or i.oid is not null)
union all
select format('alter table %%s cluster on %%I', %(old)s::text, i.relname)
  from pg_index x join pg_class i on i.oid = x.indexrelid where x.indrelid = %(t)s and x.indisclustered
union all
select format('alter index %%I.%%I alter column %%s set statistics %%s', %(schema)s::text, i.relname, a.attnum,
              a.attstattarget)
  from pg_index x join pg_class i on i.oid = x.indexrelid join pg_attribute a on a.attrelid = i.oid
 where x.indrelid = %(t)s and a.attstattarget >= 0
"""

_COMMENTS: Final = """
select format('comment on %%s is %%L', case when d.objsubid = 0 then format('table %%s', %(old)s::text)
              else format('column %%s.%%I', %(old)s::text, a.attname) end, d.description)
  from pg_description d left join pg_attribute a on a.attrelid = d.objoid and a.attnum = d.objsubid and d.objsubid > 0
 where d.classoid = 'pg_class'::regclass and d.objoid = %(t)s
union all
select format('comment on constraint %%I on %%s is %%L', n.conname, %(old)s::text, d.description)
  from pg_constraint n join pg_description d on d.classoid = 'pg_constraint'::regclass and d.objoid = n.oid
 where n.conrelid = %(t)s
union all
select format('comment on index %%I.%%I is %%L', %(schema)s::text, i.relname, d.description)
  from pg_index x join pg_class i on i.oid = x.indexrelid
       join pg_description d on d.classoid = 'pg_class'::regclass and d.objoid = i.oid where x.indrelid = %(t)s
union all
select format('comment on trigger %%I on %%s is %%L', g.tgname, %(old)s::text, d.description)
  from pg_trigger g join pg_description d on d.classoid = 'pg_trigger'::regclass and d.objoid = g.oid
 where g.tgrelid = %(t)s
union all
select format('comment on policy %%I on %%s is %%L', p.polname, %(old)s::text, d.description)
  from pg_policy p join pg_description d on d.classoid = 'pg_policy'::regclass and d.objoid = p.oid
 where p.polrelid = %(t)s
union all
select format('comment on statistics %%I.%%I is %%L', n.nspname, s.stxname, d.description)
  from pg_statistic_ext s join pg_namespace n on n.oid = s.stxnamespace
       join pg_description d on d.classoid = 'pg_statistic_ext'::regclass and d.objoid = s.oid where s.stxrelid = %(t)s
union all
select format('comment on sequence %%s is %%L', s.oid::regclass, d.description)
  from pg_depend e join pg_class s on s.oid = e.objid and s.relkind = 'S'
       join pg_description d on d.classoid = 'pg_class'::regclass and d.objoid = s.oid
 where e.classid = 'pg_class'::regclass and e.refclassid = 'pg_class'::regclass and e.refobjid = %(t)s
   and e.deptype = 'i'
"""

_GRANTS: Final = """
select format('grant %%s on %%s %%s to %%s%%s', e.privilege_type, %(kind)s::text, %(on)s::text,
              case e.grantee when 0 then 'public' else e.grantee::regrole::text end,
              case when e.is_grantable then ' with grant option' else '' end)
  from pg_class c, aclexplode(coalesce(c.relacl, acldefault(%(letter)s, c.relowner))) e where c.oid = %(oid)s
union all
select format('grant %%s (%%I) on %%s to %%s%%s', e.privilege_type, a.attname, %(on)s::text,
              case e.grantee when 0 then 'public' else e.grantee::regrole::text end,
              case when e.is_grantable then ' with grant option' else '' end)
  from pg_attribute a, aclexplode(a.attacl) e where a.attrelid = %(oid)s and not a.attisdropped
"""

# Default privileges have given the fresh table grants of its own; its owner's go as well, and come back.
_REVOKES: Final = """
select distinct format('revoke all on %%s %%s from %%s', %(kind)s::text, %(on)s::text,
                       case e.grantee when 0 then 'public' else e.grantee::regrole::text end)
  from pg_class c, aclexplode(c.relacl) e where c.oid = %(there)s::regclass
"""


def exchange(conn: psycopg.Connection[Any], pair: Pair) -> list[str]:
    """Return what puts the fresh table in the table's place: the table is dropped, its names and marks pass over.

    Read while the table is locked, so that a grant or comment made during the load is carried, too.
    """
    values = pair.values()

    def ask(query: str) -> list[str]:
        return [row[0] for row in conn.execute(query, values).fetchall()]

    relations = [("table", "r", pair.oid, pair.old_name, pair.new_name)]
    renamed = []
    for _, fresh, old, name, oid, _ in conn.execute(_IDENTITIES, values).fetchall():
        relations.append(("sequence", "s", oid, old, fresh))
        renamed.append(f"alter sequence {fresh} rename to {quote_name(name)}")
    revoked, granted = [], []
    for kind, letter, oid, old, fresh in relations:
        given = {"kind": kind, "letter": letter, "oid": oid, "on": old, "there": fresh}
        revoked += [row[0] for row in conn.execute(_REVOKES, given).fetchall()]
        granted += [row[0] for row in conn.execute(_GRANTS, given).fetchall()]
    return [
        *identities(conn, pair),
        *ask(_OWNED),
        f"drop table {pair.old_name}",
        *ask(_RENAMES),
        *renamed,
        *revoked,
        *granted,
        *ask(_MARKS),
        *ask(_COMMENTS),
    ]
