"""Names that need quoting somewhere on the way, through whole moves; and those that are refused."""

import json

import pytest
from moving import move, rows, run_sql

from keyhaul.config.job import load_job
from keyhaul.control import Control
from keyhaul.errors import ConfigError, RefusedError
from keyhaul.execution.engine import run

NAMES = (
    "Upper", "with space", 'double"quote""', "single'quote", "per%cent %s %(x)s", "{brace} {0} {}", "back\\slash\\n",
    "select", "order", "user", "😀 emoji", "ü" * 31 + "x", "A", "a", "dot.ted", " leading", "trailing ", "\ttab", "$1",
    "--comment", "/* c */", "semi;colon", "_keyhaul_chunk", "_x41", "key", "data", "Ä", "ä", "İ", "rowid", "chunk", "CHUNK",
)  # fmt: skip
TABLE = "t.b \"x\" %s {0} 'q' 😀 "
SCHEMA = ' Sch.ema "q" %(s)s {}'
KEY = "Key \"%s'{}"
PAIRS = [("connectorx", "copy"), ("adbc", "adbc")]


def quoted(*parts):
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def literal(text):
    return "'" + text.replace("'", "''") + "'"


def run_job(databases, path, job):
    """Run a job file, in which every name can stand; returns the report."""
    text = {"job": "names", "source": {"uri": databases[0]}, "target": {"uri": databases[1]}, **job}
    for end in ("source", "target"):
        text[end] = {"uri": databases[end == "target"], **job.get(end, {})}
    path.write_text(json.dumps(text), encoding="utf-8")
    return run(load_job(path, {}, {}), lambda _event: None, Control(), fresh=True)


def fill(uri):
    kind, domain = quoted(SCHEMA, 'Enum "%s" {0}'), quoted(SCHEMA, "Dom.ain's %")
    columns = ", ".join(f"{quoted(name)} int default 0" for name in NAMES)
    table = quoted(SCHEMA, TABLE)
    run_sql(
        uri,
        f"create schema {quoted(SCHEMA)}",
        f"create type {kind} as enum ('a', 'La\"bel %s', 'it''s {{}}')",
        f"create domain {domain} as int constraint {quoted('check %s {0}')} check (value > 0)",
        f"create table {table} ({quoted(KEY)} serial, {columns}, {quoted('E %')} {kind}, {quoted('D %')} {domain}, when_ interval,"
        f" constraint {quoted('p %s {}')} primary key ({quoted(KEY)}), constraint {quoted('c %s {}')} check ({quoted('A')} < 1000))",
        f"create index {quoted('i %s {}')} on {table} ({quoted('a')}, ({quoted('A')} + {quoted('per%cent %s %(x)s')}))",
        f"insert into {table} select g, {', '.join(f'g * {n}' for n in range(1, len(NAMES) + 1))}, 'it''s {{}}', g, interval '1 day' * g"
        " from generate_series(1, 20) g",
    )
    return table


@pytest.mark.parametrize(("reader", "loader"), PAIRS)
def test_every_name_is_moved_as_it_is(databases, reader, loader):
    table = fill(databases[0])
    report = move(databases, table, key=[KEY], job="names", reader=reader, loader=loader, chunk=7)
    assert (report.outcome, report.counts.loaded, report.counts.quarantined) == ("done", 20, 0)
    query = f"select t::text from {table} t order by {quoted(KEY)}"
    assert rows(databases[0], query) == rows(databases[1], query)
    oid = f"{literal(table)}::regclass"
    for catalog in (
        f"select attname, format_type(atttypid, atttypmod) from pg_attribute where attrelid = {oid} and attnum > 0 order by attnum",
        f"select pg_get_indexdef(indexrelid) from pg_index where indrelid = {oid} order by 1",
        f"select conname, pg_get_constraintdef(oid) from pg_constraint where conrelid = {oid} and contype <> 'n' order by 1",
        f"select pg_get_serial_sequence({literal(table)}, {literal(KEY)}), nextval(pg_get_serial_sequence({literal(table)}, {literal(KEY)}))",
    ):
        assert rows(databases[1], catalog) == rows(databases[0], catalog)


