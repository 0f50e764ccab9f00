"""All that pg_catalog says of a table, in lines that two tables can be compared by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import psycopg

_HEAP: Final = (
    "autovacuum_enabled", "autovacuum_analyze_scale_factor", "autovacuum_analyze_threshold",
    "autovacuum_freeze_max_age", "autovacuum_freeze_min_age", "autovacuum_freeze_table_age",
    "autovacuum_multixact_freeze_max_age", "autovacuum_multixact_freeze_min_age",
    "autovacuum_multixact_freeze_table_age", "autovacuum_vacuum_cost_delay", "autovacuum_vacuum_cost_limit",
    "autovacuum_vacuum_insert_scale_factor", "autovacuum_vacuum_insert_threshold",
    "autovacuum_vacuum_max_threshold", "autovacuum_vacuum_scale_factor", "autovacuum_vacuum_threshold",
    "log_autovacuum_min_duration", "log_autoanalyze_min_duration", "vacuum_index_cleanup",
    "vacuum_max_eager_freeze_failure_rate", "vacuum_truncate",
)  # fmt: skip

KNOWN_OPTIONS: Final[dict[str, object]] = {
    "column_options": ["n_distinct", "n_distinct_inherited"],
    "table_options": [
        *("fillfactor", "parallel_workers", "toast_tuple_target", "user_catalog_table"),
        *_HEAP,
        *(f"toast.{name}" for name in _HEAP),
    ],
    "own_options": ["pg_attver"],
}
"""What a person can set with ALTER TABLE … SET (…), which is carried and compared, as parameters of queries; and
`own_options`, which a server sets by itself: the minor releases of November 2026 keep pg_attver, another one for each
table, in pg_attribute.attoptions. Of an access method that is not the heap all options of a table are taken for set."""

_UNKNOWN: Final = """
select format('option %%s of column %%s', split_part(o, '=', 1), a.attname)
  from pg_attribute a, unnest(a.attoptions) o where a.attrelid = %(t)s and a.attnum > 0 and not a.attisdropped
   and split_part(o, '=', 1) <> all(%(column_options)s::text[] || %(own_options)s::text[])
union all
select format('option %%s', split_part(o, '=', 1))
  from pg_class c join pg_am m on m.oid = c.relam,
       lateral (select unnest(c.reloptions) union all
                select 'toast.' || unnest(r.reloptions) from pg_class r where r.oid = c.reltoastrelid) as w(o)
 where c.oid = %(t)s and m.amname = 'heap'
   and split_part(o, '=', 1) <> all(%(table_options)s::text[] || %(own_options)s::text[])
 order by 1
"""

_TABLE: Final = """
select 'table', concat_ws(' ', 'owner', c.relowner::regrole, 'kind', c.relpersistence, 'access method', a.amname,
       'tablespace', c.reltablespace, 'options',
       (select array_agg(o) from unnest(c.reloptions) o
         where a.amname <> 'heap' or split_part(o, '=', 1) = any(%(table_options)s::text[])),
       'toast options', (select array_agg(o) from unnest(t.reloptions) o
         where a.amname <> 'heap' or 'toast.' || split_part(o, '=', 1) = any(%(table_options)s::text[])),
       'row security', c.relrowsecurity, c.relforcerowsecurity, 'replica identity', c.relreplident)
  from pg_class c left join pg_am a on a.oid = c.relam left join pg_class t on t.oid = c.reltoastrelid
 where c.oid = %(t)s
union all
select 'grant', concat_ws(' ', e.grantee::regrole, e.privilege_type, e.is_grantable)
  from pg_class c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) e where c.oid = %(t)s
union all
select 'grant', concat_ws(' ', a.attname, e.grantee::regrole, e.privilege_type, e.is_grantable)
  from pg_attribute a, aclexplode(a.attacl) e where a.attrelid = %(t)s and not a.attisdropped
union all
select 'column', concat_ws(' ', row_number() over (order by a.attnum), a.attname, format_type(a.atttypid, a.atttypmod),
       'not null', a.attnotnull, 'identity', a.attidentity, 'generated', a.attgenerated, 'collation',
       a.attcollation::regcollation, 'storage', a.attstorage, 'compression', a.attcompression, 'statistics',
       coalesce(nullif(a.attstattarget, -1)::text, 'default'), 'options',
       (select array_agg(o) from unnest(a.attoptions) o where split_part(o, '=', 1) = any(%(column_options)s::text[])),
       'default',
       pg_get_expr(d.adbin, d.adrelid))
  from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
 where a.attrelid = %(t)s and a.attnum > 0 and not a.attisdropped
