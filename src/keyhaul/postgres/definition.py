"""How a source table is defined, beyond its columns' types: what a missing target is created with.

Everything is read as the server prints it with an empty search path, so that each name is qualified.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from psycopg import sql

from keyhaul.quoting import quote_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import psycopg

_COLUMNS: Final = """
select a.attname, coalesce(pg_get_expr(d.adbin, d.adrelid), ''), a.attidentity::text, a.attgenerated::text,
       case when a.attcollation <> t.typcollation and a.attcollation <> 0
            then quote_ident(n.nspname) || '.' || quote_ident(c.collname) else '' end,
       case when a.attidentity = '' and not s.refobjid is null then s.objid::regclass::text else '' end
  from pg_attribute a join pg_type t on t.oid = a.atttypid
  left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
  left join pg_collation c on c.oid = a.attcollation left join pg_namespace n on n.oid = c.collnamespace
  left join pg_depend s on s.refclassid = 'pg_class'::regclass and s.refobjid = a.attrelid and s.refobjsubid = a.attnum
       and s.classid = 'pg_class'::regclass and s.deptype = 'a'
       and exists (select from pg_class q where q.oid = s.objid and q.relkind = 'S')
 where a.attrelid = %(oid)s and a.attnum > 0 and not a.attisdropped
 order by a.attnum
"""

_SEQUENCES: Final = """
select a.attname, p.data_type::text, p.start_value, p.increment_by, p.min_value, p.max_value, p.cache_size, p.cycle,
       n.nspname, c.relname, has_sequence_privilege(c.oid, 'select')
  from pg_attribute a
  join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = a.attrelid and d.refobjsubid = a.attnum
       and d.classid = 'pg_class'::regclass and d.deptype in ('a', 'i')
  join pg_class c on c.oid = d.objid and c.relkind = 'S' join pg_namespace n on n.oid = c.relnamespace
  join pg_sequences p on p.schemaname = n.nspname and p.sequencename = c.relname
 where a.attrelid = %(oid)s
"""

_CONSTRAINTS: Final = """
select c.conname, c.contype::text, pg_get_constraintdef(c.oid),
       array(select a.attname::text from unnest(c.conkey) k(n)
               join pg_attribute a on a.attrelid = c.conrelid and a.attnum = k.n
              union
             select a.attname::text from pg_depend d
               join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
              where c.contype = 'x' and d.classid = 'pg_class'::regclass and d.objid = c.conindid
                and d.refobjid = c.conrelid and d.refobjsubid > 0),
       case when c.confrelid <> 0 then c.confrelid::regclass::text else '' end, c.confrelid = c.conrelid
  from pg_constraint c
 where c.conrelid = %(oid)s and c.contype in ('p', 'u', 'c', 'x', 'f')
 order by array_position(array['p', 'u', 'x', 'c', 'f'], c.contype::text), c.conname
"""

_INDEXES: Final = """
select c.relname, quote_ident(c.relname), pg_get_indexdef(i.indexrelid), i.indrelid::regclass::text,
       array(select a.attname::text
               from pg_depend d join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
              where d.classid = 'pg_class'::regclass and d.objid = i.indexrelid and d.refobjid = i.indrelid
                and d.refobjsubid > 0)
  from pg_index i join pg_class c on c.oid = i.indexrelid
 where i.indrelid = %(oid)s
   and not exists (select from pg_constraint k where k.conindid = i.indexrelid and k.contype in ('p', 'u', 'x'))
 order by c.relname
