"""What a missing target is created with, compared with the source's catalog; and what is refused instead."""

import psycopg
import pytest
import support
from moving import move, rows, run_sql

from keyhaul.errors import RefusedError

COLUMNS = """
select a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
       pg_get_expr(d.adbin, d.adrelid), a.attcollation::regcollation::text
  from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
 where a.attrelid = '{table}'::regclass and a.attnum > 0 and not a.attisdropped order by a.attnum
"""
CONSTRAINTS = """
select conname, contype, pg_get_constraintdef(oid) from pg_constraint
 where conrelid = '{table}'::regclass and contype <> 'n' order by 1
"""
INDEXES = "select indexrelid::regclass::text, pg_get_indexdef(indexrelid) from pg_index where indrelid = '{table}'::regclass order by 1"
SEQUENCES = """
select sequencename, data_type::text, start_value, min_value, max_value, increment_by, cycle, cache_size, last_value
  from pg_sequences where schemaname = 'public' order by 1
"""
TYPES = """
select t.oid::regtype::text, t.typtype, format_type(t.typbasetype, t.typtypmod), pg_get_expr(t.typdefaultbin, 0), t.typnotnull,
       array(select enumlabel from pg_enum where enumtypid = t.oid order by enumsortorder)::text[],
       array(select conname || ' ' || pg_get_constraintdef(oid) from pg_constraint where contypid = t.oid order by 1)::text[],
       array(select attname || ' ' || format_type(atttypid, atttypmod) || ' ' || attcollation::regcollation
               from pg_attribute where attrelid = t.typrelid and attnum > 0 order by attnum)::text[],
       (select (rngsubtype::regtype, rngcollation::regcollation, rngsubdiff, rngmultitypid::regtype)::text
          from pg_range where rngtypid = t.oid)
  from pg_type t join pg_namespace n on n.oid = t.typnamespace left join pg_class c on c.oid = t.typrelid
 where n.nspname in ('public', 'kinds') and t.typtype in ('e', 'd', 'c', 'r') and coalesce(c.relkind, 'c') = 'c' order by 1
"""


def equal(databases, query, table="public.t"):
    ours, theirs = (rows(uri, query.format(table=table)) for uri in databases)
    assert ours == theirs
    return ours


def plan(databases, table="public.t", *, key="id", **flags):
    """The DDL of a job, which is not run."""
    from keyhaul.before.prepare import prepare
    from keyhaul.config.job import load_job
    from keyhaul.sessions.connecting import find_ends

    given = {"source": databases[0], "target": databases[1], "table": table, "key": key, "job": "move", **flags}
    job = load_job(None, given, {})
    with prepare(job, find_ends(job)) as prepared:
        return prepared.target.ddl


def tables(uri):
    return [
        name
        for (name,) in rows(
            uri,
            "select oid::regclass::text from pg_class where relkind in ('r', 'p') and relnamespace = 'public'::regnamespace order by 1",
        )
    ]


def test_a_new_table_has_the_types_collations_defaults_and_not_null_of_the_source(databases):
    run_sql(
        databases[0],
        "create function public.twice(int) returns int immutable language sql as 'select $1 * 2'",
        """create table public.t (
             id bigint primary key, a varchar(7) collate "C" not null, b text collate "POSIX", c text collate ucs_basic,
             d numeric(12,3) default 1.5, e timestamptz(3) not null default now(), f interval day to second(2),
             g bit(3) default b'101', h char(4) default 'it''s', i time(0), j int[] default '{1,2}', k varbit(9),
             l numeric, m text default concat('a', 'b'), n date default current_date + 1, o "char", p interval(1))""",
        "insert into public.t (id, a) values (1, 'x'), (2, 'y')",
    )
    report = move(databases, "public.t")
    assert (report.outcome, report.counts.loaded) == ("done", 2)
    equal(databases, COLUMNS)
    equal(databases, CONSTRAINTS)
    equal(databases, "select t::text from {table} t order by id")


