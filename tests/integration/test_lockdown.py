"""What a job's texts cannot do: write to the source, reach files or the network, run Python without permission."""

from __future__ import annotations

import contextlib
import re
import stat
import sys
from pathlib import Path

import polars as pl
import psycopg
import pytest
from aftermath import contents
from moving import move, rows, run_sql
from psycopg import sql

import keyhaul
from keyhaul.config.job import load_job
from keyhaul.config.steps import Rule
from keyhaul.errors import ConfigError, EtlError
from keyhaul.staging.functions import ALLOWED, refused
from keyhaul.staging.rules import CHUNK, compile_rules, limited, locked_down, register
from keyhaul.transform.expressions import parse

ITEMS = (
    "create table public.items (id int primary key, name text)",
    "insert into public.items select g, 'name ' || g from generate_series(1, 30) g",
    "create sequence public.numbers",
    (
        "create function public.add() returns int language sql as"
        " $$ insert into public.items values (1000, 'x') returning id $$"
    ),
    (
        "create function public.later() returns int stable language plpgsql as"
        " $$ begin return (select public.add()); end $$"
    ),
    (
        "create function public.open_up() returns text language sql as"
        " $$ select set_config('transaction_read_only', 'off', false) $$"
    ),
)

WRITING = {
    "a CTE that deletes": "with gone as (delete from public.items returning id, name) select * from gone",
    "a CTE that inserts": "with n as (insert into public.items values (99, 'x') returning id, name) select * from n",
    "a function that inserts": "select public.add() + id as id, name from public.items",
    "a way out of read only": "select id, public.open_up() as name, public.add() from public.items",
    "its setting": "select id, set_config('default_transaction_read_only', 'off', false), public.add() from public.items",
    "a second statement": "select id, name from public.items; delete from public.items",
    "the end of the transaction": "select id, name from public.items; commit; delete from public.items; select 1 as id",
    "a way out of our parentheses": (
        "select id, name from public.items) as q; commit; begin read write; delete from public.items; commit;"
        " begin isolation level repeatable read; select * from (select id, name from public.items"
    ),
    "a sequence": "select id, nextval('public.numbers') as name from public.items",
    "a table that is made": "select id, name into public.other from public.items",
    "rows that are locked": "select id, name from public.items for update",
}


def job(databases, **more):
    source, target = databases
    given = {"source": source, "target": target, "key": "id", "chunk": "10", "into": "public.items", "job": "j", **more}
    return load_job(None, given, {})


@pytest.mark.parametrize("reader", ["connectorx", "adbc"])
@pytest.mark.parametrize("query", WRITING.values(), ids=WRITING)
def test_a_source_query_that_writes_is_refused_and_changes_nothing(databases, reader, query):
    run_sql(databases[0], *ITEMS)
    before = contents(databases[0])
    with contextlib.suppress(ConfigError, psycopg.Error):
        keyhaul.plan(job(databases, query=query, reader=reader))  # may not call a function
    try:
        report = keyhaul.run(job(databases, query=query, reader=reader))
    except ConfigError:
        report = None
    assert report is None or (report.outcome, report.counts.loaded) == ("stopped", 0)
    assert contents(databases[0]) == before
    assert rows(databases[0], "select last_value, is_called from public.numbers") == [(1, False)]


@pytest.mark.parametrize("own", [True, False], ids=["no table yet", "a table that is there"])
def test_a_rule_across_the_run_that_leaves_its_parentheses_changes_nothing_at_either_end(databases, tmp_path, own):
    run_sql(databases[0], *ITEMS)
    run_sql(
        databases[1],
        "create table public.kept (id int)",
        *(() if own else ("create table public.items (id int, name text)",)),
    )
    before = [contents(uri) for uri in databases]
    out = "1)::text; commit; begin read write; create table public.made (id int); delete from public.items; commit; begin; select (1"
    path = tmp_path / "job.yaml"
    path.write_text(
        f"job: j\nkey: id\nsource: {{uri: '{databases[0]}', table: public.items}}\n"
        f"target: {{uri: '{databases[1]}', table: public.items}}\nrun_rules:\n  - equals_source: \"{out}\"\n"
    )
    for done in (keyhaul.plan, keyhaul.run):
        with pytest.raises(ConfigError, match="multiple commands"):
            done(load_job(path, {}, {}))
    assert [contents(uri) for uri in databases] == before