@pytest.mark.parametrize(("reader", "loader"), PAIRS)
def test_rules_sets_renames_and_the_quarantine_know_every_name(databases, tmp_path, reader, loader):
    names = [name for name in NAMES if name not in {"a", "ä", "CHUNK"}]  # those are other columns' names in DuckDB
    columns = ", ".join(f"{quoted(name)} int" for name in names)
    run_sql(
        databases[0],
        f"create table public.t ({quoted(KEY)} int primary key, {columns})",
        f"insert into public.t select g, {', '.join(['g'] * len(names))} from generate_series(1, 50) g",
        f"update public.t set {quoted(KEY)} = 1000 where {quoted(KEY)} = 2",
    )
    computed = {f"c{name[:30]}": f"{quoted(name)} * 2" for name in names}
    renamed = {name: f"n{name[:30]}" for name in names}
    job = {
        "source": {"table": "public.t", "reader": reader},
        "target": {"table": "public.t", "loader": loader},
        "key": [KEY],
        "chunk": 25,
        "transform": [
            {"set": computed},
            {"where": " and ".join(f"{quoted(name)} > 2" for name in computed)},
            {"rename": renamed},
        ],
        "rules": {
            **{f"r{n}": f"{quoted(renamed[name])} <> {n + 2}" for n, name in enumerate(names)},
            "not_null": [*renamed.values(), *computed],
        },
        "dedup": {"on": [KEY, *renamed.values()], "order_by": list(computed)},
    }
    report = run_job(databases, tmp_path / "job.yaml", job)
    last = len(names) + 1
    assert (report.outcome, report.counts.filtered, report.counts.quarantined) == ("done", 1, len(names))
    found = rows(databases[1], f"select * from public.t order by {quoted(KEY)}")
    assert found == [(n, *[n] * len(names), *[n * 2] * len(names)) for n in range(last + 1, 51)]
    query = "select rules, key, data from keyhaul.quarantine order by (data ->> 'Upper')::int"
    assert rows(databases[1], query) == [
        ([f"r{n - 2}"], str(1000 if n == 2 else n), {KEY: 1000 if n == 2 else n, **dict.fromkeys(names, n)})
        for n in range(2, last + 1)
    ]


@pytest.mark.parametrize(("reader", "loader"), PAIRS)
def test_columns_that_differ_only_in_case_keep_their_own_values(databases, tmp_path, reader, loader):
    run_sql(
        databases[0],
        'create table public.t (id int primary key, "A" int, a int, "Ä" text, "ä" text, b int)',
        "insert into public.t values (1, 10, 11, 'x', 'y', 1), (2, 20, 21, 'x', 'y', 2), (2 + 1, 30, 31, 'x', 'y', 3)",
    )
    job = {
        "source": {"table": "public.t", "reader": reader},
        "target": {"table": "public.t", "loader": loader},
        "key": "id",
        "rules": {"b": "b <> 2", "not_null": ["A", "a"]},
        "dedup": {"on": ["id", "A"], "order_by": "a"},
    }
    assert run_job(databases, tmp_path / "job.yaml", job).counts.loaded == 2
    assert rows(databases[1], 'select id, "A", a, "Ä", "ä" from public.t order by id') == [
        (1, 10, 11, "x", "y"),
        (3, 30, 31, "x", "y"),
    ]
    assert rows(databases[1], "select data from keyhaul.quarantine") == [
        ({"id": 2, "A": 20, "a": 21, "Ä": "x", "ä": "y", "b": 2},)
    ]
    job["rules"] = {"big": '"A" < 100'}
    with pytest.raises(
        ConfigError, match=r"rule big: A and a differ only in case, which DuckDB does not see\. Rename one"
    ):
        run_job(databases, tmp_path / "job.yaml", job)


@pytest.mark.parametrize("name", ["Flights", "my table", "a.b", "SELECT", "100%"])
def test_a_table_named_without_quotes_gets_the_same_name_in_the_target(databases, name):
    run_sql(
        databases[0],
        f"create table public.{quoted(name)} (id int primary key)",
        f"insert into public.{quoted(name)} values (1)",
    )
    run_sql(databases[1], "create table public.flights (id int)")
    assert move(databases, name, job="names").counts.loaded == 1
    assert rows(databases[1], f"select * from public.{quoted(name)}") == [(1,)]
    assert rows(databases[1], "select * from public.flights") == []


LONG = "é" * 32
TOO_LONG = {
    "a renamed column": {"transform": [{"rename": {"v": LONG}}]},
    "a computed column": {"transform": [{"set": {"w" * 64: "id + 1"}}]},
    "a target": {"target": {"table": "w" * 64}},
    "a target in a schema": {"target": {"table": f"public.{LONG}"}},
    "a target in quotes": {"target": {"table": f'public."{LONG}"'}},
    "a target's schema": {"target": {"table": f"{'s' * 64}.t"}},
}