def test_types_are_created_first_and_in_their_order_in_their_own_schemas(databases):
    run_sql(
        databases[0],
        "create schema kinds",
        "create type kinds.mood as enum ('sad', 'it''s', 'ok')",
        "create function pg_temp.unused() returns int language sql as 'select 1'",
        "create domain public.positive as int default 7 not null check (value > 0)",
        'create domain public.small as public.positive constraint "less than" check (value < 100)',
        "create domain public.many as numeric(10,2)[] check (cardinality(value) < 5)",
        'create domain kinds.label as varchar(9) collate "C"',
        'create type kinds.inner as (n public.small, "It\'s" kinds.mood, x text collate "POSIX")',
        "create type public.outer as (i kinds.inner, m kinds.mood[])",
        'create type kinds.span as range (subtype = text, collation = "C", multirange_type_name = kinds.several)',
        "create type kinds.floats as range (subtype = float8, subtype_diff = float8mi)",
        """create table public.t (id int primary key, a public.small, b public.many, c kinds.label, d public.outer,
             e kinds.span, f kinds.several, g kinds.floats[], h kinds.mood default 'ok', i public.outer[])""",
        """insert into public.t values (1, 3, '{1.50,2}', 'x', row(row(1, 'sad', 'q'), '{ok,sad}'), '[a,b)', '{[a,b)}', '{"[1,2)"}', default, null),
             (2, 4, null, null, null, null, null, null, null, null)""",
    )
    report = move(databases, "public.t")
    assert report.counts.loaded == 2
    found = equal(databases, TYPES)
    assert [row[0] for row in found] == [
        'kinds."inner"', "kinds.floats", "kinds.label", "kinds.mood", "kinds.span",
        'public."outer"', "public.many", "public.positive", "public.small",
    ]  # fmt: skip
    equal(databases, COLUMNS)
    equal(databases, "select t::text from {table} t order by id")


def test_serial_and_identity_columns_go_on_where_the_source_is(databases):
    run_sql(
        databases[0],
        """create table public.t (id serial primary key, small smallserial, always int generated always as identity
             (start with 100 increment by -5 minvalue -1000 maxvalue 100 cache 3 cycle),
             given bigint generated by default as identity, restarted bigserial, never bigserial, v int)""",
        "insert into public.t (v, never) select g, 0 from generate_series(1, 20) g",
        "insert into public.t (id, small, always, given, v, never) overriding system value values (500, 77, 33, 9000, 1, 0)",
        "select setval('public.t_restarted_seq', 4000, false)",
    )
    before = rows(databases[0], "select t::text from public.t t order by id")
    report = move(databases, "public.t")
    assert report.counts.loaded == 21
    assert rows(databases[1], "select t::text from public.t t order by id") == before
    equal(databases, COLUMNS)
    sequences = equal(databases, SEQUENCES)
    assert [(row[0], row[-1]) for row in sequences] == [
        ("t_always_seq", 0), ("t_given_seq", 20), ("t_id_seq", 20), ("t_never_seq", None),
        ("t_restarted_seq", None), ("t_small_seq", 20),
    ]  # fmt: skip
    owners = "select pg_get_serial_sequence('public.t', a) from unnest('{{id,small,always,given,restarted,never}}'::text[]) a"
    equal(databases, owners)
    insert = "insert into public.t (v) values (0) returning id, small, always, given, restarted, never"
    assert rows(databases[0], insert) == rows(databases[1], insert) == [(21, 21, -5, 21, 4000, 1)]


def test_generated_columns_are_computed_by_the_target(databases):
    run_sql(
        databases[0],
        """create table public.t (id int primary key, a int, b text,
             stored int generated always as (a * 2) stored, virtual text generated always as (lower(b) || '!') virtual)""",
        "insert into public.t (id, a, b) select g, g * 10, 'Ab' || g from generate_series(1, 50) g",
    )
    for loader in ("copy", "adbc"):
        run_sql(databases[1], "drop table if exists public.t")
        assert move(databases, "public.t", loader=loader).counts.loaded == 50
        equal(databases, COLUMNS)
        equal(databases, "select t::text from {table} t order by id")