@pytest.mark.parametrize("reader", ["connectorx", "adbc"])
def test_a_function_that_writes_only_while_chunks_are_read_writes_nothing(databases, reader):
    # Nothing calls it until a row is read: the readers' own sessions have to be read-only as well.
    run_sql(databases[0], *ITEMS)
    before = contents(databases[0])
    query = "select id, case when id > 12 then public.later() end as name from public.items"
    report = keyhaul.run(job(databases, query=query, reader=reader))
    assert (report.outcome, report.counts.loaded) == ("stopped", 10)
    assert "read-only transaction" in report.failed[0].error
    assert contents(databases[0]) == before


@pytest.mark.parametrize("query", list(WRITING.values())[:8], ids=list(WRITING)[:8])
def test_a_lookup_that_writes_is_refused_and_changes_nothing(databases, tmp_path, query):
    run_sql(databases[0], *ITEMS)
    before = contents(databases[0])
    for own in ("", f'uri: "{databases[0]}", '):
        path = tmp_path / "job.yaml"
        path.write_text(
            f"job: j\nkey: id\nsource: {{uri: '{databases[0]}', table: public.items}}\n"
            f"target: {{uri: '{databases[1]}', table: public.items}}\ntransform:\n"
            f'  - lookup: {{source: {{{own}query: "{query}"}}, on: id, take: {{other: name}}}}\n'
        )
        with pytest.raises(ConfigError):
            keyhaul.run(load_job(path, {}, {}))
    assert contents(databases[0]) == before


def test_the_sessions_in_the_source_are_read_only_during_verify(databases, etl):
    run_sql(databases[0], *ITEMS)
    assert move(databases, "public.items").counts.loaded == 30
    before = contents(databases[0])
    found = etl(
        *("verify", "--source", databases[0], "--target", databases[1], "--key", "id", "--into", "public.items"),
        *("--query", WRITING["a CTE that deletes"], "--job", "move"),
    )
    assert found.returncode == 2, found.stdout
    assert contents(databases[0]) == before


# --- DuckDB and Polars ---------------------------------------------------------------------------

REACHING = (
    "(select count(*) from read_csv('/etc/passwd')) > 0",
    "exists (from '/etc/passwd')",
    "id in (select 1 from glob('/*'))",
    "read_text('/etc/passwd') is null",
    "read_blob('/etc/passwd') is null",
    "getenv('HOME') is null",
    "sniff_csv('/etc/passwd') is null",
    "id > 0; attach '/tmp/keyhaul-test.db'",
    "id > 0); install httpfs; select (true",
    "id > 0) from chunk; copy chunk to '/tmp/keyhaul-test.csv'; select (true",
    "query('select 1') is null",
    "duckdb_secrets() is null",
)


@pytest.mark.parametrize("expression", REACHING)
def test_a_rule_reaches_nothing_but_its_row(databases, expression):
    run_sql(databases[0], *ITEMS)
    with pytest.raises(ConfigError, match="read rule r: "):
        keyhaul.run(job(databases, table="public.items", rule=[f"r: {expression}"]))
    assert contents(databases[1]) == [("schema", "public", None)]


@pytest.mark.parametrize("expression", [text.replace("chunk", "t") for text in REACHING])
def test_a_polars_expression_reaches_nothing_but_its_row(expression):
    with pytest.raises(ConfigError):
        parse(expression, "here", ["id"])