union all
select 'constraint', concat_ws(' ', n.conname, pg_get_constraintdef(n.oid), n.convalidated)
  from pg_constraint n where n.conrelid = %(t)s and n.contype <> 't'
union all
select 'index', concat_ws(' ', pg_get_indexdef(x.indexrelid), 'valid', x.indisvalid, 'clustered', x.indisclustered,
       'replica identity', x.indisreplident, 'tablespace', i.reltablespace,
       (select array_agg(nullif(a.attstattarget, -1) order by a.attnum) from pg_attribute a where a.attrelid = i.oid))
  from pg_index x join pg_class i on i.oid = x.indexrelid where x.indrelid = %(t)s
union all
select 'trigger', concat_ws(' ', pg_get_triggerdef(g.oid), g.tgenabled)
  from pg_trigger g where g.tgrelid = %(t)s and not g.tgisinternal
union all
select 'policy', concat_ws(' ', p.polname, p.polcmd, p.polpermissive,
       (select array_agg(r order by r) from unnest(p.polroles) r),
       'using', pg_get_expr(p.polqual, p.polrelid), 'check', pg_get_expr(p.polwithcheck, p.polrelid))
  from pg_policy p where p.polrelid = %(t)s
union all
select 'statistics', concat_ws(' ', pg_get_statisticsobjdef(s.oid), nullif(s.stxstattarget, -1))
  from pg_statistic_ext s where s.stxrelid = %(t)s
union all
select 'sequence', concat_ws(' ', s.oid::regclass, 'of', a.attname, d.deptype, s.relowner::regrole, q.seqtypid::regtype,
       q.seqstart, q.seqincrement, q.seqmax, q.seqmin, q.seqcache, q.seqcycle, s.relpersistence,
       (select array_agg(concat_ws(' ', e.grantee::regrole, e.privilege_type, e.is_grantable) order by e.grantee,
               e.privilege_type) from aclexplode(coalesce(s.relacl, acldefault('s', s.relowner))) e))
  from pg_depend d join pg_class s on s.oid = d.objid and s.relkind = 'S' join pg_sequence q on q.seqrelid = s.oid
       join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
 where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = %(t)s
union all
select 'comment', concat_ws(' ', (select identity from pg_identify_object(d.classoid, d.objoid, d.objsubid)),
       d.description)
  from pg_description d
 where (d.classoid, d.objoid) in (
       select 'pg_class'::regclass, %(t)s::oid
       union select 'pg_class'::regclass, indexrelid from pg_index where indrelid = %(t)s
       union select 'pg_constraint'::regclass, oid from pg_constraint where conrelid = %(t)s
       union select 'pg_trigger'::regclass, oid from pg_trigger where tgrelid = %(t)s
       union select 'pg_policy'::regclass, oid from pg_policy where polrelid = %(t)s
       union select 'pg_statistic_ext'::regclass, oid from pg_statistic_ext where stxrelid = %(t)s
       union select 'pg_class'::regclass, objid from pg_depend
              where classid = 'pg_class'::regclass and refclassid = 'pg_class'::regclass and refobjid = %(t)s)
"""


def describe(conn: psycopg.Connection[Any], oid: int) -> frozenset[str]:
    """Return a table's definition, grants and comments, one line each; equal for tables of equal definition.

    The lines name the table, so two are compared while they have the same name, one after the other.
    Who has granted a privilege is not part of it. The search path is to be empty.
    """
    return frozenset(f"{kind}: {text}" for kind, text in conn.execute(_TABLE, {"t": oid, **KNOWN_OPTIONS}).fetchall())


def unknown_options(conn: psycopg.Connection[Any], oid: int) -> list[str]:
    """Return what the table has set of which nothing is known: such options are neither carried nor compared."""
    return [row[0] for row in conn.execute(_UNKNOWN, {"t": oid, **KNOWN_OPTIONS}).fetchall()]