def test_a_generated_column_beside_a_computed_one_is_copied_and_said(databases):
    run_sql(
        databases[0],
        "create table public.t (id int primary key, a int, twice int generated always as (a * 2) stored)",
        "insert into public.t values (1, 2), (2, 3)",
    )
    flags = {"set": ["a = a + 1"]}
    assert plan(databases, **flags).left_out == (
        "twice: its values are copied and not generated, because another column is not the source's",
    )
    move(databases, "public.t", **flags)
    assert rows(databases[1], "select id, a, twice from public.t order by id") == [(1, 3, 4), (2, 4, 6)]
    assert rows(
        databases[1],
        "select attgenerated from pg_attribute where attrelid = 'public.t'::regclass and attname = 'twice'",
    ) == [("",)]


INDEXED = (
    """create table public.t (id int, part text, a int not null, b text, c int4range, d int, e text, deep jsonb, primary key (part, id) include (a),
         constraint "a once" unique (a) deferrable initially deferred, constraint "b is short" check (length(b) < 30),
         constraint no_overlap exclude using gist (c with &&), constraint nulls unique nulls not distinct (d),
         constraint later check (d > 0) not valid)""",
    "create index partial on public.t (b) where a > 5 and b <> ' ON public.t '",
    "create index expressions on public.t (lower(b), (a + 1))",
    "create index downwards on public.t (a desc nulls last, b asc nulls first)",
    'create unique index "one of e" on public.t (e) include (b, a)',
    'create index pattern on public.t (b text_pattern_ops, b collate "C")',
    "create index deep on public.t using gin (deep jsonb_path_ops) with (fastupdate = off)",
    "create index hashed on public.t using hash (b)",
    'create index "x ON public.t USING" on public.t (d)',
    "insert into public.t select g, 'p' || g % 3, g, 'b' || g, int4range(g * 10, g * 10 + 5), g, 'e' || g, '{\"a\": 1}' from generate_series(1, 30) g",
)


def test_keys_constraints_and_indexes_are_those_of_the_source(databases):
    run_sql(databases[0], *INDEXED)
    assert move(databases, "public.t", key=["part", "id"]).counts.loaded == 30
    assert len(equal(databases, CONSTRAINTS)) == 6
    assert len(equal(databases, INDEXES)) == 12


def test_a_table_under_another_name_has_its_indexes_under_names_of_its_own(databases):
    """In the same database: the names of the source's indexes are taken in its schema."""
    run_sql(databases[0], *INDEXED)
    one = (databases[0], databases[0])
    for into, prefix in (("public.copy", "copy_"), ("other.t", "t_")):
        report = move(one, "public.t", key=["part", "id"], into=into, job=prefix)
        assert (report.outcome, report.counts.loaded) == ("done", 30)
        indexes = {
            name
            for (name,) in rows(
                databases[0],
                f"select c.relname from pg_index i join pg_class c on c.oid = i.indexrelid where i.indrelid = '{into}'::regclass",
            )
        }
        assert indexes == {prefix + name for name in (
            "pkey", "a once", "no_overlap", "nulls", "partial", "expressions", "downwards", "one of e", "pattern", "deep", "hashed",
            "x ON public.t USING",
        )}  # fmt: skip
        theirs = [row[1:] for row in rows(databases[0], CONSTRAINTS.format(table=into))]
        assert sorted(theirs) == sorted(row[1:] for row in rows(databases[0], CONSTRAINTS.format(table="public.t")))


def test_long_names_that_are_cut_stay_different(databases):
    table = "t" * 60
    run_sql(
        databases[0],
        f"create table public.{table} (id serial primary key)",
        f"alter table public.{table} add column {'c' * 60}a serial",
        f"alter table public.{table} add column {'c' * 60}b serial",
        f"create index one on public.{table} (id)",
        f"create index two on public.{table} (id)",
        f"insert into public.{table} select from generate_series(1, 3)",
    )
    assert move(databases, f"public.{table}", into=f"other.{table}").outcome == "done"
    query = "select count(*) from pg_class where relnamespace = 'other'::regnamespace and relkind = '{}'"
    assert [rows(databases[1], query.format(kind)) for kind in "iS"] == [[(3,)], [(3,)]]