CALLS = (
    ("current_setting", "current_setting('threads') = '1'"),
    ("current_setting", "'threads'.current_setting() is null"),
    ("current_setting", "system.main.\"Current_Setting\"('threads') = '1'"),
    ("getenv", "getenv('HOME') is null"),
    ("getvariable", "getvariable('x') is null"),
    ("getvariable", "len(list_transform([id], lambda x: getvariable('x'))) = 1"),
    ("pg_sleep", "pg_sleep(30) is null"),
    ("pg_sleep", "id > 0 or case when id = 1 then pg_sleep(30) is null end"),
    ("sleep_ms", "sleep_ms(30000) is null"),
    ("write_log", "write_log('x') is null"),
    ("nextval", "nextval('x') = 1"),
    ("setseed", "setseed(0.5) is null"),
    ("current_query", "current_query() = ''"),
    ("current_user", "current_user = 'x'"),
    ("current_schemas", "current_schemas(true) is null"),
    ("txid_current", "txid_current() > 0"),
    ("in_search_path", "in_search_path('a', 'b')"),
    ("stats", "stats(id) is null"),
    ("json_serialize_plan", "json_serialize_plan('select 1') is null"),
    ("pg_get_viewdef", "pg_get_viewdef(1) is null"),
)


@pytest.mark.parametrize(("function", "expression"), CALLS)
def test_a_rule_calls_no_function_that_reads_settings_or_the_session_waits_or_writes(function, expression):
    with pytest.raises(ConfigError) as caught:
        compile_rules([Rule(name="r", check=expression, at="job.yaml line 5")], {"id": pl.Int64()})
    assert str(caught.value) == (
        f"job.yaml line 5: read rule r: it calls {function}, expected an expression over one row. "
        "Leave out what reads settings, the catalog or the session, waits or writes; what may be called stands in "
        'docs/guarantees.md, "Functions of a rule"'
    )


@pytest.mark.parametrize("expression", ["current_setting('threads') = '1'", "pg_sleep(30) is null", "user = 'x'"])
def test_an_expression_over_a_file_calls_none_of_them_either(tmp_path, expression):
    pl.DataFrame({"id": [1]}).write_csv(tmp_path / "items.csv")
    path = tmp_path / "checks.yaml"
    path.write_text(
        f"source: {{file: '{tmp_path / 'items.csv'}', types: {{id: bigint}}}}\n"
        f'checks:\n  - {{expression: "{expression}", name: n}}\n'
    )
    with pytest.raises(ConfigError, match=r"checks.yaml line 3.*it calls (current_setting|pg_sleep|user), expected"):
        keyhaul.check(path)


def test_a_column_may_have_the_name_of_such_a_function():
    schema = {"User": pl.String(), "version": pl.Int64()}
    (check,) = compile_rules([Rule(name="r", check="user <> 'x' and version > 1 and now() > '2020-01-01'")], schema)
    assert check.columns == {"User", "version"}


@pytest.mark.parametrize(
    ("flag", "text", "message"),
    [
        ("--where", " or ".join(f"id = {n}" for n in range(9_000)), "expected 500 at the most"),
        ("--set", "x = " + " or ".join(f"id = {n}" for n in range(100)), "got operators nested too deeply"),
        ("--rule", "r: " + " + ".join(["id"] * 9_000) + " > 0", "got operators nested too deeply"),
    ],
)
def test_an_expression_that_is_too_long_ends_the_command_as_a_wrong_setting_does(databases, etl, flag, text, message):
    run_sql(databases[0], *ITEMS)
    ends = ("--source", databases[0], "--target", databases[1])
    done = etl("chunked", "--table", "public.items", "--key", "id", *ends, flag, text)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.split())


HARMLESS = {
    *(
        "current_date",
        "current_localtime",
        "current_localtimestamp",
        "get_current_time",
        "get_current_timestamp",
        "now",
    ),
    *("error", "gen_random_uuid", "random", "today", "transaction_timestamp", "uuid", "uuidv4", "uuidv7"),
    *("pg_size_pretty", "pg_typeof"),
}
"""The clock, chance, the end of a row's evaluation, and two of PostgreSQL's functions over values."""