"""

_TYPES: Final = """
with recursive used(oid, depth) as (
    select t, 0 from unnest(%(types)s::oid[]) t
    union
    select x.oid, u.depth + 1 from used u join pg_type t on t.oid = u.oid
     cross join lateral (
        select t.typelem as oid where t.typcategory = 'A' and t.typelem <> 0
        union all select t.typbasetype where t.typtype = 'd'
        union all select a.atttypid from pg_attribute a where t.typtype = 'c' and a.attrelid = t.typrelid
                                         and a.attnum > 0 and not a.attisdropped
        union all select r.rngsubtype from pg_range r where r.rngtypid = t.oid
        union all select r.rngtypid from pg_range r where r.rngmultitypid = t.oid) x
     where u.depth < 20
)
select t.oid, n.nspname, t.typname, t.typtype::text, max(u.depth),
       e.extname,
       (select string_agg(quote_literal(l.enumlabel), ', ' order by l.enumsortorder)
          from pg_enum l where l.enumtypid = t.oid),
       format_type(t.typbasetype, t.typtypmod), coalesce(pg_get_expr(t.typdefaultbin, 0), ''), t.typnotnull,
       coalesce((select quote_ident(cn.nspname) || '.' || quote_ident(c.collname) from pg_collation c
                   join pg_namespace cn on cn.oid = c.collnamespace join pg_type b on b.oid = t.typbasetype
                  where c.oid = t.typcollation and t.typcollation <> b.typcollation), ''),
       coalesce((select array_agg(format('constraint %%I %%s', k.conname, pg_get_constraintdef(k.oid))
                                  order by k.conname)
                   from pg_constraint k where k.contypid = t.oid and k.contype = 'c'), '{}'),
       (select string_agg(format('%%I %%s', a.attname, format_type(a.atttypid, a.atttypmod))
                          || case when a.attcollation <> b.typcollation
                                  then format(' collate %%I.%%I', cn.nspname, c.collname) else '' end,
                          ', ' order by a.attnum)
          from pg_attribute a join pg_type b on b.oid = a.atttypid
          left join pg_collation c on c.oid = a.attcollation left join pg_namespace cn on cn.oid = c.collnamespace
         where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped),
       (select format('subtype = %%s', format_type(r.rngsubtype, null))
               || case when o.opcdefault then '' else format(', subtype_opclass = %%I.%%I', on_.nspname, o.opcname) end
               || case when r.rngcollation <> s.typcollation
                       then format(', collation = %%I.%%I', cn.nspname, c.collname) else '' end
               || case when r.rngsubdiff <> 0 then format(', subtype_diff = %%s', r.rngsubdiff) else '' end
               || format(', multirange_type_name = %%I.%%I', mn.nspname, m.typname)
          from pg_range r join pg_type s on s.oid = r.rngsubtype
          join pg_opclass o on o.oid = r.rngsubopc join pg_namespace on_ on on_.oid = o.opcnamespace
          join pg_type m on m.oid = r.rngmultitypid join pg_namespace mn on mn.oid = m.typnamespace
          left join pg_collation c on c.oid = r.rngcollation left join pg_namespace cn on cn.oid = c.collnamespace
         where r.rngtypid = t.oid and r.rngcanonical = 0),
       t.typtype = 'c' and exists (select from pg_class c where c.oid = t.typrelid and c.relkind <> 'c')
  from used u join pg_type t on t.oid = u.oid join pg_namespace n on n.oid = t.typnamespace
  left join pg_depend x on x.classid = 'pg_type'::regclass and x.objid = t.oid and x.deptype = 'e'
  left join pg_extension e on e.oid = x.refobjid
 where n.nspname <> 'pg_catalog' and t.typtype in ('e', 'd', 'c', 'r', 'b')
   and not (t.typtype = 'b' and t.typcategory = 'A')
 group by t.oid, n.nspname, t.typname, t.typtype, t.typbasetype, t.typtypmod, t.typdefaultbin, t.typnotnull,
          t.typcollation, t.typrelid, e.extname
 order by max(u.depth) desc, t.typname
"""

_EXTRAS: Final = """
select format('partitioning by %%s: the new table is one table', pg_get_partkeydef(c.oid))
  from pg_class c where c.oid = %(oid)s and c.relkind = 'p'
union all
select format('trigger %%s: not created', t.tgname)
  from pg_trigger t where t.tgrelid = %(oid)s and not t.tgisinternal and t.tgparentid = 0