@pytest.mark.parametrize("more", TOO_LONG.values(), ids=TOO_LONG)
def test_a_name_over_63_bytes_is_refused_before_the_first_row(databases, tmp_path, more):
    run_sql(databases[0], "create table public.t (id int primary key, v text)", "insert into public.t values (1, 'x')")
    run_sql(
        databases[1],
        f'create table public."{"é" * 31}" (id int, v text)',
        f'create table public."{"w" * 63}" (id int, v text)',
    )
    job = {"source": {"table": "public.t"}, "target": {"table": "public.t"}, "key": "id", **more}
    with pytest.raises(RefusedError, match=r"use name '.*': it has 64 bytes, expected at most 63\. Rename it"):
        run_job(databases, tmp_path / "job.yaml", job)
    assert rows(databases[1], "select nspname from pg_namespace where nspname = 'keyhaul'") == []


BROKEN = {
    "a column of the source": ('create table public.t (id int primary key, "a\nb" int)', {}),
    "a carriage return": ('create table public.t (id int primary key, "a\rb" int)', {}),
    "a renamed column": (
        "create table public.t (id int primary key, v int)",
        {"transform": [{"rename": {"v": "a\nb"}}]},
    ),
    "a target": ("create table public.t (id int primary key)", {"target": {"table": '"a\nb"'}}),
}


@pytest.mark.parametrize(("create", "more"), BROKEN.values(), ids=BROKEN)
def test_a_name_with_a_line_break_is_refused_before_the_first_row(databases, tmp_path, create, more):
    run_sql(databases[0], create)
    job = {"source": {"table": "public.t"}, "target": {"table": "public.t"}, "key": "id", **more}
    with pytest.raises(ConfigError, match="line break"):
        run_job(databases, tmp_path / "job.yaml", job)
    assert rows(databases[1], "select nspname from pg_namespace where nspname = 'keyhaul'") == []


EVIL = "\x1b]0;owned\x07\x1b[2J\u202egnp.exe\u202c'\"; drop table public.victim; --<script>alert(1)</script>"


def test_a_name_that_attacks_is_a_name_in_the_databases_and_harmless_on_a_terminal(databases, etl, tmp_path):
    table, column, constraint = (EVIL[:40], "c" + EVIL[:44], "k" + EVIL[:44])
    for uri in databases:
        run_sql(uri, "create table public.victim (id int)")
    run_sql(
        databases[0],
        f"create table public.{quoted(table)} (id int primary key, {quoted(column)} int,"
        f" constraint {quoted(constraint)} check (id < 1000))",
        f"insert into public.{quoted(table)} select g, g from generate_series(1, 30) g",
    )
    rule = "small"  # a rule's name is plain, or refused
    job = {
        "job": "evil",
        "source": {"uri": databases[0], "table": f"public.{quoted(table)}"},
        "target": {"uri": databases[1], "table": f"public.{quoted(table)}"},
        "key": "id",
        "chunk": 10,
        "rules": {rule: f"{quoted(column)} < 20", "not_null": [column]},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job), encoding="utf-8")
    look = ("--target", databases[1])
    page = tmp_path / "page.html"
    commands = {
        "plan": ["plan", "job.yaml"],
        "run": ["run", "job.yaml", "--progress", "plain"],
        "again": ["run", "job.yaml", "--progress", "json"],
        "runs": ["runs", *look],
        "show": ["show", "last", *look],
        "quarantine": ["quarantine", "last", *look],
        "report": ["report", "last", "-o", str(page), "--show-values", *look],
        "replay": ["replay", "last", "job.yaml"],
        "verify": ["verify", "last", "job.yaml"],
        "mistake": ["run", "job.yaml", "--fresh", "--key", EVIL],
        "rule": ["run", "job.yaml", "--fresh", "--rule", f"{EVIL}: id > 0"],
    }
    for name, words in commands.items():
        done = etl(*words, cwd=tmp_path)
        expected = {"run": {1}, "mistake": {2}, "rule": {2}, "again": {2}}.get(name, {0, 1})
        assert done.returncode in expected, (name, done.stdout, done.stderr)
        odd = sorted({c for c in done.stdout + done.stderr if c != "\n" and not c.isprintable()})
        assert (name, odd) == (name, [])
    assert rows(databases[1], f"select count(*) from public.{quoted(table)}") == [(19,)]
    assert rows(databases[1], "select distinct rules from keyhaul.quarantine") == [([rule],)]
    for uri in databases:
        assert rows(uri, "select count(*) from public.victim") == [(0,)]
    assert "<script>alert" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "a'b", 'a"b', "../up", "a b", "\u202eb", "x" * 500, "a;b", "-x"])
def test_a_jobs_name_is_plain_or_refused(databases, tmp_path, name):
    path = tmp_path / "job.yaml"
    job = {"job": name, "source": {"table": "public.t"}, "target": {"table": "public.t"}, "key": "id"}
    with pytest.raises(ConfigError, match="job") as caught:
        run_job(databases, path, job)
    assert {"\n", "\x1b"}.isdisjoint(str(caught.value))