LOOKS_AROUND = """
    has_side_effects or function_name ilike 'current%' or function_name ilike 'has\\_%\\_priv%' escape '\\'
    or function_name similar to 'inet_(client|server)_.*' or function_name ilike '%\\_description' escape '\\'
    or function_name ilike 'pg\\_%' escape '\\' or macro_definition ilike '%select%from%' or stability = 'VOLATILE'
"""


def functions(where):
    with locked_down() as con:
        query = f"select distinct lower(function_name) from duckdb_functions() where function_type in ('scalar', 'macro') and ({where})"
        return {name for (name,) in con.execute(query).fetchall()}


def test_no_function_that_may_be_called_has_effects_or_looks_around():
    assert functions(LOOKS_AROUND) & ALLOWED <= HARMLESS


def test_every_function_that_may_be_called_is_one_of_this_duckdb():
    assert ALLOWED - functions("true") == set()


def test_a_function_that_is_not_listed_is_refused_by_its_name_whatever_it_does():
    """Each that DuckDB has, in the version at hand; also one that a later version adds."""
    others = functions("regexp_full_match(function_name, '[a-zA-Z_0-9]+')") - ALLOWED
    assert len(others) > 300
    with locked_down() as con:
        assert refused(con, others | ALLOWED | {"gone", "sum", "+"}) == sorted(others)
        con.execute("create macro comes_later(x) as x")
        assert refused(con, {"comes_later", "abs"}) == ["comes_later"]


def test_the_functions_that_may_be_called_are_in_the_docs():
    page = (
        (Path(__file__).parents[2] / "docs/guarantees.md")
        .read_text(encoding="utf-8")
        .partition("## Functions of a rule")[2]
    )
    assert set(re.findall(r"`([a-z0-9_]+)`", page.partition("test_lockdown.py`.")[2])) == ALLOWED


@pytest.mark.parametrize(
    "expression",
    [
        *("name like 'a%' and name not ilike 'b_' escape '!'", "id between 1 and 2 or id in (3, 4)", "-id + 2 * id % 3 // 1 << 1 >= 0"),
        *("name similar to 'a+'", "name ~ 'x'", "extract(year from made) = 2020", "made at time zone 'UTC' > '2020-01-01'"),
        *("made + interval '1 day' > current_timestamp or date_trunc('day', made) < current_date", "position('a' in name) > 0"),
        *("substring(name from 1 for 2) = 'ab'", "trim(both 'x' from name) = ''", "overlay(name placing 'x' from 1) = ''"),
        *("name collate de = 'x'", "case when id is null then false else coalesce(id, 1) = 1 end", "nullif(id, 1) is distinct from 2"),
        *("[id, 2][1] = 1", "list_filter([id], lambda x: x > 1) = []", "[x for x in [id] if x > 1] = []", "{'a': id}.a = 1"),
        *("(id, 1) = (1, 1)", "map {'a': id}['a'] = 1", "try_cast(name as int) > 1", "if(id > 1, true, false)", "json_extract(name, '$.a') = '1'"),
        *("name ->> '$.a' = '1'", "name || 'x' = 'y'", "id ^ 2 = 4 and id ** 2 = 4", "not name glob 'a*'", "len(name) > 1", "greatest(id, 2) = 2"),
    ],
)  # fmt: skip
def test_what_an_expression_is_written_with_may_be_called(expression):
    schema = {"id": pl.Int64(), "name": pl.String(), "made": pl.Datetime(time_zone="UTC")}
    (check,) = compile_rules([Rule(name="r", check=expression)], schema)
    assert check.name == "r"