def test_an_index_name_that_another_table_has_is_changed_and_said(databases):
    run_sql(
        databases[0],
        "create table public.t (id int constraint taken primary key, a int constraint also unique)",
        "create index found on public.t (a)",
        "insert into public.t values (1, 1)",
    )
    run_sql(databases[1], "create table public.taken (id int)", "create table public.x (id int)",
            "create index also on public.x (id)", "create index found on public.x (id)")  # fmt: skip
    assert plan(databases).left_out == (
        "taken: called t_pkey, because the target has another taken",
        "found: called t_found, because the target has another found",
        "also: called t_also, because the target has another also",
    )
    assert move(databases, "public.t").outcome == "done"
    assert [row[0] for row in rows(databases[1], INDEXES.format(table="public.t"))] == [
        "public.t_also",
        "public.t_found",
        "public.t_pkey",
    ]


def test_a_partitioned_source_gives_one_table_with_its_indexes(databases):
    run_sql(
        databases[0],
        "create table public.t (id int, part int, v text, primary key (id, part)) partition by list (part)",
        "create table public.t1 partition of public.t for values in (1)",
        "create table public.t2 partition of public.t for values in (2)",
        "create index by_v on public.t (v)",
        "create function public.f() returns trigger language plpgsql as 'begin return new; end'",
        "create trigger touch before insert on public.t for each row execute function public.f()",
        "insert into public.t select g, g % 2 + 1, 'v' from generate_series(1, 9) g",
    )
    assert plan(databases).left_out == (
        "partitioning by LIST (part): the new table is one table",
        "trigger touch: not created",
    )
    assert move(databases, "public.t").counts.loaded == 9
    equal(databases, CONSTRAINTS)
    assert rows(databases[1], INDEXES.format(table="public.t")) == [
        ("public.by_v", "CREATE INDEX by_v ON public.t USING btree (v)"),
        ("public.t_pkey", "CREATE UNIQUE INDEX t_pkey ON public.t USING btree (id, part)"),
    ]


def family(databases):
    run_sql(
        databases[0],
        "create table public.parent (id int primary key)",
        """create table public.t (id int primary key, parent int references public.parent on delete cascade,
             above int references public.t deferrable)""",
        "insert into public.parent values (1), (2)",
        "insert into public.t values (1, 1, null), (2, 1, 3), (3, 2, 1)",
    )


def test_foreign_keys_are_created_after_the_load_when_they_are_wanted(databases):
    family(databases)
    assert plan(databases).left_out == (
        "foreign key t_above_fkey: not created without --with-foreign-keys",
        "foreign key t_parent_fkey: not created without --with-foreign-keys",
    )
    with pytest.raises(
        RefusedError, match=r"t_parent_fkey: it references public\.parent, which is not in the target\. Move that"
    ):
        move(databases, "public.t", with_foreign_keys=True)
    assert tables(databases[1]) == []
    move(databases, "public.parent", job="parent")
    assert move(databases, "public.t", with_foreign_keys=True, chunk=1).outcome == "done"
    assert len(equal(databases, CONSTRAINTS)) == 3
    move(databases, "public.t", with_foreign_keys=True, into="public.again", job="again")
    assert rows(
        databases[1],
        "select pg_get_constraintdef(oid) from pg_constraint where conrelid = 'public.again'::regclass and contype = 'f' order by conname",
    ) == [
        ("FOREIGN KEY (above) REFERENCES public.again(id) DEFERRABLE",),
        ("FOREIGN KEY (parent) REFERENCES public.parent(id) ON DELETE CASCADE",),
    ]