union all
select 'row security: not created' from pg_class c where c.oid = %(oid)s and c.relrowsecurity
 order by 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceDefinition:
    """A sequence that belongs to a column.

    Attributes:
        last_value: as the sequence says it; None when this user may not read it.
        is_called: whether the next value is the one after it.
    """

    data_type: str
    start: int
    increment: int
    minimum: int
    maximum: int
    cache: int
    cycle: bool
    last_value: int | None
    is_called: bool

    def options(self) -> str:
        """Return the options as CREATE SEQUENCE and GENERATED … AS IDENTITY (…) take them."""
        return (
            f"increment by {self.increment} minvalue {self.minimum} maxvalue {self.maximum} "
            f"start with {self.start} cache {self.cache} {'cycle' if self.cycle else 'no cycle'}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnDefinition:
    """What a column has beyond its type.

    Attributes:
        default: the expression; for a generated column, what it is generated from.
        identity: ``a`` (always), ``d`` (by default) or empty.
        generated: ``s`` (stored), ``v`` (virtual) or empty.
        collation: qualified, when it is not the type's own.
        sequence: of an identity or serial column.
    """

    name: str
    default: str = ""
    identity: str = ""
    generated: str = ""
    collation: str = ""
    sequence: SequenceDefinition | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstraintDefinition:
    """A constraint: `kind` is ``p``, ``u``, ``x``, ``c`` or ``f``, `sql` what follows CONSTRAINT name.

    `references` is the table that a foreign key points at, `to_itself` whether that is its own.
    """

    name: str
    kind: str
    sql: str
    columns: frozenset[str]
    references: str = ""
    to_itself: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexDefinition:
    """An index that no constraint owns.

    Attributes:
        unique: whether it is a UNIQUE index.
        method: what follows the table's name: ``USING btree (…) …``.
    """

    name: str
    unique: bool
    method: str
    columns: frozenset[str]


TypeKind = Literal["enum", "domain", "composite", "range", "extension", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeDefinition:
    """A type that a column needs and that is not built in.

    Attributes:
        schema, name: as stored.
        kind: ``extension`` and ``other`` cannot be created by us.
        sql: CREATE TYPE or CREATE DOMAIN, empty for those two and for the row type of a table.
        shape: what a type of the same name must have in common with it: an enum's labels, in order, as SQL
            literals; a composite type's attributes; a domain's base type; a range's subtype.
        extension: that it belongs to.
    """

    schema: str
    name: str
    kind: TypeKind
    sql: str = ""
    shape: str = ""
    extension: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableDefinition:
    """All that is known of a source table's definition, read in the run's snapshot.

    `extras` are what no new table gets, one sentence each.
    """

    schema: str
    table: str
    columns: Mapping[str, ColumnDefinition] = field(default_factory=dict)
    constraints: Sequence[ConstraintDefinition] = ()
    indexes: Sequence[IndexDefinition] = ()
    types: Sequence[TypeDefinition] = ()
    extras: Sequence[str] = ()


def read_definition(conn: psycopg.Connection[Any], oid: int, types: Sequence[int]) -> TableDefinition:
    """Read how a table is defined.

    Args:
        conn: inside the run's snapshot.
        oid: of the table.
        types: oids of the types of the columns that are copied.
    """
    named = conn.execute(
        "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = %s",
        [oid],
    ).fetchone()
    schema, table = named or ("", "")
    with conn.transaction():
        path = conn.execute("select current_setting('search_path')").fetchone()
        conn.execute("set local search_path = ''")
        sequences = _sequences(conn, oid)
        columns = {
            name: ColumnDefinition(
                name=name,
                default=default,
                identity=identity,
                generated=generated,
                collation=collation,
                sequence=sequences.get(name),
            )
            for name, default, identity, generated, collation, _ in conn.execute(_COLUMNS, {"oid": oid})
        }
        constraints = tuple(
            ConstraintDefinition(
                name=name, kind=kind, sql=text, columns=frozenset(names), references=references, to_itself=to_itself
            )
            for name, kind, text, names, references, to_itself in conn.execute(_CONSTRAINTS, {"oid": oid})
        )
        indexes = tuple(map(_index, conn.execute(_INDEXES, {"oid": oid})))
        extras = tuple(sentence for (sentence,) in conn.execute(_EXTRAS, {"oid": oid}))
        conn.execute("select set_config('search_path', %s, true)", [path[0] if path else ""])
    return TableDefinition(
        schema=schema,
        table=table,
        columns=columns,
        constraints=constraints,
        indexes=indexes,
        types=read_types(conn, types),
        extras=extras,
    )


def read_types(conn: psycopg.Connection[Any], types: Sequence[int]) -> tuple[TypeDefinition, ...]:
    """Return the types that are not built in, among the given oids and all that they are made of, innermost first."""
    with conn.transaction():
        path = conn.execute("select current_setting('search_path')").fetchone()
        conn.execute("set local search_path = ''")
        found = tuple(_type(row) for row in conn.execute(_TYPES, {"types": list(types)}))
        conn.execute("select set_config('search_path', %s, true)", [path[0] if path else ""])
    return found


def _sequences(conn: psycopg.Connection[Any], oid: int) -> dict[str, SequenceDefinition]:
    """Return the sequence of each column that has one; their values are not those of the snapshot but newer."""
    sequences = {}
    for name, kind, start, step, low, high, cache, cycle, schema, sequence, readable in conn.execute(
        _SEQUENCES, {"oid": oid}
    ).fetchall():
        state = None
        if readable:
            query = sql.SQL("select last_value, is_called from {}").format(sql.Identifier(schema, sequence))
            state = conn.execute(query).fetchone()
        sequences[name] = SequenceDefinition(
            data_type=kind,
            start=start,
            increment=step,
            minimum=low,
            maximum=high,
            cache=cache,
            cycle=cycle,
            last_value=state[0] if state else None,
            is_called=bool(state and state[1]),
        )
    return sequences


def _index(row: Sequence[Any]) -> IndexDefinition:
    """Return the index that one row of `_INDEXES` describes."""
    name, quoted, text, on, names = row
    _, _, rest = text.partition(f" INDEX {quoted} ON ")
    method = rest.removeprefix("ONLY ").removeprefix(f"{on} ")
    return IndexDefinition(name=name, unique=text.startswith("CREATE UNIQUE"), method=method, columns=frozenset(names))


def _type(row: Sequence[Any]) -> TypeDefinition:
    """Return the type that one row of `_TYPES` describes."""
    _, schema, name, typtype, _, extension, labels, base, default, not_null, *rest = row
    collation, constraints, attributes, subtype, is_row_of_table = rest
    if extension:
        return TypeDefinition(schema=schema, name=name, kind="extension", extension=extension)
    full = quote_name(schema, name)
    if typtype == "e":
        return TypeDefinition(
            schema=schema,
            name=name,
            kind="enum",
            sql=f"create type {full} as enum ({labels or ''})",
            shape=labels or "",
        )
    if typtype == "d":
        words = [f"create domain {full} as {base}"]
        words += [f"collate {collation}"] if collation else []
        words += [f"default {default}"] if default else []
        words += ["not null"] if not_null else []
        return TypeDefinition(schema=schema, name=name, kind="domain", sql=" ".join([*words, *constraints]), shape=base)
    if typtype == "c":
        create = "" if is_row_of_table else f"create type {full} as ({attributes or ''})"
        return TypeDefinition(schema=schema, name=name, kind="composite", sql=create, shape=attributes or "")
    if typtype == "r" and subtype:
        create = f"create type {full} as range ({subtype})"
        return TypeDefinition(schema=schema, name=name, kind="range", sql=create, shape=subtype)
    return TypeDefinition(schema=schema, name=name, kind="other")