STATEMENTS = (
    "install httpfs",
    "load httpfs",
    "attach '{0}/other.db'",
    "copy (select 1) to '{0}/out.csv'",
    "export database '{0}/out'",
    "import database '{0}/out'",
    "select * from read_csv('/etc/passwd')",
    "select * from read_text('/etc/passwd')",
    "select * from glob('/etc/*')",
    "select * from 'https://127.0.0.1:1/x.parquet'",
    "create secret (type s3)",
    "set enable_external_access = true",
    "set lock_configuration = false",
    "reset lock_configuration",
    "set temp_directory = '{0}/spill'",
    "set allowed_paths = ['/etc/passwd']",
    "set autoinstall_known_extensions = true",
    "select getenv('HOME')",
)


@pytest.mark.parametrize("statement", STATEMENTS)
@pytest.mark.parametrize("kind", ["of a worker", "of a gathering"])
def test_duckdb_is_locked_down_before_a_users_text_reaches_it(tmp_path, kind, statement):
    import duckdb

    inside = tmp_path / "inside"
    inside.mkdir()
    con = locked_down() if kind == "of a worker" else limited(inside / "a.db", inside / "s", memory_mb=64, threads=1)
    register(con, pl.DataFrame({"id": [1]}))
    before = sorted(path for path in tmp_path.rglob("*") if inside not in path.parents)
    with pytest.raises(duckdb.Error, match=r"disabled|locked|does not exist|Cannot change|cannot be|Cannot access"):
        con.execute(statement.format(tmp_path)).fetchall()
    assert con.execute(f"select id from {CHUNK}").fetchall() == [(1,)]
    con.close()
    assert sorted(path for path in tmp_path.rglob("*") if inside not in path.parents) == before


# --- Python --------------------------------------------------------------------------------------

MARKING = "from pathlib import Path\nPath({!r}).touch()\ndef clean(frame):\n    return frame\n"