def test_what_a_changed_column_takes_along_is_left_out_and_said(databases, tmp_path):
    run_sql(
        databases[0],
        """create table public.t (id int primary key, a int default 5, b int constraint small check (b < 9), c int unique,
             d int4range, constraint apart exclude using gist (int4range(a, b) with &&), constraint ordered check (a < c))""",
        "create index on public.t ((a + b))",
        "create index kept on public.t (d)",
        "insert into public.t (id, a, b, c) values (1, 2, 3, 4)",
    )
    file = tmp_path / "job.yaml"
    file.write_text("transform: [{rename: {a: alpha}}, {drop: [c]}, {set: {b: b + 1}}]\n")
    from keyhaul.before.prepare import prepare
    from keyhaul.config.job import load_job
    from keyhaul.sessions.connecting import find_ends

    job = load_job(
        file, {"source": databases[0], "target": databases[1], "table": "public.t", "key": "id", "job": "j"}, {}
    )
    with prepare(job, find_ends(job)) as prepared:
        ddl = prepared.target.ddl
    reason = "not created, because a column of it is computed, renamed or dropped"
    assert ddl.left_out == (
        "a: its default is not created, because the column is renamed".replace("a:", "alpha:"),
        f"index t_expr_idx: {reason}",
        f"constraint t_c_key: {reason}",
        f"constraint apart: {reason}",
        f"constraint ordered: {reason}",
        f"constraint small: {reason}",
    )
    assert [step.name for step in ddl.after] == ["kept"]
    assert plan(databases, set=["id = id + 1"], into="x").left_out[0] == (
        "primary key t_pkey: not created, because a column of it is computed or dropped"
    )


def test_a_renamed_key_is_the_new_primary_key(databases, tmp_path):
    run_sql(
        databases[0], "create table public.t (id int, b int, primary key (b, id))", "insert into public.t values (1, 2)"
    )
    file = tmp_path / "job.yaml"
    file.write_text('transform: [{rename: {id: "New Id"}}]\n')
    from keyhaul.config.job import load_job
    from keyhaul.control import Control
    from keyhaul.execution.engine import run

    job = load_job(
        file, {"source": databases[0], "target": databases[1], "table": "public.t", "key": "id", "job": "j"}, {}
    )
    assert run(job, lambda _event: None, Control()).counts.loaded == 1
    assert [row[2] for row in rows(databases[1], CONSTRAINTS.format(table="public.t"))] == ['PRIMARY KEY (b, "New Id")']


def test_no_create_refuses_a_missing_table(databases):
    run_sql(databases[0], "create table public.t (id int primary key)")
    with pytest.raises(RefusedError, match=r"load public\.t: it is not there, and --no-create is given"):
        move(databases, "public.t", no_create=True)
    assert rows(databases[1], "select nspname from pg_namespace where nspname = 'keyhaul'") == []


