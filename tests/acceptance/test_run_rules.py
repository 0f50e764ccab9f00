"""Rules across the run, on the command line: the exit code, the report, JSON, and `etl show`."""

from __future__ import annotations

import json

import psycopg
from aftermath import value

JOB = """
source: {{uri: '{source}', table: public.t}}
target: {{uri: '{target}'}}
key: id
run_rules:
  enough: {{row_count: {{min: 20}}, on_fail: {on_fail}}}
  total: {{equals_source: sum(id)}}
"""


def test_a_failing_rule_gives_exit_code_1_and_the_rows_stay(databases, etl, tmp_path):
    source, target = databases
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute("create table public.t (id int primary key)")
        connection.execute("insert into public.t select generate_series(1, 10)")
    file = tmp_path / "job.yaml"
    file.write_text(JOB.format(source=source, target=target, on_fail="error"), encoding="utf-8")
    found = etl("run", str(file))
    assert (found.returncode, "✗ enough: 10 rows, expected at least 20" in found.stdout) == (1, True)
    assert "✓ total" in found.stdout
    assert value(target, "select count(*) from public.t") == 10
    assert value(target, "select status from keyhaul.runs") == "done"
    shown = etl("show", "last", "--target", target).stdout
    assert "failed (error): 10 rows, expected at least 20" in " ".join(shown.split())
    again = etl("run", str(file), "--mode", "skip", "--quiet")
    assert (again.returncode, "rules across the run failed: enough" in again.stderr) == (1, True)
    file.write_text(JOB.format(source=source, target=target, on_fail="warn"), encoding="utf-8")
    warned = etl("run", str(file), "--mode", "skip", "--progress", "json")
    assert warned.returncode == 0
    checks = json.loads(warned.stdout.splitlines()[-1])["report"]["run_checks"]
    assert [(check["name"], check["passed"]) for check in checks] == [("enough", False), ("total", True)]


def test_a_rule_that_fails_for_a_fresh_table_keeps_the_old_one(databases, etl, tmp_path):
    source, target = databases
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute("create table public.t (id int primary key)")
        connection.execute("insert into public.t select generate_series(1, 10)")
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute("create table public.t (id int primary key)")
        connection.execute("insert into public.t select generate_series(101, 130)")
    file = tmp_path / "job.yaml"
    file.write_text(JOB.format(source=source, target=target, on_fail="error"), encoding="utf-8")
    found = etl("run", str(file), "--mode", "replace")
    assert found.returncode == 1, found.stderr
    assert "enough failed for the fresh table: public.t stays as it was" in " ".join(found.stdout.split())
    assert "starts a new run" in found.stdout
    assert value(target, "select min(id) from public.t") == 101
    assert value(target, "select status from keyhaul.runs") == "abandoned"
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute("insert into public.t select generate_series(11, 50)")
    again = etl("run", str(file), "--mode", "replace")
    assert again.returncode == 0, again.stderr
    assert value(target, "select count(*) from public.t") == 50
    left = "select count(*) from pg_class where relname like '%keyhaul%' and relkind = 'r' and relnamespace = 'public'::regnamespace"
    assert value(target, left) == 0


TREE = """
source: {{uri: '{source}', table: public.tree}}
target: {{uri: '{target}', table: public.tree, mode: replace}}
key: id
run_rules: [{{references: {{column: pid, table: public.tree, to: id}}}}]
"""


def test_a_reference_to_the_table_itself_is_looked_for_in_the_fresh_one(databases, etl, tmp_path):
    source, target = databases
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute("create table public.tree (id int primary key, pid int)")
        connection.execute("insert into public.tree select i, nullif(i / 2, 0) from generate_series(1, 50) i")
    file = tmp_path / "job.yaml"
    file.write_text(TREE.format(source=source, target=target), encoding="utf-8")
    first = etl("run", str(file))
    assert first.returncode == 0, first.stderr
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute("delete from public.tree where id = 6")
    second = etl("run", str(file))
    assert (second.returncode, "2 rows have a pid that public.tree has not" in second.stdout) == (1, True), (
        second.stdout
    )
    assert "the target stays as it was" in second.stdout
    assert value(target, "select count(*) from public.tree") == 50
    left = "select count(*) from pg_class where relname like '%keyhaul%' and relkind = 'r' and relnamespace = 'public'::regnamespace"
    assert value(target, left) == 0
    compared = etl("verify", "last", str(file))
    assert (compared.returncode, "it has not replaced its target table" in compared.stderr) == (2, True)


def test_a_rule_that_cannot_be_evaluated_is_named_and_changes_nothing(databases, etl, tmp_path):
    source, target = databases
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute("create table public.t (id int primary key)")
        connection.execute("insert into public.t select generate_series(1, 10)")
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute("create sequence public.sq")
    file = tmp_path / "job.yaml"
    for aggregate, told in (
        ("sum(1 / (id - id))", "division by zero"),
        ("count(*) + 0 * nextval('public.sq')", "read-only"),
    ):
        with psycopg.connect(source, autocommit=True) as connection:
            connection.execute("create sequence if not exists public.sq")
        file.write_text(
            f"source: {{uri: '{source}', table: public.t}}\ntarget: {{uri: '{target}', mode: skip}}\nkey: id\n"
            f'run_rules: {{mine: {{equals_source: "{aggregate}"}}}}\n',
            encoding="utf-8",
        )
        found = etl("run", str(file))
        assert found.returncode == 3, found.stdout
        assert f"check run rule mine: {told}" in " ".join(found.stdout.split()).replace(
            "cannot execute nextval() in a ", ""
        )
    assert value(target, "select is_called from public.sq") is False