@pytest.mark.parametrize("command", ["run", "plan", "verify", "replay", "check", "api", "api plan"])
def test_python_is_not_even_imported_without_permission(databases, tmp_path, etl, command, monkeypatch):
    run_sql(databases[0], *ITEMS)
    mark = tmp_path / "imported"
    (tmp_path / "marking.py").write_text(MARKING.format(str(mark)))
    (tmp_path / "job.yaml").write_text(
        f"job: j\nkey: id\nsource: {{uri: '{databases[0]}', table: public.items}}\n"
        f"target: {{uri: '{databases[1]}', table: public.items}}\n"
        "transform:\n  - python: marking:clean\nrules:\n  r: id > 0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    path = str(tmp_path / "job.yaml")
    if command.startswith("api"):
        with pytest.raises(ConfigError, match="--allow-python"):
            (keyhaul.plan if command == "api plan" else keyhaul.run)(path)
    else:
        words = {"verify": ["verify", path], "replay": ["replay", "last", path]}.get(command, [command, path])
        done = etl(*words, cwd=tmp_path)
        assert done.returncode == 2, done.stdout
        assert "--allow-python" in done.stderr or command == "check"
    assert not mark.exists()
    assert "marking" not in sys.modules


# --- rights and files ----------------------------------------------------------------------------

READER_GRANTS = ("grant usage on schema public to {role}", "grant select on public.items to {role}")
LOADER_GRANTS = (
    "create schema keyhaul authorization {role}",
    "grant usage on schema public to {role}",
    "grant select, insert on public.items to {role}",
)
"""As docs/security.md gives them: for a table that is there, in mode append."""


@pytest.fixture
def limited_roles(databases):
    """URIs of a role in the source and one in the target with no right but to connect."""
    made = []
    for uri, role in zip(databases, ("small_reader", "small_loader"), strict=True):
        run_sql(uri, f"create role {role} login password 'Small-Role-7'", "revoke all on schema public from public")
        name = psycopg.conninfo.conninfo_to_dict(uri)
        made.append(f"postgresql://{role}:Small-Role-7@127.0.0.1:{name['port']}/{name['dbname']}")
    yield made
    for uri, role in zip(databases, ("small_reader", "small_loader"), strict=True):
        run_sql(uri, f"drop owned by {role} cascade", f"drop role {role}")


def grant(uri, role, statements):
    with psycopg.connect(uri, autocommit=True) as conn:
        for statement in statements:
            conn.execute(sql.SQL(statement).format(role=sql.Identifier(role)))


@pytest.mark.parametrize(("reader", "loader"), [("connectorx", "copy"), ("adbc", "adbc")])
def test_the_rights_in_the_documentation_are_enough_and_none_is_too_many(databases, limited_roles, reader, loader):
    run_sql(databases[0], *ITEMS)
    run_sql(databases[1], "create table public.items (id int primary key, name text)")

    def load(number):
        flags = {"mode": "append", "reader": reader, "loader": loader, "rule": ["r: id <> 7"], "job": f"j{number}"}
        return move(limited_roles, "public.items", **flags)

    for uri, role, statements in (
        (databases[0], "small_reader", READER_GRANTS),
        (databases[1], "small_loader", LOADER_GRANTS),
    ):
        for left_out in statements:
            others = [statement for statement in statements if statement != left_out]
            ends = [(databases[0], "small_reader", READER_GRANTS), (databases[1], "small_loader", LOADER_GRANTS)]
            for end in ends:
                grant(end[0], end[1], others if end[1] == role else end[2])
            with pytest.raises(EtlError):
                load(1)
            for end in ends:
                run_sql(end[0], f"drop owned by {end[1]} cascade")
        grant(uri, role, ())
    grant(databases[0], "small_reader", READER_GRANTS)
    grant(databases[1], "small_loader", LOADER_GRANTS)
    report = load(2)
    assert (report.counts.loaded, report.counts.quarantined) == (29, 1)


def test_what_waits_in_the_work_folder_is_its_owners_alone_and_swept_by_the_next_run(databases, tmp_path, etl):
    run_sql(databases[0], *ITEMS, "insert into public.items select g, 'name 1' from generate_series(31, 60) g")
    work = tmp_path / "work"
    command = ("chunked", "--table", "public.items", "--key", "id", "--chunk", "10", "--dedup", "name")
    ends = ("--source", databases[0], "--target", databases[1], "--work-dir", str(work))
    killed = etl(*command, *ends, env={"KEYHAUL_FAULT": "read.after:4:kill"})
    assert killed.returncode == -9
    (run,) = work.iterdir()
    left = {path.name: stat.S_IMODE(path.stat().st_mode) for path in run.iterdir() if path.is_file()}
    assert {mode for name, mode in left.items() if name.endswith((".arrow", ".duckdb"))} == {0o600}
    assert len(left) > 3
    # DuckDB makes its write-ahead log and what it spills for all to read, in a folder that nobody else can enter.
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (work, run)] == [0o700, 0o700]
    assert etl(*command, *ends, "--fresh").returncode == 0
    assert list(work.iterdir()) == []


def test_files_that_a_user_names_are_its_owners_alone(databases, tmp_path, etl):
    run_sql(databases[0], *ITEMS)
    ends = ("--source", databases[0], "--target", databases[1])
    log, page, bad, state = (tmp_path / name for name in ("log.jsonl", "page.html", "bad.csv", "state.jsonl"))
    flags = ("--table", "public.items", "--key", "id", "--rule", "r: id < 9", "--log-file", str(log))
    assert etl("chunked", *flags, *ends).returncode == 1
    assert etl("report", "last", "-o", str(page), *ends[2:]).returncode == 0
    assert etl("quarantine", "last", "--export", str(bad), *ends[2:]).returncode == 0
    checks = tmp_path / "checks.yaml"
    checks.write_text(
        f"source: {{uri: '{databases[0]}', table: public.items}}\nchecks:\n  - {{expression: id < 9, name: small}}\n"
    )
    rejected = tmp_path / "rejected.parquet"
    assert etl("check", str(checks), "--state", str(state), "--export", str(rejected)).returncode == 1
    modes = {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in (log, page, bad, state, rejected)}
    assert modes == dict.fromkeys(modes, "0o600")