REFUSED = {
    "an enum with other labels": (
        ("create type public.mood as enum ('sad', 'ok')", "create table public.t (id int primary key, v public.mood)"),
        ("create type public.mood as enum ('ok', 'sad')",),
        r"create type \"public\"\.\"mood\": the target's is of kind enum with the labels 'ok', 'sad', expected enum with 'sad', 'ok'",
    ),
    "a composite with other attributes": (
        ("create type public.pair as (a int, b int)", "create table public.t (id int primary key, v public.pair)"),
        ("create type public.pair as (b int, a int)",),
        r"pair\": the target's is of kind composite with the attributes b integer, a integer, expected composite with a integer, b integer",
    ),
    "a domain over another type": (
        ("create domain public.size as bigint", "create table public.t (id int primary key, v public.size)"),
        ("create domain public.size as float8",),
        r"size\": the target's is of kind domain with double precision, expected domain with bigint",
    ),
    "a type of another kind": (
        ("create type public.size as enum ('s')", "create table public.t (id int primary key, v public.size)"),
        ("create domain public.size as text",),
        r"size\": the target's is of kind domain with text, expected enum with 's'",
    ),
    "the row type of a table": (
        ("create table public.other (a int)", "create table public.t (id int primary key, v public.other)"),
        (),
        r"other\": keyhaul cannot create it\. Create it in the target, or cast the column to text",
    ),
    "a type of an extension": (
        ("create extension vector", "create table public.t (id int primary key, v public.vector(3))"),
        (),
        r"create type \"public\"\.\"vector\": it belongs to the extension vector\. Run create extension vector in the target",
    ),
    "a collation that is missing": (
        (
            'create collation public.mine from "C"',
            "create table public.t (id int primary key, v text collate public.mine)",
        ),
        (),
        r"create column v: its collation public\.mine is not in the target\. Run create collation there",
    ),
    "a default that calls a function that is missing": (
        (
            "create function public.f() returns int language sql as 'select 1'",
            "create table public.t (id int primary key, v int default public.f())",
        ),
        (),
        r"create public\.t: function public\.f\(\) does not exist",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("ours", "theirs", "told"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_created_is_refused_by_name_and_nothing_is_created(databases, ours, theirs, told):
    run_sql(databases[0], *ours)
    run_sql(databases[1], *theirs)
    with pytest.raises(RefusedError, match=told):
        move(databases, "public.t")
    assert tables(databases[1]) == []
    assert rows(databases[1], "select nspname from pg_namespace where nspname = 'keyhaul'") == []


EXISTING = {
    "an enum that lacks a label": (
        "create type public.kind as enum ('a', 'b', 'c')", "create type public.kind as enum ('c', 'a')", "public.kind",
        r"write public\.t\.v: public\.kind has no label 'b'",
    ),
    "an array of an enum that lacks a label": (
        "create type public.kind as enum ('a', 'b')", "create type public.kind as enum ('a')", "public.kind[]",
        r"write public\.t\.v: public\.kind has no label 'b'",
    ),
    "a composite whose attributes are in another order": (
        "create type public.kind as (a int, b int)", "create type public.kind as (b int, a int)", "public.kind",
        r"write public\.t\.v: public\.kind is made of b integer, a integer, expected a integer, b integer",
    ),
    "a composite with fewer decimals": (
        "create type public.kind as (a numeric(9,4))", "create type public.kind as (a numeric(9,2))", "public.kind[]",
        r"write public\.t\.v: public\.kind is made of a numeric\(9,2\), expected a numeric\(9,4\)",
    ),
    "a range over another type": (
        "create type public.kind as range (subtype = int)", "create type public.kind as range (subtype = text)", "public.kind",
        r"write public\.t\.v: public\.kind is made of subtype = text, .*expected subtype = integer",
    ),
    "a domain that hides fewer bits": (
        "create domain public.kind as varbit(9)", "create domain public.kind as varbit(3)", "public.kind",
        r"write public\.t\.v: got public\.kind, expected public\.kind",
    ),
    "a domain that hides fewer decimals of an array": (
        "create domain public.kind as numeric(9,4)[]", "create domain public.kind as numeric(9,2)[]", "public.kind",
        r"write public\.t\.v: got public\.kind, expected public\.kind",
    ),
    "a domain that hides fewer digits of the seconds": (
        "create domain public.kind as interval(6)", "create domain public.kind as interval(0)", "public.kind",
        r"write public\.t\.v: got public\.kind, expected public\.kind",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("ours", "theirs", "column", "told"), EXISTING.values(), ids=EXISTING)
def test_a_type_of_an_existing_target_that_would_change_values_is_refused(databases, ours, theirs, column, told):
    for uri, kind in zip(databases, (ours, theirs), strict=True):
        run_sql(uri, kind, f"create table public.t (id int primary key, v {column})")
    run_sql(databases[0], "insert into public.t values (1, null)")
    with pytest.raises(RefusedError, match=told):
        move(databases, "public.t")
    assert rows(databases[1], "select nspname from pg_namespace where nspname = 'keyhaul'") == []


def test_an_enum_of_an_existing_target_may_have_more_labels_in_another_order(databases):
    run_sql(databases[0], "create type public.mood as enum ('sad', 'ok')", "create table public.t (id int primary key, v public.mood, w public.mood[])",
            "insert into public.t values (1, 'sad', '{ok,sad}'), (2, 'ok', null)")  # fmt: skip
    run_sql(
        databases[1],
        "create schema other",
        "create type other.mood as enum ('happy', 'ok', 'sad')",
        "create table public.t (id int primary key, v other.mood, w other.mood[])",
    )
    assert move(databases, "public.t").counts.loaded == 2
    equal(databases, "select id, v::text, w::text from {table} order by id")


def test_an_extension_type_is_moved_when_both_ends_have_the_extension(databases):
    run_sql(databases[0], "create extension vector", "create table public.t (id int primary key, v public.vector(3))",
            "insert into public.t values (1, '[1,2.5,-3e-7]'), (2, null)")  # fmt: skip
    run_sql(databases[1], "create extension vector")
    assert move(databases, "public.t").counts.loaded == 2
    equal(databases, "select id, v::text from {table} order by id")
    equal(databases, COLUMNS)


def test_an_existing_target_keeps_what_it_has_and_fills_in_its_defaults(databases):
    run_sql(databases[0], "create table public.t (id int primary key, a int not null, b text default 'source')",
            "create index gone on public.t (a)", "insert into public.t values (1, 10, 'x'), (2, 20, null)")  # fmt: skip
    run_sql(
        databases[1],
        """create table public.t (extra text not null default 'mine', b text, made int generated always as identity, id int, a bigint,
             twice bigint generated always as (a * 2) stored, nothing date)""",
        "create index mine on public.t (b)",
    )
    shape = COLUMNS.format(table="public.t")
    before = rows(databases[1], shape)
    for loader in ("copy", "adbc"):
        run_sql(databases[1], "truncate public.t restart identity")
        assert move(databases, "public.t", loader=loader).counts.loaded == 2
        assert rows(databases[1], "select * from public.t order by id") == [
            ("mine", "x", 1, 1, 10, 20, None), ("mine", None, 2, 2, 20, 40, None),
        ]  # fmt: skip
    assert rows(databases[1], shape) == before
    assert [row[0] for row in rows(databases[1], INDEXES.format(table="public.t"))] == ["public.mine"]


def resume(databases, table, **flags):
    from keyhaul.config.job import load_job
    from keyhaul.control import Control
    from keyhaul.execution.engine import run

    source, target = databases
    given = {"source": source, "target": target, "table": table, "key": "id", "job": "move", **flags}
    return run(load_job(None, given, {}), lambda _event: None, Control())


def test_a_run_that_stopped_before_its_indexes_is_finished_by_the_same_command(databases):
    run_sql(
        databases[0],
        "create table public.t (id serial primary key, a int, b int)",
        "create index first on public.t (a)",
        "create index second on public.t (b)",
        "create index third on public.t (a, b)",
        "insert into public.t (a, b) select g, g from generate_series(1, 10) g",
    )
    # Made at the end of the load, between two of the indexes.
    run_sql(
        databases[1],
        "create table public.x (id int)",
        """create function public.meanwhile() returns event_trigger language plpgsql as
           'begin if to_regclass(''public.first'') is not null and to_regclass(''public.second'') is null then
                      if exists (select from keyhaul.chunks where status = ''done'') then
                          create index second on public.x (id); end if; end if; end'""",
        "create event trigger meanwhile on ddl_command_end when tag in ('CREATE INDEX') execute function public.meanwhile()",
    )
    report = resume(databases, "public.t")
    assert (report.outcome, report.chunks_done, report.counts.loaded) == ("stopped", 1, 10)
    assert 'all chunks are loaded, but finish public.t: relation "second" already exists' in report.stop_reason
    assert [row[0] for row in rows(databases[1], INDEXES.format(table="public.t"))] == ["public.first", "public.t_pkey"]
    run_sql(databases[1], "drop event trigger meanwhile", "drop index public.second")
    run_sql(databases[0], "insert into public.t (a, b) values (11, 11)")  # what is loaded stays; the sequence goes on
    again = resume(databases, "public.t")
    assert (again.outcome, again.resumed, again.run_id, again.counts.loaded) == ("done", True, report.run_id, 10)
    equal(databases, INDEXES)
    assert rows(databases[1], "select last_value from public.t_id_seq") == [(11,)]


def test_a_sequence_that_the_target_has_used_since_is_not_set_back(databases):
    run_sql(
        databases[0],
        "create table public.t (id serial primary key, a int)",
        "create unique index once on public.t (a)",
        "insert into public.t (a) select g from generate_series(1, 5) g",
    )
    move(databases, "public.t")
    run_sql(
        databases[1],
        "select setval('public.t_id_seq', 80)",
        "update keyhaul.runs set status = 'stopped'",
        "drop index public.once",
    )
    assert resume(databases, "public.t").outcome == "done"
    assert rows(databases[1], "select last_value from public.t_id_seq") == [(80,)]
    equal(databases, INDEXES)


def test_a_null_where_the_catalog_denies_it_is_not_lost(databases):
    """A domain that is NOT NULL gives NULL through a subquery; a constraint that is not valid was never checked."""
    run_sql(
        databases[0],
        "create domain public.present as int not null",
        "create table public.t (id public.present, v int)",
        "insert into public.t values (1, 1), ((select 2::public.present where false), 2)",
        "create table public.u (id int, v int)",
        "insert into public.u values (1, 1), (null, 2)",
        "alter table public.u add constraint later not null id not valid",
    )
    run_sql(databases[1], "create table public.t (id int, v int)", "create table public.u (id int, v int)")
    for table in ("public.t", "public.u"):
        assert move(databases, table, job=table).counts.loaded == 2
        assert rows(databases[1], f"select id, v from {table} order by v") == [(1, 1), (None, 2)]
    run_sql(databases[1], "drop table public.t")
    report = move(databases, "public.t")
    assert (report.counts.loaded, report.counts.quarantined) == (1, 1)
    assert rows(databases[1], "select rules, key from keyhaul.quarantine") == [(["type:id"], None)]
    equal(databases, COLUMNS)


LATE = {
    "a sequence of nobody": (
        ["create sequence public.s", "create table public.t (id int primary key default nextval('public.s'))"],
        'create public.t: relation "public.s" does not exist. Create in the target what it needs, or the table itself',
    ),
    "a check": (
        [
            "create function public.ok(int) returns bool immutable language sql as 'select true'",
            "create table public.t (id int primary key, check (public.ok(id)))",
        ],
        "function public.ok(integer) does not exist",
    ),
    "an index": (
        [
            "create function public.f(int) returns int immutable language sql as 'select $1'",
            "create table public.t (id int primary key)",
            "create index on public.t (public.f(id))",
        ],
        "function public.f(integer) does not exist",
    ),
}


@pytest.mark.parametrize("command", ["plan", "chunked"])
@pytest.mark.parametrize("what", LATE)
def test_what_completes_a_new_table_is_tried_before_the_first_row(databases, etl, what, command):
    statements, told = LATE[what]
    run_sql(databases[0], *statements, "insert into public.t values (1), (2)")
    words = ("--source", databases[0], "--target", databases[1], "--table", "public.t", "--key", "id")
    done = etl(command, *words)
    assert done.returncode == 2
    assert told in " ".join(done.stderr.split())
    assert "Create in the target what it needs" in " ".join(done.stderr.split())
    assert rows(databases[1], "select count(*) from pg_class where relnamespace = 'public'::regnamespace") == [(0,)]
    assert rows(databases[1], "select to_regclass('keyhaul.runs')") == [(None,)]


def test_processes_that_all_miss_a_schema_make_it_once(databases):
    from concurrent.futures import ThreadPoolExecutor

    names = [f"t{number}" for number in range(4)]
    run_sql(databases[0], "create schema deep", "create table public.t (id int primary key)")
    move(databases, "public.t")  # the ledger is there
    for name in names:
        run_sql(databases[0], f"create table deep.{name} (id int primary key)", f"insert into deep.{name} values (1)")
    with psycopg.connect(databases[1]) as holder, ThreadPoolExecutor() as pool:
        holder.execute("create schema deep")  # not committed: all find it missing, and wait for it
        moves = [pool.submit(move, databases, f"deep.{name}", job=name) for name in names]
        waiting = (
            "select count(*) = 4 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        )
        support.wait_until(lambda: rows(databases[1], waiting) == [(True,)], "all to wait for the schema")
        holder.commit()
        assert [one.result().counts.loaded for one in moves] == [1, 1, 1, 1]
